"""Masks that are made without a look at the batch."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models.masks import masks_unread

FAMILIES = {**small_models.ABLE, **small_models.UNABLE}
READ = ("xmod",)
"""Families that read their inputs for another reason: the language of each row."""
IDS = torch.tensor([[2, 7, 3, 9, 11, 3], [2, 8, 3, 12, 3, 0]])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in READ])
def test_forward_reads_nothing_of_the_device(family: str) -> None:
    """A tensor on the meta device has no values: to read one is an error."""
    model = small_models.model(FAMILIES[family]).to("meta")
    ids = IDS.to("meta")
    with masks_unread():
        output = model(input_ids=ids, attention_mask=ids.ne(0).long())
    assert output.start_logits.shape == IDS.shape


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "mpnet", "modernbert"])
def test_logits_are_the_same_whether_masks_are_looked_at_or_not(family: str, padded: bool) -> None:
    model = small_models.model(FAMILIES[family])
    mask = IDS.ne(0).long() if padded else torch.ones_like(IDS)
    with torch.no_grad():
        looked = model(input_ids=IDS, attention_mask=mask)
        with masks_unread():
            unread = model(input_ids=IDS, attention_mask=mask)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(unread[name][mask.bool()], looked[name][mask.bool()])


def test_transformers_looks_at_masks_again_when_the_last_block_ends() -> None:
    kept = dict(ALL_MASK_ATTENTION_FUNCTIONS)
    outer, inner = masks_unread(), masks_unread()
    with outer:
        changed = dict(ALL_MASK_ATTENTION_FUNCTIONS)
        assert changed["sdpa"] is not kept["sdpa"]
        with inner:
            assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == changed
        assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == changed
    assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == kept


def test_engine_of_a_card_launches_a_batch_without_reading_of_it() -> None:
    """The meta device stands for a card: MPNet, whose windows are padded on one."""
    engine = TorchEngine(small_models.model(FAMILIES["mpnet"]), device="cpu", layout="padded")
    engine.device = torch.device("meta")
    engine.model.to("meta")
    read = small_models.windows(9, 30)
    assert engine._launch(read, np.arange(2)).shape == (2, 2, 30)
