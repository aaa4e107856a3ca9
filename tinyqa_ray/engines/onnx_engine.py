"""Models exported to ONNX, on ONNX Runtime: batches side by side on every core, or on a GPU."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tinyqa_ray.core import bundled, processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines.devices import usable_lanes
from tinyqa_ray.engines.engine import Engine, Index, Logits, padded
from tinyqa_ray.engines.exported import PRECISION, WEIGHT_BITS, UnreadableError, require_onnx_runtime
from tinyqa_ray.models import pretrained

Provider = str | tuple[str, dict[str, Any]]

_SLOW_ON_CPUS = ["SkipLayerNormFusion"]
"""Fusions of ONNX Runtime that cost time on a CPU: its kernel of an addition and a LayerNorm together takes
longer than one of each (``benchmarks/engines.py --variants``)."""

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OnnxEngine(Engine):
    """A model exported to ONNX. On a CPU every batch has one core, so that no core waits for the slowest one.

    The session has no threads of its own: a forward computes in the thread that asks for it. So nothing
    spins between forwards and takes time from neighbours.

    In int8 every window of a batch is a forward of its own. The range of the activations is taken from all
    that a forward reads: together, a window's logits would change with its neighbours, in the server with
    those of other callers.
    """

    def __init__(
        self, file: str | Path, config: Any, *, threads: int | None = None, device: str = "cpu"
    ) -> None:
        """Make a session of an ONNX file that ``tinyqa export`` wrote.

        Args:
            file: its path.
            config: the configuration of the transformers model that it was made from.
            threads: cores to use; ``usable_lanes`` when not given.
            device: ``cpu``, ``cuda``, ``cuda:1``, …, or ``tensorrt``.

        Raises:
            InputError: ONNX Runtime cannot read the file, another program made it, this processor computes
                wrongly with its weights, or ONNX Runtime has no such device here.
        """
        import onnxruntime

        providers = providers_of(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Lengths change from batch to batch: a plan of the memory of one would not fit the next.
        options.enable_mem_pattern = False
        options.log_severity_level = 3  # errors
        on_cpu = device == "cpu"
        try:
            self._session = onnxruntime.InferenceSession(
                str(file),
                options,
                providers=providers,
                disabled_optimizers=_SLOW_ON_CPUS if on_cpu else None,
            )
        except Exception as error:  # the runtime's errors have no common class
            raise UnreadableError(
                f"{file}: ONNX Runtime cannot read it ({pretrained.first_line(error)}); export it again"
            ) from None
        if not on_cpu and _name_of(providers[0]) not in self._session.get_providers():
            raise InputError(
                f"device is {device!r}, but ONNX Runtime cannot load its {_name_of(providers[0])}, and would "
                "compute on the CPU; install the CUDA libraries that this onnxruntime-gpu needs, or use 'cpu'"
            )
        said = self._session.get_modelmeta().custom_metadata_map
        if PRECISION not in said:
            raise InputError(f"{file}: was not written by tinyqa export; export the model with it")
        self.precision: str = said[PRECISION]
        bits = int(said.get(WEIGHT_BITS, 8)) if self.precision == "int8" else 0
        if processor.saturates_int8() and bits > 7:
            raise InputError(
                f"{file}: its int8 weights take 8 bits, with which this processor, without VNNI, computes "
                "wrongly; export the model again with --weight-bits 7"
            )
        self._names = [each.name for each in self._session.get_inputs()]
        self.pad_id: int = config.pad_token_id or 0
        self.parameters = int(said.get("tinyqa_parameters", 0))
        self.lanes = (threads or usable_lanes()) if on_cpu else 1
        self._alone = self.precision == "int8"
        # A window at a time gives every core work to the end.
        self.max_batch_tokens = (1 if self._alone else 512) if on_cpu else 32768
        where = f"{self.lanes} CPU threads" if on_cpu else device
        self.name = f"ONNX Runtime {self.precision} on {where}"
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, name: str, file: str, config: Any, *, threads: int | None = None, device: str = "cpu"
    ) -> OnnxEngine:
        """Load a file of an exported folder, or of the URL of one.

        Raises:
            InputError: ONNX Runtime is not installed, and as the constructor.
        """
        require_onnx_runtime()
        with pretrained.readable(name) as folder:
            try:
                return cls(Path(folder) / file, config, threads=threads, device=device)
            except InputError as error:  # a URL's folder is known here by a temporary name
                raise type(error)(str(error).replace(str(Path(folder) / file), f"{name}/{file}")) from None

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """See ``Engine.run``; yields in the order of the batches. Several threads may call it at a time."""
        several = iter(batches)
        first = next(several, None)
        if first is None:
            return
        second = next(several, None)
        if second is None or self.lanes == 1:
            for batch in (first, *(() if second is None else (second,)), *several):
                yield self._forward(windows, batch)
            return
        pool, working = self._threads(), deque[Future[tuple[Index, Logits, Logits]]]()
        try:
            for batch in itertools.chain((first, second), several):
                # Two batches for each lane: the next one is ready when one is done.
                if len(working) == 2 * self.lanes:
                    yield working.popleft().result()
                working.append(pool.submit(self._forward, windows, batch))
            while working:
                yield working.popleft().result()
        finally:  # also when the caller stops early
            for future in working:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.lanes, "lane")
        return self._pool

    def _forward(self, windows: Tokens, batch: Index) -> tuple[Index, Logits, Logits]:
        if not self._alone:
            return batch, *self._computed(windows, batch)
        found = [self._computed(windows, batch[[row]]) for row in range(len(batch))]
        return batch, _stacked([start for start, _ in found]), _stacked([end for _, end in found])

    def _computed(self, windows: Tokens, batch: Index) -> tuple[Logits, Logits]:
        ids, mask, types = padded(windows, batch, self.pad_id)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        start, end = self._session.run(
            ["start_logits", "end_logits"], {name: values[name] for name in self._names}
        )
        return np.asarray(start, np.float32), np.asarray(end, np.float32)


def _stacked(rows: Sequence[Logits]) -> Logits:
    """Logits of single windows, ``(1, T)`` each, as those of one batch, filled up with 0."""
    made = np.zeros((len(rows), max(each.shape[1] for each in rows)), np.float32)
    for row, each in enumerate(rows):
        made[row, : each.shape[1]] = each[0]
    return made


def _name_of(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def providers_of(device: str, available: Sequence[str]) -> list[Provider]:
    """ONNX Runtime's providers for a device, the first one preferred; what one cannot run, the next one does.

    TensorRT builds an engine for the shapes that it meets, which takes minutes; it keeps them in the cache
    folder.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, …, or ``tensorrt``.
        available: names of the providers of the installed ONNX Runtime.

    Raises:
        InputError: another device, or one that the installed ONNX Runtime does not have.
    """
    kind, _, number = device.partition(":")
    needed = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}.get(kind)
    if needed is None or (number and not number.isdecimal()):
        raise InputError(f"device is {device!r}; give 'auto', 'cpu', 'cuda', 'cuda:1' or 'tensorrt'")
    if needed not in available:
        raise InputError(
            f"device is {device!r}, but the installed ONNX Runtime has no {needed}; pip install "
            "onnxruntime-gpu in place of onnxruntime, or use 'cpu'"
        )
    if kind == "cpu":
        return [_CPU]
    gpu = {"device_id": int(number or 0)}
    cuda: list[Provider] = [(_CUDA, gpu)] if _CUDA in available else []
    if kind == "cuda":
        return [*cuda, _CPU]
    kept = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(bundled.cache() / "tensorrt")}
    return [(_TENSORRT, {**gpu, **kept}), *cuda, _CPU]
