"""What does a finished collection say of itself? manifest.json, report.html and the table of all that was dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.curation.plan import LIBRARIES
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.html import write_report
from dcclip_cli.curation.report.statistics import Statistics
from dcclip_cli.curation.result import FORMAT, MAKER, MANIFEST, REPORT
from dcclip_cli.curation.shards import TableWriter
from dcclip_cli.curation.slices import find_pair
from dcclip_cli.curation.work import DROPPED, EXAMPLES, PAIRS, SHARD, STATISTICS, WorkFolder, whole_file, write_json
from dcclip_cli.data.pair import Pair
from dcclip_cli.options import decisive
from dcclip_cli.versions import versions


def finish(options: CollectOptions, work: WorkFolder, slices: int) -> dict[str, Any]:
    """Write what stands beside the shards into `out`; what the manifest says.

    Nothing holds a time, so that equal runs leave equal bytes.
    """
    folders = [folder for number in range(slices) for folder in (work.read(number), work.written(number))]
    written = [work.written(number) for number in range(slices)]
    with whole_file(work.out / DROPPED, work.root) as path, TableWriter(path) as table:
        for folder in written:
            table.append(folder / DROPPED)
    statistics = Statistics.merge(_json(folder / STATISTICS) for folder in folders).as_dict()
    examples = Examples.merge((folder / EXAMPLES for folder in folders), options.report.examples)
    examples.fill_twins(lambda key: _pair(work, key))
    manifest = {
        "made_by": MAKER,
        "format": FORMAT,
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
    """A pair that the read pass kept, by its key."""
    return find_pair(work.read(int(key[:6])) / PAIRS, key)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))
