"""Image processors of transformers and transforms of open_clip as a Preprocessing, after a trial on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.preprocess import RESAMPLING, Preprocessing

# Widths and heights of images that show how a library resizes and crops: wide, high, square, and just too small.
_SIZES = ((301, 200), (97, 333), (256, 256), (63, 64))
_TOLERANCE = 1e-4  # of the values; the smallest step, one of 255 levels, is over 0.003
_OTHER = Message("use a model whose images are resized to a square, or by the shorter side with a centre crop")


def matching_preprocessing(name: str, own: Callable[[Image.Image], np.ndarray], config: Any) -> Preprocessing:
    """The Preprocessing whose values are those of `own`, a library's preprocessing, on images of several sizes.

    `config` is what describes it: transformers' image processor, or open_clip's `preprocess_cfg`. Raises DcclipError if
    no Preprocessing does the same.
    """
    try:
        described = config if isinstance(config, Mapping) else _of_processor(config)
        wanted = Preprocessing.from_config(dict(described))
    except (ValueError, TypeError, AttributeError) as error:
        raise DcclipError(
            Message("{name}: its preprocessing is not supported: {error}", name=name, error=error), _OTHER
        ) from None
    images = list(_trial_images(wanted.size))
    expected = [own(image) for image in images]
    for found in (wanted, replace(wanted, crop="floor" if wanted.crop == "round" else "round")):
        if all(_equal(found(image), values) for image, values in zip(images, expected, strict=True)):
            return found
    raise DcclipError(
        Message("{name}: its preprocessing is not supported: it gives other values than its settings say", name=name),
        _OTHER,
    )


def _trial_images(side: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    margins = ((side + 3, side), (side, side + 3))  # half of 3 is rounded to 2 by torchvision, to 1 by transformers
    sizes = (*_SIZES, *margins)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < _TOLERANCE)


def _of_processor(processor: Any) -> dict[str, Any]:
    """The settings of a transformers image processor in the terms of open_clip's `preprocess_cfg`."""
    side = _side(processor.size)
    crops = bool(getattr(processor, "do_center_crop", False))
    if crops and (cropped := _side(processor.crop_size)) != side:
        raise ValueError(Message("it crops {side} to {cropped}", side=side, cropped=cropped))
    # CLIP resizes the shorter side; a size of two sides, as MetaCLIP 2 has it, leaves nothing to be cropped.
    crops = crops and (isinstance(processor.size, int) or bool(dict(processor.size).get("shortest_edge")))
    names = {int(number): name for name, number in RESAMPLING.items()}
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return {
        "size": side,
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": names.get(int(processor.resample), str(processor.resample)),
        "resize_mode": "shortest" if crops else "squash",
        "crop": "floor" if crops else "round",
    }


def _side(size: Mapping[str, int] | int) -> int:
    values = {size} if isinstance(size, int) else {int(value) for value in dict(size).values() if value}
    if len(values) != 1:
        raise ValueError(Message("its images are not square: {size}", size=size))
    return values.pop()
