"""`--processes`: what torchrun does, with the errors and signals of one command."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import psutil
import pytest
import yaml
from torch.distributed import DistStoreError

from dcclip_cli.core.progress import Silent
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.train.compute import _rendezvous
from dcclip_cli.train.launch import launch, on_gpus, process_number
from tests.cli.conftest import dcclip
from tests.train import jobs, launchers
from tests.train.jobs import ENVIRONMENT, OPTIONS, TIMEOUT_S, Job, assert_close, logged, refused, run, weights

ROOT = Path(__file__).parents[2]
Started = subprocess.Popen[str]
OWN_LOSS = """
from dcclip_cli.train.losses.contrastive import TaskLoss
class Own(TaskLoss):
    kind: str
"""


def recipe(job: Job, folder: Path, **options: Any) -> Path:
    """The recipe of a job as a file."""
    content = {"format": 1, "name": "并行", "data": {"train": job["data"]}}
    content["align"] = OPTIONS | job["options"] | {"workers": 1, "log_every_steps": 1} | options
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    return file


def start(file: Path, out: Path, *arguments: str, command: str = "align", **environment: str) -> Started:
    """A command on a recipe, with `environment` in addition to this process's."""
    jobs.need_libuv()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dcclip_cli", command, str(file), "--out", str(out), *arguments],
        env=ENVIRONMENT | os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(out: Path, process: Started) -> None:
    """Wait until a command has logged a step of align."""
    end = time.monotonic() + TIMEOUT_S
    while not (out / "align/metrics.jsonl").exists() or not logged(out / "align"):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.mark.timeout(5 * TIMEOUT_S)
def test_two_processes_that_are_stopped_go_on_to_the_weights_of_one_that_is_not(aligning: Job, tmp_path: Path) -> None:
    sgd = {"kind": "sgd", "lr": 0.02, "momentum": 0.9}
    aligning["options"] |= {"steps": 30, "freeze_batch_norms": True, "optimizer": sgd, "checkpoint_every_steps": 1000}
    aligning["options"] |= {"accumulate": 2, "gradient_cache": True}
    file = recipe(aligning, tmp_path)
    out = tmp_path / "out"
    with start(file, out, "--processes", "2") as process:
        wait_for_steps(out, process)
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        printed, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143 and not printed
    saved = len(logged(out / "align"))
    [last] = [line for line in stderr.splitlines() if "saved" in line or "stopped" in line]
    assert last == f"stopped: align saved after step {saved}: run the same command again"
    assert "Traceback" not in stderr and not psutil.wait_procs(ranks, 5)[1]
    with start(file, out, "--processes", "2") as process:
        printed, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and printed == f"{out}/align/model\n", stderr
    assert stderr.count(f"resuming from step {saved} of 30") == 1
    assert_close(weights(out / "align/model"), weights(run(aligning)))


@pytest.fixture
def page(aligning: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The commands of the page by program, for two machines with a process each; the script of sbatch is a file."""
    with socket() as unused:
        unused.bind(("localhost", 0))
        port = str(unused.getsockname()[1])
    for name in ("sbatch", "srun", "scontrol", "torchrun", "ray"):
        (tmp_path / name).symlink_to(launchers.__file__)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MASTER_PORT", port)
    recipe(aligning, tmp_path, steps=60, checkpoint_every_steps=None, checkpoint_every_minutes=100.0)
    text = (ROOT / "docs/how-to/cluster.md").read_text("utf-8")
    shown = {"nodes=4": "nodes=2", "per-node=8": "per-node=1", "ib0": "lo", "node1:29500": f"localhost:{port}"}
    for old, new in {**shown, "/shared/runs/altclip": "out"}.items():
        assert old in text
        text = text.replace(old, new)
    script, commands, _ = re.findall(r"^```sh.*\n((?:.*\n)*?)```", text, re.M)
    (tmp_path / "train.sh").write_text(script)
    return {line.split()[0]: line for line in commands.splitlines()}


def shell(command: str) -> Started:
    jobs.need_libuv()
    pipes: Job = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", "-c", f"exec {command}"], env=ENVIRONMENT | os.environ, **pipes)


@pytest.mark.timeout(4 * TIMEOUT_S)
def test_a_job_of_slurm_holds_its_folder_stops_all_tasks_while_one_waits_for_data_is_requeued_and_resumes(
    page: dict[str, str], aligning: Job, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    out = tmp_path / "out"
    content = yaml.safe_load(file.read_text("utf-8")) | {"eval": {"datasets": [aligning["data"]]}}
    file.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    job = shell("sbatch train.sh")
    wait_for_steps(out, job)
    processes = psutil.Process(job.pid).children(recursive=True)
    tasks = {task.environ().get("SLURM_PROCID"): task for task in reversed(processes)}
    for loader in tasks["1"].children():
        loader.suspend()
    steps = 0
    while steps < len(logged(out / "align")):  # of the batches that were made before
        steps = len(logged(out / "align"))
        time.sleep(1)
    stderr = dcclip("align", file, "--out", out, expect=1).stderr
    assert f"error: {out} is in use by another command (process {tasks['0'].pid}, " in stderr
    tasks["1"].send_signal(signal.SIGTERM)
    printed, stderr = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == 128 + signal.SIGTERM and printed == "requeue 7\n"
    saved = len(logged(out / "align"))
    assert stderr.splitlines()[-1] == f"stopped: align saved after step {saved}: run the same command again"
    assert stderr.count("stopped") == 1, "only the first process says so"
    step = shell(page["srun"])
    printed, stderr = step.communicate(timeout=TIMEOUT_S)
    assert step.returncode == 0 and printed.count("student") == 1, f"the first one alone evaluates: {stderr}"
    assert [line["step"] for line in logged(out / "align")] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("program", ["torchrun", "ray"])
def test_other_launchers_train_to_the_end(page: dict[str, str], tmp_path: Path, program: str) -> None:
    machines = [shell(page[program]) for _ in range(2 if program == "torchrun" else 1)]
    ends = [machine.communicate(timeout=TIMEOUT_S) for machine in machines]
    assert not any(machine.returncode for machine in machines), ends
    assert [line["step"] for line in logged(tmp_path / "out/align")] == list(range(1, 61))


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_an_error_in_one_process_ends_all_with_one_error_and_one_hint(
    aligning: Job, tmp_path: Path, pairs: list[Pair], downloaded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (downloaded_folder / "parts").mkdir()
    (downloaded_folder / "parts/own.py").write_text(OWN_LOSS)
    monkeypatch.setenv("PYTHONPATH", f"{ENVIRONMENT['PYTHONPATH']}:parts")
    bad = pairs[-1]
    write_parquet(tmp_path / "坏.parquet", [*pairs[:-1], replace(bad, image=bad.image[:40])])
    file = recipe(aligning | {"data": str(tmp_path / "坏.parquet")}, tmp_path, steps=20, losses=[{"kind": "own:Own"}])
    with start(file, tmp_path / "out", "-q", "--processes", "2") as process:
        printed, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1 and not printed
    imported, error, hint = stderr.splitlines()
    assert imported.endswith("parts/own.py")
    assert error.startswith("error: ") and bad.key in error and hint.startswith("hint:  ")


def test_processes_of_srun_connect_by_a_torch_without_libuv(monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = sys.modules["torch.distributed.rendezvous"]  # which is a function as well
    store = rendezvous.TCPStore

    def without_libuv(*arguments: Any, use_libuv: bool = True, **options: Any) -> Any:
        if use_libuv:
            raise DistStoreError("use_libuv was requested but PyTorch was built without libuv support")
        return store(*arguments, **options, use_libuv=False)

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "TCPStore", without_libuv)
    assert _rendezvous.__wrapped__()[1:] == (0, 1)


def test_torch_without_libuv_is_told_from_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_libuv(*_: object, **options: object) -> None:
        raise DistStoreError("use_libuv was requested but PyTorch was built without libuv support")

    monkeypatch.setattr("torch.distributed.elastic.rendezvous.c10d_rendezvous_backend.TCPStore", without_libuv)
    with refused("--processes 2: torch cannot connect: .* built without libuv", "--processes 1"):
        launch(["align"], 2, Silent())


def test_there_are_as_many_processes_as_gpus_at_most_and_none_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (on_gpus("auto", 4), on_gpus(2, 4), process_number(3, "cpu"), process_number("auto", "cpu")) == (4, 2, 3, 1)
    with refused("every process needs its own GPU, and this machine has 4", "set --processes 4 or auto"):
        on_gpus(5, 4)
    monkeypatch.setenv("RANK", "0")
    with refused("--processes 2 cannot be used under torchrun", "start the command without torchrun"):
        process_number(2, "cpu")
    assert process_number(1, "cpu") == 1
