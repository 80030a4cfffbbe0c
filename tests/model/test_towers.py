"""Features of the towers are those of open_clip and transformers, for any padding and length."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.students import StudentOptions, build_model, model_config
from dcclip_cli.model.teachers import AltClipTeacher, TransformersTeacher
from dcclip_cli.model.towers import OpenClipTowers, TextFeatures, Tokens, Towers

pytestmark = pytest.mark.any_cpu

TEXTS = ["红色的圆", "一张三角形的图片", "a picture of a ring", "moon", "黑 black 十字"]


def pixels_for(towers: Towers, count: int = 3) -> torch.Tensor:
    random = np.random.Generator(np.random.Philox(1))
    images = [Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]
    return torch.from_numpy(np.stack([towers.preprocess(image) for image in images]))


@pytest.fixture(scope="module")
def student(model_folder: Path) -> OpenClipTowers:
    return load_model(model_folder)


# ---- open_clip


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


# ---- by length


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
        expected, features = once(tokens), towers.text_features_by_length(tokens)
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


# ---- transformers


def test_bf16_changes_a_teachers_numbers_only_a_little_and_only_when_it_teaches(altclip_folder: Path) -> None:
    exact, coarse = (AltClipTeacher(model=str(altclip_folder), precision=name).load() for name in ("fp32", "bf16"))
    pixels = pixels_for(exact)

    def embed(towers: Towers, context: Callable[[], object]) -> torch.Tensor:
        with context():  # type: ignore[attr-defined]
            return towers.image_features(pixels).embedding.float()

    assert torch.equal(embed(coarse, torch.no_grad), embed(exact, exact.as_teacher))
    difference = embed(coarse, coarse.as_teacher) - embed(exact, exact.as_teacher)
    assert 0 < difference.abs().max() < 0.05 * embed(exact, torch.no_grad).abs().max()
    assert exact.fingerprint != coarse.fingerprint
