"""Example pairs for each drop reason and of the kept pairs: a bounded, reproducible sample.

The sample is the pairs with the smallest hashes of their keys, so it depends neither on the order nor on the slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.decode_image import decode_image
from dcclip_cli.curation.report.statistics import KEPT, DroppedCaption
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from dcclip_cli.html import jpeg_thumbnail

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

_CHARACTERS, _CAPTIONS = 300, 4  # shown of a text, and captions shown of a language, at most


@dataclass(frozen=True)
class Example:
    """A pair as the report shows it: `reason` is KEPT, or why the pair or its captions in `..._dropped` were dropped.

    `thumbnail` is a JPEG file, empty if the image cannot be shown; width and height are those of the image. For a
    duplicate, `twin` is the key of the pair that is kept instead, with its thumbnail and captions.
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
    """Collects at most `per_reason` examples for each drop reason and of the kept pairs.

    Thumbnails are made only for pairs that enter the sample, about per_reason * (1 + ln(pairs / per_reason)).
    """

    def __init__(self, per_reason: int = 12) -> None:
        self._per_reason = per_reason
        self._found: dict[str, dict[str, Example]] = {}  # reason -> rank -> example

    def add(
        self,
        pair: Pair,
        drop: Drop | None,
        image: Image.Image | None = None,
        captions: Sequence[DroppedCaption] = (),
        twin: str = "",
    ) -> None:
        """Consider a pair, as for `Statistics.add`; without a decoded `image`, `pair.image` is decoded if needed.

        For a duplicate, `twin` is the key of the pair that it repeats (see `fill_twins`).
        """
        reason, detail = (drop.reason, drop.detail) if drop else (KEPT, "")
        gone = captions if drop and not (pair.zh or pair.en) else ()  # they were dropped first, and the pair with them
        if gone:
            detail += f" ({', '.join(sorted({why.reason for _, _, why in gone}))})"
        self._consider(reason, pair, detail, image, gone, twin)
        self.add_captions(pair, captions, image)

    def add_captions(self, pair: Pair, captions: Sequence[DroppedCaption], image: Image.Image | None = None) -> None:
        """Consider single captions that were dropped from a pair."""
        for reason in dict.fromkeys(drop.reason for _, _, drop in captions):
            same = [caption for caption in captions if caption[2].reason == reason]
            self._consider(reason, pair, same[0][2].detail, image, same, "")

    def fill_twins(self, find: Callable[[str], Pair | None]) -> None:
        """Add the kept pair to every duplicate in the sample, so that the report shows both next to each other."""
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
        """The sample of all pairs from which the samples in these files were drawn, one file in memory at a time."""
        import pyarrow.parquet as pq

        merged = cls(per_reason)
        for path in paths:
            for row in pq.read_table(path).to_pylist():
                if merged._wanted(row["reason"], row["rank"]):
                    values: dict[str, Any] = {
                        name: tuple(cell) if isinstance(cell, list) else cell for name, cell in row.items()
                    }
                    merged._put(Example(**values))
        return merged

    def _consider(
        self,
        reason: str,
        pair: Pair,
        detail: str,
        image: Image.Image | None,
        captions: Sequence[DroppedCaption],
        twin: str,
    ) -> None:
        rank = hashlib.sha256(f"{reason}\0{pair.key}".encode("utf-8", "replace")).hexdigest()[:16]
        if not self._wanted(reason, rank):
            return
        thumbnail, width, height = thumbnail_of(pair.image, image)
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
        return rank not in found and (len(found) < self._per_reason or (bool(found) and rank < max(found)))

    def _put(self, example: Example) -> None:
        found = self._found.setdefault(example.reason, {})
        found[example.rank] = example
        if len(found) > self._per_reason:
            del found[max(found)]


def thumbnail_of(content: bytes, image: Image.Image | None = None) -> tuple[bytes, int, int]:
    """A JPEG file of at most 96 pixels a side, and the width and height of the image.

    Returns `b"", 0, 0` if there is no decoded `image` and `content` cannot be decoded either.
    """
    if image is None:
        decoded = decode_image(content) if content else None
        if decoded is None or isinstance(decoded, Drop):
            return b"", 0, 0
        image = decoded.image
    return jpeg_thumbnail(image), image.width, image.height


def _shown(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(_cut(text) for text in islice(texts, _CAPTIONS))


def _cut(text: str) -> str:
    """The beginning of the text, without what UTF-8 cannot encode."""
    return (text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…").encode("utf-8", "replace").decode()


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int32(), "bytes": pa.binary(), "tuple[str, ...]": pa.list_(pa.string())}
    return pa.schema([(each.name, kinds[str(each.type)]) for each in fields(Example)])
