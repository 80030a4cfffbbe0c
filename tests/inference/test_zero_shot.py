"""Class embeddings and label probabilities, computed by hand on two-dimensional models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dcclip_cli.inference.zero_shot import Labels, class_means, fill
from dcclip_cli.model.precision import NotFiniteError

EAST = (1.0, 0.0)
NORTH = (0.0, 1.0)


class Compass:
    """A model whose texts point east, or north where they are in `north`; `asked` are the texts it got."""

    prompts = {"en": ["a {}"], "zh": ["一只{}"]}
    logit_scale = 2.0
    logit_bias = None
    known = None

    def __init__(self, north: Sequence[str] = (), bias: float | None = None) -> None:
        self.asked: list[str] = []
        self._north = north
        self.logit_bias = bias

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.asarray([NORTH if text in self._north else EAST for text in texts], np.float32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"一只猫", "a dog"}),
        ({"templates": ["{}的照片", "photo: {}", "{}，图"]}, {"猫的照片", "猫，图", "photo: dog"}),
        ({"templates": ["{}的照片"]}, {"猫的照片", "dog的照片"}),  # all of one script: used for every label
        ({"templates": ["photo: {}"]}, {"photo: 猫", "photo: dog"}),
        ({"templates": []}, {"猫", "dog"}),
    ],
)
def test_each_label_is_put_into_the_templates_of_its_own_script(options: Any, expected: set[str]) -> None:
    model = Compass()
    Labels(model, ["猫", "dog"], **options)  # type: ignore[arg-type]
    assert set(model.asked) == expected


def test_the_embeddings_of_several_templates_are_averaged() -> None:
    model = Compass(north=["cat two"])
    labels = Labels(model, ["cat", "dog"], templates=["{} one", "{} two"])  # type: ignore[arg-type]
    # cat is half way between, at 45 degrees; an image in the north is sqrt(0.5) from it and 0 from dog
    logits = np.exp([2 * 0.5**0.5, 0.0])
    [probabilities] = labels.probabilities(np.asarray([NORTH], np.float32))
    np.testing.assert_allclose(probabilities, logits / logits.sum(), rtol=1e-6)


def test_multi_label_uses_the_models_own_bias() -> None:
    labels = Labels(Compass(["a dog"], bias=-1.0), ["猫", "dog"], multi_label=True)  # type: ignore[arg-type]
    [probabilities] = labels.probabilities(np.asarray([EAST], np.float32))
    np.testing.assert_allclose(probabilities, [1 / (1 + np.exp(-(2 - 1))), 1 / (1 + np.exp(1))], rtol=1e-6)


def test_labels_with_the_embedding_of_something_are_as_others_in_a_model_that_does_not_know_its_words() -> None:
    """Texts of other CLIPs are all similar. tests/cli/test_embeddings.py has the starter, which knows them."""
    labels = Labels(Compass(["一只狗"]), ["狗", "猫", "other"], multi_label=True)  # type: ignore[arg-type]
    expected = [1 / (1 + np.exp(-2.0)), 0.5, 0.5]  # of an image in the north, where the dog is
    np.testing.assert_allclose(labels.probabilities(np.asarray([NORTH], np.float32)), [expected], rtol=1e-6)


def test_a_name_is_put_in_as_it_is_braces_and_all() -> None:
    assert fill(["一张{}的照片", "{}"], "{0}猫") == ["一张{0}猫的照片", "{0}猫"]


def test_prompts_whose_embeddings_add_up_to_nothing_are_an_error_and_no_probability() -> None:
    rows = np.asarray([EAST, NORTH, (0.6, 0.8), (-0.6, -0.8)], np.float32)  # the second class's cancel out
    with pytest.raises(NotFiniteError, match="the prompt embeddings of 1 of 2 classes add up to 0") as raised:
        class_means(rows, [2, 2])
    assert "templates" in raised.value.hint
