"""Which raw pairs are worth training on? Reads sources, filters, and leaves shards with an account of every drop."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.data.filters import (
    Drop,
    Duplicates,
    Filter,
    ImageFilter,
    LanguageFilter,
    LengthFilter,
    clean,
    open_image,
    unfit,
)
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.shards import DroppedWriter, ShardWriter, record
from dcclip_cli.data.sources import Candidate, Source
from dcclip_cli.data.table import MAX_RECORD_BYTES
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions

MANIFEST, DROPPED = "manifest.json", "dropped.parquet"
_MAKER = "dcclip collect"


class CollectOptions(Options):
    """What to read, what to keep and how to store it.

    Whatever the filters, a kept pair has a readable JPEG, PNG or WebP image and at least one caption.
    """

    sources: tuple[Source, ...] = Field(min_length=1, description="Read one after the other")
    filters: tuple[Filter, ...] = Field(
        (ImageFilter(), LengthFilter(), LanguageFilter()), description="Asked in this order; the first objection counts"
    )
    needs: tuple[Language, ...] = Field((), description="Languages a pair must have captions in; none: any one will do")
    duplicates: Literal["drop", "keep"] = Field("drop", description="What happens to an image that was kept before")
    shard_size: int = Field(1000, ge=1, description="Pairs in a shard")


@dataclass
class Count:
    """How many were read and kept, and how many dropped for which reason: read = kept + all dropped."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectResult:
    """What a finished output folder holds; `seconds` is this call's time, next to nothing if it was finished before."""

    folder: Path
    already_finished: bool
    pairs: Count
    captions: dict[Language, Count]
    shards: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """A candidate judged: the pair with the captions that stay, why it is dropped if so, and the captions dropped."""

    pair: Pair
    drop: Drop | None
    captions: tuple[tuple[Language, str, Drop], ...] = ()


def collect(options: CollectOptions, out: Path, progress: Progress | None = None, fresh: bool = False) -> CollectResult:
    """Fill the folder `out` with shards, `manifest.json` and `dropped.parquet`.

    The same input and options give the same bytes. A finished `out` is left alone unless `fresh`; an unfinished one
    never exists under that name. Raises DcclipError where a source is missing, nothing is kept, or `out` is no output.
    """
    start = time.monotonic()
    progress = progress or Silent()
    finished = _finished(out)
    if finished and not fresh:
        if finished["options"] != options.model_dump(mode="json"):
            progress.say(f"{out} was made with other options than the recipe's; --fresh makes it again")
        return _result(out, finished, True, time.monotonic() - start)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    manifest = _fill(partial, options, progress)
    if not manifest["pairs"]["kept"]:
        raise DcclipError(
            f"none of the {manifest['pairs']['read']} pairs was kept: {_reasons(manifest['pairs']['dropped'])}",
            f"see why in {partial / DROPPED}, then change collect.filters in the recipe",
        )
    if finished:
        shutil.rmtree(out)
    partial.rename(out)
    return _result(out, manifest, False, time.monotonic() - start)


def judge(candidate: Candidate, options: CollectOptions) -> Verdict:
    """What becomes of one candidate, seen by itself: duplicates can't be told here. Blank captions count as absent."""
    zh, en = ([text for text in candidate.pair.captions(language) if text.strip()] for language in LANGUAGES)
    pair = replace(candidate.pair, zh=tuple(zh), en=tuple(en))
    drop = candidate.fault or _image_drop(pair, options)
    if drop is not None:
        return Verdict(pair, drop)
    kept: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
    dropped: list[tuple[Language, str, Drop]] = []
    for language in LANGUAGES:
        for caption in pair.captions(language):
            judged = _fit_caption(caption, language, kept[language], options)
            if isinstance(judged, Drop):
                dropped.append((language, caption, judged))
            else:
                kept[language].append(judged)
    pair = replace(pair, zh=tuple(kept["zh"]), en=tuple(kept["en"]))
    missing = [language for language in options.needs or LANGUAGES if not kept[language]]
    if missing and (options.needs or len(missing) == len(LANGUAGES)):
        drop = Drop("no-caption", f"none that is fit in {' or '.join(missing)}")
    elif len(record(pair)) > MAX_RECORD_BYTES:
        drop = Drop("record-bytes", f"captions and metadata take more than {MAX_RECORD_BYTES:,} bytes")
    return Verdict(pair, drop, tuple(dropped))


def _image_drop(pair: Pair, options: CollectOptions) -> Drop | None:
    image = open_image(pair.image)
    if isinstance(image, Drop):
        return image
    return next((drop for rule in options.filters if (drop := rule.reason(pair, image))), None)


def _fit_caption(caption: str, language: Language, before: list[str], options: CollectOptions) -> str | Drop:
    if drop := unfit(caption):
        return drop
    caption = clean(caption)
    if caption in before:
        return Drop("caption-repeated", "the pair has it already")
    return next((drop for rule in options.filters if (drop := rule.caption_reason(caption, language))), caption)


def _candidates(options: CollectOptions) -> tuple[int, Iterator[tuple[str, Candidate]]]:
    """How many candidates all the sources have, and each with its origin, `SOURCE:KEY`, and a key of its own."""
    readings = [(source, source.open()) for source in options.sources]

    def renamed() -> Iterator[tuple[str, Candidate]]:
        number = 0
        for source, reading in readings:
            name = source.name or source.path.name
            for candidate in reading.candidates:
                origin = candidate.pair.key
                known = {"source": name, "origin": origin} | ({"licence": source.licence} if source.licence else {})
                # What the pair knows of itself is nearer to the truth.
                pair = replace(candidate.pair, key=f"{number:09d}", meta=known | candidate.pair.meta)
                yield f"{name}:{origin}", replace(candidate, pair=pair)
                number += 1

    return sum(reading.total for _, reading in readings), renamed()


def _fill(folder: Path, options: CollectOptions, progress: Progress) -> dict[str, Any]:
    """Write everything into the new `folder`; what the manifest says."""
    total, candidates = _candidates(options)
    folder.mkdir(parents=True)
    pairs, captions = Count(), {language: Count() for language in LANGUAGES}
    seen = Duplicates() if options.duplicates == "drop" else None
    shards = ShardWriter(folder, options.shard_size)
    with shards, DroppedWriter(folder / DROPPED) as dropped, progress.task("collect", total) as task:
        for origin, candidate in candidates:
            verdict = judge(candidate, options)
            pair, drop = verdict.pair, verdict.drop or (seen.reason(verdict.pair) if seen else None)
            for language, caption, why in verdict.captions:
                _count(captions[language], why)
                dropped.write_caption(pair.key, origin, why, language, caption)
            _count(pairs, drop)
            for language in LANGUAGES:
                _count(captions[language], drop, len(pair.captions(language)))
            if drop is None:
                shards.write(pair)
            else:
                dropped.write_pair(pair, origin, drop)
            task.advance(1, kept=pairs.kept)
    manifest = {
        "made_by": _MAKER,
        "format": 1,
        "pairs": asdict(pairs),
        "captions": {language: asdict(count) for language, count in captions.items()},
        "shards": [asdict(shard) for shard in shards.shards],
        "options": options.model_dump(mode="json"),
        "versions": versions(),
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", errors="replace")
    return manifest


def _count(count: Count, drop: Drop | None, number: int = 1) -> None:
    count.read += number
    if drop is None:
        count.kept += number
    elif number:
        count.dropped[drop.reason] = count.dropped.get(drop.reason, 0) + number


def _finished(out: Path) -> dict[str, Any] | None:
    """The manifest of a finished output; None where there is nothing yet."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"] == _MAKER and manifest["format"] == 1:
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DcclipError(f"{out} exists and is no output of collect", "move it away, or name another folder with --out")


def _result(out: Path, manifest: dict[str, Any], already_finished: bool, seconds: float) -> CollectResult:
    pairs = Count(**manifest["pairs"])
    captions = {language: Count(**manifest["captions"][language]) for language in LANGUAGES}
    return CollectResult(out, already_finished, pairs, captions, len(manifest["shards"]), seconds)


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in Counter(dropped).most_common())
