"""Losses on feature maps and token features, against values computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcclip_cli.model.towers import ImageFeatures
from dcclip_cli.train.losses.base import Outputs, Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, resample_tokens, to_grid
from tests.train.losses.outputs import outputs, text, value

pytestmark = pytest.mark.any_cpu
AGREED = ([[[0.0], [0.0], [0.0]]], [3])


def identity_map(channels: int) -> dict[str, nn.Module]:
    adapter = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(adapter.weight)
    nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]
    return {"image_map": adapter}


@pytest.mark.parametrize(
    ("standardize", "student", "teacher", "expected"),
    [
        # below 1 half the square, above 1 the difference minus a half: (0.125 + 2.5) / 2
        (False, torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.5, 3.0]]]]), 1.3125),
        # on the student's grid: quarters have the means 2.5, 4.5, 10.5, 12.5
        (False, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]), torch.arange(16.0).reshape(1, 1, 4, 4), 0.0),
        # over the teacher's channels: mean 12, deviation 2
        (True, torch.tensor([-1.0, -1, 1, 1]).view(1, 4, 1, 1), torch.tensor([10.0, 10, 14, 14]).view(1, 4, 1, 1), 0.0),
    ],
)
def test_feature_map_is_smooth_l1_of_the_adapted_map(
    standardize: bool, student: torch.Tensor, teacher: torch.Tensor, expected: float
) -> None:
    result = value(
        FeatureMapLoss(standardize=standardize),
        outputs(image_map=student),
        outputs(image_map=teacher),
        identity_map(student.shape[1]),
    )
    assert result == pytest.approx(expected, abs=1e-10)


def test_feature_map_brings_a_narrow_student_to_the_teachers_width() -> None:
    torch.manual_seed(0)
    adapters = dict(FeatureMapLoss().adapters(Widths(2, 3, 1), Widths(2, 8, 1)))
    weight, bias = (parameter.detach().numpy() for parameter in adapters["image_map"].parameters())
    student = torch.randn(2, 3, 2, 2)
    teacher = torch.randn(2, 8, 4, 4)
    adapted = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy())
    adapted = adapted + bias[None, :, None, None]
    target = teacher.numpy().reshape(2, 8, 2, 2, 2, 2).mean((3, 5))
    target = (target - target.mean(1, keepdims=True)) / np.sqrt(target.var(1, keepdims=True) + 1e-5)
    difference = np.abs(adapted - target)
    expected = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    result = value(FeatureMapLoss(), outputs(image_map=student), outputs(image_map=teacher), adapters)
    assert result == pytest.approx(expected, rel=1e-5)


def test_a_coarser_map_is_interpolated_and_a_finer_one_averaged() -> None:
    coarse = torch.tensor([[[[0.0, 4.0]]]])
    assert to_grid(coarse, 1, 4).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert to_grid(torch.tensor([[[[0.0, 1.0, 5.0, 6.0]]]]), 1, 2).flatten().tolist() == [0.5, 5.5]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        # of the real tokens only
        ({"zh": ([[[0.0], [0.0], [99.0]]], [2])}, {"zh": ([[[0.5], [3.0], [-99.0]]], [2])}, 1.3125),
        # averaged over the languages, not the tokens: one zh token is off by 1 -> 0.5, three en tokens agree -> 0
        ({"zh": ([[[0.0]]], [1]), "en": AGREED}, {"zh": ([[[1.0]]], [1]), "en": AGREED}, 0.25),
    ],
)
def test_token_features_is_smooth_l1_of_real_tokens(student: Any, teacher: Any, expected: float) -> None:
    built = [
        Outputs(
            outputs().image, {name: text(*row) for name, row in texts.items()}, dict.fromkeys(texts, torch.zeros(1))
        )
        for texts in (student, teacher)
    ]
    assert value(TokenFeaturesLoss(standardize=False), built[0], built[1], {"text_tokens": nn.Identity()}) == expected


def test_tokens_are_interpolated_to_the_students_count_and_stay_as_they_are_where_it_is_equal() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    tokens = text([[[0.0], [1.0], [2.0], [3.0], [4.0]], [[0.0], [1.0], [2.0], [-9.0], [-9.0]]], [5, 3])
    resampled = resample_tokens(tokens, mask)[..., 0].tolist()
    assert resampled[0] == [0.0, 2.0, 4.0, 4.0, 4.0]  # five to three; padding repeats the last
    assert resampled[1] == [0.0, 0.5, 1.0, 1.5, 2.0]  # three to five; -9 is padding and never read
    single = text([[[7.0], [0.0]]], [1])  # it stands for every place
    assert resample_tokens(single, torch.tensor([[1, 1, 1]])).flatten().tolist() == [7.0, 7.0, 7.0]
    same = text(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)), [4, 2, 1])
    assert torch.equal(resample_tokens(same, same.mask)[same.mask.bool()], same.tokens[same.mask.bool()])


def test_embedding_brings_a_student_of_another_width_to_the_teachers_by_a_linear_layer() -> None:
    adapters = dict(EmbeddingLoss().adapters(Widths(3, 1, 1), Widths(2, 1, 1)))
    assert set(adapters) == {"image_embedding", "text_embedding"}
    with torch.no_grad():
        for name, rows in (("image", [[1.0, 0, 0], [0, 1, 0]]), ("text", [[0.0, 0, 1], [0, 1, 0]])):
            [weight] = adapters[f"{name}_embedding"].parameters()
            weight.copy_(torch.tensor(rows))
    student = outputs(image=((4.0, 0.0, 9.0),), zh=((9.0, 0.0, 4.0),))
    assert value(EmbeddingLoss(), student, outputs(image=((1.0, 0.0),), zh=((1.0, 0.0),)), adapters) == pytest.approx(0)


def test_each_student_layer_learns_the_teachers_layer_at_its_place() -> None:
    loss = FeatureMapLoss(student_layers=(0, -1), teacher_layers=(3, -1), standardize=False)
    adapters = {"image_map_0_3": nn.Identity(), "image_map": nn.Identity()}

    def with_maps(last: float, other: dict[int, float]) -> Outputs:
        features = ImageFeatures(
            torch.ones(1, 2), torch.full((1, 1, 1, 1), last), {k: torch.full((1, 1, 2, 2), v) for k, v in other.items()}
        )
        return Outputs(features, {}, {})

    # layer 0 against 3 is off by 3: 2.5; the last ones by 1: 0.5
    result = loss(with_maps(0.0, {0: 1.0}), with_maps(1.0, {3: 4.0}), adapters)
    assert float(result) == pytest.approx((2.5 + 0.5) / 2)
