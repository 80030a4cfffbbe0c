"""Filtering of single pairs: decode the image, normalize the captions, apply the recipe's filters."""

from __future__ import annotations

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


def filter_pair(candidate: Candidate, options: CollectOptions) -> FilterResult:
    """The result of all filters on one candidate, without those that compare pairs. Blank captions count as absent."""
    zh, en = ([text for text in candidate.pair.captions(language) if text.strip()] for language in LANGUAGES)
    pair = replace(candidate.pair, zh=tuple(zh), en=tuple(en))
    if candidate.fault is not None:
        return FilterResult(pair, candidate.fault)
    decoded = decode_image(pair.image)
    if isinstance(decoded, Drop):
        return FilterResult(pair, decoded)
    for each in options.filters:
        if drop := each.check_pair(pair, decoded):
            return FilterResult(pair, drop, decoded=decoded)
    for_captions = options.model_copy(update={"filters": ()}) if candidate.names_class else options
    pair, dropped = _filter_captions(pair, for_captions)
    drop = too_large(pair) if pair.zh or pair.en else Drop("no-caption", "none that is fit")
    return FilterResult(pair, drop, dropped, decoded, candidate.place, candidate.names_class)


def _filter_captions(pair: Pair, options: CollectOptions) -> tuple[Pair, tuple[tuple[Language, str, Drop], ...]]:
    """The pair with the captions that are kept, normalized, and the dropped ones."""
    kept: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
    dropped: list[tuple[Language, str, Drop]] = []
    for language in LANGUAGES:
        for caption in pair.captions(language):
            result = _filter_caption(caption, language, kept[language], options)
            if isinstance(result, Drop):
                dropped.append((language, caption, result))
            else:
                kept[language].append(result)
    return replace(pair, zh=tuple(kept["zh"]), en=tuple(kept["en"])), tuple(dropped)


def _filter_caption(caption: str, language: Language, before: list[str], options: CollectOptions) -> str | Drop:
    if drop := check_characters(caption):
        return drop
    text = normalize(caption, language, options.normalize)
    if not text:
        return Drop("caption-short", "nothing is left of it once tidied")
    for each in options.filters:
        if drop := each.check_caption(text, language):
            return drop
    return Drop("caption-repeated", "the pair has it already") if text in before else text


def too_large(pair: Pair) -> Drop | None:
    """`record-bytes` if the pair's captions and metadata are too long for a shard."""
    characters = sum(map(len, pair.zh + pair.en)) + len(repr(pair.meta))
    if 6 * characters + 64 <= MAX_TEXT_BYTES or len(record(pair)) <= MAX_TEXT_BYTES:  # \u0000 takes six bytes
        return None
    return Drop("record-bytes", f"captions and metadata take more than {MAX_TEXT_BYTES:,} bytes")
