"""Evens out the inputs of an ONNX file's matrix products, and rounds their weights; see ``easing``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.export import easing

Index = NDArray[np.int64]
Feed = Mapping[str, NDArray[np.int64]]
"""Inputs of a model by name, ``(1, tokens)`` each."""
_MOST_BYTES = 300_000_000
"""Of the inputs of all products that are kept: a large model is calibrated with fewer windows."""
FLOAT = "_massive/MatMul"
"""Ending of the names of products that ``ease`` adds, which stay in float."""
_TRIED_WINDOWS, _EVERY = 12, 3
"""Windows, and one in how many of their tokens, on which factors are compared."""


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix products of one input."""

    source: str
    """Name of the input."""
    nodes: tuple[Any, ...]


def ease(
    model: Any, feeds: Sequence[Feed], float_products: Collection[str], levels: int
) -> dict[str, easing.Int8]:
    """Change a model in place so that it loses less in int8; what it computes in float stays as it is.

    What a few massive channels of an input contribute is computed in float (``easing.massive``). Where it is
    worth it, the other inputs of products are divided by factors, which their weights are multiplied with.
    That is one more multiplication of every input: some percent of the time of an int8 product.

    Args:
        model: an ``onnx.ModelProto`` in float.
        feeds: inputs that stand for what the model will read.
        float_products: names of products that stay in float.
        levels: largest integer that a weight may take.

    Returns:
        the integers of the weights, ``(I, O)``, by name of the weights.
    """
    import onnx

    graph = model.graph
    arrays = {each.name: each for each in graph.initializer if len(each.dims) == 2}
    products = _products(graph, arrays, float_products)
    inputs = _inputs(model, [each.source for each in products], feeds)
    whole: dict[str, easing.Int8] = {}
    for product in products:
        samples = inputs.pop(product.source)
        weights = [onnx.numpy_helper.to_array(arrays[node.input[1]]) for node in product.nodes]
        massive = easing.massive(samples)
        if len(massive):
            _compute_in_float(graph, product, massive, weights)
            samples, weights = easing.without(massive, samples, weights)
        s = easing.factors(
            [each[::_EVERY] for each in samples[:: max(1, len(samples) // _TRIED_WINDOWS)]], weights, levels
        )
        together = np.concatenate(samples)
        squares = together.T @ together
        if s is not None:
            weights = [weight * s[:, None] for weight in weights]
            squares = squares / np.outer(s, s)
        if s is not None or len(massive):
            divisor = np.ones(len(squares), np.float32) if s is None else s
            _divide(graph, product, np.where(np.isin(np.arange(len(divisor)), massive), np.inf, divisor))
        for node, weight in zip(product.nodes, weights, strict=True):
            name = node.input[1]
            arrays[name].CopyFrom(onnx.numpy_helper.from_array(weight, name))
            whole[name] = easing.rounded(weight, easing.steps(weight, levels), squares, levels)
    return whole


def _products(graph: Any, arrays: Mapping[str, Any], float_products: Collection[str]) -> list[Product]:
    """Products with constant weights that no other product uses, together where their input is the same."""
    used = Counter(name for node in graph.node for name in node.input)
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays and node.name not in float_products:
            found.setdefault(node.input[0], []).append(node)
    return [
        Product(source, tuple(nodes))
        for source, nodes in found.items()
        if all(used[node.input[1]] == 1 for node in nodes)
    ]


def _inputs(model: Any, names: Sequence[str], feeds: Sequence[Feed]) -> dict[str, list[easing.Float]]:
    """What the products get: for each input an array ``(tokens, I)`` per window, spread over the feeds."""
    import onnx
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, list[easing.Float]] = {name: [] for name in names}
    kept = 0
    # In an order that is spread at any length: the windows of a text stand together.
    for number in np.random.default_rng(0).permutation(len(feeds)):
        for name, array in zip(names, session.run(list(names), dict(feeds[number])), strict=True):
            found[name].append(array.reshape(-1, array.shape[-1]))
            kept += array.nbytes
        if kept > _MOST_BYTES:
            break
    return found


def _compute_in_float(graph: Any, product: Product, channels: Index, weights: Sequence[easing.Float]) -> None:
    """Add to each product of one input what a few channels of it contribute, computed in float.

    Args:
        graph: of the model; the products themselves stay as they are.
        product: which products.
        channels: of the input, ``(K,)``.
        weights: of the products, ``(I, O)`` each.
    """
    import onnx

    name = f"{product.source}_massive"
    graph.initializer.append(onnx.numpy_helper.from_array(channels.astype(np.int64), f"{name}_channels"))
    taken = onnx.helper.make_node(
        "Gather", [product.source, f"{name}_channels"], [name], name=f"{name}/Gather", axis=-1
    )
    graph.node.insert(min(place for place, each in enumerate(graph.node) if each in product.nodes), taken)
    for node, weight in zip(product.nodes, weights, strict=True):
        rows, added = f"{node.name}_massive_weights", f"{node.output[0]}_massive"
        graph.initializer.append(onnx.numpy_helper.from_array(weight[channels].copy(), rows))
        rest = f"{node.output[0]}_rest"
        small = onnx.helper.make_node("MatMul", [name, rows], [added], name=f"{node.name}{FLOAT}")
        total = onnx.helper.make_node("Add", [rest, added], [node.output[0]], name=f"{node.name}_massive/Add")
        node.output[0] = rest
        place = list(graph.node).index(node)
        graph.node.insert(place + 1, small)
        graph.node.insert(place + 2, total)


def _divide(graph: Any, product: Product, s: easing.Float) -> None:
    """Let the products of one input get it divided by ``s``."""
    import onnx

    divisor, quotient = f"{product.source}_factors", f"{product.source}_eased"
    graph.initializer.append(onnx.numpy_helper.from_array((1.0 / s).astype(np.float32), divisor))
    node = onnx.helper.make_node("Mul", [product.source, divisor], [quotient], name=f"{quotient}/Mul")
    places = [place for place, each in enumerate(graph.node) if each in product.nodes]
    for each in product.nodes:
        each.input[0] = quotient
    graph.node.insert(min(places), node)
