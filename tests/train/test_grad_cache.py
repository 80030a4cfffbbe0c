"""Gradients of a batch in parts: of parts by themselves, and of parts that see each other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dcclip_cli.data.batch import Batch
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.labels import Labels
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import ConcatDataset, Language, Pair
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.embeddings import (
    AnchorsLoss,
    CrossLingualLoss,
    EmbeddingLoss,
    EnsembleLoss,
    InteractiveLoss,
    SimilarityLoss,
)
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.losses.labels import LabelsLoss
from dcclip_cli.train.task import TrainingTask, backward, cached_backward
from dcclip_cli.train.teacher import OnlineTeacher, widths

pytestmark = pytest.mark.any_cpu


@pytest.fixture
def stage(model_folder: Path, altclip_folder: Path) -> TrainingTask:
    """A student under the contrast and three losses of a teacher, its batch norms frozen."""
    teacher = AltClipTeacher(model=str(altclip_folder)).load()
    losses = [TaskLoss(cross_lingual=0.5), EmbeddingLoss(), InteractiveLoss(), CrossLingualLoss()]
    sources = [OnlineTeacher(teacher, 0, (), widths(teacher))]
    return TrainingTask(load_model(model_folder), losses, sources, freeze_batch_norms=True).train()


@pytest.fixture
def batch(stage: TrainingTask, pairs_file: Path, altclip_folder: Path) -> Batch:
    teacher = AltClipTeacher(model=str(altclip_folder)).load()
    towers = stage.student
    collate = Collator(
        open_pairs(pairs_file),
        0,
        Augment(rotate=15),
        CaptionOptions(),
        towers.preprocess,
        towers.tokenize,
        (teacher.preprocess,),
        with_caption_ids=True,
    )
    return collate.batch([(index, 0) for index in range(0, 40, 5)])


def gradients(stage: TrainingTask) -> dict[str, torch.Tensor]:
    grads = {name: param.grad.clone() for name, param in stage.named_parameters() if param.grad is not None}
    stage.zero_grad()
    return grads


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_computed_in_fp32_in_any_precision_of_the_towers_of_which_the_teachers_run_first(
    stage: TrainingTask, batch: Batch, altclip_folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = AltClipTeacher(model=str(altclip_folder), precision="bf16").load()
    losses = [FeatureMapLoss(), TokenFeaturesLoss(), TaskLoss(cross_lingual=0.5), EmbeddingLoss(), SimilarityLoss()]
    task = TrainingTask(stage.student, losses, [OnlineTeacher(teacher, 0, (), widths(teacher))])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        teachers = task.teacher_outputs(batch)
        student = task.outputs(batch)
        terms = task.terms(batch, student, teachers)
    assert student.image.embedding.dtype == student.texts["zh"].embedding.dtype == dtype
    expected = task.terms(batch, student, teachers)
    assert terms == expected and all(term.dtype == torch.float32 for term in terms.values())
    order: dict[str, Any] = {}
    monkeypatch.setattr(task, "teacher_outputs", lambda _batch: order.setdefault("teachers", teachers))
    monkeypatch.setattr(task, "outputs", lambda _batch: order.setdefault("student", student))
    assert task(batch) == expected and [*order] == ["teachers", "student"]
    torch.amp.GradScaler("cpu", init_scale=16).scale(torch.stack([*terms.values()]).sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters() if parameter.grad is not None)


def test_the_first_pass_leaves_batch_norms_as_they_are_and_the_second_moves_them_once(
    model_folder: Path, batch: Batch, accelerator: Accelerator
) -> None:
    tasks = [TrainingTask(load_model(model_folder), [TaskLoss()]).train() for _ in range(2)]
    cached_backward(tasks[0], batch, 2, accelerator)
    with torch.no_grad():
        for part in batch.parts(2):
            tasks[1].outputs(part)
    for (name, buffer), (_, twin) in zip(tasks[0].named_buffers(), tasks[1].named_buffers(), strict=True):
        if "running" in name:
            assert torch.equal(buffer, twin), name


def test_random_numbers_of_the_first_pass_come_again_in_the_second(
    batch: Batch, accelerator: Accelerator, model_folder: Path
) -> None:
    stage = TrainingTask(load_model(model_folder), [TaskLoss()], freeze_batch_norms=True).train()
    head = stage.student.model.visual.head
    head.add_module("dropped", torch.nn.Dropout(0.5))
    tensors: list[torch.Tensor] = []
    head.register_forward_hook(lambda _module, _inputs, output: tensors.append(output.detach()))
    cached_backward(stage, batch, 2, accelerator)
    assert torch.equal(tensors[0], tensors[2]) and torch.equal(tensors[1], tensors[3])
    assert not torch.equal(tensors[0], tensors[1])


MEANS = (EmbeddingLoss(), CrossLingualLoss(), LabelsLoss(), FeatureMapLoss(), TokenFeaturesLoss())
COMPARING = (InteractiveLoss(), AnchorsLoss(), SimilarityLoss(), EnsembleLoss(), TaskLoss(cosine=1, cross_lingual=1))


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("captioned", [2, 0])
def test_parts_that_lack_captions_sum_up_to_the_whole_batch(
    stage: TrainingTask, accelerator: Accelerator, altclip_folder: Path, tmp_path: Path, pairs: list[Pair],
    language: str, captioned: int,
) -> None:  # fmt: skip
    teacher = AltClipTeacher(model=str(altclip_folder)).load()
    student = stage.student
    lacking = [replace(pair, zh=()) if language == "zh" else replace(pair, en=()) for pair in pairs[captioned:8]]
    write_parquet(tmp_path / "pairs.parquet", [*pairs[:captioned], *lacking])
    write_parquet(tmp_path / "images.parquet", pairs[8:12])
    (tmp_path / "texts.tsv").write_text("zh\ten\n红\tred\n蓝色的圆\t\n\tgreen bar\n绿色的方块\tgreen square\n", "utf-8")
    images = open_images(tmp_path / "images.parquet")
    texts = open_texts(tmp_path / "texts.tsv")
    data = ConcatDataset([open_pairs(tmp_path / "pairs.parquet"), images, texts])
    collate = Collator(
        data, 0, Augment(), CaptionOptions(first=1), student.preprocess, student.tokenize,
        (teacher.preprocess,), with_caption_ids=True,
    )  # fmt: skip
    names: dict[Language, list[str]] = {"zh": ["红", "蓝"], "en": ["red", "blue"]}
    labels = Labels(names, np.array([0, 1, -1] * 5 + [-1]), np.array([5, 5]))
    batch = collate.batch([(index, 0) for index in range(16)])
    assert {len(part.texts) for part in batch.parts(4)} == {1, 2}
    for losses, of in ((MEANS, backward), (COMPARING, backward), (COMPARING + MEANS[:3], cached_backward)):
        sources = [OnlineTeacher(teacher, 0, (), widths(teacher))]
        task = TrainingTask(student, losses, sources, freeze_batch_norms=True, labels=labels).train()
        full = backward(task, batch, 1, accelerator)
        expected = gradients(task)
        terms = of(task, batch, 4, accelerator)
        grads = gradients(task)
        assert all(torch.isfinite(value).all() for value in (*full.values(), *terms.values(), *grads.values()))
        assert losses == MEANS or "student.model.logit_scale" in grads
        if losses == MEANS or of == cached_backward:
            assert grads.keys() == expected.keys()
            assert {name: float(value) for name, value in terms.items()} == pytest.approx(
                {name: float(value) for name, value in full.items()}, rel=1e-5
            )
            for name, value in expected.items():
                torch.testing.assert_close(grads[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("of", [backward, cached_backward])
def test_a_step_in_parts_reads_nothing_from_the_device(
    model_folder: Path, batch: Batch, accelerator: Accelerator, of: Callable[..., dict[str, torch.Tensor]]
) -> None:
    task = TrainingTask(load_model(model_folder), [TaskLoss(cross_lingual=0.5)], freeze_batch_norms=True).train()
    on_meta = task.to("meta").prepare(batch, torch.device("meta"))  # whose tensors have no values to read
    assert all(term.is_meta for term in of(task, on_meta, 2, accelerator).values())
