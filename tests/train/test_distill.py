"""Stage 1 from beginning to end, with every kind of teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.train.teacher import NarrowSpace
from dcclip_cli.train.trainer import train_stage
from tests.train.jobs import WEIGHTS, Job, Watch, elsewhere, logged, refused, run, stage_of, weights


def test_a_siglip_teaches_a_student_that_reads_both_languages(distilling: Job, siglip_folder: Path) -> None:
    distilling["teacher"] = {"kind": "transformers", "model": str(siglip_folder)}
    distilling["options"] |= {"steps": 2, "teacher_cache": False}
    result = run(distilling)
    assert result.model == Path(distilling["root"]) / "distill" / "model"
    assert set(result.metrics) >= {"feature_map", "token_features", "embedding", "loss"}
    towers = load_model(result.model)
    assert towers.text_features(towers.tokenize(["红色的圆", "red circle"])).embedding.shape == (2, 16)


def test_fg_clip2_teaches_by_its_repositorys_code_which_the_recipe_allows(
    distilling: Job, hub_teachers: Path, own_modules: Path
) -> None:
    teacher = {"kind": "fgclip2", "model": str(hub_teachers / "fgclip2"), "max_num_patches": 64}
    with refused("is built by its own code", "trust_remote_code: true"):
        run(distilling | {"teacher": teacher})
    distilling["teacher"] = teacher | {"trust_remote_code": True}
    distilling["options"] |= {"steps": 2}
    assert set(run(distilling).metrics) >= {"feature_map", "token_features", "embedding", "loss"}


def test_the_student_comes_nearer_to_its_teacher(distilling: Job) -> None:
    distilling["options"] |= {
        "steps": 40,
        "losses": [{"kind": "embedding"}],
        "log_every_steps": 1,
        "augment": {},
        "optimizer": {"lr": 3e-3},
    }
    losses = [line["loss"] for line in logged(run(distilling).model.parent)]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_projecting_classifier_learns_no_bias_and_one_that_an_older_student_brings_stays(
    aligning: Job, distilling: Job
) -> None:
    distilling["student"]["image"] = {"timm": "mobilenetv4_conv_small_050", "size": 32}
    older, classifier = run(distilling).model, "visual.trunk.classifier"
    before = weights(older)
    assert not before[f"{classifier}.bias"].any()  # transformers has no place for one
    half = torch.full_like(before[f"{classifier}.bias"], 0.5)
    save_file(before | {f"{classifier}.bias": half}, older / WEIGHTS)
    (older / "dcclip.json").unlink()  # the record of its checksums
    after = weights(run(elsewhere(aligning, "aligned", {"start": str(older)})))
    assert torch.equal(after[f"{classifier}.bias"], half)
    assert not torch.equal(after[f"{classifier}.weight"], before[f"{classifier}.weight"])


def test_the_model_names_its_teacher_and_data_and_its_adapters_are_in_the_resume_state_only(distilling: Job) -> None:
    result = run(distilling)
    provenance = json.loads((result.model / "dcclip.json").read_text())
    assert (provenance["stage"], provenance["teacher"]["name"], provenance["steps"]) == ("distill", "altclip", 6)
    assert len(provenance["data"]["train"]) == 64
    assert any("adapters." in name for name in state_of(result.model))
    assert not [name for name in weights(result) if "adapter" in name]


def state_of(model: Path) -> dict[str, torch.Tensor]:
    [state] = (model.parent / "state").glob("step-*")
    return load_file(state / "tensors.safetensors")


def test_a_student_larger_than_its_teacher_is_warned_about_and_the_largest_seed_works(distilling: Job) -> None:
    distilling["options"] |= {"steps": 1}
    progress = Watch()
    result = run(distilling | {"seed": 2**32 - 1}, progress)
    assert any("warning: the student has" in line for line in progress.said)
    assert torch.isfinite(torch.tensor(result.metrics["loss"]))


@pytest.mark.parametrize("cache", [True, False])
def test_several_teachers_teach_one_student(distilling: Job, chinese_clip_folder: Path, cache: bool) -> None:
    losses: list[Any] = [{"kind": "ensemble"}, {"kind": "embedding", "weight": {"start": 1, "end": 0}}]
    losses += [{"kind": "embedding", "teacher": 1}, {"kind": "feature_map", "teacher": 1, "teacher_layers": [0]}]
    distilling["student"]["embed_dim"] = 12  # of the first teacher it learns 12 numbers; the second one has adapters
    distilling["options"] = {
        "losses": losses,
        "more_teachers": [{"kind": "transformers", "model": str(chinese_clip_folder)}],
        "teacher_cache": cache,
        "augmentations": 1,
        "steps": 4,
    }
    result = run(distilling)
    assert set(result.metrics) >= {"ensemble", "embedding", "embedding-2", "feature_map"}
    assert result.metrics["embedding"] < 0.5 * result.metrics["embedding-2"]  # a quarter of its weight is left
    prefix = "model/adapters."
    adapters = {name.removeprefix(prefix) for name in state_of(result.model) if name.startswith(prefix)}
    embeddings = {f"1.whole.{tower}_embedding" for tower in ("image", "text")}
    assert {name.rpartition(".")[0] for name in adapters} == {*embeddings, "1.whole.image_map_-1_0"}


@pytest.mark.parametrize("cache", [True, False])
def test_a_narrower_student_learns_the_teachers_principal_components_in_both_stages(
    distilling: Job, aligning: Job, altclip_folder: Path, cache: bool
) -> None:
    distilling["student"]["embed_dim"] = 8
    distilling["options"] |= {"losses": [{"kind": "embedding"}], "teacher_cache": cache, "steps": 3}
    watch = Watch()
    result = run(distilling, watch)
    asked = [name for name, _, _ in watch.tasks if name.startswith("teacher")]  # no bar for each of the first steps
    assert "teacher: looking for its 8 principal components" in watch.said and len(asked) == len(set(asked))
    space = NarrowSpace.read(result.model)
    assert space is not None and space.components.shape == (16, 8)
    torch.testing.assert_close(space.components.T @ space.components, torch.eye(8), atol=1e-5, rtol=0)
    assert not [name for name in state_of(result.model) if name.startswith("model/adapters.")]
    losses, teacher = [{"kind": "embedding"}], {"kind": "altclip", "model": str(altclip_folder)}
    aligning |= {"teacher": teacher}
    aligning["options"] |= {"losses": losses, "start": str(result.model), "steps": 2}
    aligned = run(aligning)
    kept = NarrowSpace.read(aligned.model)
    assert kept is not None and torch.equal(kept.components, space.components)


@pytest.mark.parametrize("loss", ["embedding", "task"])
def test_a_text_tower_inherits_the_teachers_rows_whether_losses_need_a_teacher_or_not(
    distilling: Job, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Path(distilling["teacher"]["model"])
    monkeypatch.chdir(teacher.parent)
    distilling["teacher"] = {**distilling["teacher"], "model": teacher.name}  # a folder by a relative path
    distilling["student"]["text"] |= {"vocabulary": {"from": "teacher", "size": 300}}
    tables = []
    for inherit in ("embeddings", "nothing"):
        distilling["student"]["text"]["inherit"] = inherit
        stage = stage_of(elsewhere(distilling, inherit, {"steps": 1, "losses": [{"kind": loss}]}))
        tables.append(weights(train_stage(stage))["text.token_embedding.weight"])
        assert not (stage.first_teacher and stage.first_teacher.is_loaded)  # while the student trains
    assert not torch.equal(*tables)


def test_an_image_tower_is_cut_out_of_the_teachers_with_its_normalisation(distilling: Job) -> None:
    """Here the teacher's own network, so that all of it is the teacher's after a step that changes next to nothing."""
    folder = Path(__file__).parents[2] / "recipes/quickstart/teacher"
    distilling["teacher"] = {"kind": "open_clip", "model": str(folder)}
    distilling["student"]["image"] = {"timm": "efficientnet_lite0", "size": 32, "inherit": "teacher"}
    distilling["options"] |= {"steps": 1, "losses": [{"kind": "embedding"}], "optimizer": {"lr": 1e-7}}
    student = load_model(run(distilling).model)
    teacher = load_model(folder)
    assert student.preprocessing and teacher.preprocessing
    assert student.preprocessing.mean == teacher.preprocessing.mean
    own, theirs = (towers.model.visual.state_dict() for towers in (student, teacher))
    for name, value in theirs.items():
        if name.startswith("trunk.") and name.endswith("weight"):
            torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-4)
