"""Checks before anything long starts: data, teachers, test sets and disk space of a recipe's unfinished stages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from dcclip_cli.data.options import COLLECTED
from dcclip_cli.data.preview import Preview, preview_images, preview_pairs, preview_texts
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder
from dcclip_cli.model.available import TeacherWidths, check_model, check_timm
from dcclip_cli.model.students import count_parameters
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.recipe.load import LoadedRecipe
from dcclip_cli.recipe.yaml import Location
from dcclip_cli.run_dir import STAGES, RunDir, StageName, finished
from dcclip_cli.train.disk_space import checkpoint_bytes, teacher_cache_bytes
from dcclip_cli.train.losses.base import Loss, learns_from
from dcclip_cli.train.options import TrainOptions

T = TypeVar("T")
# Free space in which the checkpoints of any student fit: its size is not computed then, which takes seconds.
_PLENTY = 20_000_000_000
_TRAINING_DATA: Mapping[str, Callable[..., Preview]] = {
    "train": preview_pairs,
    "validation": preview_pairs,
    "images": preview_images,
    "texts": preview_texts,
}


def check(loaded: LoadedRecipe, run: RunDir, stages: Iterable[StageName], fresh: bool = False) -> None:
    """Raise DcclipError with all that would keep the `stages` from running, those that are finished left out.

    Nothing is downloaded, and nothing is read but the beginning of training data and the labels of test sets.
    """
    found = Preflight(loaded, run, _unfinished(run, stages, fresh)).run()
    hints = {problem.hint for problem in found}
    if len(hints) == 1:
        raise DcclipError("\n".join(problem.what for problem in found), hints.pop())
    if found:
        lines = (f"{problem.what} ({problem.hint})" for problem in found)
        raise DcclipError("\n".join(lines), f"fix all of these; look again with: dcclip run {loaded.path} --check")


def _unfinished(run: RunDir, stages: Iterable[StageName], fresh: bool) -> list[StageName]:
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

    def run(self) -> list[DcclipError]:
        """Every problem, with the place and key in the recipe."""
        sections = {name for stage in STAGES if stage.name in self.needed for name in (stage.name, *stage.made_from)}
        self._missing = {at: line for at, line in self.loaded.missing_files().items() if at[0] in sections}
        hint = "fix the paths; they are relative to the recipe's own folder"
        self.problems += [DcclipError(line, hint) for line in self._missing.values()]
        data = self._data()
        widths = self._teachers()
        self._student()
        self._tests()
        self._export()
        for stage in self._training():
            self._disk(stage, data, widths)
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
        line = self.loaded.line(at, error.what)
        if line not in (problem.what for problem in self.problems):  # one data set has a name for each language
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
        if data is None or not (self._training() or "export" in self.needed):
            return {}
        for kind, preview in _TRAINING_DATA.items():
            path = getattr(data, kind)
            if path and path != COLLECTED and (self._training() or kind in ("train", "validation")):
                found[kind] = self._ask(("data", kind), partial(preview, path, columns=data.columns))
        align = self.loaded.recipe.align
        if "align" in self.needed and align and align.train:
            found["align"] = self._ask(("align", "train"), partial(preview_pairs, align.train, columns=data.columns))
        for stage in self._training():
            if self._options(stage).validate_every_steps and data.validation is None:
                what = "needs pairs to validate on, and there is no data.validation"
                self._add((stage, "validate_every_steps"), DcclipError(what, "set data.validation"))
        return {kind: one for kind, one in found.items() if one is not None}

    def _teachers(self) -> dict[str, TeacherWidths]:
        """Widths of the teachers that are used, by their `model`, as far as they are known without a network."""
        recipe = self.loaded.recipe
        learning = [stage for stage in self._training() if any(loss.needs_teacher for loss in self._losses(stage))]
        named: list[tuple[Location, Teacher]] = []
        gives_tokens = recipe.student and recipe.student.text.vocabulary.source == "teacher" and self._is_new_student()
        if recipe.teacher and self._training() and (learning or gives_tokens or "eval" in self.needed):
            named.append((("teacher", "model"), recipe.teacher))
        for stage in learning:
            several = enumerate(self._options(stage).more_teachers)
            named += [((stage, "more_teachers", number, "model"), teacher) for number, teacher in several]
        found = {}
        for at, teacher in named:
            library = "open_clip" if teacher.kind == "open_clip" else "transformers"
            if widths := self._ask(at, partial(check_model, teacher.model, library)):
                found[teacher.model] = widths
        return found

    def _is_new_student(self) -> bool:
        align = self.loaded.recipe.align
        from_scratch = align is not None and align.start == "scratch" and "align" in self.needed
        return "distill" in self.needed or from_scratch

    def _student(self) -> None:
        student = self.loaded.recipe.student
        if student and self._is_new_student() and student.image.weights == "timm":
            self._ask(("student", "image", "weights"), partial(check_timm, student.image.timm))

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
        self._ask(("export", "precision"), partial(FORMATS[options.format].check, options.precision))
        if options.calibration:
            self._ask(("export", "calibration"), partial(preview_images, options.calibration))
        elif options.precision == "int8" and not (recipe.data and (recipe.data.train or recipe.data.validation)):
            error = DcclipError("int8 needs images to calibrate on", "set export.calibration or data.train")
            self._add(("export", "precision"), error)

    def _disk(self, stage: StageName, data: Mapping[str, Preview], widths: Mapping[str, TeacherWidths]) -> None:
        options = self._options(stage)
        if options.teacher_cache:
            needed, folder = self._teacher_cache_bytes(stage, data, widths), cache_folder() / "teacher-cache"
            if needed > free_bytes(folder) + _size(folder):
                self._too_small((stage, "teacher_cache"), "the teacher cache", needed, folder, _CACHE_HINT)
        student, free = self.loaded.recipe.student, free_bytes(self.run_dir.root)
        if student and free < _PLENTY:
            embedding = next(iter(widths.values())).embedding if widths else 256
            needed = checkpoint_bytes(count_parameters(student, embedding), options)
            if needed > free:
                self._too_small((stage,), "the stage's checkpoints and model", needed, self.run_dir.root, _RUN_HINT)

    def _teacher_cache_bytes(
        self, stage: StageName, data: Mapping[str, Preview], widths: Mapping[str, TeacherWidths]
    ) -> float:
        """Bytes of all teachers' features, as far as the teachers' widths are known."""
        recipe, options, losses = self.loaded.recipe, self._options(stage), self._losses(stage)
        used = {kind: one for kind, one in data.items() if kind in ("train", "images", "texts")}
        if stage == "align" and "align" in data:
            used["train"] = data["align"]
        size = recipe.student.image.size if recipe.student else 224
        teachers = [*([recipe.teacher] if recipe.teacher else []), *options.more_teachers]
        of_teacher = [tuple(learns_from(losses, number)) for number in range(len(teachers))]
        return sum(
            teacher_cache_bytes(widths[teacher.model], its, options, used, size)
            for teacher, its in zip(teachers, of_teacher, strict=True)
            if teacher.model in widths and any(loss.needs_teacher for loss in its)
        )

    def _too_small(self, at: Location, what: str, needed: float, folder: Path, hint: str) -> None:
        free = f"{free_bytes(folder) / 1e9:,.1f} GB are free at {folder}"
        self._add(at, DcclipError(f"{what} will take about {needed / 1e9:,.1f} GB, and {free}", hint))


_CACHE_HINT = (
    "free some space, set DCCLIP_CACHE to a folder on a larger disk, lower augmentations, or set teacher_cache: false"
)
_RUN_HINT = "free some space, or write to another disk with --out"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that a folder is on, or will be on."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def _size(folder: Path) -> int:
    """Bytes of the features that are there, of which this run may find all."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
