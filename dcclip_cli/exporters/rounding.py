"""Int8 rounding of ONNX graphs (QDQ): scales that do not overflow, quantizing, and edits of single
tensors.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.exporters.onnx_graph import OnnxGraph

_INT8 = 127
_PAIR = 128  # largest sum of two weights
_ROWS = 8192  # of a table, rounded at a time
_CODES = "_quantized"  # what onnxruntime's quantizer adds to the name of a weight


def multiply_adds(graph: OnnxGraph, nodes: Sequence[Any], batch: np.ndarray) -> dict[str, int]:
    """Node name -> its multiply-adds for an input, for each of these weighted nodes."""
    [outputs] = _outputs(graph, [node.output[0] for node in nodes], [batch])
    weights = graph.weights
    counts = {}
    for node, output in zip(nodes, outputs, strict=True):
        weight = weights[node.input[1]]
        counts[node.name] = (
            weight.size * output.size // weight.shape[output_axis(node, weight.ndim)]
        )
    return counts


def _outputs(
    graph: OnnxGraph, names: Sequence[str], batches: Sequence[np.ndarray], options: Any = None
) -> list[list[np.ndarray]]:
    from onnx import TensorProto, helper

    probe = graph.copy()
    del probe.proto.graph.output[:]
    probe.proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = probe.session(options)
    takes = session.get_inputs()[0].name
    return [session.run(names, {takes: batch}) for batch in batches]


def rounded_activations(graph: OnnxGraph) -> list[str]:
    weights = {weight.name for weight in graph.proto.graph.initializer}
    inputs = [node.input[0] for node in graph.proto.graph.node if node.op_type == "QuantizeLinear"]
    return [name for name in inputs if name not in weights]


def without_rounding(
    graph: OnnxGraph, names: Collection[str], originals: Sequence[Any] = ()
) -> OnnxGraph:
    """A QDQ graph in which the activations `names` are not rounded, and the weights `originals`
    replace their codes.

    The inputs of nodes with such a weight are not rounded either: onnxruntime would otherwise
    round the fp32 weights itself, with one scale for all channels. `originals` are TensorProtos,
    whose files are under the graph's folder.
    """
    copy = graph.copy()
    weights = {weight.name for weight in originals}
    nodes = copy.proto.graph.node
    activations = _before_rounding(copy)
    constants = {
        node.output[0]: node.input[0].removesuffix(_CODES)
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0].removesuffix(_CODES) in weights
    }
    passed = {rounded: name for rounded, name in activations.items() if name in names}
    for node in nodes:
        replaced = {**activations, **constants} if set(node.input) & set(constants) else passed
        node.input[:] = [replaced.get(name, name) for name in node.input]
    for node in [node for node in nodes if node.output[0] in constants]:
        nodes.remove(node)  # the output of a bias has the bias's own name
    copy.proto.graph.initializer.extend(originals)
    return _without_unused(copy)


def rounded_only_for(graph: OnnxGraph, nodes: Collection[str]) -> OnnxGraph:
    """A QDQ graph in which only these nodes take rounded inputs."""
    activations = _before_rounding(graph)
    for node in graph.proto.graph.node:
        if node.name not in nodes:
            node.input[:] = [activations.get(name, name) for name in node.input]
    return graph


def _before_rounding(graph: OnnxGraph) -> dict[str, str]:
    """Rounded activation -> the tensor before rounding, by name."""
    nodes = graph.proto.graph.node
    codes = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return {
        node.output[0]: codes[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in codes
    }


def with_rounded_tables(graph: OnnxGraph) -> OnnxGraph:
    """A graph with int8 embedding tables, one scale per row; only the rows that are looked up are
    computed.
    """
    from onnx import TensorProto, helper

    copy = graph.copy()
    nodes = []
    tables = {
        weight.name
        for weight in graph.proto.graph.initializer
        if len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT
    }
    for node in copy.proto.graph.node:
        by_row = not any(attribute.name == "axis" and attribute.i for attribute in node.attribute)
        if node.op_type != "Gather" or node.input[0] not in tables or not by_row:
            nodes.append(node)
            continue
        (table, ids) = node.input
        [output] = node.output
        weight = graph.weights[table]
        codes = np.empty(weight.shape, np.int8)
        scale = np.empty((len(weight), 1), np.float32)
        for start in range(0, len(weight), _ROWS):
            part = np.asarray(weight[start : start + _ROWS])
            largest = np.abs(part).max(axis=1, keepdims=True)
            part_scale = np.where(largest > 0, largest / _INT8, 1).astype(np.float32)
            scale[start : start + _ROWS] = part_scale
            codes[start : start + _ROWS] = np.clip(np.round(part / part_scale), -_INT8, _INT8)
        rows = np.ascontiguousarray(np.concatenate([codes, scale.view(np.int8)], axis=1))
        _, first_rows, row = np.unique(
            rows.view(f"V{rows.shape[1]}").ravel(), return_index=True, return_inverse=True
        )
        if 2 * len(first_rows) <= len(row):  # words of one meaning have one row
            codes = codes[first_rows]
            scale = scale[first_rows]
            copy.add(f"{table}_row", row.astype(np.int32))
            nodes.append(
                helper.make_node(
                    "Gather", [f"{table}_row", ids], [f"{output}_row"], f"{node.name}_row"
                )
            )
            ids = f"{output}_row"
        copy.add(f"{table}_int8", codes)
        copy.add(f"{table}_scale", scale)
        cast = {"name": f"{node.name}_codes", "to": TensorProto.FLOAT}
        nodes += [
            helper.make_node(
                "Gather", [f"{table}_int8", ids], [f"{output}_int8"], f"{node.name}_int8"
            ),
            helper.make_node(
                "Gather", [f"{table}_scale", ids], [f"{output}_scale"], f"{node.name}_scale"
            ),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_codes"], **cast),
            helper.make_node("Mul", [f"{output}_codes", f"{output}_scale"], [output], node.name),
        ]
    del copy.proto.graph.node[:]
    copy.proto.graph.node.extend(nodes)
    return _without_unused(copy)


def safe_scales(values: np.ndarray, axis: int) -> np.ndarray:
    """(C,) The scale of each channel with which no two of its int8 codes add up to more than 128
    or less than -128.

    The AVX2 instruction for uint8 times int8 (vpmaddubsw) adds two products in 16 bits: 255 * 128
    fits, 255 * 129 does not. This is finer than 7 bits, which limit each code to 64.
    """
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)  # (C, K)
    scale = np.maximum(np.abs(rows).max(axis=1) / _INT8, _pairs(rows) / _PAIR)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    while (over := _pairs(np.round(rows / scale[:, np.newaxis])) > _PAIR).any():
        scale[over] *= 1.001
    return scale


def rounded(values: np.ndarray, axis: int, scale: np.ndarray) -> np.ndarray:
    """The nearest values that int8 codes with these scales can represent."""
    spread = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    return (np.round(values / spread) * spread).astype(np.float32)


def with_unshared_biases(graph: OnnxGraph) -> OnnxGraph:
    """A graph in which each convolution and product has a bias of its own: exporters store equal
    tensors once.
    """
    copy = graph.copy()
    weights = graph.weights
    used = set[str]()
    for node in copy.proto.graph.node:
        if len(node.input) > 2 and node.op_type in ("Conv", "Gemm") and node.input[2] in weights:
            bias = node.input[2]
            if bias in used:
                node.input[2] = f"{bias}_of_{node.output[0]}"
                copy.add(node.input[2], weights[bias])
            used.add(bias)
    return copy


def with_weights(
    graph: OnnxGraph,
    weights: Iterable[tuple[str, np.ndarray]],
    batches: Sequence[np.ndarray],
    folder: Path,
) -> OnnxGraph:
    """A graph with other weights, and its biases corrected by their effect on the mean of each
    output channel.

    The weights are taken one at a time; large ones are written to `folder`. The means are measured
    on `batches`, input for the graph, whose nodes share no bias. From Nagel et al. 2019,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.
    """
    from onnx import helper

    copy = graph.copy()
    before = graph.weights
    changed = set()
    protos = {weight.name: weight for weight in copy.proto.graph.initializer}
    for name, values in weights:
        protos[name].CopyFrom(copy.stored(name, values, folder))
        changed.add(name)
    # The means over (B, C, ...) of what the change of a weight adds to the outputs of its node,
    # for each bias (C,).
    probe = graph.copy()
    after = copy.weights
    biases = []
    for node in graph.proto.graph.node:
        if (
            len(node.input) < 3
            or node.op_type not in ("Conv", "Gemm")
            or node.input[1] not in changed
        ):
            continue
        name, bias = node.input[1:3]
        if bias not in before or before[bias].ndim != 1:
            continue
        moved = deepcopy(node)
        mean_axes = [axis for axis in range(before[name].ndim) if axis != 1]
        moved.name = f"{node.name}_moved"
        moved.input[1] = f"{name}_moved"
        moved.output[0] = f"{bias}_moved"
        del moved.input[2]
        mean = helper.make_node(
            "ReduceMean", [moved.output[0], f"{bias}_axes"], [f"{bias}_mean"], keepdims=0
        )
        probe.proto.graph.node.extend([moved, mean])
        probe.add(moved.input[1], after[name] - before[name], folder)
        probe.add(f"{bias}_axes", np.asarray(mean_axes, np.int64))
        biases.append(bias)
    if biases:
        outputs = _outputs(probe, [f"{bias}_mean" for bias in biases], batches)
        for bias, means in zip(biases, zip(*outputs, strict=True), strict=True):
            shift = np.average(means, axis=0, weights=[len(batch) for batch in batches])
            protos[bias].CopyFrom(
                copy.stored(bias, (before[bias] - shift).astype(np.float32), folder)
            )
    return copy


def largest_pair_sum(graph: OnnxGraph) -> int:
    """The largest sum of two uint8 x int8 products; over 32767 it overflows on CPUs that add in 16
    bits.
    """
    largest = 0
    weights = graph.weights
    nodes = graph.proto.graph.node
    dequantizers = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
    for node in nodes:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or not all(
            name in dequantizers for name in node.input[:2]
        ):
            continue  # computed in fp32
        activation, weight = (dequantizers[name] for name in node.input[:2])
        codes = weights.get(weight.input[0])
        zero = weights.get((*activation.input, "", "")[2])
        if (
            codes is not None
            and codes.dtype == np.int8
            and not (zero is not None and zero.dtype == np.int8)
        ):
            axis = output_axis(node, codes.ndim)
            rows = np.moveaxis(codes.astype(np.int16), axis, 0).reshape(codes.shape[axis], -1)
            largest = max(largest, 255 * int(_pairs(rows).max(initial=0)))
    return largest


def _pairs(rows: np.ndarray) -> np.ndarray:
    """(C,) The sum of the two largest in each row (C, K), or minus that of the two smallest,
    whichever is larger.
    """
    ordered = np.sort(rows, axis=1)
    return np.maximum(
        ordered[:, -2:].clip(min=0).sum(axis=1), -ordered[:, :2].clip(max=0).sum(axis=1)
    )


def output_axis(node: Any, dimensions: int) -> int:
    """The axis of a node's weight that is the output channel."""
    if "Conv" in node.op_type:
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else dimensions - 1


def _without_unused(graph: OnnxGraph) -> OnnxGraph:
    """The graph without nodes and weights that no output depends on."""
    proto = graph.proto.graph
    used = {output.name for output in proto.output}
    used_nodes = []
    for node in reversed(proto.node):
        if used & set(node.output):
            used |= set(node.input)
            used_nodes.append(node)
    weights = [weight for weight in proto.initializer if weight.name in used]
    del proto.node[:], proto.initializer[:]
    proto.node.extend(reversed(used_nodes))
    proto.initializer.extend(weights)
    return graph


# ---- onnxruntime's quantizer, which sees the large weights as one number per channel


@dataclass(frozen=True)
class Channels:
    """The `scales` (C,) of a weight's int8 codes, one for each index of `axis`."""

    axis: int
    scales: np.ndarray


def quantized(
    graph: OnnxGraph,
    weights: Mapping[str, Channels],
    activations: Collection[str] | None,
    batches: Sequence[np.ndarray],
    extra: Mapping[str, Any],
    **options: Any,
) -> OnnxGraph:
    """The graph with these weights as int8 codes, and activations as uint8 codes in their ranges
    on `batches`.

    `activations` are those that may be rounded, None for all. `options` and `extra` options are
    those of onnxruntime's QDQQuantizer; by default it quantizes all operators that it knows.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
    from onnxruntime.quantization.quant_utils import add_infer_metadata
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    proto = onnx.shape_inference.infer_shapes(graph.proto)
    add_infer_metadata(
        proto
    )  # otherwise the quantizer infers the shapes again, with the weights below
    names = list(activations or ())
    if activations is None:  # all float tensors that are no weights
        typed = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
        floats = {
            tensor.name
            for tensor in typed
            if tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        computed = {name for node in proto.graph.node for name in (*node.input, *node.output)}
        names = sorted(floats & computed - {weight.name for weight in proto.graph.initializer})
    ranges = TensorsData(CalibrationMethod.MinMax, _ranges(graph, names, batches))
    values = graph.weights
    for weight in proto.graph.initializer:
        if weight.name in weights:
            channels = weights[weight.name]
            shape = [size if axis == channels.axis else 1 for axis, size in enumerate(weight.dims)]
            weight.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), weight.name))
        elif weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(np.asarray(values[weight.name]), weight.name))
    overrides: dict[str, list[dict[str, Any]]] = {}
    for name, channels in weights.items():
        code = {"axis": channels.axis, "quant_type": QuantType.QInt8, "zero_point": np.int8(0)}
        overrides[name] = [{**code, "scale": scale} for scale in channels.scales]
    lists = {"op_types_to_quantize": [*QLinearOpsRegistry, *QDQRegistry], "nodes_to_quantize": []}
    quantizer = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        # the default is QInt8, which VNNI instructions do not take
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        **{**lists, "nodes_to_exclude": [], **options},
        extra_options={"TensorQuantOverrides": overrides, **extra},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return _with_codes(OnnxGraph(quantizer.model.model, graph.folder), values, weights)


def _with_codes(
    graph: OnnxGraph, values: Mapping[str, np.ndarray], weights: Mapping[str, Channels]
) -> OnnxGraph:
    """The quantizer's graph with the codes of whole weights, in the scales that the quantizer
    chose.
    """
    graph_weights = graph.weights
    for weight in graph.proto.graph.initializer:
        name = weight.name.removesuffix(_CODES)
        if weight.name in weights:  # a node that is not quantized takes it, too
            weight.CopyFrom(graph.stored(name, values[name]))
        elif name in weights:
            spread = [-1 if axis == weights[name].axis else 1 for axis in range(values[name].ndim)]
            codes = np.round(values[name] / graph_weights[f"{name}_scale"].reshape(spread))
            weight.CopyFrom(graph.stored(weight.name, np.clip(codes, -127, 127).astype(np.int8)))
    return graph


def _ranges(
    graph: OnnxGraph, names: Sequence[str], batches: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor -> its smallest and its largest value on all batches, both (1,)."""
    import onnxruntime
    from onnx import helper

    probe = graph.copy()
    outputs = []
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            outputs.append(f"{name}_{kind}")
            probe.proto.graph.node.append(
                helper.make_node(kind, [name], [outputs[-1]], outputs[-1], keepdims=0)
            )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    extremes = np.asarray(
        _outputs(probe, outputs, batches, options), np.float32
    )  # (batches, 2 * names)
    lowest = np.nanmin(extremes[:, ::2], axis=0)
    highest = np.nanmax(extremes[:, 1::2], axis=0)
    return {name: (lowest[[index]], highest[[index]]) for index, name in enumerate(names)}
