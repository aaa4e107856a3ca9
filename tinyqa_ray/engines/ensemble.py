"""Several models that answer as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines.engine import Engine, Index, Logits
from tinyqa_ray.engines.load import load_engine
from tinyqa_ray.models import pretrained


class MeanEngine(Engine):
    """The mean of several engines' logits, like that of teachers; takes as long as all of them together."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Take engines whose models read the same tokens."""
        assert engines
        self.engines = engines
        self.name = f"mean of {len(engines)} models, {engines[0].name}"
        self.parameters = sum(engine.parameters for engine in engines)
        self.max_batch_tokens = min(engine.max_batch_tokens for engine in engines)
        self.pad_id = engines[0].pad_id

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """See ``Engine.run``; yields in the order of the batches."""
        every = list(batches)
        # One model runs after the other, so that each has the whole device.
        found = [_in_order(engine, windows, every) for engine in self.engines]
        for number, batch in enumerate(every):
            tokens = int(windows.lengths[batch].max())
            # Engines may differ in how far they pad.
            pairs = [(start[:, :tokens], end[:, :tokens]) for start, end in (each[number] for each in found)]
            starts, ends = zip(*pairs, strict=True)
            yield batch, np.mean(starts, axis=0), np.mean(ends, axis=0)


def load_mean(names: Sequence[str], *, device: str, precision: str = "auto") -> MeanEngine:
    """Load several models as one.

    Raises:
        InputError: one cannot be read, or its tokenizer has another vocabulary than the first one's.
    """
    vocabularies = [pretrained.load_tokenizer(name).get_vocab() for name in names]
    for name, vocabulary in zip(names, vocabularies, strict=True):
        if vocabulary != vocabularies[0]:
            raise InputError(
                f"{name}: its tokenizer has another vocabulary than that of {names[0]}; "
                "only models that read the same tokens can be averaged"
            )
    return MeanEngine([load_engine(name, device=device, precision=precision)[0] for name in names])


def _in_order(engine: Engine, windows: Tokens, batches: Sequence[Index]) -> list[tuple[Logits, Logits]]:
    """Start and end logits of each batch; an engine may give them in any order."""
    places = {id(batch): number for number, batch in enumerate(batches)}
    found: list[tuple[Logits, Logits] | None] = [None] * len(batches)
    for batch, start, end in engine.run(windows, batches):
        found[places[id(batch)]] = (start, end)
    return [pair for pair in found if pair is not None]
