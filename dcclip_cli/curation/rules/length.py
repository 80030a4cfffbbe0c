"""Is a caption long enough to say something, and short enough to be one?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_WORD = re.compile(r"[^\W_]+(?:['’.&/+-][^\W_]+)*")
_LATIN_RUN = re.compile(r"[A-Za-z0-9+/=_-]+")


class LengthRule(Rule):
    """Drops captions that are too short or too long: Chinese is counted in characters, English in words."""

    kind: Literal["length"] = "length"
    zh: tuple[int, int] = Field((1, 128), description="Fewest and most characters, white space apart")
    en: tuple[int, int] = Field((1, 64), description="Fewest and most words")
    longest_word: int = Field(40, ge=1, description="Latin letters and digits in one piece, at most: no encoded data")

    @field_validator("zh", "en")
    @classmethod
    def _in_order(cls, limits: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= limits[0] <= limits[1]:
            raise ValueError("the fewest come first, then the most")
        return limits

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-short` or `caption-long`."""
        length = len("".join(caption.split())) if language == "zh" else len(_WORD.findall(caption))
        fewest, most = self.zh if language == "zh" else self.en
        said = f"{length} {'characters' if language == 'zh' else 'words'}, allowed {fewest} to {most}"
        if length < fewest:
            return Drop("caption-short", said)
        if length > most:
            return Drop("caption-long", said)
        longest = max(map(len, _LATIN_RUN.findall(caption)), default=0) if len(caption) > self.longest_word else 0
        return Drop("caption-long", f"a word of {longest} letters") if longest > self.longest_word else None
