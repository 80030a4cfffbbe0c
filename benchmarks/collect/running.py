"""Runs of `dcclip collect` as a command: recipes, memory, and comparison of outputs."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml


def recipe(folder: Path, tars: str, **collect: Any) -> Path:
    """A recipe in `folder` that reads tars, with defaults for everything else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.yaml"
    content = {"name": "bench", "collect": {"sources": [{"kind": "tars", "path": tars, "name": "bench"}], **collect}}
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def first_tars(many: Path, folder: Path, number: int) -> str:
    """A new folder with the first tars that many.py wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tars = sorted((many / "tars").resolve().glob("*.tar"))
    assert len(tars) >= number, f"{len(tars)} tars are too few"
    for tar in tars[:number]:
        (folder / tar.name).hardlink_to(tar)
    return str(folder)


def command(recipe: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dcclip_cli", "collect", str(recipe), "--out", str(out), *options]


@dataclass(frozen=True)
class Cost:
    """Wall time of a run, and the peak memory of all its processes together, of the main one, and of any other one."""

    seconds: float
    megabytes: float
    main_megabytes: float
    worker_megabytes: float


def measured(arguments: list[str], **options: Any) -> Cost:
    """Run a command, measuring the memory of its processes ten times a second."""
    begin = time.monotonic()
    process = subprocess.Popen(arguments, **options)
    ended, peaks = Event(), [0.0, 0.0, 0.0]

    def watch() -> None:
        while not ended.wait(0.1):
            main, *others = _megabytes(process.pid) or [0.0]
            peaks[:] = map(max, peaks, (main + sum(others), main, max(others, default=0.0)))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        if process.wait():
            raise SystemExit(f"{arguments} ended with {process.returncode}")
    finally:
        ended.set()
        watcher.join()
    return Cost(time.monotonic() - begin, *peaks)


def _megabytes(root: int) -> list[float]:
    """Proportional memory of the process, then of its descendants; a page shared by two of them counts once."""
    found, waiting = [], [root]
    while waiting:
        number = waiting.pop()
        try:
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")]
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a finished output by its name; the manifest without its times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(found["manifest.json"])
    times = [key for key in manifest if "second" in key or "time" in key or "date" in key]
    found["manifest.json"] = json.dumps({key: value for key, value in manifest.items() if key not in times}).encode()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """The names of the files that differ between two outputs."""
    left, right = files(one), files(other)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def kept(folder: Path) -> int:
    return int(json.loads((folder / "manifest.json").read_bytes())["pairs"]["kept"])
