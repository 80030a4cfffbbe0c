"""Labels get probabilities, the same from every form of a model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import load_encoder
from dcclip_cli.predict.footprint import footprint
from dcclip_cli.predict.model import predict
from dcclip_cli.predict.zero_shot import softmax

LABELS = ["红色的圆", "blue square", "月亮", "a cross", "一张绿色三角形的图片"]


def test_probabilities_are_a_softmax_of_scaled_cosines() -> None:
    images = np.asarray([[1, 0], [0, 1]], np.float32)
    classes = np.asarray([[1, 0], [0.6, 0.8]], np.float32)
    scaled = np.exp([[2 * 1, 2 * 0.6], [2 * 0, 2 * 0.8]])
    expected = scaled / scaled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(images, classes, 2.0), expected, rtol=1e-6)


def test_bundle_and_model_directory_agree(model_folder: Path, bundle_folder: Path, pictures: list[Path]) -> None:
    asked = {"images": pictures, "labels": LABELS, "device": "cpu", "batch_size": 2}
    by_torch = list(predict(model=resolve(str(model_folder)), **asked))  # type: ignore[arg-type]
    by_onnx = list(predict(model=resolve(str(bundle_folder)), **asked))  # type: ignore[arg-type]
    assert [prediction.image for prediction in by_onnx] == pictures
    for one, other in zip(by_torch, by_onnx, strict=True):
        assert one.labels[0][0] == other.labels[0][0]
        assert dict(one.labels) == pytest.approx(dict(other.labels), abs=1e-4)
        assert sum(value for _, value in one.labels) == pytest.approx(1)


@pytest.mark.parametrize("teacher", ["altclip_folder", "chinese_clip_folder", "siglip_folder"])
def test_a_transformers_model_predicts_as_transformers_does(
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
    [prediction] = predict(model=resolve(f"hf:{folder}"), images=pictures[:1], labels=LABELS, device="cpu")
    assert {label for label, _ in prediction.labels} == set(LABELS)


def test_top_k_keeps_the_best_first(bundle_folder: Path, pictures: list[Path]) -> None:
    [every] = predict(model=resolve(str(bundle_folder)), images=pictures[:1], labels=LABELS)
    [two] = predict(model=resolve(str(bundle_folder)), images=pictures[:1], labels=LABELS, top_k=2)
    assert two.labels == every.labels[:2]
    assert [value for _, value in every.labels] == sorted((value for _, value in every.labels), reverse=True)


def test_a_broken_image_does_not_stop_the_others(bundle_folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    broken, absent = tmp_path / "坏.png", tmp_path / "none.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    found = list(predict(model=resolve(str(bundle_folder)), images=[broken, pictures[0], absent], labels=LABELS))
    assert [prediction.error is None for prediction in found] == [False, True, False]
    assert "坏.png is not a readable image" in str(found[0].error)
    assert "none.jpg does not exist" in str(found[2].error)
    [alone] = predict(model=resolve(str(bundle_folder)), images=[pictures[0]], labels=LABELS)
    assert found[1].labels == alone.labels


def test_a_device_that_is_not_there_is_refused(bundle_folder: Path, model_folder: Path) -> None:
    for folder in (bundle_folder, model_folder):
        with pytest.raises(DcclipError, match="finds no device mps"):
            load_encoder(resolve(str(folder)), "mps")


def test_a_footprint_counts_parameters_and_bytes(bundle_folder: Path, model_folder: Path) -> None:
    by_onnx = footprint(load_encoder(resolve(str(bundle_folder))), budget_s=0)
    by_torch = footprint(load_encoder(resolve(str(model_folder)), "cpu"), budget_s=0)
    assert by_onnx.parameters == by_torch.parameters == by_torch.size_bytes / 4
    assert by_onnx.size_bytes == sum((bundle_folder / f"{tower}.onnx").stat().st_size for tower in ("image", "text"))
    assert by_onnx.image_ms > 0 and by_torch.text_ms > 0


def test_a_bundle_predicts_without_torch_in_six_tenths_of_a_second(bundle_folder: Path, pictures: list[Path]) -> None:
    code = """
import sys, time
from pathlib import Path
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.model import predict
[found] = predict(model=resolve(sys.argv[1]), images=[Path(sys.argv[2])], labels=["猫", "dog"])
assert abs(sum(value for _, value in found.labels) - 1) < 1e-6
heavy = {"torch", "transformers", "open_clip", "timm", "pandas", "pyarrow", "pydantic"} & set(sys.modules)
print(time.process_time(), *sorted(heavy))
"""
    command = [sys.executable, "-c", code, str(bundle_folder), str(pictures[0])]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert {len(run) for run in runs} == {1}, f"imported: {runs[0][1:]}"
    # CPU time of the whole process: what the wall clock would show on an idle machine.
    assert min(float(run[0]) for run in runs) <= 0.6
