"""Training options that distill and align share: optimizer, loop, teachers; and what a stage gets from its caller."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.data.options import Augment, CaptionOptions, DataOptions
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.errors import DcclipError, Message, all_of
from dcclip_cli.machine import is_one_of_several
from dcclip_cli.model import Precision
from dcclip_cli.model.students import StudentOptions, no_vocabulary
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import Neutral, Options
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.run_dir import RunDir, TrainResult, finished
from dcclip_cli.train.lora import LoraOptions
from dcclip_cli.train.losses.base import Loss, Tower
from dcclip_cli.train.metrics_log import MetricsListener, TrackerName

Beta = Annotated[float, Field(ge=0, lt=1)]
_MOST_STEPS = 100_000_000
MOST_PER_STEP = 2**20  # samples
DEFAULT_EMBED_DIM = 256  # of a student without a teacher
StageKind = Literal["distill", "align"]


class OptimizerOptions(Options):
    """AdamW, SGD or Muon: orthogonalized momentum for matrices and convolutions, AdamW for all other parameters.

    Biases, norms, position embeddings and position biases get no weight decay. Muon: Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; timm's, with its step scaled to the size of AdamW's (Liu et al. 2025,
    arXiv 2502.16982).
    """

    kind: Literal["adamw", "muon", "sgd"] = Field(
        "adamw", description="Optimizer; muon needs fewer steps and a learning rate about ten times as high"
    )
    lr: float = Field(1e-3, gt=0, le=100, description="Peak learning rate")
    other_lr: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Peak learning rate of the parameters that Muon leaves to AdamW: norms, biases, embeddings; "
        "default: lr",
    )
    image_lr_scale: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Learning-rate multiplier for the image trunk; below 1 for pretrained weights; 0: of the tower "
        "only the projection learns, which is several times as fast; set freeze_batch_norms as well",
    )
    text_lr_scale: float = Field(
        1.0, ge=0, le=1000, description="Learning-rate multiplier for the text tower; below 1 for inherited weights"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise learning-rate decay: each layer's rate is this times the rate of the layer above it",
    )
    weight_decay: float = Field(0.05, ge=0, le=10, description="Weight decay of matrices and convolutions")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="AdamW's betas")
    eps: float = Field(1e-6, gt=0, le=1, description="AdamW's epsilon")
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum of Muon and SGD")
    newton_schulz: Precision = Field(
        "auto", description="Precision of Muon's Newton-Schulz iteration; auto: bf16 where the processor has it"
    )

    @model_validator(mode="after")
    def _other_rate_only_with_muon(self) -> Self:
        if self.other_lr is not None and self.kind != "muon":
            raise ValueError(Message("other_lr needs kind: muon; the other optimizers have one rate, lr"))
        return self


class TrainOptions(Options):
    """How long and how a stage trains. Set either `epochs` or `steps`."""

    epochs: float | None = Field(
        None, gt=0, le=100_000, description="Passes over the training pairs; fractions are allowed"
    )
    steps: int | None = Field(None, ge=1, le=_MOST_STEPS, description="Training steps, instead of epochs")
    batch_size: int = Field(256, ge=2, le=MOST_PER_STEP, description="Pairs per step, over all processes")
    accumulate: Annotated[int, Field(ge=1, le=MOST_PER_STEP)] | Literal["auto"] = Field(
        1,
        description="Gradient-accumulation steps per batch: less memory, each part is a batch of its own; auto: 1, and "
        "twice as many whenever memory runs out",
    )
    gradient_cache: bool = Field(
        False,
        description="Gradient caching: the accumulated parts contrast with each other as one batch, for a second "
        "forward pass; needs losses that use embeddings only",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time"
    )
    freeze_batch_norms: bool = Field(False, description="Keep the running statistics of batch norms unchanged")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="Optimizer and learning rates")
    lora: LoraOptions | None = Field(
        None, description="LoRA: train few parameters, for models that are loaded or inherited; null: all of them"
    )
    warmup_steps: int = Field(
        100,
        ge=0,
        le=_MOST_STEPS,
        description="Steps of linear learning-rate warm-up, followed by cosine decay to 0",
    )
    clip_norm: float | None = Field(1.0, gt=0, le=1e6, description="Gradient-norm clipping; null disables it")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of the forward pass (autocast; weights stay fp32); fp16 needs a GPU; auto: bf16 where "
        "the processor has it, fp16 on older GPUs, fp32 on CPUs for images with depthwise convolutions",
    )
    tf32: bool = Field(
        True, description="TF32 in fp32 matrix products and convolutions on a GPU: faster, 10 bits of mantissa"
    )
    compile: Literal["auto", "off"] = Field(
        "off",
        description="Compile the student's image tower (torch.compile); auto: where a probe says that its passes are "
        "at least 1.15 times as fast, which takes minutes, on a GPU or a CPU with a C++ compiler",
    )
    deterministic: bool = Field(
        True,
        description="Deterministic algorithms: the same run gives the same weights bit for bit; false: on a GPU faster "
        "ones, and a resumed run differs in the last bits",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="EMA decay: save an exponential moving average of the weights; null: no EMA"
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=_MOST_STEPS,
        description="Steps between zero-shot validations on data.validation in each language; null: none",
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
        description="Data-loading processes per training process; auto: 1 on the CPU, on a GPU one for each core that "
        "the process has, up to 8",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch; must match for bit-identical runs; default: the cores that are not busy "
        "with other work, less `workers`, but more than half of them",
    )
    log_every_steps: Neutral[int] = Field(
        20, ge=1, le=_MOST_STEPS, description="Steps between entries in metrics.jsonl and the trackers"
    )
    checkpoint_every_steps: Neutral[int] = Field(
        200, ge=1, le=_MOST_STEPS, description="Steps between checkpoints that a run can resume from"
    )
    dims: tuple[Annotated[int, Field(ge=8, le=8192)], ...] = Field(
        (),
        description="Matryoshka training: losses on embeddings are computed on the first d numbers as well, for each d "
        "in this list, all with the same weight as on the whole embedding, so that embeddings can be cut to d",
    )
    more_teachers: tuple[Teacher, ...] = Field(
        (),
        description="Teachers 1, 2, ... for `ensemble` and for losses with a `teacher` number; the recipe's teacher "
        "is number 0",
    )
    teacher_cache: bool = Field(
        True, description="Run the teachers once per image augmentation and caption, and cache their features on disk"
    )
    augmentations: int = Field(
        4, ge=1, le=1000, description="Number of different augmentations of each image when teacher_cache is on"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(Message("set either epochs or steps"))
        if self.accumulate != "auto" and self.batch_size % self.accumulate:
            raise ValueError(
                Message("batch_size ({}) must be a multiple of accumulate ({})", self.batch_size, self.accumulate)
            )
        if self.gradient_cache and self.accumulate == 1:
            raise ValueError(Message("gradient_cache joins the parts of a batch: set accumulate to their number"))
        if self.validate_every_steps is None and (self.patience is not None or self.keep == "best"):
            raise ValueError(Message("patience and keep: best need validation: set validate_every_steps"))
        return self

    @property
    def fewest_parts(self) -> int:
        """The number of parts of a batch that a run begins with."""
        return 1 if self.accumulate == "auto" else self.accumulate

    def total_steps(self, steps_per_epoch: int) -> int:
        """Training steps of the run."""
        return self.steps or max(1, round((self.epochs or 0) * steps_per_epoch))


@dataclass(frozen=True)
class StageContext:
    """What a training stage gets besides its options: the recipe's shared sections, the run and the device.

    `start` is the model directory that the student is loaded from; None: it is a new one. `fresh` trains again from the
    start where the stage is finished or has a checkpoint.
    """

    run: RunDir
    data: DataOptions
    teacher: Teacher | None = None
    student: StudentOptions | None = None
    seed: int = 0
    device: str = "cpu"
    fresh: bool = False
    progress: Progress = field(default_factory=Silent)
    track: tuple[TrackerName, ...] = ()
    start: Path | None = None
    listener: MetricsListener | None = None

    def finished(self, stage: StageKind) -> TrainResult | None:
        """The result of a stage that an earlier run finished; with `fresh`, all that it left is removed."""

        def look() -> TrainResult | None:
            if self.fresh:
                shutil.rmtree(self.run.stage(stage), ignore_errors=True)
            return TrainResult(self.run.model(stage), already_finished=True) if finished(self.run.root, stage) else None

        if not is_one_of_several():
            return look()
        from dcclip_cli.train.compute import join_processes
        from dcclip_cli.train.distributed import from_first

        join_processes(self.device)
        return from_first(look)

    @property
    def new_student(self) -> StudentOptions | None:
        """The options of the student that the stage begins with; None if it is loaded."""
        return self.student if self.start is None else None

    def teachers(self, options: TrainOptions) -> tuple[Teacher, ...]:
        """The options of the teachers by number."""
        return (*([self.teacher] if self.teacher else []), *options.more_teachers)


@dataclass(frozen=True)
class StageSetup:
    """What differs between distill and align: name, options, losses, samples per step by kind of data.

    `task`: it contrasts images and captions, with batches of `distinct_captions` that identify them, so that a loss
    recognizes false negatives. `lock`: a tower that is not trained.
    """

    name: StageKind
    options: TrainOptions
    losses: tuple[Loss, ...]
    sizes: Mapping[str, int]
    task: bool = False
    distinct_captions: bool = False
    lock: Tower | None = None
    max_logit_scale: float = 100.0
    half: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss learns from teachers."""
        return any(loss.needs_teacher for loss in self.losses)

    @property
    def listed_losses(self) -> tuple[Loss, ...]:
        """The losses that the recipe lists, without align's own contrastive loss, which is the first."""
        return self.losses[1:] if self.task else self.losses


def sizes_per_step(options: TrainOptions, data: DataOptions, images: int | None, texts: int | None) -> dict[str, int]:
    """Samples per step of each kind of data that there is. None for images or texts: as many as pairs; 0: none."""
    found: dict[str, int] = {} if data.train is None else {"pairs": options.batch_size}
    if data.images is not None and images != 0:
        found["images"] = images or options.batch_size
    if data.texts is not None and texts != 0:
        found["texts"] = texts or options.batch_size
    return found


def check_embeddings(setup: StageSetup, source: str | Path) -> None:
    """Raise DcclipError for pairs with embeddings in place of images where a stage needs images."""
    if setup.lock != "image" or setup.needs_teacher:
        problem = Message("{} contains embeddings instead of images for an image tower or a teacher", source)
        raise DcclipError(problem, "use align with lock: image and without losses, or train on pairs with images")


def warnings(setup: StageSetup, student: StudentOptions | None, steps: int) -> Iterator[Message]:
    """What is probably a mistake in a stage of so many steps, with a new `student` if there is one."""
    stage, options, lora = setup.name, setup.options, setup.options.lora
    if options.warmup_steps > steps:
        counts = stage, options.warmup_steps, steps
        yield Message("warning: {}: with warmup_steps {:,} of {:,} steps, the rate never reaches optimizer.lr", *counts)
    for tower in student.random_towers if student and lora else ():
        if lora and tower != setup.lock and lora.towers in (tower, "both"):
            yield Message("warning: {}: LoRA keeps the {} tower's weights, which are random", stage, tower)


Problem = tuple[tuple[str | int, ...], DcclipError]  # a key of the recipe, and what is wrong with its value


def problems(setup: StageSetup, context: StageContext) -> Iterator[Problem]:
    """What keeps a stage from running, as far as its options tell."""
    stage, options = setup.name, setup.options
    if not setup.sizes:
        hint = Message("set data.train, or leave images_per_step: 0 and texts_per_step: 0 out")
        yield (stage,), DcclipError("a step has no pairs, no images and no texts", hint)
    if options.precision == "fp16" and context.device == "cpu":
        hint = Message("set precision: auto, which is bf16 where the processor has it")
        yield (stage, "precision"), DcclipError("fp16 needs a GPU, and this runs on the CPU", hint)
    if options.lora:
        scales = {"image": options.optimizer.image_lr_scale, "text": options.optimizer.text_lr_scale}
        adapted = [tower for tower in scales if options.lora.towers in (tower, "both")]
        if all(tower == setup.lock or not scales[tower] for tower in adapted):
            problem = Message("adapts layers that do not learn ({}): locked, or with a lr_scale of 0", all_of(adapted))
            yield (stage, "lora", "towers"), DcclipError(problem, "adapt a tower that learns, or remove lora")
    if not any(loss.weight_at(done) for loss in setup.losses for done in (0, 1)):
        yield (stage, "losses"), DcclipError("all losses have weight 0", "set the weight of a loss above 0")
    if options.validate_every_steps and not (context.data.validation or context.data.hold_out):
        problem = Message("needs pairs to validate on, and there is no data.validation")
        yield (stage, "validate_every_steps"), DcclipError(problem, "set data.validation, or data.hold_out")
    inside = ", ".join(loss.kind for loss in setup.losses if not loss.embeddings_only)
    if options.gradient_cache and inside:
        problem = Message("needs losses on embeddings, and {} uses features inside the towers", inside)
        hint = Message("remove one of them; accumulate alone saves memory as well")
        yield (stage, "gradient_cache"), DcclipError(problem, hint)
    comparing = ", ".join(loss.kind for loss in setup.losses if loss.compares)
    if options.accumulate == "auto" and not options.gradient_cache and comparing:
        problem = Message("is auto, and {} compares the pairs of a batch, which must stay whole", comparing)
        yield (stage, "accumulate"), DcclipError(problem, "set gradient_cache: true, or accumulate to a number")
    errors = [loss.problem(setup.sizes, len(context.teachers(options))) for loss in setup.listed_losses]
    yield from (((stage, "losses", number), error) for number, error in enumerate(errors) if error)
    data_of = {"image": {"pairs", "images"}, "text": {"pairs", "texts"}}
    reached = {tower for loss in setup.losses for tower in loss.reached_towers(options.captions.languages)}
    learning = [tower for tower in reached - {setup.lock} if data_of[tower] & setup.sizes.keys()]
    if setup.sizes and not learning and not any(errors):
        problem = Message("no loss reaches a tower that has data and is not locked")
        yield (stage, "losses"), DcclipError(problem, "add a loss for such a tower, for example embedding")
    if context.start is not None and not context.start.is_dir():
        problem = Message("align starts from {}, which does not exist", context.start)
        hint = Message("run stage 1 first: dcclip distill RECIPE; or name a model directory, or scratch")
        yield (stage, "start"), DcclipError(problem, hint)
    student = context.new_student
    if student and student.text.vocabulary.source == "data" and not {"pairs", "texts"} & setup.sizes.keys():
        yield ("student", "text", "vocabulary"), no_vocabulary()
    if student and context.teacher is None:
        for key in student.from_teacher:
            problem = Message("is taken from the teacher, but the recipe has none")
            yield ("student", *key), DcclipError(problem, "add a section teacher, or omit it")


def caption_problems(setup: StageSetup, has: Callable[..., bool]) -> Iterator[Problem]:
    """What the data lacks; `has(languages, kinds)` says whether a sample of these kinds has captions in all of them."""
    languages, kinds = setup.options.captions.languages, setup.sizes.keys()
    sources = {kind: name for kind, name in (("pairs", "data.train"), ("texts", "data.texts")) if kind in kinds}
    absent = [language for language in languages if sources and not has([language], sources)]
    if "images" in kinds and len(absent) == len(languages):
        absent = []  # images are enough
    for language in absent:
        present = ", ".join(code for code in languages if code not in absent)
        hint = Message("set captions.languages: [{}], or add {} captions", present, language)
        if not present:
            hint = Message("add {} captions, or set captions.languages to languages that the data has", language)
        problem = Message("there are no '{}' captions in {}", language, all_of(sources.values()))
        yield (setup.name, "captions", "languages"), DcclipError(problem, hint)
    paired = absent or "pairs" not in kinds or any(has([language], ["pairs"]) for language in languages)
    for loss in () if paired else setup.losses:
        if loss.needs == {"pairs"} and not (loss.joint and "texts" in kinds):
            problem = Message("loss {} needs captions, and data.train has none in {}", loss.kind, all_of(languages))
            yield (setup.name, "captions", "languages"), DcclipError(problem, "add a language, or remove the loss")
    cross_lingual = [number for number, loss in enumerate(setup.listed_losses) if loss.kind == "cross_lingual"]
    if cross_lingual and not absent and not ({*LANGUAGES} <= {*languages} and has(LANGUAGES, sources)):
        problem = Message("loss {} needs images or lines with captions in both languages", "cross_lingual")
        for number in cross_lingual:
            yield (setup.name, "losses", number), DcclipError(problem, "remove the loss, or add translations")
