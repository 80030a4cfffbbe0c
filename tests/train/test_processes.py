"""Both stages on two processes (gloo), which must do what one does on the same batches."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from tests.train.jobs import ENVIRONMENT, Job, assert_close, elsewhere, logged, run, weights

TIMEOUT_S = 150  # gloo may hang at exit: pytorch issue 56297


def on_two_processes(job: Job, file: Path) -> None:
    file.write_text(json.dumps(job))
    script = Path(__file__).with_name("jobs.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, str(script), str(file)],
        env=os.environ | ENVIRONMENT,
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


COMPARING = [{"kind": kind} for kind in ("interactive", "similarity", "feature_map", "token_features", "embedding")]


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("case", ["align", "distill", "distill in parts"])
def test_two_processes_train_as_one_does_on_the_same_batches(
    distilling: Job, tmp_path: Path, pairs: list[Pair], case: str
) -> None:
    # A share, a part and a whole batch may lack Chinese, and captions are shared: the two have unequal texts.
    some = [replace(pair, zh=pair.zh[: number % 9 // 7]) for number, pair in enumerate(pairs)]
    write_parquet(tmp_path / "some.parquet", some)
    stage = case.split()[0]
    job = distilling | {"stage": stage, "data": str(tmp_path / "some.parquet")}
    job["options"] = {
        "steps": 20,
        "freeze_batch_norms": True,
        "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        "clip_norm": None,
        "augmentations": 2,
    }
    if stage == "align":
        job["data"] = dict.fromkeys(("train", "images", "texts"), job["data"])
        job["options"] |= {"start": "scratch", "distinct_captions": False, "cross_lingual": 0.5}
        job["options"] |= {"losses": [{"kind": "embedding"}], "images_per_step": 4, "texts_per_step": 6}
    elif case == "distill":
        job["options"] |= {"losses": COMPARING, "captions": {"caption_fraction": 0.4}}  # 3 of 8
    else:
        job["data"] = dict.fromkeys(("train", "images"), job["data"])
        job["options"] |= {"losses": [*COMPARING[2:], {"kind": "cross_lingual"}], "accumulate": 2}
        job["options"] |= {"captions": {"caption_fraction": 0.13}}  # of one pair: one process has no text
    one, two, shorter = elsewhere(job, "one"), elsewhere(job, "two"), elsewhere(job, "shorter", {"steps": 1})
    whole, first = weights(run(one)), weights(run(shorter))
    on_two_processes(two, tmp_path / "job.json")
    folder = Path(two["root"], stage)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert max(float((value - first[name]).abs().max()) for name, value in whole.items()) > 1e-3
    assert_close(weights(folder / "model"), whole)
    expected, last = logged(Path(one["root"], stage))[-1], logged(folder)[-1]
    assert last["step"] == 20
    assert last["loss"] == pytest.approx(expected["loss"], rel=1e-4), "the log tells of the whole batch"
