"""Answers questions in a Dataset: each row has a question and a context, and gets an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from tinyqa_ray.configs import DocumentLimits, WindowConfig
from tinyqa_ray.configs.checks import at_least, share
from tinyqa_ray.core import bundled, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub
from tinyqa_ray.models.settings import ModelSettings, read_settings
from tinyqa_ray.ray_data import documents
from tinyqa_ray.ray_data.actors import ActorConfig
from tinyqa_ray.ray_data.processor import Before, Processor, Row, check_columns
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.answers import Answer, refused

_SPAN = pa.struct(
    [
        pa.field("answer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
    ]
)
_ADDED = pa.schema(
    [
        pa.field("answer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
        pa.field("na_prob", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class AnswerProcessorConfig(ActorConfig):
    """How the rows of a Dataset are answered, one row each."""

    model: str = bundled.MODEL
    """Folder or hub id of a model with a question-answering head, or an export."""
    settings: str | ModelSettings | None = None
    """Threshold and scale of scores: the output of an evaluation, a settings file, or a ``ModelSettings``.
    When not given, those beside the model are used, if any."""
    precision: str = "auto"
    """As in ``Reader.from_pretrained``."""
    window: WindowConfig | None = None
    """Sizes of the windows; when not given, the defaults or what the model reaches."""
    question_column: str = "question"
    """Column with the questions."""
    context_column: str = "context"
    """Column with the texts that they are asked of; added, if they are read from documents."""
    path_column: str | None = None
    """Column with the paths or URLs of documents (PDF, DOCX, PPTX, HTML, Markdown, EPUB, text; extra
    'documents'), in place of texts. Rows then get ``page`` and ``boxes``, too."""
    bytes_column: str | None = None
    """Column with the bytes of the documents, as ``ray.data.read_binary_files(…, include_paths=True)`` gives
    them; ``path_column`` then only names them. The rows lose it."""
    document_limits: DocumentLimits = DocumentLimits()
    """What a document may take; a row whose document takes more has an ``error``."""
    top_k: int = 1
    """Answers of each row. Above 1, a column ``top_answers`` holds them, best first."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    threshold: float | None = None
    """A row whose ``na_prob`` is above it has no answer (null); the model's own when not given."""
    prefix: str = ""
    """What the names of the added columns begin with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "top_k", "max_answer_tokens")
        if self.threshold is not None:
            share(self, "threshold")
        if self.bytes_column is not None and self.path_column is None:
            raise InputError("bytes_column is given; give path_column, too, whose suffixes say the formats")

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the columns that rows have more."""
        several = ("top_answers",) if self.top_k > 1 else ()
        read = self.path_column is not None
        names = (*_ADDED.names, *(documents.PLACED.names if read else ()), *several)
        return (*((self.context_column,) if read else ()), *(f"{self.prefix}{name}" for name in names))

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the columns that rows must have."""
        texts = (self.context_column,) if self.path_column is None else (self.path_column, self.bytes_column)
        return (self.question_column, *(name for name in texts if name is not None))

    def read(self, rows: pa.Table) -> pa.Table:
        """Read the documents of rows: see ``documents.read_documents``.

        Raises:
            InputError: the rows lack a column, or have one that would be added.
        """
        check_columns(rows.column_names, self.needed, self.added)
        assert self.path_column is not None
        return documents.read_documents(
            rows,
            path=self.path_column,
            data=self.bytes_column,
            text=self.context_column,
            limits=self.document_limits,
            prefix=self.prefix,
        )


class AnswerBatches:
    """Answers tables of rows; for ``map_batches`` with ``batch_format="pyarrow"``, or to be called directly.

    Rows keep their columns and get ``answer`` (null where the context holds none), ``score``, ``start`` and
    ``end`` (``context[start:end] == answer``, in characters), ``na_prob`` and ``error``: why a row could not
    be asked, such as a question that is null or a number. Its neighbours are answered all the same. Rows
    whose documents are read get ``page`` and ``boxes``.
    """

    def __init__(self, config: AnswerProcessorConfig) -> None:
        """Load the model.

        Raises:
            InputError: see ``Reader.from_pretrained``.
        """
        self.config = config
        self.reader = Reader.from_pretrained(
            config.model,
            settings=config.settings,
            device=config.begin(),
            precision=config.precision,
            window=config.window,
        )
        if config.max_batch_tokens is not None:
            self.reader.engine.max_batch_tokens = config.max_batch_tokens

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Answer a table of rows.

        Raises:
            InputError: it lacks a column, or has one that would be added.
        """
        config = self.config
        carried = [config.prefix + name for name in documents.CARRIED.names]
        if config.path_column is None:
            check_columns(rows.column_names, config.needed, config.added)
        elif not set(carried) <= set(rows.column_names):  # not read by the stage before
            rows = config.read(rows)
        asked = (config.question_column, config.context_column)
        pairs = list(zip(*(rows[name].to_pylist() for name in asked), strict=True))
        found = self.reader.answer_many(
            pairs,
            top_k=config.top_k,
            max_answer_tokens=config.max_answer_tokens,
            threshold=config.threshold,
        )
        own = None
        if config.path_column is not None:
            own = documents.places(rows, config.prefix)
            unread = rows[carried[-1]].to_pylist()
            found = [
                answers if error is None else [refused(error)]
                for answers, error in zip(found, unread, strict=True)
            ]
            rows = rows.drop_columns(carried)
        for field in _ADDED:
            values = [_value(answers[0], field.name) for answers in found]
            rows = rows.append_column(config.prefix + field.name, pa.array(values, field.type))
        if own is not None:
            stands = [
                documents.placed(each, *(_value(answers[0], name) for name in ("start", "end")))
                for each, answers in zip(own, found, strict=True)
            ]
            for field in documents.PLACED:
                column = pa.array([each[field.name] for each in stands], field.type)
                rows = rows.append_column(config.prefix + field.name, column)
        if config.top_k > 1:
            spans = [
                [
                    _span(each) | (documents.placed(own[row], each.start, each.end) if own else {})
                    for each in answers
                    if each.answer is not None
                ]
                for row, answers in enumerate(found)
            ]
            kind = pa.struct([*_SPAN, *(documents.PLACED if own is not None else ())])
            rows = rows.append_column(config.prefix + "top_answers", pa.array(spans, pa.list_(kind)))
        return rows


def build_answer_processor(
    config: AnswerProcessorConfig,
    preprocess: Callable[[Row], Row] | None = None,
    postprocess: Callable[[Row], Row] | None = None,
) -> Processor:
    """Make a processor that answers the rows of a Dataset. One row gives one row.

    Args:
        config: model, columns and actors.
        preprocess: makes the columns ``question`` and ``context`` (or those that the config names) from a
            row; other columns stay.
        postprocess: makes the final row from a row with its answer.

    Raises:
        InputError: the settings cannot be read.
        StoreError: the hub did not say which commit the model's id means.
    """
    config = hub.at_commits(config, "model")
    # Read once, so that all actors use the same.
    settings = config.settings
    if not isinstance(settings, ModelSettings):
        settings = read_settings(config.model, settings)
    theirs = replace(stage_folder.for_workers(config, "model"), settings=settings)
    before = None
    if config.path_column is not None:
        # Tasks beside the actors: documents are read on the cores that the models leave free.
        before = Before(batches=partial(_read, config=theirs), rows_per_batch=documents.ROWS_PER_BATCH)
    return Processor(
        batches=AnswerBatches,
        config=theirs,
        before=before,
        columns=config.needed,
        added=config.added,
        preprocess=preprocess,
        postprocess=postprocess,
    )


def _read(rows: pa.Table, config: AnswerProcessorConfig) -> pa.Table:
    return config.read(rows)


def _value(answer: Answer, name: str) -> Any:
    """A column's value; a row without an answer has no place."""
    if name in ("start", "end") and answer.answer is None:
        return None
    if name in ("score", "na_prob") and answer.error is not None:
        return None
    return getattr(answer, name)


def _span(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in ("answer", "score", "start", "end")}
