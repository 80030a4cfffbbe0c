"""Filtering of single pairs: decode the image, normalize the captions, apply the recipe's filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dcclip_cli.curation.decode_image import DecodedImage, decode_image
from dcclip_cli.curation.normalize_text import check_characters, normalize
from dcclip_cli.curation.shards import record
from dcclip_cli.curation.sources.base import Candidate, Place
from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.reading import MAX_TEXT_BYTES, Drop

if TYPE_CHECKING:
    from dcclip_cli.curation.options import CollectOptions

_AT_A_TIME, _MAX_PIXELS = 32, 16_000_000  # pairs, and pixels of 4 bytes of their images, in memory


@dataclass(frozen=True)
class FilterResult:
    """The pair with its remaining captions, why the pair is dropped (None: kept), and the dropped captions.

    `decoded` is None if the image could not be decoded; `place` and `names_class` are the candidate's.
    """

    pair: Pair
    drop: Drop | None
    captions: tuple[tuple[Language, str, Drop], ...] = ()
    decoded: DecodedImage | None = None
    place: Place | None = None
    names_class: bool = False


def filter_pairs(candidates: Iterable[Candidate], options: CollectOptions) -> Iterator[FilterResult]:
    """The result of all filters on each candidate, without those that compare pairs. Blank captions count as absent."""
    batch, pixels = list[FilterResult](), 0  # many at once take a fifth less time
    for candidate in candidates:
        batch.append(result := _filter_image(candidate, options))
        pixels += result.decoded.image.width * result.decoded.image.height if result.decoded else 0
        if len(batch) == _AT_A_TIME or pixels > _MAX_PIXELS:
            yield from _filter_captions(batch, options)
            batch, pixels = [], 0
    yield from _filter_captions(batch, options)


def _filter_image(candidate: Candidate, options: CollectOptions) -> FilterResult:
    pair = candidate.pair
    if not all(map(str.strip, pair.zh + pair.en)):
        zh, en = (tuple(text for text in pair.captions(language) if text.strip()) for language in LANGUAGES)
        pair = replace(pair, zh=zh, en=en)
    if candidate.fault is not None:
        return FilterResult(pair, candidate.fault)
    decoded = decode_image(pair.image)
    if isinstance(decoded, Drop):
        return FilterResult(pair, decoded)
    drop = next((drop for each in options.filters if (drop := each.check_pair(pair, decoded))), None)
    return FilterResult(pair, drop, (), decoded, candidate.place, candidate.names_class)


def _filter_captions(results: Sequence[FilterResult], options: CollectOptions) -> Iterator[FilterResult]:
    """The results with the captions that are kept, normalized, and the dropped ones."""
    live = [(result, language) for result in results if result.drop is None for language in LANGUAGES]
    captions = [(text, language, each.names_class) for each, language in live for text in each.pair.captions(language)]
    checked = [_normalized(text, language, options) for text, language, _ in captions]
    for each in options.filters:
        left = [(place, one) for place, one in enumerate(checked) if isinstance(one, str) and not captions[place][2]]
        for number in each.suspects([one for _, one in left]):
            place, one = left[number]
            checked[place] = each.check_caption(one, captions[place][1]) or one
    every = iter(checked)
    for result in results:
        if result.drop is not None:
            yield result
            continue
        kept: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
        dropped: list[tuple[Language, str, Drop]] = []
        for language in LANGUAGES:
            for caption, text in zip(result.pair.captions(language), every, strict=False):
                if isinstance(text, str) and text in kept[language]:
                    text = Drop("caption-repeated", "the pair has it already")
                if isinstance(text, Drop):
                    dropped.append((language, caption, text))
                else:
                    kept[language].append(text)
        pair = replace(result.pair, zh=tuple(kept["zh"]), en=tuple(kept["en"]))
        drop = too_large(pair) if pair.zh or pair.en else Drop("no-caption", "none that is fit")
        yield replace(result, pair=pair, drop=drop, captions=tuple(dropped))


def _normalized(caption: str, language: Language, options: CollectOptions) -> str | Drop:
    if drop := check_characters(caption):
        return drop
    return normalize(caption, language, options.normalize) or Drop("caption-short", "nothing is left of it once tidied")


def too_large(pair: Pair) -> Drop | None:
    """`record-bytes` if the pair's captions and metadata are too long for a shard."""
    characters = sum(map(len, pair.zh + pair.en)) + len(repr(pair.meta))
    if 6 * characters + 64 <= MAX_TEXT_BYTES or len(record(pair)) <= MAX_TEXT_BYTES:  # \u0000 takes six bytes
        return None
    return Drop("record-bytes", f"captions and metadata take more than {MAX_TEXT_BYTES:,} bytes")
