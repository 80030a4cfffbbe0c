"""Towers whose images keep their proportions: SigLIP2's NaFlex models, FG-CLIP2 and EmbeddingGemma 2."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcclip_cli import api
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.inference.encoder import TorchEncoder, load_encoder
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import FgClip2Teacher, TransformersTeacher
from tests.cli.conftest import dcclip
from tests.model.test_preprocess import noise

TEXTS = ["一张照片", "A Photo of 猫", "Ｔ恤 ，！", "a " * 100, "的" * 300]
# Width and height, and the patches that FG-CLIP2's README gives an image of that size at most.
SIZES = [((20, 17), 128), ((300, 200), 256), ((97, 333), 128), ((500, 375), 784), ((640, 480), 1024)]


def fg_clip2(folder: Path, **options: Any) -> Any:
    return FgClip2Teacher(model=str(folder), precision="fp32", trust_remote_code=True, **options).load()


def of_siglip2(folder: Path, weights: Path) -> Any:
    """transformers' own SigLIP2 with the weights of another model whose towers are the same."""
    from transformers import Siglip2Config, Siglip2Model

    from dcclip_cli.core.files import read_json

    config = read_json(folder / "config.json", "")
    parts = {name: config[name] | {"model_type": f"siglip2_{name.replace('config', 'model')}"}
             for name in ("text_config", "vision_config")}  # fmt: skip
    model = Siglip2Model(Siglip2Config(**parts)).eval()
    missing, _ = model.load_state_dict(load_file(weights), strict=False)
    assert not missing
    return model


@torch.no_grad()
def test_fg_clip2_equals_siglip2s_towers_used_as_its_readme_says(hub_teachers: Path, own_modules: Path) -> None:
    from transformers import AutoTokenizer, Siglip2ImageProcessorPil

    folder = hub_teachers / "fgclip2"
    reference = of_siglip2(folder, folder / "model.safetensors")
    towers = fg_clip2(folder)
    processor = Siglip2ImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = [noise(*size) for size, _ in SIZES]
    output = towers.image_features(torch.from_numpy(np.stack([towers.preprocess(image) for image in images])))
    for image, (_, budget), embedding in zip(images, SIZES, output.embedding, strict=True):
        inputs = processor(images=image, max_num_patches=budget, return_tensors="pt")
        expected = reference.get_image_features(**inputs).pooler_output[0]
        torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)
    lower = [text.lower() for text in TEXTS]
    tokens = tokenizer(lower, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    text = towers.text_features(towers.tokenize(TEXTS))
    expected = reference.get_text_features(**tokens)
    assert "attention_mask" not in tokens
    torch.testing.assert_close(text.embedding, expected.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(text.tokens, expected.last_hidden_state, rtol=0, atol=1e-5)


def test_weights_are_those_of_the_file_and_nothing_stays_without_memory_as_by_from_pretrained(
    hub_teachers: Path, own_modules: Path
) -> None:
    towers = fg_clip2(hub_teachers / "fgclip2")
    weights = load_file(hub_teachers / "fgclip2" / "model.safetensors")
    state = towers.model.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)
    again = type(towers.model).from_pretrained(hub_teachers / "fgclip2")
    assert again.text_model.embeddings.mask.is_meta and not towers.model.text_model.embeddings.mask.is_meta


@torch.no_grad()
def test_maps_are_square_and_are_those_of_layers_that_exist(hub_teachers: Path, own_modules: Path) -> None:
    towers = fg_clip2(hub_teachers / "fgclip2")
    pixels = torch.from_numpy(np.stack([towers.preprocess(noise(*size)) for size, _ in SIZES]))
    assert pixels.shape == (5, 1, 1025, 768)
    together = towers.image_features(pixels, layers=(0,))
    assert together.map.shape == together.layer(0).shape == (5, 32, 16, 16)
    with pytest.raises(DcclipError, match="lacks some of the layers 2"):
        towers.image_features(pixels, layers=(2,))


def test_fg_clip2_is_exported_with_its_code_and_the_bundle_keeps_the_proportions_of_images(
    hub_teachers: Path, own_modules: Path, tmp_path: Path
) -> None:
    model = f"hf:{hub_teachers / 'fgclip2'}"
    with pytest.raises(DcclipError, match="requires custom code"):
        api.export(model=model, out=tmp_path / "out")
    refused: list[dict[str, Any]] = [{"format": "immich"}, {"preprocess": "graph"}]
    for options in refused:
        with pytest.raises(DcclipError, match="fgclip2 keeps the aspect ratio of images"):
            api.export(model=model, out=tmp_path / "out", trust_remote_code=True, **options)
    result = api.export(model=model, out=tmp_path / "out", trust_remote_code=True)
    assert result.parity is not None
    assert max(result.parity.image_max_difference, result.parity.text_max_difference) < 1e-5
    reference = TorchEncoder(fg_clip2(hub_teachers / "fgclip2"))
    bundle = OnnxEncoder(result.folder, "cpu")
    images = [noise(*size) for size, _ in SIZES]
    expected, pixels = (np.stack([encoder.preprocess(image) for image in images]) for encoder in (reference, bundle))
    np.testing.assert_allclose(pixels, expected, atol=1e-5)
    for rows in (slice(0, 1), slice(0, 3), slice(0, 5)):  # of at most 128, 256 and 1024 patches
        np.testing.assert_allclose(bundle.encode_pixels(pixels[rows]), reference.encode_pixels(pixels[rows]), atol=1e-5)
    np.testing.assert_allclose(bundle.encode_texts(TEXTS), reference.encode_texts(TEXTS), atol=1e-5)


@torch.no_grad()
def test_siglip2s_naflex_model_equals_transformers(hub_teachers: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model, Siglip2Tokenizer

    folder = tmp_path / "naflex"
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "projection_size": 32}
    shutil.copytree(hub_teachers / "siglip2", folder)
    sizes |= {"intermediate_size": 32, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 700, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    config = Siglip2Config(text_config=text, vision_config=sizes | {"num_patches": 64, "patch_size": 8})
    Siglip2Model(config).save_pretrained(folder)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=64)
    processor.save_pretrained(folder)
    towers: Any = TransformersTeacher(model=str(folder), precision="fp32").load()
    reference = AutoModel.from_pretrained(folder).eval()
    tokenizer = Siglip2Tokenizer.from_pretrained(folder)
    images = [noise(*size) for size, _ in SIZES]
    output = towers.image_features(torch.from_numpy(np.stack([towers.preprocess(image) for image in images])))
    expected = reference.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
    torch.testing.assert_close(output.embedding, expected, rtol=0, atol=1e-5)
    assert output.map.shape == (5, 32, 8, 8)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
    text = towers.text_features(towers.tokenize(TEXTS))
    torch.testing.assert_close(text.embedding, reference.get_text_features(tokens).pooler_output, rtol=0, atol=1e-5)
    parity = api.export(model=f"hf:{folder}", out=tmp_path / "out").parity
    assert parity is not None and max(parity.image_max_difference, parity.text_max_difference) < 1e-5


@pytest.fixture
def gemma_folder(hub_teachers: Path) -> Path:
    if not (hub_teachers / "embeddinggemma2").exists():
        pytest.skip("transformers is too old for EmbeddingGemma 2")
    return hub_teachers / "embeddinggemma2"


@torch.no_grad()
def test_embeddinggemma_2_equals_its_own_processor_and_model_with_its_prompt(gemma_folder: Path) -> None:
    from transformers import AutoModel, AutoProcessor, Gemma4ImageProcessorPil

    folder = gemma_folder
    processor = AutoProcessor.from_pretrained(folder)
    reference = AutoModel.from_pretrained(folder).eval()
    processor.image_processor = Gemma4ImageProcessorPil.from_pretrained(folder)
    towers: Any = TransformersTeacher(model=str(folder), precision="fp32").load()
    assert reference.audio_tower is not None and towers.model.audio_tower is None

    def mean(**inputs: Any) -> Any:
        hidden = reference(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        return hidden, (hidden * mask).sum(1) / mask.sum(1)

    images = [noise(*size) for size, _ in SIZES]
    pixels = torch.from_numpy(np.stack([towers.preprocess(image) for image in images]))
    output = towers.image_features(pixels, layers=(0,))
    assert output.map.shape == (5, 24, 8, 8) and output.layer(0).shape == (5, 32, 8, 8)
    for row, image in enumerate(images):
        inputs = processor(images=image, return_tensors="pt")
        hidden, expected = mean(**inputs)
        torch.testing.assert_close(output.embedding[row], expected[0], rtol=0, atol=1e-5)
        height, width = (int(length) // 3 for length in pixels[row, 0, 0, :2])
        grid = hidden[inputs["input_ids"] == reference.config.image_token_id].T.unflatten(1, (height, width))
        square = torch.nn.functional.interpolate(grid[None], (8, 8), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(output.map[row], square, rtol=0, atol=1e-5)
        alone = towers.image_features(pixels[row : row + 1], layers=(0,))
        torch.testing.assert_close(alone.layer(0)[0], output.layer(0)[row], rtol=0, atol=1e-5)
    texts = [*TEXTS[:3], "a cat on a sofa", "沙发上的猫", "红色的圆"] * 6
    prompted = [f"task: search result | query: {text}" for text in texts]
    _, expected = mean(**processor(text=prompted, return_tensors="pt"))
    for features in (towers.text_features, towers.text_features_by_length):
        torch.testing.assert_close(features(towers.tokenize(texts)).embedding, expected, rtol=0, atol=1e-5)
    encoder = load_encoder(resolve(f"hf:{folder}"), "cpu", "bf16")
    unit = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert ((encoder.encode_texts(texts) * unit).sum(1) > 0.999).all() and encoder.logit_scale == 100


def test_embeddinggemma_2_is_a_teacher_and_what_cannot_be_done_with_it_is_refused(
    gemma_folder: Path, student_section: dict[str, Any], pairs_file: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(gemma_folder, tmp_path / "gemma")
    stage = {"batch_size": 8, "steps": 3, "warmup_steps": 0, "workers": 0, "threads": 1}
    losses = [{"kind": "embedding"}, {"kind": "feature_map"}, {"kind": "token_features"}]
    recipe = {"name": "学生", "teacher": {"kind": "transformers", "model": str(folder)}, "student": student_section}
    recipe |= {"data": {"train": str(pairs_file)}, "distill": {**stage, "losses": losses}}
    (tmp_path / "a.yaml").write_text(json.dumps(recipe), "utf-8")
    dcclip("distill", tmp_path / "a.yaml", "--check")
    trained = api.distill(tmp_path / "a.yaml", out=tmp_path / "run")
    assert load_encoder(resolve(str(trained.model)), "cpu").encode_texts(["猫"]).shape == (1, 16)
    with pytest.raises(DcclipError, match="gemma keeps the aspect ratio of images"):
        api.export(model=f"hf:{folder}", out=tmp_path / "out")
    with pytest.raises(DcclipError, match="is a BPE tokenizer; only Unigram tokenizers can be trimmed"):
        api.trim(f"hf:{folder}", out=tmp_path / "trimmed")
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(DcclipError, match=r"gemma has no config_sentence_transformers\.json"):
        TransformersTeacher(model=str(folder)).load()
