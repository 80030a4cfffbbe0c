"""Each task is done once, by worker processes, Ray or Slurm, and failed tasks are reported."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from dcclip_cli.cli.app import app
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation import executors
from dcclip_cli.curation.executors import Engine, Step
from dcclip_cli.curation.options import ClusterOptions, SlurmOptions

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Touch(Step):
    """Appends a line to a file of the task's own; the task `bad` fails."""

    folder: Path
    tasks: int
    bad: int = -1
    name: str = "touch"

    def done(self, task: int) -> bool:
        return (self.folder / str(task)).exists()

    def run(self, task: int) -> None:
        if task == self.bad:
            self.fail()
        file = self.folder / str(task)
        partial = self.folder.parent / f"{task}.partial"
        partial.write_text((file.read_text() if file.exists() else "") + "done\n")
        partial.replace(file)  # at once: a failed task ends the processes of the others

    def fail(self) -> None:
        raise DcclipError("the model 猫 is missing", "download it")


class Die(Touch):
    """Its bad task is killed, as the system does when memory runs out."""

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Sleep(Touch):
    """Its tasks never end."""

    def run(self, task: int) -> None:
        (self.folder / f"pid{os.getpid()}").touch()
        time.sleep(300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "done").mkdir()
    return tmp_path / "done"


def check_all_done_once(folder: Path, tasks: int) -> None:
    assert {path.name: path.read_text() for path in folder.iterdir()} == {str(n): "done\n" for n in range(tasks)}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once_and_told_and_a_failed_one_raises_its_error(folder: Path, workers: int) -> None:
    engine = Engine(workers=workers)
    told = list[int]()
    with pytest.raises(DcclipError, match="the model 猫 is missing"):
        engine.run(Touch(folder, 3, bad=2), folder.parent / "logs")
    before = {number for number in range(3) if Touch(folder, 3).done(number)}
    for _ in range(2):
        engine.run(Touch(folder, 3), folder.parent / "logs", tell=told.append)
    check_all_done_once(folder, 3)
    assert sorted(told) == sorted({0, 1, 2} - before)


def test_a_killed_worker_is_reported_and_not_waited_for(folder: Path) -> None:
    with pytest.raises(DcclipError, match="ran out of memory") as error:
        Engine(workers=2).run(Die(folder, 4, bad=1), folder.parent / "logs")
    assert "--workers" in error.value.hint


COMMAND = """
from pathlib import Path
from dcclip_cli.curation.executors import Engine
from tests.curation.test_executors import Sleep
Engine(workers=2).run(Sleep(Path.cwd(), 2), Path("logs").absolute())
"""


def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=tmp_path, env=environment)
    wait(lambda: len(list(tmp_path.glob("pid*"))) == 2)
    workers = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    for worker in workers:
        os.kill(worker, signal.SIGTERM)  # which a worker ignores
    assert not any(map(ended, workers))
    command.kill()
    wait(lambda: all(map(ended, workers)), within_s=2)
    command.wait()


def ended(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def wait(condition: Callable[[], bool], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# Replaces Slurm: runs each task of an array immediately; squeue then knows of none.
_SBATCH = """#!/bin/bash
echo "$@" >> $FAKE/calls
script="${@: -2:1}"
for task in $(echo "$@" | grep -o 'array=0-[0-9]*' | cut -d- -f2 | xargs seq 0); do
  SLURM_ARRAY_TASK_ID=$task bash "$script" "${@: -1}" >> $FAKE/log 2>&1
done
echo "7;cluster"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloaded_folder: Path) -> Engine:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"sbatch": _SBATCH, "squeue": "#!/bin/bash\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Engine("slurm", 3, ClusterOptions(slurm=SlurmOptions(partition="cpu", sbatch={"account": "猫"})))


def test_slurm_gets_arrays_of_the_unfinished_tasks_and_failed_ones_are_reported(
    folder: Path, slurm: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "_LARGEST_ARRAY", 2)
    logs = folder.parent / "logs"
    with pytest.raises(DcclipError, match="1 of 3 tasks failed; the first is 1"):
        slurm.run(Touch(folder, 3, bad=1), logs)
    assert "the model 猫 is missing" in (folder.parent / "log").read_text("utf-8")
    slurm.run(Touch(folder, 3), logs)
    check_all_done_once(folder, 3)
    first, second, third = (folder.parent / "calls").read_text().splitlines()
    assert first == f"--parsable --array=0-1%3 {logs}/job.sh 0"
    assert second == f"--parsable --array=0-0%3 --dependency=afterany:7 {logs}/job.sh 2"
    assert third == first.replace("0-1", "0-0")
    script = (logs / "job.sh").read_text("utf-8")
    assert "#SBATCH --partition=cpu\n" in script and "#SBATCH --account=猫\n" in script


def test_a_command_that_was_interrupted_waits_for_the_job_it_submitted(
    folder: Path, slurm: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = folder.parent / "logs"
    logs.mkdir()
    (logs / "job").write_text("7")
    in_queue = iter([True, True, False])
    monkeypatch.setattr(executors, "_ASK_SLURM_S", 0)
    monkeypatch.setattr(executors, "_in_queue", lambda job: job == "7" and next(in_queue))
    with pytest.raises(DcclipError, match="1 of 1 tasks failed"):
        slurm.run(Touch(folder, 1), logs)
    assert not (folder.parent / "calls").exists()


def test_ray_runs_as_many_tasks_at_a_time_as_asked_for_and_goes_on_after_a_failed_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself is replaced: a task runs when its result is waited for."""
    most_running = 0
    started = []
    folders = list[tuple[str, str]]()
    monkeypatch.setenv("PYTHONPATH", "own")

    class RayError(Exception): ...

    def submit(step: Touch, task: int) -> Callable[[], None]:
        started.append(task)
        return lambda: step.run(task)

    def wait(running: list[Any]) -> tuple[list[Any], list[Any]]:
        nonlocal most_running
        most_running = max(most_running, len(running))
        return running[:1], running[1:]

    def get(task: Callable[[], None]) -> None:
        try:
            task()
        except DcclipError as error:
            raise RayError(str(error)) from error

    ray = SimpleNamespace(
        is_initialized=lambda: bool(folders),
        init=lambda **_: folders.append((os.getcwd(), os.environ["PYTHONPATH"])),
        remote=lambda function: SimpleNamespace(remote=submit),
        put=lambda step: step,
        wait=wait,
        get=get,
        exceptions=SimpleNamespace(RayError=RayError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    logs = folder.parent / "logs"
    with pytest.raises(DcclipError, match="1 of 4 tasks failed; the first is 1"):
        Engine("ray", 2).run(Touch(folder, 4, bad=1), logs)
    assert (started, most_running, folders) == ([0, 1, 2, 3], 2, [(sys.prefix, os.path.abspath("own"))])
    assert "the model 猫 is missing" in (logs / "000001.log").read_text("utf-8")
    Engine("ray").run(Touch(folder, 4), logs)
    check_all_done_once(folder, 4)


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_the_page_on_clusters_collects(
    engine: str, slurm: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        remote=lambda function: SimpleNamespace(remote=partial(partial, function)),
        put=lambda step: step,
        wait=lambda running: (running[:1], running[1:]),
        get=lambda task: task(),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    page = (ROOT / "docs/how-to/cluster.md").read_text("utf-8").replace("/shared/runs/wukong", str(tmp_path / "out"))
    page = page.replace("recipe.yaml", f"{ROOT}/recipes/collect-sample.yaml")
    [command] = re.findall(rf"^(?:RAY_ADDRESS=auto )?dcclip (collect .*--engine {engine} .*)", page, re.M)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0 and (tmp_path / "out/collect/000000.tar").is_file(), result.output
