"""Stage 2 from beginning to end: what it contrasts, what it locks, unbroken, broken off, and on two processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.model_dir import load_model, model_fingerprint
from dcclip_cli.run_dir import TrainResult

Job = dict[str, Any]
Run = Callable[..., TrainResult]
Elsewhere = Callable[..., Job]
Sha = Callable[[TrainResult | Path], str]
Stop = Callable[[Job, str, int], None]


def weights(made: TrainResult | Path) -> dict[str, torch.Tensor]:
    return load_file((made if isinstance(made, Path) else made.model) / "open_clip_model.safetensors")


# ---- where it starts


@pytest.mark.parametrize("teacher", ["altclip", "chinese_clip"])
def test_a_student_distilled_from_a_teacher_is_aligned(
    distilling: Job, run: Run, request: pytest.FixtureRequest, teacher: str
) -> None:
    kind = "altclip" if teacher == "altclip" else "transformers"
    distilling["teacher"] = {"kind": kind, "model": str(request.getfixturevalue(f"{teacher}_folder"))}
    distilling["options"] = {"steps": 2, "augmentations": 1}
    stage_1 = run(distilling)
    stage_2 = run(distilling | {"stage": "align", "options": {"steps": 2}})
    assert set(stage_2.metrics) >= {"image_zh", "image_en", "loss", "logit_scale"}
    provenance = json.loads((stage_2.model / "dcclip.json").read_text())
    assert provenance["parent"] == model_fingerprint(stage_1.model)
    assert (stage_2.model / "tokenizer.json").read_bytes() == (stage_1.model / "tokenizer.json").read_bytes()
    towers = load_model(stage_2.model)
    assert towers.text_features(towers.tokenize(["红色的圆", "red circle"])).embedding.shape == (2, 16)


def test_a_student_is_trained_from_scratch(aligning: Job, run: Run, student_section: dict[str, Any]) -> None:
    aligning |= {"student": student_section, "options": {"start": "scratch", "steps": 2}}
    assert json.loads((run(aligning).model / "dcclip.json").read_text())["parent"] is None


def test_training_from_scratch_learns_which_caption_belongs_to_which_picture(
    aligning: Job, run: Run, student_section: dict[str, Any], pairs: list[Pair], pairs_file: Path
) -> None:
    aligning |= {"student": student_section}
    aligning["options"] = {
        "start": "scratch",
        "steps": 100,
        "batch_size": 20,
        "optimizer": {"lr": 3e-3},
        "captions": {"first": 1},
        "augment": {},
        "checkpoint_every_steps": 1000,
    }
    towers = load_model(run(aligning).model)
    read = Collator(open_pairs(pairs_file), 0, Augment(), CaptionOptions(first=1), towers.preprocess, towers.tokenize)
    batch = read.batch([(index, 0) for index in range(len(pairs))])
    with torch.no_grad():
        image = torch.nn.functional.normalize(towers.image_features(batch.pixels).embedding, dim=-1)
        for language in ("zh", "en"):
            texts = torch.nn.functional.normalize(towers.text_features(batch.texts[language].tokens).embedding, dim=-1)
            right = (image @ texts.T).argmax(1) == torch.arange(len(pairs))
            assert right.float().mean() > 0.5, language  # chance is 1 in 40


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "distill"}, "which does not exist"),
        ({"start": "scratch"}, "the recipe has no student"),
    ],
)
def test_a_missing_start_is_named_with_a_hint(aligning: Job, run: Run, options: Job, said: str) -> None:
    with pytest.raises(DcclipError, match=said) as raised:
        run(aligning | {"options": options})
    assert raised.value.hint


# ---- what it minimises


def cross_entropy(logits: np.ndarray) -> float:
    return float((np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean())


@pytest.mark.parametrize("cross_lingual", [0.0, 0.5])
def test_the_loss_is_info_nce_of_images_with_each_language(
    model_folder: Path, pairs_file: Path, cross_lingual: float
) -> None:

    from dcclip_cli.train.losses.contrastive import TaskLoss
    from dcclip_cli.train.task import TrainingTask

    towers = load_model(model_folder)
    task = TrainingTask(towers, [TaskLoss(cross_lingual=cross_lingual)]).eval()
    read = Collator(open_pairs(pairs_file), 0, Augment(), CaptionOptions(), towers.preprocess, towers.tokenize)
    batch = read.batch([(index, 0) for index in (0, 7, 14, 21, 28)])
    with torch.no_grad():
        terms = task(batch)
        vectors = {"image": towers.image_features(batch.pixels).embedding.double().numpy()}
        for language in ("zh", "en"):
            vectors[language] = towers.text_features(batch.texts[language].tokens).embedding.double().numpy()
    unit = {name: value / np.linalg.norm(value, axis=1, keepdims=True) for name, value in vectors.items()}

    def symmetric(one: str, other: str) -> float:
        logits = towers.logit_scale * unit[one] @ unit[other].T
        return (cross_entropy(logits) + cross_entropy(logits.T)) / 2

    expected = {f"image_{language}": symmetric("image", language) / 2 for language in ("zh", "en")}
    if cross_lingual:
        expected["zh_en"] = cross_lingual * symmetric("zh", "en")
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_a_second_caption_of_each_language_is_a_further_positive(aligning: Job, run: Run) -> None:
    aligning["options"] |= {"steps": 1, "captions": {"second_caption": True}, "cross_lingual": 0.5}
    assert set(run(aligning).metrics) >= {"image_zh", "image_en", "image_zh-other", "image_en-other", "zh_en"}


def test_the_temperature_learns_and_stays_below_its_limit(aligning: Job, run: Run, elsewhere: Elsewhere) -> None:
    before = load_model(Path(aligning["options"]["start"])).logit_scale
    result = run(aligning | {"options": aligning["options"] | {"optimizer": {"lr": 0.1}}})
    assert abs(load_model(result.model).logit_scale - before) > 0.5
    limited = aligning["options"] | {"max_logit_scale": 5.0, "steps": 1}
    kept = run(elsewhere(aligning, "limited", options=limited))
    assert 4.9 < kept.metrics["logit_scale"] <= 5.0
    assert load_model(kept.model).logit_scale == pytest.approx(kept.metrics["logit_scale"], abs=1e-5)


@pytest.mark.parametrize("lock", ["image", "text"])
def test_a_locked_tower_keeps_every_number_and_the_other_one_learns(aligning: Job, run: Run, lock: str) -> None:
    aligning["options"] |= {"lock": lock, "steps": 3}
    before, after = weights(Path(aligning["options"]["start"])), weights(run(aligning))
    prefix = {"image": "visual.", "text": "text."}[lock]
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if not name.startswith(prefix)}


def test_half_stores_fp16(aligning: Job, run: Run) -> None:
    aligning["options"] |= {"half": True, "steps": 1}
    assert {value.dtype for value in weights(run(aligning)).values()} <= {torch.float16, torch.int64}


# ---- the same again


def test_from_scratch_twice_gives_the_identical_model(
    aligning: Job, run: Run, elsewhere: Elsewhere, student_section: dict[str, Any]
) -> None:
    aligning |= {"student": student_section, "options": {"start": "scratch", "steps": 3}}
    first, again = run(aligning), run(elsewhere(aligning, "again"))
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"):
        assert (first.model / name).read_bytes() == (again.model / name).read_bytes(), name


def test_killed_in_the_middle_and_run_again_gives_the_weights_of_the_unbroken_run(
    aligning: Job,
    run: Run,
    elsewhere: Elsewhere,
    kill: Stop,
    sha256: Sha,
    watching: Callable[..., Any],
    student_section: dict[str, Any],
) -> None:
    student_section["image"] |= {"dropout": 0.1, "drop_path": 0.1}  # random numbers in the step itself, too
    aligning |= {"student": student_section, "options": {"start": "scratch"}}
    unbroken = run(elsewhere(aligning, "unbroken"))
    kill(aligning, "align", 5)
    assert (Path(aligning["root"]) / "align" / "state" / "step-00000004").is_dir()
    progress = watching()
    result = run(aligning, progress)
    assert "align: resuming from step 4 of 6" in progress.said
    assert sha256(result) == sha256(unbroken)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_interrupted_anywhere_and_run_again_gives_the_weights_of_the_unbroken_run(
    aligning: Job, run: Run, elsewhere: Elsewhere, interrupt: Stop, sha256: Sha, step: int
) -> None:
    unbroken = run(elsewhere(aligning, "unbroken"))
    interrupt(aligning, "align", step)
    assert sha256(run(aligning)) == sha256(unbroken)


def test_a_finished_stage_does_nothing_and_fresh_does_it_again(aligning: Job, run: Run, sha256: Sha) -> None:
    first = run(aligning)
    expected = sha256(first)
    assert run(aligning).already_finished
    again = run(aligning | {"fresh": True})
    assert (again.already_finished, sha256(again)) == (False, expected)


@pytest.mark.parametrize("changed", ["rate", "seed", "data", "start", "lock"])
def test_a_changed_recipe_on_an_old_state_is_refused_and_fresh_is_the_way_out(
    aligning: Job, run: Run, elsewhere: Elsewhere, interrupt: Stop, pairs: list[Pair], tmp_path: Path, changed: str
) -> None:
    interrupt(aligning, "align", 2)
    other = json.loads(json.dumps(aligning))
    match changed:
        case "rate":
            other["options"]["optimizer"] = {"lr": 2e-3}
        case "seed":
            other["seed"] = 1
        case "data":
            other["data"] = str(tmp_path / "other.parquet")
            write_parquet(tmp_path / "other.parquet", pairs[:-1])
        case "start":
            other["options"]["start"] = str(run(elsewhere(aligning, "longer")).model)
        case "lock":
            other["options"]["lock"] = "image"
    with pytest.raises(DcclipError, match="was saved by another recipe") as raised:
        run(other)
    assert "--fresh" in raised.value.hint
    assert not run(other | {"fresh": True}).already_finished


# ---- the other ways to align


def test_siglip_learns_a_bias_and_any_open_clip_reads_it(aligning: Job, run: Run, elsewhere: Elsewhere) -> None:
    import open_clip

    aligning["options"] |= {"loss": "siglip", "cross_lingual": 0.5}
    result = run(aligning)
    assert set(result.metrics) >= {"image_zh", "image_en", "zh_en", "logit_scale", "logit_bias"}
    assert result.metrics["logit_bias"] != -10 and result.metrics["logit_scale"] == pytest.approx(10, rel=0.2)
    model = open_clip.create_model(f"local-dir:{result.model}")
    assert float(model.logit_bias.detach()) == pytest.approx(result.metrics["logit_bias"], abs=1e-6)
    again = run(elsewhere(aligning, "again", options=aligning["options"] | {"start": str(result.model), "steps": 1}))
    assert load_model(again.model).logit_bias == pytest.approx(result.metrics["logit_bias"], abs=0.01)


def test_a_distillation_term_keeps_stage_2_near_its_teacher(
    aligning: Job, run: Run, elsewhere: Elsewhere, distilling: Job, model_folder: Path
) -> None:
    aligning |= {"teacher": {"kind": "open_clip", "model": str(model_folder)}}
    aligning["options"] |= {"losses": [{"kind": "embedding", "weight": 100}], "steps": 10, "augmentations": 1}
    held = run(aligning)
    free = run(elsewhere(aligning, "free", options=aligning["options"] | {"losses": []}))
    towers = [load_model(folder) for folder in (model_folder, held.model, free.model)]
    with torch.no_grad():
        before, near, far = (
            torch.nn.functional.normalize(one.text_features(one.tokenize(["红色的圆", "red circle"])).embedding, dim=-1)
            for one in towers
        )
    assert (before * near).sum() > (before * far).sum()
    assert "embedding" in held.metrics and "embedding" not in free.metrics


def test_gradients_in_parts_that_see_each_other_give_the_weights_of_the_whole_batch(
    aligning: Job, run: Run, elsewhere: Elsewhere
) -> None:
    common = {"freeze_batch_norms": True, "optimizer": {"kind": "sgd", "lr": 0.1}, "steps": 4}
    aligning["options"] |= common
    whole = weights(run(aligning))
    parts = weights(
        run(elsewhere(aligning, "parts", options=aligning["options"] | {"accumulate": 4, "gradient_cache": True}))
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_no_weight(aligning: Job, run: Run, elsewhere: Elsewhere, sha256: Sha) -> None:
    plain = weights(run(aligning))
    checkpointed = weights(
        run(elsewhere(aligning, "checkpointed", options=aligning["options"] | {"gradient_checkpointing": True}))
    )
    for name, value in plain.items():
        if "num_batches" not in name and "running" not in name:
            torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-5)


def test_frozen_batch_norms_keep_their_statistics(aligning: Job, run: Run) -> None:
    aligning["options"] |= {"freeze_batch_norms": True}
    before, after = weights(Path(aligning["options"]["start"])), weights(run(aligning))
    assert all(torch.equal(value, before[name]) for name, value in after.items() if "running" in name)
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_the_best_weights_by_validation_are_kept_and_worse_ones_end_training(
    aligning: Job, run: Run, pairs_file: Path
) -> None:
    aligning["data"] = {"train": str(pairs_file), "validation": str(pairs_file)}
    harmful = {"optimizer": {"lr": 0.5}, "warmup_steps": 0}  # nothing gets better by such steps
    aligning["options"] |= {"steps": 40, "validate_every_steps": 1, "patience": 3, "keep": "best", **harmful}
    result = run(aligning)
    logged = [json.loads(line) for line in (result.model.parent / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: (line["top1_zh"] + line["top1_en"]) / 2 for line in logged if "top1_zh" in line}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert result.metrics["best_step"] == best
    assert max(measured) == best + 3 < 40
    assert (result.metrics["top1_zh"] + result.metrics["top1_en"]) / 2 == pytest.approx(measured[best], abs=1e-5)


def test_validation_without_pairs_to_validate_on_is_refused(aligning: Job, run: Run) -> None:
    with pytest.raises(DcclipError, match="validate_every_steps needs pairs") as raised:
        run(aligning | {"options": aligning["options"] | {"validate_every_steps": 1}})
    assert raised.value.hint == "set data.validation"


@pytest.mark.parametrize("options", [{"ema": 0.5}, {"optimizer": {"layer_decay": 0.5}}])
def test_interrupted_with_ema_or_layer_decay_it_resumes_bit_for_bit(
    aligning: Job, run: Run, elsewhere: Elsewhere, interrupt: Stop, sha256: Sha, options: Job
) -> None:
    plain = sha256(run(elsewhere(aligning, "plain")))
    aligning["options"] |= options
    unbroken = sha256(run(elsewhere(aligning, "unbroken")))
    interrupt(aligning, "align", 3)
    assert sha256(run(aligning)) == unbroken != plain
