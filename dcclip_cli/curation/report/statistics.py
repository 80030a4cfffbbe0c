"""How many pairs and captions were kept and dropped, for which reasons, and how are their sizes and lengths spread?

Gathered slice by slice and added up: the sum depends neither on the slices nor on their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.report.scales import scale_of
from dcclip_cli.data.pair import LANGUAGES, Language, Pair

KEPT = "kept"  # where a reason would stand
MOVED = ("image-merged",)  # the captions of such a pair are counted with the pair that they went to

DroppedCaption = tuple[Language, str, Drop]


@dataclass
class Count:
    """How many were read and kept, and how many dropped for which reason: read = kept + all dropped."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str | None, number: int = 1) -> None:
        """Count `number` more, dropped for `reason` or kept."""
        self.read += number
        if reason is None:
            self.kept += number
        elif number:
            self.dropped[reason] += number

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON, as the manifest has it."""
        return {"read": self.read, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add another count's `as_dict`."""
        self.read += other["read"]
        self.kept += other["kept"]
        self.dropped.update(other["dropped"])


class Statistics:
    """Counts and histograms of verdicts. Each pair is to be added once, when its fate is known.

    So the read pass adds the pairs that it drops (`add`) and the captions that it takes from pairs which pass
    (`add_captions`); the pass that writes shards adds the others, kept or dropped by a global rule. A histogram counts
    by what became of the thing, KEPT or a reason, and by bin (see `scales`); in JSON a bin is called by the value at
    which it begins.
    """

    def __init__(self) -> None:
        self.pairs = Count()
        self.captions: dict[Language, Count] = {language: Count() for language in LANGUAGES}
        self.sources: dict[str, Count] = {}
        self.histograms: dict[str, dict[str, Counter[int]]] = {}

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        size: tuple[int, int] | None = None,
        captions: Sequence[DroppedCaption] = (),
    ) -> None:
        """Count a pair: `drop` is None if it is kept, `size` its image's width and height where they are known.

        `pair` has the captions that share its fate, `captions` are those that were taken from it before. The source is
        what `pair.meta["source"]` says.
        """
        reason = drop.reason if drop else None
        self.pairs.add(reason)
        self.sources.setdefault(str(pair.meta.get("source", "")), Count()).add(reason)
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
        """Count a score, of a pair or of a caption in `language`, and what became of the thing scored."""
        name = f"score:{scorer}:{language}" if language else f"score:{scorer}"
        self._measure(name, value, drop.reason if drop else None)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON; equal statistics give equal text."""
        return {
            "pairs": self.pairs.as_dict(),
            "captions": {language: count.as_dict() for language, count in self.captions.items()},
            "sources": {name: count.as_dict() for name, count in sorted(self.sources.items())},
            "histograms": {
                name: {fate: _named(name, bins) for fate, bins in sorted(fates.items())}
                for name, fates in sorted(self.histograms.items())
            },
        }

    @classmethod
    def merge(cls, parts: Iterable[Mapping[str, Any]]) -> Statistics:
        """The sum of several `as_dict`s."""
        total = cls()
        for part in parts:
            total.pairs.merge(part["pairs"])
            for language in LANGUAGES:
                total.captions[language].merge(part["captions"][language])
            for name, count in part["sources"].items():
                total.sources.setdefault(name, Count()).merge(count)
            for name, fates in part["histograms"].items():
                scale = scale_of(name)
                for fate, bins in fates.items():
                    total._bins(name, fate).update({scale.number(at): number for at, number in bins.items()})
        return total

    def _caption(self, language: Language, caption: str, reason: str | None) -> None:
        self.captions[language].add(reason)
        words = caption.split()
        self._measure(language, len("".join(words)) if language == "zh" else len(words), reason)

    def _measure(self, name: str, value: float, reason: str | None) -> None:
        self._bins(name, reason or KEPT)[scale_of(name).bin(value)] += 1

    def _bins(self, name: str, fate: str) -> Counter[int]:
        return self.histograms.setdefault(name, {}).setdefault(fate, Counter())


def _named(histogram: str, bins: Mapping[int, int]) -> dict[str, int]:
    scale = scale_of(histogram)
    return {scale.name(at): bins[at] for at in sorted(bins)}
