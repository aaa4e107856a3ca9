from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from tinyqa_ray import configs
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError

REQUIRED: dict[str, dict[str, Any]] = {
    "WindowConfig": {},
    "AugmentConfig": {"data": "d", "embeddings": "e"},
    "TeacherLogitsConfig": {"data": "d", "tokenizer": "t"},
    "DistillConfig": {"data": "d", "student": "s", "objective": ("labels",)},
    "EvaluateConfig": {"data": "d", "model": "m"},
    "AnswerConfig": {"model": "m", "documents": "d", "questions": "q"},
}


def make(name: str, **options: Any) -> Any:
    return getattr(configs, name)(**{**REQUIRED[name], **options})


@pytest.mark.parametrize("name", REQUIRED)
def test_defaults_are_accepted_and_frozen(name: str) -> None:
    config = make(name)
    field = next(iter(stage_folder.identity_fields(config)))
    with pytest.raises(FrozenInstanceError):
        setattr(config, field, None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("WindowConfig", {"doc_stride": -1}),
        ("WindowConfig", {"max_seq_len": 0}),
        ("WindowConfig", {"max_query_len": 0}),
        ("AugmentConfig", {"copies": -1}),
        ("AugmentConfig", {"replace_probability": 0.0}),
        ("AugmentConfig", {"replace_probability": 1.1}),
        ("AugmentConfig", {"replace_probability": math.nan}),
        ("AugmentConfig", {"candidates": 0}),
        ("AugmentConfig", {"actors": 0}),
        ("TeacherLogitsConfig", {"max_batch_tokens": 0}),
        ("TeacherLogitsConfig", {"num_gpus": math.inf}),
        ("DistillConfig", {"temperature": 0.0}),
        ("DistillConfig", {"learning_rate": math.nan}),
        ("DistillConfig", {"epochs": -1.0}),
        ("DistillConfig", {"distillation_weight": 1.5}),
        ("DistillConfig", {"warmup_ratio": -0.1}),
        ("DistillConfig", {"head_dropout": 2.0}),
        ("DistillConfig", {"attention_dropout": -0.5}),
        ("DistillConfig", {"checkpoint_steps": 0}),
        ("EvaluateConfig", {"max_answer_tokens": 0}),
        ("EvaluateConfig", {"threads": -1}),
        ("AnswerConfig", {"top_k": 0}),
        ("AnswerConfig", {"rows_per_shard": 0}),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, options: dict[str, Any]) -> None:
    ((field, value),) = options.items()
    with pytest.raises(InputError, match=rf"^{field} is {value}; it must [^\n]*$"):
        make(name, **options)


def test_windows_that_would_not_advance_are_refused() -> None:
    configs.WindowConfig(max_seq_len=64, max_query_len=20, doc_stride=39)
    with pytest.raises(InputError, match=r"leaves 40 context tokens .* doc_stride 40"):
        configs.WindowConfig(max_seq_len=64, max_query_len=20, doc_stride=40)


def test_batch_that_does_not_divide_names_the_numbers() -> None:
    make("DistillConfig", batch_size=24, workers=4, gradient_accumulation_steps=3)
    with pytest.raises(InputError, match=r"batch_size 26 .* 4 workers x 3 accumulation steps = 12"):
        make("DistillConfig", batch_size=26, workers=4, gradient_accumulation_steps=3)


def test_intermediate_distillation_needs_a_teacher() -> None:
    make("DistillConfig", objective=("intermediate",), teacher="t")
    with pytest.raises(InputError, match="give --teacher"):
        make("DistillConfig", objective=("intermediate",))
