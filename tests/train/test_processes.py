"""Both stages on two processes (gloo), which must do what one does on the same batches."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcclip_cli
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.run_dir import TrainResult

TIMEOUT_S = 150  # gloo may hang at exit: pytorch issue 56297


def on_two_processes(job: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(job))
    script = Path(__file__).with_name("conftest.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, str(script), str(file)],
        env=os.environ | {"PYTHONPATH": str(Path(dcclip_cli.__file__).parent.parent)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.fail("two processes did not come to an end")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said


LOSSES = [{"kind": kind} for kind in ("feature_map", "token_features", "embedding", "interactive", "similarity")]


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize(("stage", "further"), [("distill", False), ("align", False), ("align", True)])
def test_two_processes_train_as_one_does_on_the_same_batches(
    distilling: dict[str, Any],
    run: Callable[..., TrainResult],
    tmp_path: Path,
    pairs: list[Pair],
    stage: str,
    further: bool,
) -> None:
    # Some pairs lack a caption, and some share one, so that the two have unequal shares of texts and of negatives.
    some = [replace(pair, zh=pair.zh[: number % 3]) for number, pair in enumerate(pairs)]
    write_parquet(tmp_path / "some.parquet", some)
    job: dict[str, Any] = distilling | {"stage": stage, "data": str(tmp_path / "some.parquet")}
    job["options"] = {
        "steps": 20,
        "freeze_batch_norms": True,
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "clip_norm": None,
    }
    if stage == "align":
        job["options"] |= {"start": "scratch", "distinct_captions": False, "cross_lingual": 0.5}
    else:
        job["options"] |= {"augmentations": 2, "losses": LOSSES}
    if further:
        job["data"] = dict.fromkeys(("train", "images", "texts"), job["data"])
        job["options"] |= {"losses": [{"kind": "embedding"}], "images_per_step": 4, "texts_per_step": 6}
    roots = {name: str(tmp_path / name / "run") for name in ("one", "two", "shorter")}
    run(job | {"root": roots["one"]})
    run(job | {"root": roots["shorter"], "options": job["options"] | {"steps": 1}})
    on_two_processes(job | {"root": roots["two"]}, tmp_path / "job.json")
    assert not [path for path in Path(roots["two"], stage).iterdir() if path.name.startswith(".")]
    one, two, shorter = (
        load_file(Path(root, stage, "model", "open_clip_model.safetensors")) for root in roots.values()
    )
    assert max(float((value - shorter[name]).abs().max()) for name, value in one.items()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    said = [
        [json.loads(line) for line in Path(roots[name], stage, "metrics.jsonl").read_text("utf-8").splitlines()][-1]
        for name in ("one", "two")
    ]
    assert said[1]["step"] == 20
    assert said[1]["loss"] == pytest.approx(said[0]["loss"], rel=1e-4), "the log tells of the whole batch"


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_two_processes_resume_where_one_was_stopped(
    aligning: dict[str, Any],
    run: Callable[..., TrainResult],
    interrupt: Callable[..., None],
    tmp_path: Path,
) -> None:
    sgd = {"kind": "sgd", "lr": 0.02, "momentum": 0.9}
    aligning["options"] |= {"freeze_batch_norms": True, "optimizer": sgd, "accumulate": 2, "gradient_cache": True}
    unbroken = load_file(run(aligning | {"root": str(tmp_path / "unbroken")}).model / "open_clip_model.safetensors")
    interrupt(aligning, "align", 3)
    on_two_processes(aligning, tmp_path / "job.json")
    resumed = load_file(Path(aligning["root"], "align", "model", "open_clip_model.safetensors"))
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-5)
