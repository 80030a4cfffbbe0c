"""The starter model's embedding space: ImageNet class embeddings and the image tower's projection
head.

A linear classifier's weights are a poor space for words such as "dog": on a photograph of one
breed the logits of the others are as low as those of cars, so a mean of weights says little. Its
logits, cut off below THRESHOLD, are few and say which classes a picture could be of; a word's
place is the mean of the places of its classes. So the head has two layers: the classifier, GELU,
then each class's place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

WIDTH = 512  # open_clip's hidden layer has twice this: a unit for each class, and some to spare
# dimensions that places take up: the more, the less do those of different classes have in common
USED = 448
UNKNOWN = USED  # the dimension that stands for what the model doesn't know
FOREIGN = USED + 1  # the dimension of words that it doesn't know, at right angles to every image
# The classifier's logit for the right class is about 8.5, the hundredth largest of a thousand
# about 2.
THRESHOLD = 4.0
# length along UNKNOWN, as a logit above the threshold: a picture without clear logits is mostly
# unknown
DOUBT = 1.0
KINSHIP = 0.3  # of two classes that share all but the last step in WordNet
SCENE_SLOPE, SCENE_THRESHOLD = (
    0.6,
    0.0,
)  # of a scene: a unit of its mean weight is shorter than a class's
# as a share of the mean second moment: how little words follow directions that few classes take
RIDGE = 0.3


class Linear(NamedTuple):
    """A linear layer."""

    weight: Tensor
    bias: Tensor


def kinship(under: dict[str, frozenset[int]], classes: int = 1000) -> Tensor:
    """(C, C) wanted cosines: 1 on the diagonal, else KINSHIP times the information content of the
    closest common kind.

    Information content, 1 - log n / log C, of the smallest kind with n classes that has both:
    Resnik's similarity (IJCAI 1995) with classes for counts.
    """
    smallest = torch.full((classes, classes), float(classes))
    for members in under.values():
        rows = torch.tensor(sorted(members))
        block = rows[:, None], rows[None]
        smallest[block] = smallest[block].clamp(max=len(members))
    wanted = KINSHIP * (1 - smallest.log() / math.log(classes))
    return wanted.fill_diagonal_(1.0)


def places(wanted: Tensor, steps: int = 150) -> Tensor:
    """(C, USED) vectors of length 1 whose cosines come near to the wanted ones, large misses
    counting most.

    From a random start, not from eigenvectors, whose signs and order are the linear algebra
    library's choice.
    """
    start = torch.randn(len(wanted), USED, generator=torch.Generator().manual_seed(0))
    free = normalize(start, dim=-1).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.01)
    for _ in range(steps):
        unit = normalize(free, dim=-1)
        miss = unit @ unit.T - wanted
        loss = (miss.square().sum() + 10 * miss.square().square().sum()) / len(wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return normalize(free.detach(), dim=-1)


def directions(pictures: Tensor, all_places: Tensor) -> Tensor:
    """(N, WIDTH) directions that words for pictures at (N, USED) take, of length 1.

    Not the pictures' own: kin lie near each other, so what kin have in common would count for all
    of them, and an image of a cat come near to "dog". Ridge regression tells each from the rest:
    the places' second moments, inverted.
    """
    moments = all_places.T @ all_places / len(all_places)
    ridge = RIDGE * moments.trace() / USED * torch.eye(USED)
    solved = torch.linalg.solve(moments + ridge, pictures.T).T
    return in_space(normalize(solved, dim=-1))


def place_of(classes: frozenset[int], all_places: Tensor) -> Tensor:
    """(WIDTH,) the place of a word that holds for these classes."""
    return directions(all_places[sorted(classes)].mean(0, keepdim=True), all_places)[0]


def with_scenes(weight: Tensor, bias: Tensor, scenes: Sequence[Sequence[int]]) -> Linear:
    """The classifier with a row more for each scene: how far the logits of its classes are above
    those of all.

    No single one is high: on most photographs of people, that of "suit" is lower than half the
    threshold, but with those of forty other clothes it tells three quarters of pairs of
    photographs apart.
    """
    rows = torch.stack([weight[list(one)].mean(0) - weight.mean(0) for one in scenes])
    slopes = SCENE_SLOPE / rows.norm(dim=1)
    offsets = torch.stack([bias[list(one)].mean() - bias.mean() for one in scenes])
    more = slopes * offsets - SCENE_THRESHOLD + THRESHOLD
    return Linear(torch.cat([weight, slopes[:, None] * rows]), torch.cat([bias, more]))


def in_space(vectors: Tensor) -> Tensor:
    """(N, USED) vectors as (N, WIDTH) ones of the whole space."""
    return torch.nn.functional.pad(vectors, (0, WIDTH - USED))


def unknown() -> Tensor:
    """(WIDTH,) the place of words that no class has anything to do with."""
    return torch.nn.functional.one_hot(torch.tensor(UNKNOWN), WIDTH).float()


def foreign() -> Tensor:
    """(WIDTH,) the place of words that the model doesn't know."""
    return torch.nn.functional.one_hot(torch.tensor(FOREIGN), WIDTH).float()


def head(weight: Tensor, bias: Tensor, all_places: Tensor) -> dict[str, Tensor]:
    """The weights of open_clip's `mlp` head from a classifier's (C, F) weight and (C,) bias."""
    classes, features = weight.shape
    first, first_bias = torch.zeros(2 * WIDTH, features), torch.zeros(2 * WIDTH)
    first[:classes], first_bias[:classes] = weight, bias - THRESHOLD
    second, second_bias = torch.zeros(WIDTH, 2 * WIDTH), torch.zeros(WIDTH)
    second[: all_places.shape[1], :classes] = all_places.T
    second_bias[UNKNOWN] = DOUBT
    return {
        "head.mlp.fc1.weight": first,
        "head.mlp.fc1.bias": first_bias,
        "head.mlp.fc2.weight": second,
        "head.mlp.fc2.bias": second_bias,
    }
