"""Matryoshka training: losses on the first numbers of the embeddings as well."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dcclip_cli.data.batch import Batch, Texts
from dcclip_cli.model.model_dir import load_model, read_provenance
from dcclip_cli.train.losses.base import Widths
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss, InteractiveLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.task import TrainingTask
from tests.train.jobs import Job, elsewhere, refused, run


def test_each_cut_embedding_is_contrasted_by_itself(model_folder: Path) -> None:
    student = load_model(model_folder)
    texts = {"zh": ["红色的圆", "蓝色的方块"], "en": ["a red circle", "a blue square"]}
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        torch.arange(2),
        torch.zeros(2, dtype=torch.long),
        pixels,
        (),
        {name: Texts(torch.arange(2), lines, student.tokenize(lines)) for name, lines in texts.items()},
    )
    task = TrainingTask(student, [TaskLoss()], dims=[4, 8]).eval()
    with torch.no_grad():
        terms = task(batch)
        image = student.image_features(pixels).embedding
        text = student.text_features(student.tokenize(texts["zh"])).embedding
    assert list(terms) == [f"image_{language}{suffix}" for suffix in ("", "_4d", "_8d") for language in ("zh", "en")]
    for dims in (4, 8, 16):
        logits = student.logit_scale * F.normalize(image[:, :dims], dim=-1) @ F.normalize(text[:, :dims], dim=-1).T
        each = [F.cross_entropy(one, torch.arange(2)) for one in (logits, logits.T)]
        name = "image_zh" if dims == 16 else f"image_zh_{dims}d"
        assert terms[name] == pytest.approx(float(sum(each)) / 4, rel=1e-4)  # of two directions, two languages


def test_the_order_of_losses_changes_no_adapter(model_folder: Path) -> None:
    teacher: Any = SimpleNamespace(widths=Widths(20, 30, 40))
    losses = [EmbeddingLoss(), InteractiveLoss(), FeatureMapLoss(), TokenFeaturesLoss()]
    first, reverse = (
        TrainingTask(load_model(model_folder), order, [teacher], dims=[8]).adapters.state_dict()
        for order in (losses, losses[::-1])
    )
    assert len(first) == 8 and first.keys() == reverse.keys()  # four for embeddings, two with a bias
    assert all(torch.equal(value, reverse[name]) for name, value in first.items())


def test_a_stage_with_dims_records_them_and_the_whole_width(distilling: Job) -> None:
    losses = [{"kind": "embedding"}, {"kind": "similarity"}, {"kind": "feature_map"}]
    distilling["options"] |= {"steps": 2, "losses": losses, "dims": [8, 16]}
    result = run(distilling)
    assert set(result.metrics) >= {"embedding", "embedding_8d", "similarity_8d", "feature_map"}
    assert not {"embedding_16d", "feature_map_8d"} & set(result.metrics)
    assert read_provenance(result.model).content["trained_dims"] == [8, 16]
    assert list(load_model(result.model).trained_dims) == [8, 16]
    with refused("dims has 24, and embeddings have 16 numbers", "remove it"):
        run(elsewhere(distilling, "wide", {"dims": [24]}))
