"""Decoding of untrusted image files, with the reason where that fails."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, UnidentifiedImageError

from dcclip_cli.data.reading import MAX_IMAGE_BYTES, Drop
from dcclip_cli.model.preprocess import FORMATS, MAX_ASPECT, MAX_PIXELS, first_frame, flatten

_REDUCED_PX = 64
_FILL = ((128, 128),) * 3  # the grey that a JPEG decoder fills in for missing data


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image as filters see it: RGB, RGBX or RGBA pixels, and properties of its file."""

    image: Image.Image = field(repr=False)
    format: str  # "jpg", "png" or "webp", by the file's first bytes
    frames: int
    file_bytes: int
    array: np.ndarray | None = field(default=None, repr=False)  # the pixels of an RGBX image, (height, width, 4)

    @cached_property
    def flat(self) -> Image.Image:
        """The image as training sees it: RGB, on white."""
        return flatten(self.image)

    @property
    def pixels(self) -> bytes | memoryview:
        """The bytes of `flat`, row by row, with 255 after each pixel."""
        return self.flat.convert("RGBX").tobytes() if self.array is None else self.array.data

    @cached_property
    def _reduced(self) -> Image.Image:
        image = self.flat if self.image.mode == "RGBA" else self.image
        return flatten(image.reduce(self._factors) if max(self._factors) > 1 else image)

    @property
    def _factors(self) -> tuple[int, int]:
        width, height = self.image.size
        return max(1, width // _REDUCED_PX), max(1, height // _REDUCED_PX)

    def resized(self, side: int, resampling: Image.Resampling) -> Image.Image:
        """`flat` as a square of `side` pixels, up to 48: from a copy with sides of 64 to 127, made once for all."""
        (width, height), (across, down) = self.image.size, self._factors
        return self._reduced.resize((side, side), resampling, (0, 0, width / across, height / down))


def decode_image(data: bytes) -> DecodedImage | Drop:
    """The decoded image, or why no recipe can keep it.

    Reasons: `image-bytes` (empty, or too many), `image-format` (not JPEG, PNG or WebP by its first bytes), `image-bomb`
    (more pixels than MAX_PIXELS by its header), `image-aspect` (one side over MAX_ASPECT times the other: resizing
    would need too much memory), `image-unreadable` (broken or truncated, also a JPEG that ends in the grey of missing
    data).
    """
    if not data or len(data) > MAX_IMAGE_BYTES:
        return Drop("image-bytes", f"{len(data):,} bytes, allowed 1 to {MAX_IMAGE_BYTES:,}")
    suffix = image_suffix(data)
    if suffix is None:
        return Drop("image-format", f"not a JPEG, PNG or WebP file: starts with {data[:12]!r}")
    array = _plain_jpeg(data) if suffix == "jpg" else None
    if array is not None:
        height, width, _ = array.shape
        image, frames = Image.frombuffer("RGBX", (width, height), array, "raw", "RGBX", 0, 1), 1
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                    if drop := _check_size(*opened.size):
                        return drop
                    # A second JPEG inside is no animation.
                    frames = 1 if suffix == "jpg" else int(getattr(opened, "n_frames", 1))
                    image = first_frame(opened)
        except Image.DecompressionBombError as error:
            return Drop("image-bomb", str(error))
        except UnidentifiedImageError:  # its message has an address in memory
            return Drop("image-unreadable", "not a readable image: broken from its beginning")
        except (OSError, SyntaxError, ValueError) as error:
            return Drop("image-unreadable", f"not a readable image: {error}")
    if suffix == "jpg" and _ends_in_fill(image):
        return Drop("image-unreadable", "the lower part is the grey that stands for missing data")
    return DecodedImage(image, suffix, frames, len(data), array)


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """RGBX pixels of an upright, intact JPEG, (height, width, 4), as Pillow decodes it; None in any doubt."""
    import simplejpeg  # takes half the time of Pillow

    if any(sign in data for sign in (b"Exif\0", b"http://ns.adobe.com/xap")):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or _check_size(width, height):
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGBA"))
    except ValueError:
        return None


def image_suffix(image: bytes) -> str | None:
    """`jpg`, `png` or `webp` by the file's first bytes; None for any other format."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def _check_size(width: int, height: int) -> Drop | None:
    """Why an image is not decoded, by its header."""
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        return Drop("image-bomb", f"{size}, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Drop("image-aspect", f"{size}, one side over {MAX_ASPECT} times the other")
    return None


def _ends_in_fill(image: Image.Image) -> bool:
    """Whether the last eight rows are all #808080 and the first eight are not."""
    width, height = image.size
    parts = ((0, height - 8, 1, height), (0, height - 8, width, height), (0, 0, width, 8))  # most differ in the first
    greys = (image.crop(part).getextrema()[:3] == _FILL for part in parts)
    return height >= 32 and next(greys) and next(greys) and not next(greys)
