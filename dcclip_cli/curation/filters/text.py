"""Filters on the text of a caption: garbled encodings, captions without words, repetition, length."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from dcclip_cli.curation.filters.base import Filter
from dcclip_cli.curation.filters.language import HAN, LETTER
from dcclip_cli.curation.normalize_text import as_gbk
from dcclip_cli.data.reading import Drop

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_GARBLED = (
    re.compile("[\ufffd\u0080-\u009f]"),
    re.compile(r"[\ue000-\uf8ff\U000f0000-\U0010ffff]"),  # private use: icon fonts
    re.compile("锟斤|斤拷|烫烫烫|屯屯屯"),  # U+FFFD twice in UTF-8, read as GBK; a debugger's empty memory
    re.compile(r"[?？]{4,}|(?:[?？]{2,}[\s,，.。]+){2,}"),  # ? for each character that could not be encoded
    re.compile(r"[\u00a1-\u00ff]{5,}"),  # GBK, read as Latin-1
    re.compile(r"(?:[Ãâåæçèéä][\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]{1,2}){2,}"),  # UTF-8, read as Windows-1252
    re.compile(r"\\u[0-9a-fA-F]{4}|(?:%[0-9A-F]{2}){3,}|(?:\\x[0-9a-f]{2}){2,}|=\?utf-8\?"),  # never decoded
)


class GarbledFilter(Filter):
    """Drops captions that a wrong encoding made unreadable and that normalization could not repair."""

    kind: Literal["garbled"] = "garbled"

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-garbled`."""
        found = next((match for pattern in _GARBLED if (match := pattern.search(caption))), None)
        if found is None and _is_utf8_read_as_gbk(caption):
            return Drop("caption-garbled", "UTF-8 that was read as GBK")
        return Drop("caption-garbled", f"holds {found[0][:20]!r}") if found else None


def _is_utf8_read_as_gbk(caption: str) -> bool:
    """Whether the caption, encoded as GBK, is mostly valid UTF-8: 绾㈣壊璺戣溅 was 红色跑车."""
    if not HAN.search(caption):
        return False
    again = as_gbk(caption).decode("utf-8", "replace")  # almost nothing of real Chinese decodes as UTF-8
    return len(HAN.findall(again)) >= max(2, 2 * again.count("\ufffd"))


_EMOJI = re.compile(
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u231a-\u23ff\u24c2\u25a0-\u27bf\u2934\u2935"
    r"\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_NUMBER = re.compile(r"[0-9]{1,4}(?:[:.,/、，：] ?[0-9]{1,2}){0,3} ?[%‰°]?")  # 24, 10:30, 1/2, 100 %
_KEYCAP = re.compile(r"[0-9#*]\ufe0f?\u20e3")


class WordlessFilter(Filter):
    """Drops captions without a letter: emoji only, or digits and signs only."""

    kind: Literal["wordless"] = "wordless"
    numbers: bool = Field(
        True, description="Keep captions that are a short number (24, 10:30); long numbers are always dropped"
    )

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-emoji` or `caption-wordless`."""
        if LETTER.search(caption) or "〇" in caption:
            return None
        if _EMOJI.search(caption) or _KEYCAP.search(caption):
            return Drop("caption-emoji", "emoji and no word")
        if self.numbers and _NUMBER.fullmatch(caption):
            return None
        return Drop("caption-wordless", "digits and signs, no word")


_SIGNS = re.compile(r"([^\w\s])\1{9,}")  # a line of dots or dashes is common, ten are not
_LOOKED_AT = 2_000  # characters: enough to find repetition, and hostile text costs at most a few ms
_MANY = 12  # with fewer words or character pairs, the share of the most frequent one means little


class RepetitionFilter(Filter):
    """Drops captions that repeat a letter, syllable or word many times in a row, or consist mostly of one word."""

    kind: Literal["repetition"] = "repetition"
    times: int = Field(
        5, ge=2, description="Repetitions in a row that are dropped; with 5, 哈哈哈哈 is kept and 哈哈哈哈哈 is dropped"
    )
    max_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Maximum fraction of a long caption's words that the most frequent word may make up",
    )

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-repetition`."""
        caption = caption[:_LOOKED_AT]
        run = re.search(rf"([^\W\d_])\1{{{self.times - 1},}}", caption, re.IGNORECASE) or _SIGNS.search(caption)
        run = run or re.search(rf"([^\W\d_](?:[^\n]{{0,15}}?\S)?)(?:\W{{0,3}}\1){{{self.times - 1},}}", caption)
        if run:
            return Drop("caption-repetition", f"{run[1]!r} again and again")
        han = HAN.findall(caption)
        pairs = ["".join(two) for two in pairwise(han)]
        parts = pairs if len(han) > _MANY else caption.lower().split()
        if len(parts) < _MANY:
            return None
        part, most = Counter(parts).most_common(1)[0]
        return Drop("caption-repetition", f"{part!r} {most} times") if most > self.max_share * len(parts) else None


_WORD = re.compile(r"[^\W_]+(?:['’.&/+-][^\W_]+)*")
_LATIN_RUN = re.compile(r"[A-Za-z0-9+/=_-]+")


class LengthFilter(Filter):
    """Drops captions that are too short or too long; Chinese is counted in characters, English in words."""

    kind: Literal["length"] = "length"
    zh: tuple[int, int] = Field(
        (1, 128), description="Minimum and maximum number of characters in a Chinese caption, without white space"
    )
    en: tuple[int, int] = Field((1, 64), description="Minimum and maximum number of words in an English caption")
    longest_word: int = Field(
        40,
        ge=1,
        description="Maximum length of a run of Latin letters and digits; longer runs are encoded data, not words",
    )

    @field_validator("zh", "en")
    @classmethod
    def _in_order(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= limits[0] <= limits[1]:
            raise ValueError("give the minimum first, then the maximum")
        return limits

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """`caption-short` or `caption-long`."""
        length = len("".join(caption.split())) if language == "zh" else len(_WORD.findall(caption))
        fewest, most = self.zh if language == "zh" else self.en
        counted = f"{length} {'characters' if language == 'zh' else 'words'}, allowed {fewest} to {most}"
        if length < fewest:
            return Drop("caption-short", counted)
        if length > most:
            return Drop("caption-long", counted)
        longest = max(map(len, _LATIN_RUN.findall(caption)), default=0) if len(caption) > self.longest_word else 0
        return Drop("caption-long", f"a word of {longest} letters") if longest > self.longest_word else None
