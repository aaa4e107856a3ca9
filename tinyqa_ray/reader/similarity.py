"""A first pass that compares a question with the sentences of a text, each encoded by itself.

A model that reads question and text together reads every pair. An encoder of sentences reads each text once,
for all questions that are asked of it, and each question once, for all its texts: with ten texts a question
and many questions a text, that costs next to nothing.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.devices import pick_device
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.reader.answers import refusal
from tinyqa_ray.reader.cascade import Float
from tinyqa_ray.reader.sentences import sentences

_MODULES, _POOLING = "modules.json", "1_Pooling/config.json"
"""Files by which sentence-transformers describes an encoder."""
_MAX_TOKENS = 128
"""Longest sentence, in tokens; what is longer is cut off."""
_CACHED_BYTES = 256 << 20
"""Room for the vectors of texts and questions that may come again."""
_DECIMALS = 4
"""Of a similarity. Those behind them differ with the number of threads."""

Vectors = NDArray[np.float32]


def is_sentence_encoder(name: str) -> bool:
    """Whether a model is an encoder of sentences, as sentence-transformers stores them."""
    with pretrained.readable(name, weights=False) as folder:
        return (Path(folder) / _MODULES).is_file()


def check_sentence_encoder(name: str) -> None:
    """Refuse, without loading weights, an encoder that cannot be used.

    Raises:
        InputError: no such model, no fast tokenizer, or a pooling other than the mean or the first token.
    """
    _pools_first(name)
    pretrained.load_config(name)
    pretrained.load_tokenizer(name)


class SentenceSimilarity:
    """Says how near each text is to a question: the largest cosine of one of its sentences."""

    def __init__(self, name: str, *, device: str = "auto") -> None:
        """Load the encoder.

        Args:
            name: folder, URL of a folder, or hub id of a model of sentence-transformers that pools by the
                mean or the first token, and needs no words before a question.
            device: ``auto``, ``cpu``, ``cuda``.

        Raises:
            InputError: see ``check_sentence_encoder``.
        """
        from transformers import AutoModel

        self._first = _pools_first(name)
        self.device = pick_device(device)
        network, _ = pretrained.load_weights(AutoModel, name, "encoder")
        self._network = families.settle(network.eval()).to(self.device)
        self._tokenizer = pretrained.load_tokenizer(name)
        self._max_tokens = min(_MAX_TOKENS, families.max_window_tokens(network.config))
        self._known: OrderedDict[str, Vectors] = OrderedDict()
        self._bytes = 0

    def margins(self, pairs: Sequence[tuple[Any, Any]], *, max_answer_tokens: int = 30) -> Float:
        """The similarity of each text to its question, in [-1, 1], ``(n,)``.

        Args:
            pairs: questions, each with its text.
            max_answer_tokens: has no effect here; other first passes need it.

        Returns:
            -inf for a text without a sentence, and NaN for a pair that cannot be asked.
        """
        found = np.full(len(pairs), np.nan)
        for number, (question, text) in enumerate(pairs):
            if refusal(question, text) is None:
                each = self._vectors(text)
                near = each @ self._vectors(question, whole=True)[0] if len(each) else [-np.inf]
                found[number] = round(float(max(near)), _DECIMALS)
        return found

    def _vectors(self, text: str, *, whole: bool = False) -> Vectors:
        """Unit vectors of a text's sentences, or of the text as a whole, ``(n, width)``.

        Each text is a batch of its own, so that its vectors do not depend on what else is read.
        """
        key = f"{whole:d}{text}"
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        parts = [text] if whole else [text[start:end] for start, end in sentences(text)]
        made = self._encoded(parts)
        self._known[key] = made
        self._bytes += made.nbytes + len(key)
        while self._bytes > _CACHED_BYTES:
            old, vectors = self._known.popitem(last=False)
            self._bytes -= vectors.nbytes + len(old)
        return made

    @torch.inference_mode()
    def _encoded(self, parts: Sequence[str]) -> Vectors:
        if not parts:
            return np.zeros((0, 1), np.float32)
        tokens = self._tokenizer(
            list(parts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.device)
        hidden_btd = self._network(**tokens).last_hidden_state
        if self._first:
            pooled_bd = hidden_btd[:, 0]
        else:
            mask_bt1 = tokens["attention_mask"][..., None].to(hidden_btd.dtype)
            pooled_bd = (hidden_btd * mask_bt1).sum(1) / mask_bt1.sum(1)
        unit_bd = torch.nn.functional.normalize(pooled_bd.float(), dim=-1)
        made: Vectors = unit_bd.cpu().numpy()
        return made


def _pools_first(name: str) -> bool:
    """Whether the encoder's vector is that of the first token; otherwise it is the mean of all."""
    with pretrained.readable(name, weights=False) as folder:
        path = Path(folder) / _POOLING
        described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    old = [key.removeprefix("pooling_mode_") for key, value in described.items() if value is True]
    chosen = described.get("pooling_mode") or "+".join(key for key in old if key not in ("include_prompt",))
    if chosen in ("", "mean", "mean_tokens"):
        return False
    if chosen in ("cls", "cls_token"):
        return True
    raise InputError(
        f"{name}: pools its tokens by {chosen}, but a first pass knows the mean and the first token alone; "
        "give another encoder, or a question-answering model"
    )
