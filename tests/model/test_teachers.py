"""Teachers loaded from directories as they are on the hub, and the errors for missing ones."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from dcclip_cli.curation.scores import Agreement
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import AltClipTeacher, FgClip2Teacher, OpenClipTeacher, Teacher, TransformersTeacher
from dcclip_cli.train.teacher import map_grids, widths

ANY_TEACHER: TypeAdapter[Teacher] = TypeAdapter(Teacher)


def test_the_kind_chooses_the_class_and_an_unknown_one_names_the_known() -> None:
    for kind in (AltClipTeacher, TransformersTeacher, FgClip2Teacher, OpenClipTeacher):
        assert type(ANY_TEACHER.validate_python({"kind": kind.model_fields["kind"].default, "model": "x/y"})) is kind
    assert AltClipTeacher().model == "BAAI/AltCLIP"
    with pytest.raises(ValidationError, match="'altclip', 'transformers', 'fgclip2', 'open_clip'"):
        ANY_TEACHER.validate_python({"kind": "alt_clip"})


def test_a_reference_is_short_for_a_section_with_its_librarys_kind_and_means_the_same_as_for_a_command() -> None:
    for reference, kind, model in (
        ("hf:BAAI/AltCLIP", "transformers", "BAAI/AltCLIP"),
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32/openai"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "open_clip", "hf-hub:timm/ViT-B-16-SigLIP"),
        ("ms:org/clip@v2", "transformers", "ms:org/clip@v2"),
        ("/模型", "open_clip", "/模型"),
        ("starter", "open_clip", "starter"),
    ):
        teacher = ANY_TEACHER.validate_python(reference)
        assert teacher.model_dump() == {"kind": kind, "model": model, "precision": "auto"}
        assert ANY_TEACHER.validate_python({"model": reference}) == teacher
        if not reference.startswith(("ms:", "/", "starter")):  # which are looked for, and whose bundle a command uses
            assert teacher.source == resolve(reference)
            assert (teacher.source.library, teacher.source.target) == (kind, model)
    for name in ("BAAI/AltCLIP", "模型"):
        with pytest.raises(ValidationError, match=f"{name} is not a model reference: write hf:ORG/NAME, "):
            ANY_TEACHER.validate_python(name)
        with pytest.raises(ValidationError, match="Unable to extract tag using discriminator 'kind'"):
            ANY_TEACHER.validate_python({"model": name})
    assert Agreement(model="hf:BAAI/AltCLIP").model == "hf:BAAI/AltCLIP"


@pytest.mark.parametrize(
    ("kind", "folder", "scale", "bias"),
    [
        (AltClipTeacher, "altclip_folder", 14.2857, None),  # exp(2.6592)
        (TransformersTeacher, "altclip_folder", 14.2857, None),
        (TransformersTeacher, "siglip_folder", 1.0, 0.0),  # as transformers initialises them: exp(0) and 0
        (OpenClipTeacher, "model_folder", None, None),
    ],
)
def test_a_saved_model_loads_frozen_in_evaluation_mode_with_its_scale_and_bias(
    kind: Any, folder: str, scale: float | None, bias: float | None, request: pytest.FixtureRequest
) -> None:
    towers = kind(model=str(request.getfixturevalue(folder))).load()
    assert not towers.training and not any(parameter.requires_grad for parameter in towers.parameters())
    assert scale is None or towers.logit_scale == pytest.approx(scale, abs=0.01)
    assert towers.logit_bias == bias
    assert towers.text_features(towers.tokenize(["红色的圆", "red circle"])).embedding.shape[0] == 2


def test_weights_saved_as_fp16_are_loaded_as_fp32(altclip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(altclip_folder, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    assert {parameter.dtype for parameter in AltClipTeacher(model=str(folder)).load().parameters()} == {torch.float32}


@pytest.mark.parametrize("changed", ["nothing", "weights", "preprocessing", "tokenizer", "configuration"])
def test_the_fingerprint_changes_with_whatever_decides_the_outputs_but_not_with_the_path(
    altclip_folder: Path, tmp_path: Path, changed: str
) -> None:
    folder = shutil.copytree(altclip_folder, tmp_path / "changed")
    if changed == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["visual_projection.weight"][0, 0] += 1e-3
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif changed == "preprocessing":
        edit(folder / "preprocessor_config.json", "image_mean", [0.5, 0.5, 0.5])
    elif changed == "configuration":
        config = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", "vision_config", config["vision_config"] | {"hidden_act": "gelu"})
    elif changed == "tokenizer":
        text = (folder / "tokenizer.json").read_text("utf-8")
        (folder / "tokenizer.json").write_text(text.replace('"狗"', '"犬"'), "utf-8")
    prints = [AltClipTeacher(model=str(path)).load().fingerprint for path in (altclip_folder, folder)]
    assert (prints[0] == prints[1]) == (changed == "nothing")


def edit(file: Path, key: str, value: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


@pytest.mark.filterwarnings("error:Cannot enable progress bars")
def test_bars_of_downloads_remain_off_without_a_warning(altclip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("huggingface_hub.utils.tqdm")  # the attribute of this name is a class
    monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    AltClipTeacher(model=str(altclip_folder)).load()


@pytest.mark.parametrize("kind", ["altclip", "chineseclip", "siglip2", "openclip-xlmr", "student"])
def test_a_teacher_has_its_widths_and_grids_without_its_weights(
    kind: str, hub_teachers: Path, model_folder: Path
) -> None:
    library = OpenClipTeacher if kind in ("openclip-xlmr", "student") else TransformersTeacher
    teacher = library(model=str(model_folder if kind == "student" else hub_teachers / kind))
    blank = teacher.source.blank()
    loaded = teacher.load()
    assert blank is not None and {str(parameter.device) for parameter in blank.parameters()} == {"meta"}
    assert widths(blank, (0,)) == widths(loaded, (0,)) and map_grids(blank, (0,)) == map_grids(loaded, (0,))
    assert blank.parameters_count() == loaded.parameters_count()
