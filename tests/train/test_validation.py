"""Zero-shot validation: top-1 of each language, on images of known embeddings."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Tokens
from dcclip_cli.train import validation
from dcclip_cli.train.validation import open_validation


class Colours(nn.Module):
    """Towers whose image embedding is the mean colour, and whose text embedding is that of the word in it."""

    name = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.images = 0

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32).transpose(2, 0, 1) / 255

    def tokenize(self, texts: list[str]) -> Tokens:
        words = {"红": 0, "red": 0, "绿": 1, "green": 1}
        ids = torch.tensor([[words[text]] for text in texts])
        return Tokens(ids, torch.ones_like(ids))

    def image_features(self, pixels: torch.Tensor) -> ImageFeatures:
        self.images += len(pixels)
        return ImageFeatures(pixels.mean((2, 3)), pixels)

    def text_features(self, tokens: Tokens) -> TextFeatures:
        embedding = torch.eye(3)[tokens.ids[:, 0]]
        return TextFeatures(embedding, embedding[:, None], tokens.mask)


TOP1 = {"top1_zh": 1.0, "top1_en": 0.75}


def coloured(folder: Path, *pairs: Pair) -> DataOptions:
    """Pairs of which one is wrong in English, and further ones, as the data of a validation with the result TOP1."""

    def image(colour: str) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), colour).save(stream, "PNG")
        return stream.getvalue()

    coloured_pairs = [
        Pair("a", image("red"), ("红",), ("red",)),
        Pair("b", image("#00ff00"), ("绿",), ("green",)),
        Pair("c", image("red"), ("红",), ("green",)),  # wrong in English
        Pair("d", image("#00ff00"), ("绿",), ("green",)),
        Pair("e", image("red"), ("红",), ()),  # counts in Chinese alone
    ]
    write_parquet(folder / "pairs.parquet", [*coloured_pairs, *pairs])
    return DataOptions(train="x", validation=str(folder / "pairs.parquet"))


@pytest.mark.parametrize(("rows", "workers"), [(1, 0), (2, 2), (64, 1)])
def test_top_1_of_each_language_whatever_is_computed_at_once(
    rows: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_ROWS", rows)
    towers: Any = Colours().train()
    assert open_validation(coloured(tmp_path), ("zh", "en"), workers)(towers) == TOP1
    assert towers.training
