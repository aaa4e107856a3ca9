"""Converts a transformers model to ONNX, and quantises its matrices to int8."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.exported import PRECISION, WEIGHT_BITS
from tinyqa_ray.export.easing import LEVELS
from tinyqa_ray.export.onnx_easing import FLOAT, Feed, ease
from tinyqa_ray.export.quantise import PlainLogits, refuse_unpadded
from tinyqa_ray.models import families, pretrained

_OPSET = 17
_MOST_BYTES = 2_000_000_000
"""Most that a single ONNX file, a message of Protocol Buffers, can hold."""
_CLOSE = 1e-4


def write_onnx(network: Any, file: Path) -> None:
    """Write a model as ONNX: inputs and logits of ``(batch, sequence)``, standard operators only.

    The graph is not fused here: ONNX Runtime fuses LayerNorm, GELU and more when it loads the file, for the
    processor that it runs on, and the file stays one that other programs read. Attention is written out
    (``eager``), which its fusions know best. Measured in ``benchmarks/engines.py``.

    Args:
        network: a question-answering model of transformers, on the CPU in float32; it is not changed.
        file: where to write; its folder must exist.

    Raises:
        InputError: a family that cannot be converted, weights of more than 2 GB, or logits that differ from
            the model's.
    """
    refuse_unpadded(network.config)
    kind = network.config.model_type
    if 4 * sum(parameter.numel() for parameter in network.parameters()) > _MOST_BYTES:
        raise InputError(
            "the weights take more than 2 GB, which an ONNX file cannot hold; use --format openvino"
        )
    names = families.input_names(network)
    traced = copy.deepcopy(network)
    _, inputs = _example(network, names, 2, 16)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "start_logits", "end_logits")}
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns about branches in transformers, but our inputs always take the same ones.
        warnings.simplefilter("ignore")
        try:
            traced.set_attn_implementation("eager")
            # The tracing exporter: it needs no further package, takes seconds, and its graphs are those that
            # the runtime's fusions were written for.
            torch.onnx.export(
                PlainLogits(traced, names).eval(),
                inputs,
                str(file),
                dynamo=False,
                input_names=list(names),
                output_names=["start_logits", "end_logits"],
                dynamic_axes=axes,
                opset_version=_OPSET,
            )
            differ = _largest_difference(network, names, file)
        except Exception as error:  # any library that the tracer runs through may raise its own
            raise InputError(
                f"a model of the family {kind} does not convert to ONNX ({pretrained.first_line(error)}); "
                "use --format openvino, or use it without an export"
            ) from error
    if not differ <= _CLOSE:
        raise InputError(
            f"a model of the family {kind} does not convert to ONNX (logits would differ by {differ:.2g}); "
            "use --format openvino, or use it without an export"
        )
    _describe(
        file, {PRECISION: "fp32", "tinyqa_parameters": str(sum(p.numel() for p in network.parameters()))}
    )


def quantise_onnx(
    source: Path,
    target: Path,
    float_products: Sequence[str],
    feeds: Sequence[Feed] = (),
    *,
    weight_bits: int = 7,
) -> None:
    """Write an int8 version of a file of ``write_onnx``: dynamic quantisation.

    Weights of matrix products become int8, symmetric, with a scale for each output; the range of the
    activations is taken from each batch as it comes. What a few large activations and the rounding of weights
    lose is more than halved by what ``onnx_easing`` learns from real inputs.

    Args:
        source: the fp32 file.
        target: where to write.
        float_products: names of the matrix products that stay in float, in addition to those of the
            attention maps, both factors of which are activations.
        feeds: real inputs of the model; without them nothing is evened out.
        weight_bits: see ``quantise.quantised``.
    """
    import onnx
    from onnxruntime import quantization

    eased = onnx.load(str(source))
    integers = ease(eased, feeds, float_products, LEVELS[weight_bits]) if feeds else {}
    # It advises to infer shapes first, which products of constant matrices do not need.
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_dynamic(
            eased,
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[*float_products, *_added(eased)],
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logging.disable(logging.NOTSET)
    said = {each.key: each.value for each in eased.metadata_props}
    model = onnx.load(str(target))
    arrays = {each.name: each for each in model.graph.initializer}
    for name, whole in integers.items():
        found = arrays[f"{name}_quantized"]
        assert (list(found.dims), found.data_type) == (list(whole.shape), onnx.TensorProto.INT8), name
        found.CopyFrom(onnx.numpy_helper.from_array(whole, found.name))
    onnx.helper.set_model_props(model, {**said, PRECISION: "int8", WEIGHT_BITS: str(weight_bits)})
    onnx.save(model, str(target))


def _added(model: Any) -> list[str]:
    """Names of the products of a few channels that easing computes in float."""
    return [node.name for node in model.graph.node if node.name.endswith(FLOAT)]


def down_projections_onnx(file: Path, config: Any) -> list[str]:
    """Names of the matrix products that bring a feed-forward block back to the model's width.

    See ``quantise.down_projections``.

    Args:
        file: see ``write_onnx``.
        config: the configuration of the transformers model.
    """
    import onnx

    graph = onnx.load(str(file)).graph
    wide = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 0)
    # Weights are stored as (in, out).
    tall = {each.name for each in graph.initializer if len(each.dims) == 2 and each.dims[0] == wide}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in tall]


def _describe(file: Path, properties: dict[str, str]) -> None:
    """Add metadata to an ONNX file."""
    import onnx

    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(file))


def _example(
    network: Any, names: Sequence[str], rows: int, tokens: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The mask and the inputs of some rows, by position; the last half of the first row is padding."""
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, tokens // 2 :] = 0 if rows > 1 else 1
    values = {
        "input_ids": torch.randint(1, network.config.vocab_size, (rows, tokens), generator=random),
        "attention_mask": mask,
        "token_type_ids": (torch.arange(tokens) > tokens // 3).long().repeat(rows, 1),
    }
    values["input_ids"][mask == 0] = network.config.pad_token_id or 0
    return mask, tuple(values[name] for name in names)


def _largest_difference(network: Any, names: Sequence[str], file: Path) -> float:
    """Largest difference between the model's logits and those of a file, for several shapes of input."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = []
    for rows, tokens in ((1, 7), (3, 33)):
        mask, inputs = _example(network, names, rows, tokens)
        output = network(**dict(zip(names, inputs, strict=True)))
        made = session.run(None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)})
        for ours, theirs in zip(made, (output.start_logits, output.end_logits), strict=True):
            found.append(np.abs(ours - theirs.numpy())[mask.numpy() == 1].max())
    return float(max(found))
