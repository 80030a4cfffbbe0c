"""What is wrong with a picture, a label list or a bundle is told in one clear line, with a hint, and exit code 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dcclip_cli.cli.app import app
from tests.images import encode, png_header
from tests.records import rewrite


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("good.png")
    return tmp_path


def dcclip(*arguments: object) -> tuple[int, list[str]]:
    """The exit code, and the lines on stderr but for the one that says which model was taken."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, [line for line in result.stderr.splitlines() if not line.startswith("model: ")]


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    return encode(Image.new("RGB", size, "red"), kind, **options)


UNREADABLE: dict[str, bytes] = {
    "empty.png": b"",
    "text.jpg": "这不是图片".encode(),
    "html.jpg": b"<!DOCTYPE html><html>404</html>",
    "zeros.png": bytes(1000),
    "head.png": b"\x89PNG\r\n\x1a\n",
    "head.jpg": b"\xff\xd8\xff\xe0",
    "head.webp": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "cut.png": picture(size=(64, 64))[:60],
    "cut.jpg": picture("JPEG", (64, 64))[:-300],
    "cut.webp": picture("WEBP", (64, 64))[:40],
    **{f"{kind}.png": picture(kind, (16, 16)) for kind in ("GIF", "BMP", "TIFF", "ICO")},
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "zip.png": b"PK\x03\x04",
    "pickle.png": b"\x80\x04N.",
    "nothing.png": png_header(0, 0),
}
PICTURES: dict[str, tuple[bytes, str]] = {
    **{name: (content, "is not a readable image") for name, content in UNREADABLE.items()},
    "bomb.png": (png_header(60_000, 60_000), "has 3,600,000,000 pixels, more than 64,000,000"),
    "large.png": (png_header(10_000, 10_000), "has 10000 x 10000 pixels, more than 64,000,000"),
    "wide.png": (picture(size=(500, 1)), "one side over 100 times the other"),
    "high.png": (picture(size=(1, 500)), "one side over 100 times the other"),
    "坏的图片.png": (b"broken", "坏的图片.png is not a readable image"),
    "two\nlines.png": (b"broken", "two\\nlines.png is not a readable image"),
    "\033[2Jclear.png": (b"broken", "\\x1b[2Jclear.png is not a readable image"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_broken_image_is_one_line_and_the_next_is_shown(name: str, here: Path, bundle: Path) -> None:
    content, complaint = PICTURES[name]
    (here / name).write_bytes(content)
    code, said = dcclip("predict", name, "good.png", "--labels", "猫,dog", "--model", bundle)
    assert code == 1 and len(said) == 2
    assert said[0].startswith("error: ") and complaint in said[0]
    assert said[1].startswith("hint:  ") and said[1].isprintable()


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        ("none.png", "none.png does not exist"),
        ("folder", "folder contains no images"),
        ("*.tif", "no file matches *.tif"),
        ("good.png/inside.png", "good.png/inside.png"),
        ("x" * 300 + ".png", "is not a readable image"),
    ],
)
def test_a_missing_image_is_one_line(image: str, complaint: str, here: Path, bundle: Path) -> None:
    (here / "folder").mkdir()
    code, said = dcclip("predict", image, "--labels", "猫,dog", "--model", bundle)
    assert code == 1 and said[0].startswith("error: ") and complaint in said[0]
    assert len(said) == 2 and said[1].startswith("hint:  ")


LABELS: dict[str, tuple[list[str], str]] = {
    "none": ([], "no labels given"),
    "empty": (["--labels", ""], "--labels is empty"),
    "blanks": (["--labels", "  "], "no labels given"),
    "commas": (["--labels", "，,，"], "no labels given"),
    "no file": (["--labels-file", "none.txt"], "none.txt does not exist"),
    "a folder": (["--labels-file", "."], ". is a folder"),
    "an empty file": (["--labels-file", "empty.txt"], "no labels given"),
    "GBK": (["--labels-file", "gbk.txt"], "gbk.txt is in GB18030, not in UTF-8"),
    "UTF-16": (["--labels-file", "utf16.txt"], "utf16.txt is in UTF-16, not in UTF-8"),
    "zeros": (["--labels-file", "zeros.txt"], "zeros.txt is not text in UTF-8"),
    "a long line": (["--labels-file", "long.txt"], "long.txt has a line of 100,001 characters, more than 100,000"),
    "a picture": (["--labels-file", "good.png"], "good.png is not text in UTF-8"),
    "no place": (["--labels", "猫", "--template", "一只猫"], "the template '一只猫' has no {} for the label"),
    "wrong place": (["--labels", "猫", "--template", "a {0}"], "the template 'a {0}' has no {} for the label"),
    "a device": (["--labels", "猫", "--device", "mps"], "onnxruntime finds no device mps"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_are_none_are_two_lines(case: str, here: Path, bundle: Path) -> None:
    arguments, complaint = LABELS[case]
    Path("empty.txt").write_text("\n \n")
    Path("gbk.txt").write_bytes("猫\n狗".encode("gbk"))
    Path("utf16.txt").write_bytes("猫\n狗".encode("utf-16"))
    Path("zeros.txt").write_bytes(b"cat\0dog")
    Path("long.txt").write_text("猫" * 100_001, "utf-8")
    code, said = dcclip("predict", "good.png", *arguments, "--model", bundle)
    assert code == 1 and len(said) == 2
    assert said[0] == f"error: {complaint}" or complaint in said[0]
    assert said[0].startswith("error: ") and said[1].startswith("hint:  ")


def say(**values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        rewrite(folder, **values)

    return change


def replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-500])


def other_tokenizer(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    state["model"]["vocab"][-1][0] = "▁别"
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")


def other_width(folder: Path) -> None:
    import onnx
    from onnx import helper

    model = onnx.load(folder / "text.onnx")
    gives = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["whole" if name == gives.name else name for name in node.output]
    one = [
        helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]) for name, value in (("a", 0), ("b", 8), ("c", 1))
    ]
    model.graph.initializer.extend(one)
    model.graph.node.append(helper.make_node("Slice", ["whole", "a", "b", "c"], [gives.name]))
    gives.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, folder / "text.onnx")


def not_finite(folder: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "text.onnx")
    for one in model.graph.initializer:
        value = numpy_helper.to_array(one)
        if value.dtype == np.float32:
            one.CopyFrom(numpy_helper.from_array(np.full_like(value, np.nan), one.name))
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


BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (lambda folder: (folder / "image.onnx").unlink(), "is no model directory of dcclip"),
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
    "huge scale": (say(logit_scale=2**70), "logit_scale: input should be less than or equal to 10000"),
    "infinite bias": (say(logit_bias=float("inf")), "logit_bias: input should be"),
    "no name": (say(name=None), "name: input should be a valid string"),
    "no prompts": (say(prompts=[]), "prompts: input should be a valid dictionary"),
    "prompts without a place": (say(prompts={"zh": ["猫"]}), "prompts for zh must be texts with {}"),
    "prompts of numbers": (say(prompts={"zh": [1]}), "prompts.zh.0: input should be a valid string (got 1)"),
    "no templates": (say(prompts={"zh": []}), "prompts for zh must be texts with {}"),
    "oblong pictures": (
        say(preprocessing={"size": [224, 80]}),
        "preprocessing: size: only square inputs",
    ),
    "another resize": (
        say(preprocessing={"size": 64, "resize_mode": "longest"}),
        "resize_mode should be shortest or squash",
    ),
    "two means": (say(preprocessing={"size": 64, "mean": [0.5, 0.5]}), "mean should be three numbers"),
    "means in words": (say(preprocessing={"size": 64, "mean": "half"}), "mean should be three numbers"),
    "nested means": (
        say(preprocessing={"size": 64, "mean": [[0.5], 0, 0]}),
        "mean should be three numbers",
    ),
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


@pytest.mark.parametrize("case", BUNDLES)
def test_a_bundle_that_is_broken_is_two_lines(case: str, here: Path, bundle: Path) -> None:
    change, complaint = BUNDLES[case]
    copy = shutil.copytree(bundle, here / "包")
    change(copy)
    rewrite(copy)
    code, said = dcclip("predict", "good.png", "--labels", "猫,dog", "--model", copy)
    assert code == 1 and len(said) == 2
    assert said[0].startswith("error: ") and complaint in said[0]
    assert said[1].startswith("hint:  ")


def test_these_are_at_least_sixty() -> None:
    assert len(PICTURES) + len(LABELS) + len(BUNDLES) >= 60
