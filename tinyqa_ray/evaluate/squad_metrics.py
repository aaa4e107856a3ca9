"""The official SQuAD 2.0 metrics (Rajpurkar et al. 2018, arXiv 1806.03822), and an honest threshold search.

A question without acceptable answers is unanswerable; the right prediction for it is the empty string.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.normalised import answer_tokens

Gold = Mapping[str, Sequence[str]]
"""Question id -> acceptable answer texts; an empty list means unanswerable."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PerQuestion:
    """Scores of the raw predictions, one entry per question in the order of the gold data.

    Attributes:
        ids: the n question ids.
        has_answer: [n], whether the question is answerable.
        answered: [n], whether the raw prediction is not the empty string.
        exact: [n], exact match, 0 or 1, best over the acceptable answers.
        f1: [n], token F1 in [0, 1], best over the acceptable answers.
    """

    ids: tuple[str, ...]
    has_answer: BoolArray
    answered: BoolArray
    exact: FloatArray
    f1: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class SquadSummary:
    """What a model scores, and whether it answers or merely abstains: percent, None for an empty split.

    Attributes:
        exact: exact match over all questions, abstaining where na_prob > threshold.
        f1: token F1 over all questions, likewise.
        has_ans_exact: exact match over the answerable questions, likewise.
        has_ans_f1: token F1 over the answerable questions, likewise.
        no_ans_f1: accuracy on the unanswerable questions, likewise.
        forced_exact: exact match over the answerable questions when no threshold abstains.
        forced_f1: token F1 over the answerable questions when no threshold abstains.
        always_abstain: F1 over all questions of a model that never answers.
        total: number of questions.
        has_ans_total: number of answerable questions.
        no_ans_total: number of unanswerable questions.
        threshold: the threshold on na_prob.
    """

    exact: float
    f1: float
    has_ans_exact: float | None
    has_ans_f1: float | None
    no_ans_f1: float | None
    forced_exact: float | None
    forced_f1: float | None
    always_abstain: float
    total: int
    has_ans_total: int
    no_ans_total: int
    threshold: float


def exact_match(gold: str, predicted: str) -> int:
    """1 if both texts are equal after `normalised.normalize_answer`, else 0."""
    return int(answer_tokens(gold) == answer_tokens(predicted))


def f1(gold: str, predicted: str) -> float:
    """Harmonic mean of precision and recall over normalised tokens, in [0, 1].

    Tokens count as often as they occur. If either text has no tokens, the result is 1 if neither has, else 0.
    """
    return _token_f1(answer_tokens(gold), answer_tokens(predicted))


def per_question(gold: Gold, predictions: Mapping[str, str]) -> PerQuestion:
    """Exact match and F1 of each raw prediction, without any threshold: the basis of all other figures.

    Args:
        gold: acceptable answers per question id.
        predictions: answer text per question id, "" for no answer; ids that are not in ``gold`` are ignored.

    Raises:
        InputError: there are no questions, a question has no prediction, or a prediction is not a string.
    """
    if not gold:
        raise InputError("the gold data holds no questions; scoring needs at least one")
    _refuse_missing(gold, predictions, "predictions")
    exact, f1_scores = [], []
    for question_id, texts in gold.items():
        prediction = predictions[question_id]
        if not isinstance(prediction, str):
            raise InputError(
                f"the prediction for question {question_id!r} is {reprlib.repr(prediction)}; "
                "it must be a string, '' for no answer"
            )
        predicted = answer_tokens(prediction)
        accepted: list[list[str]] = [tokens for tokens in map(answer_tokens, texts) if tokens] or [[]]
        exact.append(float(predicted in accepted))
        f1_scores.append(max(_token_f1(tokens, predicted) for tokens in accepted))
    return PerQuestion(
        ids=tuple(gold),
        has_answer=np.array([bool(texts) for texts in gold.values()]),
        answered=np.array([bool(predictions[question_id]) for question_id in gold]),
        exact=np.array(exact),
        f1=np.array(f1_scores),
    )


def score(
    questions: PerQuestion, na_probs: Mapping[str, float] | None = None, na_prob_threshold: float = 1.0
) -> dict[str, float | int]:
    """What the official `evaluate-v2.0.py` prints: same keys, same order, same values in percent.

    The best_* values (only with ``na_probs``) repeat the official search, which may stop between questions of
    equal na_prob and so report a score that no threshold reaches; `best_threshold` does not.

    Args:
        questions: scores of the predictions, "" for no answer, see `per_question`.
        na_probs: probability per question id that there is no answer; without it, 0 for every question.
        na_prob_threshold: a question whose na_prob is above it counts as not answered.

    Raises:
        InputError: an id is missing, or a value is of the wrong kind.
    """
    probs = np.zeros(len(questions.ids)) if na_probs is None else _na_prob_array(questions.ids, na_probs)
    exact, f1_scores = _after_threshold(questions, probs, na_prob_threshold)
    result: dict[str, float | int] = {}
    has = questions.has_answer
    for prefix, members in {"": np.ones_like(has), "HasAns_": has, "NoAns_": ~has}.items():
        if members.any():
            result[f"{prefix}exact"] = _percent(exact[members])
            result[f"{prefix}f1"] = _percent(f1_scores[members])
            result[f"{prefix}total"] = int(members.sum())
    if na_probs is not None:
        index = {question_id: i for i, question_id in enumerate(questions.ids)}
        # The official search leaves questions of equal na_prob in the order of the na_prob file.
        file_order = np.array([index[question_id] for question_id in na_probs if question_id in index])
        walk = file_order[np.argsort(probs[file_order], kind="stable")]
        for name, raw in (("exact", questions.exact), ("f1", questions.f1)):
            best = _official_search(questions, raw, probs, walk)
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best
    return result


def squad1_score(gold: Gold, predictions: Mapping[str, str]) -> tuple[float, float]:
    """What the official evaluator of SQuAD 1.1 (and of MRQA 2019) prints: exact match and F1, in percent.

    Unlike SQuAD 2.0's, it knows no "no answer": every accepted answer counts, also one that normalises to
    nothing, and texts without a common token have an F1 of 0.

    Args:
        gold: acceptable answers per question id, at least one each.
        predictions: answer text per question id.

    Raises:
        InputError: there are no questions, or a question has no prediction.
    """
    if not gold:
        raise InputError("the gold data holds no questions; scoring needs at least one")
    _refuse_missing(gold, predictions, "predictions")
    exact, total = 0, 0.0
    for question_id, texts in gold.items():
        predicted = answer_tokens(predictions[question_id])
        accepted = list(map(answer_tokens, texts))
        exact += predicted in accepted
        total += max(
            (_token_f1(tokens, predicted) for tokens in accepted if tokens and predicted), default=0.0
        )
    return 100 * exact / len(gold), 100 * total / len(gold)


def best_threshold(questions: PerQuestion, na_probs: Mapping[str, float]) -> float:
    """The threshold in [0, 1] with the highest F1 when the model abstains where na_prob > threshold.

    Questions of equal na_prob stay together, so `summarize` at this threshold reports the optimum. The result
    is the midpoint between neighbouring na_probs, 0 to always abstain or 1 to never abstain; of equally good
    thresholds, the largest. The predictions must be the best non-empty spans, not already blanked.

    Raises:
        InputError: as in `score`, or a na_prob lies outside [0, 1].
    """
    probs = _na_prob_array(questions.ids, na_probs)
    outside = np.flatnonzero((probs < 0) | (probs > 1))
    if outside.size:
        question_id, value = questions.ids[outside[0]], probs[outside[0]]
        raise InputError(
            f"the na_prob of question {question_id!r} is {value}; it must lie in [0, 1]: "
            "take the sigmoid of the null score minus the best span's score"
        )
    levels, level_of = np.unique(probs, return_inverse=True)
    gains = np.bincount(level_of, weights=questions.f1 - ~questions.has_answer)
    # sums[k]: what answering the k lowest levels gains over always abstaining. Rounded, so that sums which
    # differ only by the order of the additions tie.
    sums = np.concatenate([[0.0], np.cumsum(gains)]).round(9)
    middles = (levels[:-1] + levels[1:]) / 2
    middles = np.where(middles < levels[1:], middles, levels[:-1])  # neighbouring floats have no middle
    thresholds = np.concatenate([[0.0], middles, [1.0]])
    if levels[0] == 0:  # the lowest level is answered at every threshold
        sums, thresholds = sums[1:], thresholds[1:]
    return float(thresholds[np.flatnonzero(sums == sums.max())[-1]])


def summarize(questions: PerQuestion, na_probs: Mapping[str, float], threshold: float) -> SquadSummary:
    """Score at a threshold and, for comparison, when always answering and when always abstaining.

    Args:
        questions: scores of the best non-empty spans, whatever their na_prob, see `per_question`.
        na_probs: probability per question id that there is no answer.
        threshold: the model abstains where na_prob > threshold.

    Raises:
        InputError: as in `score`.
    """
    probs = _na_prob_array(questions.ids, na_probs)
    exact, f1_scores = _after_threshold(questions, probs, threshold)
    has, no = questions.has_answer, ~questions.has_answer
    return SquadSummary(
        exact=_percent(exact),
        f1=_percent(f1_scores),
        has_ans_exact=_percent(exact[has]) if has.any() else None,
        has_ans_f1=_percent(f1_scores[has]) if has.any() else None,
        no_ans_f1=_percent(f1_scores[no]) if no.any() else None,
        forced_exact=_percent(questions.exact[has]) if has.any() else None,
        forced_f1=_percent(questions.f1[has]) if has.any() else None,
        always_abstain=_percent(no.astype(np.float64)),
        total=len(questions.ids),
        has_ans_total=int(has.sum()),
        no_ans_total=int(no.sum()),
        threshold=threshold,
    )


def _token_f1(gold: list[str], predicted: list[str]) -> float:
    if not gold or not predicted:
        return float(gold == predicted)
    common = (Counter(gold) & Counter(predicted)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _percent(scores: FloatArray) -> float:
    return float(100 * scores.sum() / scores.size)


def _after_threshold(
    questions: PerQuestion, probs: FloatArray, threshold: float
) -> tuple[FloatArray, FloatArray]:
    """Exact match and F1 per question; na_prob > threshold abstains, which is right if there is no answer."""
    if not math.isfinite(threshold):
        raise InputError(
            f"the na_prob threshold is {threshold}; it must be a finite number, as a rule in [0, 1]"
        )
    abstains, right = probs > threshold, (~questions.has_answer).astype(np.float64)
    return np.where(abstains, right, questions.exact), np.where(abstains, right, questions.f1)


def _official_search(
    questions: PerQuestion, raw: FloatArray, probs: FloatArray, walk: npt.NDArray[np.intp]
) -> tuple[float, float]:
    """Best score in percent and its na_prob, over the prefixes of ``walk`` (question indices by na_prob).

    The search starts from abstaining on all questions. Answering an answerable question adds its raw score;
    an unanswerable one takes a point away if the raw prediction is not empty, even where it normalises to
    nothing and so scores 1.
    """
    gains = np.where(questions.has_answer, raw, -questions.answered.astype(np.float64))
    sums = np.cumsum(np.concatenate([[(~questions.has_answer).sum()], gains[walk]]))
    best = int(sums.argmax())
    threshold = float(probs[walk[best - 1]]) if best else 0.0
    return float(100 * sums[best] / len(questions.ids)), threshold


def _na_prob_array(ids: Sequence[str], na_probs: Mapping[str, float]) -> FloatArray:
    _refuse_missing(ids, na_probs, "na_probs")
    values: list[Any] = [na_probs[question_id] for question_id in ids]
    for question_id, value in zip(ids, values, strict=True):
        if not _is_finite_number(value):
            raise InputError(
                f"the na_prob of question {question_id!r} is {reprlib.repr(value)}; "
                "it must be a finite number"
            )
    return np.array(values, dtype=np.float64)


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _refuse_missing(ids: Gold | Sequence[str], given: Mapping[str, object], name: str) -> None:
    missing = [question_id for question_id in ids if question_id not in given]
    if missing:
        first = ", ".join(map(repr, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise InputError(
            f"{name} lack {len(missing)} of {len(ids)} questions: {first}; every id needs a value"
        )
