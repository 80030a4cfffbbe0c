"""A collator with a tiny preprocessing and tokenizer."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.model.towers import Tokens


def count_characters(texts: list[str]) -> Tokens:
    lengths = torch.tensor([[len(text)] for text in texts])
    return Tokens(lengths, torch.ones_like(lengths))


def to_side_8(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)


def collate(dataset: PairDataset, captions: dict[str, Any] | None = None, **changes: Any) -> Collator:
    """A collator of a dataset: images of 8 by 8, one token per text, its length."""
    options = CaptionOptions.model_validate(captions or {})
    return replace(Collator(dataset, 0, Augment(), options, to_side_8, count_characters), **changes)
