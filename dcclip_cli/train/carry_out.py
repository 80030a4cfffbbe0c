"""From a planned stage to its model directory: the one way that both stages go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.errors import DcclipError
from dcclip_cli.progress import Progress
from dcclip_cli.run_dir import RunDir, TrainResult
from dcclip_cli.train.loop import fit
from dcclip_cli.train.losses.base import Loss
from dcclip_cli.train.objective import Objective, Tower
from dcclip_cli.train.options import LoopOptions
from dcclip_cli.train.stage import Student
from dcclip_cli.train.teachers import TeacherSource
from dcclip_cli.train.teaching import Teaching
from dcclip_cli.train.validation import open_validation


@dataclass(frozen=True)
class Plan:
    """All that a stage has settled before its first step. `validation` is the path of pairs to validate on."""

    name: str
    learner: Student
    losses: Sequence[Loss]
    teaching: Teaching
    sources: Sequence[TeacherSource]
    reader: Collator
    order: MixedBatchSampler
    options: LoopOptions
    validation: str | None
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    lock: Tower | None = None
    max_logit_scale: float = 100.0
    half: bool = False


def carry_out(plan: Plan, seed: int, run: RunDir, device: str, progress: Progress) -> TrainResult:
    """Train the student as planned and leave its model directory.

    Raises DcclipError for options that do not go together with the losses or the student, and as the loop does.
    """
    options, towers = plan.options, plan.learner.towers
    stage = Objective(
        towers,
        plan.losses,
        plan.sources,
        plan.teaching.widths,
        seed,
        plan.lock,
        plan.max_logit_scale,
        options.freeze_batch_norms,
    )
    if options.gradient_cache and not stage.embeddings_only:
        inside = ", ".join(loss.kind for loss in plan.losses if not loss.embeddings_only)
        raise DcclipError(
            f"{plan.name}.gradient_cache goes with losses on embeddings, and {inside} looks inside the towers",
            "leave one of them out; accumulate alone saves memory as well",
        )
    if options.gradient_checkpointing:
        _checkpoint_gradients(plan.learner)
    measure = None
    if options.validate_every_steps is not None:
        validation = open_validation(plan.validation, options.captions.languages)

        def measure() -> dict[str, float]:
            return validation(towers)

    folder, model = run.stage(plan.name), run.model(plan.name)

    def finish(figures: dict[str, float]) -> None:
        plan.learner.save(model, {**plan.provenance, "metrics": figures}, plan.half)

    fitted = fit(
        stage,
        plan.name,
        plan.reader,
        plan.order,
        options,
        folder,
        plan.identity,
        seed,
        device,
        progress,
        finish,
        measure,
    )
    return TrainResult(model, False, fitted.seconds, fitted.figures, dict(plan.provenance))


def _checkpoint_gradients(learner: Student) -> None:
    model = learner.towers.model
    model.text.set_grad_checkpointing(True)
    trunk = model.visual.trunk
    try:
        trunk.set_grad_checkpointing(True)
    except AssertionError:
        network = learner.config["vision_cfg"]["timm_model_name"]
        raise DcclipError(
            f"{network} has no gradient checkpointing", "leave gradient_checkpointing out, or take another network"
        ) from None
