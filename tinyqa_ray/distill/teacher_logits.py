"""The teachers' pass: paragraphs → windows with labels and, given teachers, their logits, on Ray Data.

Plain text becomes windows too, for general distillation: the first stage of TinyBERT (arXiv 1909.10351),
in which the teacher's layers are taught on texts that no question is asked of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tinyqa_ray import models, runs, shards, squad, storage, texts
from tinyqa_ray.cluster import connected, cores, quiet_models
from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.distill.students import same_tokens
from tinyqa_ray.distill.window_folder import FOLDER, logit_columns, save_tokenizer, schema
from tinyqa_ray.distill.window_folder import window_files as window_files
from tinyqa_ray.errors import InputError
from tinyqa_ray.loading import load_engine
from tinyqa_ray.openvino_engine import is_exported
from tinyqa_ray.windows import NO_LABEL, Windower, Windows, labels

Logits = NDArray[np.float32]

_TEXTS_AT_ONCE = 64
"""Texts that are tokenised together: a shard may hold very many."""


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
    extra = {"null shifts": str(_null_shifts(config))} if config.at_thresholds else {}
    with runs.stage(output, config, inputs=("data", "tokenizer", "model"), extra=extra) as stage:
        if stage.finished:
            return stage.report(TeacherLogitsReport)
        plain = texts.is_text(config.data)
        if plain and config.model:
            raise InputError(
                f"{config.data}: is plain text, which asks no questions for the logits of {config.model[0]}; "
                "leave --model out, and name the student with --tokenizer"
            )
        tokenizer = models.load_tokenizer(_tokenizer(config))
        _check_models(config, tokenizer)
        if plain:
            files = _text_paragraphs(config.data, stage.path("_input"))
        else:
            files = _paragraphs(config.data, stage.path("_input.parquet"))
        save_tokenizer(tokenizer, stage.output)
        plan = shards.cut(files, config.rows_per_shard, stage.path(FOLDER), "arrow")
        workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus_per_actor)
        options = {"config": runs.for_workers(config, "tokenizer", "model")}
        with connected():
            counts = shards.run(plan, TextWriter if plain else WindowWriter, options, workers, progress)
        return stage.publish(TeacherLogitsReport(**{name: int(value) for name, value in counts.items()}))


class WindowWriter:
    """Cuts the windows of a shard of paragraphs, labels them, and runs the teachers over them.

    Several teachers are averaged, or kept apart, as ``config.teachers`` says. The average is the mean of
    their logits, in float32, as TextBrewer's ``MultiTeacherDistiller`` takes it (arXiv 2002.12620). After a
    softmax it is the normalised geometric mean of their distributions, and so at every temperature: the
    windows need not know the one that the student will be taught at, which the mean of probabilities
    would. A constant added to a teacher's logits cancels in the softmax, so none is shifted: the mean stays
    comparable between the windows of a question, and one teacher's mean is that teacher.

    Windows of a question that nobody has answered, nor said to be unanswerable, have no label. With
    ``config.at_thresholds``, a teacher's null moves there: what a teacher learned from, it says surely, and
    of other questions it answers too many.
    """

    def __init__(self, config: TeacherLogitsConfig) -> None:
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config = config
        self.windower = Windower(models.load_tokenizer(_tokenizer(config)), config.window)
        device = "cuda" if config.num_gpus_per_actor else "cpu"
        self.teachers = [load_engine(model, device=device)[0] for model in config.model]
        self.null_shifts = _null_shifts(config)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Paragraphs in, windows out, in the order of paragraphs and questions."""
        paragraphs = squad.from_table(rows)
        asked = [(p, question) for p, paragraph in enumerate(paragraphs) for question in paragraph.questions]
        windows = self.windower.windows(
            [question.question for _, question in asked],
            [paragraph.context for paragraph in paragraphs],
            [(i, p) for i, (p, _) in enumerate(asked)],
        )
        # The first answer is the one to learn; the others are for scoring.
        spans = [_span(question.answers[0]) if question.answers else None for _, question in asked]
        unlabelled = np.array([question.unlabelled for _, question in asked], dtype=bool)[windows.pair]
        positions = labels(windows, spans)
        for side in positions:
            side[unlabelled] = NO_LABEL  # without answers it would be NO_ANSWER, which labels would teach
        named = [(paragraphs[p], question.id) for p, question in asked]
        made = _table(windows, named, positions, self._logits(windows, unlabelled))
        return made, _counts(made, len(paragraphs), len(asked))

    def _logits(self, windows: Windows, unlabelled: NDArray[np.bool_]) -> list[tuple[Logits, Logits]]:
        """Start and end logits to be written, of all windows end to end: one pair, or one a teacher."""
        each = []
        nulls = (np.cumsum(windows.lengths) - windows.lengths)[unlabelled]
        for teacher, shift in zip(self.teachers, self.null_shifts, strict=True):
            start, end = teacher.logits(windows, self.config.max_batch_tokens)
            sides = _end_to_end(start, np.float32), _end_to_end(end, np.float32)
            for side in sides:
                side[nulls] += shift / 2
            each.append(sides)
        if self.config.teachers == "apart" or len(each) < 2:
            return each
        starts, ends = zip(*each, strict=True)
        return [(_mean(starts), _mean(ends))]


class TextWriter:
    """Cuts the windows of a shard of plain text."""

    def __init__(self, config: TeacherLogitsConfig) -> None:
        quiet_models()
        self.windower = Windower(models.load_tokenizer(_tokenizer(config)), config.window)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Paragraphs in, windows out, in the order of paragraphs."""
        parts = [schema().empty_table()]
        for first in range(0, rows.num_rows, _TEXTS_AT_ONCE):
            part = squad.from_table(rows.slice(first, _TEXTS_AT_ONCE))
            windows = self.windower.text_windows([paragraph.context for paragraph in part])
            untaught = np.full(len(windows), NO_LABEL, dtype=np.int32)
            parts.append(_table(windows, [(paragraph, None) for paragraph in part], (untaught, untaught), []))
        made = pa.concat_tables(parts).combine_chunks()
        return made, _counts(made, rows.num_rows, 0)


def _counts(made: pa.Table, paragraphs: int, questions: int) -> dict[str, float]:
    """The shard's share of ``TeacherLogitsReport``."""
    return {
        "paragraphs": paragraphs,
        "questions": questions,
        "windows": made.num_rows,
        "tokens": len(pc.list_flatten(made["input_ids"])),
        "answerable_windows": int((made["start_position"].to_numpy() > 0).sum()),
    }


def _table(
    windows: Windows,
    asked: Sequence[tuple[squad.Paragraph, str | None]],
    positions: tuple[Any, Any],
    logits: list[tuple[Logits, Logits]],
) -> pa.Table:
    """Windows as rows of ``schema``; logits are null without a teacher, offsets of texts alone."""
    pairs = [asked[pair] for pair in windows.pair]
    keys = [f"{paragraph.paragraph_id}\t{question or ''}" for paragraph, question in pairs]
    ids = [_window_id(key, int(first)) for key, first in zip(keys, windows.first_token, strict=True)]
    lengths = windows.lengths
    types = pa.nulls(len(windows), pa.list_(pa.int32()))
    if any(row.any() for row in windows.type_ids):
        types = _lists(_end_to_end(windows.type_ids, np.int32), lengths)
    offsets = pa.nulls(len(windows), pa.list_(pa.int32()))
    if windows.offsets:
        spans = [windows.window_offsets(window).reshape(-1) for window in range(len(windows))]
        offsets = _lists(_end_to_end(spans, np.int32), 2 * windows.context_tokens)
    columns = {
        "window_id": ids,
        "question_id": [question for _, question in pairs],
        "paragraph_id": [paragraph.paragraph_id for paragraph, _ in pairs],
        "copy": [paragraph.copy for paragraph, _ in pairs],
        "input_ids": _lists(_end_to_end(windows.input_ids, np.int32), lengths),
        "token_type_ids": types,
        "context_start": windows.context_start,
        "offsets": offsets,
        "start_position": positions[0],
        "end_position": positions[1],
    }
    for teacher, sides in enumerate(logits):
        for name, side in zip(logit_columns(teacher), sides, strict=True):
            columns[name] = _lists(side.astype(np.float16), lengths)
    if not logits:
        columns |= {name: pa.nulls(len(windows), pa.list_(pa.float16())) for name in logit_columns()}
    return pa.table(columns, schema=schema(len(logits)))


def _mean(logits: Sequence[Logits]) -> Logits:
    mean: Logits = np.mean(logits, axis=0, dtype=np.float32)
    return mean


def _end_to_end(rows: Sequence[Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *rows])


def _lists(values: NDArray[Any], lengths: NDArray[np.int32]) -> pa.Array:
    """Rows that lie end to end, as one Arrow list array without a Python object a number."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))


def _window_id(key: str, first_token: int) -> int:
    """A number that only the window's question, paragraph and place decide."""
    digest = hashlib.sha256(f"{key}\t{first_token}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _span(answer: squad.GoldAnswer) -> tuple[int, int]:
    return answer.answer_start, answer.answer_start + len(answer.text)


def _tokenizer(config: TeacherLogitsConfig) -> str:
    """The student's tokenizer: a model's name."""
    return config.model[0] if config.tokenizer is None else config.tokenizer


def _null_shifts(config: TeacherLogitsConfig) -> list[float]:
    """What each teacher's null gains, so that its fitted threshold comes to lie at one half.

    Raises:
        InputError: no threshold was fitted for a teacher.
    """
    if not config.at_thresholds:
        return [0.0] * len(config.model)
    fitted = [models.read_settings(model) for model in config.model]
    for model, settings in zip(config.model, fitted, strict=True):
        if settings.fitted_on is None:
            raise InputError(
                f"{model}: has no fitted threshold for at_thresholds; "
                "fit one (tinyqa evaluate --fit-threshold DATA) before it is exported or asked"
            )
    # A threshold of 0 or 1, at which all or nothing is left unanswered, would shift without bounds.
    thresholds = np.clip([settings.no_answer_threshold for settings in fitted], 1e-6, 1 - 1e-6)
    return [float(shift) for shift in np.log(1 / thresholds - 1)]


def _check_models(config: TeacherLogitsConfig, tokenizer: Any) -> None:
    """Refuse, before any work, a teacher that cannot read the student's windows."""
    Windower(tokenizer, config.window)
    for model in config.model:
        same_tokens(tokenizer, models.load_tokenizer(model))
    for model in config.model:
        if not is_exported(model):
            models.load_qa_model(model)  # it has a head
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
