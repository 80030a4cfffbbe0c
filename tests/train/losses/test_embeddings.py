"""Losses on embeddings, against values computed by hand, in numpy, and against open_clip."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.loss import DistillClipLoss
from torch.nn import functional as F

from dcclip_cli.model.towers import ImageFeatures
from dcclip_cli.train.losses.base import Outputs
from dcclip_cli.train.losses.embeddings import (
    AnchorsLoss,
    CrossLingualLoss,
    EmbeddingLoss,
    EnsembleLoss,
    InteractiveLoss,
    SimilarityLoss,
)
from tests.train.losses.outputs import (
    NONE,
    cosines,
    cross_entropy,
    outputs,
    random_outputs,
    soft_cross_entropy,
    softmax,
    unit,
    value,
)

pytestmark = pytest.mark.any_cpu


def test_embedding_is_one_minus_the_cosine_averaged_over_towers_and_languages() -> None:
    student = outputs(image=((3.0, 0.0),), zh=((0.0, 2.0),), en=((1.0, 1.0),))
    teacher = outputs(image=((1.0, 1.0),), zh=((0.0, 5.0),), en=((-1.0, -1.0),))
    # image 1 - 1/sqrt(2); zh 0; en 2
    expected = ((1 - 1 / math.sqrt(2)) + (0 + 2) / 2) / 2
    assert value(EmbeddingLoss(), student, teacher) == pytest.approx(expected)


def test_a_batch_without_images_or_without_texts_trains_the_other_tower_only() -> None:
    first, second = (outputs(torch.zeros(0, 2), zh=(zh,), en=((1.0, 0.0),)) for zh in ((1.0, 0.0), (0.0, 1.0)))
    assert value(EmbeddingLoss(), first, second) == pytest.approx(0.5)
    assert value(EmbeddingLoss(), outputs(((1.0, 0.0),)), outputs(((0.0, 1.0),))) == pytest.approx(1)


def test_interactive_sets_each_student_tower_against_the_teachers_other_one() -> None:
    student = random_outputs(2)
    teacher = random_outputs(3)
    expected = []
    for language in ("zh", "en"):
        image_to_text = 20 * unit(student.image.embedding) @ unit(teacher.texts[language].embedding).T
        text_to_image = 20 * unit(student.texts[language].embedding) @ unit(teacher.image.embedding).T
        expected.append((cross_entropy(image_to_text) + cross_entropy(text_to_image)) / 2)
    assert value(InteractiveLoss(), student, teacher) == pytest.approx(np.mean(expected), rel=1e-5)


def test_interactive_with_one_tower_trains_it_as_much_as_with_both() -> None:
    student = random_outputs(2)
    teacher = random_outputs(3)
    for embedding in (student.image.embedding, *(texts.embedding for texts in student.texts.values())):
        embedding.requires_grad_()
    learnt: dict[str, list[torch.Tensor | None]] = {}
    for learns in ("both", "image", "text"):
        loss = InteractiveLoss(learns=learns)
        leaves = [student.image.embedding, student.texts["zh"].embedding, student.texts["en"].embedding]
        learnt[learns] = list(torch.autograd.grad(loss(student, teacher, {}), leaves, allow_unused=True))
    image, *texts = learnt["both"]
    assert learnt["image"][1:] == [None, None] and learnt["text"][0] is None
    torch.testing.assert_close(learnt["image"][0], image)
    torch.testing.assert_close(learnt["text"][1:], texts)


def test_interactive_matches_captions_with_the_images_that_they_belong_to() -> None:
    # Only images 2 and 0 have an English caption, in that order. Right pairs have the cosine 1, wrong ones 0; in fp32
    # the loss is the difference of two numbers just above 2, which have 22 bits behind the point.
    images = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    both = outputs(image=images, en=((0.0, 1.0), (1.0, 0.0)), image_index={"en": [2, 0]})
    assert value(InteractiveLoss(scale=2.0), both, both) == pytest.approx(math.log(1 + math.exp(-2)), abs=2**-21)


def test_anchors_compare_distributions_over_the_teachers_other_tower_and_need_no_pairs() -> None:
    student = random_outputs(2, count=4)
    teacher = random_outputs(3, count=4)
    # Two images, four texts: none of the last two belongs to an image.
    student, teacher = (
        replace(side, image=ImageFeatures(side.image.embedding[:2], side.image.map[:2])) for side in (student, teacher)
    )
    expected = []
    for language in ("zh", "en"):
        images, texts = (unit(features) for features in (teacher.image.embedding, teacher.texts[language].embedding))
        for rows_of_student, targets, anchors in (
            (student.image.embedding, images, texts),
            (student.texts[language].embedding, texts, images),
        ):
            learnt, target_rows = (softmax(10 * rows @ anchors.T) for rows in (unit(rows_of_student), targets))
            expected.append((target_rows * np.log(target_rows / learnt)).sum(1).mean() / 2)
    assert value(AnchorsLoss(scale=10), student, teacher) == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert (
        value(AnchorsLoss(), outputs(torch.zeros(0, 2), zh=((1.0, 0.0),)), outputs(torch.zeros(0, 2), zh=((1.0, 0.0),)))
        == 0
    )


@pytest.mark.parametrize("scale", [1.0, 20.0, 50.0])
def test_similarity_is_open_clips_distillation_loss_and_its_gradient_less_the_teachers_own_entropy(
    scale: float,
) -> None:
    student = random_outputs(6)
    teacher = random_outputs(7)
    image = student.image.embedding.requires_grad_()

    def open_clips(own: Outputs, language: str) -> torch.Tensor:
        features = [
            F.normalize(vectors, dim=-1)
            for pair in (own, teacher)
            for vectors in (pair.image.embedding, pair.texts[language].embedding)
        ]
        loss: torch.Tensor = DistillClipLoss()(*features[:2], scale, *features[2:], scale)[1]
        return loss

    zh, en = (open_clips(student, language) - open_clips(teacher, language) for language in ("zh", "en"))
    expected = (zh + en) / 2
    result = SimilarityLoss(scale=scale)(student, teacher, NONE)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-6)
    gradients = [torch.autograd.grad(loss, image)[0] for loss in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_affinity_is_similarity_at_tinyclips_scale() -> None:
    student = random_outputs(2)
    teacher = random_outputs(3)
    affinity = SimilarityLoss(kind="affinity")
    assert affinity.terms(student, [teacher], NONE).keys() == {"affinity"}
    assert value(affinity, student, teacher) == value(SimilarityLoss(scale=50.0), student, teacher)


def test_ensemble_averages_the_teachers_after_the_softmax_each_at_its_own_temperature() -> None:
    student = random_outputs(4, scale=7.0)
    teachers = [random_outputs(5, width=5, scale=30.0), random_outputs(6, width=9, scale=60.0)]
    expected = []
    for language in ("zh", "en"):
        own_logits = 7 * cosines(student, language)
        logits = [scale * cosines(teacher, language) for scale, teacher in zip((30, 60), teachers, strict=True)]
        forward = np.mean([softmax(logit_rows) for logit_rows in logits], axis=0)
        back = np.mean([softmax(logit_rows.T) for logit_rows in logits], axis=0)
        expected.append((soft_cross_entropy(forward, own_logits) + soft_cross_entropy(back, own_logits.T)) / 2)
    result = EnsembleLoss().terms(student, teachers, NONE)
    assert {name: float(value) for name, value in result.items()} == pytest.approx(
        {"ensemble": np.mean(expected)}, rel=1e-4
    )


@pytest.mark.parametrize("kind", [EmbeddingLoss, SimilarityLoss, InteractiveLoss])
def test_a_loss_learns_from_the_teacher_that_it_names(kind: Any) -> None:
    student = random_outputs(9)
    teachers = [random_outputs(10), random_outputs(11)]
    [value] = kind(teacher=1).terms(student, teachers, NONE).values()
    assert float(value) == float(kind()(student, teachers[1], NONE)) != float(kind()(student, teachers[0], NONE))


def test_cross_lingual_compares_captions_of_the_same_image_or_line_only() -> None:
    # image 1 has both; image 0 only zh, image 2 only en; row 7 is a line of parallel text
    rows = {"zh": [0, 1, 7], "en": [1, 2, 7]}
    unused = ((5.0, 5.0),) * 3
    student = outputs(torch.eye(3), zh=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), en=unused, image_index=rows)
    teacher = outputs(torch.eye(3), zh=unused, en=((0.0, 3.0), (5.0, -5.0), (-1.0, -1.0)), image_index=rows)
    assert float(CrossLingualLoss()(student, teacher, NONE)) == pytest.approx((0 + 2) / 2)
    lone = outputs(torch.eye(2), zh=((1.0, 0.0),), en=((0.0, 1.0),), image_index={"zh": [0], "en": [1]})
    assert float(CrossLingualLoss()(lone, lone, NONE)) == 0


@pytest.mark.parametrize("loss", [SimilarityLoss(), InteractiveLoss()], ids=lambda loss: loss.kind)
def test_lines_without_an_image_do_not_enter_what_compares_images_with_texts(loss: Any) -> None:
    student = random_outputs(12)
    teacher = random_outputs(13)

    def with_line(one: Outputs) -> Outputs:
        texts = {name: torch.cat([features.embedding, torch.ones(1, 5)]) for name, features in one.texts.items()}
        rows = {name: [*range(6), 6] for name in texts}
        return outputs(one.image.embedding, texts["zh"], texts["en"], image_index=rows)

    assert float(loss(with_line(student), with_line(teacher), NONE)) == pytest.approx(
        float(loss(student, teacher, NONE))
    )


def test_a_weight_is_a_number_or_a_schedule_and_never_negative() -> None:
    assert EmbeddingLoss(weight=3).weight_at(0.7) == 3
    assert EmbeddingLoss.model_validate({"weight": {"start": 1, "end": 0}}).weight_at(0.75) == 0.25
    for wrong in (-1, {"start": -1, "end": 0}, {"start": 1, "end": 0, "begin": 0.5}):
        with pytest.raises(ValueError):
            EmbeddingLoss.model_validate({"weight": wrong})
