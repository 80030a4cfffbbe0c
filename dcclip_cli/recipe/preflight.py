"""Checks before anything long starts: data, teachers, test sets and disk space of a recipe's
unfinished stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import cache_folder, free_bytes
from dcclip_cli.core.run_dir import STAGES, RunDir, StageName, finished, has_product
from dcclip_cli.core.text import size_in_words
from dcclip_cli.curation.collect import preview as preview_sources
from dcclip_cli.curation.dedup.dedup import check_evaluation_set
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.dataset import check_hold_out, named
from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.data.pair import Language
from dcclip_cli.data.preview import (
    Preview,
    may_have_captions,
    preview_images,
    preview_pairs,
    preview_texts,
)
from dcclip_cli.data.samplers import check_shares, check_size
from dcclip_cli.eval.evaluate import check_datasets
from dcclip_cli.exporters.export import ExportOptions, format_of
from dcclip_cli.model.hub_models import check_timm
from dcclip_cli.model.model_dir import blank_model
from dcclip_cli.model.students import StudentOptions, blank_network
from dcclip_cli.model.teachers import LibraryTeacher, Teacher
from dcclip_cli.model.tokenizer import check_trimmable
from dcclip_cli.recipe.load import LoadedRecipe, check_finished
from dcclip_cli.recipe.yaml import Location
from dcclip_cli.train.metrics_log import check_installed
from dcclip_cli.train.problems import caption_problems, check_embeddings, problems

if TYPE_CHECKING:
    from dcclip_cli.model.towers import OpenClipTowers, Towers
    from dcclip_cli.train.estimate import BlankStage

T = TypeVar("T")
_LOOKS: Mapping[str, Callable[..., Preview]] = {
    "train": preview_pairs,
    "validation": preview_pairs,
    "images": preview_images,
    "texts": preview_texts,
}
_KINDS = {
    "pairs": "train",
    "images": "images",
    "texts": "texts",
}  # of data, by their key in the section data
_SIZES = {"pairs": "batch_size", "images": "images_per_step", "texts": "texts_per_step"}
_CACHE_HINT = Message(
    "free some space, set DCCLIP_CACHE to a folder on a larger disk, reduce "
    "augmentations, or set teacher_cache: texts"
)
_RUN_HINT = Message("free some space, or write to another disk with --out")


def check(
    loaded: LoadedRecipe,
    run: RunDir,
    stages: Iterable[StageName],
    fresh: bool = False,
    device: str = "cpu",
    processes: int = 1,
) -> list[BlankStage]:
    """Raise DcclipError with all that would keep the `stages` from running, those that are
    finished left out.

    Of these, only the recipe is compared that they were made from. Students, teachers and losses
    are built by shape, without weights. Nothing is downloaded, and nothing is read but the
    beginning of training data and the labels of test sets. Returns the training stages on
    `device`, where `processes` train together.
    """
    recipe = loaded.recipe
    needed = unfinished(run, stages, fresh)
    if not {"eval", "export"}.issuperset(stages):  # alone, these go with any model
        check_finished(recipe, run.root, stages if fresh else ())
    if recipe.data and "collect" not in needed and has_product(run.root, "collect"):
        data = recipe.data.after_collect(run.stage("collect"))
        loaded = replace(loaded, recipe=recipe.model_copy(update={"data": data}))
    preflight = Preflight(loaded, run, needed, device=device, processes=processes)
    unmet = preflight.run()
    hints = {problem.hint for problem in unmet}
    if len(hints) == 1:
        raise DcclipError(joined("\n", (problem.what for problem in unmet)), hints.pop())
    if unmet:
        lines = (Message("{} ({})", problem.what, problem.hint) for problem in unmet)
        raise DcclipError(
            joined("\n", lines),
            Message("fix all of these, then check again: dcclip run {} --check", loaded.path),
        )
    return preflight.stages


def unfinished(run: RunDir, stages: Iterable[StageName], fresh: bool) -> list[StageName]:
    """The stages that will be run: after one that is not finished, each, because its input is new."""
    needed: list[StageName] = []
    for stage in STAGES:
        if stage.name in stages and (fresh or needed or not finished(run.root, stage.name)):
            needed.append(stage.name)
    return needed


@dataclass
class Preflight:
    """Collects the problems of a recipe's stages `needed`."""

    loaded: LoadedRecipe
    run_dir: RunDir
    needed: list[StageName]
    problems: list[DcclipError] = field(default_factory=list)
    stages: list[BlankStage] = field(default_factory=list)
    device: str = "cpu"
    processes: int = 1

    def run(self) -> list[DcclipError]:
        """Every problem, with the place and key in the recipe."""
        recipe = self.loaded.recipe
        sections = {
            name
            for stage in STAGES
            if stage.name in self.needed
            for name in (stage.name, *stage.made_from)
        }
        self._missing = {
            at: line for at, line in self.loaded.missing_files().items() if at[0] in sections
        }
        hint = Message(
            "fix the paths: in --set, they are relative to the current folder; in the "
            "recipe, to its folder"
        )
        self.problems += [DcclipError(line, hint) for line in self._missing.values()]
        self._previews = self._data()
        stages: list[BlankStage] = []
        trained = [
            options
            for options in (recipe.distill, recipe.align)
            if options and options.stage in self.needed
        ]
        if recipe.data and trained:
            from dcclip_cli.train.estimate import BlankStage

            shared = (
                self.run_dir,
                recipe.data,
                recipe.teacher,
                recipe.student,
                recipe.seed,
                self.device,
            )
            opened = (
                self._ask((options.stage,), partial(BlankStage, options, *shared))
                for options in trained
            )
            stages = [stage for stage in opened if stage]
        self._teachers = self._open_teachers(stages)
        student = self._student(stages) if recipe.student and stages else None
        if (
            recipe.eval
            and {"eval", "export"} & {*self.needed}
            and all(at[0] != "eval" for at in self._missing)
        ):
            for error in check_datasets(recipe.eval):
                self._add(("eval", "datasets"), error)
        if recipe.export and "export" in self.needed:
            self._export(recipe.export)
        for number, tracker in enumerate(recipe.track if stages else ()):
            self._ask(("track", number), partial(check_installed, tracker))
        for stage in stages:
            self._stage(stage, student)
        return self.problems

    def _ask(self, at: Location, question: Callable[[], T]) -> T | None:
        """The answer about the value at a key; None, and a problem, where it raises DcclipError."""
        if self._is_missing(at):
            return None
        try:
            return question()
        except DcclipError as error:
            self._add(at, error)
            return None

    def _is_missing(self, at: Location) -> bool:
        return any(at[: len(missing)] == missing for missing in self._missing)

    def _add(self, at: Location, error: DcclipError) -> None:
        line: str = self.loaded.line(at, error.what)
        if error.what.startswith(f"{'.'.join(map(str, at))}: "):  # it names the key already
            line = Message("{}: {}", self.loaded.document.place(at), error.what)
        if all(
            line != problem.what for problem in self.problems
        ):  # one data set has a name for each language
            self.problems.append(DcclipError(line, error.hint))

    def _data(self) -> dict[str, Preview]:
        recipe = self.loaded.recipe
        previews = dict[str, Preview | None]()
        data = recipe.data
        trains = {"distill", "align"} & {*self.needed}
        if recipe.collect and "collect" in self.needed:
            to_collect = self._collect(recipe.collect)
            previews["train"] = to_collect if data and data.train == COLLECTED else None
        if data is None or not (trains or "export" in self.needed):
            return {}
        for kind, look in _LOOKS.items():
            path = getattr(data, kind)
            if path and path != COLLECTED:
                previews[kind] = self._ask(
                    ("data", kind), partial(look, path, columns=data.columns)
                )
        split = "train" if data.train else "images"
        if (preview := previews.get(split)) and data.hold_out:
            fits = partial(_done, check_hold_out, data, preview.samples)
            if not preview.exact or self._ask(("data", "hold_out"), fits):
                previews[split] = replace(preview, samples=max(1, preview.samples - data.hold_out))
        align_data = recipe.align.train if recipe.align and "align" in self.needed else None
        if align_data:
            previews["align"] = self._ask(
                ("align", "train"), partial(preview_pairs, align_data, columns=data.columns)
            )
        return {kind: preview for kind, preview in previews.items() if preview is not None}

    def _collect(self, collect: CollectOptions) -> Preview | None:
        """A first look at what would be collected, and at what it is compared with and scored by."""
        for number, scorer in enumerate(collect.scores):
            named = ("model",) if isinstance(scorer.model, str) else ("model", "model")
            self._ask(("collect", "scores", number, *named), scorer.check)
        compared: dict[Location, Sequence[Path]] = {("collect", "earlier"): collect.earlier}
        if collect.decontaminate:
            compared["collect", "decontaminate", "paths"] = collect.decontaminate.paths
        for at, paths in compared.items():
            for number, path in enumerate(paths):
                self._ask((*at, number), partial(check_evaluation_set, path))
        if any(at[:2] == ("collect", "sources") for at in self._missing):
            return None
        return self._ask(("collect", "sources"), partial(preview_sources, collect))

    def _open_teachers(self, stages: Sequence[BlankStage]) -> dict[str, Towers]:
        """The teachers that are used, without weights, by their `model`, as far as they are here."""
        teacher = self.loaded.recipe.teacher
        named = list[tuple[Location, Teacher]]()
        gives = any(stage.new_student and stage.new_student.from_teacher for stage in stages)
        keeps = any(
            stage.student_options and stage.student_options.keeps_images for stage in stages
        )
        learning = [stage for stage in stages if stage.used_teachers]
        if teacher and stages and (learning or gives or keeps or "eval" in self.needed):
            named.append((("teacher", "model"), teacher))
        for stage in learning:
            numbered = enumerate(stage.options.more_teachers)
            named += [
                ((stage.name, "more_teachers", number, "model"), extra)
                for number, extra in numbered
            ]
        towers_by_model: dict[str, Towers] = {}
        for at, options in named:
            if not isinstance(options, LibraryTeacher):
                continue  # an extension, of which only its class knows what it needs
            source = self._ask(at, partial(getattr, options, "source"))
            if source and self._ask(at, partial(_done, source.check)):
                from dcclip_cli.train.estimate import open_blank

                if towers := self._ask(at, partial(open_blank, options)):
                    towers_by_model[options.model] = towers
        return towers_by_model

    def _student(self, stages: Sequence[BlankStage]) -> OpenClipTowers | None:
        """The recipe's student without weights; None where it cannot be built."""
        recipe = self.loaded.recipe
        is_new = any(stage.start is None for stage in stages)
        options = recipe.student
        assert options is not None
        teacher = self._teachers.get(recipe.teacher.model) if recipe.teacher else None
        towers = self._towers(
            options, teacher, is_new, any(stage.used_teachers for stage in stages)
        )
        if towers is None or teacher is None or recipe.teacher is None or not is_new:
            return towers
        from dcclip_cli.model.inherit import check_inherits, check_inherits_images

        text = options.text
        folder = recipe.teacher.source.folder()
        if options.inherits_images:
            self._ask(
                ("student", "image", "inherit"),
                partial(check_inherits_images, towers.model.visual, teacher),
            )
        if text.vocabulary.source == "teacher" and folder is not None:
            self._ask(("student", "text", "vocabulary"), partial(check_trimmable, folder))
        if text.inherit != "nothing":
            fits = partial(check_inherits, towers.model.text, teacher, text.inherit == "layers")
            self._ask(("student", "text", "inherit"), fits)
        return towers

    def _towers(
        self, student: StudentOptions, teacher: Towers | None, is_new: bool, learns: bool
    ) -> OpenClipTowers | None:
        from dcclip_cli.model.blank import blank_student, blank_text_student, check_image_weights
        from dcclip_cli.train.stage import DEFAULT_EMBED_DIM
        from dcclip_cli.train.teacher import widths

        image = student.image
        teacher_options = self.loaded.recipe.teacher
        if isinstance(image, str):
            if teacher_options is None or teacher is None:
                return None
            return self._ask(
                ("student", "image"), partial(blank_text_student, student, teacher_options, teacher)
            )
        if is_new and image.weights == "timm":
            self._ask(("student", "image", "weights"), partial(check_timm, image.timm))
        if self._ask(("student", "image", "timm"), partial(blank_network, image.timm)) is None:
            return None
        width = widths(teacher).embedding if teacher is not None and learns else DEFAULT_EMBED_DIM
        layout = (
            teacher.text_layout if teacher is not None and (learns or student.inherits) else None
        )
        towers = self._ask(
            ("student", "image", "size"), partial(blank_student, student, width, layout)
        )
        if towers is not None and is_new:
            self._ask(("student", "image", "weights"), partial(check_image_weights, towers, image))
        return towers

    def _export(self, options: ExportOptions) -> None:
        check = partial(
            format_of(options.format).check, options.precision, options.preprocess, options.dims
        )
        self._ask(("export", "format"), check)
        if options.calibration:
            self._ask(("export", "calibration"), partial(preview_images, options.calibration))
        elif options.precision == "int8":
            kinds = [
                kind
                for kind in ("train", "validation", "images")
                if getattr(self.loaded.recipe.data, kind, None)
            ]
            if all(kind in self._previews and self._previews[kind].embeddings for kind in kinds):
                hint = Message("set export.calibration, data.train or data.images")
                self._add(
                    ("export", "precision"), DcclipError("int8 needs calibration images", hint)
                )

    def _stage(self, stage: BlankStage, student: OpenClipTowers | None) -> None:
        """Check one training stage: its options, its data, and by shape; and the disk space that
        it needs.
        """
        name = stage.name
        options = stage.options
        data = stage.data
        stage.processes = self.processes
        starts_from_distill = stage.start == self.run_dir.model("distill")
        for key, problem in problems(stage):
            is_made_before = starts_from_distill and "distill" in self.needed and key[-1] == "start"
            if not is_made_before and not self._is_missing(key):
                self._add(key, problem)
        previews = {kind: self._previews.get(_KINDS[kind]) for kind in stage.sizes}
        if name == "align" and "align" in self._previews:
            previews["pairs"] = self._previews["align"]
        # Of data that is still to be collected nothing is known.
        stage.previews = {kind: preview for kind, preview in previews.items() if preview}
        if "pairs" in stage.previews and stage.previews["pairs"].embeddings and data.train:
            self._ask((name,), partial(check_embeddings, stage, named(data.train)))
        shares = self.processes * options.fewest_parts(stage.sizes, self.processes)
        for kind, size in stage.sizes.items():
            key = (name, _SIZES[kind] if getattr(options, _SIZES[kind], None) else "batch_size")
            preview = stage.previews.get(kind)
            if preview and preview.exact and not (kind == "texts" and data.phrases):
                self._ask(key, partial(check_size, size, preview.samples))
            self._ask(key, partial(check_shares, size, shares))
        captioned = {kind: preview for kind, preview in stage.previews.items() if kind != "images"}
        if captioned and captioned.keys() == {"pairs", "texts"} & stage.sizes.keys():
            for key, problem in caption_problems(stage, partial(_may_have, data, captioned)):
                self._add(key, problem)
        kind = "train" if data.hold_out else "validation"
        languages = options.captions.languages
        source = getattr(data, kind)
        columns = data.columns
        is_checked = options.validate_every_steps and kind in self._previews and source != COLLECTED
        if is_checked and not any(
            may_have_captions(source, columns, [language]) for language in languages
        ):
            message = Message(
                "{}: no pair has a caption in {}", named(source), ", ".join(languages)
            )
            self._add(
                (name, "validate_every_steps"),
                DcclipError(message, "use pairs that have such captions"),
            )
        if stage.start is not None and not starts_from_distill and stage.start.is_dir():
            student = self._ask((name, "start"), partial(blank_model, stage.start))
        if student is None:
            return
        stage.blank_student = deepcopy(student)  # LoRA and gradient checkpointing change it
        stage.blank_teachers = [
            self._teachers.get(teacher.model) for teacher in stage.used_teachers
        ]
        before = len(self.problems)
        for key, question in stage.questions():
            if (
                key != ("optimizer",) or len(self.problems) == before
            ):  # built last, if nothing else is wrong
                self._ask((name, *key), question)
        if len(self.problems) > before:
            return
        if stage.previews:
            self.stages.append(stage)
        cache = Message("the teacher cache")
        run = Message("the stage's checkpoints and model")
        for at, product, needed_bytes, folder, hint in (
            ((name, "teacher_cache"), cache, stage.cache_bytes, cache_folder(), _CACHE_HINT),
            ((name,), run, stage.run_bytes, self.run_dir.root, _RUN_HINT),
        ):
            if needed_bytes > free_bytes(folder):
                free = Message("{} are free at {}", size_in_words(free_bytes(folder)), folder)
                taken_space = size_in_words(needed_bytes)
                self._add(
                    at,
                    DcclipError("{} will take about {}, and {}", hint, product, taken_space, free),
                )


def _may_have(
    options: DataOptions,
    data: Mapping[str, Preview],
    languages: Sequence[Language],
    kinds: Iterable[str],
) -> bool:
    """Whether these kinds of data have captions in all languages, or may have, where not all was
    looked at.
    """
    previews = {kind: data[kind] for kind in kinds if kind in data}
    if any(
        all(map(sample.get, languages))
        for preview in previews.values()
        for sample in preview.captions
    ):
        return True
    if "pairs" in previews and options.train == COLLECTED:
        return True
    if (
        "pairs" in previews
        and options.train
        and may_have_captions(options.train, options.columns, languages)
    ):
        return True
    return "texts" in previews and data["texts"].samples > len(data["texts"].captions)


def _done(action: Callable[..., object], *arguments: Any) -> bool:
    """True, where the action raises nothing."""
    action(*arguments)
    return True
