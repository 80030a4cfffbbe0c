"""Stage 1 from beginning to end, with every kind of teacher."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.batch import Batch, Texts
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.model_dir import load_model, model_fingerprint, read_provenance
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.model.towers import ImageFeatures
from dcclip_cli.recipe.load import load
from dcclip_cli.train.losses.base import Outputs, Widths
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss, InteractiveLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.task import TrainingTask
from dcclip_cli.train.teacher import NarrowSpace, TeacherFeatures, narrow_space
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
    teacher = {"kind": "fgclip2", "model": str(hub_teachers / "fgclip2")}
    with refused("requires custom code", "trust_remote_code: true"):
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
    older = run(distilling).model
    classifier = "visual.trunk.classifier"
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


@pytest.mark.parametrize("cache", [True, "texts", False])
def test_several_teachers_teach_one_student(distilling: Job, chinese_clip_folder: Path, cache: bool | str) -> None:
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
    watch = Watch()
    result = run(distilling, watch)
    tasks = [name for name, _, _ in watch.tasks]
    assert ("teacher: images" in tasks, "teacher: captions" in tasks) == (cache is True, bool(cache))
    assert set(result.metrics) >= {"ensemble", "embedding", "embedding-2", "feature_map"}
    assert result.metrics["embedding"] < 0.5 * result.metrics["embedding-2"]  # a quarter of its weight is left
    prefix = "model/adapters."
    adapters = {name.removeprefix(prefix) for name in state_of(result.model) if name.startswith(prefix)}
    embeddings = {f"1.whole.{tower}_embedding" for tower in ("image", "text")}
    assert {name.rpartition(".")[0] for name in adapters} == {*embeddings, "1.whole.image_map_-1_0"}


@pytest.mark.parametrize("cache", [True, "texts", False])
def test_a_narrower_student_learns_the_teachers_principal_components_in_both_stages(
    distilling: Job, aligning: Job, altclip_folder: Path, cache: bool | str
) -> None:
    distilling["student"]["embed_dim"] = 8
    distilling["options"] |= {"losses": [{"kind": "embedding"}], "teacher_cache": cache, "steps": 3}
    watch = Watch()
    result = run(distilling, watch)
    tasks = [name for name, _, _ in watch.tasks if name.startswith("teacher")]  # no bar for each of the first steps
    assert "teacher: computing its 8 principal components" in watch.said and len(tasks) == len(set(tasks))
    space = NarrowSpace.read(result.model)
    assert space is not None and space.components.shape == (16, 8)
    torch.testing.assert_close(space.components.T @ space.components, torch.eye(8), atol=1e-5, rtol=0)
    assert not [name for name in state_of(result.model) if name.startswith("model/adapters.")]
    losses = [{"kind": "embedding"}]
    teacher = {"kind": "altclip", "model": str(altclip_folder)}
    aligning |= {"teacher": teacher}
    aligning["options"] |= {"losses": losses, "start": str(result.model), "steps": 2}
    aligned = run(aligning)
    loaded = NarrowSpace.read(aligned.model)
    assert loaded is not None and torch.equal(loaded.components, space.components)


def test_principal_components_are_those_of_batches_on_the_teachers_device(distilling: Job) -> None:
    distilling["options"]["teacher_cache"] = False
    stage = stage_of(distilling)
    devices = set[str]()

    class Teacher(TeacherFeatures):
        def features(self, batch: Batch) -> Outputs:
            devices.update(pixels.device.type for pixels in (batch.pixels, *batch.teacher_pixels))
            embedding = torch.eye(16)
            return Outputs(ImageFeatures(embedding, embedding[:, :, None, None]), {}, {}, torch.tensor(20.0))

    narrow_space("", Teacher(), stage.plain_collator, stage.training.sampler(0, 1), 8, "meta")
    assert devices == {"meta"}


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
        assert not (stage.first_teacher and stage.first_teacher._towers)  # while the student trains
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
    own_weights, theirs = (towers.model.visual.state_dict() for towers in (student, teacher))
    for name, value in theirs.items():
        if name.startswith("trunk.") and name.endswith("weight"):
            torch.testing.assert_close(own_weights[name], value, rtol=1e-3, atol=1e-4)


# ---- matryoshka training: losses on the first numbers of the embeddings as well


def test_each_cut_embedding_is_contrasted_by_itself(model_folder: Path) -> None:
    student = load_model(model_folder)
    texts = {"zh": ["红色的圆", "蓝色的方块"], "en": ["a red circle", "a blue square"]}
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        torch.arange(2),
        torch.zeros(2, dtype=torch.long),
        pixels,
        (),
        {name: Texts(torch.arange(2), lines, student.tokenize(lines)) for name, lines in texts.items()},
    )
    task = TrainingTask(student, [TaskLoss()], dims=[4, 8]).eval()
    with torch.no_grad():
        terms = task(batch)
        image = student.image_features(pixels).embedding
        text = student.text_features(student.tokenize(texts["zh"])).embedding
    assert list(terms) == [f"image_{language}{suffix}" for suffix in ("", "_4d", "_8d") for language in ("zh", "en")]
    for dims in (4, 8, 16):
        logits = student.logit_scale * F.normalize(image[:, :dims], dim=-1) @ F.normalize(text[:, :dims], dim=-1).T
        losses = [F.cross_entropy(logits_of, torch.arange(2)) for logits_of in (logits, logits.T)]
        name = "image_zh" if dims == 16 else f"image_zh_{dims}d"
        assert terms[name] == pytest.approx(float(sum(losses)) / 4, rel=1e-4)  # of two directions, two languages


def test_the_order_of_losses_changes_no_adapter(model_folder: Path) -> None:
    teacher: Any = SimpleNamespace(widths=Widths(20, 30, 40))
    losses = [EmbeddingLoss(), InteractiveLoss(), FeatureMapLoss(), TokenFeaturesLoss()]
    first, reverse = (
        TrainingTask(load_model(model_folder), order, [teacher], dims=[8]).adapters.state_dict()
        for order in (losses, losses[::-1])
    )
    assert len(first) == 8 and first.keys() == reverse.keys()  # four for embeddings, two with a bias
    assert all(torch.equal(value, reverse[name]) for name, value in first.items())


def test_a_stage_with_dims_records_them_and_the_whole_width(distilling: Job) -> None:
    losses = [{"kind": "embedding"}, {"kind": "similarity"}, {"kind": "feature_map"}]
    distilling["options"] |= {"steps": 2, "losses": losses, "dims": [8, 16]}
    result = run(distilling)
    assert set(result.metrics) >= {"embedding", "embedding_8d", "similarity_8d", "feature_map"}
    assert not {"embedding_16d", "feature_map_8d"} & set(result.metrics)
    assert read_provenance(result.model).content["trained_dims"] == [8, 16]
    assert list(load_model(result.model).trained_dims) == [8, 16]
    with refused("dims contains 24, but embeddings have only 16 dimensions", "remove it"):
        run(elsewhere(distilling, "wide", {"dims": [24]}))


# ---- a text tower in the space of an image tower that stays as it is


TEXT = {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 300}}
LOSSES = [{"kind": "embedding", "languages": ["en"]}, {"kind": "cross_lingual"}]


@pytest.fixture
def learning(model_folder: Path, tmp_path: Path) -> Job:
    """A job that trains a new text tower for the tiny student on parallel text, as if that knew English only."""
    lines = [
        f'{{"zh": "{zh}色的{chinese}", "en": "{en} {name}"}}\n'
        for zh, en in (("白", "white"), ("黄", "yellow"), ("紫", "purple"), ("粉", "pink"))
        for chinese, name in (("星星", "star"), ("小船", "boat"), ("大树", "tree"), ("小鱼", "fish"))
    ]
    (tmp_path / "平行.jsonl").write_text("".join(lines), "utf-8")
    return {
        "stage": "distill",
        "root": str(tmp_path / "runs" / "text-tower"),
        "data": {"texts": str(tmp_path / "平行.jsonl")},
        "teacher": {"kind": "open_clip", "model": str(model_folder)},
        "student": {"image": "teacher", "text": TEXT},
        "options": {"losses": LOSSES, "steps": 3, "augmentations": 1},
    }


def test_a_new_text_tower_leaves_the_teachers_image_tower_as_it_is(learning: Job, model_folder: Path) -> None:
    learned = run(learning).model
    donor, ours = (load_encoder(resolve(str(folder)), "cpu") for folder in (model_folder, learned))
    assert ours.fingerprint != donor.fingerprint and ours.logit_scale == donor.logit_scale
    rows = [model.encode_pixels(np.zeros((2, 3, 64, 64), np.float32)) for model in (donor, ours)]
    np.testing.assert_array_equal(rows[0], rows[1])
    before = weights(model_folder)
    after = weights(learned)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("visual."))
    assert not np.allclose(donor.encode_texts(["白色的大树"]), ours.encode_texts(["白色的大树"]), atol=0.01)


def test_chinese_learns_the_teachers_english_and_nothing_of_its_chinese(learning: Job) -> None:
    learning["options"] |= {"steps": 60, "batch_size": 16, "optimizer": {"lr": 3e-3}}
    ours = load_model(run(learning).model)
    donor = load_model(Path(learning["teacher"]["model"]))

    def embed(towers: Any, text: str) -> torch.Tensor:
        with torch.inference_mode():
            components = towers.text_features(towers.tokenize([text])).embedding[0]
        return torch.nn.functional.normalize(components, dim=0)

    english = embed(donor, "purple fish")
    chinese = embed(donor, "紫色的小鱼")
    learnt = embed(ours, "紫色的小鱼")
    assert learnt @ english > max(0.9, float(learnt @ chinese))
    assert embed(ours, "purple fish") @ english > 0.9


# ---- the paper's recipe for some steps, with a small random AltCLIP


RECIPE = Path(__file__).parents[2] / "recipes" / "dc-clip.yaml"


def test_the_papers_recipe_trains_both_stages(altclip_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    short = ["steps=2", "epochs=null", "batch_size=4", "warmup_steps=1", "workers=0", "threads=1"]
    sets = [f"{stage}.{key}" for stage in ("distill", "align") for key in short]
    # The recipe's bf16 is for a GPU: most CPUs emulate it, many times slower.
    sets += [f"{section}.precision=fp32" for section in ("teacher", "distill", "align")]
    sets += [f"{key}={pairs_file}" for key in ("data.train", "data.validation", "align.train")]
    sets += [
        f"teacher.model={altclip_folder}",
        "align.images_per_part=2",
        "distill.augmentations=1",
        "student.text.width=32",
        "student.image.size=64",
    ]
    recipe = load(RECIPE, sets).recipe
    assert isinstance(recipe.teacher, AltClipTeacher) and recipe.student and recipe.student.preset == "RN50"
    assert recipe.distill and recipe.align and recipe.data
    assert {type(loss) for loss in recipe.distill.losses} >= {FeatureMapLoss, TokenFeaturesLoss}
    shared = RunDir(tmp_path / "dc-clip"), recipe.data, recipe.teacher, recipe.student
    first = train_stage(Stage(recipe.distill, *shared))
    assert set(first.metrics) >= {"feature_map", "token_features", "embedding"}
    second = train_stage(Stage(recipe.align, *shared))
    assert json.loads((second.model / "dcclip.json").read_text())["parent"] == model_fingerprint(first.model)
    assert (second.model / "tokenizer.json").read_bytes() == (first.model / "tokenizer.json").read_bytes()
    assert set(second.metrics) >= {"image_zh", "image_en", "logit_scale", "top1_zh", "top1_en", "best_step"}
    towers = load_model(second.model)
    assert towers.text_features(towers.tokenize(["红色的圆"])).embedding.shape == (1, 16)
