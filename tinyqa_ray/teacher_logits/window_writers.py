"""Paragraphs of one shard → its windows: with labels and the teachers' logits, or of plain text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.windows import NO_LABEL, Pair, Windower, Windows, labels_of_any
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.models.tokenizers import have_same_tokens
from tinyqa_ray.teacher_logits.half_precision import FiniteTeacher, NotFiniteError, in_half_precision
from tinyqa_ray.teacher_logits.null_shifts import null_shifts
from tinyqa_ray.teacher_logits.projection import Projector, mean_of_distributions
from tinyqa_ray.teacher_logits.window_dataset import logit_columns, schema

Logits = NDArray[np.float32]

_NAMED = 5
"""Questions that a refusal names."""
_TEXTS_AT_ONCE = 64
"""Texts that are tokenised together: a shard may hold very many."""


class WindowWriter:
    """Cuts the windows of a shard of paragraphs, labels them, and runs the teachers over them.

    Several teachers are averaged, or kept apart, as ``config.combine`` says. The average is the mean of
    their logits, in float32, as TextBrewer's ``MultiTeacherDistiller`` takes it (arXiv 2002.12620). After a
    softmax at any temperature it is the normalised geometric mean of their distributions. A mean of
    probabilities would depend on the temperature at which the student is taught, which the windows do not
    know. The teachers' logits are not centred first, since a constant cancels in the softmax: the mean stays
    comparable between the windows of a question, and the mean of one teacher is its own logits.

    A teacher of another vocabulary reads the windows as text, and its logits are carried over by characters
    (``projection``). If teachers differ in their tokens, their distributions are averaged instead: where one
    of them has no token that begins or ends there, its logit means nothing.

    Windows of a question that is neither answered nor marked as unanswerable have no label. Only there,
    ``config.abstain_at_threshold`` shifts a teacher's null score: a teacher answers too many questions that
    it was not trained on, and is certain about those that it was trained on.
    """

    side_by_side = True

    def __init__(self, config: TeacherLogitsConfig, shifts: Sequence[float] | None = None) -> None:
        """Load the teachers.

        Args:
            config: of the stage.
            shifts: what is added to each teacher's null score, read once for all actors; by default
                ``null_shifts`` of the config.
        """
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config = config
        tokenizer = pretrained.load_tokenizer(student_tokenizer(config))
        self.windower = Windower(tokenizer, config.window)
        device = "cuda" if config.num_gpus else "cpu"
        self.teachers = [FiniteTeacher(model, device) for model in config.teachers]
        read = [pretrained.load_tokenizer(model) for model in config.teachers]
        self.projectors = [
            None
            if have_same_tokens(tokenizer, own)
            else Projector(teacher, own, _reach(model), config.window)
            for model, teacher, own in zip(config.teachers, self.teachers, read, strict=True)
        ]
        self.alike = all(have_same_tokens(read[0], own) for own in read[1:])
        """Whether all teachers read the same tokens."""
        self.null_shifts = null_shifts(config) if shifts is None else shifts

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Return the windows, in the order of paragraphs and questions, and the counts of the shard."""
        paragraphs = squad.from_table(rows)
        asked = [(paragraph, question) for paragraph in paragraphs for question in paragraph.questions]
        pairs = [(question.question, paragraph.context) for paragraph, question in asked]
        windows = self.windower.windows(pairs)
        # The first answer that a window holds is the one to learn; the others are for scoring.
        spans = [[_span(answer) for answer in question.answers] for _, question in asked]
        unlabelled = np.array([question.unlabelled for _, question in asked], dtype=bool)[windows.pair]
        positions = labels_of_any(windows, spans)
        for side in positions:
            side[unlabelled] = NO_LABEL  # ``labels`` says NO_ANSWER, which would be taught
        named = [(paragraph, question.id) for paragraph, question in asked]
        borders: dict[str, float] = {}
        try:
            logits = self._logits(windows, pairs, unlabelled, borders)
        except NotFiniteError as error:
            questions = dict.fromkeys(asked[windows.pair[window]][1].id for window in error.windows)
            raise InputError(f"{error} (questions {', '.join([*questions][:_NAMED])})") from None
        made = _table(windows, named, positions, logits)
        return made, _counts(made, len(paragraphs), len(asked)) | borders

    def _logits(
        self,
        windows: Windows,
        pairs: Sequence[Pair],
        unlabelled: NDArray[np.bool_],
        borders: dict[str, float],
    ) -> list[tuple[Logits, Logits]]:
        """Start and end logits to write, all windows end to end: one pair, or one for each teacher.

        What falls on the borders of tokens is counted in ``borders``, under the names of ``border_counts``.
        """
        each = []
        nulls = (np.cumsum(windows.lengths) - windows.lengths)[unlabelled]
        most = self.config.max_batch_tokens
        for number, shift in enumerate(self.null_shifts):
            projector = self.projectors[number]
            if projector is None:
                start, end = self.teachers[number].logits(windows, most)
            else:
                found = projector.logits(windows, pairs, most)
                start, end = found.starts, found.ends
                sums = (
                    np.isfinite(found.start_on_border).sum(),
                    np.nansum(found.start_on_border),
                    np.nansum(found.end_on_border),
                )
                borders |= dict(zip(border_counts(number), map(float, sums), strict=True))
            sides = _end_to_end(start, np.float32), _end_to_end(end, np.float32)
            for side in sides:
                side[nulls] += shift / 2
            each.append(sides)
        if self.config.combine == "apart" or len(each) < 2:
            return each
        starts, ends = zip(*each, strict=True)
        if self.alike:
            return [(_mean(starts), _mean(ends))]
        lengths = windows.lengths
        return [(mean_of_distributions(starts, lengths), mean_of_distributions(ends, lengths))]


class TextWriter:
    """Cuts the windows of a shard of plain text."""

    def __init__(self, config: TeacherLogitsConfig) -> None:
        quiet_models()
        self.windower = Windower(pretrained.load_tokenizer(student_tokenizer(config)), config.window)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Return the windows, in the order of paragraphs, and the counts of the shard."""
        parts = [schema().empty_table()]
        for first in range(0, rows.num_rows, _TEXTS_AT_ONCE):
            part = squad.from_table(rows.slice(first, _TEXTS_AT_ONCE))
            windows = self.windower.text_windows([paragraph.context for paragraph in part])
            untaught = np.full(len(windows), NO_LABEL, dtype=np.int32)
            parts.append(_table(windows, [(paragraph, None) for paragraph in part], (untaught, untaught), []))
        made = pa.concat_tables(parts).combine_chunks()
        return made, _counts(made, rows.num_rows, 0)


def border_counts(teacher: int) -> tuple[str, str, str]:
    """Names of a projected teacher's counts: windows, and their sums of starts and of ends on borders."""
    return f"teacher_{teacher}_windows", f"teacher_{teacher}_starts", f"teacher_{teacher}_ends"


def student_tokenizer(config: TeacherLogitsConfig) -> str:
    """Name of the model whose tokenizer the student uses."""
    return config.teachers[0] if config.tokenizer is None else config.tokenizer


def _reach(model: str) -> int:
    """Most tokens that a teacher reads in one window."""
    return families.max_window_tokens(pretrained.load_config(model))


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
    """Windows as rows of ``schema``; logits are null without a teacher, offsets for plain text."""
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
            columns[name] = _lists(in_half_precision(side, lengths), lengths)
    if not logits:
        columns |= {name: pa.nulls(len(windows), pa.list_(pa.float16())) for name in logit_columns()}
    return pa.table(columns, schema=schema(len(logits)))


def _mean(logits: Sequence[Logits]) -> Logits:
    mean: Logits = np.mean(logits, axis=0, dtype=np.float32)
    return mean


def _end_to_end(rows: Sequence[Any], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *rows])


def _lists(values: NDArray[Any], lengths: NDArray[np.int32]) -> pa.Array:
    """Rows that lie end to end, as one Arrow list array, made without a Python object for each number."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))


def _window_id(key: str, first_token: int) -> int:
    """A number that depends only on the window's question, paragraph and place."""
    digest = hashlib.sha256(f"{key}\t{first_token}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _span(answer: squad.GoldAnswer) -> tuple[int, int]:
    return answer.answer_start, answer.answer_start + len(answer.text)
