"""The same job again: identical weights, also after a kill or Ctrl-C; a changed recipe is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from tests.train.jobs import Job, Watch, elsewhere, interrupt, kill, refused, run, sha256

STAGES = pytest.mark.parametrize("stage", ["distill", "align"])


@pytest.mark.parametrize(
    ("options", "changes", "same"),
    [
        pytest.param({}, {}, True, marks=pytest.mark.any_cpu),
        ({"workers": 2, "log_every_steps": 1, "checkpoint_every_steps": 100}, {}, True),
        ({"optimizer": {"lr": 2e-3}}, {}, False),
        ({}, {"seed": 1}, False),
    ],
)
def test_the_recipe_and_the_seed_alone_decide_the_weights(
    distilling: Job, options: Job, changes: Job, same: bool
) -> None:
    other = elsewhere(distilling, "other", options, **changes)
    assert (sha256(run(distilling)) == sha256(run(other))) == same


def test_from_scratch_twice_gives_the_identical_model(aligning: Job, student_section: dict[str, Any]) -> None:
    aligning |= {"student": student_section, "options": {"start": "scratch", "steps": 3}}
    first, again = run(aligning), run(elsewhere(aligning, "again"))
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"):
        assert (first.model / name).read_bytes() == (again.model / name).read_bytes(), name
    assert json.loads((first.model / "dcclip.json").read_text())["parent"] is None


@STAGES
def test_killed_in_the_middle_and_run_again_gives_the_weights_of_the_unbroken_run(
    job: Job, stage: str, student_section: dict[str, Any]
) -> None:
    student_section["image"] |= {"dropout": 0.1, "drop_path": 0.1}  # random numbers in the step itself, too
    job |= {"student": student_section}
    if stage == "align":
        job["options"] = {"start": "scratch"}
    unbroken = run(elsewhere(job, "unbroken"))
    job["options"] |= {"workers": 1} if stage == "distill" else {}
    kill(job, stage, 5)
    folder = Path(job["root"], stage)
    assert (folder / "state" / "step-00000004").is_dir() and not (folder / "model").exists()
    progress = Watch()
    result = run(job, progress)
    assert f"{stage}: resuming from step 4 of 6" in progress.said
    assert sha256(result) == sha256(unbroken)


def test_killed_while_the_teacher_runs_and_run_again_gives_the_weights_of_the_unbroken_run(
    distilling: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(elsewhere(distilling, "unbroken"))
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    kill(distilling, "teacher: captions", 64)
    assert not (Path(distilling["root"]) / "distill" / "state").exists()
    progress = Watch()
    result = run(distilling, progress)
    [(name, total, done)] = [task for task in progress.tasks if task[0].startswith("teacher")]
    assert (name, done) == ("teacher: captions", 0) and total > 64
    assert sha256(result) == sha256(unbroken)


@pytest.mark.parametrize(
    ("stage", "step", "options"),
    [
        ("distill", 3, {"teacher_cache": False}),
        ("align", 1, {}),
        ("align", 5, {"ema": 0.5}),
        ("align", 3, {"optimizer": {"layer_decay": 0.5}}),
    ],
)
def test_interrupted_anywhere_and_run_again_gives_the_weights_of_the_unbroken_run(
    job: Job, stage: str, step: int, options: Job
) -> None:
    plain = elsewhere(job, "plain")
    job["options"] |= options
    unbroken = sha256(run(elsewhere(job, "unbroken")))
    interrupt(job, stage, step)
    assert (Path(job["root"], stage, "state") / f"step-{step:08}").is_dir()
    assert sha256(run(job)) == unbroken
    if stage == "align" and options:
        assert unbroken != sha256(run(plain))


def test_data_shuffled_in_windows_resumes_alike_and_with_no_other_window(aligning: Job) -> None:
    aligning["data"] = {"train": aligning["data"], "shuffle_window": 16}  # of 40 pairs: windows of two steps
    unbroken = sha256(run(elsewhere(aligning, "unbroken")))
    interrupt(aligning, "align", 3)
    with refused("was saved by another recipe", "--fresh"):
        run(aligning | {"data": aligning["data"] | {"shuffle_window": 24}})
    assert sha256(run(aligning)) == unbroken


@STAGES
def test_a_finished_stage_does_nothing_and_fresh_does_it_again(job: Job) -> None:
    first = run(job)
    expected, written = sha256(first), (first.model / "dcclip.json").stat().st_mtime_ns
    progress = Watch()
    again = run(job | {"teacher": {"kind": "altclip", "model": "/nowhere"}}, progress)
    assert (first.already_finished, again.already_finished, again.model) == (False, True, first.model)
    assert progress.tasks == []
    assert (first.model / "dcclip.json").stat().st_mtime_ns == written
    fresh = run(job | {"fresh": True})
    assert (fresh.already_finished, sha256(fresh)) == (False, expected)


CHANGES: dict[str, list[tuple[str, Any]]] = {
    "distill": [
        ("options.optimizer", {"lr": 2e-3}),
        ("options.losses", [{"kind": "embedding"}]),
        ("seed", 1),
        ("data", "other.parquet"),
        ("teacher", {"kind": "transformers", "model": "teacher"}),
        ("student.text.layers", 2),
        ("student.text.vocabulary", {"from": "teacher", "size": 300}),
        ("student.image.weights", "start.safetensors"),
    ],
    "align": [("data", "other.parquet"), ("options.start", "longer/align/model"), ("options.lock", "image")],
}


@STAGES
def test_a_changed_recipe_on_an_old_state_is_refused_and_fresh_is_the_way_out(
    job: Job, pairs: list[Pair], chinese_clip_folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    interrupt(job, stage, 2)
    folder = Path(job["root"]).parent
    monkeypatch.chdir(folder)
    write_parquet(folder / "other.parquet", pairs[:-1])
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "start.safetensors")
    (folder / "teacher").symlink_to(chinese_clip_folder)
    if stage == "align":
        run(elsewhere(job, "longer"))
    for key, value in CHANGES[stage]:
        other = json.loads(json.dumps(job))
        *path, last = key.split(".")
        inner = other
        for name in path:
            inner = inner[name]
        inner[last] = value
        with refused("was saved by another recipe", "--fresh"):
            run(other)
    assert not run(other | {"fresh": True}).already_finished
