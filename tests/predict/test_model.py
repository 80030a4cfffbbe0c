"""The door for programs gives what the command gives, for every kind of model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcclip_cli import load
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.model import predict

LABELS = ["红色的圆", "blue square", "月亮"]


@pytest.mark.parametrize("model", ["bundle_folder", "model_folder", "altclip_folder"])
def test_a_loaded_model_predicts_what_the_command_does(
    model: str, pictures: list[Path], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    reference = f"hf:{folder}" if model == "altclip_folder" else str(folder)
    loaded = load(reference, device="cpu")
    expected = [dict(one.labels) for one in predict(model=resolve(reference), images=pictures, labels=LABELS)]
    for found, wanted in zip(loaded.predict(list(pictures), LABELS), expected, strict=True):
        assert list(found) == list(wanted) and found == pytest.approx(wanted, abs=1e-5)
    one = loaded.predict(str(pictures[0]), LABELS, top_k=2)
    assert list(one) == list(expected[0])[:2]


def test_a_picture_may_be_a_path_its_bytes_or_an_image(bundle_folder: Path, pictures: list[Path]) -> None:
    model = load(bundle_folder)
    path, content = pictures[0], pictures[0].read_bytes()
    with Image.open(path) as image:
        rows = model.embed_images([path, str(path), content, image])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 4, axis=0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_texts_come_out_in_their_order_whatever_their_length(bundle_folder: Path) -> None:
    model = load(bundle_folder)
    texts = ["一张很长的图片 of a moon", "红", "a red circle"]
    rows = model.embed_texts(texts)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_allclose(model.embed_texts([text])[0], row, atol=1e-6)


def test_several_labels_may_be_right(bundle_folder: Path, pictures: list[Path]) -> None:
    found = load(bundle_folder).predict(pictures[0], LABELS, several=True, templates=["一个{}"])
    assert set(found) == set(LABELS) and all(0 < value < 1 for value in found.values())


def test_what_can_not_be_read_is_an_error_with_a_hint(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match=r"无\.png does not exist") as error:
        load(bundle_folder).predict(tmp_path / "无.png", LABELS)
    assert error.value.hint == "check the path"
    with pytest.raises(DcclipError, match="is no directory"):
        load(tmp_path / "nothing")
