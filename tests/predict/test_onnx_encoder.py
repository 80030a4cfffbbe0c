"""Bundles run by onnxruntime; errors of broken ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.onnx_encoder import Description, OnnxEncoder, _may_overflow
from tests.records import rewrite


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle_folder, tmp_path / "copy")


def test_batch_and_padding_do_not_change_a_text(bundle_folder: Path) -> None:
    bundle = OnnxEncoder(bundle_folder, "cpu")
    texts = ["红色的圆", "a red circle", "一张很长很长很长很长的图片 of a moon " * 9]
    together = bundle.encode_texts(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(bundle.encode_texts([text])[0], row, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_white_space_in_a_text_does_not_matter(bundle_folder: Path) -> None:
    rows = OnnxEncoder(bundle_folder, "cpu").encode_texts(["red circle", " red \n circle ", "红 圆", "红\u3000圆"])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], rows[3])


def _set(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite(folder, **{key: value})

    return change


def _truncate(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        rewrite(folder)

    return change


def _swap(folder: Path) -> None:
    (folder / "image.onnx").rename(folder / "other")
    (folder / "text.onnx").rename(folder / "image.onnx")
    (folder / "other").rename(folder / "text.onnx")
    rewrite(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / "text.onnx").unlink(), r"has no text.onnx \(found: README.md, config.json, "),
        (_truncate("image.onnx"), r"image.onnx cannot be loaded"),
        (_swap, r"image.onnx does not turn pixel_values into image_embeds"),
        (_truncate("tokenizer.json"), r"tokenizer.json is not the tokenizer of this bundle"),
        (_truncate("dcclip.json"), r"dcclip.json is not JSON"),
        (_set("kind", "model"), r"describes a model, not a bundle"),
        (_set("logit_scale", "big"), r"dcclip.json: logit_scale: input should be a valid number \(got 'big'\)"),
        (_set("preprocessing", {"size": [3, 4]}), r"preprocessing: size: only square inputs"),
    ],
)
def test_a_broken_bundle_says_what_is_wrong(copy: Path, change: Callable[[Path], None], complaint: str) -> None:
    change(copy)
    with pytest.raises(DcclipError, match=complaint):
        OnnxEncoder(copy, "cpu")


@pytest.mark.parametrize(
    ("vnni", "about", "expected"),
    [
        (False, {"precision": "int8", "parity": {"agreement": 1.0}}, True),
        (False, {"precision": "int8", "parity": None}, True),
        (False, {"precision": "int8", "parity": {"int8_largest_pair_sum": 32640}}, False),
        (False, {"precision": "fp32", "parity": {}}, False),
        (True, {"precision": "int8", "parity": {}}, False),
        (None, {"precision": "int8", "parity": {}}, False),
    ],
)
def test_int8_bundles_of_versions_that_did_not_bound_sums_are_computed_exactly_without_vnni(
    vnni: bool | None, about: dict[str, Any], expected: bool, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.predict.onnx_encoder.has_vnni", lambda: vnni)
    whole = json.loads((bundle_folder / "dcclip.json").read_text("utf-8")) | about
    assert _may_overflow(Description.read(whole)) is expected
