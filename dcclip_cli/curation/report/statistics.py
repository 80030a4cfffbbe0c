"""Counts of kept and dropped pairs and captions by reason, and histograms of their sizes, lengths and scores.

They are collected slice by slice and added up; the sum depends neither on the slices nor on their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import Drop
from dcclip_cli.errors import Message

KEPT = "kept"  # in place of a reason
MOVED = ("image-merged",)  # captions of such a pair are counted with the pair that they were moved to

DroppedCaption = tuple[Language, str, Drop]


@dataclass(frozen=True)
class Scale:
    """Bins of a histogram, the same for all slices: bin i has the values from edges[i] to below edges[i + 1].

    The first and the last bin also count all values beyond them. `whole` numbers have one bin each. `reasons` are the
    drop reasons that depend on this quantity; charts show them separately.
    """

    title: str
    unit: str
    edges: tuple[float, ...]
    reasons: tuple[str, ...]
    whole: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The bins' names in JSON: the values at which they begin, to three decimals."""
        return [f"{edge:.3f}".rstrip("0").rstrip(".") for edge in self.edges[:-1]]

    def bins(self, values: Sequence[float]) -> np.ndarray:
        """The numbers of the bins that contain the values."""
        numbers = np.searchsorted(self.edges, np.asarray(values, float) + 1e-9, side="right") - 1
        return np.asarray(numbers.clip(0, len(self.edges) - 2))


def _quarter_octaves(start: float, bins: int) -> tuple[float, ...]:
    return tuple(start * 2 ** (number / 4) for number in range(bins + 1))


_WHOLE = tuple(float(number) for number in range(258))
SCALES = {
    "short_side": Scale(Message("Shorter side"), Message("pixels"), _quarter_octaves(4, 48), ("image-small",)),
    "long_side": Scale(Message("Longer side"), Message("pixels"), _quarter_octaves(4, 48), ("image-large",)),
    "aspect": Scale(
        Message("Longer side / shorter side"), "", tuple(1 + 0.1 * n for n in range(151)), ("image-aspect",)
    ),
    "bytes": Scale(Message("File size"), Message("bytes"), _quarter_octaves(64, 80), ("image-bytes",)),
    "zh": Scale(
        Message("Chinese captions"), Message("characters"), _WHOLE, ("caption-short", "caption-long"), whole=True
    ),
    "en": Scale(Message("English captions"), Message("words"), _WHOLE, ("caption-short", "caption-long"), whole=True),
}


@cache
def scale_of(name: str) -> Scale:
    """The scale of a histogram; a score's is called `score:SCORER` or `score:SCORER:LANGUAGE`.

    Its range is wide, since the outputs of a regression are not limited to 1.
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
    """Counts and histograms of pairs and captions. Each pair is added once, when it is known whether it is kept.

    The read step adds the pairs that it drops (`add`) and the captions that it drops from other pairs
    (`add_captions`); the write step adds all other pairs. A histogram counts by KEPT or drop reason, and by bin, named
    by the value at which it begins.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()  # by the path in `as_dict`
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)  # of a histogram and fate, not counted yet

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        size: tuple[int, int] | None = None,
        captions: Sequence[DroppedCaption] = (),
    ) -> None:
        """Count a pair: `drop` is None if it is kept, `size` is its image's width and height if known.

        `pair` has the captions that are kept or dropped with it, `captions` are those dropped from it before. The
        source is `pair.meta["source"]`.
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
        """Count single captions that were dropped."""
        for language, caption, drop in captions:
            self._caption(language, caption, drop.reason)

    def add_score(self, scorer: str, value: float, drop: Drop | None, language: Language | None = None) -> None:
        """Count a score of a pair, or of a caption in `language`, and whether it was kept or dropped."""
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
        everything: dict[str, Any] = {"pairs": _nothing(), "captions": captions, "sources": {}, "histograms": {}}
        for path in sorted(self._counts, key=_order):
            inner = everything
            for name in path[:-1]:
                inner = inner.setdefault(name, _nothing() if inner is everything["sources"] else {})
            inner[path[-1]] = self._counts[path]
        return everything

    @classmethod
    def merge(cls, parts: Iterable[Mapping[str, Any]]) -> Statistics:
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


def _order(path: tuple[str, ...]) -> tuple[Any, ...]:
    """Bins are ordered by value, everything else by name."""
    return (*path[:-1], float(path[-1])) if path[0] == "histograms" else path


def _paths(counts: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """The numbers in nested counts, by their paths."""
    for name, value in counts.items():
        if isinstance(value, int):
            yield (*above, name), value
        else:
            yield from _paths(value, *above, name)
