"""A folder of windows, as a teacher-logits stage leaves it: its columns, its files, and how it was made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained

FOLDER = "windows"
"""Where the stage keeps its Arrow files, within its output."""
TOKENIZER = "tokenizer"
"""Where the stage keeps the tokenizer that cut the windows, within its output."""
MADE_BY = "teacher-logits"
"""Name of the stage."""

WINDOWS = pa.schema(
    [
        pa.field("window_id", pa.int64()),
        # Null in windows of plain text, like the offsets: they have no questions and no answers.
        pa.field("question_id", pa.string()),
        pa.field("paragraph_id", pa.string()),
        pa.field("copy", pa.int32()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("token_type_ids", pa.list_(pa.int32())),
        pa.field("context_start", pa.int32()),
        # Start and end of each context token in turn, in characters: two numbers a token.
        pa.field("offsets", pa.list_(pa.int32())),
        # NO_LABEL in windows of plain text.
        pa.field("start_position", pa.int32()),
        pa.field("end_position", pa.int32()),
        # Unpadded, as long as input_ids; null without a teacher.
        pa.field("start_logits", pa.list_(pa.float16())),
        pa.field("end_logits", pa.list_(pa.float16())),
    ]
)
"""Columns of the windows; when teachers are kept apart, each after the first adds two (see ``schema``)."""


def logit_columns(teacher: int = 0) -> tuple[str, str]:
    """Columns of a teacher's start and end logits; 0 is the first teacher, or the mean of all."""
    suffix = f"_{teacher}" if teacher else ""
    return f"start_logits{suffix}", f"end_logits{suffix}"


def schema(teachers: int = 1) -> pa.Schema:
    """``WINDOWS``, with two more columns for each of ``teachers`` after the first."""
    added = [name for teacher in range(1, teachers) for name in logit_columns(teacher)]
    return pa.schema([*WINDOWS, *(pa.field(name, pa.list_(pa.float16())) for name in added)])


def window_files(folder: str) -> list[str]:
    """Arrow files of a finished teacher-logits stage.

    Raises:
        InputError: the folder is no such stage, or holds no windows.
    """
    stage_folder.require_finished(folder, MADE_BY)
    files = storage.list_files(storage.join(folder, FOLDER), ".arrow")
    if not files:
        raise InputError(f"{folder}: holds no windows; its data had no questions")
    return files


def window_tokenizer(folder: str) -> Any:
    """The fast tokenizer that cut the windows of a finished teacher-logits stage.

    Raises:
        InputError: the folder is no such stage, or an older version wrote it without the tokenizer.
    """
    stage_folder.require_finished(folder, MADE_BY)
    kept = storage.join(folder, TOKENIZER)
    if storage.kind(kept) != "folder":
        raise InputError(
            f"{folder}: holds no tokenizer, since an older version wrote it; make its windows again"
        )
    return pretrained.load_tokenizer(kept)


def window_sizes(folder: str) -> WindowConfig:
    """Sizes of the windows of a finished teacher-logits stage.

    Raises:
        InputError: the folder is no such stage.
    """
    return WindowConfig(**stage_folder.require_finished(folder, MADE_BY)["config"]["window"])


def window_teachers(folder: str) -> tuple[str, ...]:
    """Teachers whose logits the windows carry, as they were named to the stage; empty without any.

    Ids of the hub have the commit that was loaded (``deepset/x@<40 hex digits>``).

    Raises:
        InputError: the folder is no finished teacher-logits stage.
    """
    document = stage_folder.require_finished(folder, MADE_BY)
    teachers = stage_folder.with_present_names(TeacherLogitsConfig, document)["config"]["teachers"]
    commits = document.get("commits", {})
    return tuple(
        f"{name.partition('@')[0]}@{commits[name]}" if name in commits else name for name in teachers
    )


def save_tokenizer(tokenizer: Any, output: str) -> None:
    """Write a tokenizer beside the windows of ``output``; equal tokenizers give equal bytes.

    Args:
        tokenizer: a fast tokenizer of transformers, as it was loaded; this changes its ``init_kwargs``.
        output: the stage's folder, local or a URL.
    """
    # They tell how the tokenizer was loaded, which is not part of it.
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            storage.write_atomic(storage.join(output, TOKENIZER, file.name), file.read_bytes())
