"""The torch engine: a model on one device, with torch's fused attention."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import bucketed, packed
from tinyqa_ray.engines.devices import pick_device, usable_lanes
from tinyqa_ray.engines.engine import Engine, Index, Logits, padded
from tinyqa_ray.engines.fp32_head import compute_head_in_fp32
from tinyqa_ray.engines.memory import Memory
from tinyqa_ray.engines.unpadded import Unpadded, obstacle
from tinyqa_ray.models import families
from tinyqa_ray.models.masks import masks_unread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEND = "cut shorter windows (max_seq_len), let fewer processes share the device, or use a larger one"
"""Said where a single window does not fit. Not every command has an option for each, so none is named."""

Layout = Literal["auto", "padded", "unpadded", "bucketed"]


class TorchEngine(Engine):
    """A torch model on one device, with torch's fused attention.

    On a CPU batches run side by side, each on its own core, so that no core waits for the slowest one
    after every layer. A single batch runs on all cores.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: str = "auto",
        compiled: bool = False,
        layout: Layout = "auto",
        owns_model: bool = False,
    ) -> None:
        """Move ``model`` to ``device`` and put it in eval mode.

        Args:
            model: a question-answering model, in the precision that it is to run in.
            device: ``auto`` (the GPU where there is one) or a torch device's name.
            compiled: run it through ``torch.compile``; worth it on long runs only.
            layout: how the windows of a batch lie beside each other: ``padded`` to the longest; ``unpadded``,
                one after the other in one row; ``bucketed``, in few shapes, for each of which the model is
                compiled. Where a model or device cannot do it, windows are padded, and ``name`` says why.
                ``auto`` is padded on a CPU; on a GPU bucketed if ``compiled``, else unpadded.
            owns_model: nobody else uses ``model``, so its linear layers may be replaced by faster ones
                (``packed``).
        """
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        compute_head_in_fp32(self.model)
        self.pad_id: int = model.config.pad_token_id or 0
        self.inputs = families.input_names(model)
        self.can_be_padded = families.can_be_padded(model.config)
        self.name = f"torch {str(model.dtype).removeprefix('torch.')} on {self.device}"
        self._unpadded: Unpadded | None = None
        self._reach: int | None = None
        """Most tokens of a window, where lengths are rounded up; None where they are not."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        if owns_model and not compiled and packed.pack(self.model, self._example):
            self.name += ", weights packed"
        self.max_batch_tokens = 1024 if self.device.type == "cpu" else 32768
        self._call = self._laid_out(layout, compiled)
        self._threads = usable_lanes()
        self._has_lanes = self.device.type == "cpu" and not compiled
        if self._has_lanes:
            self.lanes, self.spreads = self._threads, self._threads > 1
        self._memory = Memory(self.device, _MEND)
        self._inside = 0
        self._lock = threading.Lock()
        # Threads share a GPU in turns: two forwards at once would need twice the memory and be no faster.
        self._card = threading.Lock() if self.device.type == "cuda" else nullcontext()
        self._pool: ThreadPoolExecutor | None = None

    def _example(self) -> torch.Tensor:
        """Logits of a made-up window."""
        ids = 1 + torch.arange(24)[None] % (self.model.config.vocab_size - 1)
        values = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        output = self.model(**{name: values[name] for name in self.inputs})
        return torch.stack([output.start_logits, output.end_logits])

    def _laid_out(self, layout: Layout, compiled: bool) -> Any:
        """Choose how the windows of a batch lie beside each other; returns what computes padded ones."""
        if layout == "auto" and self.device.type == "cpu":
            return torch.compile(self.model, dynamic=True) if compiled else self.model
        if layout == "auto":
            layout = "bucketed" if compiled else "unpadded"
        why = ""
        if layout == "unpadded":
            why = obstacle(self.model, self.device)
        elif layout == "bucketed" and not self.can_be_padded:
            why = f"{self.model.config.model_type} needs windows of equal length"
        self.name += f", padded ({why})" if why else f", {layout}"
        if layout == "unpadded" and not why:
            self._unpadded = Unpadded(self.model, self.device)
        elif layout == "bucketed" and not why:
            self._reach = families.max_window_tokens(self.model.config)
            return bucketed.FewShapes(self.model)
        return torch.compile(self.model, dynamic=True) if compiled else self.model

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """See ``Engine.run``; yields in the order of the batches."""
        if self.lanes == 1:
            with self._share_of_cores() if self._has_lanes else self._card:
                yield from self._ahead(windows, batches)
            return
        several = iter(batches)
        first = list(itertools.islice(several, 2))
        if len(first) == 2:
            yield from self._side_by_side(windows, itertools.chain(first, several))
            return
        with self._share_of_cores():
            yield from self._ahead(windows, first)

    def _ahead(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        # Launch one batch ahead: a GPU works on it while the results of the one before are fetched and used.
        ahead: tuple[Index, torch.Tensor] | None = None
        for batch in batches:
            launched = (batch, self._launch(windows, batch))
            if ahead is not None:
                yield _fetched(*ahead)
            ahead = launched
        if ahead is not None:
            yield _fetched(*ahead)

    def _side_by_side(
        self, windows: Tokens, batches: Iterable[Index]
    ) -> Iterator[tuple[Index, Logits, Logits]]:
        lanes, working = self._lanes(), deque[tuple[Index, Future[torch.Tensor]]]()
        try:
            for batch in batches:
                # Two batches for each lane: the next one is ready when one is done.
                if len(working) == 2 * self.lanes:
                    yield _waited(working)
                working.append((batch, lanes.submit(self._launch, windows, batch)))
            while working:
                yield _waited(working)
        finally:  # also when the caller stops early
            for _, future in working:
                future.cancel()

    def _lanes(self) -> ThreadPoolExecutor:
        """Threads that compute on one core each."""
        with self._lock:
            if self._pool is None:
                self._pool = self._started_lanes()
        return self._pool

    def _started_lanes(self) -> ThreadPoolExecutor:
        pool, all_here = ThreadPoolExecutor(self.lanes, "lane"), threading.Barrier(self.lanes)

        def alone() -> None:
            torch.get_num_threads()  # a thread's first call takes over the setting for all
            torch.set_num_threads(1)
            all_here.wait()

        for future in [pool.submit(alone) for _ in range(self.lanes)]:
            future.result()
        # Threads that have not computed yet take over the last setting of any thread: put it back.
        torch.set_num_threads(self._threads)
        return pool

    @contextmanager
    def _share_of_cores(self) -> Iterator[None]:
        """Let this thread compute on all cores when it is alone, else on its share of them."""
        with self._lock:
            self._inside += 1
            share = max(1, self._threads // self._inside)
        before = torch.get_num_threads()
        torch.set_num_threads(share)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            with self._lock:
                self._inside -= 1

    def _launch(self, windows: Tokens, batch: Index) -> torch.Tensor:
        """Start and end logits of a batch, ``(2, B, T)``, on the device.

        A batch for which the memory does not suffice is halved until it does, and later ones of that size
        are halved at once.

        Raises:
            InputError: the memory does not suffice for a single window.
        """
        tokens = int(windows.lengths[batch].max())
        found = self._memory.tried(len(batch), tokens, lambda: self._at_once(windows, batch))
        if found is not None:
            return found
        made = torch.zeros(2, len(batch), tokens, device=self.device)
        half = len(batch) // 2
        for rows in (slice(None, half), slice(half, None)):
            part = self._launch(windows, batch[rows])
            made[:, rows, : part.shape[2]] = part.float()
        return made

    def _at_once(self, windows: Tokens, batch: Index) -> torch.Tensor:
        if self._unpadded is not None:
            return self._unpadded(windows, batch)
        lengths = windows.lengths[batch]
        if self._reach is not None:
            return self._in_few_shapes(windows, batch, self._reach)
        if self.can_be_padded or len(set(lengths.tolist())) == 1:
            return self._forward(windows, batch)
        made = torch.zeros(2, len(batch), int(lengths.max()), device=self.device)
        for length in sorted(set(lengths.tolist())):
            rows = np.flatnonzero(lengths == length)
            made[:, torch.from_numpy(rows), :length] = self._forward(windows, batch[rows]).float()
        return made

    def _in_few_shapes(self, windows: Tokens, batch: Index, reach: int) -> torch.Tensor:
        lengths = windows.lengths[batch]
        made = torch.zeros(2, len(batch), int(lengths.max()), device=self.device)
        for rows, filled in bucketed.parts(len(batch)):
            part, tokens = batch[rows], int(lengths[rows].max())
            same = np.concatenate([part, np.repeat(part[-1:], filled - len(part))])
            logits = self._forward(windows, same, bucketed.rounded(tokens, reach))
            made[:, rows, :tokens] = logits[:, : len(part), :tokens].float()
        return made

    @torch.inference_mode()
    def _forward(self, windows: Tokens, batch: Index, length: int | None = None) -> torch.Tensor:
        ids, mask, types = padded(windows, batch, self.pad_id, length)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        inputs = {
            name: torch.from_numpy(values[name]).to(self.device, non_blocking=True) for name in self.inputs
        }
        # On a card the next batch is launched while one is computed; a host that reads a mask would wait.
        with nullcontext() if self.device.type == "cpu" else masks_unread():
            output = self._call(**inputs)
        return torch.stack([output.start_logits, output.end_logits])


def _waited(working: deque[tuple[Index, Future[torch.Tensor]]]) -> tuple[Index, Logits, Logits]:
    batch, future = working.popleft()
    return _fetched(batch, future.result())


def _fetched(batch: Index, logits: torch.Tensor) -> tuple[Index, Logits, Logits]:
    start, end = logits.float().cpu().numpy()
    return batch, start, end
