"""The same job again: identical weights, also after a kill or Ctrl-C; a changed recipe is refused."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.core.run_dir import TrainResult
from dcclip_cli.data.batch import Batch
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.train.checkpoint import latest_checkpoint
from dcclip_cli.train.trainer import Trainer
from tests.train.jobs import Job, Watch, elsewhere, interrupt, kill, logged, refused, run, sha256


@pytest.mark.any_cpu
def test_the_recipe_and_the_seed_alone_decide_the_weights(distilling: Job) -> None:
    expected = sha256(run(distilling))
    neutral = {"workers": 2, "log_every_steps": 1, "checkpoint_every_steps": 100}
    assert sha256(run(elsewhere(distilling, "again", neutral))) == expected
    assert sha256(run(elsewhere(distilling, "faster", {"optimizer": {"lr": 2e-3}}))) != expected
    assert sha256(run(elsewhere(distilling, "other seed", seed=1))) != expected


def test_killed_in_the_middle_and_run_again_gives_the_weights_of_the_unbroken_run(distilling: Job) -> None:
    distilling["student"]["image"] |= {"dropout": 0.1}  # random numbers in the step itself, too
    unbroken = run(elsewhere(distilling, "unbroken"))
    distilling["options"] |= {"workers": 1}
    kill(distilling, "distill", 5)
    folder = Path(distilling["root"], "distill")
    # the one of step 4 may not have been written yet
    saved = latest_checkpoint(folder / "state")
    progress = Watch()
    assert saved and saved.name in ("step-00000002", "step-00000004") and not (folder / "model").exists()
    result = run(distilling, progress)
    assert f"distill: resuming from step {saved.name[-1]} of 6" in progress.said
    assert sha256(result) == sha256(unbroken)
    with process_pool(1) as pool:  # the loading process of the killed one removed no sockets of this one
        assert list(calls(pool, abs, [-1], "")) == [1]


@pytest.mark.parametrize(("patience", "last_step"), [(9, 5), (1, 4)])
def test_a_signal_in_any_step_loses_neither_a_validation_nor_a_metric(
    distilling: Job, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, last_step: int
) -> None:
    (tmp_path / "pictures").mkdir()
    for pair in pairs[:4]:
        (tmp_path / "pictures" / f"{pair.key}.png").write_bytes(pair.image)
    pairs_file = distilling["data"]
    distilling["data"] = {"train": pairs_file, "images": str(tmp_path / "pictures"), "validation": pairs_file}
    distilling["options"] |= {"steps": 5, "log_every_steps": 2, "images_per_step": 2, "losses": [{"kind": "embedding"}]}
    distilling["options"] |= {"validate_every_steps": 2, "keep": "best", "patience": patience}
    if patience == 1:  # the second validation is as good as the first
        distilling["options"] |= {"optimizer": {"lr": 1e-30}, "freeze_batch_norms": True}
    cut_step = 0
    train_step = Trainer.train_step

    def signalled(trainer: Trainer, batch: Batch) -> Any:
        result = train_step(trainer, batch)
        if trainer.state.step == cut_step:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(Trainer, "train_step", signalled)
    unbroken = run(elsewhere(distilling, "unbroken"))
    lines = _lines(unbroken)
    assert max(line["step"] for line in lines) == last_step
    for cut_step in range(1, last_step + 1):
        job = elsewhere(distilling, f"cut in step {cut_step}")
        with pytest.raises(KeyboardInterrupt):
            run(job)
        resumed = run(job)
        assert sha256(resumed) == sha256(unbroken)
        assert resumed.metrics == unbroken.metrics
        assert _lines(resumed) == lines


def _lines(result: TrainResult) -> list[dict[str, float]]:
    """What is logged of losses and validations."""
    lines = logged(result.model.parent)
    return [{name: line[name] for name in ("step", "loss", "top1_zh", "top1_en") if name in line} for line in lines]


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


def test_fresh_is_refused_where_the_folder_cannot_be_removed(distilling: Job, tmp_path: Path) -> None:
    interrupt(distilling, "distill", 3)
    folder = Path(distilling["root"], "distill")
    folder.rename(tmp_path / "other disk")
    folder.symlink_to(tmp_path / "other disk")
    with refused(f"{folder} cannot be removed", "--out"):
        run(distilling | {"fresh": True})
