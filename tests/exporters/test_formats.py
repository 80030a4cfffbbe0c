"""Every format gives the model's results in its own runtime; a missing package is named with its command."""

import json
import platform
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer

from dcclip_cli import api
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import read_json
from dcclip_cli.exporters.export import FORMATS
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.model import load
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.tokenizer import load_tokenizer
from dcclip_cli.photos.files import embed
from dcclip_cli.photos.index import open_index
from tests.exporters.conftest import Exporting, student

ROOT = Path(__file__).parents[2]
TEXTS = ["红色的圆", "a blue moon", "一张很长的图片 of a green triangle"]


def test_immich_finds_its_files_and_names(model_folder: Path, export_model: Exporting) -> None:
    import onnxruntime

    result = export_model(format="immich")
    assert result.parity is not None and result.parity.text_max_difference < 1e-5
    # What immich does (immich_ml/models/clip/textual.py and visual.py), in its order.
    config = json.loads((result.folder / "config.json").read_text("utf-8"))
    pad = json.loads((result.folder / "textual/tokenizer_config.json").read_text("utf-8"))["pad_token"]
    tokenizer = Tokenizer.from_file(str(result.folder / "textual/tokenizer.json"))
    length = config["text_cfg"]["context_length"]
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    session = onnxruntime.InferenceSession(str(result.folder / "textual/model.onnx"))
    rows = [session.run(None, {"text": np.array([tokenizer.encode(text).ids], np.int32)})[0][0] for text in TEXTS]
    expected = load_encoder(resolve(str(model_folder)), "cpu")
    np.testing.assert_allclose(rows, expected.encode_texts(TEXTS), atol=1e-5)
    settings = json.loads((result.folder / "visual/preprocess_cfg.json").read_text("utf-8"))
    assert settings == json.loads(json.dumps(dict(expected.preprocessing)))
    image = Image.new("RGB", (80, 50), "green")
    visual = onnxruntime.InferenceSession(str(result.folder / "visual/model.onnx"))
    output = visual.run(None, {"image": expected.preprocess(image)[np.newaxis]})[0]
    np.testing.assert_allclose(output, expected.encode_pixels(expected.preprocess(image)[np.newaxis]), atol=1e-5)
    assert visual.get_outputs()[0].name == "embedding"


def test_a_new_text_tower_searches_the_images_that_another_model_indexed(
    model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "平行.tsv"
    table.write_text("zh\ten\n红色的圆\ta red circle\n蓝色的月亮\ta blue moon\n绿色的树\ta green tree\n", "utf-8")
    sets: dict[str, Any] = {"teacher.model": str(model_folder), "data.texts": str(table)}
    sets |= {"export.parity.min_agreement": 0.5, "student.text": {"vocabulary": {"size": 300}, "width": 32}}
    sets["distill"] = {"steps": 2, "warmup_steps": 0, "texts_per_step": 3}
    api.run(ROOT / "recipes/text-tower.yaml", sets=sets, out=tmp_path / "run", device="cpu")
    before, after = (load_encoder(resolve(str(model)), "cpu") for model in (model_folder, tmp_path / "run"))
    first, second = (open_index(model, pictures[0].parent) for model in (before, after))
    assert (first.embedded, second.embedded) == (len(pictures), 0)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert (tmp_path / "run/export/textual/model.onnx").is_file()


@pytest.mark.parametrize("preprocess", [None, "outside"])
@pytest.mark.parametrize("kind", ["student", "siglip"])
def test_one_graph_gives_pipelines_of_transformers_js_the_logits(
    kind: str, preprocess: str | None, model_folder: Path, siglip_folder: Path, export_model: Exporting
) -> None:
    import onnxruntime

    model = model_folder if kind == "student" else f"hf:{siglip_folder}"
    options = {"preprocess": preprocess} if preprocess else {}
    folder = export_model(model, format="transformers.js", parity={"min_agreement": 0.9}, **options).folder
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    expected = load_encoder(resolve(str(model)), "cpu")
    pixels = expected.preprocess(Image.fromarray(noise))[np.newaxis]
    images = expected.encode_pixels(pixels)
    texts = expected.encode_texts(TEXTS)
    config, processor = (read_json(folder / f"{name}.json", "") for name in ("config", "preprocessor_config"))
    steps = {name for name, on in processor.items() if name.startswith("do_") and on}
    assert ("do_resize" in steps) == (preprocess == "outside") and "do_convert_rgb" in steps
    if not preprocess:  # all that the processor then does
        pixels = noise.transpose(2, 0, 1)[np.newaxis].astype(np.float32)
    tokenizer = load_tokenizer(folder)
    # The only kind whose texts transformers.js pads to the full length.
    length = read_json(folder / "tokenizer_config.json", "")["model_max_length"]
    padding = {"length": length} if config["model_type"] == "siglip" else {}
    tokenizer.enable_padding(pad_id=read_json(folder / "dcclip.json", "")["padding_id"], **padding)
    ids = np.asarray([item.ids for item in tokenizer.encode_batch(TEXTS)], np.int64)
    names = ["logits_per_image", "logits_per_text", "image_embeds", "text_embeds"]
    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"))
    outputs = dict(zip(names, session.run(names, {"pixel_values": pixels, "input_ids": ids}), strict=True))
    np.testing.assert_allclose(outputs["text_embeds"], texts, atol=1e-5)
    np.testing.assert_allclose(outputs["image_embeds"], images, atol=5e-3)
    logits = expected.logit_scale * outputs["image_embeds"] @ texts.T + (expected.logit_bias or 0)
    np.testing.assert_allclose(outputs["logits_per_image"], logits, atol=1e-3)
    np.testing.assert_array_equal(outputs["logits_per_text"], outputs["logits_per_image"].T)


@pytest.mark.parametrize("projection", ["behind the network", "in place of its classifier"])
def test_transformers_loads_a_student_with_its_own_classes(
    projection: str, model_folder: Path, export_model: Exporting, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    if projection == "in place of its classifier":
        model_folder = student(tmp_path / "student", "mobilenetv4_conv_small_050")
    # Random networks embed all images in nearly one point, so that rounding decides which text is the best.
    result = export_model(model_folder, format="transformers", parity={"min_agreement": 0.9})
    assert result.parity is not None and result.parity.agreement > 0.9
    model = AutoModel.from_pretrained(result.folder)
    assert type(model).__name__ == "VisionTextDualEncoderModel" and type(model.text_model).__name__ == "CLIPTextModel"
    tokenizer, processor = (loader.from_pretrained(result.folder) for loader in (AutoTokenizer, AutoImageProcessor))
    expected = load_encoder(resolve(str(model_folder)), "cpu")
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    texts = model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output.detach().numpy()
    np.testing.assert_allclose(_unit(texts), expected.encode_texts(TEXTS), atol=1e-5)
    image = Image.new("RGB", (80, 50), "green")
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    images = model.get_image_features(pixels).pooler_output.detach().numpy()
    np.testing.assert_allclose(_unit(images), expected.encode_pixels(expected.preprocess(image)[None]), atol=1e-5)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(expected.logit_scale)


@pytest.mark.parametrize("kind", ["student", "siglip", "mlp and words as tokens"])
def test_sentence_transformers_embeds_images_and_texts_by_itself(
    kind: str, model_folder: Path, siglip_folder: Path, export_model: Exporting, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    model = {"student": model_folder, "siglip": f"hf:{siglip_folder}"}.get(kind, ROOT / "dcclip_cli/starter/model")
    result = export_model(model, format="sentence-transformers", parity={"min_agreement": 0.9})
    assert result.parity is not None and result.parity.text_max_difference < 1e-5
    loaded = SentenceTransformer(str(result.folder), device="cpu", trust_remote_code=False)
    picture = tmp_path / "图.png"
    Image.new("RGB", (80, 50), "green").save(picture)
    expected = load_encoder(resolve(str(model)), "cpu")
    np.testing.assert_allclose(loaded.encode(TEXTS), expected.encode_texts(TEXTS), atol=1e-5)
    images = expected.encode_pixels(expected.preprocess(Image.open(picture))[np.newaxis])
    np.testing.assert_allclose(loaded.encode([str(picture)]), images, atol=1e-5)
    np.testing.assert_allclose(loaded.encode([Image.open(picture)]), images, atol=1e-5)
    cosines = loaded.similarity(loaded.encode([str(picture)]), loaded.encode(TEXTS))
    np.testing.assert_allclose(cosines, images @ expected.encode_texts(TEXTS).T, atol=1e-5)
    assert loaded.get_sentence_embedding_dimension() == images.shape[1]


def test_sentence_transformers_runs_a_bundle_in_int8_by_the_documented_module() -> None:
    scope = dict[str, Any]()
    exec(snippets()["sentence_transformers"], scope)
    photo = str(ROOT / "recipes/starter/photos/cat.jpg")
    expected = load("starter")
    np.testing.assert_array_equal(scope["model"].encode(TEXTS), expected.embed_texts(TEXTS))
    np.testing.assert_array_equal(scope["model"].encode([photo]), expected.embed_images([photo]))


def test_photographs_that_transformers_crops_otherwise_are_compared_by_their_middle_squares(
    model_folder: Path, export_model: Exporting, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "照片").mkdir()
    for name in "abc":  # 64 x 107 after resizing: an odd difference
        noise = np.random.default_rng(ord(name)).integers(0, 256, (5, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((84, 50)).save(tmp_path / "照片" / f"{name}.png")
    result = export_model(
        data=None, format="transformers", calibration=str(tmp_path / "照片"), parity={"min_agreement": 0.5}
    )
    assert result.parity is not None and result.parity.image_max_difference < 1e-5
    image = Image.open(tmp_path / "照片" / "a.png")
    expected = load_encoder(resolve(str(model_folder)), "cpu")
    pixels = AutoImageProcessor.from_pretrained(result.folder, backend="pil")(image)["pixel_values"][0]
    np.testing.assert_allclose(pixels[:, :, 1:], expected.preprocess(image)[:, :, :-1], atol=1e-6)  # one to the left


def snippets() -> dict[str, str]:
    """The blocks of docs/how-to/runtimes.md by title, which is the package that each needs."""
    page = (ROOT / "docs/how-to/runtimes.md").read_text("utf-8")
    return dict(re.findall(r'^```python title="(\w+)"\n(.*?)^```$', page, re.M | re.S))


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("mnn", "MNN")])
def test_the_documented_code_for_a_runtime_gives_the_models_embeddings(
    format: str, package: str, model_folder: Path, export_model: Exporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, exc_type=ImportError)
    result = export_model(format=format, out="bundle", parity={"min_agreement": 0.9})
    assert result.parity is not None
    assert max(result.parity.image_max_difference, result.parity.text_max_difference) < 1e-5
    monkeypatch.chdir(result.folder.parent)
    Image.open(ROOT / "recipes/starter/photos/cat.jpg").save("cat.jpg")
    code = snippets()
    scope = dict[str, Any]()
    exec(code["input"] + code["golden"] + code[package], scope)
    expected = load(model_folder)
    encoder = load_encoder(resolve(str(model_folder)), "cpu")
    golden = json.loads(Path("golden.json").read_text("utf-8"))
    np.testing.assert_allclose(golden.pop("cat.jpg"), encoder.preprocess(Image.open("cat.jpg")).ravel(), atol=1e-5)
    for text, ids in golden.items():
        tokens = encoder.tokenize([text])[0].tolist()
        assert ids[: len(tokens)] == tokens and set(ids[len(tokens) :]) == {scope["about"]["padding_id"]}
    np.testing.assert_allclose(scope["image"], expected.embed_images(["cat.jpg"]), atol=1e-5)
    np.testing.assert_allclose(scope["texts"], expected.embed_texts(["猫", "dog"]), atol=1e-5)


@pytest.mark.parametrize("package", ["faiss", "qdrant_client", "lancedb", "duckdb", "sqlite_vec"])
def test_the_documented_code_for_a_vector_store_finds_the_nearest_images(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    photos = sorted((ROOT / "recipes/starter/photos").glob("*.jpg"))
    for out in ("photos.npy", "photos.parquet"):
        embed(photos, out=out, model="starter")
    embed(texts=["猫"], out="query.npy", model="starter")
    code = snippets()
    scope = dict[str, Any]()
    exec(code["rows"] + code[package], scope)
    assert scope["best"] == [scope["names"][place] for place in np.argsort(-scope["rows"] @ scope["query"])[:3]]
    assert Path(scope["best"][0]).name == "cat.jpg"


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_projection_with_a_bias_is_not_exported_to_transformers(export_model: Exporting, tmp_path: Path) -> None:
    folder = student(tmp_path / "student", "mobilenetv4_conv_small_050", bias=0.5)
    with pytest.raises(DcclipError, match=r"the image projection of .* is not one matrix without a bias"):
        export_model(folder, data=None, format="transformers")


@pytest.mark.parametrize("name", ["transformers", "sentence-transformers", "onnx"])
def test_the_bias_of_a_student_of_a_sigmoid_loss_is_exported(
    name: str, export_model: Exporting, pictures: list[Path], tmp_path: Path
) -> None:
    if name == "sentence-transformers":
        pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    sigmoid = student(tmp_path / "student", "test_resnet", logit_bias=-1.5)
    folder = export_model(sigmoid, format=name, precision="fp32", parity={"min_agreement": 0}).folder
    models = load(str(sigmoid)), load(str(folder))
    assert [model._encoder.logit_bias for model in models] == [-1.5, -1.5]
    expected, probabilities = (model.predict(pictures[0], ["红色的圆", "cat"], multi_label=True) for model in models)
    assert list(probabilities.values()) == pytest.approx(list(expected.values()), abs=1e-5)
    if name == "transformers":
        (folder / "dcclip.json").unlink()  # with its checksums
        config = read_json(folder / "config.json", "")
        (folder / "config.json").write_text(json.dumps(config | {"logit_bias": "-1.5"}), "utf-8")
        with pytest.raises(DcclipError, match="config\\.json: logit_bias is not a number"):
            load(f"hf:{folder}")


def test_a_format_names_what_it_needs(export_model: Exporting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(FORMATS["executorch"]), "package", "no_such_package")
    with pytest.raises(DcclipError, match="--format executorch needs no_such_package, which is not") as error:
        export_model(format="executorch")
    assert error.value.hint.startswith("pip install executorch, in")
    if platform.libc_ver() >= ("glibc", "2.41") and find_spec("MNN"):
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.rtld.execstack=0")  # as glibc 2.43 without it
        with pytest.raises(DcclipError, match=r"MNN cannot convert image\.onnx: .*executable stack") as error:
            export_model(format="mnn")
        assert error.value.hint.startswith("set GLIBC_TUNABLES=glibc.rtld.execstack=2")


@pytest.mark.usefixtures("downloaded_folder")
def test_mnn_rounds_the_image_towers_weights_and_the_embedding_table(
    export_model: Exporting, model_folder: Path
) -> None:
    pytest.importorskip("MNN", exc_type=ImportError)  # glibc 2.43 refuses its executable stack
    limits = {"min_agreement": 0.5}  # of random networks, which embed all images in nearly one point
    exact, rounded = (export_model(format="mnn", out=kind, precision=kind, parity=limits) for kind in ("fp32", "int8"))
    assert rounded.parity is not None and rounded.parity.int8_largest_pair_sum is None
    assert min(rounded.parity.image_centred_cosine, rounded.parity.text_centred_cosine) > 0.99
    image, text = (
        [(result.folder / name).stat().st_size for result in (exact, rounded)] for name in ("image.mnn", "text.mnn")
    )
    table = load_file(model_folder / "open_clip_model.safetensors")["text.token_embedding.weight"]
    assert image[1] < 0.6 * image[0]
    # Three of a float's four bytes go; a row's scale and offset come in addition.
    assert text[0] - text[1] > 0.6 * 4 * table.numel() and text[1] < 0.97 * text[0]
