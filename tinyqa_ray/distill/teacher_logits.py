"""The teacher's pass: paragraphs → windows with labels and, given a teacher, its logits, on Ray Data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tinyqa_ray import models, runs, shards, squad, storage
from tinyqa_ray.cluster import connected, cores, quiet_models
from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.distill.students import same_tokens
from tinyqa_ray.errors import InputError
from tinyqa_ray.windows import Windower, Windows, labels

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
    """Write windows, and the logits of ``config.model`` for them, as Arrow under ``output/windows``.

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


class WindowWriter:
    """Cuts the windows of a shard of paragraphs, labels them, and runs the teacher over them."""

    def __init__(self, config: TeacherLogitsConfig) -> None:
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config = config
        self.windower = Windower(models.load_tokenizer(config.tokenizer), config.window)
        self.teacher = None
        if config.model is not None:
            from tinyqa_ray.engines import TorchEngine

            device = "cuda" if config.num_gpus_per_actor else "cpu"
            self.teacher = TorchEngine(models.load_qa_model(config.model), device=device)

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
        start, end = labels(windows, spans)
        made = _table(windows, [(paragraphs[p], question.id) for p, question in asked], start, end)
        if self.teacher is not None:
            logits = self.teacher.logits(windows, self.config.max_batch_tokens)
            for name, values in zip(("start_logits", "end_logits"), logits, strict=True):
                column = _ragged([value.astype(np.float16) for value in values], WINDOWS.field(name).type)
                made = made.set_column(made.schema.get_field_index(name), WINDOWS.field(name), column)
        return made, {
            "paragraphs": len(paragraphs),
            "questions": len(asked),
            "windows": len(windows),
            "tokens": int(windows.lengths.sum()),
            "answerable_windows": int((start > 0).sum()),
        }


def _table(windows: Windows, asked: list[tuple[squad.Paragraph, str]], start: Any, end: Any) -> pa.Table:
    """Windows as rows of schema ``WINDOWS``, their logits null."""
    pairs = [asked[pair] for pair in windows.pair]
    keys = [f"{paragraph.paragraph_id}\t{question}" for paragraph, question in pairs]
    ids = [_window_id(key, int(first)) for key, first in zip(keys, windows.first_token, strict=True)]
    types = windows.type_ids if any(row.any() for row in windows.type_ids) else [None] * len(windows)
    offsets = [windows.window_offsets(window).reshape(-1) for window in range(len(windows))]
    columns = {
        "window_id": ids,
        "question_id": [question for _, question in pairs],
        "paragraph_id": [paragraph.paragraph_id for paragraph, _ in pairs],
        "copy": [paragraph.copy for paragraph, _ in pairs],
        "input_ids": _ragged(windows.input_ids, WINDOWS.field("input_ids").type),
        "token_type_ids": pa.array(types, WINDOWS.field("token_type_ids").type),
        "context_start": windows.context_start,
        "offsets": _ragged(offsets, WINDOWS.field("offsets").type),
        "start_position": start,
        "end_position": end,
        "start_logits": pa.nulls(len(windows), WINDOWS.field("start_logits").type),
        "end_logits": pa.nulls(len(windows), WINDOWS.field("end_logits").type),
    }
    return pa.table(columns, schema=WINDOWS)


def _ragged(rows: list[Any], kind: pa.DataType) -> pa.Array:
    """Arrays of different lengths as one Arrow list array, without a Python object a number."""
    ends = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    values = np.concatenate(rows) if rows else np.empty(0, kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values, kind.value_type))


def _window_id(key: str, first_token: int) -> int:
    """A number that only the window's question, paragraph and place decide."""
    digest = hashlib.sha256(f"{key}\t{first_token}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _span(answer: squad.GoldAnswer) -> tuple[int, int]:
    return answer.answer_start, answer.answer_start + len(answer.text)


def _check_models(config: TeacherLogitsConfig) -> None:
    """Refuse, before any work, a teacher that cannot read the student's windows."""
    tokenizer = models.load_tokenizer(config.tokenizer)
    Windower(tokenizer, config.window)
    if config.model is None:
        return
    same_tokens(tokenizer, models.load_tokenizer(config.model))
    network = models.load_qa_model(config.model)
    models.check_window(config.model, network.config, config.window.max_seq_len)


def _paragraphs(data: str, copy: str) -> list[str]:
    """Parquet files of the paragraphs to read; other data are checked, and written to ``copy`` first."""
    if runs.is_finished(data):
        return squad.paragraph_files(data)
    sink = pa.BufferOutputStream()
    pq.write_table(squad.to_table(squad.read_squad(data)), sink, compression="zstd")
    storage.write_atomic(copy, sink.getvalue().to_pybytes())
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
