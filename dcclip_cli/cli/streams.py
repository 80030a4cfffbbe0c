"""The standard streams: open, in an encoding that can print every name, and without control characters."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from typing import Any

# Control characters, line separators, marks that turn the direction of text, and halves of characters, which stand for
# bytes of a file's name that are not UTF-8. Blanks such as U+3000 and joiners of emoji are not among them.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDEST = 1000  # columns; rich fills so many with blanks


def prepare_streams() -> None:
    """Make the standard streams usable, whatever they are: closed ones are like /dev/null, and nothing fails to print.

    What a stream cannot encode is printed as a backslash and its number. Paths read from stdin are decoded as those
    on the command line.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: a file that is opened next would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    if (width := os.environ.get("COLUMNS", "")).isdigit() and int(width[:9]) > _WIDEST:
        os.environ["COLUMNS"] = str(_WIDEST)


def printable(text: str) -> str:
    r"""The text with control characters, line ends and bytes that are not UTF-8 as in `\x1b`, `\n` and `\udcff`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, Chinese readable where stdout can encode it, control characters as `\\u001b`."""
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    return re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe in front if it begins like one."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
