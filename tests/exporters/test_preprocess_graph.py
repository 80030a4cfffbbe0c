"""Preprocessing in the image graph: the same pixels as from Pillow, and predictions from images of any size."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.exporters.formats.onnx import preprocessing_graph
from dcclip_cli.inference.encoder import footprint
from dcclip_cli.inference.model import ImageInput, load
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.preprocess import Preprocessing
from tests.exporters.conftest import Exporting

HALF = (0.5, 0.5, 0.5)
# Width and height: odd margins, one side kept, reduced and enlarged, height first (276 x 600), thin, a single pixel.
SIZES = [(640, 480), (333, 517), (224, 301), (223, 225), (227, 224), (276, 600), (31, 2000), (2000, 31), (5, 3), (1, 1)]


def levels(preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Pixels (3, H, W) as levels from 0 to 255."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (pixels * std + mean) * 255


@pytest.mark.any_cpu
@pytest.mark.parametrize(
    ("preprocessing", "largest"),
    [
        (Preprocessing(), 1),
        (Preprocessing(size=97, mean=HALF, std=HALF, crop="floor"), 2),  # of a thin image, enlarged 7 times
        (Preprocessing(resize_mode="squash"), 1),
        (Preprocessing(size=64, interpolation="bilinear"), 1),
    ],
)
def test_pixels_of_noise_of_any_size_are_those_of_pillow(preprocessing: Preprocessing, largest: int) -> None:
    graph = preprocessing_graph(preprocessing)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(0)
    differences = []
    for width, height in SIZES:
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        [result] = session.run(None, {"rgb_image": image[np.newaxis]})
        expected = preprocessing(Image.fromarray(image))
        assert result.shape == (1, *expected.shape)
        differences.append(np.abs(levels(preprocessing, result[0]) - levels(preprocessing, expected)).round(2).ravel())
    result = np.concatenate(differences)
    assert result.max() <= largest and (result > 0).mean() < 0.004


def test_an_export_with_preprocessing_predicts_from_images_of_any_size(
    export_model: Exporting, photos: list[ImageInput]
) -> None:
    outside = load(export_model(out="outside").folder)
    result = export_model(out="graph", preprocess="graph")
    assert result.parity and result.parity.image_max_difference < 0.01 and result.parity.agreement == 1
    files = {file.name for file in result.folder.iterdir()}
    assert files == {"README.md", "dcclip.json", "image.onnx", "text.onnx", "tokenizer.json"}
    assert json.loads((result.folder / "dcclip.json").read_text())["preprocess"] == "graph"
    graph = load(result.folder)
    labels = ["红色的圆", "a blue square", "绿色", "star"]
    for prediction, expected in zip(graph.predict(photos, labels), outside.predict(photos, labels), strict=True):
        assert prediction == pytest.approx(expected, abs=1e-3)
    again = export_model(model=result.folder, out="again")  # a bundle stays as it is
    assert (again.folder / "image.onnx").read_bytes() == (result.folder / "image.onnx").read_bytes()
    with pytest.raises(DcclipError, match="a bundle whose preprocessing cannot be moved"):
        export_model(model=result.folder, out="back", preprocess="outside")
    assert footprint(OnnxEncoder(result.folder, "cpu"), budget_s=0.01).image_ms > 0.05


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageInput]:
    random = np.random.default_rng(1)
    files = list[ImageInput]()
    for number, size in enumerate([(90, 40), (33, 200), (64, 64), (7, 5)]):
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    return files


def test_the_starter_is_exported_with_preprocessing_and_keeps_the_rest(export_model: Exporting) -> None:
    result = export_model(model="starter", data=None, preprocess="graph")
    record = json.loads((result.folder / "dcclip.json").read_text())
    before = json.loads(Path("dcclip_cli/starter/dcclip.json").read_text())
    same_keys = ("name", "precision", "parameters", "prompts", "logit_scale", "preprocessing", "kept_fp32")
    assert {key: record[key] for key in same_keys} == {key: before[key] for key in same_keys}
    assert record["parity"]["int8_largest_pair_sum"] == before["parity"]["int8_largest_pair_sum"]


def test_a_bundle_stays_in_its_precision(export_model: Exporting) -> None:
    with pytest.raises(DcclipError, match="is a bundle in int8 and cannot be converted to fp16"):
        export_model("starter", precision="fp16")


def test_nearest_pixels_are_refused() -> None:
    with pytest.raises(DcclipError, match="resized by nearest"):
        preprocessing_graph(Preprocessing(interpolation="nearest"))
