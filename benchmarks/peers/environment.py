"""The peers' virtual environments, made once and used again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tinyqa_ray.core.errors import InputError

TORCH = "torch==2.13.0"
REQUIREMENTS = {
    # The last line of transformers that has the pipeline for good.
    "pipeline": ("transformers==4.57.6",),
    "haystack": ("transformers-haystack==2.0.0", "haystack-ai==3.4.0", "transformers==5.23.0"),
}
AUGMENTERS = {
    # The last release of Haystack 1, which makes models; transformers is the last that it runs with.
    "farm": ("farm-haystack[inference]==1.26.4.post0", "transformers==4.57.6"),
}
_STAMP = "requirements.txt"
"""File in a finished environment that says what it was made of."""


def interpreter(name: str, folder: Path) -> str:
    """The Python of a peer's environment, which is made under ``folder`` where it is not there yet.

    Args:
        name: a key of ``REQUIREMENTS`` (readers) or ``AUGMENTERS``.
        folder: where environments are kept; needs a few GB.

    Raises:
        InputError: pip could not install the peer.
    """
    requirements = (TORCH, *{**REQUIREMENTS, **AUGMENTERS}[name])
    home = folder.absolute() / name
    python, stamp = home / "bin" / "python", home / _STAMP
    wanted = "\n".join(requirements) + "\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    print(f"making the environment of {name}: {', '.join(requirements)}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(home)],
        # Apart and first: with transformers' own needs in the same call pip may weigh other builds of torch.
        [*pip, TORCH],
        [*pip, *requirements],
    ]
    for command in commands:
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise InputError(
                f"{name}: '{' '.join(command)}' failed, see above; mend it, or go without: --skip {name}"
            )
    stamp.write_text(wanted)
    return str(python)
