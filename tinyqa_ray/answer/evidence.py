"""Answers with their evidence as rows: equal answers are one row with its list of places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tinyqa_ray.answer.found import as_place
from tinyqa_ray.answer.rows import PLACES, Row
from tinyqa_ray.answer.where import Stand, places
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.corpus.files import Texts
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.evidence import Evidence, Place, gathered, places_of
from tinyqa_ray.reader.spans import Reading


def of_rows(rows: Sequence[Row], config: AnswerConfig, settings: ModelSettings) -> list[Evidence]:
    """The answers to one question from the best rows of ``FOUND_PLACES``, see ``found.best_rows``."""
    na_prob = min((row["na_prob"] for row in rows), default=1.0)
    return _gathered(map(as_place, rows), na_prob, config, settings)


def of_reading(
    reading: Reading, text: str, document_id: str | None, config: AnswerConfig, settings: ModelSettings
) -> list[Evidence]:
    """The answers to a question that is asked of one text."""
    held, best = places_of(reading, text, document_id, settings)
    return _gathered(held or best, reading.na_prob, config, settings)


def _gathered(
    found: Iterable[Place], na_prob: float, config: AnswerConfig, settings: ModelSettings
) -> list[Evidence]:
    return gathered(
        found,
        na_prob=na_prob,
        settings=settings,
        top_k=None if config.top_k == "all" else config.top_k,
        min_score=config.min_score,
    )


def kept_of(found: Sequence[Evidence], config: AnswerConfig) -> list[Evidence]:
    """The answers that are written."""
    return [each for each in found if each.answer is not None or config.keep_no_answers]


def as_answer(each: Evidence) -> Answer:
    """An answer with its evidence as the plain answer at its best place."""
    start, end = (each.places[0].start, each.places[0].end) if each.places else (0, 0)
    return Answer(each.answer, each.score, start, end, each.na_prob, each.document_id)


def place_columns(
    found: Sequence[Evidence], rows: Sequence[Sequence[int]], texts: Texts | None
) -> list[list[dict[str, Any]]]:
    """The column ``places`` of answers.

    Args:
        found: the answers.
        rows: the row of the document of each place of each answer.
        texts: the texts of documents that are files, which say on which page a place is.
    """
    names = [field.name for field in PLACES.type.value_type]
    made = [[{name: getattr(place, name) for name in names} for place in each.places] for each in found]
    if texts is not None:
        flat = [place for each in made for place in each]
        stands: list[Stand] = [
            (row, place["start"], place["end"])
            for row, place in zip((row for each in rows for row in each), flat, strict=True)
        ]
        for place, where in zip(flat, places(texts, stands), strict=True):
            place["page"] = where["page"]
    return made
