"""report.html of a collection: counts, histograms and examples in one file without network access
or scripts.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dcclip_cli.core.errors import Message
from dcclip_cli.core.html import readable, ticks, write_page
from dcclip_cli.curation.report.account import KEPT, SCALES, Example, Scale, scale_of
from dcclip_cli.data.pair import LANGUAGES

_LANGUAGE_NAMES = {"zh": Message("Chinese"), "en": Message("English")}
_CAPTIONS = {"zh": Message("Chinese captions"), "en": Message("English captions")}
_BARS = 48  # of a histogram, at most
_TAIL = 0.01  # of all values, at either end, may be counted in the outermost bars
_VISIBLE = 0.0125  # height of the smallest part of a bar, relative to the highest bar
_FATES = (
    "kept",
    "this",
    "other",
)  # colours in html.css: kept, dropped for this quantity, dropped for another
# of the bars in a chart
_WIDTH = 284
_HEIGHT = 98
_TICKS = 7  # values with a label on the axis, at most


def write_report(
    path: Path,
    statistics: Mapping[str, Any],
    examples: Iterable[Example],
    manifest: Mapping[str, Any],
) -> None:
    """Write report.html of statistics, examples and the manifest: the same arguments give the same
    bytes.
    """
    counts = {name: statistics["captions"][name] for name in LANGUAGES}
    options = manifest.get("options", {})
    table = steps(statistics)
    limits = limits_of(options)
    by_reason: dict[str, list[Example]] = {KEPT: []}
    for example in examples:
        by_reason.setdefault(example.reason, []).append(example)
    rows = [row for step in table for row in step["reasons"] if row["reason"] in by_reason]
    measured = statistics["histograms"]
    # Scores come last, :zh before :en as everywhere.
    names = [
        *(name for name in SCALES if name in measured),
        *sorted(measured.keys() - SCALES.keys(), reverse=True),
    ]
    write_page(
        path,
        "dcclip_cli.curation.report",
        "report.html.j2",
        pairs=statistics["pairs"],
        captions=counts,
        tiles={Message("Pairs"): statistics["pairs"]}
        | {_CAPTIONS[name]: counts[name] for name in counts},
        language_names=_LANGUAGE_NAMES,
        sources=statistics["sources"],
        steps=table,
        charts=[histogram(name, measured[name], limits.get(name, ())) for name in names],
        sheets=[(None, by_reason[KEPT]), *((row, by_reason[row["reason"]]) for row in rows)],
        shards=manifest.get("shards", []),
        versions=manifest.get("versions", {}),
        options=json.dumps(options, ensure_ascii=False, indent=2),
    )


def steps(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every step that dropped something, in order, with its reasons, the most frequent first, for
    the template.
    """
    pairs = statistics["pairs"]["dropped"]
    captions = {language: statistics["captions"][language]["dropped"] for language in LANGUAGES}
    rows_by_step: dict[str, list[dict[str, Any]]] = {name: [] for name in _explanations()}
    for reason in sorted(
        {*pairs, *(reason for dropped in captions.values() for reason in dropped)}
    ):
        step, text, setting = explain(reason)
        counts = {language: captions[language].get(reason, 0) for language in LANGUAGES}
        row = {
            "reason": reason,
            "text": text,
            "setting": setting,
            "pairs": pairs.get(reason, 0),
            "captions": counts,
        }
        rows_by_step[step].append(row)
    remaining = statistics["pairs"]["read"]
    table = []
    for name, rows in rows_by_step.items():
        if not rows:
            continue
        rows.sort(key=lambda row: (-row["pairs"], -sum(row["captions"].values()), row["reason"]))
        dropped = sum(row["pairs"] for row in rows)
        remaining -= dropped
        totals = {
            language: sum(row["captions"][language] for row in rows) for language in LANGUAGES
        }
        step_row = {
            "name": Message(name),
            "reasons": rows,
            "pairs": dropped,
            "captions": totals,
            "left": remaining,
        }
        table.append(step_row)
    return table


@cache
def _explanations() -> dict[str, dict[str, str]]:
    return dict(yaml.safe_load(Path(__file__).with_name("reasons.yaml").read_text("utf-8")))


def explain(reason: str) -> tuple[str, ...]:
    """The step of a reason, what it means, and what to change in the recipe; for unknown ones only
    the step.
    """
    entries = [
        (step, mark, text)
        for step, marks in _explanations().items()
        for mark, text in marks.items()
    ]
    exact = (entry for entry in entries if entry[1] == reason)
    step, mark, text = next(exact, None) or next(
        entry for entry in entries if fnmatchcase(reason, entry[1])
    )
    meaning, _, setting = text.partition(" | ")
    fields = {"found": reason.removeprefix(mark.partition("*")[0])} if "{found}" in meaning else {}
    return Message(step), Message(meaning, **fields), setting


def limits_of(options: Mapping[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """The thresholds of the image and length filters by histogram: ("≥", 32) keeps values of 32
    and more.
    """
    ranges: dict[str, tuple[float | None, float | None]] = {}
    for rule in options.get("filters", ()):
        if rule["kind"] == "image":
            ranges |= {"short_side": (rule["min_side"], None), "aspect": (None, rule["max_aspect"])}
        elif rule["kind"] == "length":
            ranges |= {language: rule[language] for language in LANGUAGES}
    return {
        name: [(sign, value) for sign, value in zip("≥≤", limits, strict=True) if value]
        for name, limits in ranges.items()
    }


def histogram(
    name: str, fates: Mapping[str, Mapping[str, int]], limits: Sequence[tuple[str, float]] = ()
) -> dict[str, Any]:
    """One of the histograms in `Statistics.as_dict` for the template, with the places of its bars
    and labels.
    """
    scale = scale_of(name)
    bins = {at: number for number, at in enumerate(scale.names)}
    counts = np.zeros((len(_FATES), len(bins)), np.int64)
    for reason, count_by_bin in fates.items():
        row = 0 if reason == KEPT else 1 if reason in scale.reasons else 2
        for at, number in count_by_bin.items():
            counts[row, bins[at]] += number
    edges, bars = cut_into_bars(scale, counts, [value for _, value in limits])
    highest = max(1, int(bars.sum(0).max()))
    heights = _HEIGHT * np.maximum(bars / highest, (bars > 0) * _VISIBLE)
    places = np.linspace(0, _WIDTH, len(edges))
    if scale.unit in ("pixels", "bytes"):  # labels at powers of two, else at round numbers
        first, last = np.log2([edges[0], edges[-1]])
        labelled = np.asarray(2 ** ticks(first, last, _TICKS, is_integer=True))
    else:
        labelled = ticks(edges[0], edges[-1], _TICKS, is_integer=scale.is_integer)
    # A bar of whole numbers is centred on its value, so the line is between the last kept value
    # and the next.
    lines = [
        (sign, value, value + scale.is_integer * (0.5 if sign == "≤" else -0.5))
        for sign, value in limits
    ]
    labels = ", ".join(f"{sign} {readable(value, scale.unit)}" for sign, value in limits)
    return {
        "title": scale.title,
        "unit": scale.unit,
        "dropped": int(counts[1].sum()),
        "alt": Message("Histogram: {}, threshold {}", scale.title, labels)
        if labels
        else Message("Histogram: {}", scale.title),
        "bars": [
            {
                "fate": _FATES[row],
                "left": places[at],
                "top": _HEIGHT - heights[: row + 1, at].sum(),
                "height": high,
            }
            for (row, at), high in np.ndenumerate(heights)
            if high
        ],
        "width": places[1],
        "counts": {
            int(count): _HEIGHT * (1 - count / highest)
            for count in ticks(0, highest, 3, is_integer=True)
        },
        "values": {
            readable(value, scale.unit): np.interp(value, edges, places) for value in labelled
        },
        "limits": [
            {
                "sign": sign,
                "text": f"{sign} {readable(value, scale.unit)}",
                "left": np.interp(line, edges, places),
            }
            for sign, value, line in lines
            if edges[0] <= line <= edges[-1]
        ],
    }


def cut_into_bars(
    scale: Scale, counts: np.ndarray, limits: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """At most 48 bars of nearly all values and thresholds: edges (bars + 1,), counts (fates,
    bars).
    """
    below = counts.sum(0).cumsum()
    first = int(np.searchsorted(below, below[-1] * _TAIL, side="right"))
    last = int(np.searchsorted(below, below[-1] * (1 - _TAIL))) + 1
    near = [
        at
        for at in scale.bins(limits).tolist()
        if abs(2 * at - first - last) <= 3 * max(8, last - first)
    ]
    first = min([first, *(at - 1 for at in near)])
    last = max([last, *(at + 2 for at in near)])
    first = max(
        0, min(first, last - 8)
    )  # fewer bars, as wide as the whole chart, do not look like a histogram
    step = math.ceil((last - first) / _BARS)
    starts = np.arange(first, min(last, counts.shape[1]), step)
    edges = np.array(scale.edges)[np.minimum([*starts, starts[-1] + step], counts.shape[1])]
    return edges - (0.5 if scale.is_integer else 0), np.add.reduceat(
        counts, [0, *starts[1:]], axis=1
    )
