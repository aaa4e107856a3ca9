"""Scoring files the way the official SQuAD 2.0 evaluator does: gold JSON, predictions, na_probs."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any, TypeVar

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad_json
from tinyqa_ray.datasets.normalised import normalize_answer
from tinyqa_ray.evaluate.squad_metrics import per_question, score

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
    """Read the acceptable answers of a SQuAD JSON file, or of any other JSON that `read_squad` reads.

    A question is answerable if its "answers" are not empty; "is_impossible" is read only if the answers are
    absent or null, which the official evaluator does not take: if it is true, the question is unanswerable,
    otherwise the question is left out, as in `evaluate`. Answers that normalise to nothing are dropped; an
    answerable question that loses all of them keeps one empty answer. An id that is a whole number becomes
    text.

    Raises:
        InputError: the file is missing, is not JSON or not SQuAD, holds a question id twice, or only
            questions that nobody has answered.
    """
    gold: dict[str, list[str]] = {}
    unlabelled = None
    for qa, at in _questions(squad_json.read_document(path), path):
        texts = _texts(qa, at)
        if texts is None:
            unlabelled = unlabelled or (qa, at)
            continue
        question_id = _id(qa, at)
        if question_id in gold:
            raise InputError(f"{path}: question id {question_id!r} occurs twice; ids must be unique")
        gold[question_id] = [text for text in texts if normalize_answer(text)] or [""] * bool(texts)
    if unlabelled and not gold:
        _field(unlabelled[0], "answers", list, unlabelled[1])
    return gold


def _questions(document: object, path: str) -> Iterator[tuple[Any, str]]:
    """Each question with its place; refuses what is not SQuAD, naming the place."""
    if document == []:
        _expect(document, dict, path)
    for part in squad_json.parts(document, path, _field):
        yield from [(part.value, part.place)] if part.questions is None else part.questions


def _texts(qa: object, at: str) -> list[str] | None:
    """Answer texts of a question; None where nobody has answered it."""
    question = _expect(qa, dict, at)
    given = squad_json.answer_list(question.get("answers"), f"{at}.answers", _field)
    if given is None:
        return [] if question.get("is_impossible") is True else None
    answers = squad_json.entries({"answers": given}, "answers", at, _field)
    return [_field(answer, "text", str, spot) for answer, spot in answers]


def _id(qa: Any, at: str) -> str:
    return str(qa["id"]) if type(qa.get("id")) is int else _field(qa, "id", str, at)


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
