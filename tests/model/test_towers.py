"""Features of the towers are those of open_clip and transformers, for any padding and length."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.precision import Choice
from dcclip_cli.model.students import StudentOptions, build_model, model_config
from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher
from dcclip_cli.model.towers import OpenClipTowers, TextFeatures, Tokens, Towers
from dcclip_cli.train.speed import forward_flops
from tests.teachers import KINDS

pytestmark = pytest.mark.any_cpu

TEXTS = ["红色的圆", "一张三角形的图片", "a picture of a ring", "moon", "黑 black 十字"]


def pixels_for(towers: Towers, count: int = 3) -> torch.Tensor:
    random = np.random.Generator(np.random.Philox(1))
    images = [Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]
    return torch.from_numpy(np.stack([towers.preprocess(image) for image in images]))


@pytest.fixture(scope="module")
def student(model_folder: Path) -> OpenClipTowers:
    return load_model(model_folder)


@pytest.mark.parametrize(
    "timm", ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "mobilenetv4_conv_small_050"]
)
def test_the_image_map_is_that_of_the_timm_network_before_its_head(timm: str) -> None:
    options = StudentOptions.model_validate({"image": {"timm": timm, "size": 64}, "text": {"layers": 1, "width": 32}})
    model = build_model(model_config(options, 16, 300), seed=0).eval()
    towers = OpenClipTowers(
        model, lambda texts: pytest.fail("no text"), lambda image: pytest.fail("no image"), "student", ""
    )
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = towers.image_features(pixels)
        torch.testing.assert_close(features.embedding, model.encode_image(pixels))  # type: ignore[operator]
        trunk: Any = model.visual.trunk  # type: ignore[union-attr]
        # EfficientNet widens its map by one more convolution before pooling, MobileNetV4 after.
        last = trunk.bn2(trunk.conv_head(features.map)) if timm == "test_efficientnet" else features.map
        torch.testing.assert_close(last, trunk.forward_features(pixels))
    assert features.embedding.shape == (2, 16)
    assert features.map.shape[2:] == (2, 2)


def test_a_students_text_embedding_does_not_depend_on_batch_or_padding(student: OpenClipTowers) -> None:
    student = copy.deepcopy(student).double()  # in single precision, sums in another order end up to 1e-6 apart
    tokens = student.tokenize(TEXTS).ids
    padded = torch.nn.functional.pad(tokens, (0, 24 - tokens.shape[1]), value=1)
    with torch.no_grad():
        alone = torch.cat([student.text_features(student.tokenize([text])).embedding for text in TEXTS])
        for ids in (tokens, padded):
            among = student.text_features(Tokens(ids, (ids != 1).long())).embedding
            torch.testing.assert_close(among, alone, rtol=0, atol=1e-12)


def test_a_students_text_tower_is_causal_and_its_mask_counts_the_real_tokens(student: OpenClipTowers) -> None:
    features = student.text_features(student.tokenize(["圆", "红色的圆"]))
    assert features.mask.sum(1).tolist() == [3, 6]
    assert features.tokens.shape == (2, 6, 32)
    with torch.no_grad():
        short = student.text_features(student.tokenize(["红色的圆"])).tokens[0]
        long = student.text_features(student.tokenize(["红色的圆环"])).tokens[0]
    torch.testing.assert_close(long[:5], short[:5], rtol=0, atol=1e-6)  # <s> 红 色 的 圆
    assert not torch.allclose(long[5], short[5], atol=1e-3)  # 环 against </s>


@pytest.mark.parametrize("name", ["model", "altclip", "chinese_clip", "siglip"])
def test_features_by_length_are_those_of_one_batch(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(f"{name}_folder")
    towers: Towers = load_model(folder) if name == "model" else TransformersTeacher(model=str(folder)).load()
    tokens = towers.tokenize([text[: 1 + number % len(text)] for number, text in enumerate(TEXTS * 20)])
    once = towers.text_features
    shapes: list[torch.Size] = []

    def part(tokens: Tokens) -> TextFeatures:
        shapes.append(tokens.ids.shape)
        return once(tokens)

    monkeypatch.setattr(towers, "text_features", part)
    with torch.no_grad():
        expected = once(tokens)
        features = towers.text_features_by_length(tokens)
    torch.testing.assert_close(features.embedding, expected.embedding, rtol=0, atol=1e-5)
    real = tokens.mask.bool()
    torch.testing.assert_close(features.tokens[real], expected.tokens[real], rtol=0, atol=1e-5)
    assert features.tokens.shape == expected.tokens.shape and torch.equal(features.mask, tokens.mask)
    # SigLIP was trained on 64 tokens, padding included.
    assert len(shapes) == (1 if name == "siglip" else 4)
    assert sum(texts * width for texts, width in shapes) <= tokens.ids.numel()


def test_a_gradient_through_parts_is_that_of_all_at_once_and_reaches_both_towers(model_folder: Path) -> None:
    # In double precision: in single, sums over hundreds of tokens, up to 4e3, end 3e-4 apart on some processors.
    gradients = []
    for name in ("text_features", "text_features_by_length"):
        towers = load_model(model_folder).double().train()
        image = towers.image_features(pixels_for(towers).double())
        features = getattr(towers, name)(towers.tokenize([text[: 1 + n % 7] for n, text in enumerate(TEXTS * 20)]))
        loss = features.embedding.square().sum() + (features.tokens * features.mask[:, :, None]).sum()
        (loss + image.embedding.sum() + image.map.sum()).backward()
        gradients.append(dict(towers.named_parameters()))
    for key, weight in gradients[0].items():
        assert (weight.grad is None) == (key == "model.logit_scale"), key
        torch.testing.assert_close(gradients[1][key].grad, weight.grad, rtol=1e-10, atol=1e-10)
    assert towers.takes_any_length
    towers.model.text.cls_emb = torch.nn.Parameter(torch.zeros(32))
    assert not towers.takes_any_length  # a class token is at the end of the full length


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["student", *sorted(KINDS.keys() - {"fgclip2"})])
def test_a_teacher_casts_its_weights_once_and_then_computes_what_autocast_does(
    kind: str, precision: str, hub_teachers: Path, model_folder: Path
) -> None:
    options = OpenClipTeacher if kind in ("student", "openclip-xlmr") else TransformersTeacher
    folder = str(model_folder if kind == "student" else hub_teachers / kind)
    if not Path(folder).exists():
        pytest.skip(f"transformers is too old for {kind}")
    exact, teacher = (
        options.model_validate({"model": folder, "precision": name}).load() for name in ("fp32", precision)
    )
    pixels = pixels_for(exact)
    tokens = exact.tokenize(TEXTS * 20)

    def features(towers: Towers) -> list[torch.Tensor]:
        image = towers.image_features(pixels)
        text = towers.text_features_by_length(tokens)
        return [image.embedding, image.map, text.embedding, text.tokens]

    before = features(exact)
    assert all(map(torch.equal, features(teacher), before))  # also what a student inherits
    with exact.autocast(precision):
        expected = features(exact)
    with teacher.as_teacher():
        assert all(map(torch.equal, features(teacher), expected)) and exact.fingerprint != teacher.fingerprint
    layers = (module for module in teacher.modules() if type(module) in (nn.Linear, nn.Conv2d))
    assert {weight.dtype for layer in layers for weight in layer.parameters()} == {expected[0].dtype}  # nothing to cast
    for rounded, full in zip(expected, before, strict=True):
        assert 0 < (rounded - full).norm() < 0.1 * full.norm()
    if kind in ("student", "altclip", "openclip-xlmr"):  # others look into their input
        assert forward_flops(teacher, pixels, [tokens]) == forward_flops(exact, pixels, [tokens])


def test_attention_is_cast_as_well_where_it_is_not_on_a_cpu(hub_teachers: Path) -> None:
    towers = OpenClipTeacher(model=str(hub_teachers / "openclip-xlmr")).source.blank()
    assert towers is not None
    towers.precision = Choice("bf16", "")
    towers.cast_weights()
    visual: Any = towers.model.visual
    assert isinstance(visual.transformer.resblocks[0].attn, nn.MultiheadAttention)
    uncast = [key for key, value in visual.named_parameters() if value.dtype == torch.float32]
    assert not [key for key in uncast if ".attn." in key or ".mlp." in key] and "ln_pre.weight" in uncast
