"""report.html of a collection, one file without network access or scripts; and the explanations of drop reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dcclip_cli.curation.report.charts import draw, histogram, limits_of
from dcclip_cli.curation.report.examples import Example
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


# Step -> reason -> what it means, and what to change in the recipe's `collect` section. A reason with * also explains
# those that contain a number, a label or a scorer's name, which replaces {}, and assigns unknown ones to a step.
_EXPLAINED: dict[str, dict[str, tuple[str, str]]] = {
    "Reading": {
        "image-missing": ("The image file does not exist.", ""),
        "image-outside": ("The image's path or link leads out of the source's folder.", "sources: {allow_outside}"),
        "image-base64": ("The image is not valid base64.", ""),
        "captions-missing": ("The caption file does not exist.", ""),
        "captions-bytes": ("The caption file is too large.", ""),
        "captions-unreadable": ("The caption file is not UTF-8 text or JSON.", ""),
        "row-malformed": ("The row has too many or too few cells, or is not UTF-8.", ""),
        "table-unreadable": ("The rest of the table cannot be read.", ""),
        "tar-unreadable": ("The rest of the tar file cannot be read.", ""),
        "tar-cut": ("The tar file is truncated.", ""),
        "record-unreadable": ("The pair's record is not JSON, or its captions have another type.", ""),
        "record-bytes": ("Captions and metadata are too long for a record.", ""),
        **dict.fromkeys(("captions-*", "row-*", "record-*", "table-*", "tar-*"), ("", "")),
    },
    "Download": {
        "url-scheme": ("The URL is not http or https.", ""),
        "url-malformed": ("The URL is malformed.", ""),
        "url-private": ("The URL leads to a private network.", "fetch: {allow_hosts}"),
        "url-redirects": ("Too many redirects.", ""),
        "url-bytes": ("The response is too large.", "fetch: {max_bytes}"),
        "url-timeout": ("The download timed out.", "fetch: {timeout_s}"),
        "url-broken": ("The connection broke.", "fetch: {retries}"),
        "url-encoding": ("The compressed response cannot be decoded.", ""),
        "url-opt-out": ("The site opts out of the use of its images for training.", "fetch: {opt_outs}"),
        "url-robots": ("The site's robots.txt disallows the URL.", "fetch: {robots}"),
        "url-tls": ("The server's certificate is not valid.", ""),
        "url-unreachable": ("The server cannot be reached.", "fetch: {retries}"),
        "url-empty": ("The response is empty.", ""),
        "url-status-*": ("The server answered with status {}.", ""),
        "url-*": ("", ""),
    },
    "Image": {
        "image-bytes": ("The file is too large or too small.", "filters: {kind: image, min_bytes, max_bytes}"),
        "image-format": ("The file is not in an allowed format.", "filters: {kind: image, formats}"),
        "image-unreadable": ("The image cannot be decoded, or part of it is missing.", ""),
        "image-bomb": ("The file's header declares too many pixels (decompression bomb).", ""),
        "image-small": ("The shorter side is too short.", "filters: {kind: image, min_side}"),
        "image-large": ("The longer side is too long.", "filters: {kind: image, max_side}"),
        "image-aspect": ("The image is too narrow or too flat.", "filters: {kind: image, max_aspect}"),
        "image-animated": ("The image is animated.", "filters: {kind: image, animated}"),
        "image-blank": ("The image is almost a single colour.", "filters: {kind: blank, contrast, min_share}"),
        "image-*": ("", ""),
    },
    "Captions": {
        "caption-control": ("The caption contains control characters.", ""),
        "caption-short": ("Too few characters (Chinese) or words (English).", "filters: {kind: length, zh, en}"),
        "caption-long": ("Too many characters (Chinese) or words (English).", "filters: {kind: length, zh, en}"),
        "caption-language": ("The caption is not in its labelled language.", "filters: {kind: language, detector}"),
        "caption-script": ("Too much of the caption is in the other script.", "filters: {kind: script, min_share}"),
        "caption-mixed": ("The caption mixes Chinese characters and Latin letters.", "filters: {kind: script, mixed}"),
        "caption-url": ("The caption contains a URL or e-mail address.", "filters: {kind: filename}"),
        "caption-filename": ("The caption looks like a file name.", "filters: {kind: filename}"),
        "caption-camera": ("The caption is a number given by a camera or a program.", "filters: {kind: filename}"),
        "caption-boilerplate": ("The caption is about the web page, not the image.", "filters: {kind: boilerplate}"),
        "caption-generated": ("The caption was generated by a program.", "filters: {kind: boilerplate}"),
        "caption-placeholder": ("The caption says only that there is an image.", "filters: {kind: boilerplate}"),
        "caption-emoji": ("The caption consists of emoji.", "filters: {kind: wordless}"),
        "caption-wordless": ("The caption consists of digits and symbols.", "filters: {kind: wordless, numbers}"),
        "caption-html": ("The caption contains markup.", "filters: {kind: markup}"),
        "caption-garbled": ("A wrong encoding made the caption unreadable.", "filters: {kind: garbled}"),
        "caption-repetition": ("The caption repeats a word.", "filters: {kind: repetition, times, max_share}"),
        "caption-many": ("The pair with the same image has enough.", "duplicates: {kind: same-image, most_captions}"),
        "caption-repeated": ("The pair already has this caption.", ""),
        "caption-*": ("", ""),
    },
    "Scores": {
        "agreement-*low": ("The caption does not match the image.", "scores: {kind: agreement, keep, threshold}"),
        "prompts-*reject": ("The image matches a rejected prompt.", "scores: {kind: prompts, reject, threshold}"),
        "classifier-*": ("The classifier's label: {}.", "scores: {kind: classifier, reject, threshold}"),
        **dict.fromkeys(("agreement-*", "prompts-*"), ("", "")),
    },
    "Empty pairs": {"no-caption": ("No caption is left, or none in a needed language.", "needs")},
    "Decontamination": {
        "evaluation-image": ("An evaluation set has a near duplicate.", "decontaminate: {paths, images, bits}"),
        "evaluation-caption": ("An evaluation set contains this caption.", "decontaminate: {paths, captions}"),
        "evaluation-*": ("", ""),
    },
    "Duplicates": {
        "image-duplicate": ("An earlier pair has the same image.", "duplicates: {kind: same-image}"),
        "image-merged": ("An earlier pair with this image has the captions now.", "duplicates: {kind: same-image}"),
        "image-near-duplicate": ("An earlier pair has nearly this image.", "duplicates: {kind: near-image, bits}"),
        "caption-duplicate": ("Too many earlier pairs have it.", "duplicates: {kind: same-caption, at_most}"),
        "caption-near-duplicate": ("Too many earlier pairs have nearly it.", "duplicates: {kind: same-caption}"),
    },
    "Other": {"*": ("", "")},
}
STEPS = tuple(_EXPLAINED)


@dataclass(frozen=True)
class Meaning:
    """An explained reason; `text` and `setting` are empty if unknown."""

    step: str
    text: str
    setting: str


def meaning_of(reason: str) -> Meaning:
    """The explanation of a reason; for an unknown one, only the step that its prefix belongs to."""
    entries = [(step, mark, explained) for step, marks in _EXPLAINED.items() for mark, explained in marks.items()]
    exact = (entry for entry in entries if entry[1] == reason)
    matching = (entry for entry in entries if "*" in entry[1] and fnmatchcase(reason, entry[1]))
    step, mark, (text, setting) = next(exact, None) or next(matching)
    return Meaning(step, text.format(reason.removeprefix(mark.partition("*")[0])), setting)
