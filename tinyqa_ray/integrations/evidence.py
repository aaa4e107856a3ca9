"""Answers with the places where they stand, in a form for programs."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, Field

from tinyqa_ray.documents import Places

_AROUND = 200
"""Most characters of a passage on either side of an answer."""


class MarkedBox(BaseModel):
    """A rectangle on a page of a PDF: points from the upper left corner of the page as it is shown."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


class Place(BaseModel):
    """Where an answer stands."""

    document: str = Field(description="Name of the document, or the number of the text, from 0.")
    start: int = Field(description="First character within the text of the document, from 0.")
    end: int = Field(description="One past the last character.")
    page: int | None = Field(None, description="Page, slide or none, from 1.")
    boxes: list[MarkedBox] | None = Field(None, description="Of its lines on the page of a PDF.")
    passage: str = Field(description="The text around the answer.")


class FoundAnswer(BaseModel):
    """An answer, quoted as it stands, and the places that say it."""

    answer: str
    score: float = Field(
        description="Chance that it is right, by all its places and against all other answers."
    )
    places: list[Place]


class Unreadable(BaseModel):
    """A document that was not read."""

    document: str
    error: str


class Found(BaseModel):
    """What was found for a question; no answers: the texts do not hold one."""

    question: str
    answers: list[FoundAnswer]
    no_answer: float = Field(description="Chance that there is no answer.")
    unreadable: list[Unreadable] = []


def place(document: str, text: str, start: int, end: int, places: Places, before: int = 0) -> Place:
    """A place in a text that starts ``before`` characters into its document."""
    first, last = max(0, start - _AROUND), min(len(text), end + _AROUND)
    boxes = [MarkedBox(**asdict(box)) for box in places.boxes(before + start, before + end)]
    return Place(
        document=document,
        start=before + start,
        end=before + end,
        page=places.page(before + start),
        boxes=boxes or None,
        passage=text[first:last].strip(),
    )
