"""Where does an unfinished collection keep what it has done so far, so that a killed run loses and doubles nothing?

    .collect.partial/
      plan.json                     fingerprint, and about how many candidates each source has
      slices.jsonl, slices.index    the slices, and where each one's line begins
      read/000000/                  pairs.parquet, signatures.parquet, dropped.parquet, stats.json, examples.parquet,
                                    with scorers scores.parquet
      dedup/                        decisions.parquet, captions.parquet
      write/000000/                 shard.json, dropped.parquet, stats.json, examples.parquet
      logs/PASS/                    job scripts and logs of Slurm and Ray tasks
      out/                          what becomes collect/

Everything takes its name last, and what has its name is never written again.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.curation.candidate import Slice

PAIRS, SIGNATURES, DROPPED, SCORES = "pairs.parquet", "signatures.parquet", "dropped.parquet", "scores.parquet"
STATISTICS, EXAMPLES, SHARD = "stats.json", "examples.parquet", "shard.json"


@dataclass(frozen=True)
class Assignment:
    """One task of the read pass: a slice, and of which source; with `at_most` only the first candidates of it."""

    source: int
    slice: Slice
    at_most: int | None = None


@dataclass(frozen=True)
class WorkFolder:
    """The partial folder and the names in it."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def deduped(self) -> Path:
        return self.root / "dedup"

    def read(self, number: int) -> Path:
        """The folder that the read pass leaves for a slice."""
        return self.root / "read" / name_of(number)

    def written(self, number: int) -> Path:
        """The folder that the write pass leaves for a slice."""
        return self.root / "write" / name_of(number)

    def logs(self, name: str) -> Path:
        return self.root / "logs" / name

    def begin(self, plan: dict[str, Any], assignments: Sequence[Assignment]) -> None:
        """Make the folder for this plan, or go on in the one that is there if it was made for the same plan."""
        if self.plan() == plan:
            return
        clear(self.root)
        with whole_folder(self.root) as folder:
            for name in ("read", "write", "out", "logs"):
                (folder / name).mkdir()
            with (folder / "slices.jsonl").open("wb") as lines, (folder / "slices.index").open("wb") as index:
                for one in assignments:
                    index.write(lines.tell().to_bytes(8, "little"))
                    line = {"source": one.source, "part": one.slice.part, "about": one.slice.about, "most": one.at_most}
                    lines.write(json.dumps(line).encode() + b"\n")
            write_json(folder / "plan.json", plan)

    def plan(self) -> dict[str, Any] | None:
        """The plan that the folder was made for; None without a folder."""
        try:
            return dict(json.loads((self.root / "plan.json").read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def assignment(self, number: int) -> Assignment:
        """One slice, without holding all the others."""
        with (self.root / "slices.index").open("rb") as index, (self.root / "slices.jsonl").open("rb") as lines:
            index.seek(8 * number)
            lines.seek(int.from_bytes(index.read(8), "little"))
            line = json.loads(lines.readline())
        return Assignment(line["source"], Slice(line["part"], line["about"]), line["most"])


def name_of(number: int) -> str:
    """A slice's or shard's number as names have it, so that they sort."""
    return f"{number:06d}"


def key_of(number: int, index: int) -> str:
    """The key of a slice's candidate: equal for equal data, in the order of reading."""
    return f"{number:06d}{index:06d}"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A new folder that is called `final` once the block has ended well. One that is there already stays."""
    folder = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    folder.mkdir(parents=True)
    try:
        yield folder
        _take_name(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_name(folder: Path, final: Path) -> None:
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():  # else another process has done the same work
            raise


@contextmanager
def whole_file(final: Path, near: Path | None = None) -> Iterator[Path]:
    """A path to write to, which is called `final` once the block has ended well; until then it lies in `near`."""
    path = (near or final.parent) / f".{final.name}.{uuid.uuid4().hex}"
    try:
        yield path
        path.replace(final)
    finally:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove a folder at one stroke: it loses its name first. What an earlier call was killed over goes too."""
    away = folder.with_name(f".{folder.name.lstrip('.')}.old")
    shutil.rmtree(away, ignore_errors=True)
    if folder.exists():
        folder.rename(away)
        # "ignore": a worker that outlived its killed command may still be writing into it.
        shutil.rmtree(away, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read; what UTF-8 can't hold is replaced."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8", errors="replace")


def finished(folder: Path) -> list[str]:
    """The names in a folder of slices, unfinished ones left out."""
    return [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")] if folder.is_dir() else []
