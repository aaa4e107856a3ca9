"""The teachers' pass: paragraphs → windows with labels and, given teachers, their logits, on Ray Data.

Plain text becomes windows too, for general distillation: the first stage of TinyBERT (arXiv 1909.10351),
in which the teacher's layers are taught on texts that no question is asked of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyqa_ray import models, runs, shards, squad, storage, texts, weights
from tinyqa_ray.cluster import connected
from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.distill.students import same_tokens
from tinyqa_ray.distill.window_folder import FOLDER, save_tokenizer
from tinyqa_ray.distill.window_writers import TextWriter, WindowWriter, null_shifts, student_tokenizer
from tinyqa_ray.errors import InputError
from tinyqa_ray.openvino_engine import is_exported
from tinyqa_ray.windows import Windower


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogitsReport:
    """What the pass wrote."""

    paragraphs: int
    questions: int
    windows: int
    tokens: int
    """Tokens of all windows, without padding."""
    answerable_windows: int
    """Windows that hold a whole answer."""


def teacher_logits(
    config: TeacherLogitsConfig, output: str, progress: shards.Progress | None = None
) -> TeacherLogitsReport:
    """Write windows, and the logits of the teachers for them, as Arrow under ``output/windows``.

    Run again, it continues. A later stage reads the files memory-mapped. The windows of plain text
    (``texts.is_text``) do not overlap, and have neither questions nor labels nor logits.

    Raises:
        InputError: data or models that cannot be read, a teacher whose tokens are not the student's,
            teachers for plain text, or a folder of another run.
    """
    shifts = null_shifts(config)
    extra = {runs.SETTINGS: f"null shifts {shifts}"} if config.at_thresholds else {}
    with runs.stage(output, config, inputs=("data", "tokenizer", "model"), extra=extra) as stage:
        if stage.finished:
            return stage.report(TeacherLogitsReport)
        plain = texts.is_text(config.data)
        if plain and config.model:
            raise InputError(
                f"{config.data}: is plain text, which asks no questions for the logits of {config.model[0]}; "
                "leave --model out, and name the student with --tokenizer"
            )
        tokenizer = models.load_tokenizer(student_tokenizer(config))
        _check_models(config, tokenizer)
        if plain:
            files = _text_paragraphs(config.data, stage.path("_input"))
        else:
            files = _paragraphs(config.data, stage.path("_input.parquet"))
        save_tokenizer(tokenizer, stage.output)
        plan = shards.cut(files, config.rows_per_shard, stage.path(FOLDER), "arrow")
        workers = shards.Workers(
            actors=config.actors, num_gpus=config.num_gpus_per_actor, threads=config.threads
        )
        options: dict[str, Any] = {"config": runs.for_workers(config, "tokenizer", "model")}
        if not plain:
            options["shifts"] = shifts
        with connected():
            counts = shards.run(plan, TextWriter if plain else WindowWriter, options, workers, progress)
        return stage.publish(TeacherLogitsReport(**{name: int(value) for name, value in counts.items()}))


def _check_models(config: TeacherLogitsConfig, tokenizer: Any) -> None:
    """Refuse, before any work, a teacher that cannot read the student's windows."""
    Windower(tokenizer, config.window)
    for model in config.model:
        same_tokens(tokenizer, models.load_tokenizer(model))
    for model in config.model:
        if not is_exported(model):
            weights.check_qa_model(model)
        models.check_window(model, models.load_config(model), config.window.max_seq_len)


def _paragraphs(data: str, copy: str) -> list[str]:
    """Parquet files of the paragraphs to read; other data are checked, and written to ``copy`` first."""
    if runs.is_finished(data):
        return squad.paragraph_files(data)
    shards.write_input(copy, squad.to_table(squad.read_squad(data)))
    return [copy]


def _text_paragraphs(data: str, folder: str) -> list[str]:
    """Parquet files of the paragraphs of plain text, in ``folder``, where they are written once."""
    written = storage.join(folder, "_FILES.json")
    if storage.kind(written) == "absent":
        texts.check_texts(data)
        names: list[str] = []
        for table in texts.paragraph_tables(data):
            names.append(f"part-{len(names):06d}.parquet")
            shards.write_input(storage.join(folder, names[-1]), table)
        storage.write_json(written, names)
    return [storage.join(folder, name) for name in storage.read_json(written)]
