"""Which other pictures have the same name as one?"""

from __future__ import annotations

import numpy as np

from dcclip_cli.data.order import caption_groups
from dcclip_cli.data.table import PairTable


class Namesakes:
    """For each pair the others whose first caption is equal to its own in some language."""

    def __init__(self, table: PairTable) -> None:
        groups = caption_groups(table)
        self._sorted = np.argsort(groups, kind="stable")
        self._first = np.searchsorted(groups[self._sorted], groups, side="left")
        self._last = np.searchsorted(groups[self._sorted], groups, side="right")

    def one_of(self, index: int, share: float) -> int | None:
        """The namesake at `share`, in [0, 1), of the way through pair `index`'s; None where it has none."""
        others = self._sorted[self._first[index] : self._last[index]]
        others = others[others != index]
        return int(others[int(share * len(others))]) if len(others) else None
