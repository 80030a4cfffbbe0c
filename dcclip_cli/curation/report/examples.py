"""Which pairs are shown for each reason, and for being kept? A bounded sample that is the same however they came.

The sample is the pairs whose keys have the smallest hashes: it depends neither on the order nor on the slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.report.statistics import KEPT, DroppedCaption
from dcclip_cli.curation.report.thumbnail import thumbnail_of
from dcclip_cli.data.pair import Pair

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

_CHARACTERS, _CAPTIONS = 300, 4  # of a text, and captions in a language, that an example shows


@dataclass(frozen=True)
class Example:
    """A pair as the report shows it: `reason` is KEPT, or why the pair or its captions in `..._dropped` went.

    `thumbnail` is a JPEG file, empty where there is no picture to show; width and height are those of the image.
    `twin` is the key of the pair that stays in this one's place, `twin_thumbnail` and `twin_captions` what that shows.
    """

    reason: str
    rank: str  # the key's hash
    key: str
    origin: str
    detail: str
    width: int
    height: int
    thumbnail: bytes
    zh: tuple[str, ...]
    en: tuple[str, ...]
    zh_dropped: tuple[str, ...] = ()
    en_dropped: tuple[str, ...] = ()
    twin: str = ""
    twin_thumbnail: bytes = b""
    twin_captions: tuple[str, ...] = ()


class Examples:
    """Collects at most `per_reason` examples for each reason and for the kept.

    Thumbnails are made only of what is in the sample when it comes, about per_reason * (1 + ln(pairs / per_reason)).
    """

    def __init__(self, per_reason: int = 12) -> None:
        self._per_reason = per_reason
        self._found: dict[str, dict[str, Example]] = {}  # reason -> rank -> example

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        picture: Image.Image | None = None,
        captions: Sequence[DroppedCaption] = (),
        twin: str = "",
    ) -> None:
        """Consider a pair, as for `Statistics.add`; without the decoded `picture`, `pair.image` is decoded if needed.

        For a duplicate, `twin` is the key of the pair that it repeats (see `fill_twins`).
        """
        reason, detail = (drop.reason, drop.detail) if drop else (KEPT, "")
        gone = captions if drop and not (pair.zh or pair.en) else ()  # they went first, and took the pair with them
        if gone:
            detail += f" ({', '.join(sorted({why.reason for _, _, why in gone}))})"
        self._consider(reason, pair, detail, picture, gone, twin)
        self.add_captions(pair, captions, picture)

    def add_captions(self, pair: Pair, captions: Sequence[DroppedCaption], picture: Image.Image | None = None) -> None:
        """Consider single captions that were dropped from a pair."""
        for reason in dict.fromkeys(drop.reason for _, _, drop in captions):
            same = [caption for caption in captions if caption[2].reason == reason]
            self._consider(reason, pair, same[0][2].detail, picture, same, "")

    def take(self, examples: Iterable[Example]) -> None:
        """Consider the examples of another collection."""
        for example in examples:
            if self._wanted(example.reason, example.rank):
                self._put(example)

    def fill_twins(self, find: Callable[[str], Pair | None]) -> None:
        """Look up the twin of every duplicate in the sample, so that the report shows both side by side."""
        for found in self._found.values():
            for rank, example in found.items():
                pair = find(example.twin) if example.twin and not example.twin_thumbnail else None
                if pair is not None:
                    thumbnail, _, _ = thumbnail_of(pair.image, None)
                    captions = _shown((*pair.zh[:2], *pair.en[:2]))
                    found[rank] = replace(example, twin_thumbnail=thumbnail, twin_captions=captions)

    def all(self) -> list[Example]:
        """The sample, by reason and rank."""
        return [self._found[reason][rank] for reason in sorted(self._found) for rank in sorted(self._found[reason])]

    def write(self, path: Path) -> None:
        """Write the sample as a Parquet file, the same bytes for the same sample."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [asdict(example) for example in self.all()]
        pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path, compression="zstd")

    @classmethod
    def merge(cls, paths: Iterable[Path], per_reason: int = 12) -> Examples:
        """The sample of everything that the samples in these files were drawn from, one file in memory at a time."""
        import pyarrow.parquet as pq

        merged = cls(per_reason)
        for path in paths:
            merged.take(_example(row) for row in pq.read_table(path).to_pylist())
        return merged

    def _consider(
        self,
        reason: str,
        pair: Pair,
        detail: str,
        picture: Image.Image | None,
        captions: Sequence[DroppedCaption],
        twin: str,
    ) -> None:
        rank = hashlib.sha256(f"{reason}\0{pair.key}".encode("utf-8", "replace")).hexdigest()[:16]
        if not self._wanted(reason, rank):
            return
        thumbnail, width, height = thumbnail_of(pair.image, picture)
        origin = ":".join(str(pair.meta[name]) for name in ("source", "origin") if name in pair.meta)
        self._put(
            Example(
                reason=reason,
                rank=rank,
                key=_cut(pair.key),
                origin=_cut(origin),
                detail=_cut(detail),
                width=width,
                height=height,
                thumbnail=thumbnail,
                zh=_shown(pair.zh),
                en=_shown(pair.en),
                zh_dropped=_shown(text for language, text, _ in captions if language == "zh"),
                en_dropped=_shown(text for language, text, _ in captions if language == "en"),
                twin=_cut(twin),
            )
        )

    def _wanted(self, reason: str, rank: str) -> bool:
        found = self._found.get(reason, {})
        if len(found) < self._per_reason:
            return rank not in found
        return bool(found) and rank not in found and rank < max(found)

    def _put(self, example: Example) -> None:
        found = self._found.setdefault(example.reason, {})
        found[example.rank] = example
        if len(found) > self._per_reason:
            del found[max(found)]


def _shown(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(_cut(text) for text in islice(texts, _CAPTIONS))


def _cut(text: str) -> str:
    """The text's beginning as something that UTF-8 can hold."""
    return (text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…").encode("utf-8", "replace").decode()


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    kinds = {"reason": pa.string(), "rank": pa.string(), "key": pa.string(), "origin": pa.string()}
    kinds |= {"detail": pa.string(), "width": pa.int32(), "height": pa.int32(), "thumbnail": pa.binary()}
    twin = {"twin": pa.string(), "twin_thumbnail": pa.binary(), "twin_captions": texts}
    return pa.schema(kinds | {"zh": texts, "en": texts, "zh_dropped": texts, "en_dropped": texts} | twin)


def _example(row: dict[str, Any]) -> Example:
    values: dict[str, Any] = {name: tuple(cell) if isinstance(cell, list) else cell for name, cell in row.items()}
    return Example(**values)
