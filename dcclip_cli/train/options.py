"""Training options: optimizer, loop and teachers, which both stages share, and what differs
between the stages.

Stage 1: the student's towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249).
Stage 2: both together, image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE,
CLIP).
"""

from collections.abc import Mapping
from math import ceil, gcd
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import Dims, Neutral, Options
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.options import Augment, CaptionOptions, DataOptions, Source
from dcclip_cli.model import Precision
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.train.lora import LoraOptions
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.base import Tower
from dcclip_cli.train.losses.contrastive import ContrastOptions, TaskLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss

Rate = Annotated[float, Field(gt=0, le=100)]  # of learning
_MOST_STEPS = 99_999_999  # checkpoints have eight digits, which sort as text
Schedule = Literal["cosine", "constant", "constant-with-cooldown"]
Steps = Annotated[int, Field(ge=1, le=_MOST_STEPS)]
_MOST_PER_STEP = 2**20  # samples
PerStep = Annotated[int, Field(ge=1, le=_MOST_PER_STEP)]


class OptimizerOptions(Options):
    """AdamW, SGD or Muon: orthogonalized momentum for matrices and convolutions, AdamW for all
    other parameters.

    No weight decay for biases, norms, position embeddings and position biases. Muon: Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon; timm's implementation, with steps scaled to
    AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """

    kind: Literal["adamw", "muon", "sgd"] = Field(
        "adamw",
        description="Optimizer; muon needs fewer steps and a learning rate about ten times as high",
    )
    lr: Rate = Field(1e-3, description="Peak learning rate")
    other_lr: Rate | None = Field(
        None,
        description="Peak learning rate of the parameters that Muon leaves to AdamW: norms, "
        "biases, embeddings; "
        "default: lr",
    )
    image_lr_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Learning-rate multiplier for the image trunk; below 1 for pretrained "
        "weights. 0 trains only the "
        "projection, several times as fast; then set freeze_batch_norms too",
    )
    text_lr_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Learning-rate multiplier for the text tower; below 1 for inherited weights",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise learning-rate decay: each layer's rate is that of the next layer "
        "times this factor",
    )
    weight_decay: float = Field(
        0.05, ge=0, le=10, description="Weight decay of matrices and convolutions"
    )
    eps: float = Field(1e-6, gt=0, le=1, description="AdamW's epsilon")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon and SGD")
    newton_schulz: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of Muon's Newton-Schulz iteration; auto: bf16 where the processor "
        "supports it",
    )

    @model_validator(mode="after")
    def _other_rate_only_with_muon(self) -> Self:
        if self.other_lr is not None and self.kind != "muon":
            raise ValueError(
                Message(
                    "other_lr needs kind: muon; the other optimizers have only one "
                    "learning rate, lr"
                )
            )
        return self


class TrainOptions(Options):
    """How long and how a stage trains. Set either `epochs` or `steps`."""

    epochs: float | None = Field(
        None, gt=0, le=100_000, description="Passes over the training pairs; fractions are allowed"
    )
    steps: Steps | None = Field(None, description="Training steps, instead of epochs")
    batch_size: int = Field(
        256, ge=2, le=_MOST_PER_STEP, description="Pairs per step, over all processes"
    )
    accumulate: PerStep | Literal["auto"] = Field(
        1,
        description="Gradient-accumulation parts per batch, to save memory; losses see one part "
        "at a time. auto: 1, "
        "doubled whenever memory runs out",
    )
    images_per_part: PerStep | None = Field(
        None,
        description="Maximum images per forward pass of the student in each process; batches are "
        "split into the "
        "fewest equal parts within this limit. null: accumulate sets the number of parts",
    )
    gradient_cache: bool = Field(
        False,
        description="Gradient caching: all accumulated parts form one contrastive batch, at the "
        "cost of a second "
        "forward pass; requires losses on embeddings only",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, about a third more time",
    )
    freeze_batch_norms: bool = Field(
        False, description="Keep the running statistics of batch norms unchanged"
    )
    optimizer: OptimizerOptions = Field(
        OptimizerOptions(), description="Optimizer and learning rates"
    )
    lora: LoraOptions | None = Field(
        None,
        description="LoRA: train only a small number of parameters, for pretrained or inherited "
        "models; null: "
        "train all parameters",
    )
    warmup_steps: int = Field(
        100,
        ge=0,
        le=_MOST_STEPS,
        description="Steps of linear learning-rate warm-up, followed by the schedule",
    )
    schedule: Schedule = Field(
        "cosine",
        description="Learning rate after the warm-up. cosine: decay to 0; constant: the peak rate; "
        "constant-with-cooldown: the peak rate, then linear decay to 0 in the last cooldown_steps",
    )
    cooldown_steps: int = Field(
        0,
        ge=0,
        le=_MOST_STEPS,
        description="Last steps of constant-with-cooldown, in which the rate decays to 0",
    )
    clip_norm: float | None = Field(
        1.0, gt=0, le=1e6, description="Gradient-norm clipping; null disables it"
    )
    clip_towers: bool = Field(
        False,
        description="Clip the gradient norms of the image tower and of the text tower "
        "separately, each to clip_norm: a "
        "spike in one tower then leaves the step of the other unchanged",
    )
    precision: Precision = Field(
        "auto",
        description="Precision of the forward pass (autocast; weights stay fp32). fp16 requires "
        "a GPU. auto: bf16 "
        "where the processor supports it, fp16 on older GPUs, fp32 on CPUs for image "
        "networks with depthwise "
        "convolutions",
    )
    tf32: bool = Field(
        True,
        description="TF32 in fp32 matrix products and convolutions on a GPU: faster, with a "
        "10-bit mantissa",
    )
    compile: bool = Field(
        False,
        description="Compile the student's image tower and live teachers (torch.compile), which "
        "takes minutes; needs "
        "a GPU or a C++ compiler",
    )
    deterministic: bool = Field(
        True,
        description="Deterministic algorithms: the same run gives bit-identical weights. false: "
        "faster algorithms on "
        "a GPU; a resumed run differs in the last bits",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="EMA decay: save an exponential moving average of the weights; null: no EMA",
    )
    validate_every_steps: Steps | None = Field(
        None,
        description="Steps between zero-shot validations on data.validation in each language; null: none",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Early stopping: end after this many validations without improvement; null: never",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="Weights to save: those of the last step, or the best ones in validation",
    )
    captions: CaptionOptions = Field(
        CaptionOptions(), description="Which captions of a pair are used"
    )
    augment: Augment = Field(Augment(), description="Image augmentations")
    workers: Neutral[Annotated[int, Field(ge=0, le=256)] | Literal["auto"]] = Field(
        "auto",
        description="Data-loading processes per training process; auto: 1 on the CPU; on a GPU, "
        "as many as the "
        "process has cores, minus one",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch; bit-identical runs need the same number. Default: the "
        "process's cores "
        "minus `workers`",
    )
    log_every_steps: Neutral[Steps] = Field(
        20, description="Steps between entries in metrics.jsonl and the trackers"
    )
    checkpoint_every_steps: Neutral[Steps | None] = Field(
        200,
        description="Steps between checkpoints that a run can resume from; null: no step-based "
        "checkpoints",
    )
    checkpoint_every_minutes: Neutral[Annotated[float, Field(gt=0, le=100_000)] | None] = Field(
        None,
        description="Minutes between checkpoints, in addition to those of "
        "checkpoint_every_steps; null: none",
    )
    keep_checkpoints: Neutral[int] = Field(
        1, ge=1, le=1000, description="Number of most recent checkpoints to keep"
    )
    dims: tuple[Dims, ...] = Field(
        (),
        description="Matryoshka training: also compute losses on the first d dimensions of "
        "embeddings, for each d in "
        "this list, with equal weights, so that embeddings can be shortened to d",
    )
    more_teachers: tuple[Teacher, ...] = Field(
        (),
        description="Additional teachers, numbered from 1, for `ensemble` and for losses with a "
        "`teacher` number; "
        "the recipe's teacher is number 0",
    )
    teacher_cache: bool | Literal["texts"] = Field(
        True,
        description="Run the teachers once per image augmentation and caption, and cache their "
        "features on disk; "
        "texts: cache those of captions only, so that each epoch has new augmentations",
    )
    augmentations: int = Field(
        4,
        ge=1,
        le=1000,
        description="Number of different augmentations of each image with teacher_cache: true",
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(Message("set either epochs or steps"))
        if self.accumulate != "auto" and self.batch_size % self.accumulate:
            raise ValueError(
                Message(
                    "batch_size ({}) must be a multiple of accumulate ({})",
                    self.batch_size,
                    self.accumulate,
                )
            )
        if self.images_per_part and self.accumulate != 1:
            raise ValueError(
                Message("images_per_part and accumulate both split batches: remove one of them")
            )
        if self.gradient_cache and self.accumulate == 1 and not self.images_per_part:
            raise ValueError(
                Message(
                    "gradient_cache joins the parts of a batch: set images_per_part or accumulate"
                )
            )
        if (self.schedule == "constant-with-cooldown") != (self.cooldown_steps > 0):
            raise ValueError(
                Message(
                    "schedule: constant-with-cooldown and cooldown_steps belong together: set both"
                )
            )
        if self.clip_towers and self.clip_norm is None:
            raise ValueError(
                Message("clip_towers has no effect without clip_norm: set clip_norm, or remove it")
            )
        if self.validate_every_steps is None and (self.patience is not None or self.keep == "best"):
            raise ValueError(
                Message("patience and keep: best need validation: set validate_every_steps")
            )
        return self

    def fewest_parts(self, sizes: Mapping[str, int], processes: int) -> int:
        """The number of parts that a run begins to split batches of `sizes` into: samples by kind,
        as in Stage.
        """
        if not self.images_per_part:
            return 1 if self.accumulate == "auto" else self.accumulate
        images = sum(size for kind, size in sizes.items() if kind != "texts")
        share = gcd(*sizes.values()) // processes
        fewest = max(1, ceil(images / (processes * self.images_per_part)))
        # Equal parts; where there are none, it is the check of shares that says so.
        return next((parts for parts in range(fewest, share + 1) if share % parts == 0), fewest)

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))


class DistillOptions(TrainOptions):
    """Stage 1 of a recipe."""

    stage: ClassVar[Literal["distill"]] = "distill"
    contrast: ClassVar[TaskLoss | None] = (
        None  # between images and captions, in addition to `losses`
    )
    distinct_captions: ClassVar[bool] = False
    max_logit_scale: ClassVar[float] = 100.0
    half: ClassVar[bool] = False

    losses: tuple[DistillLoss, ...] = Field(
        (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss()),
        min_length=1,
        description="Losses between student and teacher; their weighted sum is minimized",
    )
    images_per_step: int | None = Field(
        None,
        ge=0,
        le=_MOST_PER_STEP,
        description="Images of data.images per step in addition to batch_size pairs, over all "
        "processes; default: "
        "batch_size; 0: none",
    )
    texts_per_step: int | None = Field(
        None,
        ge=0,
        le=_MOST_PER_STEP,
        description="Texts of data.texts per step in addition to batch_size pairs, over all "
        "processes; default: "
        "batch_size; 0: none",
    )

    def start_folder(self, run: RunDir) -> None:
        """The model directory that the student is loaded from: it is a new one."""

    def locked(self, student: StudentOptions | None) -> Tower | None:
        """The tower that is not trained."""
        return "image" if student and student.keeps_images else None

    def stage_data(self, data: DataOptions, student: StudentOptions | None) -> DataOptions:
        return data


class AlignOptions(ContrastOptions, TrainOptions):
    """Stage 2 of a recipe, or the training of a model from scratch."""

    stage: ClassVar[Literal["align"]] = "align"

    losses: tuple[DistillLoss, ...] = Field(
        (),
        description="Distillation losses in addition to the contrastive loss, to retain what "
        "stage 1 learned",
    )
    train: Source | None = Field(None, description="Pairs for this stage only; default: data.train")
    images_per_step: PerStep | None = Field(
        None,
        description="Images of data.images per step in addition to batch_size pairs, for "
        "`losses`; default: none",
    )
    texts_per_step: PerStep | None = Field(
        None,
        description="Texts of data.texts per step in addition to batch_size pairs, for `losses`; "
        "default: none",
    )
    start: str = Field(
        "distill",
        description="Model to start from: `distill` (this recipe's stage 1), `scratch` or a "
        "model directory",
    )
    lock: Literal["image", "text"] | None = Field(
        None, description="Tower to freeze, including its batch norm statistics; null: none"
    )
    max_logit_scale: float = Field(
        100.0, gt=1, le=10_000, description="Upper bound of the learned 1 / temperature, as in CLIP"
    )
    distinct_captions: bool = Field(
        True, description="Never put two pairs with the same first caption in one batch"
    )
    half: bool = Field(False, description="Save the model's weights as fp16")

    @property
    def contrast(self) -> TaskLoss:
        """The contrastive loss, in addition to `losses`."""
        return TaskLoss(**{name: getattr(self, name) for name in ContrastOptions.model_fields})

    def start_folder(self, run: RunDir) -> Path | None:
        """The model directory that the student is loaded from; None: it is a new one."""
        return {"distill": run.model("distill"), "scratch": None}.get(self.start, Path(self.start))

    def locked(self, student: StudentOptions | None) -> Tower | None:
        """The tower that is not trained."""
        return (
            "image"
            if student and student.keeps_images and self.start in ("distill", "scratch")
            else self.lock
        )

    def stage_data(self, data: DataOptions, student: StudentOptions | None) -> DataOptions:
        """The data of the stage: the recipe's, with the pairs that align trains on.

        Raises DcclipError for missing pairs, data without use, and a new student that the recipe
        does not have.
        """
        train = self.train or data.train
        if train is None:
            raise DcclipError(
                "align needs image-caption pairs, but data has none", "set data.train"
            )
        if self.train and data.hold_out:
            problem = Message(
                "align.train is set, but data.hold_out takes pairs from data.train only"
            )
            raise DcclipError(problem, "use data.validation instead of data.hold_out")
        for name, count in (("images", self.images_per_step), ("texts", self.texts_per_step)):
            if count and getattr(data, name) is None:
                raise DcclipError(
                    "align.{0}_per_step is {1}, but data.{0} is not set",
                    "set data.{0}",
                    name,
                    count,
                )
            if count and not self.losses:
                problem = Message(
                    "align.{}_per_step is {}, but the contrastive loss uses only pairs", name, count
                )
                raise DcclipError(
                    problem, "add a distillation loss to align.losses, or remove the key"
                )
        if self.lock == "text" and self.locked(student) == "image":
            problem = Message(
                "align.lock is text, but student.image: teacher locks the image tower"
            )
            raise DcclipError(problem, "remove align.lock")
        if self.start == "scratch" and student is None:
            raise DcclipError(
                "align starts from scratch, but the recipe has no student", "add a student section"
            )
        return data.model_copy(update={"train": train})
