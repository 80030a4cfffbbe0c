"""Options of the training data: where it comes from, which captions a step uses, and image
augmentation.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field, field_validator, model_validator

from dcclip_cli.core.errors import Message
from dcclip_cli.core.options import Neutral, Options
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.shards import Columns
from dcclip_cli.model.preprocess import flatten

Source = str | Annotated[tuple[str, ...], Field(min_length=1)]
Zoom = Annotated[float, Field(ge=0.05, le=20)]
COLLECTED = "collect"  # `train: collect` means the output of the recipe's own collect stage


class DataOptions(Options):
    """Where training data comes from. Pairs: tars or Parquet files, a folder or a glob of them, or
    `collect`.
    """

    train: Source | None = Field(
        None,
        description="Image-text pairs: a tar or Parquet file, a folder or a glob of them, or a "
        "list of these; or "
        "`collect`: the output of this recipe's collect stage. Required by align",
    )
    validation: str | None = Field(
        None,
        description="Image-text pairs for validation and for checking an export; export falls back to "
        "data.train, then to data.images and data.texts",
    )
    hold_out: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Number of samples of data.train, else of data.images, evenly spaced, to use "
        "for validation "
        "instead of training",
    )
    images: str | None = Field(
        None,
        description="Images without captions, to distill the image tower: a folder, a Parquet "
        "file or a tar file",
    )
    texts: str | None = Field(
        None,
        description="Texts without images, to distill the text tower: .txt, .tsv, .csv or "
        ".jsonl, or pairs",
    )
    columns: Columns = Field(
        Columns(),
        description="Column names of Parquet files, or field names in tars' JSON, from other programs",
    )
    phrases: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Number of phrases added to data.texts, each built from two or three of its "
        "short texts: the "
        "text tower learns combinations that the data does not contain",
    )
    cache_gb: Neutral[float] = Field(
        50.0,
        gt=0,
        le=1_000_000,
        description="Maximum size, in GB, of each of two folders in the cache: shards that are "
        "downloaded from URLs, "
        "and unpacked images of Parquet files; the data must fit",
    )

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 1e9)

    def after_collect(self, folder: Path) -> Self:
        """With the folder that collect wrote in place of `collect`."""
        return self.model_copy(update={"train": str(folder)}) if self.train == COLLECTED else self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.train or self.images or self.texts):
            raise ValueError(Message("set at least one of train, images and texts"))
        if self.hold_out and (self.validation or not (self.train or self.images)):
            raise ValueError(
                Message("hold_out takes samples from train or images: remove it or validation")
            )
        if self.phrases and not self.texts:
            raise ValueError(Message("phrases are built from texts: set texts too"))
        return self


class CaptionOptions(Options):
    """Which of a pair's captions a step uses."""

    languages: tuple[Language, ...] = Field(LANGUAGES, description="Caption languages to train on")
    first: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability of the first caption; others share the rest equally",
    )
    second_caption: bool = Field(
        False,
        description="Always use the first caption, and one of the other captions as a second positive",
    )
    caption_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of a batch's pairs whose captions are used: text is learned faster "
        "than images",
    )


class Augment(Options):
    """Random image augmentations. The default only puts transparent images on white."""

    background: Literal["white", "random"] = Field(
        "white", description="Background of transparent images"
    )
    crop: float = Field(
        1.0, gt=0, le=1, description="Minimum fraction of the area that a random crop keeps"
    )
    scale: tuple[Zoom, Zoom] = Field(
        (1.0, 1.0), description="Range of the zoom factor; below 1, the background shows"
    )
    rotate: float = Field(
        0.0, ge=0, le=180, description="Maximum rotation in either direction, in degrees"
    )
    translate: float = Field(
        0.0, ge=0, le=1, description="Maximum shift in any direction, as a fraction of the side"
    )
    colour: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Maximum relative change of brightness, contrast and saturation",
    )
    blur: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Maximum radius, in pixels, of a Gaussian blur on half of the images",
    )
    grey: float = Field(0.0, ge=0, le=1, description="Probability of converting an image to grey")
    flip: bool = Field(
        False,
        description="Mirror half of the images: harms align if captions mention left or right",
    )

    @field_validator("scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(
                Message(
                    "the range starts at {:g} and ends at {:g}: put the smaller number first",
                    scale[0],
                    scale[1],
                )
            )
        return scale

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """The augmented image, RGB. Draws the same number of random numbers for every image."""
        draws = random.random(17).tolist()
        corner = tuple(int(value * 256) for value in draws[:3])
        fill = corner if self.background == "random" and draws[3] < 0.75 else (255, 255, 255)
        image = flatten(image, fill)  # type: ignore[arg-type]
        if self.crop < 1:
            side = math.sqrt(self.crop + (1 - self.crop) * draws[4])
            width = max(1, round(image.width * side))
            height = max(1, round(image.height * side))
            column = round((image.width - width) * draws[5])
            row = round((image.height - height) * draws[6])
            image = image.crop((column, row, column + width, row + height))
        if self.scale != (1.0, 1.0) or self.rotate or self.translate:
            low, high = self.scale
            zoom = low * (high / low) ** draws[7]
            angle = math.radians(self.rotate) * (2 * draws[8] - 1)
            cos = math.cos(angle) / zoom
            sin = math.sin(angle) / zoom
            x = image.width / 2
            y = image.height / 2
            shift_x = x + self.translate * (2 * draws[9] - 1) * image.width
            shift_y = y + self.translate * (2 * draws[10] - 1) * image.height
            # PIL takes the map from output to input: rotate and zoom about the shifted centre,
            # then back to the centre.
            matrix = (
                cos,
                sin,
                x - cos * shift_x - sin * shift_y,
                -sin,
                cos,
                y + sin * shift_x - cos * shift_y,
            )
            affine = Image.Transform.AFFINE
            bilinear = Image.Resampling.BILINEAR
            image = image.transform(image.size, affine, matrix, bilinear, fillcolor=fill)
        if self.colour:
            enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for enhancer, draw in zip(enhancers, draws[11:14], strict=True):
                image = enhancer(image).enhance(1 + self.colour * (2 * draw - 1))
        if self.blur and draws[14] < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(draws[14] * 2 * self.blur))
        if draws[15] < self.grey:
            image = ImageOps.grayscale(image).convert("RGB")
        return ImageOps.mirror(image) if self.flip and draws[16] < 0.5 else image
