"""Which pictures a reading process has made already and need not make again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LIMIT_BYTES = 256_000_000  # of each reading process: the quick start's pictures three times over


class KeptPictures:
    """Keeps pictures until `limit` bytes of pixels are kept; later ones are made each time that they are asked for.

    Nothing kept is ever let go: an epoch asks for every picture once, so the oldest is as good as any.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: dict[Hashable, Image.Image] = {}

    def get(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """The picture of this key, from `make` where it is not kept. Callers leave it as it is."""
        found = self._kept.get(key)
        if found is None:
            found = make()
            size = found.width * found.height * len(found.getbands())
            if self._bytes + size <= self._limit:
                self._kept[key] = found
                self._bytes += size
        return found
