"""Collecting a dataset: from raw pairs in many sources to filtered, deduplicated shards, with a
reason for every drop.

The five steps, each of which reads what the previous one wrote:

    read    per slice: fetch, decode, filter each pair on its own, compute signatures for deduplication
    score   per slice, if the recipe has scorers: scores by models
    dedup   once: thresholds on scores, evaluation sets, duplicates
    write   per slice: one shard of the pairs that are kept
    finish  once: manifest.json, dropped.parquet, report.html
"""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dcclip_cli.core.checksums import FORMAT, check_format
from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import json_text, lock, remove
from dcclip_cli.core.options import decisive
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.versions import versions
from dcclip_cli.curation.dedup.dedup import COMPARED
from dcclip_cli.curation.executors import DedupStep, Engine, ReadStep, ScoreStep, Step, WriteStep
from dcclip_cli.curation.filters.image import decode_image
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.report import explain, write_report
from dcclip_cli.curation.report.account import Count, Examples, Statistics
from dcclip_cli.curation.shards import join_dropped
from dcclip_cli.curation.slices import read_pairs
from dcclip_cli.curation.sources.tables import HubSource
from dcclip_cli.curation.work import (
    EXAMPLES,
    LIBRARIES,
    SHARD,
    STATISTICS,
    WorkFolder,
    clear,
    fingerprint,
    plan,
    whole_file,
)
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.preview import Preview
from dcclip_cli.data.reading import Drop
from dcclip_cli.data.shards import DROPPED, Captions

MANIFEST = "manifest.json"
REPORT = "report.html"
_MADE_BY = "dcclip collect"
# pairs that a preview looks at, to find so many that can be read
_LOOKED_AT = 10_000
_SHOWN = 20


@dataclass(frozen=True)
class CollectResult:
    """A finished output folder; `seconds` is the time of this call, close to 0 if the output was
    finished before.
    """

    folder: Path
    already_finished: bool
    pairs: Count
    captions: dict[Language, Count]
    shards: int
    seconds: float


def collect(
    options: CollectOptions,
    out: Path,
    progress: Progress | None = None,
    fresh: bool = False,
    engine: Engine | None = None,
    limit: int | None = None,
) -> CollectResult:
    """Fill the folder `out` with shards, `manifest.json`, `report.html` and `dropped.parquet`.

    The same input and options give the same bytes, whatever engine runs the tasks and however
    often it was killed. A finished `out` is not changed unless `fresh`; an unfinished one never
    has that name. `limit` is the maximum number of candidates to read. Raises DcclipError if a
    source is missing, nothing is kept, or `out` is another folder.
    """
    start = time.monotonic()
    progress = progress or Silent()
    lock_file = out.absolute().with_name(f".{out.name}.lock")
    with lock(lock_file, wait=False) as acquired:
        if not acquired:
            message = Message("another process is collecting into {}", out)
            raise DcclipError(
                message, "wait until it finishes, or choose another folder with --out"
            )
        try:
            # Absolute: tasks may run in other processes and on other machines.
            work = WorkFolder(out.absolute().with_name(f".{out.name}.partial"))
            manifest = _finished_manifest(out)
            if fresh or not work.out.is_dir():  # its result has got its name
                clear(work.root)
            if manifest and not fresh and work.plan(progress) is None:
                if manifest["options"] != decisive(options):
                    message = Message(
                        "{} was created with other options than this recipe's; use "
                        "--fresh to redo it",
                        out,
                    )
                    progress.say(message)
                return _result(out, manifest, True, time.monotonic() - start)
            assignments = plan(options, limit)
            digest = fingerprint(options, assignments)
            work.begin({"fingerprint": digest, "slices": len(assignments)}, assignments, progress)
            manifest = _run_steps(
                options, work, [assignment.estimate for assignment in assignments], progress, engine
            )
            clear(out)
            work.out.rename(out)
            clear(work.root)
            return _result(out, manifest, False, time.monotonic() - start)
        finally:
            remove(lock_file)


def _nothing_kept(pairs: int, dropped: Counter[str], file: Path | None = None) -> DcclipError:
    """The error for a recipe without a result: the reasons, what the most frequent one means, and
    what to change.
    """
    if not pairs:
        return DcclipError(
            "the sources contain no pairs", "add files or folders of pairs to collect.sources"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    message = Message("none of the {} pairs passed: {}", pairs, reasons)
    if not dropped:
        return DcclipError(message, Message("see the reasons in {}", file))
    _, meaning, setting = explain(dropped.most_common(1)[0][0])
    hint = (
        Message("Change collect.{}", setting)
        if setting
        else Message("Fix the source, or choose another")
    )
    if file:
        hint = Message("{}; {} lists the reason for each pair", hint, file)
    return DcclipError(message, joined(" ", (meaning, hint)) if meaning else hint)


def preview(options: CollectOptions) -> Preview | None:
    """A first look at what would be read; None before a download. Raises DcclipError for a source
    without pairs.
    """
    estimate = 0
    pairs = list[Pair]()
    for source in options.sources:
        if isinstance(source, HubSource) and not os.path.isdir(source.path):
            return None
        slices = source.slices(options.shard_size)
        dropped = Counter[str]()
        readable = list[Pair]()
        estimate += sum(part.estimate for part in slices)
        for candidate in islice(
            (candidate for part in slices for candidate in source.read(part.part)), _LOOKED_AT
        ):
            decoded = candidate.fault or (
                None if candidate.url else decode_image(candidate.pair.image)
            )
            if isinstance(decoded, Drop):
                dropped[decoded.reason] += 1
            else:
                readable.append(candidate.pair)
            if len(readable) == _SHOWN:
                break
        if not readable and 0 < dropped.total() < _LOOKED_AT:
            raise _nothing_kept(dropped.total(), dropped)
        pairs += readable
    if not estimate:
        raise DcclipError("the sources contain no data", "check the paths in collect.sources")
    captions: list[Captions] = [{"zh": pair.zh, "en": pair.en} for pair in pairs]
    return (
        Preview(estimate, captions, next((pair.image for pair in pairs if pair.image), None))
        if pairs
        else None
    )


def _run_steps(
    options: CollectOptions,
    work: WorkFolder,
    slices: list[int],
    progress: Progress,
    engine: Engine | None,
) -> dict[str, Any]:
    """Run all steps; returns the manifest. `slices` are the estimated numbers of candidates in
    each.

    Raises DcclipError if nothing is kept. No file of the output contains a time, so that equal
    runs give equal bytes.
    """
    chosen = engine or Engine()
    total = sum(slices)
    tasks = len(slices)
    with chosen.started(tasks) as workers:

        def run(step: Step, candidates: list[int]) -> None:
            done = sum(count for task, count in enumerate(candidates) if step.done(task))
            with progress.task(step.name, total, done) as bar:
                chosen.run(
                    step, work.logs(step.name), workers, lambda task: bar.advance(candidates[task])
                )

        run(ReadStep(options, work, tasks), slices)
        if options.scores:
            run(ScoreStep(options, work, tasks), slices)
        run(DedupStep(options, work, 1), [total])
        run(WriteStep(options, work, tasks), slices)
    results = [[work.result(step, task) for step in ("read", "write")] for task in range(tasks)]
    folders = list(chain.from_iterable(results))
    shards = [_json(folder / SHARD) for _, folder in results]
    with whole_file(work.out / DROPPED, work.root) as path:
        join_dropped(([folder / DROPPED for folder in steps] for steps in results), path)
    statistics = Statistics.merge(_json(folder / STATISTICS) for folder in folders).as_dict()
    examples = Examples.merge(folder / EXAMPLES for folder in folders)
    examples.fill(
        lambda key: next(
            (pair for pair, _ in read_pairs(work.result("read", int(key[:6])), key)), None
        )
    )
    compared = _json(work.result("dedup", 0) / COMPARED)
    manifest = {
        "made_by": _MADE_BY,
        "format": FORMAT,
        **statistics,
        "shards": [shard for shard in shards if shard["pairs"]],
        **({"compared": compared} if compared else {}),
        "options": decisive(options),
        "versions": versions(LIBRARIES),
    }
    with whole_file(work.out / REPORT, work.root) as path:
        write_report(path, statistics, examples.all(), manifest)
    with whole_file(work.out / MANIFEST, work.root) as path:
        path.write_bytes(json_text(manifest))
    for compared in manifest.get("compared", ()):
        progress.say(
            Message(
                "{path}: {images:,} images are compared, {unreadable:,} are unreadable", **compared
            )
        )
    if not manifest["pairs"]["kept"]:
        raise _nothing_kept(
            manifest["pairs"]["read"], Counter(manifest["pairs"]["dropped"]), work.out / DROPPED
        )
    return manifest


def _finished_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output; None if the folder is missing or empty. Raises
    DcclipError for others.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        content = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        ours = (
            content["made_by"] == _MADE_BY
            and bool(_result(out, content, True, 0))
            and content["options"].keys()
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        ours = False
    if ours:
        check_format(out / MANIFEST, content, Message("collect again with --fresh"))
        return dict(content)
    raise DcclipError(
        "{} exists, but collect did not write it",
        "rename or move it, or choose another folder with --out",
        out,
    )


def _result(
    out: Path, manifest: dict[str, Any], already_finished: bool, seconds: float
) -> CollectResult:
    captions = {language: Count(**manifest["captions"][language]) for language in LANGUAGES}
    return CollectResult(
        out,
        already_finished,
        Count(**manifest["pairs"]),
        captions,
        len(manifest["shards"]),
        seconds,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
