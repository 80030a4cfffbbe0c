"""Bundles run by onnxruntime; errors of broken ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.onnx_encoder import OnnxEncoder
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


Change = Callable[[Path], object]


def say(**values: Any) -> Change:
    return lambda folder: rewrite(folder, **values)


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def not_finite(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "text.onnx")
    for one in model.graph.initializer:
        value = onnx.numpy_helper.to_array(one)
        if value.dtype == np.float32:
            one.CopyFrom(onnx.numpy_helper.from_array(np.full_like(value, np.nan), one.name))
    onnx.save(model, folder / "text.onnx")


BROKEN: dict[str, tuple[Change, str]] = {
    "no image": (lambda folder: (folder / "image.onnx").unlink(), "image.onnx cannot be loaded"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no description": (lambda folder: (folder / "dcclip.json").unlink(), "has no dcclip.json"),
    "cut text": (cut("text.onnx"), "text.onnx cannot be loaded"),
    "cut tokenizer": (cut("tokenizer.json"), "tokenizer.json"),
    "cut description": (cut("dcclip.json"), "dcclip.json is not JSON"),
    "another kind": (say(kind="openvino"), "describes a openvino, not a bundle"),
    "no scale": (say(logit_scale=None), "dcclip.json: logit_scale: input should be a valid number"),
    "no scale that ranks": (say(logit_scale=-3.0), "logit_scale: input should be greater than 0"),
    "infinite bias": (say(logit_bias=float("inf")), "logit_bias: input should be"),
    "prompts without a place": (say(prompts={"zh": ["猫"]}), "prompts.zh.0: string should match pattern"),
    "oblong pictures": (say(preprocessing={"size": [224, 80]}), "preprocessing: size: only square inputs"),
    "padding past the embedding": (say(padding_id=70_000), "text.onnx cannot be computed"),
    "damaged weights": (not_finite, "returned embeddings that are not finite (NaN or infinite) for 2 of 2 texts"),
    "another size": (say(preprocessing={"size": 48}), "image.onnx cannot be computed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_says_what_is_wrong(copy: Path, case: str) -> None:
    change, complaint = BROKEN[case]
    change(copy)
    rewrite(copy)
    with pytest.raises(DcclipError) as raised:
        bundle = OnnxEncoder(copy, "cpu")
        bundle.encode_texts(["猫", "a dog"])
        bundle.encode_pixels(bundle.preprocess(Image.new("RGB", (8, 8)))[None])
    assert complaint in raised.value.what and raised.value.hint and "\n" not in raised.value.what
