"""report.html of a collection: one file, without network access or scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.curation.report.charts import draw, histogram, limits_of
from dcclip_cli.curation.report.examples import Example
from dcclip_cli.curation.report.reasons import STEPS, Meaning, meaning_of
from dcclip_cli.curation.report.statistics import KEPT, SCALES
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.html import write_page

_LANGUAGE_NAMES = {"zh": "Chinese", "en": "English"}


def write_report(
    path: Path,
    statistics: Mapping[str, Any],
    examples: Iterable[Example],
    manifest: Mapping[str, Any],
) -> None:
    """Write report.html from `Statistics.as_dict`, the examples, and the manifest's options, shards and versions.

    The options' thresholds are marked in the histograms. The same arguments give the same bytes.
    """
    counts = {name: statistics["captions"][name] for name in LANGUAGES}
    limits = limits_of(manifest.get("options", {}), statistics["histograms"])
    found = (histogram(name, fates, limits.get(name, ())) for name, fates in _in_order(statistics["histograms"]))
    write_page(
        path,
        "dcclip_cli.curation.report",
        "report.html.j2",
        pairs=statistics["pairs"],
        captions=counts,
        tiles={"Pairs": statistics["pairs"]} | {f"{_LANGUAGE_NAMES[name]} captions": counts[name] for name in counts},
        language_names=_LANGUAGE_NAMES,
        sources=statistics["sources"],
        steps=steps(statistics),
        charts=[(one, draw(one)) for one in found if one is not None],
        sheets=_sheets(statistics, list(examples)),
        shards=manifest.get("shards", []),
        versions=manifest.get("versions", {}),
        options=json.dumps(manifest.get("options", {}), ensure_ascii=False, indent=2),
    )


@dataclass(frozen=True)
class Row:
    """A reason in the table: how many pairs and captions were dropped for it."""

    reason: str
    meaning: Meaning
    pairs: int
    captions: Mapping[Language, int]


@dataclass(frozen=True)
class Step:
    """A step in the table: its reasons, the most frequent first, and how many pairs were left after it."""

    name: str
    rows: tuple[Row, ...]
    pairs: int
    captions: Mapping[Language, int]
    left: int


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: the examples of one reason, or of the kept pairs."""

    row: Row | None
    examples: tuple[Example, ...]


def steps(statistics: Mapping[str, Any]) -> list[Step]:
    """Every step that dropped something, in order."""
    pairs = statistics["pairs"]["dropped"]
    captions = {language: statistics["captions"][language]["dropped"] for language in LANGUAGES}
    found: dict[str, list[Row]] = {}
    for reason in sorted({*pairs, *(reason for dropped in captions.values() for reason in dropped)}):
        meaning = meaning_of(reason)
        counts = {language: captions[language].get(reason, 0) for language in LANGUAGES}
        found.setdefault(meaning.step, []).append(Row(reason, meaning, pairs.get(reason, 0), counts))
    left, table = statistics["pairs"]["read"], []
    for name in STEPS:
        if rows := found.get(name):
            rows.sort(key=lambda row: (-row.pairs, -sum(row.captions.values()), row.reason))
            dropped = sum(row.pairs for row in rows)
            left -= dropped
            totals = {language: sum(row.captions[language] for row in rows) for language in LANGUAGES}
            table.append(Step(name, tuple(rows), dropped, totals, left))
    return table


def _in_order(histograms: Mapping[str, Any]) -> list[tuple[str, Any]]:
    order = {name: number for number, name in enumerate(SCALES)}
    # Scores come last; backwards, :zh before :en as everywhere.
    names = sorted(histograms, reverse=True)
    return [(name, histograms[name]) for name in sorted(names, key=lambda name: order.get(name, len(order)))]


def _sheets(statistics: Mapping[str, Any], examples: Sequence[Example]) -> list[Sheet]:
    by_reason: dict[str, list[Example]] = {}
    for example in examples:
        by_reason.setdefault(example.reason, []).append(example)
    rows = [row for step in steps(statistics) for row in step.rows]
    return [
        Sheet(None, tuple(by_reason.get(KEPT, ()))),
        *(Sheet(row, tuple(by_reason[row.reason])) for row in rows if row.reason in by_reason),
    ]
