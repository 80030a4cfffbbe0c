"""The later losses against values worked out by hand, in numpy, and against open_clip where the formula is the same.

Letters as in dcclip_cli/train/losses/base.py.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcclip_cli.model.towers import ImageFeatures, TextFeatures
from dcclip_cli.train.losses.base import Outputs, Schedule, Widths
from dcclip_cli.train.losses.contrastive import TaskLoss, info_nce, sigmoid_loss
from dcclip_cli.train.losses.embeddings import (
    CrossLingualLoss,
    EmbeddingLoss,
    EnsembleLoss,
    InteractiveLoss,
    SimilarityLoss,
)
from dcclip_cli.train.losses.features import FeatureMapLoss

pytestmark = pytest.mark.any_cpu

NONE: dict[str, nn.Module] = {}


def side(
    image: Any, zh: Any = None, en: Any = None, rows: dict[str, list[int]] | None = None, scale: float = 1.0
) -> Outputs:
    """A side whose texts have these embeddings; by default text n belongs to image n."""
    image = torch.as_tensor(image, dtype=torch.float32)
    texts = {
        name: torch.as_tensor(one, dtype=torch.float32) for name, one in (("zh", zh), ("en", en)) if one is not None
    }
    rows = rows or {name: list(range(len(one))) for name, one in texts.items()}
    return Outputs(
        ImageFeatures(image, torch.zeros(len(image), 1, 1, 1)),
        {name: TextFeatures(one, one[:, None], torch.ones(len(one), 1).long()) for name, one in texts.items()},
        {name: torch.tensor(rows[name]) for name in texts},
        logit_scale=torch.tensor(scale),
    )


def random_side(seed: int, count: int = 6, width: int = 5, scale: float = 1.0) -> Outputs:
    random = torch.Generator().manual_seed(seed)
    image, zh, en = (torch.randn(count, width, generator=random) for _ in range(3))
    return side(image, zh, en, scale=scale)


def unit(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def cosines(one: Outputs, language: str) -> np.ndarray:
    return unit(one.image.embedding) @ unit(one.texts[language].embedding).T


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def soft_cross_entropy(target: np.ndarray, logits: np.ndarray) -> float:
    return float(-(target * np.log(softmax(logits))).sum(1).mean())


# ---- affinity


def test_affinity_is_similarity_at_tinyclips_scale_and_open_clips_distillation_loss_less_the_teachers_entropy() -> None:
    from open_clip.loss import DistillClipLoss

    student, teacher = random_side(2), random_side(3)
    expected, entropies = [], []
    for language in ("zh", "en"):
        vectors = [
            F.normalize(one, dim=-1)
            for side in (student, teacher)
            for one in (side.image.embedding, side.texts[language].embedding)
        ]
        expected.append(float(DistillClipLoss()(vectors[0], vectors[1], 50.0, vectors[2], vectors[3], 50.0)[1]))
        for target in (softmax(50 * cosines(teacher, language)), softmax(50 * cosines(teacher, language).T)):
            entropies.append(soft_cross_entropy(target, np.log(target)))
    affinity = SimilarityLoss(kind="affinity")
    assert float(affinity(student, teacher, NONE)) == pytest.approx(np.mean(expected) - np.mean(entropies), rel=1e-4)
    assert affinity.terms(student, [teacher], NONE).keys() == {"affinity"}
    assert affinity(student, teacher, NONE) == SimilarityLoss(scale=50.0)(student, teacher, NONE)


# ---- several teachers


def test_ensemble_averages_the_teachers_after_the_softmax_each_at_its_own_temperature() -> None:
    student, teachers = (
        random_side(4, scale=7.0),
        [random_side(5, width=5, scale=30.0), random_side(6, width=9, scale=60.0)],
    )
    expected = []
    for language in ("zh", "en"):
        own = 7 * cosines(student, language)
        logits = [scale * cosines(teacher, language) for scale, teacher in zip((30, 60), teachers, strict=True)]
        there = np.mean([softmax(one) for one in logits], axis=0)
        back = np.mean([softmax(one.T) for one in logits], axis=0)
        expected.append((soft_cross_entropy(there, own) + soft_cross_entropy(back, own.T)) / 2)
    result = EnsembleLoss().terms(student, teachers, NONE)
    assert {name: float(value) for name, value in result.items()} == pytest.approx(
        {"ensemble": np.mean(expected)}, rel=1e-4
    )


@pytest.mark.parametrize("kind", [EmbeddingLoss, SimilarityLoss, InteractiveLoss])
def test_a_loss_learns_from_the_teacher_that_it_names(kind: Any) -> None:
    student, teachers = random_side(9), [random_side(10), random_side(11)]
    [value] = kind(teacher=1).terms(student, teachers, NONE).values()
    assert float(value) == float(kind()(student, teachers[1], NONE)) != float(kind()(student, teachers[0], NONE))


# ---- across languages


def test_cross_lingual_pulls_the_students_chinese_to_the_teachers_english() -> None:
    student = side(
        ((1.0, 0.0),), zh=((3.0, 0.0), (0.0, 1.0)), en=((9.0, 9.0), (9.0, 9.0)), rows={"zh": [0, 1], "en": [0, 1]}
    )
    teacher = side(
        ((1.0, 0.0),), zh=((9.0, 9.0), (9.0, 9.0)), en=((1.0, 1.0), (0.0, -2.0)), rows={"zh": [0, 1], "en": [0, 1]}
    )
    # 45 degrees, and opposite
    expected = ((1 - 1 / math.sqrt(2)) + 2) / 2
    assert float(CrossLingualLoss()(student, teacher, NONE)) == pytest.approx(expected)


def test_cross_lingual_compares_captions_of_the_same_image_or_line_only() -> None:
    # image 1 has both; image 0 only zh, image 2 only en; row 7 is a line of parallel text
    student = side(
        torch.eye(3),
        zh=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
        en=((5.0, 5.0),) * 3,
        rows={"zh": [0, 1, 7], "en": [1, 2, 7]},
    )
    teacher = side(
        torch.eye(3),
        zh=((5.0, 5.0),) * 3,
        en=((0.0, 3.0), (5.0, -5.0), (-1.0, -1.0)),
        rows={"zh": [0, 1, 7], "en": [1, 2, 7]},
    )
    assert float(CrossLingualLoss()(student, teacher, NONE)) == pytest.approx((0 + 2) / 2)


def test_without_a_caption_in_both_languages_cross_lingual_is_nothing() -> None:
    one = side(torch.eye(2), zh=((1.0, 0.0),), en=((0.0, 1.0),), rows={"zh": [0], "en": [1]})
    assert float(CrossLingualLoss()(one, one, NONE)) == 0


@pytest.mark.parametrize("loss", [SimilarityLoss(), InteractiveLoss()], ids=lambda loss: loss.kind)
def test_lines_without_an_image_do_not_enter_what_compares_images_with_texts(loss: Any) -> None:
    student, teacher = random_side(12), random_side(13)

    def with_line(one: Outputs) -> Outputs:
        texts = {name: torch.cat([features.embedding, torch.ones(1, 5)]) for name, features in one.texts.items()}
        rows = {name: [*range(6), 6] for name in texts}
        return side(one.image.embedding, texts["zh"], texts["en"], rows)

    assert float(loss(with_line(student), with_line(teacher), NONE)) == pytest.approx(
        float(loss(student, teacher, NONE))
    )


def test_a_batch_of_lines_alone_is_learnt_by_the_text_tower_alone() -> None:
    student = side(torch.zeros(0, 2), zh=((1.0, 0.0),), en=((1.0, 0.0),))
    teacher = side(torch.zeros(0, 2), zh=((0.0, 1.0),), en=((1.0, 0.0),))
    assert float(EmbeddingLoss()(student, teacher, NONE)) == pytest.approx(0.5)


def test_a_batch_of_pictures_alone_is_learnt_by_the_image_tower_alone() -> None:
    assert float(EmbeddingLoss()(side(((1.0, 0.0),)), side(((0.0, 1.0),)), NONE)) == pytest.approx(1)


# ---- maps of several layers


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


def test_every_pair_of_layers_has_an_adapter_of_its_own_widths() -> None:
    loss = FeatureMapLoss(student_layers=(1, -1), teacher_layers=(0, -1))
    adapters = loss.adapters(Widths(2, 8, 1, {1: 4}), Widths(2, 16, 1, {0: 6}))
    shapes = {name: (module.in_channels, module.out_channels) for name, module in adapters.items()}
    assert shapes == {"image_map_1_0": (4, 6), "image_map": (8, 16)}


def test_layers_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="must have the same length"):
        FeatureMapLoss(student_layers=(0, -1))


# ---- weights


def test_a_schedule_holds_its_start_then_moves_in_a_line_and_holds_its_end() -> None:
    schedule = Schedule(start=2, end=0, begin=0.25, finish=0.75)
    assert [schedule.at(done) for done in (0, 0.25, 0.5, 0.75, 1)] == [2, 2, 1, 0, 0]


def test_a_schedule_may_switch_at_once() -> None:
    schedule = Schedule(start=1, end=0, begin=0.5, finish=0.5)
    assert [schedule.at(done) for done in (0.49, 0.5, 0.51)] == [1, 0, 0]


def test_a_weight_is_a_number_or_a_schedule_and_never_negative() -> None:
    assert EmbeddingLoss(weight=3).weight_at(0.7) == 3
    assert EmbeddingLoss.model_validate({"weight": {"start": 1, "end": 0}}).weight_at(0.75) == 0.25
    for wrong in (-1, {"start": -1, "end": 0}, {"start": 1, "end": 0, "begin": 0.9, "finish": 0.1}):
        with pytest.raises(ValueError):
            EmbeddingLoss.model_validate({"weight": wrong})


# ---- the task


def test_info_nce_is_open_clips_where_nothing_is_shared() -> None:
    from open_clip.loss import ClipLoss

    one = random_side(13)
    image, zh = (torch.nn.functional.normalize(x, dim=-1) for x in (one.image.embedding, one.texts["zh"].embedding))
    scale = torch.tensor(7.0)
    expected = float(ClipLoss()(image, zh, scale))
    assert float(info_nce(image, zh, scale)) == pytest.approx(expected)
    assert float(info_nce(image, zh, scale, torch.zeros(6, 6, dtype=torch.bool))) == pytest.approx(expected)


def test_info_nce_leaves_out_captions_that_an_image_has_as_well() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # images 0 and 2 look and are called the same
    shared = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    # rows 0 and 2 are told from row 1 only; row 1 from two others
    row, middle = math.log(1 + math.exp(-3)), math.log(1 + 2 * math.exp(-3))
    result = float(info_nce(vectors, vectors, torch.tensor(3.0), shared))
    # in fp32 differences of two numbers just above 3, which have 22 bits behind the point
    assert result == pytest.approx((2 * row + middle) / 3, abs=2**-21)


def test_rows_shared_out_among_processes_come_to_the_whole_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    one = random_side(14)
    image, zh = (F.normalize(x, dim=-1) for x in (one.image.embedding, one.texts["zh"].embedding))
    shared = torch.zeros(6, 6, dtype=torch.bool)
    shared[0, 3] = shared[5, 1] = True
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    monkeypatch.setattr("dcclip_cli.train.losses.contrastive._process_count", lambda: 2)
    halves = [torch.arange(6) < 2, torch.arange(6) >= 2]  # unequal shares
    losses: list[Any] = [info_nce, lambda one, other, scale, *more: sigmoid_loss(one, other, scale, bias, *more)]
    for loss in losses:
        whole = loss(image, zh, scale, shared)
        parts = [loss(image, zh, scale, shared, half) for half in halves]
        assert float(sum(parts) / 2) == pytest.approx(float(whole), rel=1e-5)


def test_the_sigmoid_loss_is_open_clips_where_nothing_is_shared() -> None:
    from open_clip.loss import SigLipLoss

    one = random_side(15)
    image, zh = (F.normalize(x, dim=-1) for x in (one.image.embedding, one.texts["zh"].embedding))
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    expected = float(SigLipLoss()(image, zh, scale, bias))
    assert float(sigmoid_loss(image, zh, scale, bias)) == pytest.approx(expected, rel=1e-5)


def test_the_sigmoid_loss_counts_shared_captions_as_positives() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    scale, bias, shared = torch.tensor(2.0), torch.tensor(1.0), torch.tensor([[0, 1], [0, 0]], dtype=torch.bool)
    # four logits of 3, three of them positives, one negative; a mean over two images
    expected = (3 * math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))) / 2
    assert float(sigmoid_loss(vectors, vectors, scale, bias, shared)) == pytest.approx(expected, rel=1e-5)


def test_guessing_costs_the_logarithm_of_the_batch() -> None:
    same = side(torch.ones(6, 5), torch.ones(6, 5), torch.ones(6, 5), scale=14.0)
    terms = {name: float(value) for name, value in TaskLoss().terms(same, [], NONE).items()}
    assert terms == pytest.approx({"image_zh": math.log(6) / 2, "image_en": math.log(6) / 2})
    chance = {name: float(value) for name, value in TaskLoss().chance(same).items()}
    assert chance == pytest.approx(terms)


def test_the_sigmoid_task_uses_the_students_bias() -> None:
    one = replace(random_side(16, scale=4.0), logit_bias=torch.tensor(-2.0))
    image, zh = (F.normalize(x, dim=-1) for x in (one.image.embedding, one.texts["zh"].embedding))
    expected = float(sigmoid_loss(image, zh, torch.tensor(4.0), torch.tensor(-2.0))) / 2
    assert float(TaskLoss(loss="siglip").terms(one, [], NONE)["image_zh"]) == pytest.approx(expected)
