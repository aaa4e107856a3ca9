"""What an evaluation reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateReport:
    """A model's figures, in percent; None where the data has no such question."""

    questions: int
    has_ans_total: int
    no_ans_total: int
    exact: float
    """EM at the threshold."""
    f1: float
    """F1 at the threshold."""
    has_ans_exact: float | None
    has_ans_f1: float | None
    no_ans_f1: float | None
    forced_exact: float | None
    """EM of answerable questions when the model must answer."""
    forced_f1: float | None
    """F1 of answerable questions when the model must answer."""
    always_abstain: float
    """F1 of never answering: the baseline of the other figures."""
    no_answer_threshold: float
    """The model abstains when ``na_prob`` is above it."""
    temperature: float
    """A score is the sigmoid of ``(span - null - score_shift) / temperature``."""
    score_shift: float
    """``span - null`` at which a score is one half."""
    calibration_error: float
    """Mean distance between an answer's score and its F1, over ten bins of scores, in percent."""
    questions_per_s: float
    parameters: int
    rank_errors: tuple[float, ...] = ()
    """The same of the first, the second, … answer, in percent; empty where an older version measured."""
