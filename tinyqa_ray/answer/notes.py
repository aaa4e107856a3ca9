"""What actors note for the page: examples, and times, which differ from run to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyqa_ray.core import storage
from tinyqa_ray.reader.answers import Answer

_PLACES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A question and its best answer; ``answer=None`` when there is none."""

    question: str
    row: int
    """Row of the document."""
    document_id: str | None
    answer: str | None
    start: int
    end: int
    score: float
    places: list[dict[str, Any]] = field(default_factory=list)
    """As in the column of that name, the first few."""
    places_in_all: int = 0

    @classmethod
    def of(cls, question: str, row: int, best: Answer, places: Sequence[dict[str, Any]] = ()) -> Example:
        """The example of a question's best answer."""
        return cls(
            question=question,
            row=row,
            document_id=best.document_id,
            answer=best.answer,
            start=best.start,
            end=best.end,
            score=best.score,
            places=list(places[:_PLACES]),
            places_in_all=len(places),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Notes:
    """Notes on one unit of work or on one range of questions."""

    seconds: float
    characters: int
    """Characters that the model read."""
    slowest: list[tuple[str, int]]
    """Documents, each with the number of its characters that were read."""
    examples: list[Example]

    def write(self, file: str) -> None:
        """Write the notes as JSON."""
        storage.write_json(file, asdict(self))

    @classmethod
    def read_all(cls, folder: str) -> Iterator[Notes]:
        """The notes in a folder, in order."""
        for file in storage.list_files(folder, ".json"):
            values = storage.read_json(file)
            examples = [Example(**each) for each in values.pop("examples")]
            slowest = [(str(name), int(count)) for name, count in values.pop("slowest")]
            yield cls(**values, slowest=slowest, examples=examples)
