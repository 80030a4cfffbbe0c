"""Students: options, architecture and initial image weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.students import (
    PRESETS,
    ImageTower,
    StudentOptions,
    TextTower,
    build_model,
    init_image_tower,
    model_config,
    preprocessing_of,
)


def options(**image: Any) -> StudentOptions:
    tower = {"timm": "test_efficientnet", "size": 64, **image}
    return StudentOptions.model_validate({"image": tower, "text": {"layers": 1, "width": 32, "context_length": 24}})


def model(seed: int = 0, embed_dim: int = 16, **image: Any) -> Any:
    return build_model(model_config(options(**image), embed_dim, vocab_size=300), seed)


def test_every_preset_is_a_student_and_can_be_replaced_in_part() -> None:
    for preset, tower in PRESETS.items():
        student = StudentOptions.model_validate({"preset": preset})
        assert isinstance(student.image, ImageTower)
        assert (student.image.timm, student.text.vocabulary.source) == (tower["image"]["timm"], "teacher")
    student = StudentOptions.model_validate({"preset": "S", "image": {"size": 96}, "text": {"layers": 2}})
    assert isinstance(student.image, ImageTower)
    assert (student.image.timm, student.image.size) == ("mobilenetv4_conv_small", 96)
    assert (student.text.layers, student.text.width, student.text.vocabulary.size) == (2, 256, 20_000)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"preset": "XXL"}, "preset"),
        ({"preset": 1, "image": {"timm": "resnet50"}}, "preset"),
        ({"preset": ["S"]}, "preset"),
        ({"image": {"timm": "resnet50", "sise": 64}}, "image.network.sise"),
        ({"image": "teachers"}, "image.teacher"),
        ({"image": "teacher", "embed_dim": 64}, ""),
        ({"image": {"timm": "resnet50"}, "text": {"width": 100}}, "text.width"),
        ({}, "image"),
    ],
)
def test_an_invalid_student_has_one_error_at_its_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as raised:
        StudentOptions.model_validate(section)
    assert [".".join(map(str, error["loc"])) for error in raised.value.errors()] == [key]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, third = (model(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["text.token_embedding.weight"], third["text.token_embedding.weight"])


def test_preprocessing_takes_timms_mean_and_deviation_unless_told_otherwise() -> None:
    preset = preprocessing_of(ImageTower(timm="resnet50.a1_in1k", size=96))
    assert (preset.size, preset.mean, preset.std) == (96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's
    told = preprocessing_of(ImageTower(timm="resnet50", size=64, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (1, 1, 1))


def start(target: Any, weights: Path, **image: Any) -> None:
    tower = options(weights=str(weights), **image).image
    assert isinstance(tower, ImageTower)
    init_image_tower(target, tower)


def test_weights_of_a_network_are_loaded_and_the_projection_stays(tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet", num_classes=10)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    start(target, tmp_path / "weights.safetensors")
    after = target.state_dict()
    assert torch.equal(after["visual.trunk.conv_stem.weight"], source.conv_stem.weight)
    assert not torch.equal(after["visual.trunk.conv_stem.weight"], before["visual.trunk.conv_stem.weight"])
    rest = [name for name in after if not name.startswith("visual.trunk.")]
    assert rest and all(torch.equal(after[name], before[name]) for name in rest)


def test_weights_of_a_whole_tower_include_its_mlp_projection(tmp_path: Path) -> None:
    config = model_config(options(projection="mlp"), 16, 300)["vision_cfg"]
    assert config["timm_proj"] == "mlp" and config["timm_proj_bias"] is True
    first = model(seed=1, projection="mlp")
    second = model(seed=2, projection="mlp")
    assert first.visual.head.mlp.fc1.out_features == 32  # twice the shared width
    save_file(first.visual.state_dict(), tmp_path / "tower.safetensors")
    start(second, tmp_path / "tower.safetensors")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first.eval().encode_image(pixels), second.eval().encode_image(pixels))


def test_weights_that_are_missing_broken_incomplete_or_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    target = model(projection="mlp")
    for content in (None, b"not safetensors"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DcclipError, match=r"weights\.safetensors is not a readable safetensors file"):
            start(model(), file)
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(DcclipError, match="does not fit test_efficientnet"):
        start(model(), file)
    save_file({name: value for name, value in target.visual.state_dict().items() if "fc2" not in name}, file)
    with pytest.raises(DcclipError, match=r"no matching head\.mlp\.fc2\.weight"):
        start(target, file)


def test_heads_have_to_divide_the_width() -> None:
    for heads, width, near in ((7, 64, 8), (None, 224, 2)):
        with pytest.raises(ValueError, match=f"set heads: {near}"):
            TextTower(heads=heads, width=width)
    assert TextTower(width=96).head_count == 1
