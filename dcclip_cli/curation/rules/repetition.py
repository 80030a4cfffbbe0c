"""Does a caption say the same thing over and over?"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import HAN

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_SIGNS = re.compile(r"([^\w\s])\1{9,}")  # a line of dots or dashes is common, ten are not
_LOOKED_AT = 2_000  # characters: enough to see it, and hostile text costs no more than a few ms
_MANY = 12  # words or character pairs from which on a share of repeats says something


class RepetitionRule(Rule):
    """Drops captions where one letter, syllable or word comes many times in a row, or a few fill the whole caption."""

    kind: Literal["repetition"] = "repetition"
    times: int = Field(5, ge=2, description="Dropped from this many in a row: 哈哈哈哈 stays, 哈哈哈哈哈 goes")
    max_share: float = Field(0.4, gt=0, le=1, description="Share of a long caption's words that may be one word")

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
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
