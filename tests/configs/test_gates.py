from __future__ import annotations

import pytest

from tinyqa_ray.configs import EvaluateConfig, SuiteConfig
from tinyqa_ray.configs.gates import Gate, gates
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import fingerprint


def test_gates_name_a_figure_its_least_value_and_perhaps_a_suite() -> None:
    assert gates(["f1=80", "squadshifts:exact=7.5", "mrqa/a:b:f1=0"]) == (
        Gate(None, "f1", 80.0),
        Gate("squadshifts", "exact", 7.5),
        Gate("mrqa/a:b", "f1", 0.0),
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("f1", r"fail_below has 'f1'; write a figure and its least percentage, as in f1=80"),
        ("f2=80", r"'f2' is none of exact, f1"),
        ("f1=high", r"'high' must be a percentage from 0 to 100"),
        ("f1=nan", r"'nan' must be a percentage"),
        ("f1=180", r"'180' must be a percentage"),
    ],
)
def test_gate_that_cannot_be_read_is_refused_when_the_config_is_made(given: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        EvaluateConfig(data="d", fail_below=(given,))
    with pytest.raises(InputError, match=complaint):
        SuiteConfig(suite=("squad1",), fail_below=(given,))


def test_gates_do_not_count_in_what_a_run_is() -> None:
    assert fingerprint(EvaluateConfig(data="d")) == fingerprint(
        EvaluateConfig(data="d", fail_below=("f1=1",))
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "nothing to measure on; give suite or suite_folder"),
        ({"suite": ("squad1",), "models": ()}, "models is empty"),
        ({"suite": ("squad1",), "models": ("a", "a")}, "name each once"),
        ({"suite": ("squad1", "squad1")}, "name each once"),
        ({"suite": "squad1"}, r"it must be a tuple: \('squad1',\)"),
        (
            {"suite": ("squad1",), "models": ("a", "b"), "settings": ("c",)},
            "1 settings are given, but 2 models",
        ),
        ({"suite": ("squad1",), "max_questions": 0}, "max_questions is 0; it must be at least 1"),
    ],
)
def test_suites_that_cannot_be_run_are_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        SuiteConfig(**given)  # type: ignore[arg-type]
