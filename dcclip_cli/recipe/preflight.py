"""Checks before anything long starts: data, teachers, test sets and disk space of a recipe's unfinished stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dcclip_cli.data.options import COLLECTED
from dcclip_cli.data.preview import Preview, preview_images, preview_pairs, preview_texts
from dcclip_cli.errors import DcclipError, Message, joined
from dcclip_cli.files import cache_folder, free_bytes
from dcclip_cli.model.hub_models import check_model, check_timm
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.recipe.load import LoadedRecipe, check_finished
from dcclip_cli.recipe.preflight_stage import StageCheck
from dcclip_cli.recipe.yaml import Location
from dcclip_cli.run_dir import STAGES, RunDir, StageName, finished, has_product
from dcclip_cli.train.losses.base import Loss
from dcclip_cli.train.metrics_log import check_installed
from dcclip_cli.train.options import DEFAULT_EMBED_DIM, TrainOptions

if TYPE_CHECKING:
    from dcclip_cli.model.students import StudentOptions
    from dcclip_cli.model.towers import OpenClipTowers, Towers
    from dcclip_cli.train.estimate import StageWork

T = TypeVar("T")
_TRAINING_DATA: Mapping[str, Callable[..., Preview]] = {
    "train": preview_pairs,
    "validation": preview_pairs,
    "images": preview_images,
    "texts": preview_texts,
}


def check(
    loaded: LoadedRecipe,
    run: RunDir,
    stages: Iterable[StageName],
    fresh: bool = False,
    device: str = "cpu",
    processes: int = 1,
) -> list[StageWork]:
    """Raise DcclipError with all that would keep the `stages` from running, those that are finished left out.

    Of these, only the recipe is compared that they were made from. Students, teachers and losses are built by shape,
    without weights. Nothing is downloaded, and nothing is read but the beginning of training data and the labels of
    test sets. Returns the work of the training stages on `device`, where `processes` train together.
    """
    recipe, needed = loaded.recipe, unfinished(run, stages, fresh)
    if not {"eval", "export"}.issuperset(stages):  # alone, these go with any model
        check_finished(recipe, run.root, stages if fresh else ())
    if recipe.data and "collect" not in needed and has_product(run.root, "collect"):
        data = recipe.data.after_collect(run.stage("collect"))
        loaded = replace(loaded, recipe=recipe.model_copy(update={"data": data}))
    preflight = Preflight(loaded, run, needed, device=device, processes=processes)
    found = preflight.run()
    hints = {problem.hint for problem in found}
    if len(hints) == 1:
        raise DcclipError(joined("\n", (problem.what for problem in found)), hints.pop())
    if found:
        lines = (Message("{} ({})", problem.what, problem.hint) for problem in found)
        raise DcclipError(
            joined("\n", lines), Message("fix all of these; look again with: dcclip run {} --check", loaded.path)
        )
    return preflight.works


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
    works: list[StageWork] = field(default_factory=list)
    device: str = "cpu"
    processes: int = 1

    def run(self) -> list[DcclipError]:
        """Every problem, with the place and key in the recipe."""
        sections = {name for stage in STAGES if stage.name in self.needed for name in (stage.name, *stage.made_from)}
        self._missing = {at: line for at, line in self.loaded.missing_files().items() if at[0] in sections}
        hint = Message("fix the paths; those in --set are relative to this folder, others to the recipe's own")
        self.problems += [DcclipError(line, hint) for line in self._missing.values()]
        data = self._data()
        teachers = self._teachers()
        student = self._student(teachers)
        self._tests()
        self._export()
        for number, tracker in enumerate(self.loaded.recipe.track if self._training() else ()):
            self._ask(("track", number), partial(check_installed, tracker))
        for stage in self._training():
            self._stage(stage, data, teachers, student)
        return self.problems

    def _ask(self, at: Location, question: Callable[[], T]) -> T | None:
        """The answer about the value at a key; None, and a problem, where it raises DcclipError."""
        if any(at[: len(missing)] == missing for missing in self._missing):
            return None
        try:
            return question()
        except DcclipError as error:
            self._add(at, error)
            return None

    def _add(self, at: Location, error: DcclipError) -> None:
        line: str = self.loaded.line(at, error.what)
        if error.what.startswith(f"{'.'.join(map(str, at))}: "):  # it names the key already
            line = Message("{}: {}", self.loaded.document.place(at), error.what)
        if all(line != problem.what for problem in self.problems):  # one data set has a name for each language
            self.problems.append(DcclipError(line, error.hint))

    def _training(self) -> list[StageName]:
        return [stage.name for stage in STAGES if stage.trains and stage.name in self.needed]

    def _options(self, stage: StageName) -> TrainOptions:
        options: TrainOptions = getattr(self.loaded.recipe, stage)
        return options

    def _losses(self, stage: StageName) -> tuple[Loss, ...]:
        return tuple(getattr(self.loaded.recipe, stage).losses)

    def _data(self) -> dict[str, Preview]:
        """A first look at the data, by kind."""
        data, found = self.loaded.recipe.data, {}
        collect = self.loaded.recipe.collect if "collect" in self.needed else None
        if collect and all(at[:2] != ("collect", "sources") for at in self._missing):
            from dcclip_cli.curation.collect import preview

            to_collect = self._ask(("collect", "sources"), partial(preview, collect))
            found["train"] = to_collect if data and data.train == COLLECTED else None
        if data is None or not (self._training() or "export" in self.needed):
            return {}
        for kind, look in _TRAINING_DATA.items():
            path = getattr(data, kind)
            if path and path != COLLECTED:
                found[kind] = self._ask(("data", kind), partial(look, path, columns=data.columns))
        align = self.loaded.recipe.align
        if "align" in self.needed and align and align.train:
            found["align"] = self._ask(("align", "train"), partial(preview_pairs, align.train, columns=data.columns))
        for stage in self._training():
            if self._options(stage).validate_every_steps and data.validation is None:
                what = Message("needs pairs to validate on, and there is no data.validation")
                self._add((stage, "validate_every_steps"), DcclipError(what, "set data.validation"))
        return {kind: one for kind, one in found.items() if one is not None}

    def _teachers(self) -> dict[str, Towers]:
        """The teachers that are used, without weights, by their `model`, as far as they are here."""
        recipe = self.loaded.recipe
        learning = [stage for stage in self._training() if any(loss.needs_teacher for loss in self._losses(stage))]
        named: list[tuple[Location, Teacher]] = []
        student = recipe.student
        gives = student is not None and (
            student.keeps_images
            or (self._is_new_student() and (student.text.vocabulary.source == "teacher" or student.inherits))
        )
        if recipe.teacher and self._training() and (learning or gives or "eval" in self.needed):
            named.append((("teacher", "model"), recipe.teacher))
        for stage in learning:
            several = enumerate(self._options(stage).more_teachers)
            named += [((stage, "more_teachers", number, "model"), teacher) for number, teacher in several]
        found: dict[str, Towers] = {}
        for at, teacher in named:
            library = "open_clip" if teacher.kind == "open_clip" else "transformers"
            if self._ask(at, partial(_is_complete, teacher.model, library)):
                from dcclip_cli.train.dry_run import open_blank

                if towers := self._ask(at, partial(open_blank, teacher)):
                    found[teacher.model] = towers
        return found

    def _is_new_student(self) -> bool:
        align = self.loaded.recipe.align
        from_scratch = align is not None and align.start == "scratch" and "align" in self.needed
        return "distill" in self.needed or from_scratch

    def _student(self, teachers: Mapping[str, Towers]) -> OpenClipTowers | None:
        """The recipe's student without weights; None where it cannot be built."""
        recipe = self.loaded.recipe
        student = recipe.student
        if student is None or not self._training():
            return None
        teacher = teachers.get(recipe.teacher.model) if recipe.teacher else None
        towers = self._student_towers(student, teacher)
        if towers is None or not self._is_new_student():
            return towers
        from dcclip_cli.model.inherit_image import check_inherits_images
        from dcclip_cli.train.dry_run import check_inherited

        text = student.text
        taken: list[tuple[str, ...]] = [("image", "inherit")] if student.inherits_images else []
        if text.inherit != "nothing":
            taken.append(("text", "inherit"))
        elif text.vocabulary.source == "teacher":
            taken.append(("text", "vocabulary", "from"))
        for where in taken if recipe.teacher is None else ():
            what = Message("is taken from the teacher, but the recipe has none")
            self._add(("student", *where), DcclipError(what, "add a section teacher, or omit it"))
        if teacher is not None:
            if student.inherits_images:
                visual = towers.model.visual
                self._ask(("student", "image", "inherit"), partial(check_inherits_images, visual, teacher))
            if text.vocabulary.source == "teacher":
                self._ask(("student", "text", "vocabulary"), partial(self._check_vocabulary))
            if text.inherit != "nothing":
                self._ask(("student", "text", "inherit"), partial(check_inherited, text, towers, teacher))
        return towers

    def _student_towers(self, student: StudentOptions, teacher: Towers | None) -> OpenClipTowers | None:
        from dcclip_cli.model.blank import blank_student, blank_text_student, check_image_weights
        from dcclip_cli.model.students import blank_network

        image = student.image
        if isinstance(image, str):
            of = self.loaded.recipe.teacher
            if of is None:
                what = Message("is the teacher's, but the recipe has none")
                self._add(("student", "image"), DcclipError(what, "add a section teacher, or describe an image tower"))
            if of is None or teacher is None:
                return None
            return self._ask(("student", "image"), partial(blank_text_student, student, of, teacher))
        if self._is_new_student() and image.weights == "timm":
            self._ask(("student", "image", "weights"), partial(check_timm, image.timm))
        if self._ask(("student", "image", "timm"), partial(blank_network, image.timm)) is None:
            return None
        width = self._embed_dim(teacher)
        towers = self._ask(("student", "image", "size"), partial(blank_student, student, width))
        if towers is not None and self._is_new_student():
            self._ask(("student", "image", "weights"), partial(check_image_weights, towers, image))
        return towers

    def _embed_dim(self, teacher: Towers | None) -> int:
        from dcclip_cli.train.feature_shapes import widths

        learning = any(loss.needs_teacher for stage in self._training() for loss in self._losses(stage))
        return widths(teacher).embedding if teacher is not None and learning else DEFAULT_EMBED_DIM

    def _check_vocabulary(self) -> None:
        from dcclip_cli.model.blank import local_folder
        from dcclip_cli.model.tokenizer import check_trimmable

        teacher = self.loaded.recipe.teacher
        if teacher is not None and (folder := local_folder(teacher)) is not None:
            check_trimmable(folder)

    def _tests(self) -> None:
        if self.loaded.recipe.eval is None or not {"eval", "export"} & set(self.needed):
            return
        from dcclip_cli.eval.evaluate import check_datasets

        if not any(at[0] == "eval" for at in self._missing):
            for error in check_datasets(self.loaded.recipe.eval):
                self._add(("eval", "datasets"), error)

    def _export(self) -> None:
        recipe = self.loaded.recipe
        if recipe.export is None or "export" not in self.needed:
            return
        from dcclip_cli.exporters.export import FORMATS

        options = recipe.export
        check = partial(FORMATS[options.format].check, options.precision, options.preprocess, options.dims)
        self._ask(("export", "format"), check)
        if options.calibration:
            self._ask(("export", "calibration"), partial(preview_images, options.calibration))
        elif options.precision == "int8" and not (
            recipe.data and (recipe.data.train or recipe.data.validation or recipe.data.images)
        ):
            hint = Message("set export.calibration, data.train or data.images")
            self._add(("export", "precision"), DcclipError("int8 needs images to calibrate on", hint))

    def _stage(
        self,
        stage: StageName,
        data: Mapping[str, Preview],
        teachers: Mapping[str, Towers],
        student: OpenClipTowers | None,
    ) -> None:
        """Check one training stage by shape, and the disk space that it needs."""
        start = getattr(self._options(stage), "start", "distill")
        if start not in ("distill", "scratch") and Path(start).is_dir():
            from dcclip_cli.model.blank import blank_model

            student = self._ask((stage, "start"), partial(blank_model, Path(start)))
        check = StageCheck(self.loaded.recipe, stage, self._ask, data, teachers, self.device, self.processes)
        shapes = check.run(student)
        if shapes is None:
            return
        work = check.work(shapes)
        if work.sizes:  # of data that is still to be collected nothing is known
            self.works.append(work)
        folder = cache_folder() / "teacher-cache"
        if work.cache_bytes > free_bytes(folder):
            self._too_small(
                (stage, "teacher_cache"), Message("the teacher cache"), work.cache_bytes, folder, _CACHE_HINT
            )
        if work.run_bytes > free_bytes(self.run_dir.root):
            what = Message("the stage's checkpoints and model")
            self._too_small((stage,), what, work.run_bytes, self.run_dir.root, _RUN_HINT)

    def _too_small(self, at: Location, what: str, needed: float, folder: Path, hint: str) -> None:
        from dcclip_cli.train.estimate import size

        free = Message("{} are free at {}", size(free_bytes(folder)), folder)
        self._add(
            at,
            DcclipError("{} will take about {}, and {}", hint, what, size(needed), free),
        )


def _is_complete(model: str, library: str) -> bool:
    check_model(model, library)
    return True


_CACHE_HINT = Message(
    "free some space, set DCCLIP_CACHE to a folder on a larger disk, lower augmentations, or set teacher_cache: false"
)
_RUN_HINT = Message("free some space, or write to another disk with --out")
