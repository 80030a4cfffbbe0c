"""Characters in text: the ranges of the Han script, the language that a script implies, halves of characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from dcclip_cli.errors import DcclipError

# Insides of a character class. HAN_BMP: CJK Unified Ideographs, Extension A and compatibility ideographs; it is part
# of trained tokenizers and must not change. HAN: with the supplementary planes 2 and 3 (Extensions B and later).
HAN_BMP = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAN = HAN_BMP + "\U00020000-\U0003ffff"

HAN_CHARACTER = re.compile(f"[{HAN}]")

_HALF = re.compile("[\ud800-\udfff]")


def check_unicode(texts: Iterable[str]) -> None:
    """Raise DcclipError for a text with half a character (a lone surrogate), which no tokenizer takes.

    They come from JSON, and stand for bytes that are not UTF-8 in names of files.
    """
    for text in texts:
        if not text.isascii() and _HALF.search(text):
            raise DcclipError(
                "the text {text!r} contains bytes that are not UTF-8", "write it, or name it, in UTF-8", text=text
            )


def encodable(text: str) -> str:
    """The text with each half of a character written out, as in `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def has_han(text: str) -> bool:
    """Whether the text contains a Chinese character."""
    return HAN_CHARACTER.search(text) is not None


def language_by_script(text: str) -> Literal["zh", "en"]:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if has_han(text) else "en"
