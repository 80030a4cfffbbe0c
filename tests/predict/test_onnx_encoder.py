"""Bundles run by onnxruntime; errors of broken ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


Change = Callable[[Path], object]


def say(**values: Any) -> Change:
    return lambda folder: rewrite(folder, **values)


def replace(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def other_tokenizer(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    state["model"]["vocab"][-1][0] = "▁别"
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")


def other_width(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "text.onnx")
    gives = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["whole" if name == gives.name else name for name in node.output]
    for name, value in (("a", 0), ("b", 8), ("c", 1)):
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]))
    model.graph.node.append(onnx.helper.make_node("Slice", ["whole", "a", "b", "c"], [gives.name]))
    gives.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, folder / "text.onnx")


def not_finite(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "text.onnx")
    for one in model.graph.initializer:
        value = onnx.numpy_helper.to_array(one)
        if value.dtype == np.float32:
            one.CopyFrom(onnx.numpy_helper.from_array(np.full_like(value, np.nan), one.name))
    onnx.save(model, folder / "text.onnx")


def no_shape(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "text.onnx")
    gives = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["whole" if name == gives.name else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Squeeze", ["whole"], [gives.name]))  # of an unknown rank
    gives.type.tensor_type.ClearField("shape")
    onnx.save(model, folder / "text.onnx")


BROKEN: dict[str, tuple[Change, str]] = {
    "no image": (lambda folder: (folder / "image.onnx").unlink(), "has no image.onnx (found: "),
    "no text": (lambda folder: (folder / "text.onnx").unlink(), "has no text.onnx (found: "),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json (found: "),
    "no description": (lambda folder: (folder / "dcclip.json").unlink(), "has no dcclip.json (found: "),
    "empty image": (replace("image.onnx", b""), "image.onnx cannot be loaded"),
    "text for image": (replace("image.onnx", b"not a graph"), "image.onnx cannot be loaded"),
    "cut image": (cut("image.onnx"), "image.onnx cannot be loaded"),
    "cut text": (cut("text.onnx"), "text.onnx cannot be loaded"),
    "text twice": (
        lambda folder: shutil.copy(folder / "text.onnx", folder / "image.onnx"),
        "image.onnx does not turn pixel_values into image_embeds",
    ),
    "two models": (other_width, "gives 16 numbers and text.onnx 8"),
    "cut tokenizer": (cut("tokenizer.json"), "is not the tokenizer of this bundle"),
    "other tokenizer": (other_tokenizer, "is not the tokenizer of this bundle"),
    "cut description": (cut("dcclip.json"), "dcclip.json is not JSON"),
    "a list": (replace("dcclip.json", b"[]"), "dcclip.json is not a JSON object"),
    "not UTF-8": (replace("dcclip.json", b"\xff\xfe{}"), "dcclip.json is not JSON"),
    "another kind": (say(kind="openvino"), "describes a openvino, not a bundle"),
    "no kind": (say(kind=None), "dcclip.json has no kind: it is not that of a dcclip bundle"),
    "no scale": (say(logit_scale=None), "dcclip.json: logit_scale: input should be a valid number"),
    "scale in words": (say(logit_scale="100"), "logit_scale: input should be a valid number (got '100')"),
    "scale true": (say(logit_scale=True), "logit_scale: input should be a valid number (got True)"),
    "no scale that ranks": (say(logit_scale=-3.0), "logit_scale: input should be greater than 0"),
    "huge scale": (say(logit_scale=2**70), "logit_scale: input should be less than or equal to 10000"),
    "infinite bias": (say(logit_bias=float("inf")), "logit_bias: input should be"),
    "no name": (say(name=None), "name: input should be a valid string"),
    "no prompts": (say(prompts=[]), "prompts: input should be a valid dictionary"),
    "prompts without a place": (say(prompts={"zh": ["猫"]}), "prompts for zh must be texts with {}"),
    "prompts of numbers": (say(prompts={"zh": [1]}), "prompts.zh.0: input should be a valid string (got 1)"),
    "no templates": (say(prompts={"zh": []}), "prompts for zh must be texts with {}"),
    "oblong pictures": (say(preprocessing={"size": [224, 80]}), "preprocessing: size: only square inputs"),
    "another resize": (
        say(preprocessing={"size": 64, "resize_mode": "longest"}),
        "resize_mode should be shortest or squash",
    ),
    "two means": (say(preprocessing={"size": 64, "mean": [0.5, 0.5]}), "mean should be three numbers"),
    "means in words": (say(preprocessing={"size": 64, "mean": "half"}), "mean should be three numbers"),
    "nested means": (say(preprocessing={"size": 64, "mean": [[0.5], 0, 0]}), "mean should be three numbers"),
    "deviation 0": (say(preprocessing={"size": 64, "std": [0, 1, 1]}), "preprocessing: std should be three numbers"),
    "negative length": (say(context_length=-1), "context_length: input should be greater than or equal to 1 (got -1)"),
    "huge length": (say(context_length=2**63), "context_length: input should be"),
    "negative padding": (say(padding_id=-1), "padding_id: input should be greater than or equal to 0 (got -1)"),
    "huge padding": (say(padding_id=2**64), "padding_id: input should be"),
    "padding past the embedding": (say(padding_id=70_000), "text.onnx cannot be computed"),
    "parity a list": (say(parity=[1]), "parity: input should be a valid dictionary"),
    "deep description": (replace("dcclip.json", b'{"a":' * 10**5), "dcclip.json is not JSON"),
    "no output shape": (no_shape, "text.onnx does not say the shapes of input_ids and text_embeds"),
    "damaged weights": (not_finite, "returned embeddings that are not finite (NaN or infinite) for 2 of 2 texts"),
    "another size": (say(preprocessing={"size": 48}), "takes images of 64 x 64"),
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
