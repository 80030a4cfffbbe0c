"""Chinese characters in text: the ranges of the Han script, and the language that a text's script implies."""

from __future__ import annotations

import re
from typing import Literal

# Insides of a character class. HAN_BMP: CJK Unified Ideographs, Extension A and compatibility ideographs; it is part
# of trained tokenizers and must not change. HAN: with the supplementary planes 2 and 3 (Extensions B and later).
HAN_BMP = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAN = HAN_BMP + "\U00020000-\U0003ffff"

HAN_CHARACTER = re.compile(f"[{HAN}]")


def has_han(text: str) -> bool:
    """Whether the text contains a Chinese character."""
    return HAN_CHARACTER.search(text) is not None


def language_by_script(text: str) -> Literal["zh", "en"]:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if has_han(text) else "en"
