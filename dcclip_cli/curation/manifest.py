"""The last step: manifest.json, dropped.parquet and report.html; and what a manifest says of a finished collection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.html import write_report
from dcclip_cli.curation.report.statistics import Count, Statistics
from dcclip_cli.curation.shards import join_dropped
from dcclip_cli.curation.slices import find_pair
from dcclip_cli.curation.work import (
    DROPPED,
    EXAMPLES,
    LIBRARIES,
    PAIRS,
    SHARD,
    STATISTICS,
    WorkFolder,
    whole_file,
    write_json,
)
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import decisive
from dcclip_cli.versions import versions

MANIFEST, REPORT = "manifest.json", "report.html"
_MADE_BY, _FORMAT = "dcclip collect", 1


@dataclass(frozen=True)
class CollectResult:
    """A finished output folder; `seconds` is the time of this call, close to 0 if the output was finished before."""

    folder: Path
    already_finished: bool
    pairs: Count
    captions: dict[Language, Count]
    shards: int
    seconds: float


def result_of(out: Path, manifest: dict[str, Any], already_finished: bool, seconds: float) -> CollectResult:
    """The result that a manifest describes."""
    captions = {language: Count.of(manifest["captions"][language]) for language in LANGUAGES}
    return CollectResult(out, already_finished, Count.of(manifest["pairs"]), captions, len(manifest["shards"]), seconds)


def finished_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output; None if the folder is missing or empty. Raises DcclipError for others."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"] == _MADE_BY and manifest["format"] == _FORMAT:
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DcclipError(f"{out} exists and is no output of collect", "move it away, or name another folder with --out")


def finish(options: CollectOptions, work: WorkFolder, slices: int) -> dict[str, Any]:
    """Write dropped.parquet, report.html and manifest.json next to the shards in `out`; returns the manifest.

    None of them contains a time, so that equal runs give equal bytes.
    """
    written = [work.written(number) for number in range(slices)]
    folders = [folder for number in range(slices) for folder in (work.read(number), work.written(number))]
    with whole_file(work.out / DROPPED, work.root) as path:
        join_dropped((folder / DROPPED for folder in written), path)
    statistics = Statistics.merge(_json(folder / STATISTICS) for folder in folders).as_dict()
    examples = Examples.merge((folder / EXAMPLES for folder in folders), options.report.examples)
    examples.fill_twins(lambda key: _pair(work, key))
    manifest = {
        "made_by": _MADE_BY,
        "format": _FORMAT,
        "pairs": statistics["pairs"],
        "captions": statistics["captions"],
        "sources": statistics["sources"],
        "histograms": statistics["histograms"],
        "shards": list(_shards(written)),
        "options": decisive(options),
        "versions": versions(LIBRARIES),
    }
    with whole_file(work.out / REPORT, work.root) as path:
        write_report(path, statistics, examples.all(), manifest)
    with whole_file(work.out / MANIFEST, work.root) as path:
        write_json(path, manifest)
    return manifest


def _shards(folders: list[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        shard = _json(folder / SHARD)
        if shard["pairs"]:
            yield shard


def _pair(work: WorkFolder, key: str) -> Pair | None:
    """A pair that passed the read step, by its key."""
    return find_pair(work.read(int(key[:6])) / PAIRS, key)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))
