"""What is wrong with a thing that was to be read?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """Why something was left out: `reason` is one of a few fixed words to count by, `detail` is for a person."""

    reason: str
    detail: str = ""


class Fault(Exception):
    """Ends the reading of one candidate."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)
