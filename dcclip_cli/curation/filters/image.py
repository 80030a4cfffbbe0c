"""Decoding of untrusted image files, the base class of filters, and the filters on the image."""

import io
import math
import warnings
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from dcclip_cli.core.options import Options
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.pair import Language, Pair
from dcclip_cli.data.reading import MAX_IMAGE_BYTES, Drop
from dcclip_cli.model.preprocess import FORMATS, MAX_ASPECT, MAX_PIXELS, first_frame

_FILL = ((128, 128),) * 3  # the grey that a JPEG decoder fills in for missing data
_SIDE = 48  # pixels: a speck of a few pixels is averaged away, a line isn't
_EVERY = 19  # pixels apart are those that are looked at first, in all columns


def decode_image(data: bytes) -> DecodedImage | Drop:
    """The decoded image, or why no recipe can keep it.

    Reasons: `image-bytes` (empty, or too many), `image-format` (not JPEG, PNG or WebP by its first
    bytes), `image-bomb` (more pixels than MAX_PIXELS by its header), `image-aspect` (one side over
    MAX_ASPECT times the other: resizing would need too much memory), `image-unreadable` (broken or
    truncated, also a JPEG that ends in the grey of missing data).
    """
    if not data or len(data) > MAX_IMAGE_BYTES:
        return Drop("image-bytes", f"{len(data):,} bytes, allowed 1 to {MAX_IMAGE_BYTES:,}")
    suffix = image_suffix(data)
    if suffix is None:
        return Drop("image-format", f"not a JPEG, PNG or WebP file: starts with {data[:12]!r}")
    array = _plain_jpeg(data) if suffix == "jpg" else None
    if array is not None:
        height, width, _ = array.shape
        image = Image.frombuffer("RGBX", (width, height), array, "raw", "RGBX", 0, 1)
        frames = 1
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
    width, height = image.size
    if (
        suffix == "jpg" and height >= 32
    ):  # a damaged one: the last eight rows are all #808080, the first eight are not
        parts = (
            (0, height - 8, 1, height),
            (0, height - 8, width, height),
            (0, 0, width, 8),
        )  # most end at the first
        greys = (image.crop(part).getextrema()[:3] == _FILL for part in parts)
        if next(greys) and next(greys) and not next(greys):
            return Drop(
                "image-unreadable", "the lower part is the grey that stands for missing data"
            )
    return DecodedImage(image, suffix, frames, len(data), array)


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """RGBX pixels of an upright, intact JPEG, (height, width, 4), as Pillow decodes it; None in
    any doubt.
    """
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


class Filter(Options):
    """Decides on one pair by its image, or on one caption. A subclass overrides one of the two
    methods, or both.

    A filter sees nothing but its arguments, so filters can run anywhere and in any order.
    """

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """Why the pair is dropped because of its image; None keeps it."""
        return None

    def suspects(self, captions: Sequence[str]) -> Collection[int]:
        """The numbers of the captions that `check_caption` may drop, where that is found faster
        for many at once.
        """
        return range(len(captions))

    def check_caption(self, caption: str, language: Language) -> Drop | None:
        """Why this normalized caption is dropped; None keeps it. The pair is kept as long as it
        has other captions.
        """
        return None


class ImageFilter(Filter):
    """Drops animated images, and images that are too small or too narrow to show their subject."""

    kind: Literal["image"] = "image"
    min_side: int = Field(
        32, ge=1, le=1_000_000, description="Minimum length of the shorter side, in pixels"
    )
    max_aspect: float = Field(
        3.0, ge=1, le=1000, description="Maximum ratio of the longer side to the shorter side"
    )

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        """`image-animated`, `image-small` or `image-aspect`."""
        short, long = sorted(decoded.image.size)
        size = "{} x {} pixels".format(*decoded.image.size)
        if decoded.frames > 1:
            return Drop("image-animated", f"{decoded.frames} frames")
        if short < self.min_side:
            return Drop("image-small", f"{size}, shortest side allowed {self.min_side}")
        if long > self.max_aspect * short:
            return Drop("image-aspect", f"{size}, ratio allowed {self.max_aspect:g}")
        return None


_CONTRAST = 12  # distance from the median above which a channel counts as different, of 255


class BlankFilter(Filter):
    """Drops images that are almost a single colour when shrunk to 48 px.

    Transparent parts count as white, as in training: a white drawing on a transparent background
    is blank.
    """

    kind: Literal["blank"] = "blank"
    min_share: float = Field(
        0.005, ge=0, le=1, description="Minimum fraction of pixels that differ from the median"
    )

    def check_pair(self, pair: Pair, decoded: DecodedImage) -> Drop | None:
        small = decoded.resized(_SIDE, Image.Resampling.BOX)
        pixels = small.tobytes()
        fewest = max(1, math.ceil(self.min_share * _SIDE * _SIDE))
        for channel in range(3):
            values = sorted(pixels[channel :: 3 * _EVERY])
            # So many are further from each other than any median can be from both: no need to look
            # at the others.
            if 2 * fewest <= len(values) and values[-fewest] - values[fewest - 1] > 2 * _CONTRAST:
                return None
        channels = np.frombuffer(pixels, np.uint8).reshape(-1, 3)  # range 0 to 255
        median = np.sort(channels, axis=0, kind="stable")[_SIDE * _SIDE // 2]
        apart = np.abs(channels.astype(np.int16) - median) > _CONTRAST
        differs = np.count_nonzero(apart.any(1)) / (_SIDE * _SIDE)
        if differs >= self.min_share:
            return None
        colour = bytes(median).hex()
        return Drop("image-blank", f"{differs:.2%} of it differs from the colour #{colour}")
