"""Running a stage, here or in processes of its own that can be killed at a chosen place."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import psutil
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

import dcclip_cli
from dcclip_cli.data.options import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import can_fork
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.progress import Progress, Silent, Task
from dcclip_cli.run_dir import RunDir, TrainResult
from dcclip_cli.train.options import AlignOptions, DistillOptions
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.trainer import train_stage

Job = dict[str, Any]
OPTIONS = {
    "steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "workers": 0,
    "threads": 1,
    "precision": "fp32",
    "checkpoint_every_steps": 2,
    "augment": {"background": "random", "rotate": 15, "colour": 0.3},
}
ENVIRONMENT = {"PYTHONPATH": str(Path(dcclip_cli.__file__).parent.parent)}  # a process finds the same dcclip_cli
WEIGHTS = "open_clip_model.safetensors"
TIMEOUT_S = 150  # of processes that train together: gloo may hang at exit, pytorch issue 56297


class Watch:
    """A Progress that remembers lines and tasks, and acts when a task has counted to a number."""

    def __init__(self, task: str = "", count: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self._task, self._count, self._act = task, count, act
        self.said: list[str] = []
        self.tasks: list[tuple[str, int, int]] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        self.tasks.append((name, total, done))
        yield _Counter(done, self._count if name == self._task else -1, self._act)


class _Counter:
    def __init__(self, done: int, count: int, act: Callable[[], None]) -> None:
        self._done, self._count, self._act = done, count, act

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps
        if steps and self._count > 0 and self._done >= self._count:
            self._count = -1
            self._act()


def send(task: str, count: int, number: signal.Signals = signal.SIGINT) -> Watch:
    """A Progress that sends this process a signal (Ctrl-C) when a task has counted so far."""
    return Watch(task, count, lambda: os.kill(os.getpid(), number))


def stage_of(job: Job, progress: Progress | None = None) -> Stage:
    """The stage that a job describes."""
    data = job["data"] if isinstance(job["data"], dict) else {"train": job["data"]}
    options: type[DistillOptions | AlignOptions] = DistillOptions if job["stage"] == "distill" else AlignOptions
    return Stage(
        options.model_validate(OPTIONS | job["options"]),
        RunDir(Path(job["root"])),
        DataOptions.model_validate(data),
        TypeAdapter(Teacher).validate_python(job["teacher"]) if job.get("teacher") else None,
        StudentOptions.model_validate(job["student"]) if job.get("student") else None,
        job.get("seed", 0),
        fresh=job.get("fresh", False),
        progress=progress or Silent(),
        track=tuple(job.get("track", ())),
    )


def run(job: Job, progress: Progress | None = None) -> TrainResult:
    return train_stage(stage_of(job, progress))


def elsewhere(job: Job, name: str, options: Job | None = None, **changes: Any) -> Job:
    """The same job but for some options and other changes, in another run directory."""
    moved = {"root": str(Path(job["root"]).parent / name), "options": job["options"] | (options or {})}
    return job | moved | changes


def interrupt(job: Job, task: str, count: int) -> None:
    """Run a job and press Ctrl-C when a task has counted so far."""
    with pytest.raises(KeyboardInterrupt):
        run(job, send(task, count))


def kill(job: Job, task: str, count: int, processes: int = 1) -> None:
    """Run a job in a process of its own, or in several, and kill it when a task has counted so far."""
    file = Path(job["root"]).with_name("killed.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job))
    waiting = file.with_suffix(".waiting")
    process = start(processes, run_job, str(file), task, str(count))
    try:
        for _ in range(1200):
            if waiting.exists():
                break
            assert process.poll() is None, "ended too early"
            time.sleep(0.05)
        else:
            pytest.fail("never got there")
    finally:
        for child in [process, *psutil.Process(process.pid).children(recursive=True)]:
            child.kill()
        process.wait()


def need_libuv() -> None:
    """Skip the test where torch cannot connect processes: Debian's is built without libuv, and ignores USE_LIBUV."""
    try:
        torch.distributed.TCPStore("localhost", 0, is_master=True)  # type: ignore[attr-defined]  # not in torch's __all__
    except torch.distributed.DistStoreError as error:
        pytest.skip(str(error))


def start(count: int, function: Callable[..., None], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A function of a module, called in a process, or in several that train together."""
    if count > 1:
        need_libuv()
    call = (
        f"from tests.train.jobs import call; call({count}, {function.__module__!r}, {function.__name__!r}, {arguments})"
    )
    environment = os.environ | ENVIRONMENT
    return subprocess.Popen([sys.executable, "-c", call], env=environment, start_new_session=True, text=True, **options)


def call(count: int, module: str, name: str, arguments: tuple[str, ...]) -> None:
    """What `start` runs. Processes that are forked share what takes seconds to import."""
    import open_clip  # noqa: F401
    from torch.multiprocessing.spawn import start_processes
    from transformers import AltCLIPModel  # noqa: F401

    function = getattr(importlib.import_module(module), name)
    if count == 1:
        return function(*arguments)
    with socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    start_processes(
        _call_rank, (count, port, function, arguments), count, start_method="fork" if can_fork() else "spawn"
    )


def _call_rank(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[str, ...]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in places.items()}}
    function(*arguments)
    sys.stdout.flush()
    os._exit(0)  # without the end of the process group, in which gloo may hang


def in_processes(count: int, function: Callable[[str], None], argument: Path) -> None:
    """Call a function in processes that train together."""
    process = start(count, function, str(argument), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{count} processes did not come to an end")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output


@contextmanager
def refused(what: str, hint: str) -> Iterator[None]:
    """The block ends in a DcclipError whose text matches `what` and whose hint contains `hint`."""
    with pytest.raises(DcclipError, match=what) as raised:
        yield
    assert hint in raised.value.hint


def weights(made: TrainResult | Path) -> dict[str, torch.Tensor]:
    return load_file((made if isinstance(made, Path) else made.model) / WEIGHTS)


def sha256(made: TrainResult) -> str:
    """The sha256 of the weights' file."""
    return hashlib.sha256((made.model / WEIGHTS).read_bytes()).hexdigest()


def assert_close(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """All weights of two models agree to 1e-5."""
    for name, value in others.items():
        torch.testing.assert_close(some[name], value, rtol=0, atol=1e-5, msg=name)


def logged(stage: Path) -> list[dict[str, float]]:
    """The lines of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text("utf-8").splitlines()]


def run_job(file: str, task: str = "", count: str = "0") -> None:
    """Run the job in a file; once `task` has counted to `count`, wait to be killed."""

    def wait_to_be_killed() -> None:
        Path(file).with_suffix(".waiting").touch()
        time.sleep(600)

    run(json.loads(Path(file).read_text()), Watch(task, int(count), wait_to_be_killed))
