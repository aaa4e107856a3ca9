"""The torch engine: a model on one device, with torch's fused attention."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines.engine import Engine, Index, Logits, padded
from tinyqa_ray.models import families

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine(Engine):
    """A torch model on one device, with torch's fused attention.

    On a CPU batches run side by side, each on its own core, so that no core waits for the slowest one
    after every layer. A single batch runs on all cores.
    """

    def __init__(self, model: PreTrainedModel, *, device: str = "auto", compiled: bool = False) -> None:
        """Move ``model`` to ``device`` and put it in eval mode.

        Args:
            model: a question-answering model, in the precision that it is to run in.
            device: ``auto`` (the GPU where there is one) or a torch device's name.
            compiled: run it through ``torch.compile``; worth it on long runs only.
        """
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        if model.dtype in (torch.bfloat16, torch.float16):
            _compute_head_in_fp32(self.model)
        self.pad_id: int = model.config.pad_token_id or 0
        self.inputs = families.input_names(model)
        self.can_be_padded = families.can_be_padded(model.config)
        self.name = f"torch {str(model.dtype).removeprefix('torch.')} on {self.device}"
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.max_batch_tokens = 1024 if self.device.type == "cpu" else 32768
        self._call = torch.compile(self.model, dynamic=True) if compiled else self.model
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu" and not compiled:
            self.lanes, self.spreads = self._threads, self._threads > 1
        self._largest: int | None = None
        """Most tokens of a forward that fits into memory, padding included; None until one did not."""
        self._inside = 0
        self._lock = threading.Lock()
        # Threads share a GPU in turns: two forwards at once would need twice the memory and be no faster.
        self._card = threading.Lock() if self.device.type == "cuda" else nullcontext()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """See ``Engine.run``; yields in the order of the batches."""
        if self.lanes == 1:
            with self._card:
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
        fits = len(batch) == 1 or self._largest is None or len(batch) * tokens <= self._largest
        if fits:
            try:
                return self._at_once(windows, batch)
            except RuntimeError as error:
                if not _is_lack_of_memory(error):
                    raise
            # Outside of the handler, since the error holds the tensors of the forward that failed.
            self._say_halved(len(batch), tokens)
        made = torch.zeros(2, len(batch), tokens, device=self.device)
        half = len(batch) // 2
        for rows in (slice(None, half), slice(half, None)):
            part = self._launch(windows, batch[rows])
            made[:, rows, : part.shape[2]] = part.float()
        return made

    def _say_halved(self, rows: int, tokens: int) -> None:
        """Keep and say, at the first time, that ``rows`` windows of ``tokens`` tokens are too many."""
        if rows == 1:
            raise InputError(
                f"out of memory on {self.device} with a single window of {tokens} tokens; make windows "
                "shorter (--max-seq-len), let fewer --actors share the device, or use a larger one "
                "(--max-batch-tokens cannot help any more)"
            )
        with self._lock:
            is_first = self._largest is None
            self._largest = min(self._largest or rows * tokens, rows * tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if is_first:
            _log.warning(
                "out of memory on %s with %d windows of %d tokens; batches are halved (--max-batch-tokens %d "
                "asks for no more than that)",
                *(self.device, rows, tokens, self._largest),
            )

    def _at_once(self, windows: Tokens, batch: Index) -> torch.Tensor:
        lengths = windows.lengths[batch]
        if self.can_be_padded or len(set(lengths.tolist())) == 1:
            return self._forward(windows, batch)
        made = torch.zeros(2, len(batch), int(lengths.max()), device=self.device)
        for length in sorted(set(lengths.tolist())):
            rows = np.flatnonzero(lengths == length)
            made[:, torch.from_numpy(rows), :length] = self._forward(windows, batch[rows]).float()
        return made

    @torch.inference_mode()
    def _forward(self, windows: Tokens, batch: Index) -> torch.Tensor:
        ids, mask, types = padded(windows, batch, self.pad_id)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        output = self._call(
            **{
                name: torch.from_numpy(values[name]).to(self.device, non_blocking=True)
                for name in self.inputs
            }
        )
        return torch.stack([output.start_logits, output.end_logits])


def pick_device(device: str = "auto") -> torch.device:
    """The torch device of a name; ``auto`` is the GPU where there is one.

    Raises:
        InputError: a device that torch does not know, or a GPU where it sees none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device is {device!r}; give 'auto', 'cpu', 'cuda' or 'cuda:1'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    return chosen


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision that a torch model runs in on a device.

    Args:
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU from Ampere on, fp16 on an older
            one, fp32 on a CPU. A CPU that would only emulate bf16 computes in fp32, with a warning.
        device: where it runs.

    Raises:
        InputError: another precision, or fp16 on a CPU.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # fp16 arithmetic came with sm_53, bf16 with sm_80; a V100 is sm_70.
        major, minor = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if (major, minor) >= (5, 3) else torch.float32
    if precision == "int8":
        raise InputError(
            "precision is 'int8', but the model is not exported to it; "
            "run tinyqa export --precision int8 and give the exported folder"
        )
    if precision not in _DTYPES:
        raise InputError(f"precision is {precision!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16', which is for GPUs; on a CPU use fp32, bf16 or an int8 export")
    if precision == "bf16" and device.type == "cpu" and not processor.has_bf16():
        processor.say_bf16_is_emulated()
        return torch.float32
    return _DTYPES[precision]


def _compute_head_in_fp32(model: PreTrainedModel) -> None:
    """Let the head turn the encoder's half-precision states into logits in fp32.

    bf16 has eight bits of mantissa: near 10, logits would be multiples of 1/16, and near spans would tie.
    """

    def widen(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            each.float() if torch.is_tensor(each) and each.is_floating_point() else each for each in inputs
        )

    for module in families.head_modules(model):
        module.float().register_forward_pre_hook(widen)


def _is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory did not suffice: for torch, or for cuBLAS and cuDNN."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)


def _waited(working: deque[tuple[Index, Future[torch.Tensor]]]) -> tuple[Index, Logits, Logits]:
    batch, future = working.popleft()
    return _fetched(batch, future.result())


def _fetched(batch: Index, logits: torch.Tensor) -> tuple[Index, Logits, Logits]:
    start, end = logits.float().cpu().numpy()
    return batch, start, end
