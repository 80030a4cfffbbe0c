"""Does a picture show anything?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from dcclip_cli.curation.candidate import Drop, Picture
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.model.preprocess import flatten

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Pair

_SIDE = 48  # pixels: a speck of a few pixels is averaged away, a line isn't


class BlankRule(Rule):
    """Drops pictures that are one colour all over, or all but a speck of it, once shrunk to 48 px.

    Transparent parts count as white, as they do in training: a white drawing on nothing is blank.
    """

    kind: Literal["blank"] = "blank"
    contrast: int = Field(12, ge=0, le=255, description="A part differs if a channel is further from the median colour")
    min_share: float = Field(0.005, ge=0, le=1, description="Of the picture, at least this much must differ")

    def reason(self, pair: Pair, picture: Picture) -> Drop | None:
        """`image-blank`."""
        image = picture.image
        if min(image.size) > 4 * _SIDE:  # whole-number shrinking is fast
            image = image.reduce(min(image.size) // (2 * _SIDE))
        small = flatten(image).resize((_SIDE, _SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.int16).reshape(-1, 3)  # (2304, 3), range 0 to 255
        middle = np.partition(pixels, len(pixels) // 2, axis=0)[len(pixels) // 2]
        differs = float((np.abs(pixels - middle).max(axis=1) > self.contrast).mean())
        if differs >= self.min_share:
            return None
        return Drop(
            "image-blank", f"{differs:.2%} of it differs from the colour #{bytes(middle.astype(np.uint8)).hex()}"
        )
