"""Does a caption have a word in it?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import LETTER

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_EMOJI = re.compile(
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u231a-\u23ff\u24c2\u25a0-\u27bf\u2934\u2935"
    r"\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_NUMBER = re.compile(r"[0-9]{1,4}(?:[:.,/、，：] ?[0-9]{1,2}){0,3} ?[%‰°]?")  # 24, 10:30, 1/2, 100 %
_KEYCAP = re.compile(r"[0-9#*]\ufe0f?\u20e3")


class WordlessRule(Rule):
    """Drops captions without a letter: emoji only, or digits and signs only."""

    kind: Literal["wordless"] = "wordless"
    numbers: bool = Field(True, description="Whether a short number (24, 10:30) is a caption; a long one never is")

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-emoji` or `caption-wordless`."""
        if LETTER.search(caption) or "〇" in caption:
            return None
        if _EMOJI.search(caption) or _KEYCAP.search(caption):
            return Drop("caption-emoji", "emoji and no word")
        if self.numbers and _NUMBER.fullmatch(caption):
            return None
        return Drop("caption-wordless", "digits and signs, no word")
