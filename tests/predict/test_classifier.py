"""Class names become vectors."""

from collections.abc import Sequence

import numpy as np
import pytest

from dcclip_cli.predict.zero_shot import class_embeddings, fill, language_of


class Words:
    """An encoder that knows three texts."""

    known = {"猫": (1.0, 0.0), "一只猫": (0.0, 1.0), "dog": (0.6, 0.8)}

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray([self.known[text] for text in texts], np.float32)


@pytest.mark.parametrize(
    ("text", "language"),
    [("猫", "zh"), ("T恤", "zh"), ("𠮷野家", "zh"), ("dog", "en"), ("ねこ", "en"), ("é，。", "en")],
)
def test_a_chinese_character_makes_a_text_chinese(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_name_is_put_in_as_it_is_braces_and_all() -> None:
    assert fill(["一张{}的照片", "{}"], "{0}猫") == ["一张{0}猫的照片", "{0}猫"]


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_a_class_is_the_mean_of_its_texts_with_length_one(batch_size: int) -> None:
    embeddings = class_embeddings(Words(), [["一只猫", "猫"], ["dog"]], batch_size)  # type: ignore[arg-type]
    half = 0.5**0.5  # (1, 0) and (0, 1) have the mean (0.5, 0.5)
    np.testing.assert_allclose(embeddings, [[half, half], [0.6, 0.8]], rtol=1e-6)
