"""Collecting a dataset: from raw pairs in many sources to filtered, deduplicated shards, with a reason for every drop.

The five steps, each of which reads what the previous one wrote:

    read    per slice: fetch, decode, filter each pair on its own, compute signatures for deduplication
    score   per slice, if the recipe has scorers: scores by models
    dedup   once: thresholds on scores, evaluation sets, duplicates
    write   per slice: one shard of the pairs that are kept
    finish  once: manifest.json, dropped.parquet, report.html
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.manifest import CollectResult, finish, finished_manifest, result_of
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.work import DROPPED, SCORES, Plan, WorkFolder, clear, fingerprint, finished, plan
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import decisive, decisive_before
from dcclip_cli.progress import Progress, Silent, Task

if TYPE_CHECKING:
    from dcclip_cli.curation.executors import Engine

_LOOK_S = 0.5  # how often finished slices are counted for the progress bar


def collect(
    options: CollectOptions,
    out: Path,
    progress: Progress | None = None,
    fresh: bool = False,
    engine: Engine | None = None,
    limit: int | None = None,
) -> CollectResult:
    """Fill the folder `out` with shards, `manifest.json`, `report.html` and `dropped.parquet`.

    The same input and options give the same bytes, whatever engine runs the tasks and however often it was killed. A
    finished `out` is not changed unless `fresh`; an unfinished one never has that name. `limit` is the maximum number
    of candidates to read. Raises DcclipError if a source is missing, nothing is kept, or `out` is another folder.
    """
    start = time.monotonic()
    progress = progress or Silent()
    # Absolute: tasks may run in other processes and on other machines.
    work = WorkFolder(out.absolute().with_name(f".{out.name}.partial"))
    _publish(out)
    before = finished_manifest(out)
    if fresh:
        clear(work.root)
    elif before and work.plan() is None:
        if decisive_before(CollectOptions, before["options"]) != decisive(options):
            progress.say(f"{out} was made with other options than the recipe's; use --fresh to redo it")
        return result_of(out, before, True, time.monotonic() - start)
    found = plan(options, limit)
    work.begin({"fingerprint": fingerprint(options, found), "slices": len(found.assignments)}, found.assignments)
    manifest = _run_steps(options, work, found, progress, engine)
    if not manifest["pairs"]["kept"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(manifest["pairs"]["dropped"]).most_common())
        raise DcclipError(
            f"none of the {manifest['pairs']['read']} pairs was kept: {reasons}",
            f"see the reasons in {work.out / DROPPED}, then change collect.filters in the recipe",
        )
    os.replace(work.root, _done(out))
    _publish(out)
    return result_of(out, manifest, False, time.monotonic() - start)


def _run_steps(
    options: CollectOptions, work: WorkFolder, found: Plan, progress: Progress, engine: Engine | None
) -> dict[str, Any]:
    from dcclip_cli.curation.executors import Engine
    from dcclip_cli.curation.steps import DedupStep, ReadStep, ScoreStep, WriteStep

    engine = engine or Engine()
    slices = len(found.assignments)
    with _watched(progress, "read", found, work.read(0).parent):
        engine.run(ReadStep(options, work, slices), work.logs("read"))
    if options.scores:
        with _watched(progress, "score", found, work.read(0).parent, SCORES):
            engine.run(ScoreStep(options, work, slices), work.logs("score"))
    engine.run(DedupStep(options, work, 1), work.logs("dedup"))
    with _watched(progress, "write", found, work.written(0).parent):
        engine.run(WriteStep(options, work, slices), work.logs("write"))
    return finish(options, work, slices)


@contextmanager
def _watched(progress: Progress, name: str, found: Plan, folder: Path, product: str = "") -> Iterator[None]:
    """While the block runs, show how many candidates the finished slices in `folder` had."""
    abouts = [one.slice.about for one in found.assignments]
    counted = {name for name in finished(folder) if (folder / name / product).exists()}
    over = threading.Event()

    def count(task: Task) -> None:
        new = {name for name in finished(folder) if name not in counted and (folder / name / product).exists()}
        counted.update(new)
        if new:
            task.advance(sum(abouts[int(name)] for name in new))

    def watch(task: Task) -> None:
        while not over.wait(_LOOK_S):
            count(task)

    with progress.task(name, found.about, sum(abouts[int(name)] for name in counted)) as task:
        thread = threading.Thread(target=watch, args=(task,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            count(task)


def _done(out: Path) -> Path:
    return out.with_name(f".{out.name}.done")


def _publish(out: Path) -> None:
    """Move a completed collection to its name, also one whose run was killed before it had done so."""
    done = _done(out)
    if (done / "out").is_dir():
        finished_manifest(out)
        clear(out)
        (done / "out").rename(out)
    shutil.rmtree(done, ignore_errors=True)
