"""Int8 rounding of graphs of two or three nodes, computed by hand; graphs whose large weights stay in files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from dcclip_cli.exporters import onnx_graph
from dcclip_cli.exporters.onnx_graph import OnnxGraph
from dcclip_cli.exporters.quantize import Int8Tower
from dcclip_cli.exporters.rounding import (
    multiply_adds,
    rounded,
    rounded_activations,
    safe_scales,
    with_rounded_tables,
    with_unshared_biases,
    with_weights,
    without_rounding,
)

WEIGHTS = np.asarray([[1.0, 0.1], [0.33, -0.05]], np.float32)  # columns are output channels


def graph(nodes: list[Any], weights: dict[str, np.ndarray], takes: int = TensorProto.FLOAT) -> Any:
    graph_proto = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", takes, [None, 2] if takes == TensorProto.FLOAT else [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    checker.check_model(model)
    return model


def run(model: Any, x: np.ndarray) -> np.ndarray:
    checker.check_model(model)
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


def in_memory(model: Any) -> OnnxGraph:
    """The graph, whose weights are too small to be in files."""
    return OnnxGraph(model, Path())


def test_two_codes_of_a_channel_add_up_to_128_at_most() -> None:
    # 1.0 + 0.28 = 1.28, so a step is 0.01; -2 and -2 make 4, a step of 4 / 128; 0.5 is 127 steps; nothing.
    values = np.asarray([[1.0, -2.0, 0.5, 0], [0.28, -2.0, -0.1, 0], [-0.5, 1.0, 0.0, 0]], np.float32)
    scales = safe_scales(values, axis=1)
    np.testing.assert_allclose(scales, [0.01, 4 / 128, 0.5 / 127, 1], rtol=1e-5)
    codes = np.round(values / scales)
    assert codes.T.tolist() == [[100, 28, -50], [-64, -64, 32], [127, -25, 0], [0, 0, 0]]
    np.testing.assert_allclose(rounded(values, 1, scales)[:, 2], np.asarray([127, -25, 0]) * 0.5 / 127, rtol=1e-6)


# 255 * (100 + 29) = 32895 along the columns of the first; along its rows 255 * (100 + 27).
def test_a_bias_corrects_the_mean_effect_of_rounding_also_where_two_nodes_share_it() -> None:
    exact = helper.make_node("Gemm", ["x", "v", "b"], ["z"], "exact")
    nodes = [exact, helper.make_node("Gemm", ["z", "w", "b"], ["y"], "product")]
    model = graph(nodes, {"v": np.eye(2, dtype=np.float32), "w": WEIGHTS, "b": np.asarray([1.0, 2.0], np.float32)})
    coarse = np.asarray([[1.0, 0.0], [0.0, 0.0]], np.float32)
    batches = [np.asarray([[0.0, 0.0], [2.0, 2.0]], np.float32)]
    corrected = with_weights(with_unshared_biases(in_memory(model)), [("w", coarse)], batches, Path())
    # Inputs of `product` are (2, 3) in the mean; the weights lose 0.33 and 0.1, -0.05: outputs fall by 0.99, by 0.05.
    np.testing.assert_array_equal(corrected.weights["w"], coarse)
    np.testing.assert_allclose(corrected.weights["b_of_y"], [1.99, 2.05], rtol=1e-6)
    np.testing.assert_array_equal(corrected.weights["b"], [1, 2])


def test_equal_rows_of_a_table_are_stored_once() -> None:
    repeated = np.repeat(WEIGHTS, 3, axis=0)[[0, 3, 1, 4, 2, 5]]
    model = graph([helper.make_node("Gather", ["w", "x"], ["y"], "rows")], {"w": repeated}, TensorProto.INT64)
    rounded = with_rounded_tables(in_memory(model))
    assert rounded.weights["w_int8"].shape == WEIGHTS.shape
    alone = with_rounded_tables(
        in_memory(graph([helper.make_node("Gather", ["w", "x"], ["y"], "rows")], {"w": WEIGHTS}, TensorProto.INT64))
    )
    rows = run(rounded.proto, np.arange(6))
    np.testing.assert_array_equal(rows, run(alone.proto, np.asarray([0, 1, 0, 1, 0, 1])))


@pytest.mark.parametrize(
    ("kept", "expected"), [([], [0.5, 0.5]), (["x"], [0.5, 0.5]), (["x", "y_whole"], [0.34, 0.26])]
)
def test_an_activation_that_is_kept_passes_as_it_is(kept: list[str], expected: list[float]) -> None:
    scales = {"half": np.float32(0.5), "zero": np.uint8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "half", "zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x_codes", "half", "zero"], ["x_rounded"]),
        helper.make_node("Relu", ["x_rounded"], ["y_whole"]),
        helper.make_node("QuantizeLinear", ["y_whole", "half", "zero"], ["y_codes"]),
        helper.make_node("DequantizeLinear", ["y_codes", "half", "zero"], ["y_rounded"]),
        helper.make_node("Identity", ["y_rounded"], ["y"]),
    ]
    model = graph(nodes, {name: np.asarray(value) for name, value in scales.items()})
    assert rounded_activations(in_memory(model)) == ["x", "y_whole"]
    products = run(without_rounding(in_memory(model), kept).proto, np.asarray([[0.34, 0.26]], np.float32))
    np.testing.assert_allclose(products, [expected], atol=1e-6)


def test_the_most_sensitive_parts_are_kept_first(tmp_path: Path) -> None:
    """Two products side by side; the second one's input has a range a thousand times as wide."""
    random = np.random.default_rng(0)
    exact_in_int8 = np.eye(2, dtype=np.float32)
    weights = {"w": exact_in_int8, "v": exact_in_int8, "wide": np.float32(1000)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "narrow_product"),
        helper.make_node("Exp", ["x"], ["wide_x"]),
        helper.make_node("Mul", ["wide_x", "wide"], ["wider_x"]),
        helper.make_node("MatMul", ["wider_x", "v"], ["b"], "wide_product"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    onnx.save(graph(nodes, {name: np.asarray(value) for name, value in weights.items()}), tmp_path / "fp32.onnx")
    x = random.standard_normal((16, 2)).astype(np.float32)
    tower = Int8Tower(tmp_path / "fp32.onnx", [x])
    errors = []
    exact = run(onnx.load(tmp_path / "fp32.onnx"), x)
    for activations in (0.0, 0.5, 1.0):
        tower.write(tmp_path / "int8.onnx", activations)
        errors.append(float(np.abs(run(onnx.load(tmp_path / "int8.onnx"), x) - exact).max()))
    assert tower._sensitive == ["wider_x", "x"]
    assert errors[0] > 100 * errors[1] > errors[2] == pytest.approx(0, abs=1e-4)


def test_a_tower_too_large_to_try_its_parts_keeps_the_smallest_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.exporters.quantize._RANKED_BYTES", 0)
    wide = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    model = graph(
        [
            helper.make_node("MatMul", ["x", "wide"], ["h"], "wide"),
            helper.make_node("MatMul", ["h", "narrow"], ["h2"], "narrow"),
            helper.make_node("MatMul", ["h2", "last"], ["y"], "last"),
        ],
        {"wide": wide, "narrow": wide.T.copy(), "last": WEIGHTS},
    )
    onnx.save(model, tmp_path / "text.onnx")
    tower = Int8Tower(tmp_path / "text.onnx", [np.eye(2, dtype=np.float32)])
    # 36 weights are 36 bytes; `last` takes 12 more in fp32, `wide` and `narrow` 48 each: a half, 18, is room for one.
    tower.write(tmp_path / "int8.onnx", weights=0.5)
    weight_names = {weight.name for weight in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert "last" in weight_names and not {"wide", "narrow"} & weight_names


def convolutions() -> Any:
    """Three convolutions of 4x4 pixels and a head: 16, 16 and 512 multiply-adds, 32 and 2."""
    shapes = {"a": (1, 1, 1, 1), "b": (1, 1, 1, 1), "c": (32, 1, 1, 1)}
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in (shapes | {"bias": (1,)}).items()}
    weights |= {"d": np.full((32, 1), 0.5, np.float32), "e": np.full((1, 2), 0.3, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "a", "bias"], ["h1"], "first"),
        helper.make_node("Relu", ["h1"], ["h2"], "relu"),
        helper.make_node("Conv", ["h2", "b", "bias"], ["h3"], "second"),
        helper.make_node("Conv", ["h3", "c"], ["h4"], "third"),
        helper.make_node("GlobalAveragePool", ["h4"], ["h5"], "pool"),
        helper.make_node("Flatten", ["h5"], ["h6"], "flat"),
        helper.make_node("MatMul", ["h6", "d"], ["h7"], "dense"),
        helper.make_node("Erf", ["h7"], ["h8"], "erf"),
        helper.make_node("MatMul", ["h8", "e"], ["h9"], "last"),
        helper.make_node("Abs", ["h9"], ["y"], "abs"),
    ]
    model = graph(nodes, weights)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1, 4, 4]))
    return model


def test_first_convolutions_and_what_follows_the_first_dense_layer_stay_fp32(tmp_path: Path) -> None:
    model = convolutions()
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    counts = multiply_adds(in_memory(model), nodes, np.ones((1, 1, 4, 4), np.float32))
    assert counts == {"first": 16, "second": 16, "third": 512, "dense": 32, "last": 2}
    onnx.save(model, tmp_path / "fp32.onnx")
    images = np.random.default_rng(0).random((4, 1, 4, 4), np.float32)
    Int8Tower(tmp_path / "fp32.onnx", [images]).write(tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    assert set(rounded_activations(in_memory(model))) == {"h3", "h4", "h5", "h6", "h8"}
    codes = {weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.INT8}
    assert {"c_quantized", "d_quantized", "e_quantized"} <= codes and not {"a_quantized", "b_quantized"} & codes


# ---- large weights in files: the same results and bytes as in memory


SQUARE = {"w": np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32), "v": np.eye(2, dtype=np.float32)}
X = np.asarray([[1.0, 10.0]], np.float32)


def two_products(weights: dict[str, np.ndarray] = SQUARE) -> Any:
    """x @ w @ v"""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "last"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy")
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph_proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    graph_proto.ir_version = 10
    return graph_proto


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight counts as large."""
    monkeypatch.setattr(onnx_graph, "_LARGE", 1)


@pytest.mark.usefixtures("in_files")
def test_a_graph_over_the_limit_is_saved_with_its_weights_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 31)
    (tmp_path / "work").mkdir()
    onnx.save(two_products(), tmp_path / "work/graph.onnx")
    OnnxGraph.load(tmp_path / "work/graph.onnx").save(tmp_path / "saved.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"work", "saved.onnx", "saved.onnx.data"}
    saved = onnx.load(tmp_path / "saved.onnx")
    for weight in saved.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(weight), SQUARE[weight.name])


@pytest.mark.parametrize("share", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_int8_gives_the_same_bytes_with_weights_in_files(
    share: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((2, 2)).astype(np.float32) for name in "wv"}
    written = {}
    for large in (1, 1 << 20):
        monkeypatch.setattr(onnx_graph, "_LARGE", large)
        folder = tmp_path / str(large)
        folder.mkdir()
        onnx.save(two_products(weights), folder / "fp32.onnx")
        Int8Tower(folder / "fp32.onnx", [X, -X]).write(folder / "int8.onnx", *share)
        written[large] = (folder / "int8.onnx").read_bytes()
        assert {file.suffix for file in folder.iterdir()} == ({".onnx", ".bin"} if large == 1 else {".onnx"})
    assert written[1] == written[1 << 20]
