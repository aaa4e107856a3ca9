"""A masked language model of any architecture: loading it, and logits of only the masked tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.fp32_head import compute_head_in_fp32
from tinyqa_ray.models import pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Index = NDArray[np.int64]
Read = TypeVar("Read")


def load_masked_lm(name: str) -> PreTrainedModel:
    """Load a masked language model in eval mode and float32, on the CPU.

    Args:
        name: local folder, URL of a folder, or hub id.

    Raises:
        InputError: the model does not exist, is not in safetensors, or has no head for masked words.
    """
    from transformers import AutoModelForMaskedLM

    model, missing = pretrained.load_weights(AutoModelForMaskedLM, name, "masked language model")
    head = [key for key in missing if not key.startswith(f"{model.base_model_prefix}.")]
    if head:
        raise InputError(
            f"{name}: has no head that predicts masked words ({', '.join(head)} missing); "
            "give a masked language model (google-bert/bert-base-uncased, FacebookAI/roberta-base, …)"
        )
    if missing:
        raise InputError(f"{name}: lacks {len(missing)} weights ({missing[0]}, …); the file is not whole")
    return model.eval()


class MaskedLogits:
    """Logits of masked tokens; the head (half of a small model's work) skips all others if it can.

    Threads compute in turns: the forward of one must not meet the hook of another, and two at once would need
    twice the memory.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model; the head of one in half precision computes in fp32 from here on."""
        self.model = model.eval()
        compute_head_in_fp32(self.model)
        self.head_is_apart = self._probe()
        self._turn = threading.Lock()

    @torch.inference_mode()
    def __call__(self, ids: Index, rows: Index, columns: Index, read: Callable[[torch.Tensor], Read]) -> Read:
        """What ``read`` makes of the logits of the M tokens ``ids[rows, columns]``; ids are ``(B, T)``.

        ``read`` is given float32 ``(M, vocabulary)`` on the model's device, and has the device to itself.
        """
        with self._turn:
            inputs, *at = (torch.from_numpy(array).to(self.model.device) for array in (ids, rows, columns))
            gathered = self._gathered if self.head_is_apart else self._picked
            return read(gathered(inputs, *at).float())

    def _picked(self, ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids).logits[rows, columns]
        return logits

    def _gathered(self, ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Give the head only the hidden states of the masked tokens, as if they were one text."""

        def gather(_module: Any, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[rows, columns][None]
            return output

        handle = self.model.base_model.register_forward_hook(gather)
        try:
            logits: torch.Tensor = self.model(input_ids=ids).logits[0]
        finally:
            handle.remove()
        return logits

    @torch.inference_mode()
    def _probe(self) -> bool:
        """Test whether the model is an encoder with a head that treats each token on its own."""
        if self.model.base_model is self.model:
            return False
        device = self.model.device
        ids = torch.arange(8, device=device).view(2, 4) % self.model.get_input_embeddings().num_embeddings
        at = torch.tensor([0, 1, 1], device=device), torch.tensor([3, 0, 2], device=device)
        whole_texts = self._picked(ids, *at)
        try:
            alone = self._gathered(ids, *at)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        return alone.shape == whole_texts.shape and torch.allclose(alone, whole_texts, rtol=0.05, atol=0.05)
