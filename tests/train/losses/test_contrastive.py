"""Contrastive losses, against values computed by hand and against open_clip."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from dcclip_cli.train.losses.base import Outputs
from dcclip_cli.train.losses.contrastive import TaskLoss, info_nce, sigmoid_loss
from tests.train.losses.outputs import NONE, cross_entropy, outputs, random_outputs, unit

pytestmark = pytest.mark.any_cpu


def unit_vectors(one: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
    return F.normalize(one.image.embedding, dim=-1), F.normalize(one.texts["zh"].embedding, dim=-1)


@pytest.mark.parametrize(
    ("loss", "open_clips", "parameters"), [(info_nce, ClipLoss(), [7.0]), (sigmoid_loss, SigLipLoss(), [10.0, -10.0])]
)
def test_a_loss_is_open_clips_where_nothing_is_shared(loss: Any, open_clips: Any, parameters: list[float]) -> None:
    values = (*unit_vectors(random_outputs(13)), *map(torch.tensor, parameters))
    expected = pytest.approx(float(open_clips(*values)), rel=1e-5)
    assert float(loss(*values)) == float(loss(*values, (torch.zeros(6, 6, dtype=torch.bool),) * 2)) == expected


@pytest.mark.parametrize("cross_lingual", [0.0, 0.5])
def test_the_task_is_info_nce_of_images_with_each_language(cross_lingual: float) -> None:
    pair = random_outputs(17, scale=7.0)
    vectors = {"image": unit(pair.image.embedding), **{name: unit(text.embedding) for name, text in pair.texts.items()}}

    def symmetric(name: str, other: str) -> float:
        logits = 7 * vectors[name] @ vectors[other].T
        return (cross_entropy(logits) + cross_entropy(logits.T)) / 2

    expected = {f"image_{language}": symmetric("image", language) / 2 for language in ("zh", "en")}
    if cross_lingual:
        expected["zh_en"] = cross_lingual * symmetric("zh", "en")
    terms = TaskLoss(cross_lingual=cross_lingual).terms(pair, [], NONE)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_info_nce_leaves_out_captions_that_an_image_has_as_well() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # images 0 and 2 look and are called the same
    shared = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    # rows 0 and 2 are told from row 1 only; row 1 from two others
    row = math.log(1 + math.exp(-3))
    middle = math.log(1 + 2 * math.exp(-3))
    result = float(info_nce(vectors, vectors, torch.tensor(3.0), (shared, shared.T)))
    # in fp32 differences of two numbers just above 3, which have 22 bits behind the point
    assert result == pytest.approx((2 * row + middle) / 3, abs=2**-21)


def test_the_mean_over_processes_is_the_whole_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    image, zh = unit_vectors(random_outputs(14))
    shared = torch.zeros(6, 6, dtype=torch.bool)
    shared[0, 3] = shared[5, 1] = True
    scale = torch.tensor(9.0)
    bias = torch.tensor(-3.0)
    monkeypatch.setattr("dcclip_cli.train.distributed.process_count", lambda: 2)
    halves = [slice(2), slice(2, 6)]  # unequal shares
    losses: list[Any] = [info_nce, lambda one, other, scale, *more: sigmoid_loss(one, other, scale, bias, *more)]
    for loss in losses:
        full = loss(image, zh, scale, (shared, shared.T))
        parts = [loss(image, zh, scale, (shared[half], shared.T[half]), half) for half in halves]
        assert float(sum(parts) / 2) == pytest.approx(float(full), rel=1e-5)


def test_the_sigmoid_loss_counts_shared_captions_as_positives() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    scale = torch.tensor(2.0)
    bias = torch.tensor(1.0)
    shared = torch.tensor([[0, 1], [0, 0]], dtype=torch.bool)
    # four logits of 3, three of them positives, one negative; a mean over two images
    expected = (3 * math.log(1 + math.exp(-3)) + math.log(1 + math.exp(3))) / 2
    assert float(sigmoid_loss(vectors, vectors, scale, bias, (shared, shared.T))) == pytest.approx(expected, rel=1e-5)


def test_guessing_costs_the_logarithm_of_the_batch() -> None:
    same = outputs(torch.ones(6, 5), torch.ones(6, 5), torch.ones(6, 5), scale=14.0)
    terms = {name: float(value) for name, value in TaskLoss().terms(same, [], NONE).items()}
    assert terms == pytest.approx({"image_zh": math.log(6) / 2, "image_en": math.log(6) / 2})
    assert TaskLoss().chance(same) == pytest.approx(terms)
    lines = replace(same, image_index={"zh": torch.arange(6), "en": torch.arange(6, 12)})  # English without images
    assert TaskLoss().chance(lines) == pytest.approx({"image_zh": math.log(6)})
    assert TaskLoss().terms(lines, [], NONE)["image_zh"].item() == pytest.approx(math.log(6))


def test_the_sigmoid_task_uses_the_students_bias() -> None:
    pair = replace(random_outputs(16, scale=4.0), logit_bias=torch.tensor(-2.0))
    expected = float(sigmoid_loss(*unit_vectors(pair), torch.tensor(4.0), torch.tensor(-2.0))) / 2
    assert float(TaskLoss(loss="siglip").terms(pair, [], NONE)["image_zh"]) == pytest.approx(expected)
