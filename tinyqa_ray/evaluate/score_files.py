"""Scoring files the way the official SQuAD 2.0 evaluator does: gold JSON, predictions, na_probs."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import TypeVar

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.squad import entries
from tinyqa_ray.evaluate.squad_metrics import normalize_answer, per_question, score

T = TypeVar("T")


def score_files(
    data: str, predictions: str, na_probs: str | None = None, na_prob_threshold: float = 1.0
) -> dict[str, float | int]:
    """Score a predictions file against a SQuAD JSON file; see `score`.

    Args:
        data: path of the SQuAD JSON.
        predictions: path of a JSON object, question id -> answer text.
        na_probs: path of a JSON object, question id -> probability that there is no answer.
        na_prob_threshold: a question whose na_prob is above it counts as not answered.

    Raises:
        InputError: a file cannot be read or is not of its format, or `score` refuses what it holds.
    """
    gold, predicted = read_gold(data), _expect(storage.read_json(predictions), dict, predictions)
    probs = None if na_probs is None else _expect(storage.read_json(na_probs), dict, na_probs)
    return score(per_question(gold, predicted), probs, na_prob_threshold)


def read_gold(path: str) -> dict[str, list[str]]:
    """Read the acceptable answers of a SQuAD JSON file.

    A question is answerable if its "answers" are not empty; "is_impossible" is not read. Answers that
    normalise to nothing are dropped; an answerable question that loses all of them keeps one empty answer.

    Raises:
        InputError: the file is missing, is not JSON or not SQuAD, or holds a question id twice.
    """
    gold: dict[str, list[str]] = {}
    for question_id, texts in _questions(storage.read_json(path), path):
        if question_id in gold:
            raise InputError(f"{path}: question id {question_id!r} occurs twice; ids must be unique")
        gold[question_id] = [text for text in texts if normalize_answer(text)] or [""] * bool(texts)
    return gold


def _questions(root: object, path: str) -> Iterator[tuple[str, list[str]]]:
    """Id and answer texts of each question; refuses what is not SQuAD, naming the place."""
    for article, article_at in entries(root, "data", path, _field):
        for paragraph, paragraph_at in entries(article, "paragraphs", article_at, _field):
            for qa, qa_at in entries(paragraph, "qas", paragraph_at, _field):
                answers = entries(qa, "answers", qa_at, _field)
                texts = [_field(answer, "text", str, at) for answer, at in answers]
                yield _field(qa, "id", str, qa_at), texts


def _field(node: object, key: str, kind: type[T], at: str) -> T:
    members = _expect(node, dict, at)
    if key not in members:
        raise InputError(
            f"{at} has no {key!r}; SQuAD JSON is data[].paragraphs[].qas[], each with id and answers[].text"
        )
    return _expect(members[key], kind, f"{key!r} of {at}")


def _expect(value: object, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        name = "an object" if kind is dict else "a list" if kind is list else "a string"
        raise InputError(f"{what} must be {name}, and is {reprlib.repr(value)}")
    return value
