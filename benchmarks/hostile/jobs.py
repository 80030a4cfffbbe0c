"""A small job for each command, what it leaves, and runs of it as the real program, for the campaigns in this folder.

The data are some of the quick start's pairs, the teacher is a random AltCLIP of two layers, and every run takes a few
seconds, most of which are imports.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from getpass import getuser
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAIRS = ROOT / "recipes/quickstart/train.parquet"
_STAGE = {
    "batch_size": 8,
    "warmup_steps": 2,
    "workers": 1,
    "threads": 1,
    "precision": "fp32",
    "log_every_steps": 1,
    "checkpoint_every_steps": 4,
    "augmentations": 2,
}
RECIPE: dict[str, Any] = {
    "format": 1,
    "name": "tiny",
    "teacher": {"kind": "altclip", "model": "./teacher"},
    "student": {
        "image": {"timm": "test_efficientnet.r160_in1k", "size": 64},
        "text": {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 1000}},
        "embed_dim": 16,
    },
    "data": {"train": "./pairs.parquet"},
    "distill": {**_STAGE, "steps": 16},
    "align": {**_STAGE, "steps": 12},
    "eval": {"datasets": ["./pairs.parquet"]},
    "export": {},
}
COLLECT: dict[str, Any] = {
    "format": 1,
    "name": "raw",
    "collect": {
        "sources": [{"kind": "tars", "path": "./raw", "name": "raw"}],
        "filters": [{"kind": "image", "min_side": 32}],
        "shard_size": 8,
    },
}
_BUNDLE = "runs/tiny/export"
MARK = "DCCLIP_CAMPAIGN"  # in the environment of a job's processes, with its folder
LIBRARIES = (".ses", f"torchinductor_{getuser()}")  # what onnxruntime and torch keep in the folder for temporary files
SETTLES_S = 2.0  # after which nothing of a stopped command may be left
IMPORTED = (
    *("torch", "transformers.models.altclip.modeling_altclip", "open_clip", "timm", "onnx"),
    *("dcclip_cli.api", "dcclip_cli.cli.app"),
)
_TIMES = ("seconds", "seconds_left", "per_second", "_s", "_ms")  # ends of the names of times in JSON


@dataclass(frozen=True)
class Job:
    """A command: its arguments, and patterns of what it makes, which is not there when it starts.

    `results` are those of it that have to be the same whenever it is run to its end, stdout among them.
    """

    arguments: Sequence[str]
    made: Sequence[str]
    results: Sequence[str] = ()
    prints: bool = False


_TRAINED = ("model/*.safetensors", "model/*.json", "metrics.jsonl")
_EVALUATED = ("eval/*.json", "eval/*.csv")
_STAGES: dict[str, Sequence[str]] = {"distill": _TRAINED, "align": _TRAINED, "eval": ("*.json",), "export": ("*",)}


def _made(*stages: str) -> tuple[str, ...]:
    return tuple(f"runs/tiny/{stage}/{name}" for stage in stages for name in _STAGES[stage])


JOBS: dict[str, Job] = {
    "collect": Job(("collect", "raw.yaml", "--workers", "2"), ("runs/raw",), ("runs/raw/collect/*",)),
    "index": Job(("index", "shards", "--fresh"), ("shards/*.index.arrow",), ("shards/*.index.arrow",), prints=True),
    "distill": Job(("distill", "tiny.yaml"), ("runs/tiny", "cache"), _made("distill")),
    "align": Job(
        ("align", "tiny.yaml"),
        ("runs/tiny/align", "runs/tiny/eval", "runs/tiny/export", "runs/tiny/summary.json", "cache"),
        _made("align"),
    ),
    "eval": Job(("eval", "tiny.yaml"), ("runs/tiny/eval", "cache"), _made("eval")),
    "export": Job(("export", "tiny.yaml"), (_BUNDLE,), _made("export")),
    "predict": Job(("predict", "photos", "--labels", "猫,dog", "--json", "--model", _BUNDLE), (), prints=True),
    "search": Job(("search", "一只猫", "photos", "--json", "--model", _BUNDLE), ("cache",), prints=True),
    "embed": Job(
        ("embed", "photos", "--out", "e.npy", "--model", _BUNDLE), ("cache", "e.npy", "e.txt"), ("e.npy", "e.txt")
    ),
    "run": Job(("run", "tiny.yaml"), ("runs/tiny", "cache"), _made("distill", "align", "eval", "export")),
}


# ---- the data of all jobs


def prepare(folder: Path) -> None:
    """Make a folder with the data, the teacher, a finished run and its cache, from which every job can start."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=_write_inputs, args=(folder,))
    process.start()  # so that this process starts no thread
    process.join()
    runs = Runs(folder, forked=True)
    for name in ("run", "collect", "index", "search", "embed"):
        done = runs.run(JOBS[name])
        if done.code:
            raise SystemExit(f"{name} ended with {done.code}:\n{done.said}")


def _write_inputs(folder: Path) -> None:
    from benchmarks.teachers.make import make

    write_data(folder)
    make("altclip", folder / "teacher", tiny=True)


def write_data(folder: Path, photos: int = 400, pairs: int = 32) -> None:
    """Write the recipes and all data into a folder."""
    from dcclip_cli.data.dataset import open_pairs, write_parquet

    table = open_pairs(str(PAIRS))
    some = [table[number] for number in range(0, 7 * photos, 7)]
    write_parquet(folder / "pairs.parquet", some[:pairs])
    for name, content in (("tiny", RECIPE), ("raw", COLLECT)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    for name in ("raw", "shards", "photos"):
        (folder / name).mkdir()
    for number in range(4):
        for name, few in (("raw", some[number * 16 :][:16]), ("shards", some[number * 12 :][:12])):
            _write_tar(folder / name / f"{number:06d}.tar", few)
    for pair in some:
        (folder / "photos" / f"{pair.key.replace('/', '-')}.png").write_bytes(pair.image)


def _write_tar(file: Path, pairs: Iterable[Any]) -> None:
    with tarfile.open(file, "w") as tar:
        for pair in pairs:
            about = json.dumps({"zh": pair.zh, "en": pair.en}, ensure_ascii=False).encode()
            for suffix, content in (("png", pair.image), ("json", about)):
                member = tarfile.TarInfo(f"{pair.key.replace('/', '-')}.{suffix}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


# ---- runs of a job


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code, negative for a signal, stdout, stderr, and how long it took."""

    code: int
    printed: str
    said: str
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What no command may say or die of, whatever was done to it."""
        found = [f"killed by signal {-self.code}"] if self.code < 0 else []
        return found + [f"says {word}" for word in ("Traceback", "Exception ignored", "leaked") if word in self.said]


@dataclass
class Runs:
    """Runs of jobs in a folder, where their paths begin: as the real program, or `forked` with all imports done.

    Output and temporary files are in `beside`, next to the folder.
    """

    folder: Path
    forked: bool = False
    groups: set[int] = field(default_factory=set)

    @property
    def beside(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.beside")

    @property
    def temporary(self) -> Path:
        return self.beside / "tmp"

    def start(self, job: Job) -> Running:
        """Start the job in a process group of its own."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        settings = {
            MARK: str(self.folder),
            "DCCLIP_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        outputs = self.beside / "stdout", self.beside / "stderr"
        begin = (_forked if self.forked else _executed)(job, self.folder, settings, *outputs)
        self.groups.add(begin)
        return Running(begin, *outputs)

    def run(self, job: Job) -> Done:
        """Run the job to its end."""
        return self.start(job).wait()

    def reset(self, job: Job, whole: Path) -> None:
        """Make the folder a copy of a prepared one, without what the job makes."""
        for path in (self.beside, *(self.folder.iterdir() if self.folder.is_dir() else ())):
            _remove(path)
        shutil.copytree(whole, self.folder, symlinks=True, dirs_exist_ok=True)
        for pattern in job.made:
            for path in self.folder.glob(pattern):
                _remove(path)

    def alive(self) -> list[psutil.Process]:
        """All processes of the jobs of this folder: by their environment, or their group if they were forked."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):  # of another user, or ended
                mine = os.getpgid(process.pid) in self.groups or process.environ().get(MARK) == str(self.folder)
                if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_alive(self) -> list[str]:
        """The processes that are still there two seconds after a job ended, which are then killed."""
        until = time.monotonic() + SETTLES_S
        while (alive := self.alive()) and time.monotonic() < until:
            time.sleep(0.05)
        names = []
        for process in alive:
            with suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[-80:])
                process.kill()
        return names

    def partial(self) -> list[str]:
        """Temporary files and folders, but collect's work folder, which is what it keeps."""
        found = [path.relative_to(self.folder) for path in self.folder.rglob(".*") if _is_temporary(path.name)]
        return sorted(map(str, found)) + sorted(
            f"tmp/{path.name}" for path in self.temporary.glob("*") if path.name not in LIBRARIES
        )

    def differing(self, job: Job, done: Done, normal: Undisturbed) -> list[str]:
        """The names of results that are not those of an undisturbed run."""
        found = self.results(job, done)
        return sorted(
            name for name in found.keys() | normal.results.keys() if found.get(name) != normal.results.get(name)
        )

    def results(self, job: Job, done: Done) -> dict[str, str]:
        """A digest of each result by name; times in JSON are left out."""
        files = {path for pattern in job.results for path in self.folder.glob(pattern) if path.is_file()}
        found = {str(path.relative_to(self.folder)): _digest(path.name, path.read_bytes()) for path in sorted(files)}
        return found | ({"stdout": _digest("stdout", done.printed.encode())} if job.prints else {})


def _executed(job: Job, folder: Path, settings: dict[str, str], out: Path, error: Path) -> int:
    with out.open("wb") as printed, error.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "dcclip_cli", *job.arguments],
            cwd=folder,
            env=os.environ | settings,
            process_group=0,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=said,
        ).pid


def _forked(job: Job, folder: Path, settings: dict[str, str], out: Path, error: Path) -> int:
    """Run a job in a copy of this process, which must not have started a thread."""
    for name in IMPORTED:
        importlib.import_module(name)
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ |= settings
    tempfile.tempdir = None
    for number, name in ((0, os.devnull), (1, out), (2, error)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    sys.argv = ["dcclip", *job.arguments]
    try:
        runpy.run_module("dcclip_cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        if not isinstance(sys.exception(), SystemExit | None):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Running:
    """A job that was started; its output is in files, so that a process that it leaves keeps no pipe open."""

    def __init__(self, pid: int, out: Path, error: Path) -> None:
        self.pid, self._outputs, self._code = pid, (out, error), None
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def has_ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def ends_within(self, seconds: float) -> bool:
        """Whether the command ends in that time."""
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(0.005)
        return self.has_ended()

    def handles_signals(self) -> bool:
        """Whether the program has begun: until it handles SIGTERM, the interpreter is starting or importing it."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:  # it has ended
            return True
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    def wait(self, seconds: float = 300.0) -> Done:
        """The command when it has ended; it is killed after so many seconds."""
        if not self.ends_within(seconds):
            os.killpg(self.pid, signal.SIGKILL)
            self.ends_within(10)
        printed, said = (path.read_text("utf-8", "replace") for path in self._outputs)
        return Done(self._code if self._code is not None else -signal.SIGKILL, printed, said, self.seconds)


def _is_temporary(name: str) -> bool:
    if name == ".collect.partial":
        return False
    return any(fnmatch(name, pattern) for pattern in (".*.partial", ".*.old", ".*.graphs", f".*.{'[0-9a-f]' * 32}"))


def _digest(name: str, content: bytes) -> str:
    if name.endswith((".json", ".jsonl")) or name == "stdout":
        with suppress(ValueError):
            lines = content.splitlines() if name.endswith(".jsonl") else [content]
            content = json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = (key for key in value if not key.endswith(_TIMES) and key != "sha256")  # of a file with times in it
        return {key: _timeless(value[key]) for key in kept}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- campaigns


@dataclass(frozen=True)
class Verdict:
    """What came of one attempt on a job: the column of the table that it counts in, and a line about it."""

    row: str
    column: str
    line: str


@dataclass(frozen=True)
class Task:
    """One attempt: the job, and the seed of what is random in it."""

    name: str
    seed: str


Attempt = Callable[[Runs, Path, Task], Verdict]


def campaign(about: str, names: Sequence[str], times: int, attempt: Attempt, good: Sequence[str], forked: bool) -> None:
    """Make `times` attempts, spread over the jobs, two beside each other, print a table, and exit.

    The exit code is 1 if a verdict is not one of the `good` ones.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", type=int, default=times)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names))
    parser.add_argument("--forked", action=argparse.BooleanOptionalAction, default=forked, help="no imports")
    parser.add_argument("--beside", type=int, default=2, help="attempts beside each other")
    given = parser.parse_args()
    context = multiprocessing.get_context("fork")
    tasks, verdicts = context.SimpleQueue(), context.SimpleQueue()
    for number in range(given.times):
        tasks.put(Task(given.only[number % len(given.only)], f"{given.seed} {number}"))
    work, begin = given.work.resolve(), time.monotonic()
    processes = []
    for number in range(given.beside):
        tasks.put(None)
        arguments = (work / f"{number}", tasks, verdicts, attempt, given.forked)
        processes.append(context.Process(target=_attempts, args=arguments))
        processes[-1].start()
    found: list[Verdict] = []
    for number in range(given.times):
        while verdicts.empty():
            time.sleep(0.05)
            if any(process.exitcode for process in processes):
                raise SystemExit("an attempt failed")
        found.append(verdicts.get())
        print(f"{number + 1:>3} {found[-1].row}: {found[-1].column}; {found[-1].line}", flush=True)
    columns = [*good, *sorted({one.column for one in found} - set(good))]
    print(f"\n| | tried | {' | '.join(columns)} |\n|---|{'--:|' * (1 + len(columns))}")
    for row in [*dict.fromkeys(sorted(one.row for one in found)), "all"]:
        mine = [one.column for one in found if row in (one.row, "all")]
        print(f"| {row} | {len(mine)} | {' | '.join(str(mine.count(column)) for column in columns)} |")
    print(f"\n{time.monotonic() - begin:.0f} s")
    sys.exit(bool({one.column for one in found} - set(good)))


def _attempts(work: Path, tasks: Any, verdicts: Any, attempt: Attempt, forked: bool) -> None:
    """Make attempts in a folder of its own: recipes that were used name it, so that it cannot be copied elsewhere."""
    runs, whole = Runs(work / "job", forked), work / "whole"
    if not whole.is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.hostile.jobs", str(runs.folder)], cwd=ROOT, check=True)
        runs.folder.rename(whole)
    while task := tasks.get():
        verdicts.put(attempt(runs, whole, task))


def nothing(_runs: Runs, _whole: Path, _job: Job) -> None:
    pass


def stopped(runs: Runs, whole: Path, name: str, random: Random, number: int, group: bool) -> Running:
    """A job that got a signal at a random moment between the program's start and its end."""
    normal = undisturbed(runs, whole, name)
    while True:
        runs.reset(JOBS[name], whole)
        running = runs.start(JOBS[name])
        while not running.handles_signals():
            time.sleep(0.005)
        if not running.ends_within(random.uniform(0, normal.seconds - running.seconds)):
            os.killpg(running.pid, number) if group else os.kill(running.pid, number)
            return running


def undisturbed(
    runs: Runs, whole: Path, name: str, job: Job | None = None, prepared: Callable[[Runs, Path, Job], None] = nothing
) -> Undisturbed:
    """What a job gives and how long it takes in this folder if nothing happens to it; asked once, then remembered.

    `prepared` is called before it runs.
    """
    job, file = job or JOBS[name], whole.with_name(f"undisturbed-{name}{'-forked' * runs.forked}.json")
    if not file.is_file():
        runs.reset(job, whole)
        prepared(runs, whole, job)
        before, done = _size(runs.folder), runs.run(job)
        if done.code:
            raise SystemExit(f"{name} ended with {done.code}:\n{done.said}")
        grown = _size(runs.folder) - before
        file.write_text(json.dumps([runs.results(job, done), done.seconds, grown]))
    return Undisturbed(*json.loads(file.read_text()))


@dataclass(frozen=True)
class Undisturbed:
    """The results of a job, its seconds, and the bytes that it adds to its folder."""

    results: dict[str, str]
    seconds: float
    grown: int


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
