"""Losses against values worked out by hand, in numpy, and against open_clip where the formula is the same.

Letters as in dcclip_cli/train/losses.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from dcclip_cli.model.towers import ImageFeatures, TextFeatures
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.base import Outputs, TeacherLoss, Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss, InteractiveLoss, SimilarityLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, resample_tokens, to_grid

pytestmark = pytest.mark.any_cpu

NONE: dict[str, nn.Module] = {}
SAME = Widths(embedding=2, image_map=1, text_tokens=1)


def side(
    image: Any = ((1.0, 0.0),),
    zh: Any = None,
    en: Any = None,
    image_map: torch.Tensor | None = None,
    rows: dict[str, list[int]] | None = None,
) -> Outputs:
    """A side whose texts have these embeddings; by default text n belongs to image n."""
    image = torch.tensor(image)
    texts = {name: torch.tensor(value) for name, value in (("zh", zh), ("en", en)) if value is not None}
    rows = rows or {name: list(range(len(value))) for name, value in texts.items()}
    image_map = torch.zeros(len(image), 1, 1, 1) if image_map is None else image_map
    return Outputs(
        ImageFeatures(image, image_map),
        {name: text(value[:, None], [1] * len(value), value) for name, value in texts.items()},
        {name: torch.tensor(rows[name]) for name in texts},
    )


def text(tokens: Any, lengths: list[int], embedding: torch.Tensor | None = None) -> TextFeatures:
    tokens = torch.as_tensor(tokens)
    mask = (torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return TextFeatures(torch.zeros(len(tokens), 2) if embedding is None else embedding, tokens, mask)


def value(loss: TeacherLoss, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module] = NONE) -> float:
    return float(loss(student, teacher, adapters).detach())


def random_side(seed: int, count: int = 6, width: int = 5) -> Outputs:
    random = torch.Generator().manual_seed(seed)
    image, zh, en = (torch.randn(count, width, generator=random).tolist() for _ in range(3))
    return side(image, zh, en)


# ---- feature maps


def identity_map(channels: int) -> dict[str, nn.Module]:
    adapter = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(adapter.weight)
    nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]
    return {"image_map": adapter}


def test_feature_map_is_smooth_l1_of_the_adapted_map() -> None:
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.5, 3.0]]]])
    loss = FeatureMapLoss(standardize=False)
    # below 1 half the square, above 1 the difference minus a half: (0.125 + 2.5) / 2
    assert value(loss, side(image_map=student), side(image_map=teacher), identity_map(1)) == 1.3125


def test_feature_map_compares_on_the_students_grid() -> None:
    teacher = torch.arange(16.0).reshape(1, 1, 4, 4)  # quarters have the means 2.5, 4.5, 10.5, 12.5
    student = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    loss = FeatureMapLoss(standardize=False)
    assert value(loss, side(image_map=student), side(image_map=teacher), identity_map(1)) == 0.0


def test_feature_map_standardizes_the_teacher_over_its_channels() -> None:
    teacher = torch.tensor([10.0, 10.0, 14.0, 14.0]).reshape(1, 4, 1, 1)  # mean 12, deviation 2
    student = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 4, 1, 1)
    result = value(FeatureMapLoss(), side(image_map=student), side(image_map=teacher), identity_map(4))
    assert result == pytest.approx(0, abs=1e-10)


def test_feature_map_brings_a_narrow_student_to_the_teachers_width() -> None:
    torch.manual_seed(0)
    adapters = dict(FeatureMapLoss().adapters(Widths(2, 3, 1), Widths(2, 8, 1)))
    weight, bias = (parameter.detach().numpy() for parameter in adapters["image_map"].parameters())
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 8, 4, 4)
    adapted = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy())
    adapted = adapted + bias[None, :, None, None]
    target = teacher.numpy().reshape(2, 8, 2, 2, 2, 2).mean((3, 5))
    target = (target - target.mean(1, keepdims=True)) / np.sqrt(target.var(1, keepdims=True) + 1e-5)
    difference = np.abs(adapted - target)
    expected = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    result = value(FeatureMapLoss(), side(image_map=student), side(image_map=teacher), adapters)
    assert result == pytest.approx(expected, rel=1e-5)


def test_a_coarser_map_is_interpolated_and_a_finer_one_averaged() -> None:
    coarse = torch.tensor([[[[0.0, 4.0]]]])
    assert to_grid(coarse, 1, 4).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert to_grid(torch.tensor([[[[0.0, 1.0, 5.0, 6.0]]]]), 1, 2).flatten().tolist() == [0.5, 5.5]


# ---- token features


def test_token_features_is_smooth_l1_over_the_real_tokens_only() -> None:
    student = Outputs(side().image, {"zh": text([[[0.0], [0.0], [99.0]]], [2])}, {"zh": torch.tensor([0])})
    teacher = Outputs(side().image, {"zh": text([[[0.5], [3.0], [-99.0]]], [2])}, {"zh": torch.tensor([0])})
    adapters = {"text_tokens": nn.Identity()}
    assert value(TokenFeaturesLoss(standardize=False), student, teacher, adapters) == 1.3125


def test_token_features_averages_the_languages_not_the_tokens() -> None:
    # Chinese: one text of one token, off by 1 -> 0.5; English: three tokens that agree -> 0
    student = {"zh": text([[[0.0]]], [1]), "en": text([[[0.0], [0.0], [0.0]]], [3])}
    teacher = {"zh": text([[[1.0]]], [1]), "en": text([[[0.0], [0.0], [0.0]]], [3])}
    rows = {"zh": torch.tensor([0]), "en": torch.tensor([0])}
    adapters = {"text_tokens": nn.Identity()}
    loss = TokenFeaturesLoss(standardize=False)
    assert value(loss, Outputs(side().image, student, rows), Outputs(side().image, teacher, rows), adapters) == 0.25


def test_tokens_are_interpolated_to_the_students_count_end_to_end() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    tokens = text([[[0.0], [1.0], [2.0], [3.0], [4.0]], [[0.0], [1.0], [2.0], [-9.0], [-9.0]]], [5, 3])
    resampled = resample_tokens(tokens, mask)[..., 0].tolist()
    assert resampled[0] == [0.0, 2.0, 4.0, 4.0, 4.0]  # five to three; padding repeats the last
    assert resampled[1] == [0.0, 0.5, 1.0, 1.5, 2.0]  # three to five; -9 is padding and never read


def test_tokens_of_equal_count_stay_as_they_are() -> None:
    tokens = text(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)), [4, 2, 1])
    resampled = resample_tokens(tokens, tokens.mask)
    assert torch.equal(resampled[tokens.mask.bool()], tokens.tokens[tokens.mask.bool()])


def test_a_single_token_stands_for_every_place() -> None:
    mask = torch.tensor([[1, 1, 1]])
    assert resample_tokens(text([[[7.0], [0.0]]], [1]), mask).flatten().tolist() == [7.0, 7.0, 7.0]


# ---- embeddings


def test_embedding_is_one_minus_the_cosine_averaged_over_towers_and_languages() -> None:
    student = side(image=((3.0, 0.0),), zh=((0.0, 2.0),), en=((1.0, 1.0),))
    teacher = side(image=((1.0, 1.0),), zh=((0.0, 5.0),), en=((-1.0, -1.0),))
    # image 1 - 1/sqrt(2); zh 0; en 2
    expected = ((1 - 1 / math.sqrt(2)) + (0 + 2) / 2) / 2
    assert value(EmbeddingLoss(), student, teacher) == pytest.approx(expected)


def test_embedding_is_clip_kds_squared_error_of_unit_vectors_without_its_factor() -> None:
    student, teacher = random_side(0), random_side(1)

    def squared_error(one: torch.Tensor, other: torch.Tensor) -> float:
        unit = [vectors.numpy() / np.linalg.norm(vectors.numpy(), axis=1, keepdims=True) for vectors in (one, other)]
        return float(((unit[0] - unit[1]) ** 2).sum(1).mean())

    image = squared_error(student.image.embedding, teacher.image.embedding)
    zh, en = (squared_error(student.texts[name].embedding, teacher.texts[name].embedding) for name in ("zh", "en"))
    assert value(EmbeddingLoss(), student, teacher) == pytest.approx((image + (zh + en) / 2) / 4, rel=1e-5)


def test_embedding_brings_a_student_of_another_width_to_the_teachers_by_a_linear_layer() -> None:
    adapters = dict(EmbeddingLoss().adapters(Widths(3, 1, 1), Widths(2, 1, 1)))
    assert set(adapters) == {"image_embedding", "text_embedding"}
    with torch.no_grad():
        for name, rows in (("image", [[1.0, 0, 0], [0, 1, 0]]), ("text", [[0.0, 0, 1], [0, 1, 0]])):
            [weight] = adapters[f"{name}_embedding"].parameters()
            weight.copy_(torch.tensor(rows))
    student = side(image=((4.0, 0.0, 9.0),), zh=((9.0, 0.0, 4.0),))
    assert value(EmbeddingLoss(), student, side(image=((1.0, 0.0),), zh=((1.0, 0.0),)), adapters) == pytest.approx(0)


def test_no_adapter_is_made_where_the_widths_agree() -> None:
    for loss in (EmbeddingLoss(), InteractiveLoss(), SimilarityLoss()):
        assert loss.adapters(SAME, SAME) == {}


# ---- contrasts


def cross_entropy(logits: np.ndarray) -> float:
    """Of rows whose right answer is on the diagonal."""
    shifted = logits - logits.max(1, keepdims=True)
    return float(-(np.diag(shifted) - np.log(np.exp(shifted).sum(1))).mean())


def unit(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_interactive_sets_each_student_tower_against_the_teachers_other_one() -> None:
    student, teacher = random_side(2), random_side(3)
    expected = []
    for language in ("zh", "en"):
        image_to_text = 20 * unit(student.image.embedding) @ unit(teacher.texts[language].embedding).T
        text_to_image = 20 * unit(student.texts[language].embedding) @ unit(teacher.image.embedding).T
        expected.append((cross_entropy(image_to_text) + cross_entropy(text_to_image)) / 2)
    assert value(InteractiveLoss(), student, teacher) == pytest.approx(np.mean(expected), rel=1e-5)


def test_interactive_may_teach_one_tower_alone_by_as_much_as_beside_the_other() -> None:
    student, teacher = random_side(2), random_side(3)
    for made in (student.image.embedding, *(texts.embedding for texts in student.texts.values())):
        made.requires_grad_()
    learnt: dict[str, list[torch.Tensor | None]] = {}
    for learns in ("both", "image", "text"):
        loss = InteractiveLoss(learns=learns)
        leaves = [student.image.embedding, student.texts["zh"].embedding, student.texts["en"].embedding]
        learnt[learns] = list(torch.autograd.grad(loss(student, teacher, {}), leaves, allow_unused=True))
    image, *texts = learnt["both"]
    assert learnt["image"][1:] == [None, None] and learnt["text"][0] is None
    torch.testing.assert_close(learnt["image"][0], image)
    torch.testing.assert_close(learnt["text"][1:], texts)


def test_interactive_of_two_by_hand() -> None:
    # Right pairs have the cosine 1, wrong ones 0: each of the four rows costs log(1 + exp(-scale)).
    # In fp32 that is the difference of two numbers just above 2, which have 22 bits behind the point.
    agreeing = side(image=((1.0, 0.0), (0.0, 1.0)), zh=((1.0, 0.0), (0.0, 1.0)))
    assert value(InteractiveLoss(scale=2.0), agreeing, agreeing) == pytest.approx(
        math.log(1 + math.exp(-2)), abs=2**-21
    )


def test_interactive_matches_captions_with_the_images_that_they_belong_to() -> None:
    # only images 2 and 0 have an English caption, in that order
    images = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    both = side(image=images, en=((0.0, 1.0), (1.0, 0.0)), rows={"en": [2, 0]})
    assert value(InteractiveLoss(scale=2.0), both, both) == pytest.approx(math.log(1 + math.exp(-2)), abs=2**-21)


def test_similarity_is_the_divergence_of_the_teachers_and_the_students_distributions() -> None:
    student, teacher = random_side(4), random_side(5)
    expected = []
    for language in ("zh", "en"):
        own, target = (
            20 * unit(one.image.embedding) @ unit(one.texts[language].embedding).T for one in (student, teacher)
        )
        for mine, theirs in ((own, target), (own.T, target.T)):
            mine, theirs = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (mine, theirs))
            expected.append((theirs * np.log(theirs / mine)).sum(1).mean())
    assert value(SimilarityLoss(), student, teacher) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_similarity_is_open_clips_distillation_loss_less_the_teachers_own_entropy(scale: float) -> None:
    from open_clip.loss import DistillClipLoss

    student, teacher = random_side(6), random_side(7)

    def theirs(own: Outputs, language: str) -> float:
        features = [
            torch.nn.functional.normalize(vectors, dim=-1)
            for one in (own, teacher)
            for vectors in (one.image.embedding, one.texts[language].embedding)
        ]
        _, loss = DistillClipLoss()(features[0], features[1], scale, features[2], features[3], scale)
        return float(loss)

    expected = np.mean([theirs(student, language) - theirs(teacher, language) for language in ("zh", "en")])
    assert value(SimilarityLoss(scale=scale), student, teacher) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_similarity_pulls_with_the_gradient_of_open_clips_distillation_loss() -> None:
    from open_clip.loss import DistillClipLoss

    student, teacher = random_side(8), random_side(9)
    normalize = torch.nn.functional.normalize
    gradients = []
    for ours in (True, False):
        image = student.image.embedding.clone().requires_grad_()
        own = Outputs(ImageFeatures(image, student.image.map), student.texts, student.image_index)
        if ours:
            loss = SimilarityLoss()(own, teacher, NONE)
        else:
            fixed = [
                (normalize(teacher.image.embedding, dim=-1), normalize(one.embedding, dim=-1))
                for one in teacher.texts.values()
            ]
            moving = [(normalize(image, dim=-1), normalize(one.embedding, dim=-1)) for one in student.texts.values()]
            pairs = zip(moving, fixed, strict=True)
            loss = sum(DistillClipLoss()(*one, 20.0, *other, 20.0)[1] for one, other in pairs) / 2
        loss.backward()
        gradients.append(image.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [EmbeddingLoss(), SimilarityLoss()], ids=lambda loss: loss.kind)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss: TeacherLoss) -> None:
    assert value(loss, random_side(10), random_side(10)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [EmbeddingLoss(), InteractiveLoss(), SimilarityLoss()], ids=lambda loss: loss.kind)
def test_the_length_of_embeddings_makes_no_difference(loss: TeacherLoss) -> None:
    def longer(one: Outputs) -> Outputs:
        texts = {name: TextFeatures(3 * f.embedding, f.tokens, f.mask) for name, f in one.texts.items()}
        return Outputs(ImageFeatures(5 * one.image.embedding, one.image.map), texts, one.image_index)

    student, teacher = random_side(11), random_side(12)
    assert value(loss, longer(student), longer(teacher)) == pytest.approx(value(loss, student, teacher), rel=1e-5)


def test_the_kind_chooses_the_loss_and_an_unknown_one_names_the_known() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DistillLoss)
    assert adapter.validate_python({"kind": "similarity", "weight": 2}) == SimilarityLoss(weight=2)
    with pytest.raises(
        ValueError, match="'feature_map', 'token_features', 'embedding', 'cross_lingual', 'interactive'"
    ):
        adapter.validate_python({"kind": "crd"})
