"""Which image files can be opened at all, and what is in them?"""

from __future__ import annotations

import io
import warnings

from PIL import Image

from dcclip_cli.curation.candidate import Drop, Picture
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import FORMATS, MAX_ASPECT, MAX_PIXELS, decode

_FILL = ((128, 128),) * 3  # what a JPEG decoder paints where data is missing


def open_picture(data: bytes) -> Picture | Drop:
    """The decoded picture, or why no recipe could keep it.

    `image-bytes` (too many, or none), `image-format` (not JPEG, PNG or WebP by its first bytes), `image-bomb` (by its
    header it has more pixels than MAX_PIXELS), `image-aspect` (longer than MAX_ASPECT times its width: resizing would
    blow it up), `image-unreadable` (broken or cut off, a JPEG that ends in the grey of missing data included).
    """
    if not data or len(data) > MAX_IMAGE_BYTES:
        return Drop("image-bytes", f"{len(data):,} bytes, allowed 1 to {MAX_IMAGE_BYTES:,}")
    suffix = image_suffix(data)
    if suffix is None:
        return Drop("image-format", f"not a JPEG, PNG or WebP file: starts with {data[:12]!r}")
    frames = _frames(data)
    if isinstance(frames, Drop):
        return frames
    try:
        image = decode(data)
    except DcclipError as error:
        return Drop("image-unreadable", error.what)
    if suffix == "jpg" and _ends_in_fill(image):
        return Drop("image-unreadable", "the lower part is the grey that stands for missing data")
    return Picture(image, suffix, 1 if suffix == "jpg" else frames, len(data))  # a second JPEG inside is no animation


def image_suffix(image: bytes) -> str | None:
    """`jpg`, `png` or `webp` by the file's first bytes, whatever it is called; None for anything else."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


def _frames(data: bytes) -> int | Drop:
    """How many frames the file has by its header, or why it isn't worth decoding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                said = f"{header.width} x {header.height} pixels"
                if header.width * header.height > MAX_PIXELS:
                    return Drop("image-bomb", f"{said}, more than {MAX_PIXELS:,}")
                if max(header.size) > MAX_ASPECT * min(header.size):
                    return Drop("image-aspect", f"{said}, one side over {MAX_ASPECT} times the other")
                return int(getattr(header, "n_frames", 1))
    except Image.DecompressionBombError as error:
        return Drop("image-bomb", str(error))
    except (OSError, SyntaxError, ValueError) as error:
        return Drop("image-unreadable", f"not a readable image: {error}")


def _ends_in_fill(image: Image.Image) -> bool:
    """Whether the last eight rows are all #808080 while the first ones aren't."""
    width, height = image.size
    if height < 32:
        return False
    foot = image.crop((0, height - 8, width, height)).getextrema()
    return foot == _FILL and image.crop((0, 0, width, 8)).getextrema() != _FILL
