"""Which public test sets models are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least
from tinyqa_ray.configs.data import WindowConfig
from tinyqa_ray.configs.gates import gates
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution

SuiteName = Literal["squad2", "squad1", "xquad-en", "adversarial_qa", "squadshifts", "mrqa"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """How several models are measured on suites of test data, into one table."""

    models: tuple[str, ...] = (bundled.MODEL,)
    """Folders or hub ids of models with a question-answering head, or exports."""
    suite: tuple[SuiteName, ...] = ()
    """Public test sets, which are loaded from the hub: SQuAD 2.0, SQuAD 1.1, the English part of XQuAD,
    AdversarialQA, SQuADShifts, and MRQA 2019. Each has its official metrics."""
    suite_folder: str | None = None
    """Folder of test data in SQuAD's format; each file is a part of one suite. A file that has unanswerable
    questions is measured like SQuAD 2.0, any other like SQuAD 1.1."""
    settings: tuple[str, ...] = ()
    """Threshold of each model: outputs of evaluations, or settings files; those beside the models when not
    given."""
    max_questions: int | None = None
    """Most questions of each part, spread evenly over it; all when not given. Figures of fewer questions are
    not the official ones."""
    fail_below: tuple[str, ...] = execution(())
    """Least percentages, such as f1=80 or squadshifts:exact=70 (of one suite or part): the command ends with
    exit code 1 if a model is below one of them."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    threads: int = execution(0)
    """Torch threads; 0 uses the machine's cores."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_answer_tokens", "max_questions")
        at_least(self, 0, "threads")
        gates(self.fail_below)
        for name in ("models", "suite"):
            given = getattr(self, name)
            if isinstance(given, str):  # a string is a sequence of names too, of one letter each
                raise InputError(f"{name} is {given!r}; it must be a tuple: ({given!r},)")
            if len(set(given)) < len(given):
                raise InputError(f"{name} is {given}; name each once")
        if not self.models:
            raise InputError("models is empty; name at least one")
        if not self.suite and self.suite_folder is None:
            raise InputError("there is nothing to measure on; give suite or suite_folder")
        if self.settings and len(self.settings) != len(self.models):
            raise InputError(
                f"{len(self.settings)} settings are given, but {len(self.models)} models; give one each"
            )
