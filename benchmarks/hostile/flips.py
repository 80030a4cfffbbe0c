"""Random single flipped bits in what dcclip reads back, and the command that reads it.

    python -m benchmarks.hostile.flips WORK [--times 200] [--seed 0] [--only STORE ...]

Each flip is one bit of one file: of images, resume state, model directory or bundle. The command must refuse the file
by its name with exit code 1, or make it again with the result of an unharmed one. A flip that it does not notice is
harmless where nothing reads the byte, for a reason in `UNREAD`, and the result is the same. Caches are not flipped:
bit rot inside them is not looked for.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.hostile.jobs import JOBS, Job, Runs, Task, Verdict, campaign, undisturbed

GOOD = ("refused by name", "made again", "nothing reads it")
_TRAINED = replace(JOBS["distill"], made=("runs/tiny",))


def _training(data: str) -> Job:
    """Training on other data, in another run, without a teacher."""
    sets = (f"data.train={data}", "align.start=scratch", "align.steps=8")
    arguments = ("align", "tiny.yaml", "--out", "other", *(part for one in sets for part in ("--set", one)))
    return Job(arguments, ("other",), ("other/align/model/*.safetensors",))


@dataclass(frozen=True)
class Store:
    """Files that a command reads back: patterns of them, and the job that reads them."""

    files: Sequence[str]
    job: Job


STORES: dict[str, Store] = {
    "block cache": Store(("cache/blocks/*.block",), _TRAINED),
    "resume state": Store(
        ("runs/tiny/distill/state/**/*.*",), replace(JOBS["distill"], made=("runs/tiny/*/model", "runs/tiny/export"))
    ),
    "model directory": Store(
        ("runs/tiny/align/model/*.*",),
        replace(JOBS["predict"], arguments=(*JOBS["predict"].arguments[:-1], "runs/tiny/align/model")),
    ),
    "bundle": Store(("runs/tiny/export/*.*",), JOBS["predict"]),
    "collect's product": Store(("runs/raw/collect/*.tar",), _training("./runs/raw/collect")),
}
UNREAD = {
    "README.md": "the model card is for people",
}


def attempt(runs: Runs, whole: Path, task: Task) -> Verdict:
    """Flip a bit, run what reads it, and compare."""
    store, random = STORES[task.name], Random(task.seed)
    normal = undisturbed(runs, whole, task.name, store.job)
    runs.reset(store.job, whole)
    files = sorted(
        {
            path
            for pattern in store.files
            for path in runs.folder.glob(pattern)
            if path.is_file() and path.stat().st_size
        }
    )
    file, flipped = random.choice(files), random.random()
    content = bytearray(file.read_bytes())
    bit = int(flipped * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    stamp = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as bits rot
    done = runs.run(store.job)
    line = f"bit {bit} of {file.relative_to(runs.folder)}, exit code {done.code}"
    said = [each for each in done.said.splitlines() if each.startswith(("error: ", "hint: ", "warning: "))]
    other = runs.differing(store.job, done, normal)
    if done.faults or done.code not in (0, 1):
        column = ", ".join(done.faults) or f"exit code {done.code}"
    elif done.code == 1:
        named = any(file.name in each or str(file.parent.relative_to(runs.folder)) in each for each in said)
        column = (
            "refused by name" if named and said[-1].startswith("hint: ") else "refused, not by name or without a hint"
        )
    elif other:
        column, line = "other results", f"{line} ({', '.join(other)})"
    elif not file.is_file() or file.read_bytes() != content or any(file.name in each for each in said):
        column = "made again"
    else:
        reason = _reason(file, bit // 8)
        column, line = ("nothing reads it", f"{line} ({reason})") if reason else ("not noticed", line)
    return Verdict(task.name, column, " | ".join([line, *said]))


def _reason(file: Path, place: int) -> str | None:
    """Why nothing reads a byte of a file."""
    if file.suffix == ".tar":
        with tarfile.open(file) as tar:
            inside = any(
                member.offset_data <= place < member.offset_data + member.size and member.name.endswith("png")
                for member in tar
            )
        return None if inside else "the index has the captions and where the images are"
    return next((reason for end, reason in UNREAD.items() if file.name.endswith(end)), None)


if __name__ == "__main__":
    campaign(__doc__, list(STORES), 200, attempt, GOOD, forked=True)
