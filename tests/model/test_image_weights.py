"""An image tower that starts from weights, its projection included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.students import StudentOptions, build_model, init_image_tower, model_config


def options(student: dict[str, Any], **image: Any) -> StudentOptions:
    return StudentOptions.model_validate(student | {"image": student["image"] | image})


def test_a_file_of_the_whole_tower_brings_its_mlp_projection(student_section: dict[str, Any], tmp_path: Path) -> None:
    given = options(student_section, projection="mlp")
    config = model_config(given, 16, 300)
    assert config["vision_cfg"]["timm_proj"] == "mlp" and config["vision_cfg"]["timm_proj_bias"] is True
    first, second = build_model(config, seed=1), build_model(config, seed=2)
    assert first.visual.head.mlp.fc1.out_features == 32  # type: ignore[union-attr]  # twice the shared width
    save_file(first.visual.state_dict(), tmp_path / "tower.safetensors")  # type: ignore[union-attr]
    init_image_tower(second, options(student_section, weights=str(tmp_path / "tower.safetensors")).image)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = (model.eval().encode_image(pixels) for model in (first, second))  # type: ignore[operator]
    assert torch.equal(one, other)


def test_a_whole_tower_without_a_part_of_its_projection_is_refused(
    student_section: dict[str, Any], tmp_path: Path
) -> None:
    model = build_model(model_config(options(student_section, projection="mlp"), 16, 300), seed=1)
    weights = {name: value for name, value in model.visual.state_dict().items() if "fc2" not in name}  # type: ignore[union-attr]
    save_file(weights, tmp_path / "tower.safetensors")
    with pytest.raises(DcclipError, match=r"no matching head\.mlp\.fc2\.weight"):
        init_image_tower(model, options(student_section, weights=str(tmp_path / "tower.safetensors")).image)


def test_a_linear_projection_has_no_bias(student_section: dict[str, Any]) -> None:
    config = model_config(options(student_section), 16, 300)
    assert config["vision_cfg"]["timm_proj"] == "linear" and "timm_proj_bias" not in config["vision_cfg"]
