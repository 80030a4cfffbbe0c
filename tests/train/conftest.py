"""Running a stage, here or in a process of its own that can be killed at a chosen place.

As a script: conftest.py JOB.json [TASK COUNT] runs the job and, once TASK has counted to COUNT, waits to be killed.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dcclip_cli
from dcclip_cli.data.options import DataOptions
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.progress import Progress, Silent, Task
from dcclip_cli.run_dir import RunDir, TrainResult

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


class At:
    """A Progress that does something when a task has counted so far, and remembers what was said."""

    def __init__(self, task: str, count: int, act: Callable[[], None]) -> None:
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


def run_job(job: Job, progress: Progress | None = None) -> TrainResult:
    """Run the stage that a job describes."""
    from pydantic import TypeAdapter

    from dcclip_cli.train.align import AlignOptions, align
    from dcclip_cli.train.distill import DistillOptions, distill
    from dcclip_cli.train.options import StageContext

    data = job["data"] if isinstance(job["data"], dict) else {"train": job["data"]}
    context = StageContext(
        RunDir(Path(job["root"])),
        DataOptions.model_validate(data),
        TypeAdapter(Teacher).validate_python(job["teacher"]) if job.get("teacher") else None,
        StudentOptions.model_validate(job["student"]) if job.get("student") else None,
        job.get("seed", 0),
        fresh=job.get("fresh", False),
        progress=progress or Silent(),
    )
    options = OPTIONS | job["options"]
    if job["stage"] == "distill":
        return distill(DistillOptions.model_validate(options), context)
    return align(AlignOptions.model_validate(options), context)


@pytest.fixture(autouse=True, scope="session")
def _light_collections() -> None:
    """Training ends in a garbage collection: keep it from going through all that the libraries made at import."""
    import gc

    import dcclip_cli.train.stage  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def run() -> Callable[..., TrainResult]:
    return run_job


@pytest.fixture
def elsewhere() -> Callable[..., Job]:
    """A function that gives the same job, but for some changes, in another run directory."""

    def moved(job: Job, name: str, **changes: Any) -> Job:
        return job | {"root": str(Path(job["root"]).parent / name)} | changes

    return moved


@pytest.fixture
def watching() -> Callable[..., At]:
    """A Progress that remembers, and that can act at one place."""

    def make(task: str = "", count: int = 0, act: Callable[[], None] = lambda: None) -> At:
        return At(task, count, act)

    return make


@pytest.fixture
def interrupt() -> Callable[[Job, str, int], None]:
    """A function that runs a job and presses Ctrl-C when a task has counted so far."""

    def press(job: Job, task: str, count: int) -> None:
        with pytest.raises(KeyboardInterrupt):
            run_job(job, At(task, count, lambda: os.kill(os.getpid(), signal.SIGINT)))

    return press


@pytest.fixture
def kill(tmp_path: Path) -> Callable[[Job, str, int], None]:
    """A function that runs a job in a process of its own and kills it when a task has counted so far."""

    def start_and_kill(job: Job, task: str, count: int) -> None:
        file, waiting = tmp_path / "job.json", tmp_path / "job.waiting"
        file.write_text(json.dumps(job))
        process = subprocess.Popen([sys.executable, __file__, str(file), task, str(count)], env=environment())
        try:
            for _ in range(1200):
                if waiting.exists():
                    break
                assert process.poll() is None, "ended too early"
                time.sleep(0.05)
            else:
                pytest.fail("never got there")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        waiting.unlink()

    return start_and_kill


def environment() -> dict[str, str]:
    """The environment of a process that finds dcclip_cli where this one did."""
    return os.environ | {"PYTHONPATH": str(Path(dcclip_cli.__file__).parent.parent)}


@pytest.fixture
def sha256() -> Callable[[TrainResult | Path], str]:
    """A function that gives the sha256 of a model directory's weights."""

    def of_weights(made: TrainResult | Path) -> str:
        folder = made if isinstance(made, Path) else made.model
        return hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()

    return of_weights


@pytest.fixture
def distilling(pairs_file: Path, altclip_folder: Path, student_section: dict[str, Any], tmp_path: Path) -> Job:
    """A small job of stage 1 under AltCLIP: 6 steps, a state every second."""
    return {
        "stage": "distill",
        "root": str(tmp_path / "runs" / "job"),
        "data": str(pairs_file),
        "teacher": {"kind": "altclip", "model": str(altclip_folder)},
        "student": student_section,
        "options": {"augmentations": 2},
    }


@pytest.fixture
def aligning(pairs_file: Path, model_folder: Path, tmp_path: Path) -> Job:
    """A small job of stage 2 from the tiny student: 6 steps, a state every second."""
    return {
        "stage": "align",
        "root": str(tmp_path / "runs" / "job"),
        "data": str(pairs_file),
        "options": {"start": str(model_folder)},
    }


def main(file: str, task: str = "", count: str = "0") -> None:
    def wait_to_be_killed() -> None:
        Path(file).with_suffix(".waiting").touch()
        time.sleep(600)

    run_job(json.loads(Path(file).read_text()), At(task, int(count), wait_to_be_killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
