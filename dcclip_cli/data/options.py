"""Options of the training data: where it comes from, and which captions a step uses."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.options import Options

COLLECTED = "collect"  # `train: collect` means the output of the recipe's own collect stage


class DataOptions(Options):
    """Where training data comes from. Pairs: a Parquet or tar file, a folder of tar shards, or `collect`."""

    train: str | None = Field(
        None,
        description="Image-text pairs to train on; `collect`: the output of this recipe's collect stage. "
        "Required by align",
    )
    validation: str | None = Field(
        None,
        description="Image-text pairs for validation during training and for checking an export "
        "(an export falls back to the training pairs)",
    )
    images: str | None = Field(
        None,
        description="Images without captions, for distilling the image tower: a folder, a Parquet file or a tar file",
    )
    texts: str | None = Field(
        None,
        description="Texts without images, for distilling the text tower: .txt, .tsv, .csv or .jsonl, or pairs",
    )
    phrases: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="Number of phrases to add to data.texts, each made of two or three of its short texts, so that "
        "the text tower learns to read combinations that the data does not contain",
    )

    @model_validator(mode="after")
    def _some_data(self) -> Self:
        if not (self.train or self.images or self.texts):
            raise ValueError("name what to train on: train, images or texts")
        return self

    @model_validator(mode="after")
    def _texts_to_make_phrases_of(self) -> Self:
        if self.phrases and not self.texts:
            raise ValueError("phrases are made of texts: set texts as well")
        return self


class CaptionOptions(Options):
    """Which of a pair's captions a step uses."""

    renamed = {"also_other": "second_caption", "share": "caption_fraction"}

    languages: tuple[Language, ...] = Field(LANGUAGES, description="Caption languages to train on")
    first: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability of choosing a pair's first caption; the other captions share the rest equally",
    )
    second_caption: bool = Field(
        False,
        description="Always use the first caption, and one of the other captions as a second positive",
    )
    caption_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of each batch whose captions are used: text is learnt sooner than images",
    )
