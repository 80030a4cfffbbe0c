"""What both stages let a recipe choose about the loop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.options import CaptionOptions
from dcclip_cli.model.precision import Precision
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import Neutral, Options


class OptimizerOptions(Options):
    """AdamW; SGD; or Muon: momentum made orthogonal, for matrices and convolutions, beside AdamW for all else.

    Biases, norms and positions are not decayed. Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    timm's, with its step scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """

    kind: Literal["adamw", "muon", "sgd"] = Field(
        "adamw", description="muon learns several times more from a step, and wants a rate about ten times as high"
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate")
    other_lr: float | None = Field(
        None, gt=0, description="Peak rate of what Muon leaves to AdamW: norms, biases, embeddings; default: lr"
    )
    image_lr_scale: float = Field(
        1.0, ge=0, description="Factor on it for the image tower's trunk, gentle on pretrained weights"
    )
    text_lr_scale: float = Field(1.0, ge=0, description="Factor on it for the text tower")
    projection_lr_scale: float = Field(1.0, ge=0, description="Factor on it for both projections to the shared space")
    temperature_lr_scale: float = Field(1.0, ge=0, description="Factor on it for temperature and bias of the contrast")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on it for each layer below a tower's last one: gentle on what came first"
    )
    weight_decay: float = Field(0.05, ge=0, description="On matrices and convolutions")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's decay of the gradient's mean and its square")
    eps: float = Field(1e-6, gt=0, description="Added to the root of the squared gradient's mean")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's and SGD's")

    newton_schulz: Precision = Field(
        "auto", description="What Muon's Newton-Schulz iteration computes in; auto: bf16 where the processor has it"
    )

    @model_validator(mode="after")
    def _other_rate_only_beside_muon(self) -> Self:
        if self.other_lr is not None and self.kind != "muon":
            raise ValueError("other_lr goes with kind: muon; the others have one rate, lr")
        return self


class LoopOptions(Options):
    """How long and how a stage trains. Give `epochs` or `steps`."""

    epochs: float | None = Field(None, gt=0, description="Passes over the training pairs, in parts too")
    steps: int | None = Field(None, ge=1, description="Batches, instead of epochs")
    batch_size: int = Field(256, ge=2, description="Over all processes")
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that each process's batch goes through the student in, one after the other: less memory",
    )
    gradient_cache: bool = Field(
        False,
        description="The parts see each other, at the price of a second forward pass; for losses on embeddings",
    )
    gradient_checkpointing: bool = Field(
        False, description="Work activations out again in the backward pass: less memory, a third more time"
    )
    freeze_batch_norms: bool = Field(False, description="Keep the statistics of batch norms as they are")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="The optimizer and its rates")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear rise to the peak rate; then half a cosine to 0")
    clip_norm: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; null: any")
    parallel: Neutral[Literal["ddp"]] = Field("ddp", description="Several processes train with DistributedDataParallel")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="bf16, fp16: autocast, the weights stay fp32; fp16 needs a GPU; auto: bf16 where this machine is "
        "faster with it",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep the average of the weights, which at each step moves by 1 - this to the new ones",
    )
    validate_every_steps: int | None = Field(
        None, ge=1, description="Steps between two zero-shot measurements on data.validation, in each language"
    )
    patience: int | None = Field(
        None, ge=1, description="Measurements in a row that may be worse than the best, before training ends"
    )
    keep: Literal["last", "best"] = Field("last", description="best: the weights that were best in validation")
    max_skipped_steps: int = Field(
        10,
        ge=1,
        description="Steps in a row that may be left out, since a loss or gradient is not finite, before it ends",
    )
    warn_at_chance_steps: int = Field(
        500, ge=1, description="Steps after which a contrast that is still where guessing would be is warned about"
    )
    captions: CaptionOptions = Field(CaptionOptions(), description="Which of a pair's captions a step sees")
    augment: Augment = Field(Augment(), description="Random changes of the pictures")
    workers: Neutral[int] = Field(1, ge=0, description="Processes that read pictures, for each training process")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of torch, which must match for bit-identical weights; default: the cores that this "
        "process may use and other work does not, less `workers`, but more than half of them",
    )
    log_every_steps: Neutral[int] = Field(
        20, ge=1, description="Steps between two entries in metrics.jsonl and TensorBoard"
    )
    checkpoint_every_steps: Neutral[int] = Field(200, ge=1, description="Steps between two saved states to go on from")

    @model_validator(mode="after")
    def _validation_before_it_is_used(self) -> Self:
        if self.validate_every_steps is None and (self.patience is not None or self.keep == "best"):
            raise ValueError("patience and keep: best go by validation: give validate_every_steps")
        return self

    @model_validator(mode="after")
    def _parts_of_the_batch(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        if self.gradient_cache and self.accumulate == 1:
            raise ValueError("gradient_cache joins the parts of a batch: give accumulate, how many")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class TeachingOptions(LoopOptions):
    """How a stage asks its teachers."""

    more_teachers: tuple[Teacher, ...] = Field(
        (),
        description="Beside the recipe's teacher, which is number 0: for `ensemble`, and losses that name theirs",
    )
    teacher_cache: bool = Field(
        True, description="Ask the teachers once per picture and augmentation, and keep their answers"
    )
    augmentations: int = Field(4, ge=1, description="Different augmentations of a picture, where the cache is on")
