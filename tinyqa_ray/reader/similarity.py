"""A first pass that compares a question with the sentences and tokens of a text, each encoded by itself.

A model that reads question and text together reads every pair. An encoder of sentences reads each text once,
for all questions that are asked of it, and each question once, for all its texts: with ten texts a question
and many questions a text, that costs next to nothing.

The vector of a sentence says what it is about; it hides which words the question and the text share. So the
tokens are compared, too: for each token of the question, the nearest token of the text (late interaction,
ColBERT, arXiv 2004.12832). Both come from the same forward.
"""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.sentences import sentences
from tinyqa_ray.engines import packed
from tinyqa_ray.engines.devices import pick_device
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.reader.answers import refusal
from tinyqa_ray.reader.cascade import Float

_MODULES, _POOLING = "modules.json", "1_Pooling/config.json"
"""Files by which sentence-transformers describes an encoder."""
_MAX_TOKENS = 128
"""Longest sentence, in tokens; what is longer is cut off."""
_WIDTHS = (16, 32, 64, _MAX_TOKENS)
"""Tokens that a batch's rows are filled up to."""
_BATCH_TOKENS = (128, 16384)
"""Tokens of a batch on a CPU and on a GPU: a question alone must not wait for a large one."""
_CACHED_BYTES = 256 << 20
"""Room for the vectors of texts and questions that may come again."""
_DECIMALS = 4
"""Of a similarity. Those behind them differ with the number of threads."""

Vectors = NDArray[np.float32]
Part = tuple[str, bool]
"""A text that is read sentence by sentence, or (True) a question that is read as a whole."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Unit vectors of a text or question: of its S sentences, and of its T tokens without those added.

    A question is one sentence.
    """

    sentences_sd: Vectors
    tokens_td: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        return self.sentences_sd.nbytes + self.tokens_td.nbytes


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
    """Says how near each text is to a question: by its nearest sentence and by its nearest tokens."""

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
        self._widths = sorted({min(width, self._max_tokens) for width in _WIDTHS})
        self._padding = self._tokenizer.pad_token_id or 0
        self._batch_tokens = _BATCH_TOKENS[torch.device(self.device).type == "cuda"]
        packed.pack(self._network, self._example)
        self._known: OrderedDict[Part, _Encoded] = OrderedDict()
        self._bytes = 0

    def margins(self, pairs: Sequence[tuple[Any, Any]], *, max_answer_tokens: int = 30) -> Float:
        """The similarity of each text to its question, in [-2, 2], ``(n,)``.

        It is the largest cosine of the question and one of the text's sentences, plus the mean, over the
        question's tokens, of the largest cosine of one of the text's tokens.

        Args:
            pairs: questions, each with its text.
            max_answer_tokens: has no effect here; other first passes need it.

        Returns:
            -inf for a text without a sentence, and NaN for a pair that cannot be asked.
        """
        found = np.full(len(pairs), np.nan)
        asked = {n: pair for n, pair in enumerate(pairs) if refusal(*pair) is None}
        parts = dict.fromkeys((text, False) for _, text in asked.values())
        parts |= dict.fromkeys((question, True) for question, _ in asked.values())
        encoded = self._of(list(parts))
        for number, (question, text) in asked.items():
            found[number] = round(_near(encoded[question, True], encoded[text, False]), _DECIMALS)
        return found

    def _of(self, wanted: Sequence[Part]) -> dict[Part, _Encoded]:
        """What is known of texts and questions; those that are new are encoded."""
        new = {
            part: [part[0]] if part[1] else [part[0][start:end] for start, end in sentences(part[0])]
            for part in wanted
            if part not in self._known
        }
        made = iter(self._encoded(list(itertools.chain.from_iterable(new.values()))))
        found = {part: _joined(list(itertools.islice(made, len(some)))) for part, some in new.items()}
        for part in wanted:
            if part in self._known:
                self._known.move_to_end(part)
                found[part] = self._known[part]
        for part in new:
            self._known[part] = found[part]
            self._bytes += found[part].nbytes + len(part[0])
        while self._bytes > _CACHED_BYTES:
            (text, _), encoded = self._known.popitem(last=False)
            self._bytes -= encoded.nbytes + len(text)
        return found

    def _encoded(self, parts: Sequence[str]) -> list[_Encoded]:
        """Vectors of some sentences, one after the other.

        All batches of a width have one shape, so that a vector does not depend on what else is read: how the
        parts of a matrix product are added may differ from shape to shape.
        """
        if not parts:
            return []
        made = self._tokenizer(
            list(parts), truncation=True, max_length=self._max_tokens, return_special_tokens_mask=True
        )
        tokens, added = made["input_ids"], made["special_tokens_mask"]
        widths = np.asarray([next(width for width in self._widths if len(ids) <= width) for ids in tokens])
        found: dict[int, _Encoded] = {}
        for width in self._widths:
            places = np.flatnonzero(widths == width).tolist()
            most = max(1, self._batch_tokens // width)
            for first in range(0, len(places), most):
                some = places[first : first + most]
                pooled_bd, states_btd = self._forward([tokens[n] for n in some], width, most)
                for row, place in enumerate(some):
                    own = np.flatnonzero(np.asarray(added[place]) == 0)
                    found[place] = _Encoded(pooled_bd[row][None], states_btd[row, own].astype(np.float16))
        return [found[place] for place in range(len(parts))]

    def _example(self) -> torch.Tensor:
        """The states of a made-up text."""
        ids = 1 + torch.arange(16)[None] % (self._network.config.vocab_size - 1)
        states: torch.Tensor = self._network(input_ids=ids, attention_mask=ids * 0 + 1).last_hidden_state
        return states

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]], width: int, most: int) -> tuple[Vectors, Vectors]:
        """Unit vectors of some sentences, ``(n, d)``, and of their tokens, ``(n, width, d)``.

        The batch is filled up to ``most`` rows of ``width`` tokens.
        """
        ids_bt = torch.full((most, width), self._padding)
        mask_bt = torch.zeros((most, width), dtype=torch.long)
        # A row in which nothing may be looked at would be NaN.
        mask_bt[len(rows) :, 0] = 1
        for place, row in enumerate(rows):
            ids_bt[place, : len(row)] = torch.tensor(row)
            mask_bt[place, : len(row)] = 1
        ids_bt, mask_bt = ids_bt.to(self.device), mask_bt.to(self.device)
        hidden_btd = self._network(input_ids=ids_bt, attention_mask=mask_bt).last_hidden_state
        if self._first:
            pooled_bd = hidden_btd[:, 0]
        else:
            mask_bt1 = mask_bt[..., None].to(hidden_btd.dtype)
            pooled_bd = (hidden_btd * mask_bt1).sum(1) / mask_bt1.sum(1)
        unit_bd, unit_btd = (
            torch.nn.functional.normalize(each[: len(rows)].float(), dim=-1).cpu().numpy()
            for each in (pooled_bd, hidden_btd)
        )
        return unit_bd, unit_btd


def _joined(parts: Sequence[_Encoded]) -> _Encoded:
    """A text of its sentences. Copies, since a view would keep the vectors of a whole batch."""
    if not parts:
        return _Encoded(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float16))
    return _Encoded(
        np.concatenate([each.sentences_sd for each in parts]),
        np.concatenate([each.tokens_td for each in parts]),
    )


def _near(question: _Encoded, text: _Encoded) -> float:
    """See ``SentenceSimilarity.margins``."""
    if not len(text.sentences_sd):
        return -np.inf
    near = float((text.sentences_sd @ question.sentences_sd[0]).max())
    if not len(question.tokens_td) or not len(text.tokens_td):
        return near
    cosines_qt = question.tokens_td.astype(np.float32) @ text.tokens_td.astype(np.float32).T
    return near + float(cosines_qt.max(axis=1).mean())


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
