"""Both stages on two processes (gloo), which must do what one does on the same batches."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcclip_cli
from dcclip_cli.runs import StageResult

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


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("stage", ["distill", "align"])
def test_two_processes_train_as_one_does_on_the_same_batches(
    distilling: dict[str, Any], run: Callable[..., StageResult], tmp_path: Path, stage: str
) -> None:
    # No batch norms, whose statistics would be each process's own; eps makes AdamW's steps follow the gradient's size.
    job: dict[str, Any] = distilling | {"stage": stage}
    job["student"]["image"] = {"timm": "test_convnext", "size": 64}
    job["options"] = {"steps": 3, "captions": {"first": 1}, "optimizer": {"lr": 0.1, "eps": 1.0}, "clip_norm": None}
    if stage == "align":
        job["options"] |= {"start": "scratch"}
    else:
        job["options"] |= {"teacher_cache": False, "losses": [{"kind": "feature_map"}, {"kind": "embedding"}]}
    roots = {name: str(tmp_path / name) for name in ("one", "two", "shorter")}
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
