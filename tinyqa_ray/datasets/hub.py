"""Rows of data sets on the Hugging Face hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from tinyqa_ray.core import faults
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad_json

_EXPORT = "refs/convert/parquet"
"""Branch in which the hub keeps a Parquet copy of every data set, with a folder for each configuration."""
_TOKENS = ("context_tokens", "question_tokens")
"""Columns of MRQA that nobody reads, and that hold most of its bytes."""


def rows(data: str) -> Iterable[dict[str, Any]]:
    """Rows of ``name``, ``name:split`` or ``name:configuration:split``; the split is train when not given.

    A revision may follow the name: ``rajpurkar/squad_v2@main:train``.

    A data set whose files are made by a script, which the library no longer runs, is read from the hub's
    Parquet copy of it, which is of its newest commit, whatever revision is named.

    Raises:
        InputError: ``data`` looks like a path, or there is no such data set, configuration or split.
        StoreError: the hub did not serve it for too long.
    """
    name, *chosen = data.split(":")
    if (
        name.endswith((".json", *squad_json.LINES, ".parquet"))
        or name.startswith((".", "/", "~"))
        or "://" in data
    ):
        raise InputError(f"{data}: no such file or folder")
    split = chosen[-1] if chosen and chosen[-1] else "train"
    configuration = ":".join(chosen[:-1]) or None
    try:
        loaded = faults.patiently(data, lambda: _loaded(name, configuration, split))
        found: Iterable[dict[str, Any]] = loaded.remove_columns(
            [column for column in _TOKENS if column in loaded.column_names]
        )
        return found
    except Exception as error:  # the hub client raises its own, undocumented, types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        mistake = (
            f"{data}: neither a file, a folder, nor a data set that could be loaded ({reason}); "
            "a split is named as in rajpurkar/squad_v2:validation"
        )
        raise faults.refused(data, error, mistake) from None


def _loaded(name: str, configuration: str | None, split: str) -> Any:
    from datasets import load_dataset

    repository, _, revision = name.partition("@")
    try:
        return load_dataset(repository, configuration, split=split, revision=revision or None)
    # Where the cache holds another configuration, the library does not tell that there is a script.
    except (RuntimeError, ValueError):
        with contextlib.suppress(Exception):  # the first error says more
            return load_dataset(repository, data_dir=configuration, revision=_EXPORT, split=split)
        raise
