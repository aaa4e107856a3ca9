"""SQuAD 2.0 JSON, a hub data set, or Parquet ↔ paragraphs with their questions."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tinyqa_ray.core import faults, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import hub, mrqa, squad_json

_ANSWER = pa.struct([pa.field("text", pa.string()), pa.field("answer_start", pa.int32())])
_QUESTION = pa.struct(
    [
        pa.field("id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("is_impossible", pa.bool_()),
        pa.field("answers", pa.list_(_ANSWER)),
    ]
)
PARAGRAPHS = pa.schema(
    [
        pa.field("paragraph_id", pa.string()),
        pa.field("title", pa.string()),
        pa.field("context", pa.string()),
        pa.field("questions", pa.list_(_QUESTION)),
        pa.field("source_id", pa.string()),
        pa.field("copy", pa.int32()),
    ]
)

_UNANSWERED = frozenset({"id", "title", "context", "question", "is_impossible", "plausible_answers"})
"""Columns that a row without ``answers`` may have; any other might hold the answers."""

FOLDER = "paragraphs"
"""Folder of the paragraphs in the output of a stage that makes them."""


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An answer in its context: ``context[answer_start : answer_start + len(text)] == text``."""

    text: str
    answer_start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question; without answers it is unanswerable if ``is_impossible``, else unlabelled."""

    id: str
    question: str
    is_impossible: bool
    answers: tuple[GoldAnswer, ...]

    @property
    def unlabelled(self) -> bool:
        """Whether nobody has answered it or said that it has no answer."""
        return not self.answers and not self.is_impossible


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """A context and the questions asked of it; ``copy`` 0 is the original of ``source_id``."""

    paragraph_id: str
    title: str
    context: str
    questions: tuple[Question, ...]
    source_id: str = ""
    copy: int = 0


def read_squad(data: str) -> list[Paragraph]:
    """Read paragraphs from a SQuAD JSON file, a list or lines of JSON, Parquet, or a hub id.

    A list or lines hold articles, paragraphs, or questions with their contexts: the hub's rows, or what
    Label Studio and doccano export. Parquet (one file or a folder) holds paragraphs or the hub's rows.

    Raises:
        InputError: the data is absent, is not SQuAD, repeats a question id, has an answer that is not at
            its offset, or has an answer to a question that is marked impossible.
    """
    match storage.kind(data):
        case "file":
            paragraphs = _from_file(data)
        case "folder":
            paragraphs = _from_parquet(paragraph_files(data), data)
        case _:
            paragraphs = from_hub_rows(hub.rows(data), data)
    _check(paragraphs, data)
    return paragraphs


def paragraph_files(folder: str) -> list[str]:
    """Parquet files of a folder of paragraphs, or of a finished stage that makes some.

    Raises:
        InputError: the folder holds none, or its stage is unfinished.
    """
    if storage.kind(storage.join(folder, stage_folder.STARTED)) == "file":
        stage_folder.require_finished(folder, "augment", "gather")
        folder = storage.join(folder, FOLDER)
    files = storage.list_files(folder, ".parquet")
    if not files:
        raise InputError(
            f"{folder}: holds no Parquet files; give a SQuAD JSON file or a folder of paragraphs"
        )
    return files


def read_table(file: str) -> pa.Table:
    """Read one Parquet file; InputError when it is not Parquet or lacks a column of ``PARAGRAPHS``."""
    table = _parquet(pq.read_table, file)
    missing = [name for name in PARAGRAPHS.names if name not in table.column_names]
    if missing:
        raise InputError(f"{file}: lacks {', '.join(missing)}; found {', '.join(table.column_names)}")
    try:
        table = table.select(PARAGRAPHS.names).cast(PARAGRAPHS)
    except pa.ArrowException as error:
        raise InputError(f"{file}: its columns are not those of paragraphs ({error})") from None
    for name in PARAGRAPHS.names:
        if any(_has_null(chunk) for chunk in table[name].chunks):
            raise InputError(f"{file}: column {name} holds nulls; fill them in")
    return table


def _parquet(read: Callable[..., Any], file: str) -> Any:
    filesystem, inner = storage.resolve(file)
    try:
        return read(inner, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise faults.refused(file, error, f"{file}: cannot be read as Parquet ({error})") from None


def _has_null(array: pa.Array) -> bool:
    if pa.types.is_list(array.type):
        return bool(array.null_count) or _has_null(array.flatten())
    if pa.types.is_struct(array.type):
        return any(_has_null(field) for field in array.flatten())
    return bool(array.null_count)


def to_table(paragraphs: Iterable[Paragraph]) -> pa.Table:
    """Paragraphs as an Arrow table of schema ``PARAGRAPHS``."""
    return pa.Table.from_pylist([asdict(paragraph) for paragraph in paragraphs], schema=PARAGRAPHS)


def from_table(table: pa.Table) -> list[Paragraph]:
    """Paragraphs of an Arrow table of schema ``PARAGRAPHS``."""
    return [
        Paragraph(**{**row, "questions": tuple(_question(question) for question in row["questions"])})
        for row in table.to_pylist()
    ]


def write_json(paragraphs: Iterable[Paragraph], path: str) -> None:
    """Write paragraphs as one SQuAD 2.0 file, in the order given.

    An unlabelled question is written with empty ``answers`` and ``is_impossible`` false: other readers find
    every key that they look for, and ``read_squad`` reads it as unlabelled.
    """
    storage.write_atomic(path, json_pieces(paragraphs))


def json_pieces(paragraphs: Iterable[Paragraph]) -> Iterator[bytes]:
    """The bytes of a SQuAD 2.0 file, article by article."""
    yield b'{"version":"v2.0","data":['
    for number, (title, group) in enumerate(itertools.groupby(paragraphs, lambda each: each.title)):
        rows = [
            {"context": each.context, "qas": [asdict(question) for question in each.questions]}
            for each in group
        ]
        text = json.dumps({"title": title, "paragraphs": rows}, ensure_ascii=False, separators=(",", ":"))
        yield (b"," if number else b"") + text.encode()
    yield b"]}"


def _question(row: Mapping[str, Any]) -> Question:
    answers = tuple(GoldAnswer(answer["text"], answer["answer_start"]) for answer in row["answers"])
    return Question(row["id"], row["question"], row["is_impossible"], answers)


def _from_file(data: str) -> list[Paragraph]:
    if data.endswith(".parquet"):
        return _from_parquet([data], data)
    return _gathered(squad_json.parts(squad_json.read_document(data), data, _member), data)


def _from_parquet(files: list[str], data: str) -> list[Paragraph]:
    """Paragraphs of Parquet files that hold either paragraphs or the hub's rows."""
    if all("question" in _parquet(pq.read_schema, file).names for file in files):
        rows = (row for file in files for row in _parquet(pq.read_table, file).to_pylist())
        return from_hub_rows(rows, data)
    return [row for file in files for row in from_table(read_table(file))]


def from_hub_rows(rows: Iterable[Any], data: str) -> list[Paragraph]:
    """Paragraphs of rows ``id, title, context, question, answers{text, answer_start}``, or of MRQA's."""
    rows = (mrqa.as_squad(row) if isinstance(row, dict) and mrqa.is_mrqa(row) else row for row in rows)
    return _gathered(squad_json.placed_parts(squad_json.rows(rows, data), _member), data)


def paragraph_of_row(row: Mapping[str, Any], place: str) -> Paragraph:
    """A hub row as a paragraph of one question, checked like the rows of a file.

    Args:
        row: ``id, context, question`` and perhaps ``title, answers, is_impossible``.
        place: what messages name it by.

    Raises:
        InputError: a value of another type, or an answer that is not at its offset.
    """
    (paragraph,) = from_hub_rows([row], place)
    _check([paragraph], place)
    return paragraph


def _gathered(parts: Iterable[squad_json.Part], data: str) -> list[Paragraph]:
    """Paragraphs in their order, then questions that stand alone, grouped into paragraphs by context."""
    seen: Counter[str] = Counter()  # two articles of one title still get different paragraph ids

    def named(title: str, fallback: str, context: str, questions: Iterable[Question]) -> Paragraph:
        name = f"{title or fallback}#{seen[title]}"
        seen[title] += 1
        return Paragraph(
            paragraph_id=name, title=title, context=context, questions=tuple(questions), source_id=name
        )

    paragraphs: list[Paragraph] = []
    alone: dict[tuple[str, str], list[Question]] = {}
    for part in parts:
        if part.questions is None:
            _check_row(part, data if not alone else part.place)
            context = _member(part.value, "context", str, part.place)
            alone.setdefault((part.title, context), []).append(_labelled(part.value, part.place))
        else:
            context = _member(part.value, "context", str, part.place)
            questions = [_labelled(_numbered(row, spot), spot) for row, spot in part.questions]
            paragraphs.append(named(part.title, Path(data).stem, context, questions))
    return paragraphs + [
        named(title, Path(data).name, context, questions) for (title, context), questions in alone.items()
    ]


def _check_row(part: squad_json.Part, where: str) -> None:
    """Refuse a row that lacks a column; ``answers`` may be absent if no other column could hold them."""
    if not isinstance(part.value, dict):
        raise InputError(
            f"{part.place}: is {part.value!r}; it must be an object with a context and a question"
        )
    missing = [name for name in ("id", "context", "question", "answers") if name not in part.value]
    if missing and not (missing == ["answers"] and _UNANSWERED.issuperset(part.value)):
        raise InputError(f"{where}: lacks {', '.join(missing)}; found {', '.join(part.value)}")


def _numbered(row: Any, spot: str) -> Any:
    """Give a question without an id, as cdQA's annotator writes it, its place as id."""
    if isinstance(row, dict) and row.get("id") is None:
        return {**row, "id": spot.rsplit("/", 1)[-1]}
    return row


def _labelled(row: Any, spot: str) -> Question:
    """Read a question, and whether it is answerable, from its row.

    ============= ============ =============================================
    is_impossible answers      the question is
    ============= ============ =============================================
    not given     some         answerable, as in SQuAD 1.1
    not given     none         unanswerable, as on the hub
    not given     not given    unlabelled, as in a test set without its key
    false         some         answerable
    false         none         unlabelled
    true          none         unanswerable
    true          some         refused
    ============= ============ =============================================
    """
    number = row.get("id") if isinstance(row, dict) else None
    if type(number) is int:  # annotation tools number their questions
        row = {**row, "id": str(number)}
    name, question = _member(row, "id", str, spot), _member(row, "question", str, spot)
    said, given = row.get("is_impossible"), row.get("answers")
    if not isinstance(said, bool | None):
        raise InputError(f"{spot}: is_impossible is {said!r}; it must be true or false")
    answers = _answers(given, bool(said), f"{spot}.answers")
    if said and answers:
        raise InputError(
            f"{spot}: question {name!r} is_impossible, yet has the answer {answers[0].text!r}; keep "
            "one of the two (answers that only look right are plausible_answers)"
        )
    is_impossible = given is not None if said is None else said
    return Question(name, question, is_impossible and not answers, answers)


def _answers(given: Any, is_impossible: bool, spot: str) -> tuple[GoldAnswer, ...]:
    """Answers in SQuAD's or the hub's form, without the empty ones that tools give impossible questions."""
    if given is None:
        return ()
    given = squad_json.answer_list(given, spot, _member)
    if not isinstance(given, list):
        raise InputError(f"{spot}: is not a list; give the form of SQuAD 2.0")
    return tuple(
        GoldAnswer(
            _member(answer, "text", str, f"{spot}[{i}]"), _member(answer, "answer_start", int, f"{spot}[{i}]")
        )
        for i, answer in enumerate(given)
        if not (is_impossible and isinstance(answer, dict) and answer.get("text", 0) in ("", None))
    )


def _member(value: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise InputError(f"{where}: has no {kind.__name__} '{name}'; give the form of SQuAD 2.0")
    return value[name]


def _check(paragraphs: list[Paragraph], data: str) -> None:
    """Refuse repeated ids (within one copy), answers not at their offset, and text that is not Unicode."""
    seen: set[tuple[str, int]] = set()
    for paragraph in paragraphs:
        texts = [text for question in paragraph.questions for text in (question.id, question.question)]
        try:
            "".join([paragraph.title, paragraph.context, *texts]).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{data}: paragraph {paragraph.paragraph_id!r} holds {error.object[error.start]!r}, half a "
                "surrogate pair; mend its text"
            ) from None
        for question in paragraph.questions:
            key = (question.id, paragraph.copy)
            if key in seen:
                raise InputError(f"{data}: question id {question.id!r} appears twice; make ids unique")
            seen.add(key)
            for answer in question.answers:
                start = answer.answer_start
                found = paragraph.context[start : start + len(answer.text)] if start >= 0 else ""
                if found != answer.text or not answer.text:
                    mend = (
                        "mend answer_start (in characters)"
                        if answer.text
                        else "leave it out, with an is_impossible of true where there is no answer"
                    )
                    raise InputError(
                        f"{data}: question {question.id!r} has the answer {answer.text!r} at {start}, "
                        f"where its context reads {found!r}; {mend}"
                    )
    if not paragraphs:
        raise InputError(f"{data}: holds no paragraphs")
