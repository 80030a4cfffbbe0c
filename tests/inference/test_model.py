"""Predictions of a loaded model, by the function of the command and the Python API; errors of broken bundles."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli import load
from dcclip_cli.errors import DcclipError
from dcclip_cli.inference.encoder import footprint, load_encoder
from dcclip_cli.inference.model import Prediction, predict
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.inference.zero_shot import Labels
from dcclip_cli.model.reference import resolve
from tests.records import rewrite

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
    for options in ({}, {"multi_label": True}, {"top_k": 2}):
        repeated, once = (loaded.predict(pictures[0], ["猫", "dog", *more], **options) for more in (["猫"], []))
        assert list(repeated) == list(once) and repeated == pytest.approx(once)


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
    runs = [(printed(code, str(bundle_folder), str(pictures[0])), printed(imports)) for _ in range(2)]
    assert {len(run) for run, _ in runs} == {1}, f"imported: {runs[0][0][1:]}"
    assert min(float(run[0]) for run, _ in runs) < 3 * min(float(least[0]) for _, least in runs)


def test_an_image_may_be_a_path_its_bytes_or_a_pillow_image(bundle_folder: Path, pictures: list[Path]) -> None:
    model = load(bundle_folder)
    path, content = pictures[0], pictures[0].read_bytes()
    with Image.open(path) as image:
        rows = model.embed_images([path, str(path), content, image])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 4, axis=0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


# ---- bundles


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


def without_dimensions(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "text.onnx")
    [output] = model.graph.output
    model.graph.node.append(onnx.helper.make_node("ReduceSum", [output.name], ["sum"], keepdims=0))
    output.CopyFrom(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, []))
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
    "a number": (without_dimensions, "text.onnx returned the shape () instead of (B, D)"),
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
