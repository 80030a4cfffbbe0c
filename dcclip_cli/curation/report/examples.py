"""Example pairs for each drop reason and of the kept pairs: a bounded, reproducible sample.

The sample is the pairs with the smallest hashes of their keys, so it depends neither on the order nor on the slices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from dcclip_cli.curation.filters.image import DecodedImage, decode_image
from dcclip_cli.curation.report.statistics import KEPT, DroppedCaption
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.data.reading import Drop
from dcclip_cli.html import jpeg_data_url, jpeg_thumbnail

_CHARACTERS, _CAPTIONS = 300, 4  # shown of a text, and captions shown of a language, at most


@dataclass(frozen=True)
class Example:
    """A pair as the report shows it: `reason` is KEPT, or why the pair or its captions in `..._dropped` were dropped.

    `thumbnail` is a data URL, empty if the image cannot be shown or until `Examples.fill` adds it; `size` is in pixels.
    For a duplicate, `twin` is the key of the pair that is kept instead, with its thumbnail.
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
        image: DecodedImage | None = None,
        captions: Sequence[DroppedCaption] = (),
        twin: str = "",
    ) -> None:
        """Consider a pair, as for `Statistics.add`; without a decoded `image`, `fill` adds it.

        For a duplicate, `twin` is the key of the pair that it repeats.
        """
        reason, detail = (drop.reason, drop.detail) if drop else (KEPT, "")
        gone = captions if drop and not (pair.zh or pair.en) else ()  # they were dropped first, and the pair with them
        if gone:
            detail += f" ({', '.join(sorted({why.reason for _, _, why in gone}))})"
        self._consider(reason, pair, detail, image, gone, twin)
        self.add_captions(pair, captions, image)

    def add_captions(self, pair: Pair, captions: Sequence[DroppedCaption], image: DecodedImage | None = None) -> None:
        """Consider single captions that were dropped from a pair."""
        for reason in dict.fromkeys(drop.reason for _, _, drop in captions):
            same = [caption for caption in captions if caption[2].reason == reason]
            self._consider(reason, pair, same[0][2].detail, image, same)

    def fill(self, find: Callable[[str], Pair | None]) -> None:
        """Add the images that are missing, and to every duplicate the kept pair, which is shown next to it."""
        for found in self._found.values():
            for rank, example in found.items():
                if not example.thumbnail and (pair := find(example.key)):
                    thumbnail, size = _shrunk(decode_image(pair.image))
                    example = found[rank] = replace(example, thumbnail=thumbnail, size=size)
                if example.twin and (pair := find(example.twin)):
                    found[rank] = replace(example, twin_thumbnail=_shrunk(decode_image(pair.image))[0])

    def all(self) -> list[Example]:
        """The sample, by reason and rank."""
        return [self._found[reason][rank] for reason in sorted(self._found) for rank in sorted(self._found[reason])]

    def write(self, path: Path) -> None:
        """Write the sample as JSON, the same bytes for the same sample."""
        path.write_text(json.dumps([asdict(example) for example in self.all()]))

    @classmethod
    def merge(cls, paths: Iterable[Path], per_reason: int = 12) -> Examples:
        """The sample of all pairs from which the samples in these files were drawn, one file in memory at a time."""
        merged = cls(per_reason)
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
        origin = ":".join(str(pair.meta[name]) for name in ("source", "origin") if name in pair.meta)
        key, origin, detail, twin = (_cut(text) for text in (pair.key, origin, detail, twin))
        zh, en = _shown(pair.zh), _shown(pair.en)
        zh_dropped, en_dropped = (
            _shown(text for each, text, _ in captions if each == language) for language in LANGUAGES
        )
        self._put(Example(reason, rank, key, origin, detail, size, thumbnail, zh, en, zh_dropped, en_dropped, twin))

    def _is_wanted(self, reason: str, rank: str) -> bool:
        found = self._found.get(reason, {})
        return rank not in found and (len(found) < self._per_reason or (bool(found) and rank < max(found)))

    def _put(self, example: Example) -> None:
        found = self._found.setdefault(example.reason, {})
        found[example.rank] = example
        if len(found) > self._per_reason:
            del found[max(found)]


def _shrunk(image: DecodedImage | Drop | None) -> tuple[str, str]:
    """A thumbnail's data URL, and the size of the image as text; both empty if the image cannot be decoded."""
    if not isinstance(image, DecodedImage):
        return "", ""
    return jpeg_data_url(jpeg_thumbnail(image.image)), f"{image.image.width}×{image.image.height}"


def _shown(texts: Iterable[str]) -> list[str]:
    return [_cut(text) for text in islice(texts, _CAPTIONS)]


def _cut(text: str) -> str:
    """The beginning of the text, without what UTF-8 cannot encode."""
    return (text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…").encode("utf-8", "replace").decode()
