"""Cases, a command on bad input with what is expected of it, and the verdict on how it ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from benchmarks.dev.hostile.server import ROOT, Outcome, Request, Server, quiet_libraries

CASE = "case"  # the folder in which a case runs
_PARTIAL = (".*.[0-9]*.partial", ".*.[0-9]*.old", "*.tmp")
# What libraries leave in the folder for temporary files under a name that is always the same: caches, reused.
_LIBRARIES = {".ses": "onnxruntime", "torchinductor_*": "torch"}


class Expect(StrEnum):
    """What may come of a case, besides being refused with an error and a hint."""

    REFUSED = "refused"
    REFUSED_OR_SAME = "refused, or the result of the undamaged input"
    ANY = "refused, or any result"


class Verdict(StrEnum):
    """How a case ended, the good ends first."""

    REFUSED = "refused well"
    FINE = "fine"
    TRACEBACK = "traceback"
    HANG = "hang"
    MEMORY = "memory"
    SIGNAL = "signal"
    WRONG = "silently wrong"
    NO_HINT = "no hint"
    RAW = "raw control characters"
    LEFT = "left behind"

    @property
    def is_good(self) -> bool:
        return self in (Verdict.REFUSED, Verdict.FINE)


@dataclass(frozen=True)
class Case:
    """A command run in a folder with copies of `parts` of the corpus, which `change` damages and says how.

    `products` are globs of files that belong to the result, next to what is printed. `check` says what is wrong with
    the result of a command that ended well or badly, "" for nothing.
    """

    name: str
    arguments: Sequence[str]
    parts: Sequence[str] = ()
    change: Callable[[Path], object] = lambda here: None
    expect: Expect = Expect.ANY
    products: Sequence[str] = ()
    check: Callable[[Path, str], str] = lambda here, stdout: ""
    stdin: bytes = b""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    program: bool = False
    closed: Sequence[int] = ()
    limit_s: float = 40.0
    limit_mb: float = 1500.0


@dataclass(frozen=True)
class Report:
    """The verdict on a case, why, and what it printed."""

    case: Case
    verdict: Verdict
    why: str
    outcome: Outcome
    stdout: str
    stderr: str


class Runner:
    """Runs cases on a server, one after the other in the same place, with the corpus in `work`."""

    def __init__(self, server: Server, work: Path, keep: bool = False) -> None:
        self._server, self._corpus, self._work, self._keep = server, work / "corpus", work, keep
        self._references: dict[tuple[object, ...], str] = {}

    def run(self, case: Case) -> Report:
        folder = self._prepare(case)
        said = case.change(folder / "here")
        report = self._judge(case, folder, self._server.run(request(case, folder)))
        if isinstance(said, str) and said:
            report = replace(report, why=f"{report.why} [{said}]")
        if not self._keep:
            shutil.rmtree(folder, ignore_errors=True)
        return report

    def _prepare(self, case: Case) -> Path:
        folder = self._work / CASE
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("here", "home", "tmp", "cache"):
            (folder / name).mkdir(parents=True)
        for part in case.parts:
            to = folder / (part if part.split("/")[0] == "cache" else f"here/{part}")
            if (self._corpus / part).is_dir():
                shutil.copytree(self._corpus / part, to, symlinks=True, dirs_exist_ok=True)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._corpus / part, to)
        (folder / "stdin").write_bytes(case.stdin)
        return folder

    def _reference(self, case: Case) -> str:
        """The digest of the result that the undamaged input gives."""
        key = (*case.arguments, None, *case.parts, None, *case.products, None, case.stdin)
        if key not in self._references:
            kept = self._work / CASE
            aside = kept.rename(self._work / "aside")
            folder = self._prepare(case)
            outcome = self._server.run(request(case, folder))
            assert outcome.code == 0, f"undamaged, {case.arguments} fails: {(folder / 'stderr').read_text('utf-8')}"
            self._references[key] = _result(case, folder)
            shutil.rmtree(folder)
            aside.rename(kept)
        return self._references[key]

    def _judge(self, case: Case, folder: Path, outcome: Outcome) -> Report:
        stdout, stderr = ((folder / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
        verdict, why = self._end(case, folder, outcome, stdout, stderr)
        if verdict.is_good:
            if left := _left_behind(folder):
                verdict, why = Verdict.LEFT, f"files {', '.join(left)}"
            elif outcome.processes_left:
                verdict, why = Verdict.LEFT, f"{outcome.processes_left} processes"
            elif raw := "" if _wants_control_characters(case) else _raw(stdout + stderr):
                verdict, why = Verdict.RAW, raw
            elif wrong := case.check(folder / "here", stdout):
                verdict, why = Verdict.WRONG, wrong
        return Report(case, verdict, why, outcome, stdout, stderr)

    def _end(self, case: Case, folder: Path, outcome: Outcome, stdout: str, stderr: str) -> tuple[Verdict, str]:
        said = stderr.strip().splitlines()
        last = said[-1] if said else ""
        if outcome.stopped == "time":
            return Verdict.HANG, f"over {case.limit_s:.0f} s"
        if outcome.stopped == "memory":
            return Verdict.MEMORY, f"over {case.limit_mb:.0f} MB"
        if outcome.code < 0:
            return Verdict.SIGNAL, f"signal {-outcome.code}"
        if "Traceback (most recent call last)" in stderr or "panicked at" in stderr:
            return Verdict.TRACEBACK, last
        if (outcome.code == 2 and "Usage:" in stdout + stderr) or (outcome.code in (1, 2) and 2 in case.closed):
            return Verdict.REFUSED, last
        if outcome.code:
            return _refusal(outcome.code, said)
        if case.expect is Expect.REFUSED:
            return Verdict.WRONG, f"accepted: {' | '.join(stdout.split())[:150]}"
        if case.expect is Expect.REFUSED_OR_SAME and _result(case, folder) != self._reference(case):
            return Verdict.WRONG, f"another result than the undamaged input: {' '.join(stdout.split())[:150]}"
        return Verdict.FINE, ""


def request(case: Case, folder: Path) -> Request:
    """The run of a case in its folder, with an environment of its own."""
    environment = quiet_libraries() | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "DCCLIP_CACHE": str(folder / "cache"),
        "LANG": "C.UTF-8",
    }
    changed = {**environment, **case.environment}
    return Request(
        str(folder),
        case.arguments,
        {name: value for name, value in changed.items() if value is not None},
        case.program,
        case.closed,
        limit_s=case.limit_s,
        limit_mb=case.limit_mb,
    )


def _refusal(code: int, said: Sequence[str]) -> tuple[Verdict, str]:
    """Whether a command that failed says what is wrong and what to do: `error:` lines, then one `hint:` line."""
    errors = [line for line in said if line.startswith("error: ")]
    hints = [line for line in said if line.startswith("hint:  ") and line[7:].strip()]
    why = " | ".join(errors[:2])[:300] or f"exit code {code}, says: {' | '.join(said[-2:])[:200]}"
    if code != 1 or not errors or not hints or any(error == "error: " for error in errors):
        return Verdict.NO_HINT, why
    if "None: " in why or "errno" in why.lower():
        return Verdict.NO_HINT, f"a system's error as it is: {why}"
    return Verdict.REFUSED, why


def _result(case: Case, folder: Path) -> str:
    digest = sha256((folder / "stdout").read_bytes())
    for pattern in case.products:
        files = sorted((folder / "here").glob(pattern))
        digest.update(f"{pattern} {len(files)}".encode())
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _left_behind(folder: Path) -> list[str]:
    """Temporary files that a command left: partial ones anywhere, any in the folder for temporary files."""
    found = {path for pattern in _PARTIAL for path in folder.rglob(pattern)} | set((folder / "tmp").iterdir())
    found -= {path for pattern in _LIBRARIES for path in (folder / "tmp").glob(pattern)}
    return sorted(repr(str(path.relative_to(folder)))[1:-1] for path in found)


def _wants_control_characters(case: Case) -> bool:
    """Whether it asks for colours, for an encoding in which every character has zeros, or for data as it is."""
    encoding = case.environment.get("PYTHONIOENCODING") or ""
    return "FORCE_COLOR" in case.environment or encoding.startswith("utf-16") or "--csv" in case.arguments


def _raw(printed: str) -> str:
    """The first control character that reaches the terminal as it is."""
    found = next((char for char in printed if char < " " and char not in "\n\r\t"), "")
    return repr(found) if found else ""
