"""Base class of filters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from dcclip_cli.curation.decode_image import DecodedImage
from dcclip_cli.data.reading import Drop
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language, Pair


class Filter(Options):
    """Decides on one pair by its image, or on one caption. A subclass overrides one of the two methods, or both.

    A filter sees nothing but its arguments, so filters can run anywhere and in any order.
    """

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """Why the pair is dropped because of its image; None keeps it."""
        return None

    def suspects(self, captions: Sequence[str]) -> Collection[int]:
        """The numbers of the captions that `check_caption` may drop, where that is found faster for many at once."""
        return range(len(captions))

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """Why this normalized caption is dropped; None keeps it. The pair is kept as long as it has other captions."""
        return None
