"""Running a stage, here or in processes of its own that can be killed at a chosen place."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

import dcclip_cli
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.core.progress import Progress, Silent, Task
from dcclip_cli.core.run_dir import RunDir, TrainResult
from dcclip_cli.data.options import DataOptions
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
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
        self._task = task
        self._count = count
        self._act = act
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
        self._done = done
        self._count = count
        self._act = act

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
    """Run a job in a process of its own, or in several, which kill themselves when a task has counted so far."""
    file = Path(job["root"]).with_name("killed.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job))
    with refused("a worker process was killed", ""):
        in_processes(processes, partial(run_job, task=task, count=count), file)


def need_libuv() -> None:
    """Skip the test where torch cannot connect processes: Debian's is built without libuv, and ignores USE_LIBUV."""
    try:
        torch.distributed.TCPStore("localhost", 0, is_master=True)  # type: ignore[attr-defined]  # not in torch's __all__
    except torch.distributed.DistStoreError as error:
        pytest.skip(str(error))


def in_processes(count: int, function: Callable[[str], None], argument: Path) -> None:
    """Call a function of a module in processes that train together."""
    with socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    with process_pool(count) as pool:
        list(calls(pool, partial(_call_rank, function, str(argument), count, port), range(count), ""))


def _call_rank(function: Callable[[str], None], argument: str, count: int, port: int, rank: int) -> None:
    if count > 1:  # as torchrun does
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in places.items()}}
    function(argument)


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
    """All weights of two models agree, but for the order in which kernels sum.

    A gradient is a sum over up to 16 images x 32 x 32 places, and 20 steps add theirs. In another order, for another
    batch or processor, each addition rounds otherwise: the errors add up as the square root of their number.
    """
    rounding = (20 * 16 * 32 * 32) ** 0.5 * torch.finfo(torch.float32).eps
    for name, value in others.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(some[name], value, rtol=0, atol=rounding * largest, msg=name)


def logged(stage: Path) -> list[dict[str, float]]:
    """The lines of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text("utf-8").splitlines()]


def run_job(file: str, task: str = "", count: int = 0) -> None:
    """Run the job in a file; once `task` has counted to `count`, kill this process."""
    run(json.loads(Path(file).read_text()), send(task, count, signal.SIGKILL))
