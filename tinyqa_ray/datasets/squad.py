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

from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError

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

FOLDER = "paragraphs"
"""Where a stage that makes paragraphs keeps them, within its output."""


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """An answer in its context: ``context[answer_start : answer_start + len(text)] == text``."""

    text: str
    answer_start: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question; without answers it is unanswerable, or, where it is not said to be, unlabelled."""

    id: str
    question: str
    is_impossible: bool
    answers: tuple[GoldAnswer, ...]

    @property
    def unlabelled(self) -> bool:
        """Whether nobody has answered it, nor said that it has no answer."""
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
    """Read paragraphs from a SQuAD JSON file, rows as JSON, a folder of paragraph Parquet, or a hub id.

    Raises:
        InputError: the data is absent, is not SQuAD, repeats a question id, has an answer that is not at
            its offset, or one to a question that is said to have none.
    """
    match storage.kind(data):
        case "file":
            paragraphs = _from_file(data)
        case "folder":
            paragraphs = [row for file in paragraph_files(data) for row in from_table(read_table(file))]
        case _:
            paragraphs = _from_hub(data)
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
    filesystem, inner = storage.resolve(file)
    try:
        table = pq.read_table(inner, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({error})") from None
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
    """Write paragraphs as one SQuAD 2.0 file, as they come.

    An unlabelled question has no answers and an ``is_impossible`` of false: other readers find every key that
    they look for, and ours reads it back as unlabelled.
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
    """Paragraphs of SQuAD JSON, or of the hub's rows as one JSON list or a JSON object a line."""
    if data.endswith(".jsonl"):
        return from_hub_rows(_json_lines(data), data)
    document = storage.read_json(data)
    return from_hub_rows(document, data) if isinstance(document, list) else list(_from_json(document, data))


def _json_lines(data: str) -> Iterator[Any]:
    for number, line in enumerate(storage.read_bytes(data).splitlines(), start=1):
        if line.strip():
            yield _json_line(line, f"{data}: line {number}")


def _json_line(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from None


def _from_json(document: Any, data: str) -> Iterator[Paragraph]:
    """Walk a SQuAD document; every complaint says where in the document it stands."""
    seen: Counter[str] = Counter()  # two articles of one title still get different paragraph ids
    for article, where in entries(document, "data", data, _member):
        title = str(article.get("title") or "") if isinstance(article, dict) else ""
        for paragraph, spot in entries(article, "paragraphs", where, _member):
            context = _member(paragraph, "context", str, spot)
            questions = tuple(_labelled(row, at) for row, at in entries(paragraph, "qas", spot, _member))
            name = f"{title or Path(data).stem}#{seen[title]}"
            seen[title] += 1
            yield Paragraph(
                paragraph_id=name, title=title, context=context, questions=questions, source_id=name
            )


def _labelled(row: Any, spot: str) -> Question:
    """A question with what its row says of its answer.

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
    if type(number) is int:  # annotation tools count
        row = {**row, "id": str(number)}
    name, question = _member(row, "id", str, spot), _member(row, "question", str, spot)
    said, given = row.get("is_impossible"), row.get("answers")
    if not isinstance(said, bool | None):
        raise InputError(f"{spot}: is_impossible is {said!r}; it must be true or false")
    answers = _answers(given, f"{spot}.answers")
    if said and not any(answer.text for answer in answers):
        answers = ()  # annotation tools give an empty text
    if said and answers:
        raise InputError(
            f"{spot}: question {name!r} is_impossible, yet has the answer {answers[0].text!r}; keep "
            "one of the two (answers that only look right are plausible_answers)"
        )
    is_impossible = given is not None if said is None else said
    return Question(name, question, is_impossible and not answers, answers)


def _answers(given: Any, spot: str) -> tuple[GoldAnswer, ...]:
    """Answers as a list of texts with their starts, or, as on the hub, a list of texts and one of starts."""
    if given is None:
        return ()
    if isinstance(given, dict):
        texts, starts = (_member(given, name, list, spot) for name in ("text", "answer_start"))
        pairs = itertools.zip_longest(texts, starts)
        given = [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(given, list):
        raise InputError(f"{spot}: is not a list; give the form of SQuAD 2.0")
    return tuple(
        GoldAnswer(
            _member(answer, "text", str, f"{spot}[{i}]"), _member(answer, "answer_start", int, f"{spot}[{i}]")
        )
        for i, answer in enumerate(given)
    )


def entries(value: Any, name: str, where: str, member: Callable[..., Any]) -> Iterator[tuple[Any, str]]:
    """The entries of a list in a SQuAD document, each with its place: ``dev.json: data[0].paragraphs[2]``.

    Args:
        value: what holds the list.
        name: of the list.
        where: place of ``value``; the file, where that is the document.
        member: gives ``(value, name, list, where)``'s list, or refuses what is none.
    """
    for number, entry in enumerate(member(value, name, list, where)):
        yield entry, f"{where}{': ' if name == 'data' else '.'}{name}[{number}]"


def _member(value: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise InputError(f"{where}: has no {kind.__name__} '{name}'; give the form of SQuAD 2.0")
    return value[name]


def _from_hub(data: str) -> list[Paragraph]:
    """Group a hub data set of SQuAD's columns (``squad_v2`` and its kin) into paragraphs."""
    name, _, split = data.partition(":")
    if name.endswith((".json", ".jsonl", ".parquet")) or name.startswith((".", "/", "~")) or "://" in data:
        raise InputError(f"{data}: no such file or folder")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # the hub client raises its own, undocumented, types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{data}: neither a file, a folder, nor a data set that could be loaded ({reason}); "
            "a split is named as in squad_v2:validation"
        ) from None
    return from_hub_rows(rows, data)


def from_hub_rows(rows: Iterable[Any], data: str) -> list[Paragraph]:
    """Paragraphs of rows ``id, title, context, question, answers{text, answer_start}``, in their order."""
    grouped: dict[tuple[str, str], list[Question]] = {}
    for number, row in enumerate(rows):
        spot = f"{data}: row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{spot}: is {row!r}; it must be an object with a context and a question")
        missing = [name for name in ("id", "context", "question", "answers") if name not in row]
        if missing:
            raise InputError(f"{data}: lacks {', '.join(missing)}; found {', '.join(row)}")
        context, question = _member(row, "context", str, spot), _labelled(row, spot)
        grouped.setdefault((row.get("title") or "", context), []).append(question)
    seen: Counter[str] = Counter()
    paragraphs = []
    for (title, context), questions in grouped.items():
        name = f"{title or Path(data).name}#{seen[title]}"
        seen[title] += 1
        paragraphs.append(
            Paragraph(
                paragraph_id=name, title=title, context=context, questions=tuple(questions), source_id=name
            )
        )
    return paragraphs


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
                    raise InputError(
                        f"{data}: question {question.id!r} has the answer {answer.text!r} at {start}, "
                        f"where its context reads {found!r}; mend answer_start (in characters)"
                    )
    if not paragraphs:
        raise InputError(f"{data}: holds no paragraphs")
