"""What every stage can be told: one frozen config a stage, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.errors import InputError
from tinyqa_ray.runs import execution

Objective = Literal["labels", "intermediate", "relations", "prediction"]


def _at_least(config: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= minimum):
            raise InputError(f"{name} is {value}; it must be at least {minimum:g}")


def _share(config: object, *names: str, zero: bool = True) -> None:
    for name in names:
        value = getattr(config, name)
        if not (0.0 <= value <= 1.0) or (value == 0.0 and not zero):
            raise InputError(f"{name} is {value}; it must lie in {'[' if zero else '('}0, 1]")


def _default(config: object, name: str, value: object) -> None:
    """Fill in a field that was not given, so that the fingerprint names the value."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """How a question and its context become windows of tokens."""

    max_seq_len: int = 384
    """Tokens in a window: question, part of the context, and special tokens."""
    doc_stride: int = 128
    """Tokens that neighbouring windows of a context share (the overlap, as in transformers)."""
    max_query_len: int = 64
    """Tokens of a question; a longer question is cut."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "doc_stride")
        _at_least(self, 1, "max_seq_len", "max_query_len")
        # Four is the most special tokens that a pair takes (RoBERTa).
        room = self.max_seq_len - self.max_query_len - 4
        if room <= self.doc_stride:
            raise InputError(
                f"max_seq_len {self.max_seq_len} leaves {max(room, 0)} context tokens beside max_query_len "
                f"{self.max_query_len}, not more than doc_stride {self.doc_stride}; windows would not advance"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How paragraphs are multiplied (TinyBERT, arXiv 1909.10351, algorithm 1, made safe for answers)."""

    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs, or a hub id."""
    masked_lm: str | None = None
    """Masked language model that proposes words for their context: a folder or hub id; without one, or with
    'none', neighbours alone are candidates."""
    word_vectors: str | None = None
    """GloVe text file: neighbours of the words that the masked LM splits, or of all words without one."""
    embeddings: str | None = None
    """Model folder or hub id whose input embeddings stand in for GloVe; the masked LM's own when neither is
    given."""
    copies: int = 20
    """Copies of each paragraph, beside the original."""
    replace_probability: float = 0.4
    """Chance that a word which may change does change, in a copy."""
    candidates: int | None = None
    """Best words among which a replacement is drawn; 15, or 20 in Haystack's style, when not given."""
    masked_share: float | None = None
    """Share of a paragraph's words that one forward masks; 0 masks one word a forward, the exact algorithm;
    0.15, or 0 in Haystack's style, when not given."""
    style: Literal["safe", "haystack"] = "safe"
    """'haystack' draws as Haystack 1's augment_squad does: stop-words may change, the word itself is a
    candidate, copies may repeat. Unlike there, answers, numbers, case, spacing and the original stay."""
    teacher: str | None = None
    """Question-answering model asked whether it still finds the gold span in the copies, for the report."""
    keep_if_teacher_agrees: bool = False
    """Leave out a copy's question when the teacher does not find its gold span any more."""
    squad_json: str | None = None
    """File to write all copies to as one SQuAD JSON, ids unique, copy 0 first."""
    max_word_vectors: int = 100_000
    """Word vectors read, from the top of the file: GloVe's are sorted by frequency."""
    seed: int = 42
    """Seed of every draw; with the paragraph's id it decides a copy."""
    rows_per_shard: int = 256
    """Paragraphs in one output file, the unit of work that is done once."""
    max_batch_tokens: int = 4096
    """Tokens in one forward of the masked LM or the teacher, padding included."""
    actors: int = execution(1)
    """Ray actors that rewrite at the same time."""
    threads: int = execution(0)
    """Torch threads of an actor; 0 shares the machine's cores among the actors."""
    num_gpus_per_actor: float = execution(0.0)
    """GPUs of an actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "copies", "seed", "threads", "num_gpus_per_actor")
        haystack = self.style == "haystack"
        _default(self, "candidates", 20 if haystack else 15)
        _default(self, "masked_share", 0.0 if haystack else 0.15)
        if self.masked_lm == "none":
            object.__setattr__(self, "masked_lm", None)
        if not (self.masked_lm or self.word_vectors or self.embeddings):
            raise InputError("nothing proposes words; give masked_lm, word_vectors or embeddings")
        if self.keep_if_teacher_agrees and self.teacher is None:
            raise InputError("keep_if_teacher_agrees asks a teacher; give one with teacher")
        _at_least(self, 1, "candidates", "rows_per_shard", "actors", "max_batch_tokens")
        _at_least(self, 2, "max_word_vectors")
        _share(self, "replace_probability", zero=False)
        _share(self, "masked_share")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogitsConfig:
    """How paragraphs become windows with teachers' logits."""

    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs (also augmented ones), or a hub id."""
    tokenizer: str | None = None
    """Folder or hub id of the student, or of any model with its tokenizer; the first teacher's when not
    given."""
    model: tuple[str, ...] = ()
    """Teachers, one or several: folders or hub ids with a question-answering head; without one, windows carry
    labels only."""
    teachers: Literal["average", "apart"] = "average"
    """What is kept of several teachers: the mean of their logits, or each one's in columns of its own."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    rows_per_shard: int = 64
    """Paragraphs in one output file, the unit of work that is done once."""
    max_batch_tokens: int | None = None
    """Tokens in one forward of a teacher, padding included; what suits the CPU or GPU when not given."""
    actors: int = execution(1)
    """Ray actors, each with its own copy of the teachers."""
    threads: int = execution(0)
    """Torch threads of an actor; 0 shares the machine's cores among the actors."""
    num_gpus_per_actor: float = execution(0.0)
    """GPUs of an actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "threads", "num_gpus_per_actor")
        _at_least(self, 1, "rows_per_shard", "max_batch_tokens", "actors")
        given: object = self.model
        if isinstance(given, str):  # a string is a sequence of names too, of one letter each
            raise InputError(f"model is {given!r}; it must be a tuple of folders or hub ids: ({given!r},)")
        if self.tokenizer is None and not self.model:
            raise InputError("neither tokenizer nor model is given; name the student whose windows to cut")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One training stage: labels, intermediate layers, or the teacher's predictions."""

    data: str
    """Finished folder of windows (of 'teacher-logits')."""
    student: str
    """Folder or hub id that the student starts from."""
    objective: Objective
    """labels: gold spans. intermediate: the teacher's attention and hidden states. relations: MiniLMv2's
    self-attention relations. prediction: the teacher's logits."""
    student_layers: tuple[int, ...] | None = None
    """Layers of ``student`` to keep, counted from 0; all when not given."""
    teacher: str | None = None
    """Folder or hub id of the teacher, run beside the student; for 'intermediate' and 'relations'."""
    attention_maps: Literal["scores", "probabilities"] = "scores"
    """What 'intermediate' compares: attention before softmax (TinyBERT), or after it (Haystack 1)."""
    relation_layer: int | None = None
    """Teacher layer whose relations the student's last layer learns, from 0; the last when not given."""
    relation_heads: int | None = None
    """Relation heads; the student's attention heads when not given."""
    distillation_weight: float = 1.0
    """Share w of the teacher in 'prediction': w * tau^2 * KL + (1 - w) * cross-entropy of the labels."""
    temperature: float = 1.0
    """Temperature tau of 'prediction'."""
    epochs: float = 2.0
    """Passes over the windows."""
    batch_size: int = 32
    """Windows in one optimiser step, over all workers and accumulation steps."""
    accumulation: int = 1
    """Forwards of a worker for one optimiser step."""
    learning_rate: float = 3e-5
    """Peak learning rate of AdamW."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; it then falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay, of matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    attention_dropout: float | None = None
    """Dropout of attention weights; the model's own when not given. 0 lets a CPU use its fast attention."""
    head_dropout: float = 0.0
    """Dropout between encoder and head (Haystack's ``embeds_dropout_prob``), beside the model's own."""
    seed: int = 42
    """Seed of the order of windows, of new heads, and of dropout."""
    checkpoint_steps: int = execution(200)
    """Optimiser steps between checkpoints."""
    log_steps: int = execution(5)
    """Optimiser steps between rows of ``metrics.jsonl``."""
    workers: int = execution(1)
    """Ray Train workers; each takes its share of every batch."""
    threads: int = execution(0)
    """Torch threads of a worker; 0 shares the machine's cores among the workers."""
    use_gpu: bool = execution(False)
    """One GPU a worker."""

    def __post_init__(self) -> None:
        _positive(self, "temperature", "epochs", "learning_rate", "max_grad_norm")
        _share(self, "distillation_weight", "warmup", "head_dropout")
        _at_least(self, 0, "weight_decay", "seed", "threads")
        _at_least(self, 1, "batch_size", "accumulation", "checkpoint_steps", "log_steps", "workers")
        if self.attention_dropout is not None:
            _share(self, "attention_dropout")
        _at_least(self, 0, "relation_layer")
        _at_least(self, 1, "relation_heads")
        parts = self.workers * self.accumulation
        if self.batch_size % parts:
            raise InputError(
                f"batch_size {self.batch_size} does not divide by {self.workers} workers x "
                f"{self.accumulation} accumulation steps = {parts}; choose a multiple of {parts}"
            )
        if self.objective in ("intermediate", "relations") and self.teacher is None:
            raise InputError(f"objective '{self.objective}' needs the teacher's layers; give --teacher")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How a model is measured on SQuAD 2.0 questions."""

    model: str
    """Folder or hub id with a question-answering head."""
    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs, or a hub id."""
    fit_threshold: str | None = None
    """Other SQuAD 2.0 data on which the no-answer threshold is fitted, then stored beside the model."""
    fit_temperature: str | None = None
    """Other SQuAD 2.0 data on which the temperature of scores is fitted, then stored beside the model."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    threads: int = execution(0)
    """Torch threads; 0 uses the machine's cores."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_answer_tokens")
        _at_least(self, 0, "threads")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How a model is exported for CPUs."""

    model: str
    """Folder or hub id with a question-answering head."""
    precision: Literal["int8", "bf16", "fp32"] = "int8"
    """Of the matrix products; bf16 where the CPU computes in it, else fp32."""
    calibration: str | None = None
    """SQuAD 2.0 data like that to be answered: some of its questions show the ranges for int8, others check
    the F1 of the export."""
    calibration_questions: int = 300
    """Questions whose windows show the ranges."""
    check_questions: int = 1000
    """Most other questions on which the export is checked."""
    max_f1_drop: float = 0.5
    """Points of F1 that the export may lose, with or without abstaining."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows that are checked."""
    seed: int = 0
    """Of the choice of questions."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "calibration_questions", "check_questions", "max_answer_tokens")
        _at_least(self, 0, "max_f1_drop", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """How a corpus is answered."""

    model: str
    """Folder or hub id with a question-answering head."""
    documents: str
    """JSONL file of documents: ``id``, ``text``."""
    questions: str
    """JSONL file of questions: ``id``, ``question``, ``document_id``."""
    top_k: int = 1
    """Answers kept of each question."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    rows_per_shard: int = 512
    """Questions in one output file, the unit of work that is done once."""
    actors: int = execution(1)
    """Ray actors, each with its own copy of the model."""
    threads: int = execution(0)
    """Torch threads of an actor; 0 shares the machine's cores among the actors."""
    num_gpus_per_actor: float = execution(0.0)
    """GPUs of an actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "top_k", "max_answer_tokens", "rows_per_shard", "actors")
        _at_least(self, 0, "threads", "num_gpus_per_actor")
