"""Characters in text: the ranges of the Han script, the language that a script implies, halves, where lines break."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from dcclip_cli.errors import DcclipError

# Insides of a character class. HAN_BMP: CJK Unified Ideographs, Extension A and compatibility ideographs; it is part
# of trained tokenizers and must not change. HAN: with the supplementary planes 2 and 3 (Extensions B and later).
HAN_BMP = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAN = HAN_BMP + "\U00020000-\U0003ffff"

HAN_CHARACTER = re.compile(f"[{HAN}]")

# What stays on one line: a word or a Chinese character, with the punctuation that belongs to it.
_PIECES = re.compile(r"[（“《]*(?:[^\s\u2e80-\uffef“”]+|.)[，。；：、！？）》”]*\s*")
_HALF = re.compile("[\ud800-\udfff]")


def check_unicode(texts: Iterable[str]) -> None:
    """Raise DcclipError for a text with half a character (a lone surrogate), which no tokenizer takes.

    They come from JSON, and stand for bytes that are not UTF-8 in names of files.
    """
    for text in texts:
        if not text.isascii() and _HALF.search(text):
            raise DcclipError("the text {!r} contains bytes that are not UTF-8", "write it, or name it, in UTF-8", text)


def encodable(text: str) -> str:
    """The text with each half of a character written out, as in `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def has_han(text: str) -> bool:
    """Whether the text contains a Chinese character."""
    return HAN_CHARACTER.search(text) is not None


def language_by_script(text: str) -> Literal["zh", "en"]:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if has_han(text) else "en"


def rows(text: str, width: int) -> list[str]:
    """The parts of a line that is broken so that none takes more than `width` cells, and no word is if it fits."""
    from rich.cells import cell_len, chop_cells

    ends = [0]
    for piece in _PIECES.finditer(text):
        while cell_len(text[(begin := ends[-1]) : piece.end()].rstrip()) > width:
            ends.append(piece.start() if piece.start() > begin else begin + len(chop_cells(text[begin:], width)[0]))
    return [text[begin:end] for begin, end in pairwise([*ends, len(text)])]


def filled(text: str, width: int) -> str:
    """A line with blanks up to each end of a terminal's row, which then breaks no word; copied it is one line still."""
    from rich.cells import set_cell_size

    *full, last = rows(text, width)
    return "".join(set_cell_size(row.rstrip(), width) for row in full) + last
