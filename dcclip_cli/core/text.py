"""Text: Han characters and the language that they imply, lines of a terminal, sizes and durations,
users' files.
"""

import math
import re
import shlex
from ast import literal_eval
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_bytes

# Insides of a character class. HAN_BMP: CJK Unified Ideographs, Extension A and compatibility
# ideographs; it is part of trained tokenizers and must not change. HAN: with the supplementary
# planes 2 and 3 (Extensions B and later).
HAN_BMP = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAN = HAN_BMP + "\U00020000-\U0003ffff"

_HAN_CHARACTER = re.compile(f"[{HAN}]")

# What stays on one line: a word or a Chinese character, with the punctuation that belongs to it.
_PIECES = re.compile(r"[（“《]*(?:[^\s\u2e80-\uffef“”]+|.)[，。；：、！？）》”]*\s*")
_HALF = re.compile("[\ud800-\udfff]")
# Control characters, line separators, marks that turn the direction of text, and halves of
# characters, which stand for bytes of a file's name that are not UTF-8. Blanks such as U+3000 and
# joiners of emoji are not among them.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_EXCLUDED = re.compile(r"[-－−][^\W\d_]")
_LOOK_AT = 1_000_000  # bytes of a file whose encoding is guessed


def printable(text: str) -> str:
    r"""The text with control characters, line ends and bytes that are not UTF-8 as in `\x1b`, `\n`
    and `\udcff`.
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def unprintable(text: str) -> str:
    """The text that `printable` shows so, if it has no backslashes."""

    def character(escape: re.Match[str]) -> str:
        literal: str = literal_eval(f"'{escape[0]}'")
        return literal if _UNPRINTABLE.match(literal) else escape[0]

    return re.sub(r"\\(?:[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})", character, text)


def check_unicode(texts: Iterable[str]) -> None:
    """Raise DcclipError for half a character (a lone surrogate of JSON or a file's name):
    tokenizers take none.
    """
    for text in texts:
        if not text.isascii() and _HALF.search(text):
            raise DcclipError(
                "the text {!r} contains bytes that are not UTF-8", "encode the text in UTF-8", text
            )


def split(text: str) -> list[str]:
    """The items of a list separated by , ， or 、, without blanks, empty items and repetitions."""
    parts = (part.strip() for part in re.split("[,，、]", text))
    return list(dict.fromkeys(part for part in parts if part))


def split_excluded(
    texts: Iterable[str], without: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Texts of a query less the words after a minus, as in `dog -beach`, and these words next to
    those `without`.
    """
    included = list[str]()
    excluded = list(without)
    for text in texts:
        words = text.split()
        excluded_words = [word[1:] for word in words if _EXCLUDED.match(word)]
        excluded += excluded_words
        if not excluded_words:
            included.append(text)
        elif rest := " ".join(word for word in words if not _EXCLUDED.match(word)):
            included.append(rest)
    return included, excluded


def encodable(text: str) -> str:
    """The text with each half of a character written out, as in `\\ud800`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def language_by_script(text: str) -> Literal["zh", "en"]:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if _HAN_CHARACTER.search(text) else "en"


def rows(text: str, width: int) -> list[str]:
    """The parts of a line that is broken so that none takes more than `width` cells, and no word
    is if it fits.
    """
    from rich.cells import cell_len, chop_cells

    ends = [0]
    for piece in _PIECES.finditer(text):
        while cell_len(text[(begin := ends[-1]) : piece.end()].rstrip()) > width:
            ends.append(
                piece.start()
                if piece.start() > begin
                else begin + len(chop_cells(text[begin:], width)[0])
            )
    return [text[begin:end] for begin, end in pairwise([*ends, len(text)])]


def filled(text: str, width: int) -> str:
    """A line with blanks up to each end of a terminal's row, which then breaks no word; copied it
    is one line still.
    """
    from rich.cells import set_cell_size

    *full, last = rows(text, width)
    return "".join(set_cell_size(row.rstrip(), width) for row in full) + last


def size_in_words(count: float) -> str:
    """A number of bytes: 3 kB, 12.5 MB, 1.5 GB, 2.0 TB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"


def duration_in_words(seconds: float) -> str:
    """A duration: 40 s, 12 min, 3.5 h, 4 days."""
    if seconds < 100:
        return Message("{} s", math.ceil(seconds))
    if seconds < 6000:
        return Message("{:.0f} min", seconds / 60)
    if seconds < 172_800:
        return Message("{:.1f} h", seconds / 3600)
    return Message("{:.0f} days", seconds / 86_400)


def read_text(file: Path, most_bytes: int, hint: str) -> str:
    """The text of a file in UTF-8. Raises DcclipError if it is something else or larger; `hint`
    says what to give.
    """
    try:
        content = read_bytes(file, most_bytes + 1)
    except FileNotFoundError:
        raise DcclipError("{} does not exist", hint, file) from None
    except IsADirectoryError:
        raise DcclipError("{} is a folder", hint, file) from None
    if len(content) > most_bytes:
        raise DcclipError("{} is larger than {:,.0f} MB", hint, file, most_bytes / 1e6)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise not_utf8(file, hint) from None
    if "\0" in text:
        raise not_utf8(file, hint)
    return text


def not_utf8(file: Path, hint: str = "save it as UTF-8") -> DcclipError:
    """The error for a file that is not UTF-8: its encoding and how to convert it, or `hint` where
    that is unknown.
    """
    with file.open("rb") as stream:
        encoding = encoding_of(stream.read(_LOOK_AT))
    if encoding is None:
        return DcclipError("{} is not UTF-8 text", hint, file)
    return DcclipError(
        "{0} is encoded in {1} instead of UTF-8",
        "convert it with: iconv -f {1} -t UTF-8 {2} > {3}",
        file,
        encoding,
        shlex.quote(str(file)),
        shlex.quote(f"utf8{file.suffix}"),
    )


def encoding_of(content: bytes) -> str | None:
    """UTF-16 by its mark, GB18030 by its characters: the 3,755 usual ones of GB 2312. None where
    unknown.
    """
    if (
        content.startswith((b"\xff\xfe", b"\xfe\xff")) and content[2:4] != b"\0\0"
    ):  # which is UTF-32
        return "UTF-16"
    text = re.sub("[\0-\x7f\u3000-\u303f\uff00-\uffef]", "", content.decode("gb18030", "replace"))
    firsts = [
        character.encode("gb2312", "ignore")[:1]
        for character in text
        if _HAN_CHARACTER.match(character)
    ]
    return (
        "GB18030"
        if sum(b"\xb0" <= first <= b"\xd7" for first in firsts) > 0.6 * len(text)
        else None
    )
