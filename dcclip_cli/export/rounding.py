"""Which numbers of an ONNX graph are rounded to int8: single activations and weights, one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

_INT8 = 127


def weighted_nodes(model: Any, kinds: Sequence[str]) -> list[Any]:
    """The nodes of these kinds whose second input is a weight: of convolutions and of dense layers."""
    weights = {weight.name for weight in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in kinds and node.input[1] in weights]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """The graph's weights by name."""
    from onnx import numpy_helper

    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def bytes_of(model: Any) -> int:
    """What a graph's weights take. The graph's own ByteSize fails beyond 2 GiB."""
    return sum(weight.ByteSize() for weight in model.graph.initializer)


def after_last(model: Any, kinds: Sequence[str]) -> list[str]:
    """The names of all nodes behind the last one of these kinds."""
    nodes = list(model.graph.node)  # in topological order, as ONNX asks
    last = max(index for index, node in enumerate(nodes) if node.op_type in kinds)
    return [node.name for node in nodes[last + 1 :]]


def rounded_activations(model: Any) -> list[str]:
    """The names of the tensors, weights left out, that a QDQ graph rounds."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in weights
    ]


def without_rounding(model: Any, names: Collection[str], weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """A QDQ graph in which the activations `names` pass as they are, and `weights` have the values given."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    whole: dict[str, str] = {}  # rounded tensor -> the tensor as it was
    codes = {
        node.output[0]: node.input[0]
        for node in copy.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in names
    }
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in codes:
            whole[node.output[0]] = codes[node.input[0]]
        elif node.op_type == "DequantizeLinear" and node.input[0].removesuffix("_quantized") in (weights or ()):
            whole[node.output[0]] = node.input[0].removesuffix("_quantized")
    for name, values in (weights or {}).items():
        copy.graph.initializer.append(numpy_helper.from_array(values, name))
    kept = []
    for node in copy.graph.node:
        if set(node.output) & (set(codes) | set(whole)):
            continue
        for index, name in enumerate(node.input):
            node.input[index] = whole.get(name, name)
        kept.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return _without_unused_weights(copy)


def with_rounded_weights(model: Any, names: Collection[str]) -> Any:
    """A graph whose nodes `names` keep their weights as int8, a scale for each output channel, and compute in fp32."""
    import onnx
    from onnx import helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {weight.name: weight for weight in copy.graph.initializer}
    done: dict[str, str] = {}
    nodes = []
    for node in copy.graph.node:
        if node.name in names and node.input[1] in weights:
            name = node.input[1]
            if name not in done:
                values = numpy_helper.to_array(weights[name])
                axis = _output_axis(node, values.ndim)
                codes, scale = _rounded(values, axis)
                copy.graph.initializer.append(numpy_helper.from_array(codes, f"{name}_int8"))
                copy.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{name}_int8", f"{name}_scale"],
                        [f"{name}_rounded"],
                        f"{name}_DequantizeLinear",
                        axis=axis,
                    )
                )
                done[name] = f"{name}_rounded"
            node.input[1] = done[name]
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return _without_unused_weights(copy)


def with_rounded_tables(model: Any) -> Any:
    """A graph whose embedding tables are int8, a scale for each row; only the rows that are looked up are computed."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tables = {
        name: values for name, values in weights_of(copy).items() if values.ndim == 2 and values.dtype == np.float32
    }
    nodes = []
    for node in copy.graph.node:
        if (
            node.op_type != "Gather"
            or node.input[0] not in tables
            or any(a.name == "axis" and a.i for a in node.attribute)
        ):
            nodes.append(node)
            continue
        name, output = node.input[0], node.output[0]
        codes, scale = _rounded(tables[name], axis=0)
        copy.graph.initializer.append(numpy_helper.from_array(codes, f"{name}_int8"))
        copy.graph.initializer.append(numpy_helper.from_array(scale[:, np.newaxis], f"{name}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{output}_int8"], f"{node.name}_int8"),
            helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{output}_scale"], f"{node.name}_scale"),
            helper.make_node(
                "Cast", [f"{output}_int8"], [f"{output}_codes"], f"{node.name}_codes", to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [f"{output}_codes", f"{output}_scale"], [output], node.name),
        ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return _without_unused_weights(copy)


def with_rounded_input(model: Any, name: str) -> Any:
    """A graph whose node `name` gets its first input rounded to uint8, in a range found while it runs."""
    import onnx
    from onnx import helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = next(index for index, node in enumerate(copy.graph.node) if node.name == name)
    node = copy.graph.node[index]
    parts = [f"{name}_{part}" for part in ("codes", "scale", "zero")]
    rounding = (
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts),
        helper.make_node("DequantizeLinear", parts, [f"{name}_input"]),
    )
    node.input[0] = f"{name}_input"
    for extra in reversed(rounding):
        copy.graph.node.insert(index, extra)
    return copy


def _rounded(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes, and a scale for each index of an axis."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    largest = np.abs(values).max(axis=others)
    scale = np.where(largest > 0, largest / _INT8, 1).astype(np.float32)
    spread = scale.reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    return np.clip(np.round(values / spread), -_INT8, _INT8).astype(np.int8), scale


def _output_axis(node: Any, dimensions: int) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else dimensions - 1


def _without_unused_weights(model: Any) -> Any:
    used = {name for node in model.graph.node for name in node.input}
    used |= {output.name for output in model.graph.output}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model
