"""What becomes of one candidate, seen by itself?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dcclip_cli.curation.candidate import Candidate, Drop, Picture
from dcclip_cli.curation.picture import open_picture
from dcclip_cli.curation.shards import record
from dcclip_cli.curation.tidy import tidy, unfit
from dcclip_cli.data.files.reading import MAX_RECORD_BYTES
from dcclip_cli.data.pair import LANGUAGES, Language, Pair

if TYPE_CHECKING:
    from dcclip_cli.curation.options import CollectOptions


@dataclass(frozen=True)
class Verdict:
    """A candidate judged: the pair with the captions that stay, why it is dropped if so, and the captions dropped.

    `picture` is there as soon as the image could be decoded.
    """

    pair: Pair
    drop: Drop | None
    captions: tuple[tuple[Language, str, Drop], ...] = ()
    picture: Picture | None = None


def judge(candidate: Candidate, options: CollectOptions) -> Verdict:
    """What becomes of a candidate: global rules apart. Blank captions count as absent."""
    zh, en = ([text for text in candidate.pair.captions(language) if text.strip()] for language in LANGUAGES)
    pair = replace(candidate.pair, zh=tuple(zh), en=tuple(en))
    if candidate.fault is not None:
        return Verdict(pair, candidate.fault)
    picture = open_picture(pair.image)
    if isinstance(picture, Drop):
        return Verdict(pair, picture)
    for rule in options.filters:
        if drop := rule.reason(pair, picture):
            return Verdict(pair, drop, picture=picture)
    pair, dropped = _captions(pair, options)
    return Verdict(pair, _lack(pair), dropped, picture)


def _captions(pair: Pair, options: CollectOptions) -> tuple[Pair, tuple[tuple[Language, str, Drop], ...]]:
    """The pair with its fit captions, tidied, and the others."""
    kept: dict[Language, list[str]] = {language: [] for language in LANGUAGES}
    dropped: list[tuple[Language, str, Drop]] = []
    for language in LANGUAGES:
        for caption in pair.captions(language):
            judged = _fit(caption, language, kept[language], options)
            if isinstance(judged, Drop):
                dropped.append((language, caption, judged))
            else:
                kept[language].append(judged)
    return replace(pair, zh=tuple(kept["zh"]), en=tuple(kept["en"])), tuple(dropped)


def _fit(caption: str, language: Language, before: list[str], options: CollectOptions) -> str | Drop:
    if drop := unfit(caption):
        return drop
    text = tidy(caption, language, options.tidy)
    if not text:
        return Drop("caption-short", "nothing is left of it once tidied")
    for rule in options.filters:
        if drop := rule.caption_reason(text, language):
            return drop
    return Drop("caption-repeated", "the pair has it already") if text in before else text


def _lack(pair: Pair) -> Drop | None:
    """Why the pair can't be used at all. Which languages a recipe needs is asked once pairs are merged."""
    if not pair.zh and not pair.en:
        return Drop("no-caption", "none that is fit")
    return too_large(pair)


def too_large(pair: Pair) -> Drop | None:
    """Why no shard could hold the pair's captions and metadata: `record-bytes`."""
    if len(record(pair)) <= MAX_RECORD_BYTES:
        return None
    return Drop("record-bytes", f"captions and metadata take more than {MAX_RECORD_BYTES:,} bytes")
