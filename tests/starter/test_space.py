"""Target embeddings of classes and words in the starter's space are as intended and reproducible."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, normalize

sys.path.append(str(Path(__file__).parent.parent.parent / "recipes/starter"))
space = importlib.import_module("space")

# Six classes: 0 and 1 of one kind, 2 to 5 of another, all of them things.
UNDER = {
    "thing": frozenset(range(6)),
    "bird": frozenset({0, 1}),
    "tool": frozenset({2, 3, 4, 5}),
    **{f"class {number}": frozenset({number}) for number in range(6)},
}


@pytest.fixture(scope="module")
def places() -> Tensor:
    return space.places(space.kinship(UNDER, classes=6))


def test_kinship_is_larger_the_fewer_classes_the_common_kind_has() -> None:
    wanted = space.kinship(UNDER, classes=6)
    assert wanted[0, 0] == 1
    assert wanted[0, 1].item() == pytest.approx(0.3 * (1 - 0.6931 / 1.7918), abs=1e-4)  # 1 - log 2 / log 6
    assert wanted[2, 5].item() == pytest.approx(0.3 * (1 - 1.3863 / 1.7918), abs=1e-4)  # 1 - log 4 / log 6
    assert wanted[0, 5] == 0


def test_places_have_the_wanted_cosines(places: Tensor) -> None:
    assert torch.allclose(places @ places.T, space.kinship(UNDER, classes=6), atol=0.01)


def test_a_word_is_nearer_to_each_of_its_classes_than_to_any_other(places: Tensor) -> None:
    images = space.in_space(places)
    for classes in UNDER.values():
        cosines = images @ space.place_of(classes, places)
        others = [cosines[number] for number in range(6) if number not in classes]
        assert all(cosines[number] > max(others, default=-1) for number in classes)


def test_the_head_maps_a_clear_image_to_its_class_and_an_unclear_one_to_unknown(places: Tensor) -> None:
    head = space.head(torch.eye(6), torch.zeros(6), places)

    def seen(logits: Tensor) -> Tensor:
        hidden = gelu(head["head.mlp.fc1.weight"] @ logits + head["head.mlp.fc1.bias"])
        return normalize(head["head.mlp.fc2.weight"] @ hidden + head["head.mlp.fc2.bias"], dim=0)

    clear, unclear = torch.zeros(6), torch.zeros(6)
    clear[3] = space.THRESHOLD + 4
    expected = normalize(4 * space.in_space(places)[3] + space.unknown(), dim=0)  # DOUBT is 1
    assert torch.allclose(seen(clear), expected, atol=1e-2)
    assert torch.allclose(seen(unclear), space.unknown(), atol=1e-2)
