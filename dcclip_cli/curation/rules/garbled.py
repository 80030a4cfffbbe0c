"""Was a caption's text lost on its way, by a wrong encoding?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import HAN
from dcclip_cli.curation.tidy import as_gbk

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_GARBLED = (
    re.compile("[\ufffd\u0080-\u009f]"),
    re.compile(r"[\ue000-\uf8ff\U000f0000-\U0010ffff]"),  # private use: icon fonts
    re.compile("锟斤|斤拷|烫烫烫|屯屯屯"),  # U+FFFD twice in UTF-8, read as GBK; a debugger's empty memory
    re.compile(r"[?？]{4,}|(?:[?？]{2,}[\s,，.。]+){2,}"),  # ? for each character that couldn't be written
    re.compile(r"[\u00a1-\u00ff]{5,}"),  # GBK, read as Latin-1
    re.compile(r"(?:[Ãâåæçèéä][\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]{1,2}){2,}"),  # UTF-8, read as Windows-1252
    re.compile(r"\\u[0-9a-fA-F]{4}|(?:%[0-9A-F]{2}){3,}|(?:\\x[0-9a-f]{2}){2,}|=\?utf-8\?"),  # never decoded
)


class GarbledRule(Rule):
    """Drops captions that a wrong encoding made unreadable, and that tidying couldn't mend."""

    kind: Literal["garbled"] = "garbled"

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-garbled`."""
        found = next((match for pattern in _GARBLED if (match := pattern.search(caption))), None)
        if found is None and _is_utf8_read_as_gbk(caption):
            return Drop("caption-garbled", "UTF-8 that was read as GBK")
        return Drop("caption-garbled", f"holds {found[0][:20]!r}") if found else None


def _is_utf8_read_as_gbk(caption: str) -> bool:
    """Whether most of it is UTF-8 again when its bytes in GBK are looked at: 绾㈣壊璺戣溅 was 红色跑车."""
    if not HAN.search(caption):
        return False
    again = as_gbk(caption).decode("utf-8", "replace")  # of true Chinese next to nothing can be decoded
    return len(HAN.findall(again)) >= max(2, 2 * again.count("\ufffd"))
