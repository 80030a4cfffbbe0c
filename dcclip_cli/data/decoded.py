"""A decoded image as filters and the search for duplicates see it."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from dcclip_cli.model.preprocess import flatten

_REDUCED_PX = 64


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image as filters see it: RGB, RGBX or RGBA pixels, and properties of its file."""

    image: Image.Image = field(repr=False)
    format: str  # "jpg", "png" or "webp", by the file's first bytes
    frames: int
    file_bytes: int
    array: np.ndarray | None = field(
        default=None, repr=False
    )  # the pixels of an RGBX image, (height, width, 4)

    @cached_property
    def flat(self) -> Image.Image:
        """The image as training sees it: RGB, on white."""
        return flatten(self.image)

    @property
    def pixels(self) -> bytes | memoryview:
        """The bytes of `flat`, row by row, with 255 after each pixel."""
        return self.flat.convert("RGBX").tobytes() if self.array is None else self.array.data

    @cached_property
    def _reduced(self) -> tuple[Image.Image, tuple[float, float]]:
        """A copy with sides of 64 to 127, and its size before it was rounded up."""
        image = self.flat if self.image.mode == "RGBA" else self.image
        width, height = image.size
        across = max(1, width // _REDUCED_PX)
        down = max(1, height // _REDUCED_PX)
        reduced = flatten(image.reduce((across, down)) if max(across, down) > 1 else image)
        return reduced, (width / across, height / down)

    def resized(self, side: int, resampling: Image.Resampling) -> Image.Image:
        """`flat` as a square of `side` pixels, up to 48: from a copy with sides of 64 to 127, made
        once for all.
        """
        reduced, size = self._reduced
        return reduced.resize((side, side), resampling, (0, 0, *size))
