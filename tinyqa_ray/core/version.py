"""The version of the package, and of those that it computes with."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """Versions of the packages that affect a result, if they are installed (a GPU machine may lack Ray)."""
    found = {"python": platform.python_version(), "tinyqa-ray": __version__}
    for name in ("torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
