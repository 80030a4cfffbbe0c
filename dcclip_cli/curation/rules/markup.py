"""Is a caption a piece of a page's source text?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language

_TAGS = (
    "a|abbr|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|embed|figcaption|figure|font|footer|form|h[1-6]|"
    "head|header|hr|html|i|iframe|img|input|ins|label|li|link|meta|nav|noscript|object|ol|option|p|param|picture|pre|s|"
    "script|section|select|small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|th|tr|tt|u|ul|video"
)
_MARKUP = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"<(?:/\s*)?(?:{_TAGS})(?:\s+[^<>]*|\s*/)?>",  # a whole tag; "<3" and "a < b" are none
        r"<(?:img|a|div|span|iframe|script|style|table|font)\s[^<>]*=",  # one that was cut off
        r"<!--|-->|<!\[CDATA\[|<\?(?:php|xml)",
        r"&(?:amp;)*(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,6});",  # what tidying couldn't resolve
        # BBCode, WordPress
        r"\[/?(?:img|url|b|i|u|quote|color|size|caption|gallery|attachment|vc_\w+)(?:[= ][^\]]*)?\](?!\()",
        r"!\[[^\]]*\]\([^)]*\)|\]\(https?:",  # Markdown
        r"\[\[(?:file|image|文件|图像|檔案):",  # wikis
        r"\bfunction\s*\(|\bdocument\.\w|\bvar \w+\s*=|\$\(|=>\s*\{",  # scripts
        r"\{\{[^{}]{0,80}\}\}|<%|\{%",  # templates
        r"(?<![\w-])[\w-]{1,40}\s?\{\s?[\w-]{1,40}\s?:[^{}]*;",  # style sheets
        r"[\[{]\s*\"\w+\"\s*:",  # JSON
        r"\b(?:href|src|alt|style|class|onclick|width)\s*=\s*[\"'&]",
    )
)


class MarkupRule(Rule):
    """Drops captions with HTML, BBCode, Markdown, wiki text, scripts or style sheets in them."""

    kind: Literal["markup"] = "markup"

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-html`, whichever markup it is."""
        if not any(sign in caption for sign in "<>&[{(="):
            return None
        found = next((match for pattern in _MARKUP if (match := pattern.search(caption))), None)
        return Drop("caption-html", f"holds {found[0][:40]!r}") if found else None
