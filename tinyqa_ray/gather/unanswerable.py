"""Questions made unanswerable: asked of a paragraph that holds none of their answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from tinyqa_ray.corpus.bm25 import best_passages
from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.corpus.texts import index_of
from tinyqa_ray.datasets.squad import Paragraph, Question

ELSEWHERE = "-elsewhere"
"""Ending of the id of a question that is asked of another paragraph."""
_MOST_SIMILAR = 30
"""Paragraphs looked at for each question, the most similar first."""
_TOGETHER = 512
"""Questions ranked at once."""


def of_same_article(
    paragraphs: Sequence[Paragraph], share: float, seed: int
) -> Iterator[tuple[str, Question]]:
    """Ask questions of another paragraph of their article, drawn at random.

    Args:
        paragraphs: paragraphs with questions; those with the same title are an article.
        share: questions to make per answerable question; above 1, a question is asked of several paragraphs.
        seed: seed of the choice of questions and paragraphs.

    Yields:
        the id of the other paragraph, and the question, without answers and with a new id.
    """
    rng = np.random.default_rng(seed)
    articles: dict[str, list[Paragraph]] = {}
    for each in paragraphs:
        articles.setdefault(each.title, []).append(each)
    for own in paragraphs:
        others = [each for each in articles[own.title] if each.context != own.context]
        bare = [_bare(each.context) for each in others]
        for question in own.questions:
            if not question.answers:
                continue
            times = int(share) + int(rng.random() < share % 1)
            fitting = [n for n, each in enumerate(others) if not _answers(each.context, bare[n], question)]
            for number, place in enumerate(rng.permutation(fitting)[:times]):
                yield others[place].paragraph_id, _moved(question, number)


def of_most_similar(
    paragraphs: Sequence[Paragraph], share: float, seed: int
) -> Iterator[tuple[str, Question]]:
    """Ask questions of the paragraphs of all articles that are most similar to them, by BM25.

    Such a paragraph speaks of what is asked and does not say it, which is harder to tell from an answerable
    question than a paragraph drawn at random. Titles are not looked at.

    Args:
        paragraphs: paragraphs with questions.
        share: questions to make per answerable question; above 1, a question is asked of several paragraphs.
        seed: seed of the choice of questions.

    Yields:
        the id of the other paragraph, and the question, without answers and with a new id. Of paragraphs with
        equal texts, the first one is meant.
    """
    rng = np.random.default_rng(seed)
    asked = [
        (own, question, times)
        for own in paragraphs
        for question in own.questions
        if question.answers and (times := int(share) + int(rng.random() < share % 1))
    ]
    different = list({each.context: each for each in reversed(paragraphs)}.values())[::-1]
    bare = [_bare(each.context) for each in different]
    analyzer = Analyzer("english")
    held = [set(analyzer.terms(each.context)) for each in different]
    index, statistics = index_of([each.context for each in different], analyzer)
    for first in range(0, len(asked), _TOGETHER):
        some = asked[first : first + _TOGETHER]
        terms = [analyzer.terms(question.question) for _, question, _ in some]
        ranked = best_passages(terms, [index], statistics, _MOST_SIMILAR)
        for (own, question, times), (numbers, _) in zip(some, ranked, strict=True):
            fitting = [
                n
                for n in numbers
                if different[n].context != own.context
                and not _answers(different[n].context, bare[n], question)
                and not _nearly_answers(held[n], question, analyzer)
            ]
            for number, place in enumerate(fitting[:times]):
                yield different[place].paragraph_id, _moved(question, number)


def _moved(question: Question, number: int) -> Question:
    return Question(f"{question.id}{ELSEWHERE}{number or ''}", question.question, True, ())


def _answers(context: str, bare_context: str, question: Question) -> bool:
    """Whether a context holds one of the question's answers."""
    for answer in question.answers:
        bare = _bare(answer.text)  # empty if the answer is of marks alone, such as "%"
        if bare in bare_context if bare else answer.text in context:
            return True
    return False


def _nearly_answers(held: set[str], question: Question, analyzer: Analyzer) -> bool:
    """Whether a paragraph holds half of the words of an answer that the question does not have itself.

    It may give the same answer in other words: "Kim Raver" where the gold answer is "Kimberly Jayne Raver".
    """
    asked = set(analyzer.terms(question.question))
    for answer in question.answers:
        own = set(analyzer.terms(answer.text)) - asked
        if own and 2 * len(own & held) >= len(own):
            return True
    return False


def holds_answer(context: str, question: Question, analyzer: Analyzer) -> bool:
    """Whether a text holds one of the question's answers, as it stands or nearly."""
    held = set(analyzer.terms(context))
    return _answers(context, _bare(context), question) or _nearly_answers(held, question, analyzer)


def _bare(text: str) -> str:
    """Lower-cased letters and digits alone, so that "1,000" is found in a text that has "1 , 000"."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(filter(str.isalnum, folded))
