"""Predictions of a loaded model, by the command's function and the Python API, the same for every form of a model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli import load
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import footprint, load_encoder
from dcclip_cli.predict.model import Prediction, predict
from dcclip_cli.predict.zero_shot import Labels

LABELS = ["红色的圆", "blue square", "月亮", "a cross", "一张绿色三角形的图片"]


def predictions(model: str | Path, images: list[Path], **options: Any) -> list[Prediction]:
    encoder = load_encoder(resolve(str(model)), "cpu")
    return list(predict(encoder, Labels(encoder, LABELS), images, **options))


@pytest.mark.parametrize("model", ["bundle_folder", "model_folder", "altclip_folder"])
def test_the_python_api_predicts_what_the_command_does(
    model: str, pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    reference = f"hf:{folder}" if model == "altclip_folder" else str(folder)
    loaded = load(reference, device="cpu")
    expected = [dict(one.labels) for one in predictions(reference, pictures)]
    for found, wanted in zip(loaded.predict(list(pictures), LABELS), expected, strict=True):
        assert list(found) == list(wanted) and found == pytest.approx(wanted, abs=1e-5)
    one = loaded.predict(str(pictures[0]), LABELS, top_k=2)
    assert list(one) == list(expected[0])[:2]


@pytest.mark.parametrize("teacher", ["altclip_folder", "chinese_clip_folder", "siglip_folder"])
def test_a_transformers_model_embeds_as_transformers_does(
    teacher: str, pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    folder = request.getfixturevalue(teacher)
    encoder = load_encoder(resolve(f"hf:{folder}"), "cpu")
    model = AutoModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=decode(pictures[0]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    found = encoder.encode_pixels(encoder.preprocess(decode(pictures[0]))[None])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    [prediction] = predictions(f"hf:{folder}", pictures[:1])
    assert {label for label, _ in prediction.labels} == set(LABELS)


def test_a_broken_image_does_not_stop_the_others(bundle_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    broken, absent = tmp_path / "坏.png", tmp_path / "none.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    found = predictions(bundle_folder, [broken, pictures[0], absent])
    assert [prediction.error is None for prediction in found] == [False, True, False]
    assert "坏.png is not a readable image" in str(found[0].error)
    assert "none.jpg does not exist" in str(found[2].error)
    [alone] = predictions(bundle_folder, [pictures[0]])
    assert found[1].labels == alone.labels


def test_a_missing_device_is_refused(bundle_folder: Path, model_folder: Path) -> None:
    for folder in (bundle_folder, model_folder):
        with pytest.raises(DcclipError, match="finds no device mps"):
            load_encoder(resolve(str(folder)), "mps")


def test_a_footprint_counts_parameters_and_bytes(bundle_folder: Path, model_folder: Path) -> None:
    by_onnx = footprint(load_encoder(resolve(str(bundle_folder))), budget_s=0)
    by_torch = footprint(load_encoder(resolve(str(model_folder)), "cpu"), budget_s=0)
    assert by_onnx.parameters == by_torch.parameters == by_torch.size_bytes / 4
    assert by_onnx.size_bytes == sum((bundle_folder / f"{tower}.onnx").stat().st_size for tower in ("image", "text"))
    assert by_onnx.image_ms > 0 and by_torch.text_ms > 0


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
    runs = [(printed(code, str(bundle_folder), str(pictures[0])), printed(imports)) for _ in range(3)]
    assert {len(run) for run, _ in runs} == {1}, f"imported: {runs[0][0][1:]}"
    assert min(float(run[0]) for run, _ in runs) < 3 * min(float(least[0]) for _, least in runs)


def test_an_image_may_be_a_path_its_bytes_or_a_pillow_image(bundle_folder: Path, pictures: list[Path]) -> None:
    model = load(bundle_folder)
    path, content = pictures[0], pictures[0].read_bytes()
    with Image.open(path) as image:
        rows = model.embed_images([path, str(path), content, image])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 4, axis=0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_an_image_that_cannot_be_read_is_an_error_with_a_hint(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match=r"无\.png does not exist") as error:
        load(bundle_folder).predict(tmp_path / "无.png", LABELS)
    assert error.value.hint == "check the path"
    with pytest.raises(DcclipError, match="is not a directory"):
        load(tmp_path / "nothing")
