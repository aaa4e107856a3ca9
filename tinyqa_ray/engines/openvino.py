"""Models exported for CPUs: OpenVINO, int8 matrices, batches side by side on every core."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import plain_attention
from tinyqa_ray.engines.devices import usable_lanes
from tinyqa_ray.engines.engine import Engine, Index, Logits, padded
from tinyqa_ray.engines.exported import FILE, PRECISION, WEIGHT_BITS, UnreadableError, require_openvino
from tinyqa_ray.models import families, pretrained

_log = logging.getLogger(__name__)

_ROUND = 8
"""Lengths are rounded up to a multiple of this, so that few shapes have to be compiled."""


class OpenVinoEngine(Engine):
    """An exported model on the CPU: one stream for each thread, each with its own batch.

    A stream on each core is faster than all cores on one batch, where they wait for the slowest of them
    after every layer.
    """

    def __init__(self, model: Any, config: Any, *, threads: int | None = None) -> None:
        """Compile ``model``.

        Args:
            model: an OpenVINO model, see ``quantise.converted``.
            config: the configuration of the transformers model that it was made from.
            threads: cores to use; ``usable_lanes`` when not given.
        """
        import openvino

        self.threads = self.lanes = threads or usable_lanes()
        self.pad_id: int = config.pad_token_id or 0
        self._reach = families.max_window_tokens(config)
        self.precision: str = model.get_rt_info(PRECISION).astype(str)
        core = openvino.Core()
        # Outside its int8 matrices a model runs in bf16 where the CPU has bf16 arithmetic: as measured,
        # this changes F1 less than int8 does, and softmax and GELU become a quarter faster.
        native = processor.has_bf16() and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        rest = "bf16" if native and self.precision != "fp32" else "f32"
        computed = self.precision
        if self.precision == "bf16" and not native:
            processor.say_bf16_is_emulated()
            computed = "fp32 (the export is bf16)"
        settings = {
            "NUM_STREAMS": self.threads,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": rest,
            # With pinning every process would take the first cores, and two actors would share them.
            "ENABLE_CPU_PINNING": False,
        }
        plain = plain_attention.written_out(model) if rest == "bf16" and plain_attention.pays() else None
        self._compiled = _compiled(core, model, plain, settings)
        self._names = [port.get_any_name() for port in self._compiled.inputs]
        self._idle: list[Any] = []  # requests that no run uses
        self.name = f"OpenVINO {computed} on {self.threads} CPU threads"
        self.parameters = sum(
            int(np.prod(op.get_output_shape(0)))
            for op in model.get_ops()
            if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) == 2
        )
        self.max_batch_tokens = 1024

    @classmethod
    def load(cls, name: str, config: Any, *, threads: int | None = None) -> OpenVinoEngine:
        """Load an exported folder, or the URL of one.

        Raises:
            InputError: OpenVINO is not installed, or cannot read or compile the file; or this processor
                computes wrongly with its int8 weights.
        """
        require_openvino()
        import openvino

        with pretrained.readable(name) as folder:
            try:
                # Read into memory, not mapped: the folder that stands for a URL is removed afterwards.
                core = openvino.Core()
                core.set_property({"ENABLE_MMAP": False})
                model = core.read_model(Path(folder) / FILE)
            except RuntimeError as error:
                raise UnreadableError(
                    f"{name}: OpenVINO cannot read {FILE} ({pretrained.first_line(error)}); export it again"
                ) from None
        if not model.has_rt_info([PRECISION]):
            raise InputError(f"{name}: {FILE} was not written by tinyqa export; export the model with it")
        if processor.saturates_int8() and _weight_bits(model) > 7:
            raise InputError(
                f"{name}: its int8 weights take 8 bits, with which this processor, without VNNI, computes "
                "wrongly; export the model again with --weight-bits 7"
            )
        try:
            return cls(model, config, threads=threads)
        except RuntimeError as error:
            raise InputError(
                f"{name}: OpenVINO cannot compile {FILE} here ({pretrained.first_line(error)}); use the "
                "model that it was exported from, or an export with --format onnx"
            ) from None

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """See ``Engine.run``; yields in the order of the batches. Several threads may call it at a time."""
        # Two requests for each stream: the next batch is ready when one is done.
        requests = [self._request() for _ in range(2 * self.threads)]
        working: dict[int, Index] = {}
        try:
            for batch, turn in zip(batches, itertools.cycle(range(len(requests))), strict=False):
                if turn in working:
                    yield _result(requests[turn], working.pop(turn))
                requests[turn].start_async(self._inputs(windows, batch))
                working[turn] = batch
            for turn in list(working):
                yield _result(requests[turn], working.pop(turn))
        finally:  # also when the caller stops early
            for turn in working:
                requests[turn].wait()
            self._idle += requests

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def _inputs(self, windows: Tokens, batch: Index) -> dict[str, Any]:
        longest = max(len(windows.input_ids[window]) for window in batch)
        length = max(longest, min(-(-longest // _ROUND) * _ROUND, self._reach))
        ids, mask, types = padded(windows, batch, self.pad_id, length)
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: values[name] for name in self._names}


def _compiled(core: Any, model: Any, plain: Any | None, settings: dict[str, Any]) -> Any:
    """The model with plain attention, where there is one and OpenVINO takes the setting that it needs."""
    if plain is not None:
        try:
            return core.compile_model(plain, "CPU", {**settings, **plain_attention.NO_FUSION})
        except RuntimeError as error:
            _log.info("attention stays fused: %s", pretrained.first_line(error))
    return core.compile_model(model, "CPU", settings)


def _weight_bits(model: Any) -> int:
    if model.get_rt_info(PRECISION).astype(str) != "int8":
        return 0
    return int(model.get_rt_info(WEIGHT_BITS).astype(str)) if model.has_rt_info([WEIGHT_BITS]) else 8


def _result(request: Any, batch: Index) -> tuple[Index, Logits, Logits]:
    request.wait()  # raises the request's error, if any
    start, end = (request.get_output_tensor(i).data for i in range(2))
    return batch, start.copy(), end.copy()
