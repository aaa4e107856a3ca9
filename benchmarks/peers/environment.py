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
OPTIMUM = {
    # int8 on CPUs as most people make it; both run with the last transformers that has the pipeline.
    "optimum-openvino": (
        "optimum-intel==2.2.0",
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "transformers==4.57.6",
    ),
    "optimum-onnx": ("optimum-onnx[onnxruntime]==0.1.0", "onnxruntime==1.32.0", "transformers==4.57.6"),
}
AUGMENTERS = {
    # The last release of Haystack 1, which makes models; transformers is the last that it runs with.
    "farm": ("farm-haystack[inference]==1.26.4.post0", "transformers==4.57.6"),
}
NEEDLESS = {"optimum-openvino": ("torchvision",)}
"""What comes along, is not used, and does not fit every build of torch: transformers would import it."""
_STAMP = "requirements.txt"
"""File in a finished environment that says what it was made of."""


def interpreter(name: str, folder: Path) -> str:
    """The Python of a peer's environment, which is made under ``folder`` where it is not there yet.

    Args:
        name: a key of ``REQUIREMENTS`` or ``OPTIMUM`` (readers), or of ``AUGMENTERS``.
        folder: where environments are kept; needs a few GB.

    Raises:
        InputError: pip could not install the peer.
    """
    requirements = (TORCH, *{**REQUIREMENTS, **OPTIMUM, **AUGMENTERS}[name])
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
    if name in NEEDLESS:
        commands.append([*pip[:3], "uninstall", "--quiet", "--yes", *NEEDLESS[name]])
    for command in commands:
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise InputError(
                f"{name}: '{' '.join(command)}' failed, see above; mend it, or go without: --skip {name}"
            )
    stamp.write_text(wanted)
    return str(python)
