"""The teachers' pass: paragraphs → windows with labels and, given teachers, their logits, on Ray Data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tinyqa_ray import models, runs, shards, squad, storage
from tinyqa_ray.cluster import connected, cores, quiet_models
from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.distill.students import same_tokens
from tinyqa_ray.errors import InputError
from tinyqa_ray.windows import Windower, Windows, labels

Logits = NDArray[np.float32]

FOLDER = "windows"
"""Where the stage keeps its Arrow files, within its output."""

WINDOWS = pa.schema(
    [
        pa.field("window_id", pa.int64()),
        pa.field("question_id", pa.string()),
        pa.field("paragraph_id", pa.string()),
        pa.field("copy", pa.int32()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("token_type_ids", pa.list_(pa.int32())),
        pa.field("context_start", pa.int32()),
        # Start and end of each context token in turn, in characters: two numbers a token.
        pa.field("offsets", pa.list_(pa.int32())),
        pa.field("start_position", pa.int32()),
        pa.field("end_position", pa.int32()),
        # Unpadded, as long as input_ids; null without a teacher.
        pa.field("start_logits", pa.list_(pa.float16())),
        pa.field("end_logits", pa.list_(pa.float16())),
    ]
)
"""Columns of the windows; teachers kept apart add two each, see ``schema``."""


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

    Run again, it continues. A later stage reads the files memory-mapped.

    Raises:
        InputError: data or models that cannot be read, a teacher whose tokens are not the student's, or a
            folder of another run.
    """
    with runs.stage(output, config, inputs=("data", "tokenizer", "model")) as stage:
        if stage.finished:
            return stage.report(TeacherLogitsReport)
        _check_models(config)
        files = _paragraphs(config.data, stage.path("_input.parquet"))
        plan = shards.cut(files, config.rows_per_shard, stage.path(FOLDER), "arrow")
        workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus_per_actor)
        options = {"config": runs.for_workers(config, "tokenizer", "model")}
        with connected():
            counts = shards.run(plan, WindowWriter, options, workers, progress)
        return stage.publish(TeacherLogitsReport(**{name: int(value) for name, value in counts.items()}))


def logit_columns(teacher: int = 0) -> tuple[str, str]:
    """Columns of a teacher's start and end logits; 0 is the first teacher, or the mean of all."""
    suffix = f"_{teacher}" if teacher else ""
    return f"start_logits{suffix}", f"end_logits{suffix}"


def schema(teachers: int = 1) -> pa.Schema:
    """``WINDOWS``, with two more columns for each of ``teachers`` after the first."""
    added = [name for teacher in range(1, teachers) for name in logit_columns(teacher)]
    return pa.schema([*WINDOWS, *(pa.field(name, pa.list_(pa.float16())) for name in added)])


class WindowWriter:
    """Cuts the windows of a shard of paragraphs, labels them, and runs the teachers over them.

    Several teachers are averaged, or kept apart, as ``config.teachers`` says. The average is the mean of
    their logits, in float32, as TextBrewer's ``MultiTeacherDistiller`` takes it (arXiv 2002.12620). After a
    softmax it is the normalised geometric mean of their distributions, and so at every temperature: the
    windows need not know the one that the student will be taught at, which the mean of probabilities
    would. A constant added to a teacher's logits cancels in the softmax, so none is shifted: the mean stays
    comparable between the windows of a question, and one teacher's mean is that teacher.
    """

    def __init__(self, config: TeacherLogitsConfig) -> None:
        import torch

        from tinyqa_ray.engines import TorchEngine, pick_device, pick_dtype

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config = config
        self.windower = Windower(models.load_tokenizer(_tokenizer(config)), config.window)
        device = "cuda" if config.num_gpus_per_actor else "cpu"
        dtype = pick_dtype("auto", pick_device(device))
        self.teachers = [
            TorchEngine(models.load_qa_model(model, dtype=dtype), device=device) for model in config.model
        ]

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
        positions = labels(windows, spans)
        named = [(paragraphs[p], question.id) for p, question in asked]
        made = _table(windows, named, positions, self._logits(windows))
        return made, {
            "paragraphs": len(paragraphs),
            "questions": len(asked),
            "windows": len(windows),
            "tokens": int(windows.lengths.sum()),
            "answerable_windows": int((positions[0] > 0).sum()),
        }

    def _logits(self, windows: Windows) -> list[tuple[Logits, Logits]]:
        """Start and end logits to be written, of all windows end to end: one pair, or one a teacher."""
        each = []
        for teacher in self.teachers:
            start, end = teacher.logits(windows, self.config.max_batch_tokens)
            each.append((_end_to_end(start, np.float32), _end_to_end(end, np.float32)))
        if self.config.teachers == "apart" or len(each) < 2:
            return each
        starts, ends = zip(*each, strict=True)
        return [(_mean(starts), _mean(ends))]


def _table(
    windows: Windows,
    asked: list[tuple[squad.Paragraph, str]],
    positions: tuple[Any, Any],
    logits: list[tuple[Logits, Logits]],
) -> pa.Table:
    """Windows as rows of ``schema``; without a teacher, their logits are null."""
    pairs = [asked[pair] for pair in windows.pair]
    keys = [f"{paragraph.paragraph_id}\t{question}" for paragraph, question in pairs]
    ids = [_window_id(key, int(first)) for key, first in zip(keys, windows.first_token, strict=True)]
    lengths = windows.lengths
    types = pa.nulls(len(windows), pa.list_(pa.int32()))
    if any(row.any() for row in windows.type_ids):
        types = _lists(_end_to_end(windows.type_ids, np.int32), lengths)
    offsets = [windows.window_offsets(window).reshape(-1) for window in range(len(windows))]
    columns = {
        "window_id": ids,
        "question_id": [question for _, question in pairs],
        "paragraph_id": [paragraph.paragraph_id for paragraph, _ in pairs],
        "copy": [paragraph.copy for paragraph, _ in pairs],
        "input_ids": _lists(_end_to_end(windows.input_ids, np.int32), lengths),
        "token_type_ids": types,
        "context_start": windows.context_start,
        "offsets": _lists(_end_to_end(offsets, np.int32), 2 * windows.context_tokens),
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


def _check_models(config: TeacherLogitsConfig) -> None:
    """Refuse, before any work, a teacher that cannot read the student's windows."""
    tokenizer = models.load_tokenizer(_tokenizer(config))
    Windower(tokenizer, config.window)
    for model in config.model:
        same_tokens(tokenizer, models.load_tokenizer(model))
    for model in config.model:
        network = models.load_qa_model(model)
        models.check_window(model, network.config, config.window.max_seq_len)


def _paragraphs(data: str, copy: str) -> list[str]:
    """Parquet files of the paragraphs to read; other data are checked, and written to ``copy`` first."""
    if runs.is_finished(data):
        return squad.paragraph_files(data)
    shards.write_input(copy, squad.to_table(squad.read_squad(data)))
    return [copy]


def window_files(folder: str) -> list[str]:
    """Arrow files of a finished teacher-logits stage.

    Raises:
        InputError: the folder is not one.
    """
    runs.require_finished(folder, "teacher-logits")
    files = storage.list_files(storage.join(folder, FOLDER), ".arrow")
    if not files:
        raise InputError(f"{folder}: holds no windows; its data had no questions")
    return files
