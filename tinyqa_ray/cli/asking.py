"""What ``tinyqa ask`` does: one question of a text or of some files, and its answers as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

if TYPE_CHECKING:
    from tinyqa_ray.documents import Document
    from tinyqa_ray.reader import Answer, Evidence, Place, Reader
    from tinyqa_ray.reader.answers import TopK


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which answers are printed."""

    top_k: TopK
    min_score: float
    max_answer_tokens: int
    threshold: float | None
    evidence: bool

    def __post_init__(self) -> None:
        numbers = (self.max_answer_tokens, *(() if self.top_k == "all" else (self.top_k,)))
        if min(numbers) < 1:
            raise InputError(
                f"top_k is {self.top_k}, max_answer_tokens {self.max_answer_tokens}; both must be at least 1"
            )
        for name in ("threshold", "min_score"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"{name} is {value}; it must lie in [0, 1]")


def told(reader: Reader, question: str, texts: Mapping[str, Document | str], wanted: Wanted) -> Iterator[str]:
    """The answers to a question, each as lines to print.

    Args:
        reader: answers it.
        question: what to ask.
        texts: by name; names are printed if there are several.
        wanted: which answers.
    """
    ask = reader.evidence if wanted.evidence else reader.answer
    found: Sequence[Answer | Evidence] = ask(
        question,
        [each if isinstance(each, str) else each.text for each in texts.values()],
        document_ids=list(texts),
        top_k=wanted.top_k,
        min_score=wanted.min_score,
        max_answer_tokens=wanted.max_answer_tokens,
        threshold=wanted.threshold,
    )
    for each in found:
        if each.error is not None:
            yield f"{each.document_id}: {each.error}"
            continue
        text = "no answer" if each.answer is None else each.answer
        sure, none = f"score {each.score:.4f}", f"no-answer {each.na_prob:.4f}"
        places = getattr(each, "places", None)
        if places is None:
            where = _where(each, texts)
            yield f"{text}\n  {sure}, {where}, {none}"
            continue
        several = f"{len(places)} place{'' if len(places) == 1 else 's'}"
        lines = [f"  {_where(place, texts)}: {_sentence(place)}" for place in places]
        yield "\n".join((f"{text}\n  {sure}, {several}, {none}", *lines))


def _where(found: Answer | Evidence | Place, texts: Mapping[str, Document | str]) -> str:
    start, end = getattr(found, "start", 0), getattr(found, "end", 0)
    where = f"characters {start}-{end}"
    document = texts.get(found.document_id or "")
    if document is not None and not isinstance(document, str) and found.answer is not None:
        page = document.places.page(start)
        where += f" on page {page}" if page is not None else ""
    return where + (f" of {found.document_id}" if len(texts) > 1 and found.document_id else "")


def _sentence(place: Place) -> str:
    """The sentence in one line, with the answer marked."""
    first = place.start - place.sentence_start
    last = first + len(place.answer)
    marked = f"{place.sentence[:first]}[{place.sentence[first:last]}]{place.sentence[last:]}"
    return " ".join(marked.split())


def document(file: str) -> Document:
    """The document in a file; one whose name says nothing is plain text.

    Raises:
        InputError: it cannot be read.
    """
    from tinyqa_ray import documents

    data = storage.read_bytes(file)
    try:
        return documents.read_isolated(file if documents.format_of(file) else f"{file}.txt", data)
    except documents.UnreadableError as error:
        raise InputError(f"{file}: {error}") from None
