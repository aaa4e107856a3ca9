"""Questions rewritten so that their own paragraph no longer answers them.

People who write unanswerable questions for SQuAD 2.0 mostly change one thing in an answerable one: a name, a
number, a word for its opposite, a "not" (Rajpurkar et al. 2018, arXiv 1806.03822, table 2). Here rules do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from tinyqa_ray.datasets.squad import Paragraph, Question
from tinyqa_ray.gather.opposites import OPPOSITES

REWRITTEN = "-rewritten"
"""Ending of the id of a rewritten question."""

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")
_NAME = re.compile(r"\b[A-Z][\w'\u2019.-]*\w(?: (?:(?:of|the|de|von|van|al) )?[A-Z][\w'\u2019.-]*\w)*")
_WORD = re.compile(r"[A-Za-z]+")
_HELPING_VERB = re.compile(
    r"\b(?:is|are|was|were|did|does|do|has|have|had|could|would|should)\b(?!n['\u2019]t| not)", re.IGNORECASE
)
_NOT_NAMES = frozenset(
    """a after among an are as at by can did do does during for from had has have how if in is name of on the
    to was were what what's when where which who who's whom whose why with""".split()  # noqa: SIM905
)
"""Words that a question or a sentence begins with, which are capitals there without being names."""

_ASKS = re.compile(r"\bhow $", re.IGNORECASE)
"""Before "many" or "long", which then ask for the number itself."""


def rewritten(paragraphs: Sequence[Paragraph], share: float, seed: int) -> Iterator[tuple[str, Question]]:
    """Change one thing in answerable questions, so that their paragraph no longer answers them.

    What is changed, drawn among those that a question offers: a name of the paragraph, for another name of
    it or, as often, of another paragraph; a number of the paragraph, for one that it does not have; a word,
    for its opposite; a verb such as "was", for "was not". Some rewritten questions still have
    an answer: another person of the paragraph may have done the same.

    Args:
        paragraphs: paragraphs with questions.
        share: questions to rewrite per answerable question, at most 1.
        seed: seed of every draw.

    Yields:
        the id of the question's own paragraph, and the question, without answers and with a new id.
    """
    rng = np.random.default_rng(seed)
    names = [sorted(_names(each.context)) for each in paragraphs]
    everywhere = sorted({name for some in names for name in some})
    for own, here in zip(paragraphs, names, strict=True):
        for question in own.questions:
            if not question.answers or rng.random() >= share:
                continue
            offered = (
                _other_name(question, own.context, here, everywhere, rng),
                _other_number(question, own.context, rng),
                _opposite(question, rng),
                _denied(question, rng),
            )
            changes = [changed for changed in offered if changed is not None]
            if changes:
                text = changes[rng.integers(len(changes))]
                yield own.paragraph_id, Question(question.id + REWRITTEN, text, True, ())


def _names(text: str) -> set[str]:
    return {match[0] for match in _NAME.finditer(text) if match[0].split(" ")[0].lower() not in _NOT_NAMES}


def _other_name(
    question: Question, context: str, here: Sequence[str], everywhere: Sequence[str], rng: np.random.Generator
) -> str | None:
    """The question with another name of as many words, which neither it nor its answers have."""
    given = [
        match
        for match in _NAME.finditer(question.question)
        if match[0].split(" ")[0].lower() not in _NOT_NAMES and match[0] in context
    ]
    if not given:
        return None
    name = given[rng.integers(len(given))]
    said = " ".join([question.question, *(answer.text for answer in question.answers)]).lower()

    def fits(other: str, *, is_here: bool) -> bool:
        alike = other.count(" ") == name[0].count(" ") and other.isupper() == name[0].isupper()
        return alike and other.lower() not in said and (is_here or other not in context)

    if rng.random() < 0.5:
        others = [other for other in here if fits(other, is_here=True)]
        if others:
            return _replaced(question, name, others[rng.integers(len(others))])
    for place in rng.integers(len(everywhere), size=50):
        if fits(everywhere[place], is_here=False):
            return _replaced(question, name, everywhere[place])
    return None


def _other_number(question: Question, context: str, rng: np.random.Generator) -> str | None:
    """The question with a number near the one it has, which the paragraph does not have."""
    given = [match for match in _NUMBER.finditer(question.question) if match[0] in context]
    if not given:
        return None
    number = given[rng.integers(len(given))]
    digits = number[0]
    for _ in range(20):
        place = int(rng.integers(max(0, len(digits) - 2), len(digits)))
        if digits[place].isdigit():
            other = f"{digits[:place]}{rng.integers(1, 10)}{digits[place + 1 :]}"
            if other not in context and other != digits:
                return _replaced(question, number, other)
    return None


def _opposite(question: Question, rng: np.random.Generator) -> str | None:
    """The question with the opposite of one of its words."""
    given = [
        match
        for match in _WORD.finditer(question.question)
        if match[0].lower() in OPPOSITES and not _ASKS.search(question.question[: match.start()])
    ]
    if not given:
        return None
    word = given[rng.integers(len(given))]
    opposites = OPPOSITES[word[0].lower()]
    other = opposites[rng.integers(len(opposites))]
    return _replaced(question, word, other.capitalize() if word[0][0].isupper() else other)


def _denied(question: Question, rng: np.random.Generator) -> str | None:
    """The question with its first helping verb denied; rarely, since a "not" is easily learned by itself."""
    verb = _HELPING_VERB.search(question.question)
    if verb is None or rng.random() >= 0.2:
        return None
    return _replaced(question, verb, verb[0] + ("n't" if rng.random() < 0.7 else " not"))


def _replaced(question: Question, match: re.Match[str], other: str) -> str:
    text = question.question
    return f"{text[: match.start()]}{other}{text[match.end() :]}"
