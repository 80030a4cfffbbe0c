"""Students: what their options make, and how they start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.students import (
    PRESETS,
    ImageTower,
    StudentOptions,
    build_model,
    init_image_tower,
    model_config,
    preprocessing_of,
)


def options(**image: Any) -> StudentOptions:
    given = {"timm": "test_efficientnet", "size": 64, **image}
    return StudentOptions.model_validate({"image": given, "text": {"layers": 1, "width": 32, "context_length": 24}})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_student(preset: str) -> None:
    student = StudentOptions.model_validate({"preset": preset})
    assert student.image.timm == PRESETS[preset]["image"]["timm"]
    assert student.text.vocabulary.source == "teacher"


def test_a_preset_can_be_replaced_in_part() -> None:
    student = StudentOptions.model_validate({"preset": "S", "image": {"size": 96}, "text": {"layers": 2}})
    assert (student.image.timm, student.image.size) == ("mobilenetv4_conv_small", 96)
    assert (student.text.layers, student.text.width, student.text.vocabulary.size) == (2, 256, 20_000)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"preset": "XXL", "image": {"timm": "resnet50"}}, "preset"),
        ({"image": {"timm": "resnet50", "sise": 64}}, "sise"),
        ({"image": {"timm": "resnet50"}, "text": {"width": 100}}, "width"),
        ({}, "image"),
    ],
)
def test_what_makes_no_student_is_refused_by_its_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        StudentOptions.model_validate(section)


@pytest.mark.parametrize("preset", ["XXL", 1, ["S"]])
def test_a_preset_that_does_not_exist_is_the_only_mistake_named(preset: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        StudentOptions.model_validate({"preset": preset})
    assert [error["loc"] for error in raised.value.errors()] == [("preset",)]


def test_the_configuration_says_everything_that_open_clip_needs() -> None:
    config = model_config(options(), embed_dim=16, vocab_size=300)
    assert config["text_cfg"] == {
        "context_length": 24,
        "vocab_size": 300,
        "hf_tokenizer_name": "tokenizer",
        "width": 32,
        "heads": 1,
        "layers": 1,
        "pad_id": 1,
        "eos_id": 2,
        "pool_type": "eos",
    }
    assert config["vision_cfg"]["timm_model_pretrained"] is False  # nothing is looked up anywhere


def test_the_text_tower_has_the_parameters_that_its_sizes_ask_for() -> None:
    model: Any = build_model(model_config(options(), embed_dim=16, vocab_size=300), seed=0)
    width, length, vocabulary, shared = 32, 24, 300, 16
    attention = 4 * width * width + 4 * width
    feed_forward = 2 * 4 * width * width + 4 * width + width
    norms = 3 * 2 * width  # two in the layer, one after it
    embeddings = vocabulary * width + length * width
    expected = embeddings + attention + feed_forward + norms + width * shared
    assert sum(parameter.numel() for parameter in model.text.parameters()) == expected


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone() -> None:
    config = model_config(options(), embed_dim=16, vocab_size=300)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build_model(config, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["text.token_embedding.weight"], other["text.token_embedding.weight"])


@pytest.mark.parametrize(
    "timm", ["test_resnet", "test_efficientnet", "mobilenetv4_conv_small_050", "mobilenetv3_small_050"]
)
def test_every_kind_of_network_ends_in_the_shared_space(timm: str) -> None:
    model = build_model(model_config(options(timm=timm), embed_dim=24, vocab_size=300), seed=0).eval()
    with torch.no_grad():
        assert model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 24)  # type: ignore[operator]


def test_preprocessing_takes_timms_mean_and_deviation_unless_told_otherwise() -> None:
    known = preprocessing_of(ImageTower(timm="resnet50.a1_in1k", size=96))
    assert (known.size, known.mean, known.std) == (96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
    told = preprocessing_of(ImageTower(timm="resnet50", size=64, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (1, 1, 1))


# ---- starting weights


def test_an_image_tower_starts_from_the_weights_named_and_keeps_its_own_projection(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("test_efficientnet", num_classes=10)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    chosen = options(weights=str(tmp_path / "weights.safetensors"))
    model = build_model(model_config(chosen, embed_dim=16, vocab_size=300), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    init_image_tower(model, chosen.image)
    after = model.state_dict()
    assert torch.equal(after["visual.trunk.conv_stem.weight"], source.conv_stem.weight)
    assert not torch.equal(after["visual.trunk.conv_stem.weight"], before["visual.trunk.conv_stem.weight"])
    others = [name for name in after if not name.startswith("visual.trunk.")]
    assert others
    assert all(torch.equal(after[name], before[name]) for name in others)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    import timm

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    chosen = options(weights=str(tmp_path / "weights.safetensors"))
    model = build_model(model_config(chosen, embed_dim=16, vocab_size=300), seed=0)
    with pytest.raises(DcclipError, match="does not fit test_efficientnet"):
        init_image_tower(model, chosen.image)


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_weights_that_are_missing_or_no_safetensors_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "weights.safetensors").write_bytes(content)
    chosen = options(weights=str(tmp_path / "weights.safetensors"))
    model = build_model(model_config(chosen, embed_dim=16, vocab_size=300), seed=0)
    with pytest.raises(DcclipError, match=r"student\.image\.weights: .*weights\.safetensors"):
        init_image_tower(model, chosen.image)
