"""The same job again: identical weights, also after a kill or Ctrl-C; a changed recipe is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.processes import calls, process_pool
from dcclip_cli.train.checkpoint import latest_checkpoint
from tests.train.jobs import Job, Watch, elsewhere, interrupt, kill, refused, run, sha256


@pytest.mark.any_cpu
def test_the_recipe_and_the_seed_alone_decide_the_weights(distilling: Job) -> None:
    expected = sha256(run(distilling))
    neutral = {"workers": 2, "log_every_steps": 1, "checkpoint_every_steps": 100}
    assert sha256(run(elsewhere(distilling, "again", neutral))) == expected
    assert sha256(run(elsewhere(distilling, "faster", {"optimizer": {"lr": 2e-3}}))) != expected
    assert sha256(run(elsewhere(distilling, "other seed", seed=1))) != expected


def test_killed_in_the_middle_and_run_again_gives_the_weights_of_the_unbroken_run(distilling: Job) -> None:
    distilling["student"]["image"] |= {"dropout": 0.1, "drop_path": 0.1}  # random numbers in the step itself, too
    unbroken = run(elsewhere(distilling, "unbroken"))
    distilling["options"] |= {"workers": 1}
    kill(distilling, "distill", 5)
    folder = Path(distilling["root"], "distill")
    saved, progress = latest_checkpoint(folder / "state"), Watch()  # the one of step 4 may not have been written yet
    assert saved and saved.name in ("step-00000002", "step-00000004") and not (folder / "model").exists()
    result = run(distilling, progress)
    assert f"distill: resuming from step {saved.name[-1]} of 6" in progress.said
    assert sha256(result) == sha256(unbroken)
    with process_pool(1) as pool:  # the loading process of the killed one removed no sockets of this one
        assert list(calls(pool, abs, [-1], "")) == [1]


def test_data_shuffled_in_windows_resumes_alike_and_with_no_other_window(aligning: Job) -> None:
    aligning["data"] = {"train": aligning["data"], "shuffle_window": 16}  # of 40 pairs: windows of two steps
    unbroken = sha256(run(elsewhere(aligning, "unbroken")))
    interrupt(aligning, "align", 3)
    with refused("belongs to another recipe", "--fresh"):
        run(aligning | {"data": aligning["data"] | {"shuffle_window": 24}})
    assert sha256(run(aligning)) == unbroken


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


@pytest.mark.parametrize("stage", ["distill", "align"])
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
        changed = json.loads(json.dumps(job))
        *path, last = key.split(".")
        inner = changed
        for name in path:
            inner = inner[name]
        inner[last] = value
        with refused(rf"belongs to another recipe, .*: .*{last}.* changed", "undo the change to resume, or start over"):
            run(changed)
    assert not run(changed | {"fresh": True}).already_finished
