"""`accumulate: auto`: batches are split when memory runs out, and the step that failed is done again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.core.machine import cores, loading_processes
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.train.compute import Parts
from tests.train.jobs import ENVIRONMENT, Job, Watch, elsewhere, run, sha256

# Runs a job until it has done one of its steps in a bit more memory than the libraries take.
LIMITED = """
import gc, json, resource, signal, sys
from tests.train.jobs import elsewhere, run, send
job = json.loads(sys.argv[1])
run(elsewhere(job, "warm", {"steps": 1}))
gc.collect()
[size] = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (MORE << 20), resource.RLIM_INFINITY))
try:
    run(job, send("align", 1))
except KeyboardInterrupt:
    print("stopped")
"""
MORE = 300  # MB; a step of the whole batch takes more than 400


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_a_run_whose_memory_is_limited_has_the_weights_of_one_in_those_parts(
    aligning: Job, student_section: dict[str, Any], tmp_path: Path
) -> None:
    student_section["image"]["size"] = 192
    options = {"start": "scratch", "steps": 2, "batch_size": 40, "accumulate": "auto", "gradient_cache": True}
    aligning |= {"student": student_section, "options": options}
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("MORE", str(MORE)), json.dumps(aligning)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "stopped\n", ran.stderr
    decisions = json.loads(Path(aligning["root"], "align/computed_in.json").read_bytes())
    (_, parts_before), *_, (step, parts) = decisions["accumulate"]
    assert parts_before == 1 < parts and step == 0
    watch = Watch()
    resumed = run(aligning, watch)
    assert any("resuming from step 1 of 2" in line for line in watch.said)
    assert sha256(resumed) == sha256(run(elsewhere(aligning, "from the start", {"accumulate": parts})))


def test_parts_are_equal_at_least_twice_as_many_and_stay_for_a_resumed_run(pairs_file: Path, tmp_path: Path) -> None:
    pairs = open_pairs(pairs_file)
    sampler = MixedBatchSampler(tuple(EpochBatchSampler(pairs, size, seed=0) for size in (24, 12)))
    (tmp_path / "对齐 align").mkdir()
    watch = Watch()
    parts = Parts("auto", sampler, tmp_path / "对齐 align", watch)
    assert parts.at(0) == 1
    for step, number in ((0, 2), (0, 4), (7, 12)):
        parts.split(step, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 猫"))
        assert parts.at(step) == number
    assert watch.said[-1] == "对齐 align: not enough memory for step 8: from now on, batches are split into 12 parts"
    resumed = Parts("auto", sampler, tmp_path / "对齐 align", watch)
    assert [resumed.at(step) for step in (0, 6, 7, 100)] == [4, 4, 12, 12]
    for failing, step, error in ((resumed, 7, MemoryError()), (resumed, 0, RuntimeError("another")),
                             (Parts(2, sampler, tmp_path, watch), 0, MemoryError())):  # fmt: skip
        with pytest.raises(type(error)) as raised:
            failing.split(step, error)
        assert raised.value is error


def test_loading_processes_are_one_on_the_cpu_and_the_other_cores_on_a_gpu() -> None:
    assert loading_processes("auto") == 1
    assert loading_processes("auto", "cuda") == max(1, cores() - 1)
    assert loading_processes("auto", "cuda", 1000) == 1
    assert loading_processes(0, "cuda") == 0
