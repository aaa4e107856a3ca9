"""Converts a transformers model to OpenVINO, and quantises its matrices to int8."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.exported import PRECISION, WEIGHT_BITS
from tinyqa_ray.models import families, pretrained


def converted(network: Any, precision: str) -> Any:
    """An OpenVINO model with the inputs of ``network`` and its start and end logits, ``(B, T)`` each.

    Args:
        network: a question-answering model of transformers, on the CPU in float32.
        precision: name of the precision, which is stored in the model.

    Raises:
        InputError: OpenVINO cannot convert a model of this family.
    """
    import openvino

    refuse_unpadded(network.config)
    names = families.input_names(network)
    example = tuple(torch.ones(2, 16, dtype=torch.long) for _ in names)
    with torch.no_grad(), _attention_of_finite_masks(network), warnings.catch_warnings():
        # The tracer warns about branches in transformers, but our inputs always take the same ones.
        warnings.simplefilter("ignore")
        try:
            model = openvino.convert_model(PlainLogits(network, names).eval(), example_input=example)
        except Exception as error:  # any library that the tracer runs through may raise its own
            raise InputError(
                f"a model of the family {network.config.model_type} does not convert to OpenVINO "
                f"({pretrained.first_line(error)}); use it without an export"
            ) from error
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    model.set_rt_info(precision, PRECISION)
    return model


def refuse_unpadded(config: Any) -> None:
    """Raise ``InputError`` for a family whose batches must not be padded."""
    if not families.can_be_padded(config):
        raise InputError(
            f"a model of the family {config.model_type} cannot be exported: its answers change with "
            "the padding of a batch, which an export cannot do without; use it without an export"
        )


@contextlib.contextmanager
def _attention_of_finite_masks(network: Any) -> Iterator[None]:
    """Let a model with local attention (ModernBERT) compute its attention without the fused kernel.

    A token of padding whose neighbours are all padding has nothing to attend to. OpenVINO's fused attention
    gives NaN there, which the next layer spreads over the window.
    """
    if "sliding_attention" not in (getattr(network.config, "layer_types", None) or ()):
        yield
        return
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation("sdpa")


class PlainLogits(torch.nn.Module):
    """A model that takes its inputs by position and returns plain tensors."""

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits."""
        output = self.network(**dict(zip(self.names, inputs, strict=True)))
        return output.start_logits, output.end_logits


def quantised(
    model: Any, samples: Sequence[dict[str, Any]], float_products: Sequence[str], *, weight_bits: int = 7
) -> Any:
    """An int8 version of an OpenVINO model, made by post-training quantisation.

    Args:
        model: see ``converted``; it is not changed.
        samples: inputs, by name, that determine the ranges of the activations.
        float_products: names of the matrix products that stay in float, in addition to those of the
            attention maps.
        weight_bits: of the weights of matrix products; with 7, they go from -64 to 64. x86 processors without
            VNNI add two products of bytes in 16 bits: with 8 bits, a sum above 32,767 would be cut off, and
            the logits be wrong.
    """
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    # NNCF's own call would also silence handlers that other loggers share.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # NNCF's progress bars go to stderr: stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        made = nncf.quantize(
            model.clone(),
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            # Attention maps in int8 cause most of int8's loss of F1, and are slower than in bf16.
            ignored_scope=nncf.IgnoredScope(
                names=list(float_products), types=["ScaledDotProductAttention"], validate=False
            ),
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                overflow_fix=advanced.OverflowFix.ENABLE
                if weight_bits == 7
                else advanced.OverflowFix.DISABLE,
                smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=0.8),
            ),
        )
    made.set_rt_info("int8", PRECISION)
    made.set_rt_info(str(weight_bits), WEIGHT_BITS)
    return made


def down_projections(model: Any, config: Any) -> list[str]:
    """Names of the matrix products that bring a feed-forward block back to the model's width.

    Their inputs, after the activation, have the widest ranges, so they lose most in int8.

    Args:
        model: see ``converted``.
        config: the configuration of the transformers model.
    """
    wide = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 0)
    return [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() == "MatMul"
        and op.input(1).get_partial_shape().is_static
        # Weights are stored as (out, in).
        and list(op.input(1).get_partial_shape().to_shape())[1:] == [wide]
    ]
