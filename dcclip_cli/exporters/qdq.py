"""Static int8 quantization (QDQ) by onnxruntime's quantizer, which sees the large weights as one number per channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcclip_cli.exporters.onnx_graph import OnnxGraph

_CODES = "_quantized"  # what the quantizer adds to the name of a weight


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
    **options: Any,
) -> OnnxGraph:
    """The graph with these weights as int8 codes, and activations as uint8 codes in their ranges on `batches`.

    `activations` are those that may be rounded, None for all. `options` are those of onnxruntime's QDQQuantizer; by
    default it quantizes all operators that it knows.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
    from onnxruntime.quantization.quant_utils import add_infer_metadata
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    proto = onnx.shape_inference.infer_shapes(graph.proto)
    add_infer_metadata(proto)  # otherwise the quantizer infers the shapes again, with the weights below
    names = _floats(proto) if activations is None else list(activations)
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
    every_operator = [*QLinearOpsRegistry, *QDQRegistry]
    quantizer = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,  # the default is QInt8, which VNNI instructions do not take
        tensors_range=ranges,
        nodes_to_quantize=options.get("nodes_to_quantize", []),
        nodes_to_exclude=options.get("nodes_to_exclude", []),
        op_types_to_quantize=options.get("op_types_to_quantize", every_operator),
        extra_options={"TensorQuantOverrides": overrides, **options.get("extra_options", {})},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return _with_codes(OnnxGraph(quantizer.model.model, graph.folder), values, weights)


def _with_codes(graph: OnnxGraph, values: Mapping[str, np.ndarray], weights: Mapping[str, Channels]) -> OnnxGraph:
    """The quantizer's graph with the codes of whole weights, in the scales that the quantizer chose."""
    made = graph.weights
    for weight in graph.proto.graph.initializer:
        name = weight.name.removesuffix(_CODES)
        if weight.name in weights:  # a node that is not quantized takes it, too
            weight.CopyFrom(graph.stored(name, values[name]))
        elif name in weights:
            spread = [-1 if axis == weights[name].axis else 1 for axis in range(values[name].ndim)]
            codes = np.round(values[name] / made[f"{name}_scale"].reshape(spread))
            weight.CopyFrom(graph.stored(weight.name, np.clip(codes, -127, 127).astype(np.int8)))
    return graph


def _floats(proto: Any) -> list[str]:
    """All tensors of a graph that are float and no weights."""
    from onnx import TensorProto

    known = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    floats = {one.name for one in known if one.type.tensor_type.elem_type == TensorProto.FLOAT}
    computed = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    return sorted(floats & computed - {weight.name for weight in proto.graph.initializer})


def _ranges(
    graph: OnnxGraph, names: Sequence[str], batches: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor -> its smallest and its largest value on all batches, both (1,)."""
    import onnxruntime
    from onnx import TensorProto, helper

    probe, reductions = graph.copy(), ("ReduceMin", "ReduceMax")
    outputs = [f"{name}_{reduction}" for name in names for reduction in reductions]
    for name in names:
        for kind in reductions:
            probe.proto.graph.node.append(
                helper.make_node(kind, [name], [f"{name}_{kind}"], f"{name}_{kind}", keepdims=0)
            )
    probe.proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = probe.session(options)
    takes = session.get_inputs()[0].name
    found = np.asarray([session.run(outputs, {takes: batch}) for batch in batches], np.float32)  # (batches, 2 * names)
    lowest, highest = np.nanmin(found[:, ::2], axis=0), np.nanmax(found[:, 1::2], axis=0)
    return {name: (lowest[[index]], highest[[index]]) for index, name in enumerate(names)}
