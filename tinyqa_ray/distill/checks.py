"""Checks before a training stage starts; their errors give the numbers and the remedy."""

from __future__ import annotations

from typing import Any

from tinyqa_ray.configs import LAYER_OBJECTIVES, DistillConfig
from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill.layers import check_heads, check_relations
from tinyqa_ray.distill.strategies import require_deepspeed
from tinyqa_ray.distill.students import layer_pairs, student_config
from tinyqa_ray.distill.window_facts import WindowFacts, window_facts
from tinyqa_ray.models import pretrained, weights
from tinyqa_ray.models.soup import averaged
from tinyqa_ray.models.tokenizers import same_tokens
from tinyqa_ray.teacher_logits.window_dataset import window_tokenizer


def check(config: DistillConfig) -> int:
    """Refuse what cannot be trained; return the number of windows.

    Raises:
        InputError: unfinished windows, fewer than a batch, or without the labels or logits that the
            objectives need; a student or teacher that cannot be read, or whose tokenizer is not that of the
            windows; a teacher whose depth, heads or width do not fit the student's; dev data that cannot
            be read.
    """
    tokenizer = pretrained.load_tokenizer(config.student)
    data = window_facts(config.data)
    _check_windows(config, data)
    same_tokens(tokenizer, window_tokenizer(config.data))
    student = pretrained.load_config(config.student)
    layers = _student_layers(config, int(student.num_hidden_layers))
    if config.student_layers is not None:
        student_config(student, config.student_layers)
    pretrained.check_window(config.student, student, data.longest)
    if any(name in LAYER_OBJECTIVES for name in config.objective):
        assert config.teacher is not None
        _check_teacher(config, config.teacher, student, layers, tokenizer)
        teacher = pretrained.load_config(config.teacher)
        pretrained.check_window(config.teacher, teacher, data.longest)
    weights.check_qa_model(config.student, new_head=not config.soup_with)
    if config.soup_with and not weights.have_one_shape(config.student, config.soup_with):
        # Its error says where they differ.
        averaged(pretrained.load_qa_model(config.student), config.student, config.soup_with)
    if config.dev is not None:
        squad.read_squad(config.dev)
    if config.strategy != "ddp":
        require_deepspeed()
    if config.precision == "bf16" and not config.use_gpu and not processor.has_bf16():
        processor.say_bf16_is_emulated()  # here too, as a worker's words come at the end
    return data.windows


def check_room(config: DistillConfig, resources: dict[str, float]) -> None:
    """Refuse more workers than a cluster of fixed size can hold; Ray would wait for ever.

    Raises:
        InputError: there are too few GPUs or CPUs; the message has both numbers.
    """
    fewest = config.min_workers or config.workers
    unit, there = ("GPU", resources.get("GPU", 0.0)) if config.use_gpu else ("CPU", resources.get("CPU", 0.0))
    if fewest > there:
        raise InputError(
            f"{fewest} workers need a {unit} each, and there are {there:g}; lower --workers"
            + (", or set --no-use-gpu" if config.use_gpu else "")
        )


def _check_windows(config: DistillConfig, data: WindowFacts) -> None:
    if data.windows < config.batch_size:
        raise InputError(
            f"{config.data}: holds {data.windows} windows, fewer than batch_size {config.batch_size}; "
            "lower --batch-size or give more data"
        )
    if "prediction" in config.objective:
        if not data.teachers:
            raise InputError(
                f"{config.data}: its windows carry no teacher's logits; run 'teacher-logits' with --teachers"
            )
        given = config.teacher_weights
        if given is not None and len(given) != data.teachers:
            raise InputError(
                f"{len(given)} teacher_weights are given, but the windows carry the logits of "
                f"{data.teachers}; give one weight for each (teacher-logits --combine apart keeps several)"
            )
    if "labels" in config.objective and not data.has_labels:
        raise InputError(
            f"{config.data}: its windows are plain text, without labels; teach 'intermediate' or 'relations'"
        )


def _student_layers(config: DistillConfig, depth: int) -> int:
    chosen = tuple(range(depth)) if config.student_layers is None else config.student_layers
    if not chosen or not set(chosen) <= set(range(depth)) or len(set(chosen)) < len(chosen):
        raise InputError(
            f"student_layers are {chosen}; {config.student} has layers 0 to {depth - 1}; "
            "give each at most once"
        )
    return len(chosen)


def _check_teacher(
    config: DistillConfig, name: str, student: Any, student_layers: int, tokenizer: Any
) -> None:
    """Refuse a teacher whose layers cannot be compared with the student's."""
    try:
        same_tokens(tokenizer, pretrained.load_tokenizer(name))
    except InputError as error:
        layers = next(each for each in config.objective if each in LAYER_OBJECTIVES)
        raise InputError(
            f"{error}, since objective '{layers}' compares their layers token by token; or teach "
            "'prediction' alone, from windows with the teacher's logits (tinyqa teacher-logits --teachers "
            f"{name} --tokenizer {config.student}), which takes a teacher of any vocabulary"
        ) from None
    weights.check_qa_model(name, new_head=True)
    teacher = pretrained.load_config(name)
    if "intermediate" in config.objective:
        check_heads(student, teacher)
        layer_pairs(int(teacher.num_hidden_layers), student_layers)
    if "relations" in config.objective:
        check_relations(student, teacher, config.relation_heads, config.relation_layer)
