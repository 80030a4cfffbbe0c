"""What stands in the lists of a JSON file that is too big to be loaded?"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dcclip_cli.data.files.reading import MAX_TEXT_BYTES

_CHUNK = 1 << 20
_NUMBER_CUT = "1e-5"  # what is read as 1 while its last digit is not in the window
_SPACE = " \t\r\n"


def json_items(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The elements of the lists under `keys` in the file's object, each with its key, in the order of the file.

    If the whole file is a list, its elements come with the key "". A megabyte is in memory at a time. Raises
    ValueError, or RecursionError, where the file stops being JSON or an element is longer than MAX_TEXT_BYTES.
    """
    with path.open("rb") as stream:
        text = _Text(stream)
        if text.peek() == "[":
            yield from (("", item) for item in text.items() if "" in keys)
            return
        text.take("{")
        while text.peek() != "}":
            key = text.value()
            text.take(":")
            if text.peek() == "[":
                yield from ((key, item) for item in text.items() if key in keys)
            else:
                text.value()
            if text.peek() != "}":
                text.take(",")


class _Text:
    """The text of a file, a window at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._window, self._at, self._ended = "", 0, False
        self._fresh = False  # whether the window was just filled

    def _more(self) -> bool:
        """Make the window longer; whether there was more."""
        if self._ended:
            return False
        chunk = self._stream.read(_CHUNK)
        self._ended, self._fresh = not chunk, bool(chunk)
        self._window, self._at = self._window[self._at :] + self._decoder.decode(chunk, self._ended), 0
        return True

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Step over a character, which has to stand next."""
        if self.peek() != character:
            raise ValueError(f"{self.peek() or 'the end'!r} where {character!r} should be")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
            except ValueError:
                if len(self._window) - self._at > MAX_TEXT_BYTES or not self._more():
                    raise
                continue
            if end > len(self._window) - len(_NUMBER_CUT) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _block(self) -> list[Any]:
        """All the elements up to the last that ends in the window, or none: five times as fast as one by one.

        What parses as a list is one: a brace in a text, or inside an element, would leave it without its end.
        """
        if not self._fresh:
            return []
        self._fresh = False
        end = self._window.rfind("},", self._at) + 1
        if not end:
            return []
        try:
            found: list[Any] = json.loads(f"[{self._window[self._at : end]}]")
        except ValueError:
            return []
        self._at = end
        return found

    def items(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            block = self._block()
            if block:
                yield from block
            else:
                yield self.value()
            if self.peek() == "]":
                break
            self.take(",")
        self.take("]")
