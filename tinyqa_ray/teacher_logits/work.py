"""The work of the teachers' pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.core import shards, stage_folder, storage
from tinyqa_ray.core.cluster import connected
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import plain_text, squad
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.models import hub, pretrained, weights
from tinyqa_ray.models.tokenizers import have_same_tokens
from tinyqa_ray.teacher_logits.report import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, save_tokenizer
from tinyqa_ray.teacher_logits.window_writers import (
    TextWriter,
    WindowWriter,
    border_counts,
    student_tokenizer,
)

MOST_FILES = 4096
"""Files that a pass writes at most: training opens each of them, and a store takes some time for each."""
_ROWS = "_ROWS_PER_SHARD.json"
"""Where a pass of more paragraphs keeps how many of them a file holds."""


def work(
    config: TeacherLogitsConfig,
    shifts: Sequence[float],
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> TeacherLogitsReport:
    """Write the windows that are still missing, and return the counts of all."""
    config = hub.pinned(config, stage, "tokenizer", "teachers", data=("data",))
    plain = plain_text.is_text(config.data)
    if plain and config.teachers:
        raise InputError(
            f"{config.data}: is plain text, without questions that {config.teachers[0]} could answer; "
            "leave --teachers out, and name the student with --tokenizer"
        )
    tokenizer = pretrained.load_tokenizer(student_tokenizer(config))
    _check_models(config, tokenizer)
    if plain:
        files = _text_paragraphs(config.data, stage.path("_input"))
    else:
        files = _paragraphs(config.data, stage.path("_input.parquet"))
    save_tokenizer(tokenizer, stage.output)
    plan = _plan(config, files, stage)
    workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus, threads=config.threads)
    options: dict[str, Any] = {"config": stage_folder.for_workers(config, "tokenizer", "teachers")}
    if not plain:
        options["shifts"] = shifts
    with connected():
        counts = shards.run(plan, TextWriter if plain else WindowWriter, options, workers, progress)
    borders = [_on_borders(counts, teacher) for teacher in range(len(config.teachers))]
    projected = any(each != (None, None) for each in borders)
    return TeacherLogitsReport(
        **{name: int(value) for name, value in counts.items()},
        start_on_border=tuple(start for start, _ in borders) if projected else (),
        end_on_border=tuple(end for _, end in borders) if projected else (),
    )


def _on_borders(counts: dict[str, float], teacher: int) -> tuple[float | None, float | None]:
    """Mean shares of a teacher's starts and ends on borders of tokens; its sums are taken out of counts."""
    windows, starts, ends = (counts.pop(name, 0.0) for name in border_counts(teacher))
    return (round(starts / windows, 4), round(ends / windows, 4)) if windows else (None, None)


def _plan(config: TeacherLogitsConfig, files: Sequence[str], stage: stage_folder.Stage) -> list[shards.Shard]:
    """The shards of the pass: of ``rows_per_shard`` paragraphs, or more where these would be too many files.

    A pass that goes on keeps the shards with which it was begun.
    """
    folder, kept = stage.path(FOLDER), stage.path(_ROWS)
    plan = shards.cut(files, config.rows_per_shard, folder, "arrow")
    if storage.kind(kept) == "absent":
        # An earlier version began passes without a limit.
        if len(plan) <= MOST_FILES or storage.names_in(folder):
            return plan
        storage.write_json(kept, -(-sum(shard.rows for shard in plan) // MOST_FILES))
    return shards.cut(files, storage.read_json(kept), folder, "arrow")


def _check_models(config: TeacherLogitsConfig, tokenizer: Any) -> None:
    """Refuse, before any work, a teacher that cannot be used."""
    Windower(tokenizer, config.window)
    for model in config.teachers:
        if not is_exported(model):
            weights.check_qa_model(model)
        own = pretrained.load_tokenizer(model)
        if have_same_tokens(tokenizer, own):
            pretrained.check_window(model, pretrained.load_config(model), config.window.max_seq_len)
        else:
            Windower(own, config.window)


def _paragraphs(data: str, copy: str) -> list[str]:
    """Parquet files of the paragraphs to read; other data is checked and written to ``copy`` first."""
    if stage_folder.is_finished(data):
        return squad.paragraph_files(data)
    shards.write_input(copy, squad.to_table(squad.read_squad(data)))
    return [copy]


def _text_paragraphs(data: str, folder: str) -> list[str]:
    """Write the paragraphs of plain text to ``folder``, once, and return their Parquet files."""
    written = storage.join(folder, "_FILES.json")
    if storage.kind(written) == "absent":
        plain_text.check_texts(data)
        names: list[str] = []
        for table in plain_text.paragraph_tables(data):
            names.append(f"part-{len(names):06d}.parquet")
            shards.write_input(storage.join(folder, names[-1]), table)
        storage.write_json(written, names)
    return [storage.join(folder, name) for name in storage.read_json(written)]
