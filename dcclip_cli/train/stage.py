"""A training stage: what it trains, and its data, teachers, student and task, each of which is
made when it is used.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import is_one_of_several, loading_processes
from dcclip_cli.core.options import decisive
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import RunDir, TrainResult, finished
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.labels import Labels, find_labels
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import MixedBatchSampler, TrainingData, open_training_data
from dcclip_cli.model.precision import Choice
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import OpenClipTowers
from dcclip_cli.train.compute import (
    compile_towers,
    join_processes,
    settle_precision,
    use_kernels,
    use_threads,
)
from dcclip_cli.train.distributed import check_shared, from_first, process_count, processes_here
from dcclip_cli.train.lora import add_lora
from dcclip_cli.train.losses.base import Loss, layers_of, learns_from, student_layers
from dcclip_cli.train.metrics_log import MetricsListener, TrackerName
from dcclip_cli.train.optimizer import rate_scale
from dcclip_cli.train.options import AlignOptions, DistillOptions
from dcclip_cli.train.problems import (
    Problem,
    caption_problems,
    check_embeddings,
    no_labels,
    problems,
    warnings,
)
from dcclip_cli.train.student import Student, checkpoint_gradients, new_student, student_from
from dcclip_cli.train.task import TrainingTask
from dcclip_cli.train.teacher import (
    LazyTeacher,
    NarrowTeacher,
    OnlineTeacher,
    TeacherFeatures,
    map_grids,
    narrow_space,
)
from dcclip_cli.train.teacher_cache import CacheFillingSampler, TeacherCache
from dcclip_cli.train.validation import open_validation

DEFAULT_EMBED_DIM = 256  # of a student without a teacher

_APART = 8_192  # samples


@dataclass(eq=False)
class Stage:
    """A training stage of a recipe. What it trains with is made, and read, when it is first used.

    `prepare` makes all of it; teachers are loaded only where something is not cached. `fresh`
    trains again from the start where the stage is finished or has a checkpoint. Raises DcclipError
    for data, a teacher or a student that cannot be loaded, and for options that exclude each
    other.
    """

    options: DistillOptions | AlignOptions
    run: RunDir
    data: DataOptions
    teacher: Teacher | None = None
    student_options: StudentOptions | None = None
    seed: int = 0
    device: str = "cpu"
    fresh: bool = False
    progress: Progress = field(default_factory=Silent)
    track: tuple[TrackerName, ...] = ()
    listener: MetricsListener | None = None
    provenance: dict[str, Any] = field(
        default_factory=dict, init=False
    )  # of the model, when all is prepared

    def __post_init__(self) -> None:
        self.data = self.options.stage_data(self.data, self.student_options)
        self.name = self.options.stage
        self.folder = self.run.stage(self.name)
        self.start = self.options.start_folder(
            self.run
        )  # the model directory of the student; None: it is a new one
        self.new_student = self.student_options if self.start is None else None
        self.lock = self.options.locked(self.student_options)  # the tower that is not trained

    @cached_property
    def losses(self) -> tuple[Loss, ...]:
        """The losses of the options, after align's contrastive loss."""
        return (*([self.options.contrast] if self.options.contrast else []), *self.options.losses)

    @property
    def teacher_options(self) -> tuple[Teacher, ...]:
        """The options of the teachers by number, whether or not a loss needs them."""
        return (*([self.teacher] if self.teacher else []), *self.options.more_teachers)

    @property
    def used_teachers(self) -> tuple[Teacher, ...]:
        """The options of the teachers that losses learn from, by number."""
        return self.teacher_options if any(loss.needs_teacher for loss in self.losses) else ()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Samples per step of each kind of data that there is."""
        options = self.options
        default = self.options.batch_size if self.name == "distill" else 0
        sizes = {
            "pairs": options.batch_size,
            "images": options.images_per_step,
            "texts": options.texts_per_step,
        }
        sources = {"pairs": self.data.train, "images": self.data.images, "texts": self.data.texts}
        counts = {
            kind: default if size is None else size
            for kind, size in sizes.items()
            if sources[kind] is not None
        }
        return {kind: count for kind, count in counts.items() if count}

    def finished(self) -> TrainResult | None:
        """The result of the stage if an earlier run finished it; with `fresh`, all that it left is
        removed.
        """

        def look() -> TrainResult | None:
            if self.fresh:
                shutil.rmtree(self.folder, ignore_errors=True)
                if self.folder.exists():
                    hint = Message("choose another folder with --out, or remove this one")
                    raise DcclipError("{} cannot be removed", hint, self.folder)
            model = self.run.model(self.name)
            return (
                TrainResult(model, already_finished=True)
                if finished(self.run.root, self.name)
                else None
            )

        if not is_one_of_several():
            return look()
        join_processes(self.device)
        return from_first(look)

    def prepare(self) -> None:
        """Make all that the first step needs, and settle what the options leave at `auto`."""
        raise_first(problems(self))
        join_processes(self.device)
        check_shared(self.folder)
        workers = loading_processes(self.options.workers, self.device, processes_here())
        self.options = self.options.model_copy(update={"workers": workers})
        use_kernels(self.options, self.device)
        use_threads(self.options, self.folder)
        raise_first(caption_problems(self, self._has_captions))
        _ = self.labels  # which the data may not have
        pairs = self.training.datasets.get("pairs")
        if pairs is not None and pairs.embeddings is not None:
            check_embeddings(self, pairs.path)
        for facts in (teacher.facts for teacher in self.teachers):
            self.progress.say(facts.precision.line(Message("teacher {}", facts.name)))
        student = self.student
        for line in warnings(self):
            self.progress.say(line)
        choice = self.settle()
        identity = json.dumps(self.identity, sort_keys=True, ensure_ascii=False).encode()
        first_facts = self.first_teacher and self.first_teacher.facts
        optimizer = self.options.optimizer
        self.provenance = {
            "stage": self.name,
            "identity": hashlib.sha256(identity).hexdigest(),
            "teacher": {key: getattr(first_facts, key, None) for key in ("name", "fingerprint")},
            "data": {"train": self.training.dataset.fingerprint},
            "steps": self.steps,
            "computed_in": {
                **asdict(choice),
                "newton_schulz": optimizer.newton_schulz if optimizer.kind == "muon" else None,
                "threads": torch.get_num_threads(),
                **({"compiled": True} if self.student.towers.compiled else {}),
                "teachers": [asdict(teacher.facts.precision) for teacher in self.teachers],
            },
        }
        if self.options.dims:
            self.provenance["trained_dims"] = sorted(
                {*self.options.dims, student.config["embed_dim"]}
            )
        if self.first_teacher and not self.teachers:  # a new student has inherited its weights
            self.first_teacher.free()

    def settle(self) -> Choice:
        """Leave nothing that decides how a step is computed at `auto`, and compile what the
        options say.
        """
        _ = self.features  # which are made, and reported, before the precision
        passes_images = self.lock != "image" and bool(
            {"pairs", "images"} & self.training.datasets.keys()
        )
        learns_images = passes_images and self.options.optimizer.image_lr_scale > 0
        towers = self.student.towers
        choice = settle_precision(self, towers if learns_images else towers.model.text)
        if self.options.compile and passes_images:
            compile_towers(self)
        return choice

    @cached_property
    def training(self) -> TrainingData:
        distinct = self.options.distinct_captions
        return open_training_data(
            self.data, self.sizes, self.run, self.seed, self.progress, distinct
        )

    @cached_property
    def labels(self) -> Labels | None:
        """The class labels of the images; None where no loss needs them. Raises DcclipError where
        one does, and there are none.
        """
        if not any(loss.needs_labels for loss in self.losses):
            return None
        labels = find_labels(self.training.datasets, self.options.captions.languages)
        if labels is None:
            raise_first([no_labels(self)])
        return labels

    def _has_captions(self, languages: Sequence[Language], kinds: Collection[str]) -> bool:
        """Whether a sample has captions in all of the languages; some that are far apart are
        looked at before all.
        """
        for dataset in (
            self.training.datasets[kind] for kind in kinds if kind in self.training.datasets
        ):
            captions = [dataset.captions(language) for language in languages]
            firsts = (
                all(column[first] for column in captions)
                for first in range(0, len(dataset), _APART)
            )
            if any(firsts) or any(map(all, zip(*captions, strict=True))):
                return True
        return False

    @cached_property
    def steps(self) -> int:
        return self.options.total_steps(self.training.sampler.steps_per_epoch)

    @cached_property
    def sampler(self) -> MixedBatchSampler:
        """The samples of each step; it completes the teacher caches for them."""
        sampler = self.training.sampler
        return CacheFillingSampler(sampler.samplers, self.caches) if self.caches else sampler

    @cached_property
    def collator(self) -> Collator:
        """Makes batches, with what the teacher caches have of each."""
        return replace(
            self.plain_collator, read_features=tuple(cache.reader for cache in self.caches)
        )

    @cached_property
    def plain_collator(self) -> Collator:
        """Makes batches, with the pixels of teachers that run in each step."""
        options = self.options
        towers = self.student.towers
        online = () if options.teacher_cache is True else self.teachers
        return Collator(
            self.training.dataset,
            self.seed,
            options.augment,
            options.captions,
            training_preprocess(towers),
            towers.tokenize,
            tuple(training_preprocess(teacher.towers) for teacher in online),
            num_augmentations=options.augmentations
            if self.teachers and options.teacher_cache is True
            else 0,
            with_caption_ids=options.contrast is not None,
        )

    @cached_property
    def teachers(self) -> list[LazyTeacher]:
        """The teachers that losses need, by number."""
        return [
            LazyTeacher(options, self.device, self.progress, layers_of(self.losses, number))
            for number, options in enumerate(self.used_teachers)
        ]

    @property
    def fewest_parts(self) -> int:
        """The number of parts that each process's share of a batch is split into at first."""
        return self.options.fewest_parts(self.sizes, process_count())

    @cached_property
    def first_teacher(self) -> LazyTeacher | None:
        """The first teacher of the losses, or the recipe's, whose weights a new student inherits."""
        if self.teachers:
            return self.teachers[0]
        inherits = self.new_student is not None and self.new_student.inherits
        return (
            LazyTeacher(self.teacher, self.device, self.progress)
            if self.teacher and inherits
            else None
        )

    @cached_property
    def caches(self) -> tuple[TeacherCache, ...]:
        """The teachers' caches; none if they run in each step for texts as well."""
        if not self.options.teacher_cache or not self.teachers:
            return ()
        grids = map_grids(self.student.towers, student_layers(self.losses))
        shared = (
            grids,
            loading_processes(self.options.workers),
            self.progress,
            self.options.teacher_cache == "texts",
        )
        return tuple(
            TeacherCache(
                teacher, self.plain_collator, learns_from(self.losses, number), *shared, number
            )
            for number, teacher in enumerate(self.teachers)
        )

    @cached_property
    def features(self) -> list[TeacherFeatures]:
        """The source of each teacher's features: its cache, or the teacher itself; the first in
        the student's space.
        """
        features: list[TeacherFeatures] = list(self.caches) or [
            OnlineTeacher(
                teacher.towers, number, layers_of(self.losses, number), teacher.facts.widths
            )
            for number, teacher in enumerate(self.teachers)
        ]
        width = self.student.config["embed_dim"]
        if not features or width >= features[0].widths.embedding:
            return features
        fingerprint = self.teachers[0].facts.fingerprint
        if self.start is None:  # a student that is loaded keeps its own space
            batches = self.training.sampler(0, self.steps)
            collator = self.plain_collator
            if self.caches:
                batches = self.caches[0].completing(batches)
                collator = replace(collator, read_features=(self.caches[0].reader,))
            self.progress.say(Message("teacher: computing its {} principal components", width))
            space = narrow_space(fingerprint, features[0], collator, batches, width, self.device)
            self.student = replace(self.student, space=space)
        if self.student.space and self.student.space.teacher == fingerprint:
            features[0] = NarrowTeacher(features[0], self.student.space)
        return features

    @cached_property
    def student(self) -> Student:
        """The student that the stage begins with, with the space that it learns if it is narrower
        than its teacher.
        """
        name = self.run.root.name
        width = DEFAULT_EMBED_DIM
        options = self.new_student
        if self.start is not None:
            student = student_from(self.start, name)
        else:
            assert options is not None
            teacher = self.first_teacher
            if teacher and self.used_teachers:
                width = teacher.facts.widths.embedding
            model = self.teacher.source if self.teacher else None
            towers = teacher.towers if teacher and options.inherits else None
            layout = teacher.facts.text_layout if teacher else None
            student = new_student(
                options, width, self.training.dataset, name, self.seed, model, towers, layout
            )
            count = student.towers.parameters_count()
            if teacher and count >= (size := teacher.facts.parameters):
                self.progress.say(
                    Message(
                        "warning: the student has {:,} parameters, the teacher {:,}", count, size
                    )
                )
        pairs = self.training.datasets.get("pairs")
        width = student.config["embed_dim"]
        if (
            pairs is not None
            and pairs.embeddings is not None
            and pairs.embeddings.shape[1] != width
        ):
            raise DcclipError(
                "the embeddings in {0} have {1} dimensions, but the student's have {2}",
                "set student.embed_dim: {1}",
                pairs.path,
                pairs.embeddings.shape[1],
                width,
            )
        return student.with_bias() if any(loss.uses_bias for loss in self.losses) else student

    @cached_property
    def task(self) -> TrainingTask:
        """The student with its losses; it learns what the options' learning rates and LoRA say."""
        network = self.student.config["vision_cfg"].get("timm_model_name", self.student.towers.name)
        return self.make_task(self.student.towers, self.features, network)

    def make_task(
        self, towers: OpenClipTowers, features: Sequence[TeacherFeatures], network: str
    ) -> TrainingTask:
        """The task for a student with the image tower `network`."""
        options = self.options
        if options.lora:
            add_lora(towers.model, options.lora, self.lock, self.seed)
        task = TrainingTask(
            towers,
            self.losses,
            features,
            self.seed,
            self.lock,
            options.freeze_batch_norms,
            options.dims,
            self.labels,
        )
        task.max_logit_scale = options.max_logit_scale
        for name, parameter in task.named_parameters():
            if rate_scale(name, options.optimizer) == 0:
                parameter.requires_grad_(False)  # no backward pass through what does not learn
        if options.gradient_checkpointing:  # of the towers that the task trains
            checkpoint_gradients(towers.model, network)
        return task

    @property
    def leaves_parameters(self) -> bool:
        """Whether a step may leave trained parameters, adapters included, without a gradient."""
        captions = self.options.captions
        kinds = self.training.datasets.keys()
        losses = self.losses
        if {*captions.languages} != {*LANGUAGES} or captions.caption_fraction < 1:
            return True  # a batch, or a part of it, may have no text
        kinds_of = {"image": {"pairs", "images"} & kinds, "text": {"pairs", "texts"} & kinds}
        reached = {tower for loss in losses for tower in loss.trained_towers if kinds_of[tower]}
        # A loss on one tower's embedding has an adapter for the other one's, which gets no
        # gradient.
        one_sided = any(
            len(loss.trained_towers) == 1 or loss.kind == "cross_lingual" for loss in losses
        )
        return one_sided or not {"image", "text"} - {self.lock} <= reached

    @cached_property
    def validate(self) -> Callable[[], dict[str, float]] | None:
        if self.options.validate_every_steps is None:
            return None
        workers = loading_processes(self.options.workers)  # a number: `prepare` settles it
        return partial(
            open_validation(self.data, self.options.captions.languages, workers),
            self.student.towers,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, once nothing in the options is left at `auto`."""
        new = self.new_student
        vocabulary = json.dumps(
            self.student.tokenizer.get_vocab(), sort_keys=True
        )  # tokens and their embedding's rows
        return {
            "options": decisive(self.options),
            "teacher": [teacher.facts.fingerprint for teacher in self.teachers],
            "parent": self.student.parent,
            "student": self.student.config,
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "image_weights": (new.image if isinstance(new.image, str) else new.image.weights)
            if new
            else None,
            "inherit": new.text.inherit if new else None,
            **({"inherit_images": True} if new and new.inherits_images else {}),
            "data": self.training.dataset.fingerprint,
            "seed": self.seed,
            **({"classes": self.labels.names} if self.labels else {}),
        }


def raise_first(problems: Iterable[Problem]) -> None:
    for key, problem in problems:
        raise DcclipError(Message("{}: {}", ".".join(map(str, key)), problem.what), problem.hint)
