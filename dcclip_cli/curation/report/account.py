"""What a report tells of the pairs of a collection: counts, histograms, and example pairs.

Both are collected slice by slice and joined; the result depends neither on the slices nor on their
order. The examples of each drop reason and of the kept pairs are those with the smallest hashes of
their keys.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from dcclip_cli.core.errors import Message
from dcclip_cli.core.html import jpeg_data_url, jpeg_thumbnail
from dcclip_cli.curation.filters.image import decode_image
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop

KEPT = "kept"  # in place of a reason
MOVED = (
    "image-merged",
)  # captions of such a pair are counted with the pair that they were moved to
# shown of a text, and captions shown of a language, at most
_CHARACTERS = 300
_CAPTIONS = 4

DroppedCaption = tuple[Language, str, Drop]


@dataclass(frozen=True)
class Scale:
    """Bins of a histogram, the same for all slices: bin i has the values from edges[i] to below
    edges[i + 1].

    The first and the last bin also count all values beyond them. `is_integer`: each number has a
    bin. `reasons` are the drop reasons that depend on this quantity; charts show them separately.
    """

    title: str
    unit: str
    edges: tuple[float, ...]
    reasons: tuple[str, ...]
    is_integer: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The bins' names in JSON: the values at which they begin, to three decimals."""
        return [f"{edge:.3f}".rstrip("0").rstrip(".") for edge in self.edges[:-1]]

    def bins(self, values: Sequence[float]) -> np.ndarray:
        numbers = np.searchsorted(self.edges, np.asarray(values, float) + 1e-9, side="right") - 1
        return np.asarray(numbers.clip(0, len(self.edges) - 2))


def _quarter_octaves(start: float, bins: int) -> tuple[float, ...]:
    return tuple(start * 2 ** (number / 4) for number in range(bins + 1))


_WHOLE = tuple(float(number) for number in range(258))
SCALES = {
    "short_side": Scale(
        Message("Shorter side"), Message("pixels"), _quarter_octaves(4, 48), ("image-small",)
    ),
    "long_side": Scale(Message("Longer side"), Message("pixels"), _quarter_octaves(4, 48), ()),
    "aspect": Scale(
        Message("Longer side / shorter side"),
        "",
        tuple(1 + 0.1 * n for n in range(151)),
        ("image-aspect",),
    ),
    "bytes": Scale(Message("File size"), Message("bytes"), _quarter_octaves(64, 80), ()),
    "zh": Scale(
        Message("Chinese captions"),
        Message("characters"),
        _WHOLE,
        ("caption-short", "caption-long"),
        is_integer=True,
    ),
    "en": Scale(
        Message("English captions"),
        Message("words"),
        _WHOLE,
        ("caption-short", "caption-long"),
        is_integer=True,
    ),
}


@cache
def scale_of(name: str) -> Scale:
    """The scale of a histogram; a score's, `score:SCORER[:LANGUAGE]`, is wide: regressions are not
    limited to 1.
    """
    if name in SCALES:
        return SCALES[name]
    scorer, _, language = name.removeprefix("score:").partition(":")
    title = scorer[:1].upper() + scorer[1:]
    if language:
        titles = {"zh": Message("{}, Chinese", title), "en": Message("{}, English", title)}
        title = titles.get(language, title)
    edges = tuple(-20 + 0.005 * number for number in range(8002))
    return Scale(title, "", edges, (scorer, f"{scorer}-low", f"{scorer}-reject"))


@dataclass(frozen=True)
class Count:
    """How many were read, kept, and dropped by reason; read = kept + all dropped."""

    read: int
    kept: int
    dropped: dict[str, int]


class Statistics:
    """Counts and histograms of pairs and captions. Each pair is added once, when it is known
    whether it is kept.

    The read step adds the pairs that it drops (`add`) and the captions that it drops from other
    pairs (`add_captions`); the write step adds all other pairs. A histogram counts by KEPT or drop
    reason, and by bin, named by the value at which it begins.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()  # by the path in `as_dict`
        self._values: dict[tuple[str, str], list[float]] = defaultdict(
            list
        )  # of a histogram and fate, not counted yet

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        size: tuple[int, int] | None = None,
        captions: Sequence[DroppedCaption] = (),
    ) -> None:
        """Count a pair: `drop` is None if it is kept, `size` is its image's width and height if
        known.

        `pair` has the captions that are kept or dropped with it, `captions` are those dropped from
        it before. The source is `pair.meta["source"]`.
        """
        reason = drop.reason if drop else KEPT
        self._count(reason, "pairs")
        self._count(reason, "sources", str(pair.meta.get("source", "")))
        if size and min(size) > 0:
            short, long = sorted(size)
            self._measure("short_side", short, reason)
            self._measure("long_side", long, reason)
            self._measure("aspect", long / short, reason)
        if pair.image:
            self._measure("bytes", len(pair.image), reason)
        if reason not in MOVED:
            for language in LANGUAGES:
                for caption in pair.captions(language):
                    self._caption(language, caption, reason)
        self.add_captions(captions)

    def add_captions(self, captions: Iterable[DroppedCaption]) -> None:
        for language, caption, drop in captions:
            self._caption(language, caption, drop.reason)

    def add_score(
        self, scorer: str, value: float, drop: Drop | None, language: Language | None = None
    ) -> None:
        """Count a score of a pair, or of a caption in `language`, and whether it was kept or
        dropped.
        """
        name = f"score:{scorer}:{language}" if language else f"score:{scorer}"
        self._measure(name, value, drop.reason if drop else KEPT)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON, the counts as for `Count`; equal statistics give equal text."""
        captions = {language: _nothing() for language in LANGUAGES}
        for (name, fate), values in self._values.items():
            scale = scale_of(name)
            for number, count in Counter(scale.bins(values).tolist()).items():
                self._counts["histograms", name, fate, scale.names[number]] += count
        self._values.clear()
        everything: dict[str, Any] = {
            "pairs": _nothing(),
            "captions": captions,
            "sources": {},
            "histograms": {},
        }
        # Bins are ordered by value, everything else by name.
        for path in sorted(
            self._counts,
            key=lambda path: (*path[:-1], float(path[-1])) if path[0] == "histograms" else path,
        ):
            inner = everything
            for name in path[:-1]:
                inner = inner.setdefault(name, _nothing() if inner is everything["sources"] else {})
            inner[path[-1]] = self._counts[path]
        return everything

    @classmethod
    def merge(cls, parts: Iterable[Mapping[str, Any]]) -> Self:
        """The sum of several `as_dict`s."""
        total = cls()
        for part in parts:
            total._counts.update(dict(_paths(part)))
        return total

    def _caption(self, language: Language, caption: str, reason: str) -> None:
        self._count(reason, "captions", language)
        words = caption.split()
        self._measure(language, len("".join(words)) if language == "zh" else len(words), reason)

    def _count(self, reason: str, *group: str) -> None:
        self._counts[*group, "read"] += 1
        self._counts[(*group, KEPT) if reason == KEPT else (*group, "dropped", reason)] += 1

    def _measure(self, name: str, value: float, reason: str) -> None:
        self._values[name, reason].append(value)


def _nothing() -> dict[str, Any]:
    return {"read": 0, "kept": 0, "dropped": {}}


def _paths(counts: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], int]]:
    for name, value in counts.items():
        if isinstance(value, int):
            yield (*above, name), value
        else:
            yield from _paths(value, *above, name)


@dataclass(frozen=True)
class Example:
    """A pair as the report shows it: `reason` is KEPT, or why the pair or its captions in
    `..._dropped` were dropped.

    `thumbnail` is a data URL, empty if the image cannot be shown or until `Examples.fill` adds it;
    `size` is in pixels. For a duplicate, `twin` is the key of the pair that is kept instead, with
    its thumbnail.
    """

    reason: str
    rank: str  # the key's hash
    key: str
    origin: str
    detail: str
    size: str
    thumbnail: str
    zh: list[str]
    en: list[str]
    zh_dropped: list[str]
    en_dropped: list[str]
    twin: str = ""
    twin_thumbnail: str = ""


_PER_REASON = 12


class Examples:
    """Collects at most 12 examples for each drop reason and of the kept pairs.

    Thumbnails are made only for pairs that enter the sample, about 12 * (1 + ln(pairs / 12)).
    """

    def __init__(self) -> None:
        self._by_reason: dict[str, dict[str, Example]] = {}  # reason -> rank -> example

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        image: DecodedImage | None = None,
        captions: Sequence[DroppedCaption] = (),
        twin: str = "",
    ) -> None:
        """Consider a pair, as `Statistics.add`; `fill` adds undecoded images. `twin`: the key that
        it repeats.
        """
        reason, detail = (drop.reason, drop.detail) if drop else (KEPT, "")
        gone = (
            captions if drop and not (pair.zh or pair.en) else ()
        )  # they were dropped first, and the pair with them
        if gone:
            detail += f" ({', '.join(sorted({why.reason for _, _, why in gone}))})"
        self._consider(reason, pair, detail, image, gone, twin)
        self.add_captions(pair, captions, image)

    def add_captions(
        self, pair: Pair, captions: Sequence[DroppedCaption], image: DecodedImage | None = None
    ) -> None:
        for reason in dict.fromkeys(drop.reason for _, _, drop in captions):
            same = [caption for caption in captions if caption[2].reason == reason]
            self._consider(reason, pair, same[0][2].detail, image, same)

    def fill(self, find: Callable[[str], Pair | None]) -> None:
        """Add the images that are missing, and to every duplicate the kept pair, which is shown
        next to it.
        """
        for by_rank in self._by_reason.values():
            for rank, example in by_rank.items():
                if not example.thumbnail and (pair := find(example.key)):
                    thumbnail, size = _shrunk(decode_image(pair.image))
                    example = by_rank[rank] = replace(example, thumbnail=thumbnail, size=size)
                if example.twin and (pair := find(example.twin)):
                    by_rank[rank] = replace(
                        example, twin_thumbnail=_shrunk(decode_image(pair.image))[0]
                    )

    def all(self) -> list[Example]:
        return [
            example
            for _, by_rank in sorted(self._by_reason.items())
            for _, example in sorted(by_rank.items())
        ]

    def write(self, path: Path) -> None:
        """Write the sample as JSON, the same bytes for the same sample."""
        path.write_text(json.dumps([asdict(example) for example in self.all()]), "utf-8")

    @classmethod
    def merge(cls, paths: Iterable[Path]) -> Self:
        """The sample of all pairs from which the samples in these files were drawn, one file in
        memory at a time.
        """
        merged = cls()
        for path in paths:
            for values in json.loads(path.read_bytes()):
                if merged._is_wanted(values["reason"], values["rank"]):
                    merged._put(Example(**values))
        return merged

    def _consider(
        self,
        reason: str,
        pair: Pair,
        detail: str,
        image: DecodedImage | None,
        captions: Sequence[DroppedCaption],
        twin: str = "",
    ) -> None:
        rank = hashlib.sha256(f"{reason}\0{pair.key}".encode("utf-8", "replace")).hexdigest()[:16]
        if not self._is_wanted(reason, rank):
            return
        thumbnail, size = _shrunk(image)
        origin = ":".join(
            str(pair.meta[name]) for name in ("source", "origin") if name in pair.meta
        )
        key, origin, detail, twin = (_cut(text) for text in (pair.key, origin, detail, twin))
        zh = _shown(pair.zh)
        en = _shown(pair.en)
        zh_dropped, en_dropped = (
            _shown(text for language, text, _ in captions if language == shown)
            for shown in LANGUAGES
        )
        self._put(
            Example(
                reason,
                rank,
                key,
                origin,
                detail,
                size,
                thumbnail,
                zh,
                en,
                zh_dropped,
                en_dropped,
                twin,
            )
        )

    def _is_wanted(self, reason: str, rank: str) -> bool:
        by_rank = self._by_reason.get(reason, {})
        return rank not in by_rank and (
            len(by_rank) < _PER_REASON or (bool(by_rank) and rank < max(by_rank))
        )

    def _put(self, example: Example) -> None:
        by_rank = self._by_reason.setdefault(example.reason, {})
        by_rank[example.rank] = example
        if len(by_rank) > _PER_REASON:
            del by_rank[max(by_rank)]


def _shrunk(image: DecodedImage | Drop | None) -> tuple[str, str]:
    """A thumbnail's data URL, and the size of the image as text; both empty if the image cannot be
    decoded.
    """
    if not isinstance(image, DecodedImage):
        return "", ""
    return jpeg_data_url(jpeg_thumbnail(image.image)), f"{image.image.width}×{image.image.height}"


def _shown(texts: Iterable[str]) -> list[str]:
    return [_cut(text) for text in islice(texts, _CAPTIONS)]


def _cut(text: str) -> str:
    """The beginning of the text, without what UTF-8 cannot encode."""
    return (
        (text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…")
        .encode("utf-8", "replace")
        .decode()
    )
