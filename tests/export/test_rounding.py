"""Single numbers of a graph are rounded, by hand on graphs of two or three nodes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from dcclip_cli.export.quantize import Int8Tower, Kept
from dcclip_cli.export.rounding import (
    bytes_of,
    rounded_activations,
    with_rounded_input,
    with_rounded_tables,
    with_rounded_weights,
    without_rounding,
)

WEIGHTS = np.asarray([[1.0, 0.1], [0.33, -0.05]], np.float32)  # columns are output channels


def graph(nodes: list[Any], weights: dict[str, np.ndarray], takes: int = TensorProto.FLOAT) -> Any:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", takes, [None, 2] if takes == TensorProto.FLOAT else [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    checker.check_model(model)
    return model


def run(model: Any, x: np.ndarray) -> np.ndarray:
    checker.check_model(model)
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


def test_weights_are_rounded_to_127ths_of_their_channels_largest() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": WEIGHTS})
    rounded = with_rounded_weights(model, ["product"])
    # 0.33 of 1 is 41.91 -> 42 of 127; -0.05 of 0.1 is -63.5 -> -64 (to even) of 127.
    expected = np.asarray([[1.0, 0.1], [42 / 127, -64 / 127 * 0.1]], np.float32)
    np.testing.assert_allclose(run(rounded, np.eye(2, dtype=np.float32)), expected, rtol=1e-6)
    assert {weight.name for weight in rounded.graph.initializer} == {"w_int8", "w_scale"}
    np.testing.assert_array_equal(run(model, np.eye(2, dtype=np.float32)), WEIGHTS)


def test_a_table_is_rounded_row_by_row() -> None:
    model = graph([helper.make_node("Gather", ["w", "x"], ["y"], "rows")], {"w": WEIGHTS}, TensorProto.INT64)
    rounded = with_rounded_tables(model)
    expected = np.asarray([[1.0, 13 / 127], [0.33, -19 / 127 * 0.33]], np.float32)  # 12.7 -> 13; -19.2 -> -19
    np.testing.assert_allclose(run(rounded, np.asarray([0, 1])), expected, rtol=1e-6)


def test_one_input_is_rounded_in_a_range_found_while_it_runs() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": np.eye(2, dtype=np.float32)})
    x = np.asarray([[0.0, 2.55], [1.004, 0.0]], np.float32)  # 255 steps of 0.01
    np.testing.assert_allclose(run(with_rounded_input(model, "product"), x), [[0, 2.55], [1.0, 0]], atol=1e-6)


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
    assert rounded_activations(model) == ["x", "y_whole"]
    found = run(without_rounding(model, kept), np.asarray([[0.34, 0.26]], np.float32))
    np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_the_most_sensitive_parts_are_kept_first(tmp_path: Path) -> None:
    """Two products side by side; the second one's input has a range a thousand times as wide."""
    from dcclip_cli.export.quantize import Int8Tower, Kept

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
    for kept in (Kept(), Kept(0.5), Kept(1.0)):
        tower.write(tmp_path / "int8.onnx", kept)
        errors.append(float(np.abs(run(onnx.load(tmp_path / "int8.onnx"), x) - exact).max()))
    assert tower._sensitive == ["wide_product", "narrow_product"]
    assert errors[0] > 100 * errors[1] > errors[2] == pytest.approx(0, abs=1e-4)


def test_the_bytes_of_a_graph_are_those_of_its_weights() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": np.eye(2, dtype=np.float32)})
    weight = numpy_helper.from_array(np.zeros((2, 1000), np.float32), "unused")
    before = bytes_of(model)
    model.graph.initializer.append(weight)
    assert bytes_of(model) - before == weight.ByteSize() > 8000


def test_a_tower_too_large_to_try_its_parts_keeps_the_smallest_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.export.quantize._RANKED_BYTES", 0)
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
    tower.write(tmp_path / "int8.onnx", Kept(activations=0.0, weights=0.5))
    kept = {weight.name for weight in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert "last" in kept and not {"wide", "narrow"} & kept
