"""A question-answering model over unpadded windows: length-sorted batches within a token budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tinyqa_ray.windows import Windows, pad, token_budget_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = NDArray[np.float32]


def pick_device(device: str = "auto") -> torch.device:
    """``auto`` is the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


class TorchForward:
    """Start and end logits of windows, from a torch model on one device."""

    def __init__(self, model: PreTrainedModel, *, device: str = "auto", pad_id: int = 0) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.pad_id = pad_id
        self.uses_types = getattr(model.config, "type_vocab_size", 0) > 1

    @torch.inference_mode()
    def logits(self, windows: Windows, max_batch_tokens: int = 4096) -> tuple[list[Logits], list[Logits]]:
        """Logits of every window, in the windows' order.

        Args:
            windows: W windows.
            max_batch_tokens: tokens of one forward, padding included.

        Returns:
            start and end logits: W arrays of ``(tokens of the window,)``.
        """
        starts: list[Logits] = [np.empty(0, np.float32)] * len(windows)
        ends = list(starts)
        for batch in token_budget_batches(windows.lengths, max_batch_tokens):
            start, end = self.forward(windows, batch)
            for row, window in enumerate(batch):
                tokens = len(windows.input_ids[window])
                starts[window], ends[window] = start[row, :tokens].copy(), end[row, :tokens].copy()
        return starts, ends

    @torch.inference_mode()
    def forward(self, windows: Windows, batch: NDArray[np.int64]) -> tuple[Logits, Logits]:
        """Padded logits ``(B, T)`` of the windows that ``batch`` names."""
        ids = pad([windows.input_ids[window] for window in batch], self.pad_id)
        lengths = np.array([len(windows.input_ids[window]) for window in batch])
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)),
        }
        if self.uses_types:
            types = pad([windows.type_ids[window] for window in batch], 0)
            inputs["token_type_ids"] = torch.from_numpy(types)
        output = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
        return output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
