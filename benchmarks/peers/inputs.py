"""What every contestant is given: the same models and the same seeded workloads."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.core import bundled, processor, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.engine import padded
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.evaluate import measure
from tinyqa_ray.export import export
from tinyqa_ray.models import families, pretrained

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model to compare on."""

    name: str
    folder: str
    random: bool
    """Its answers mean nothing; its speed does."""
    exports: dict[str, str] = field(default_factory=dict)
    """Folders exported from it, by precision."""


def workloads(
    documents: str, questions: str, *, pairs: int, corpus_documents: int, seed: int
) -> dict[str, list[tuple[str, list[str]]]]:
    """Queries over SQuAD-like paragraphs, lengths mixed as they come.

    Args:
        documents: JSONL with ``id`` and ``text``.
        questions: JSONL with ``question`` and ``document_id``.
        pairs: questions drawn, fewer where there are fewer.
        corpus_documents: documents that a query of the corpus is asked of.
        seed: of every draw.

    Returns:
        ``pairs``: a question and its own document. ``corpus``: some of these questions, each asked of the
        same documents, about as many pairs.

    Raises:
        InputError: a file is not as above, or a question's document is absent.
    """
    try:
        texts = {row["id"]: row["text"] for row in _rows(documents)}
        asked = [(row["question"], [texts[row["document_id"]]]) for row in _rows(questions)]
    except KeyError as error:
        raise InputError(
            f"{documents}, {questions}: no {error}; give rows of id, text and of question, document_id"
        ) from None
    rng = random.Random(seed)
    drawn = rng.sample(asked, min(pairs, len(asked)))
    distinct = list(dict.fromkeys(contexts[0] for _, contexts in drawn))
    corpus = rng.sample(distinct, min(corpus_documents, len(distinct)))
    queries = max(1, len(drawn) // len(corpus))
    return {"pairs": drawn, "corpus": [(question, corpus) for question, _ in drawn[:queries]]}


def evenly(paragraphs: Sequence[squad.Paragraph], most: int) -> list[squad.Paragraph]:
    """At most so many paragraphs, evenly from start to end."""
    chosen = np.linspace(0, len(paragraphs) - 1, min(most, len(paragraphs))).round().astype(int)
    return [paragraphs[i] for i in np.unique(chosen)]


def as_it_is(model: str) -> str:
    """The precision that reads a model itself, or an export: 'auto' may take a faster form of a model."""
    return "auto" if is_exported(model) else "torch-fp32"


def model_and_export(model: str, calibration: str, folder: Path, *, export_it: bool) -> dict[str, str]:
    """Folders of a model and, if asked for, of the int8 export that is faster here, by precision.

    Args:
        model: folder.
        calibration: SQuAD data for the export.
        folder: where what is made is written.
        export_it: whether to export.
    """
    found = {"torch fp32": str(Path(model).expanduser().absolute())}
    if export_it:
        found["export int8"] = str(folder / "int8")
        export(int8_config(found["torch fp32"], calibration), found["export int8"])
    return found


def int8_config(model: str, calibration: str) -> ExportConfig:
    """As the int8 form that a machine makes for itself; its speed is measured, not its F1."""
    config = ExportConfig(model=model, calibration=calibration, max_f1_drop=2.0)
    if processor.saturates_int8():
        return replace(config, format="onnx")
    return replace(config, weight_bits=8)


def calibration(network: Any, windower: Windower, most: int) -> Iterator[dict[str, Any]]:
    """Inputs of at most so many windows of the package's training questions, one window at a time."""
    asked = measure.questions_of(bundled.asset("squad2_train.json"))[:most]
    windows = windower.windows([(each.question.question, each.context) for each in asked])
    names = families.input_names(network)
    for window in range(min(len(windows), most)):
        ids, mask, types = padded(windows, np.array([window]), network.config.pad_token_id or 0)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield {name: values[name] for name in names}


def random_6x768(tokenizer_of: str, folder: Path, seed: int) -> str:
    """A BERT of 6 layers x 768 with random weights: its answers mean nothing, its speed does."""
    from transformers import BertConfig, BertForQuestionAnswering

    config = BertConfig(
        vocab_size=len(pretrained.load_tokenizer(tokenizer_of)),
        num_hidden_layers=6,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    torch.manual_seed(seed)
    BertForQuestionAnswering(config).save_pretrained(folder)
    _copy_tokenizer(tokenizer_of, folder)
    return str(folder)


def random_deberta_v2(tokenizer_of: str, folder: Path, seed: int) -> str:
    """A DeBERTa-v2 of the shape of DeBERTa-v3 base with random weights."""
    from transformers import DebertaV2Config, DebertaV2ForQuestionAnswering

    config = DebertaV2Config(
        vocab_size=len(pretrained.load_tokenizer(tokenizer_of)),
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    )
    torch.manual_seed(seed)
    DebertaV2ForQuestionAnswering(config).save_pretrained(folder)
    _copy_tokenizer(tokenizer_of, folder)
    return str(folder)


def _copy_tokenizer(model: str, folder: Path) -> None:
    """The files as they are: what one transformers saves anew, an older one may not read."""
    files = [path for name in _TOKENIZER_FILES if (path := Path(model) / name).is_file()]
    if not files:
        raise InputError(f"{model}: has no tokenizer files; give --model a local folder")
    for path in files:
        shutil.copy(path, folder)


def _rows(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in storage.read_bytes(path).decode().splitlines() if line.strip()]
