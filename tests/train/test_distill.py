"""Stage 1 from beginning to end, with every kind of teacher, unbroken and broken off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.tokenizer import load_tokenizer
from dcclip_cli.run_dir import TrainResult

Job = dict[str, Any]
Run = Callable[..., TrainResult]
Elsewhere = Callable[..., Job]
Sha = Callable[[TrainResult | Path], str]
Stop = Callable[[Job, str, int], None]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("teacher", ["altclip", "chinese_clip", "siglip", "model"])
def test_every_kind_of_teacher_teaches_a_student_that_reads_both_languages(
    distilling: Job, run: Run, request: pytest.FixtureRequest, teacher: str, cache: bool
) -> None:
    kind = {"altclip": "altclip", "model": "open_clip"}.get(teacher, "transformers")
    distilling["teacher"] = {"kind": kind, "model": str(request.getfixturevalue(f"{teacher}_folder"))}
    distilling["options"] |= {"steps": 2, "teacher_cache": cache}
    result = run(distilling)
    assert result.model == Path(distilling["root"]) / "distill" / "model"
    assert set(result.metrics) >= {"feature_map", "token_features", "embedding", "loss"}
    towers = load_model(result.model)
    assert towers.text_features(towers.tokenize(["红色的圆", "red circle"])).embedding.shape == (2, 16)


def test_the_cached_and_the_online_teacher_give_the_same_first_loss(
    distilling: Job, run: Run, elsewhere: Elsewhere
) -> None:
    figures = []
    for cache in (True, False):
        job = elsewhere(distilling, f"cache-{cache}", options={"steps": 1, "augmentations": 2, "teacher_cache": cache})
        figures.append(run(job).metrics)
    for name in ("feature_map", "token_features", "embedding"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=2e-3), name


def test_the_student_comes_nearer_to_its_teacher(distilling: Job, run: Run) -> None:
    distilling["options"] |= {
        "steps": 60,
        "losses": [{"kind": "embedding"}],
        "log_every_steps": 1,
        "augment": {},
        "optimizer": {"lr": 3e-3},
    }
    result = run(distilling)
    lines = (result.model.parent / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_weights_of_losses_scale_their_terms(distilling: Job, run: Run, elsewhere: Elsewhere) -> None:
    distilling["options"] |= {"steps": 1}
    alone = run(elsewhere(distilling, "one", options={"steps": 1, "losses": [{"kind": "embedding"}]}))
    tripled = run(elsewhere(distilling, "three", options={"steps": 1, "losses": [{"kind": "embedding", "weight": 3}]}))
    assert tripled.metrics["embedding"] == pytest.approx(3 * alone.metrics["embedding"])


def test_a_network_that_projects_with_its_classifier_learns_no_bias_for_it(distilling: Job, run: Run) -> None:
    distilling["student"]["image"] = {"timm": "mobilenetv4_conv_small_050", "size": 32}
    weights = load_file(run(distilling).model / "open_clip_model.safetensors")
    assert not weights["visual.trunk.classifier.bias"].any()  # transformers has no place for one


def test_a_bias_that_an_older_student_brings_stays_as_it_is(
    aligning: Job, distilling: Job, run: Run, elsewhere: Elsewhere
) -> None:
    distilling["student"]["image"] = {"timm": "mobilenetv4_conv_small_050", "size": 32}
    older = run(distilling).model
    file, bias = older / "open_clip_model.safetensors", "visual.trunk.classifier.bias"
    before = load_file(file)
    save_file(before | {bias: torch.full_like(before[bias], 0.5)}, file)
    aligned = run(elsewhere(aligning, "aligned", options={"start": str(older)})).model
    after = load_file(aligned / "open_clip_model.safetensors")
    assert (after[bias] == 0.5).all()
    assert not torch.equal(after["visual.trunk.classifier.weight"], before["visual.trunk.classifier.weight"])


def test_adapters_are_in_the_resume_state_and_not_in_the_model(distilling: Job, run: Run) -> None:
    result = run(distilling)
    [state] = (result.model.parent / "state").glob("step-*")
    assert any(".adapters." in f".{name}" or "adapters." in name for name in load_file(state / "tensors.safetensors"))
    assert not [name for name in load_file(result.model / "open_clip_model.safetensors") if "adapter" in name]


def test_the_models_provenance_names_its_teacher_and_data(distilling: Job, run: Run) -> None:
    distilling["options"] |= {"steps": 2}
    provenance = json.loads((run(distilling).model / "dcclip.json").read_text())
    assert provenance["stage"] == "distill"
    assert provenance["teacher"]["name"] == "altclip"
    assert provenance["steps"] == 2
    assert len(provenance["data"]["train"]) == 64


def test_a_vocabulary_taken_from_the_teacher_cuts_captions_as_the_teacher_does(
    distilling: Job, run: Run, altclip_folder: Path, pairs: list[Pair]
) -> None:
    distilling["student"]["text"]["vocabulary"] = {"from": "teacher", "size": 300}
    distilling["options"] |= {"steps": 2}
    student, teacher = load_tokenizer(run(distilling).model), load_tokenizer(altclip_folder)
    for text in (caption for pair in pairs for caption in (*pair.zh, *pair.en)):
        assert student.encode(text).tokens == teacher.encode(text).tokens


def test_a_student_larger_than_its_teacher_is_warned_about(
    distilling: Job, run: Run, watching: Callable[..., Any]
) -> None:
    distilling["options"] |= {"steps": 1}
    progress = watching()
    run(distilling, progress)
    assert any("warning: the student has" in line for line in progress.said)


# ---- the same again


@pytest.mark.any_cpu
def test_the_same_recipe_twice_gives_identical_weights(
    distilling: Job, run: Run, elsewhere: Elsewhere, sha256: Sha
) -> None:
    assert sha256(run(distilling)) == sha256(run(elsewhere(distilling, "again")))


@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"augmentations": 2, "optimizer": {"lr": 2e-3}}}])
def test_another_seed_or_recipe_gives_other_weights(
    distilling: Job, run: Run, elsewhere: Elsewhere, sha256: Sha, change: Job
) -> None:
    assert sha256(run(distilling)) != sha256(run(elsewhere(distilling, "other", **change)))


def test_workers_logs_and_checkpoints_change_no_weight(
    distilling: Job, run: Run, elsewhere: Elsewhere, sha256: Sha
) -> None:
    others = {"augmentations": 2, "workers": 2, "log_every_steps": 1, "checkpoint_every_steps": 100}
    assert sha256(run(distilling)) == sha256(run(elsewhere(distilling, "other", options=others)))


def test_killed_in_the_middle_and_run_again_gives_the_weights_of_the_unbroken_run(
    distilling: Job, run: Run, elsewhere: Elsewhere, kill: Stop, sha256: Sha, watching: Callable[..., Any]
) -> None:
    unbroken = run(elsewhere(distilling, "unbroken"))
    distilling["options"] |= {"workers": 1}
    kill(distilling, "distill", 5)
    folder = Path(distilling["root"]) / "distill"
    assert (folder / "state" / "step-00000004").is_dir()
    assert not (folder / "model").exists()
    progress = watching()
    result = run(distilling, progress)
    assert "distill: resuming from step 4 of 6" in progress.said
    assert sha256(result) == sha256(unbroken)


def test_killed_while_the_teacher_runs_and_run_again_gives_the_weights_of_the_unbroken_run(
    distilling: Job,
    run: Run,
    elsewhere: Elsewhere,
    kill: Stop,
    sha256: Sha,
    watching: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unbroken = run(elsewhere(distilling, "unbroken"))
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    kill(distilling, "teacher: captions", 64)
    assert not (Path(distilling["root"]) / "distill").exists()
    progress = watching()
    result = run(distilling, progress)
    assert [task for task in progress.tasks if task[0].startswith("teacher")] == [("teacher: captions", 112, 0)]
    assert sha256(result) == sha256(unbroken)


def test_interrupted_and_run_again_gives_the_weights_of_the_unbroken_run(
    distilling: Job, run: Run, elsewhere: Elsewhere, interrupt: Stop, sha256: Sha
) -> None:
    unbroken = run(elsewhere(distilling, "unbroken", options={"augmentations": 2, "teacher_cache": False}))
    distilling["options"] |= {"teacher_cache": False}
    interrupt(distilling, "distill", 3)
    assert (Path(distilling["root"]) / "distill" / "state" / "step-00000003").is_dir()
    assert sha256(run(distilling)) == sha256(unbroken)


def test_a_finished_stage_does_nothing(distilling: Job, run: Run, watching: Callable[..., Any]) -> None:
    first = run(distilling)
    written = (first.model / "dcclip.json").stat().st_mtime_ns
    progress = watching()
    again = run(distilling | {"teacher": {"kind": "altclip", "model": "/nowhere"}}, progress)
    assert not first.already_finished
    assert again.already_finished
    assert again.model == first.model
    assert progress.tasks == []
    assert (first.model / "dcclip.json").stat().st_mtime_ns == written


def test_fresh_does_a_finished_stage_again(distilling: Job, run: Run, sha256: Sha) -> None:
    expected = sha256(run(distilling))
    again = run(distilling | {"fresh": True})
    assert not again.already_finished
    assert sha256(again) == expected


# ---- what is refused


@pytest.mark.parametrize("changed", ["rate", "losses", "seed", "data", "teacher", "student", "vocabulary", "weights"])
def test_a_changed_recipe_on_an_old_state_is_refused_and_fresh_is_the_way_out(
    distilling: Job,
    run: Run,
    interrupt: Stop,
    pairs: list[Pair],
    chinese_clip_folder: Path,
    tmp_path: Path,
    changed: str,
) -> None:
    interrupt(distilling, "distill", 2)
    other = json.loads(json.dumps(distilling))
    match changed:
        case "rate":
            other["options"]["optimizer"] = {"lr": 2e-3}
        case "losses":
            other["options"]["losses"] = [{"kind": "embedding"}]
        case "seed":
            other["seed"] = 1
        case "data":
            other["data"] = str(tmp_path / "other.parquet")
            write_parquet(tmp_path / "other.parquet", pairs[:-1])
        case "teacher":
            other["teacher"] = {"kind": "transformers", "model": str(chinese_clip_folder)}
        case "student":
            other["student"]["text"]["layers"] = 2
        case "vocabulary":
            other["student"]["text"]["vocabulary"] = {"from": "teacher", "size": 300}
        case "weights":
            import timm

            save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "start.safetensors")
            other["student"]["image"]["weights"] = str(tmp_path / "start.safetensors")
    with pytest.raises(DcclipError, match="was saved by another recipe") as raised:
        run(other)
    assert "--fresh" in raised.value.hint
    assert not run(other | {"fresh": True}).already_finished


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_with_its_file_and_key(
    distilling: Job, run: Run, pairs: list[Pair], tmp_path: Path, cache: bool, workers: int
) -> None:
    broken = Pair("the-broken-one", b"no image", zh=("坏",), en=("broken",))
    write_parquet(tmp_path / "broken.parquet", [*pairs[:7], broken])
    distilling["data"] = str(tmp_path / "broken.parquet")
    distilling["options"] |= {"teacher_cache": cache, "workers": workers}
    with pytest.raises(
        DcclipError, match=r"broken\.parquet: pair the-broken-one: .* is not a readable image"
    ) as raised:
        run(distilling)
    assert raised.value.hint == "use a JPEG, PNG or WebP file"


def test_a_vocabulary_too_small_for_its_characters_is_refused(
    distilling: Job, run: Run, pairs: list[Pair], tmp_path: Path
) -> None:
    many = [Pair(str(number), pairs[0].image, zh=(chr(0x4E00 + number),), en=("x",)) for number in range(400)]
    write_parquet(tmp_path / "many.parquet", many)
    with pytest.raises(DcclipError, match="no vocabulary of 300 tokens can be trained") as raised:
        run(distilling | {"data": str(tmp_path / "many.parquet")})
    assert "vocabulary.size larger" in raised.value.hint


def test_training_with_the_largest_seed_works(distilling: Job, run: Run) -> None:
    distilling["options"] |= {"steps": 1}
    assert torch.isfinite(torch.tensor(run(distilling | {"seed": 2**32 - 1}).metrics["loss"]))


# ---- other data, other teachers


@pytest.mark.parametrize("cache", [True, False])
def test_several_teachers_teach_one_student(distilling: Job, run: Run, chinese_clip_folder: Path, cache: bool) -> None:
    losses: list[Any] = [{"kind": "ensemble"}, {"kind": "embedding", "weight": {"start": 1, "end": 0}}]
    losses += [{"kind": "embedding", "teacher": 1}, {"kind": "feature_map", "teacher": 1, "teacher_layers": [0]}]
    distilling["student"]["embed_dim"] = 12  # so that each teacher has adapters of its own
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
    [state] = (result.model.parent / "state").glob("step-*")
    tensors = load_file(state / "tensors.safetensors")
    adapters = {name.removeprefix("model/adapters.") for name in tensors if name.startswith("model/adapters.")}
    assert {name.rpartition(".")[0] for name in adapters} == {
        *("0.image_embedding", "0.text_embedding", "1.image_embedding", "1.text_embedding", "1.image_map_-1_0"),
    }


def test_a_teacher_that_there_is_not_is_named(distilling: Job, run: Run) -> None:
    distilling["options"] |= {"losses": [{"kind": "embedding", "teacher": 2}]}
    with pytest.raises(DcclipError, match="loss embedding learns from teacher 2, and there are 1, counted from 0"):
        run(distilling)


def test_what_the_cache_saves_is_reported(
    distilling: Job, run: Run, elsewhere: Elsewhere, watching: Callable[..., Any]
) -> None:
    first, second = watching(), watching()
    run(distilling, first)
    run(elsewhere(distilling, "second", options={"augmentations": 2, "optimizer": {"lr": 1e-4}}), second)
    asked, reused = ("\n".join(line for line in one.said if line.startswith("teacher:")) for one in (first, second))
    assert "in each of 6 steps would take about" in asked and "reused" not in asked
    assert "100% of the rows reused" in reused
    assert not [name for name, _, _ in second.tasks if name.startswith("teacher")]


@pytest.mark.parametrize("loss", ["embedding", "task"])
def test_a_text_tower_inherits_the_teachers_rows_whether_losses_need_a_teacher_or_not(
    distilling: Job, run: Run, elsewhere: Elsewhere, loss: str
) -> None:
    distilling["student"]["text"] |= {"vocabulary": {"from": "teacher", "size": 300}, "inherit": "embeddings"}
    distilling["options"] |= {"steps": 1, "losses": [{"kind": loss}]}
    result = run(distilling)
    plain = json.loads(json.dumps(distilling))
    plain["student"]["text"]["inherit"] = "nothing"
    other = run(elsewhere(plain, "plain"))
    one, two = (load_file(made.model / "open_clip_model.safetensors") for made in (result, other))
    assert not torch.equal(one["text.token_embedding.weight"], two["text.token_embedding.weight"])
