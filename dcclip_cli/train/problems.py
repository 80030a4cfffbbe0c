"""What keeps a training stage from running, as far as its options and data tell, and what is
probably a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.core.errors import DcclipError, Message, all_of
from dcclip_cli.data.class_folders import kind_of_folder
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.model.students import ImageTower, no_vocabulary

if TYPE_CHECKING:
    from dcclip_cli.train.stage import Stage

Problem = tuple[
    tuple[str | int, ...], DcclipError
]  # a key of the recipe, and what is wrong with its value


def check_embeddings(stage: Stage, source: str | Path) -> None:
    """Raise DcclipError for pairs with embeddings in place of images where a stage needs images."""
    if stage.lock != "image" or stage.used_teachers:
        problem = Message(
            "{} contains embeddings, but an image tower or a teacher needs images", source
        )
        raise DcclipError(
            problem, "use align with lock: image and without losses, or train on pairs with images"
        )


def warnings(stage: Stage) -> Iterator[Message]:
    """What is probably a mistake in a stage."""
    options = stage.options
    lora = stage.options.lora
    student = stage.new_student
    steps = stage.steps
    if options.warmup_steps > steps:
        counts = stage.name, options.warmup_steps, steps
        yield Message(
            "warning: {}: warmup_steps is {:,} of {:,} steps, so optimizer.lr is never reached",
            *counts,
        )
    if not lora or not student:
        return
    image = (
        isinstance(student.image, ImageTower)
        and student.image.weights is None
        and not student.inherits_images
    )
    for tower, is_random in (("image", image), ("text", student.text.inherit == "nothing")):
        if is_random and tower != stage.lock and lora.towers in (tower, "both"):
            yield Message(
                "warning: {}: LoRA keeps the {} tower's weights, which are random",
                stage.name,
                tower,
            )


def no_labels(stage: Stage) -> Problem:
    """The problem of a loss on labels where the data has none."""
    number = [loss.needs_labels for loss in stage.options.losses].index(True)
    return (stage.name, "losses", number), DcclipError(
        "the loss {} needs images of at least two classes whose names are known",
        "set data.images to a folder with one folder for each class, or data.train to pairs whose "
        "first caption is the class name",
        stage.options.losses[number].kind,
    )


def problems(stage: Stage) -> Iterator[Problem]:
    """What keeps a stage from running, as far as its options tell."""
    name = stage.name
    options = stage.options
    if not stage.sizes:
        hint = Message("set data.train, or remove images_per_step: 0 and texts_per_step: 0")
        yield (name,), DcclipError("a step has no pairs, images or texts", hint)
    sections: list[tuple[tuple[str | int, ...], Any]] = [
        ((name,), options),
        (("teacher",), stage.teacher),
    ]
    sections += [
        ((name, "more_teachers", number), teacher)
        for number, teacher in enumerate(options.more_teachers)
    ]
    for key, section in sections:
        if section is not None and section.precision == "fp16" and stage.device == "cpu":
            hint = Message("set precision: auto, which is bf16 where the processor supports it")
            yield (
                (*key, "precision"),
                DcclipError("fp16 needs a GPU, but this run uses the CPU", hint),
            )
    if options.lora:
        scales = {
            "image": options.optimizer.image_lr_scale,
            "text": options.optimizer.text_lr_scale,
        }
        adapted = [tower for tower in scales if options.lora.towers in (tower, "both")]
        if all(tower == stage.lock or not scales[tower] for tower in adapted):
            problem = Message(
                "the adapted layers are not trained ({}): they are locked or have lr_scale 0",
                all_of(adapted),
            )
            yield (
                (name, "lora", "towers"),
                DcclipError(problem, "apply lora to a tower that is trained, or remove lora"),
            )
    if not any(loss.weight_at(done) for loss in stage.losses for done in (0, 1)):
        yield (
            (name, "losses"),
            DcclipError("all losses have weight 0", "set the weight of at least one loss above 0"),
        )
    if options.validate_every_steps and not (
        stage.data.validation or (stage.data.train and stage.data.hold_out)
    ):
        problem = Message("requires validation pairs, but data.validation is not set")
        yield (
            (name, "validate_every_steps"),
            DcclipError(problem, "set data.validation, or data.hold_out"),
        )
    inside = ", ".join(loss.kind for loss in stage.losses if not loss.embeddings_only)
    if options.gradient_cache and inside:
        problem = Message(
            "requires losses on embeddings, but {} uses features inside the towers", inside
        )
        hint = Message("remove one of them; accumulate alone also saves memory")
        yield (name, "gradient_cache"), DcclipError(problem, hint)
    comparing = ", ".join(loss.kind for loss in stage.losses if loss.compares)
    if (
        (options.accumulate == "auto" or options.images_per_part)
        and not options.gradient_cache
        and comparing
    ):
        problem = Message(
            "the number of parts per batch depends on the machine, but {} compares only "
            "pairs within a part",
            comparing,
        )
        where = (name, "images_per_part" if options.images_per_part else "accumulate")
        yield where, DcclipError(problem, "set gradient_cache: true, or set accumulate to a number")
    errors = [
        loss.problem(stage.sizes, len(stage.teacher_options)) for loss in stage.options.losses
    ]
    yield from (((name, "losses", number), error) for number, error in enumerate(errors) if error)
    if any(loss.needs_labels for loss in stage.losses) and not any(errors):
        folder = Path(stage.data.images or ".") if "images" in stage.sizes else None
        if "pairs" not in stage.sizes and (folder is None or kind_of_folder(folder) != "classes"):
            yield no_labels(stage)
    data_of = {"image": {"pairs", "images"}, "text": {"pairs", "texts"}}
    reached = {
        tower for loss in stage.losses for tower in loss.reached_towers(options.captions.languages)
    }
    learning = [tower for tower in reached - {stage.lock} if data_of[tower] & stage.sizes.keys()]
    if stage.sizes and not learning and not any(errors):
        problem = Message("no loss trains an unlocked tower that has data")
        yield (
            (name, "losses"),
            DcclipError(problem, "add a loss for such a tower, for example embedding"),
        )
    if stage.start is not None and not stage.start.is_dir():
        problem = Message("align starts from {}, which does not exist", stage.start)
        hint = Message(
            "run stage 1 first: dcclip distill RECIPE; or set align.start to a model "
            "directory or scratch"
        )
        yield (name, "start"), DcclipError(problem, hint)
    student = stage.new_student
    if (
        student
        and student.text.vocabulary.source == "data"
        and not {"pairs", "texts"} & stage.sizes.keys()
    ):
        yield ("student", "text", "vocabulary"), no_vocabulary()
    if student and stage.teacher is None:
        for key in student.from_teacher:
            problem = Message("requires a teacher, but the recipe has none")
            yield (
                ("student", *key),
                DcclipError(problem, "add a teacher section, or remove this key"),
            )


def caption_problems(stage: Stage, has: Callable[..., bool]) -> Iterator[Problem]:
    """What the data lacks; `has(languages, kinds)` says whether a sample of these kinds has
    captions in all of them.
    """
    languages = stage.options.captions.languages
    kinds = stage.sizes.keys()
    sources = {
        kind: name
        for kind, name in (("pairs", "data.train"), ("texts", "data.texts"))
        if kind in kinds
    }
    absent = [language for language in languages if sources and not has([language], sources)]
    if "images" in kinds and len(absent) == len(languages):
        absent = []  # images are enough
    for language in absent:
        present = ", ".join(code for code in languages if code not in absent)
        hint = Message("set captions.languages: [{}], or add {} captions", present, language)
        if not present:
            hint = Message(
                "add {} captions, name their column in data.columns, or change captions.languages",
                language,
            )
        problem = Message("there are no '{}' captions in {}", language, all_of(sources.values()))
        yield (stage.name, "captions", "languages"), DcclipError(problem, hint)
    paired = (
        absent or "pairs" not in kinds or any(has([language], ["pairs"]) for language in languages)
    )
    for loss in () if paired else stage.losses:
        if loss.needs == {"pairs"} and not (loss.joint and "texts" in kinds):
            problem = Message(
                "the loss {} needs captions, but data.train has none in {}",
                loss.kind,
                all_of(languages),
            )
            yield (
                (stage.name, "captions", "languages"),
                DcclipError(
                    problem, "add such captions, choose other languages, or remove the loss"
                ),
            )
    cross_lingual = [
        number for number, loss in enumerate(stage.options.losses) if loss.kind == "cross_lingual"
    ]
    if (
        cross_lingual
        and not absent
        and not ({*LANGUAGES} <= {*languages} and has(LANGUAGES, sources))
    ):
        problem = Message(
            "the loss {} needs images or lines with captions in both languages", "cross_lingual"
        )
        for number in cross_lingual:
            yield (
                (stage.name, "losses", number),
                DcclipError(problem, "remove the loss, or add translations"),
            )
