"""Image decoding and preprocessing for image towers, and a library's own as one of these, without
torch.
"""

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# The readers of FORMATS. Image.open imports all forty of Pillow's if one of them is missing.
from PIL import PngImagePlugin, WebPImagePlugin  # noqa: F401  # isort: skip
from PIL.JpegImagePlugin import JpegImageFile

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import refuse_special

MAX_PIXELS = (
    64_000_000  # larger images are refused before they are decompressed, larger JPEGs are reduced
)
_REDUCED_PX = 512  # what both sides of a reduced JPEG have at least
_SMALLER = Message("shrink the image first")
# longer side / shorter side: resizing a thinner image by its shorter side would make it huge
MAX_ASPECT = 100
# What Pillow and its plugins raise for damaged files.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError),
    *(RuntimeError, LookupError, ArithmeticError, struct.error),
)
FORMATS = ("JPEG", "PNG", "WEBP")
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class ImageError(DcclipError):
    """The content of an image file cannot be decoded: reading it again fails again."""


class TooManyPixelsError(ImageError):
    """An image has more pixels than may be decoded."""


def decode(
    source: bytes | Path,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    draft: int = 0,
) -> Image.Image:
    """The first frame of an image in one of Pillow's `formats`, upright, as RGB, or as RGBA if it
    has transparency.

    With `draft`, a JPEG is decoded at the half, a quarter or an eighth of its size if both sides
    keep that many pixels. Raises DcclipError for anything else, for truncated images, more than
    `max_pixels` pixels, or a side more than MAX_ASPECT times the other.
    """
    name = str(source) if isinstance(source, Path) else Message("image of {} bytes", len(source))
    if isinstance(source, Path):
        refuse_special(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(source, formats) as image:
                size = image.size
                limit = max_pixels
                if image.width * image.height > max_pixels >= MAX_PIXELS and isinstance(
                    image, JpegImageFile
                ):
                    # libjpeg stores no more than some rows of an image in one scan, else all
                    # coefficients in 2 bytes each. Pillow stops after the header of the first
                    # scan: length, number of components, ...
                    assert image.fp  # which is open until the image is decoded
                    image.fp.seek(-6 - 2 * image.layers, os.SEEK_CUR)
                    is_first_scan_all = image.layers < 4 and image.fp.read(3)[2:] == bytes(
                        [image.layers]
                    )
                    in_one_scan = is_first_scan_all and "progressive" not in image.info
                    limit = (8 if in_one_scan else 2) * MAX_PIXELS
                    draft = draft or _REDUCED_PX
                if max(size) > MAX_ASPECT * min(size):
                    message = Message(
                        "{} has {} x {} pixels; its aspect ratio is above {}:1",
                        name,
                        *size,
                        MAX_ASPECT,
                    )
                    raise ImageError(message, "crop the image first")
                if draft and size[0] * size[1] <= limit:
                    image.draft(None, (draft, draft))
                if image.width * image.height > max_pixels:
                    message = Message("{} has {} x {} pixels, more than {:,}", name, *size, limit)
                    raise TooManyPixelsError(message, _SMALLER)
                return first_frame(image)
    except FileNotFoundError:
        raise DcclipError("{} does not exist", "check the path", name) from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))  # Pillow's own limit, which it checks first
        count = Message("{:,}", int(pixels[0])) if pixels else Message("too many")
        raise TooManyPixelsError(
            "{} has {} pixels, more than {:,}", _SMALLER, name, count, max_pixels
        ) from None
    except UnidentifiedImageError:
        message = Message("{} is not a readable image in a supported format", name)
        raise ImageError(message, "convert the file to JPEG, PNG or WebP") from None
    except DAMAGE as error:
        # Not "[Errno 40] ...: 'cat.png'", and of libjxl the first line.
        reason = getattr(error, "strerror", None) or next(
            iter(str(error).splitlines()), type(error).__name__
        )
        if getattr(error, "errno", None):  # of a file, or of a folder: it may be read later
            hint = Message("check the permissions of the file and its folders, and the disk")
            raise DcclipError("{} cannot be read: {}", hint, name, reason) from None
        raise ImageError(
            "{} is not a readable image: {}", "replace it, or convert it to JPEG", name, reason
        ) from None


def _opened(source: bytes | Path, formats: tuple[str, ...]) -> Image.Image:
    """An image before it is decoded, a JPEG also beyond Pillow's own limit of pixels."""
    try:
        return Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats
        )
    except Image.DecompressionBombError:
        with suppress(SyntaxError):  # of other formats
            return JpegImageFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        raise


def first_frame(image: Image.Image) -> Image.Image:
    """The first frame of an opened image, decoded, upright, as RGB, or as RGBA if it has
    transparency.
    """
    image.load()
    if image.format == "JXL" and not getattr(
        image, "jpeg", False
    ):  # libjxl has turned it, also if EXIF says otherwise
        image.info.pop("exif", None)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    ImageOps.exif_transpose(image, in_place=True)
    mode = "RGBA" if transparent else "RGB"
    if image.mode.startswith("I;16"):  # which Pillow would clip at 255
        levels = (np.asarray(image, np.float32) / 257).round().astype(np.uint8)
        return Image.fromarray(levels).convert(mode)
    return image if image.mode == mode else image.convert(mode)


def flatten(image: Image.Image, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The image as RGB, with `colour` behind its transparent parts; an RGB image itself."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    background = Image.new("RGB", image.size, colour)
    background.paste(image, mask=image.getchannel("A"))
    return background


_NAMES = {
    "interpolation": list(RESAMPLING),
    "resize_mode": ["shortest", "squash"],
    "crop": ["round", "floor"],
}
MAX_SIDE = 4_096  # of a tower's input
_MAX_LEVEL = 10_000.0  # of the means, and of 1 / the standard deviations


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise an image to a tower's input; fields as in open_clip's
    `preprocess_cfg`, and `crop`.
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    # "shortest": shorter side to `size`, then the middle square; "squash": both sides
    resize_mode: str = "shortest"
    # how half an odd margin is rounded: "round" (to even, torchvision) or "floor" (transformers)
    crop: str = "round"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """From open_clip's `preprocess_cfg`, with its defaults. Raises ValueError, with the key,
        for other values.
        """
        preprocessing = cls(
            _side(config.get("size", cls.size)),
            _levels("mean", config.get("mean") or cls.mean, -_MAX_LEVEL),
            _levels("std", config.get("std") or cls.std, 1 / _MAX_LEVEL),
            **{key: config[key] for key in _NAMES if config.get(key)},
        )
        for key, names in _NAMES.items():
            if (name := getattr(preprocessing, key)) not in names:
                raise ValueError(
                    Message("{} must be {} (got {!r:.60})", key, " or ".join(names), name)
                )
        return preprocessing

    def to_config(self) -> dict[str, Any]:
        """The same as open_clip's `preprocess_cfg`, with `crop` only if it is not open_clip's own,
        "round".
        """
        fields = asdict(self)
        if self.crop == "round":
            del fields["crop"]
        return {"mode": "RGB", **fields}

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The tower's input, float32 (3, size, size); as torchvision's Resize + CenterCrop +
        Normalize with "round".
        """
        # Channel by channel and in place: eight times as fast as on (H, W, 3), the same bits.
        channels = np.ascontiguousarray(np.asarray(self.resize(flatten(image))).transpose(2, 0, 1))
        values = channels.astype(np.float32)
        values /= np.float32(255)
        values -= np.asarray(self.mean, np.float32)[:, None, None]
        values /= np.asarray(self.std, np.float32)[:, None, None]
        return values

    def shortened(self, pixels: Any) -> Any:
        """A batch, an array or a tensor, without the padding that none of its images needs."""
        return pixels

    def resize(self, image: Image.Image) -> Image.Image:
        """The image resized and cropped to (size, size)."""
        side = self.size
        if image.size == (side, side):
            return image
        size, (x, y) = self.placement(*image.size)
        image = image.resize(size, RESAMPLING[self.interpolation])
        return image if size == (side, side) else image.crop((x, y, x + side, y + side))

    def placement(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image is resized to, width and height, and the left upper corner of the square
        cut out of that.
        """
        side = self.size
        if self.resize_mode == "squash":
            return (side, side), (0, 0)
        if width <= height:
            height = int(side * height / width)
            width = side
        else:
            width = int(side * width / height)
            height = side
        margin_x = (width - side) / 2
        margin_y = (height - side) / 2
        corner = (
            (round(margin_x), round(margin_y))
            if self.crop == "round"
            else (int(margin_x), int(margin_y))
        )
        return (width, height), corner


@dataclass(frozen=True)
class Patches(Preprocessing):
    """Resize an image in its proportions to at most a number of patches (NaFlex, as SigLIP2's
    processor does).

    That number is the first of `max_num_patches` that is as large as the image itself, else the
    last, P. The image is (1, 1 + P, D): a row that begins with h and w, its h w patches, zeros.
    """

    interpolation: str = "bilinear"
    resize_mode: str = "naflex"
    patch_size: int = 16
    max_num_patches: tuple[int, ...] = (256,)

    def to_config(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_config().items() if key != "size"}

    def __call__(self, image: Image.Image) -> np.ndarray:
        values = super().__call__(image)
        side = self.patch_size
        height, width = (length // side for length in values.shape[1:])
        patches = values.reshape(3, height, side, width, side).transpose(1, 3, 2, 4, 0)
        return self.packed(patches.reshape(height * width, -1), height, width)

    def budget(self, image: Image.Image) -> int:
        """How many patches an image gets at most."""
        count = (image.width // self.patch_size) * (image.height // self.patch_size)
        return next(
            (limit for limit in self.max_num_patches if count <= limit), self.max_num_patches[-1]
        )

    def packed(self, patches: np.ndarray, height: int, width: int) -> np.ndarray:
        """(1, 1 + P, D) of an image's patches (height * width, D)."""
        rows = np.zeros((1, 1 + self.max_num_patches[-1], patches.shape[1]), np.float32)
        rows[0, 0, :2] = (height, width)
        rows[0, 1 : 1 + len(patches)] = patches
        return rows

    def resize(self, image: Image.Image) -> Image.Image:
        """The image resized to whole patches, as many as its budget allows, by the search of
        SigLIP2's processor.
        """
        side = self.patch_size
        budget = self.budget(image)
        low = 1e-6
        high = 100.0

        def patches(scale: float) -> list[int]:
            return [max(1, math.ceil(length * scale / side)) for length in image.size]

        while high - low >= 1e-5:
            middle = (low + high) / 2
            low, high = (middle, high) if math.prod(patches(middle)) <= budget else (low, middle)
        width, height = patches(low)
        return image.resize((width * side, height * side), RESAMPLING[self.interpolation])

    def shortened(self, pixels: Any) -> Any:
        largest = int(pixels[:, 0, 0, :2].prod(1).max())
        return pixels[:, :, : 1 + min(limit for limit in self.max_num_patches if largest <= limit)]


def read_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """What wrote `config` by `to_config`. Raises ValueError, with the key, for other values."""
    if config.get("resize_mode") != "naflex":
        return Preprocessing.from_config(config)
    same = Preprocessing.from_config({**config, "resize_mode": None})
    side = _side(config.get("patch_size"))
    numbers = config.get("max_num_patches")
    budgets = tuple(
        _side(count)
        for count in (numbers if isinstance(numbers, list | tuple) and numbers else [numbers])
    )
    if max(budgets) * side**2 > MAX_SIDE**2:
        raise ValueError(
            Message("max_num_patches allows images of more than {:,} pixels", MAX_SIDE**2)
        )
    return Patches(
        same.size, same.mean, same.std, same.interpolation, patch_size=side, max_num_patches=budgets
    )


def _side(size: Any) -> int:
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if not sides or any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(
            Message("size must be an integer from 1 to {:,} (got {!r:.60})", MAX_SIDE, size)
        )
    if len(set(sides)) > 1:
        raise ValueError(Message("size {} is not supported: images must be square", tuple(size)))
    return int(sides[0])


def _levels(key: str, values: Any, least: float) -> tuple[float, float, float]:
    """Three numbers from `least` up to _MAX_LEVEL."""
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) != 3 or not all(
        type(value) in (int, float) and least <= value <= _MAX_LEVEL for value in numbers
    ):
        raise ValueError(
            Message(
                "{} must be three numbers from {:g} to {:g} (got {!r:.60})",
                key,
                least,
                _MAX_LEVEL,
                values,
            )
        )
    return (numbers[0], numbers[1], numbers[2])


# Widths and heights of images that show how a library resizes and crops: wide, high, square, and
# just too small.
_SIZES = ((301, 200), (97, 333), (256, 256), (63, 64))
_TOLERANCE = 1e-4  # of the values; the smallest step, one of 255 levels, is over 0.003
_OTHER = Message(
    "use a model that resizes images to a square, or by the shorter side with a centre crop"
)


def matching_preprocessing(
    name: str, library: Callable[[Image.Image], np.ndarray], config: Any
) -> Preprocessing:
    """The Preprocessing whose values are those of a `library`'s preprocessing on images of several
    sizes.

    `config` is what describes it: transformers' image processor, or open_clip's `preprocess_cfg`.
    Raises DcclipError if no Preprocessing does the same.
    """
    try:
        if isinstance(config, Mapping):
            settings = dict(config)
        else:
            side = _only_side(config.size)
            crops = bool(getattr(config, "do_center_crop", False))
            if crops and (cropped := _only_side(config.crop_size)) != side:
                raise ValueError(Message("it resizes to {} and crops to {}", side, cropped))
            # CLIP resizes the shorter side; a size of two sides, as MetaCLIP 2 has it, leaves
            # nothing to be cropped.
            crops = crops and (
                isinstance(config.size, int) or bool(dict(config.size).get("shortest_edge"))
            )
            names = {int(number): name for name, number in RESAMPLING.items()}
            mean, std = (
                (config.image_mean, config.image_std)
                if config.do_normalize
                else ([0.0] * 3, [1.0] * 3)
            )
            settings = {"size": side, "mean": tuple(mean), "std": tuple(std)}
            settings["interpolation"] = names.get(int(config.resample), str(config.resample))
            settings |= {
                "resize_mode": "shortest" if crops else "squash",
                "crop": "floor" if crops else "round",
            }
        described = read_preprocessing(settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise DcclipError("{}: unsupported preprocessing: {}", _OTHER, name, error) from None
    random = np.random.default_rng(0)
    side = described.size
    sizes = (
        *_SIZES,
        (side + 3, side),
        (side, side + 3),
    )  # half of 3: 2 for torchvision, 1 for transformers
    images = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in sizes
    ]
    expected = [library(image) for image in images]
    for candidate in (
        described,
        replace(described, crop="floor" if described.crop == "round" else "round"),
    ):
        pairs = [(candidate(image), values) for image, values in zip(images, expected, strict=True)]
        if all(
            actual.shape == target.shape and np.abs(actual - target).max() < _TOLERANCE
            for actual, target in pairs
        ):
            return candidate
    message = Message("{}: unsupported preprocessing: its output does not match its settings", name)
    raise DcclipError(message, _OTHER)


def _only_side(size: Mapping[str, int] | int) -> int:
    values = (
        {size} if isinstance(size, int) else {int(value) for value in dict(size).values() if value}
    )
    if len(values) != 1:
        raise ValueError(Message("its images are not square: {}", size))
    return values.pop()
