"""Predictions of a loaded model, by the function of the command and the Python API."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcclip_cli import load
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.inference.encoder import footprint, load_encoder
from dcclip_cli.inference.model import predict
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.inference.zero_shot import Labels
from dcclip_cli.model.reference import resolve

LABELS = ["红色的圆", "blue square", "月亮", "a cross", "一张绿色三角形的图片"]


@pytest.mark.parametrize("model", ["bundle_folder", "model_folder", "altclip_folder"])
def test_the_python_api_predicts_what_the_command_does(
    model: str, pictures: list[Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    reference = f"hf:{folder}" if model == "altclip_folder" else os.path.relpath(folder)
    loaded = load(reference, device="cpu")
    encoder = load_encoder(resolve(reference), "cpu")
    expected = [dict(prediction.labels) for prediction in predict(encoder, Labels(encoder, LABELS), pictures)]
    for result, expected_result in zip(loaded.predict(list(pictures), LABELS), expected, strict=True):
        assert list(result) == list(expected_result) and result == pytest.approx(expected_result, abs=1e-5)
    monkeypatch.chdir(tmp_path)  # as another process may be
    in_another_process, next_task = (pickle.loads(pickle.dumps(loaded)) for _ in range(2))
    assert in_another_process is next_task
    np.testing.assert_array_equal(in_another_process.embed_images(pictures), loaded.embed_images(pictures))
    single = loaded.predict(str(pictures[0]), LABELS, top_k=2)
    assert list(single) == list(expected[0])[:2]
    for options in ({}, {"multi_label": True}, {"top_k": 2}):
        repeated, once = (loaded.predict(pictures[0], ["猫", "dog", *extra], **options) for extra in (["猫"], []))
        assert list(repeated) == list(once) and repeated == pytest.approx(once)


def test_a_missing_device_is_refused(bundle_folder: Path, model_folder: Path) -> None:
    for folder in (bundle_folder, model_folder):
        with pytest.raises(DcclipError, match="does not support the device mps"):
            load_encoder(resolve(str(folder)), "mps")


def test_a_footprint_counts_parameters_and_bytes(bundle_folder: Path, model_folder: Path) -> None:
    by_onnx = footprint(load_encoder(resolve(str(bundle_folder))), budget_s=0)
    by_torch = footprint(load_encoder(resolve(str(model_folder)), "cpu"), budget_s=0)
    assert by_onnx.parameters == by_torch.parameters == by_torch.size_bytes / 4
    assert by_onnx.size_bytes == sum((bundle_folder / f"{tower}.onnx").stat().st_size for tower in ("image", "text"))
    assert by_onnx.image_ms > 0 and by_torch.text_ms > 0


def test_a_footprint_does_not_count_the_time_of_other_programs(bundle_folder: Path) -> None:
    class Waiting(OnnxEncoder):
        def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
            time.sleep(0.05)
            return super().encode_texts(texts)

    assert footprint(Waiting(bundle_folder, "cpu"), budget_s=0).text_ms < 25


def test_a_bundle_predicts_without_torch_in_little_more_than_its_imports_take(
    bundle_folder: Path, pictures: list[Path]
) -> None:
    code = """
import sys, time
from dcclip_cli import load
found = load(sys.argv[1]).predict(sys.argv[2], ["猫", "dog"])
assert abs(sum(found.values()) - 1) < 1e-6
heavy = {"torch", "transformers", "open_clip", "timm", "pandas", "pyarrow", "pydantic"} & set(sys.modules)
print(time.process_time(), *sorted(heavy))
"""
    imports = "import time, numpy, onnxruntime, PIL.Image, tokenizers; print(time.process_time())"

    def printed(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    # CPU time of whole processes, side by side: 1.9 times.
    runs = [(printed(code, str(bundle_folder), str(pictures[0])), printed(imports)) for _ in range(2)]
    assert {len(run) for run, _ in runs} == {1}, f"imported: {runs[0][0][1:]}"
    assert min(float(run[0]) for run, _ in runs) < 3 * min(float(least[0]) for _, least in runs)


def test_an_image_may_be_a_path_its_bytes_or_a_pillow_image(bundle_folder: Path, pictures: list[Path]) -> None:
    model = load(bundle_folder)
    path = pictures[0]
    content = pictures[0].read_bytes()
    with Image.open(path) as image:
        rows = model.embed_images([path, str(path), content, image])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 4, axis=0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
