"""Text files that users write: bounded reading, and the encoding of one that is not UTF-8."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dcclip_cli.errors import DcclipError
from dcclip_cli.text import HAN_CHARACTER

_LOOK_AT = 1_000_000  # bytes
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def not_utf8(file: Path, hint: str = "save it as UTF-8") -> DcclipError:
    """The error for a file that is not UTF-8: its encoding and how to convert it, or `hint` where that is unknown."""
    with file.open("rb") as stream:
        content = stream.read(_LOOK_AT)
    encoding = encoding_of(content)
    if encoding is None:
        return DcclipError("{} is not text in UTF-8", hint, file)
    names = shlex.quote(str(file)), shlex.quote(f"utf8{file.suffix}")
    return DcclipError(
        "{0} is in {1}, not in UTF-8",
        "convert it with: iconv -f {1} -t UTF-8 {2} > {3}",
        file,
        encoding,
        names[0],
        names[1],
    )


def encoding_of(content: bytes) -> str | None:
    """UTF-32, UTF-16, GB18030 or BIG5 by the byte order mark or the characters of a text; None where unknown."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    for start, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):  # every second byte of text in English is 0
        zeros = content[start::2].count(0)
        if zeros > 0.3 * len(content) / 2 and content[1 - start :: 2].count(0) < 0.1 * zeros:
            return encoding
    if _BINARY.search(content):
        return None
    usual = {encoding: _usual_share(content, encoding) for encoding in ("GB18030", "BIG5")}
    best = max(usual, key=lambda encoding: usual[encoding])
    return best if usual[best] > 0.6 else None


def _usual_share(content: bytes, encoding: str) -> float:
    """The share of the 3,755 usual characters of GB 2312, or their traditional forms, in what is not ASCII."""
    for cut in range(4):  # the last character may be incomplete
        try:
            text = content[: len(content) - cut].decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        return 0
    other = re.sub("[\0-\x7f\u3000-\u303f\uff00-\uffef]", "", text)
    return sum(map(_is_usual, other, [encoding] * len(other))) / max(1, len(other))


def _is_usual(character: str, encoding: str) -> bool:
    """Whether a character is in the part of its national standard that lists usual ones."""
    if not HAN_CHARACTER.match(character):
        return False
    first = character.encode("gb2312" if encoding == "GB18030" else "big5", errors="ignore")[:1]
    return b"\xb0" <= first <= b"\xd7" if encoding == "GB18030" else b"\xa4" <= first <= b"\xc6"


def read_text(file: Path, most_bytes: int, hint: str) -> str:
    """The text of a file in UTF-8. Raises DcclipError if it is something else or larger; `hint` says what to give."""
    try:
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
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
