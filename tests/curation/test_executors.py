"""Tasks are done once each, by worker processes here or by Slurm, and a failure is told."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from datatrove.pipeline.base import PipelineStep

from dcclip_cli.curation.cluster import ClusterOptions, SlurmOptions
from dcclip_cli.curation.executors import Engine
from dcclip_cli.errors import DcclipError


class Touch(PipelineStep):
    """Appends a line to a file of the task's own."""

    name, type = "touch", "test"

    def __init__(self, folder: Path, bad: int = -1) -> None:
        super().__init__()
        self.folder, self.bad = folder, bad

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if rank == self.bad:
            raise DcclipError("the model 猫 is not there", "fetch it")
        with (self.folder / str(rank)).open("a") as file:
            file.write("done\n")


class Die(Touch):
    """Is killed in one task, as the system does when memory runs out."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if rank == self.bad:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_and_none_twice(tmp_path: Path, workers: int) -> None:
    engine, done = Engine(workers=workers), tmp_path / "done"
    done.mkdir()
    with pytest.raises(DcclipError, match="the model 猫 is not there"):
        engine.run([Touch(done, bad=2)], 3, tmp_path / "logs")
    for _ in range(2):
        engine.run([Touch(done)], 3, tmp_path / "logs")
    assert {path.name: path.read_text() for path in done.iterdir()} == dict.fromkeys("012", "done\n")


def test_a_worker_that_is_killed_is_told_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="out of memory") as error:
        Engine(workers=2).run([Die(tmp_path, bad=1)], 4, tmp_path / "logs")
    assert "--workers" in error.value.hint


def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        textwrap.dedent("""
        import os, time
        from pathlib import Path
        from datatrove.pipeline.base import PipelineStep
        from dcclip_cli.curation.executors import Engine

        class Sleep(PipelineStep):
            name, type = "sleep", "test"
            def run(self, data=None, rank=0, world_size=1):
                Path(f"pid{rank}").write_text(str(os.getpid()))
                time.sleep(300)

        if __name__ == "__main__":
            Engine(workers=2).run([Sleep()], 2, Path("logs").absolute())
    """)
    )
    command = subprocess.Popen([sys.executable, "sleeper.py"], cwd=tmp_path)
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    wait(lambda: all(path.exists() and path.read_text() for path in pids))
    command.kill()
    command.wait()
    wait(lambda: not any(alive(int(path.read_text())) for path in pids))


def wait(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Stands for Slurm: runs each task of the array at once; squeue then knows of none.
_SBATCH = """#!/bin/bash
script="${@: -1}"
echo "$@" >> $FAKE/calls
grep -v -e srun.*merge_stats "$script" > $FAKE/script
if ! grep -q merge_stats "$script"; then
  for task in $(grep -o 'array=0-[0-9]*' "$script" | cut -d- -f2 | xargs seq 0); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash $FAKE/script >> $FAKE/log 2>&1
  done
fi
echo "Submitted batch job 7"
"""


def test_slurm_gets_an_array_and_failed_tasks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, done = tmp_path / "bin", tmp_path / "done"
    done.mkdir()
    tools.mkdir()
    for name, text in {
        "sbatch": _SBATCH,
        "squeue": "#!/bin/bash\n",
        "scontrol": "#!/bin/bash\necho here\n",
        "srun": '#!/bin/bash\nexec "${@:4}"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    engine = Engine("slurm", None, ClusterOptions(slurm=SlurmOptions(partition="cpu", sbatch={"account": "猫"})))
    with pytest.raises(DcclipError, match="1 of 2 tasks failed, the first is 1"):
        engine.run([Touch(done, bad=1)], 2, tmp_path / "logs")
    engine.run([Touch(done)], 2, tmp_path / "logs")
    assert {path.name: path.read_text() for path in done.iterdir()} == dict.fromkeys("01", "done\n")
    script = (tmp_path / "logs" / "launch_script.slurm").read_text()
    assert "#SBATCH --partition=cpu" in script and "#SBATCH --account=猫" in script


def test_slurm_without_a_partition_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="partition"):
        Engine("slurm").run([Touch(tmp_path)], 1, tmp_path / "logs")
