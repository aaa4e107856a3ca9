"""OpenVINO's attention as plain matrix products, which is faster where they are in bf16 without AMX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyqa_ray.core import processor

NO_FUSION = {"SNIPPETS_MODE": "DISABLE"}
"""OpenVINO's own setting, which has no public name: matrix products and a softmax are not fused into one."""
_ATTENTION = "ScaledDotProductAttention"
_MASKED = -10_000.0
"""Added to the score of a token of padding, whose share is then 0 in any precision."""


def pays() -> bool:
    """Whether this processor computes plain products faster than OpenVINO's fused attention.

    With bf16 in AVX-512, windows of up to 200 tokens are read faster, and long ones as fast as before
    (``benchmarks/attention.py``). In fp32 it brings nothing, and with AMX or on Arm it was not measured.
    """
    return {"avx512", "bf16"} <= processor.features() and "amx" not in processor.features()


def written_out(model: Any) -> Any | None:
    """A copy of a model whose attention is matrix products and a softmax.

    The products are those that OpenVINO makes of an attention too, but keys are not transposed, and all
    queries of all layers share one mask.

    Args:
        model: an OpenVINO model; it is not changed.

    Returns:
        None where an attention hides more than padding: it looks back only, or it adds a bias.
    """
    made = model.clone()
    masks: dict[str, Any] = {}
    attention = [op for op in made.get_ops() if op.get_type_name() == _ATTENTION]
    for op in attention:
        source = _mask_of_keys(op)
        if source is None:
            return None
        name = source.get_node().get_friendly_name()
        if name not in masks:
            masks[name] = _added(source)
        op.output(0).replace(_products(op, masks[name]))
    made.validate_nodes_and_infer_types()
    return made if attention else None


def _mask_of_keys(op: Any) -> Any | None:
    """The mask, of shape ``(B, 1, 1, T)``, that all queries of an attention share; None if there is none."""
    if op.get_attributes()["causal"] or len(op.inputs()) < 4:
        return None
    source = op.input_value(3)
    while source.get_node().get_type_name() in ("Broadcast", "BitwiseAnd", "LogicalAnd"):
        inputs = [each.get_source_output() for each in source.get_node().inputs()]
        if source.get_node().get_type_name() == "Broadcast":
            source = inputs[0]
            continue
        # A mask of queries would leave some with nothing to look at, so it hides none.
        rest = [each for each in inputs if not _is_one(each, 1, 3)]
        if len(rest) != 1:
            return None
        (source,) = rest
    return source if _is_one(source, 1, 2) else None


def _is_one(value: Any, *axes: int) -> bool:
    shape = value.get_partial_shape()
    return shape.rank.is_static and len(shape) == 4 and all(shape[axis] == 1 for axis in axes)


def _added(mask: Any) -> Any:
    """What is added to scores: the mask itself, or for one of booleans 0 where it is true."""
    import openvino
    from openvino import opset13 as ops

    if mask.get_element_type() != openvino.Type.boolean:
        return mask
    return ops.select(mask, ops.constant(np.float32(0)), ops.constant(np.float32(_MASKED)))


def _products(op: Any, mask: Any) -> Any:
    from openvino import opset13 as ops

    queries, keys, values = (op.input_value(number) for number in range(3))
    if len(op.inputs()) > 4:
        scale = op.input_value(4)
    else:
        scale = ops.constant(np.float32(1 / math.sqrt(queries.get_partial_shape()[3].get_length())))
    scores = ops.add(ops.matmul(ops.multiply(queries, scale), keys, False, True), mask)
    mixed = ops.matmul(ops.softmax(scores, -1), values, False, False)
    mixed.set_friendly_name(op.get_friendly_name())
    return mixed.output(0)
