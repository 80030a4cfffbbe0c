"""Graphs whose large weights stay in files compute the same and are saved with the same bytes as those in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dcclip_cli.exporters import onnx_graph
from dcclip_cli.exporters.onnx_graph import OnnxGraph
from dcclip_cli.exporters.quantize import Int8Tower

WEIGHTS = {"w": np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32), "v": np.eye(2, dtype=np.float32)}
X = np.asarray([[1.0, 10.0]], np.float32)


def model(weights: dict[str, np.ndarray] = WEIGHTS) -> Any:
    """x @ w @ v"""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "last"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy")
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    made.ir_version = 10
    return made


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight counts as large."""
    monkeypatch.setattr(onnx_graph, "_LARGE", 1)


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize("external", [True, False])
def test_large_weights_stay_in_files_and_are_saved_as_they_were(external: bool, tmp_path: Path) -> None:
    whole, file = model().SerializeToString(), tmp_path / "graph.onnx"
    onnx.save(model(), file, save_as_external_data=external, location="graph.data", size_threshold=0)
    graph = OnnxGraph.load(file)
    assert not any(weight.raw_data for weight in graph.proto.graph.initializer) and graph.size_bytes == 32
    assert isinstance(graph.weights["w"], np.memmap) and list(graph.weights) == ["w", "v"]
    np.testing.assert_array_equal(graph.weights["w"], WEIGHTS["w"])
    np.testing.assert_array_equal(graph.session().run(None, {"x": X})[0], [[31, 42]])
    graph.save(tmp_path / "saved.onnx")
    assert (tmp_path / "saved.onnx").read_bytes() == whole and not (tmp_path / "saved.onnx.data").exists()


@pytest.mark.usefixtures("in_files")
def test_a_graph_over_the_limit_is_saved_with_its_weights_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 31)
    (tmp_path / "work").mkdir()
    onnx.save(model(), tmp_path / "work/graph.onnx")
    OnnxGraph.load(tmp_path / "work/graph.onnx").save(tmp_path / "saved.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"work", "saved.onnx", "saved.onnx.data"}
    saved = onnx.load(tmp_path / "saved.onnx")
    for weight in saved.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(weight), WEIGHTS[weight.name])


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
        onnx.save(model(weights), folder / "fp32.onnx")
        Int8Tower(folder / "fp32.onnx", [X, -X]).write(folder / "int8.onnx", *share)
        written[large] = (folder / "int8.onnx").read_bytes()
        assert {file.suffix for file in folder.iterdir()} == ({".onnx", ".bin"} if large == 1 else {".onnx"})
    assert written[1] == written[1 << 20]
