"""Whether a teacher still finds the gold span in a rewritten paragraph."""

from __future__ import annotations

from collections.abc import Sequence

from tinyqa_ray.datasets import squad
from tinyqa_ray.evaluate import squad_metrics
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.spans import Span


class Agreement:
    """Asks a teacher the questions of paragraphs."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def found(self, paragraphs: Sequence[squad.Paragraph]) -> list[list[bool | None]]:
        """Check for each question if the teacher's best span is a gold answer, by the official exact match.

        Returns:
            One list per paragraph, in the order of its questions; None for a question without gold answers.
        """
        asked = [
            (question, paragraph.context)
            for paragraph in paragraphs
            for question in paragraph.questions
            if question.answers
        ]
        readings = self.reader.read([(question.question, context) for question, context in asked])
        agreed = iter(
            bool(reading.spans) and _right(context, reading.spans[0], question)
            for reading, (question, context) in zip(readings, asked, strict=True)
        )
        return [
            [next(agreed) if question.answers else None for question in paragraph.questions]
            for paragraph in paragraphs
        ]


def _right(context: str, span: Span, question: squad.Question) -> bool:
    text = context[span.start : span.end]
    return any(squad_metrics.exact_match(answer.text, text) for answer in question.answers)
