"""Stage 2 from beginning to end: what it contrasts, what it locks, and its other ways to train."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.inference.encoder import TorchEncoder
from dcclip_cli.model.model_dir import load_model
from tests.conftest import SHAPES
from tests.train.jobs import Job, assert_close, elsewhere, logged, run, weights


def test_training_from_scratch_learns_which_caption_belongs_to_which_picture(
    aligning: Job, student_section: dict[str, Any], pairs: list[Pair], pairs_file: Path
) -> None:
    aligning |= {"student": student_section}
    aligning["options"] = {
        "start": "scratch",
        "steps": 60,
        "batch_size": 20,
        "optimizer": {"lr": 3e-3},
        "captions": {"first": 1},
        "augment": {},
        "checkpoint_every_steps": 1000,
    }
    towers = load_model(run(aligning).model)
    loader = Collator(open_pairs(pairs_file), 0, Augment(), CaptionOptions(first=1), towers.preprocess, towers.tokenize)
    batch = loader.batch([(index, 0) for index in range(len(pairs))])
    with torch.no_grad():
        image = F.normalize(towers.image_features(batch.pixels).embedding, dim=-1)
        for language in ("zh", "en"):
            texts = F.normalize(towers.text_features(batch.texts[language].tokens).embedding, dim=-1)
            right = (image @ texts.T).argmax(1) == torch.arange(len(pairs))
            assert right.float().mean() > 0.5, language  # chance is 1 in 40


def test_a_second_caption_of_each_language_is_a_further_positive(aligning: Job) -> None:
    aligning["options"] |= {"steps": 1, "captions": {"second_caption": True}, "cross_lingual": 0.5}
    assert set(run(aligning).metrics) >= {"image_zh", "image_en", "image_zh-other", "image_en-other", "zh_en"}


def test_siglip_learns_a_bias_and_any_open_clip_reads_it(aligning: Job) -> None:
    aligning["options"] |= {"loss": "siglip", "cross_lingual": 0.5}
    result = run(aligning)
    assert set(result.metrics) >= {"image_zh", "image_en", "zh_en", "logit_scale", "logit_bias"}
    assert result.metrics["logit_bias"] != -10 and result.metrics["logit_scale"] == pytest.approx(10, rel=0.2)
    model = open_clip.create_model(f"local-dir:{result.model}")
    assert float(model.logit_bias.detach()) == pytest.approx(result.metrics["logit_bias"], abs=1e-6)
    again = run(elsewhere(aligning, "again", {"start": str(result.model), "steps": 1}))
    assert load_model(again.model).logit_bias == pytest.approx(result.metrics["logit_bias"], abs=0.01)


def test_a_distillation_term_keeps_stage_2_near_its_teacher(aligning: Job, model_folder: Path) -> None:
    aligning |= {"teacher": {"kind": "open_clip", "model": str(model_folder)}}
    aligning["options"] |= {"losses": [{"kind": "embedding", "weight": 100}], "steps": 10, "augmentations": 1}
    held = run(aligning)
    free = run(elsewhere(aligning, "free", {"losses": []}))
    towers = [load_model(folder) for folder in (model_folder, held.model, free.model)]
    with torch.no_grad():
        before, near, far = (
            F.normalize(net.text_features(net.tokenize(["红色的圆", "red circle"])).embedding, dim=-1) for net in towers
        )
    assert (before * near).sum() > (before * far).sum()
    assert "embedding" in held.metrics and "embedding" not in free.metrics


@pytest.mark.parametrize("options", [{"accumulate": 4, "gradient_cache": True}, {"gradient_checkpointing": True}])
def test_what_saves_memory_gives_the_weights_of_the_whole_batch(aligning: Job, options: Job) -> None:
    aligning["options"] |= {"freeze_batch_norms": True, "optimizer": {"kind": "sgd", "lr": 0.1}, "steps": 4}
    assert_close(weights(run(elsewhere(aligning, "saving", options))), weights(run(aligning)))


def test_the_best_weights_by_validation_are_kept_and_worse_ones_end_training(aligning: Job, pairs_file: Path) -> None:
    aligning["data"] = {"train": str(pairs_file), "validation": str(pairs_file)}
    harmful = {"optimizer": {"lr": 0.5}, "warmup_steps": 0}  # nothing gets better by such steps
    aligning["options"] |= {"steps": 40, "validate_every_steps": 1, "patience": 3, "keep": "best", **harmful}
    result = run(aligning)
    lines = [line for line in logged(result.model.parent) if "top1_zh" in line]
    measured = {line["step"]: (line["top1_zh"] + line["top1_en"]) / 2 for line in lines}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert result.metrics["best_step"] == best
    assert max(measured) == best + 3 < 40
    assert (result.metrics["top1_zh"] + result.metrics["top1_en"]) / 2 == pytest.approx(measured[best], abs=1e-5)


# ---- a locked image tower and points in its space instead of images


def on_points(aligning: Job, points: Path, student: Job) -> Job:
    options = {"start": "scratch", "steps": 60, "warmup_steps": 5, "lock": "image", "cosine": 5.0}
    return aligning | {
        "data": str(points),
        "student": student,
        "options": options | {"augment": {}, "optimizer": {"lr": 1e-2}},
    }


def test_words_of_both_languages_are_pulled_to_their_points(aligning: Job, points: Path, student_section: Job) -> None:
    model = TorchEncoder(load_model(run(on_points(aligning, points, student_section)).model))
    for words in (SHAPES.values(), SHAPES.keys()):
        cosines = model.encode_texts(list(words)) @ np.eye(8, 16).T
        assert cosines.argmax(axis=1).tolist() == list(range(8))
        assert cosines.diagonal().mean() > 0.9
