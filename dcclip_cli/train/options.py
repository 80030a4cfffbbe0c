"""Training options that distill and align share: optimizer, loop, teachers."""

from collections.abc import Mapping
from math import ceil, gcd
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.errors import Message
from dcclip_cli.model import Precision
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import Dims, Neutral, Options
from dcclip_cli.train.lora import LoraOptions

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=100)]  # of learning
_MOST_STEPS = 100_000_000
Steps = Annotated[int, Field(ge=1, le=_MOST_STEPS)]
MOST_PER_STEP = 2**20  # samples
PerStep = Annotated[int, Field(ge=1, le=MOST_PER_STEP)]


class OptimizerOptions(Options):
    """AdamW, SGD or Muon: orthogonalized momentum for matrices and convolutions, AdamW for all other parameters.

    No weight decay for biases, norms, position embeddings and position biases. Muon: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; timm's implementation, with steps scaled to AdamW's (Liu et al. 2025,
    arXiv 2502.16982).
    """

    kind: Literal["adamw", "muon", "sgd"] = Field(
        "adamw", description="Optimizer; muon needs fewer steps and a learning rate about ten times as high"
    )
    lr: Rate = Field(1e-3, description="Peak learning rate")
    other_lr: Rate | None = Field(
        None,
        description="Peak learning rate of the parameters that Muon leaves to AdamW: norms, biases, embeddings; "
        "default: lr",
    )
    image_lr_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Learning-rate multiplier for the image trunk; below 1 for pretrained weights. 0 trains only the "
        "projection, several times as fast; then set freeze_batch_norms too",
    )
    text_lr_scale: float = Field(
        1.0, ge=0, le=1000, description="Learning-rate multiplier for the text tower; below 1 for inherited weights"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise learning-rate decay: each layer's rate is that of the next layer times this factor",
    )
    weight_decay: float = Field(0.05, ge=0, le=10, description="Weight decay of matrices and convolutions")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="AdamW's betas")
    eps: float = Field(1e-6, gt=0, le=1, description="AdamW's epsilon")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon and SGD")
    newton_schulz: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Precision of Muon's Newton-Schulz iteration; auto: bf16 where the processor supports it"
    )

    @model_validator(mode="after")
    def _other_rate_only_with_muon(self) -> Self:
        if self.other_lr is not None and self.kind != "muon":
            raise ValueError(Message("other_lr needs kind: muon; the other optimizers have only one learning rate, lr"))
        return self


class TrainOptions(Options):
    """How long and how a stage trains. Set either `epochs` or `steps`."""

    epochs: float | None = Field(
        None, gt=0, le=100_000, description="Passes over the training pairs; fractions are allowed"
    )
    steps: Steps | None = Field(None, description="Training steps, instead of epochs")
    batch_size: int = Field(256, ge=2, le=MOST_PER_STEP, description="Pairs per step, over all processes")
    accumulate: PerStep | Literal["auto"] = Field(
        1,
        description="Gradient-accumulation parts per batch, to save memory; losses see one part at a time. auto: 1, "
        "doubled whenever memory runs out",
    )
    images_per_part: PerStep | None = Field(
        None,
        description="Maximum images per forward pass of the student in each process; batches are split into the "
        "fewest equal parts within this limit. null: accumulate sets the number of parts",
    )
    gradient_cache: bool = Field(
        False,
        description="Gradient caching: all accumulated parts form one contrastive batch, at the cost of a second "
        "forward pass; requires losses on embeddings only",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time"
    )
    freeze_batch_norms: bool = Field(False, description="Keep the running statistics of batch norms unchanged")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="Optimizer and learning rates")
    lora: LoraOptions | None = Field(
        None,
        description="LoRA: train only a small number of parameters, for pretrained or inherited models; null: "
        "train all parameters",
    )
    warmup_steps: int = Field(
        100, ge=0, le=_MOST_STEPS, description="Steps of linear learning-rate warm-up, followed by cosine decay to 0"
    )
    clip_norm: float | None = Field(1.0, gt=0, le=1e6, description="Gradient-norm clipping; null disables it")
    precision: Precision = Field(
        "auto",
        description="Precision of the forward pass (autocast; weights stay fp32). fp16 requires a GPU. auto: bf16 "
        "where the processor supports it, fp16 on older GPUs, fp32 on CPUs for image networks with depthwise "
        "convolutions",
    )
    tf32: bool = Field(
        True, description="TF32 in fp32 matrix products and convolutions on a GPU: faster, with a 10-bit mantissa"
    )
    compile: Literal["auto", "off"] = Field(
        "off",
        description="Compile the student's image tower and live teachers (torch.compile). auto: only if a test run is "
        "at least 1.15 times as fast; the test takes minutes and needs a GPU or a C++ compiler",
    )
    deterministic: bool = Field(
        True,
        description="Deterministic algorithms: the same run gives bit-identical weights. false: faster algorithms on "
        "a GPU; a resumed run differs in the last bits",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="EMA decay: save an exponential moving average of the weights; null: no EMA"
    )
    validate_every_steps: Steps | None = Field(
        None, description="Steps between zero-shot validations on data.validation in each language; null: none"
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Early stopping: end after this many validations without improvement; null: never",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Weights to save: those of the last step, or the best ones in validation"
    )
    captions: CaptionOptions = Field(CaptionOptions(), description="Which captions of a pair are used")
    augment: Augment = Field(Augment(), description="Image augmentations")
    workers: Neutral[Annotated[int, Field(ge=0, le=256)] | Literal["auto"]] = Field(
        "auto",
        description="Data-loading processes per training process; auto: 1 on the CPU; on a GPU, as many as the "
        "process has cores, minus one",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch; bit-identical runs need the same number. Default: one per core that is "
        "not used by other programs or `workers`",
    )
    log_every_steps: Neutral[Steps] = Field(20, description="Steps between entries in metrics.jsonl and the trackers")
    checkpoint_every_steps: Neutral[Steps | None] = Field(
        200, description="Steps between checkpoints that a run can resume from; null: no step-based checkpoints"
    )
    checkpoint_every_minutes: Neutral[Annotated[float, Field(gt=0, le=100_000)] | None] = Field(
        None, description="Minutes between checkpoints, in addition to those of checkpoint_every_steps; null: none"
    )
    keep_checkpoints: Neutral[int] = Field(1, ge=1, le=1000, description="Number of most recent checkpoints to keep")
    dims: tuple[Dims, ...] = Field(
        (),
        description="Matryoshka training: also compute losses on the first d dimensions of embeddings, for each d in "
        "this list, with equal weights, so that embeddings can be shortened to d",
    )
    more_teachers: tuple[Teacher, ...] = Field(
        (),
        description="Additional teachers, numbered from 1, for `ensemble` and for losses with a `teacher` number; "
        "the recipe's teacher is number 0",
    )
    teacher_cache: bool | Literal["texts"] = Field(
        True,
        description="Run the teachers once per image augmentation and caption, and cache their features on disk; "
        "texts: cache those of captions only, so that each epoch has new augmentations",
    )
    augmentations: int = Field(
        4, ge=1, le=1000, description="Number of different augmentations of each image with teacher_cache: true"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(Message("set either epochs or steps"))
        if self.accumulate != "auto" and self.batch_size % self.accumulate:
            raise ValueError(
                Message("batch_size ({}) must be a multiple of accumulate ({})", self.batch_size, self.accumulate)
            )
        if self.images_per_part and self.accumulate != 1:
            raise ValueError(Message("images_per_part and accumulate both split batches: remove one of them"))
        if self.gradient_cache and self.accumulate == 1 and not self.images_per_part:
            raise ValueError(Message("gradient_cache joins the parts of a batch: set images_per_part or accumulate"))
        if self.validate_every_steps is None and (self.patience is not None or self.keep == "best"):
            raise ValueError(Message("patience and keep: best need validation: set validate_every_steps"))
        return self

    def fewest_parts(self, sizes: Mapping[str, int], processes: int) -> int:
        """The number of parts that a run begins to split batches of `sizes` into: samples by kind, as in Stage."""
        if not self.images_per_part:
            return 1 if self.accumulate == "auto" else self.accumulate
        images, share = sum(size for kind, size in sizes.items() if kind != "texts"), gcd(*sizes.values()) // processes
        fewest = max(1, ceil(images / (processes * self.images_per_part)))
        # Equal parts; where there are none, it is the check of shares that says so.
        return next((parts for parts in range(fewest, share + 1) if share % parts == 0), fewest)

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))
