"""Checks of one training stage: its data against its options, and its student, teachers and losses by shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.data.pair import Language
from dcclip_cli.data.preview import Preview, languages_in
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.recipe.yaml import Location
from dcclip_cli.run_dir import StageName
from dcclip_cli.train.align import used_data
from dcclip_cli.train.losses.base import Loss, Tower
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.options import TrainOptions, loss_problems

if TYPE_CHECKING:
    from dcclip_cli.model.towers import OpenClipTowers, Towers
    from dcclip_cli.train.dry_run import Shapes
    from dcclip_cli.train.estimate import StageWork

T = TypeVar("T")
_KINDS = {"pairs": "train", "images": "images", "texts": "texts"}  # of data, by their key in the section data
_RARE = 0.01  # batches of a run that may be expected to lack a language
_SIZES = {"pairs": "batch_size", "images": "images_per_step", "texts": "texts_per_step"}


@dataclass(frozen=True)
class StageCheck:
    """Checks `stage` of a recipe. `ask` records what a question about the value at a key raises.

    `previews` are those of the data by kind (train, align, images, texts), `teachers` the towers by their `model`.
    """

    recipe: Recipe
    stage: StageName
    ask: Callable[[Location, Callable[[], Any]], Any]
    previews: Mapping[str, Preview]
    teachers: Mapping[str, Towers]
    device: str = "cpu"
    processes: int = 1

    @property
    def options(self) -> TrainOptions:
        options: TrainOptions = getattr(self.recipe, self.stage)
        return options

    @property
    def losses(self) -> tuple[Loss, ...]:
        return tuple(getattr(self.options, "losses", ()))

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples of each kind (pairs, images, texts) a step has."""
        data = self.data
        if data is None:
            return {}
        given = {kind: getattr(self.options, _SIZES[kind], None) for kind in _KINDS}
        there = {kind: size for kind, size in given.items() if getattr(data, _KINDS[kind]) is not None and size != 0}
        return {kind: size or self.options.batch_size for kind, size in there.items()}

    @property
    def data(self) -> DataOptions | None:
        """The part of the recipe's data that the stage uses."""
        data, align = self.recipe.data, self.recipe.align
        if self.stage == "distill" or data is None or align is None:
            return data
        result: DataOptions | None = self.ask(("align",), partial(used_data, data, align))
        return result

    def preview(self, kind: str) -> Preview | None:
        """The preview of a kind of data: pairs, images, texts."""
        own = self.previews.get("align") if self.stage == "align" and kind == "pairs" else None
        return own or self.previews.get(_KINDS[kind])

    def run(self, student: OpenClipTowers | None) -> Shapes | None:
        """Ask everything; the shapes of the stage, None where its student cannot be built."""
        self._check_data()
        self._check_options()
        if student is None:
            return None
        from dcclip_cli.train.dry_run import Shapes, questions

        used = any(loss.needs_teacher for loss in self.losses)
        teachers = [self.teachers.get(one.model) for one in self.all_teachers] if used else []
        shapes = Shapes((*self.losses, *self._contrastive), student, teachers)
        # The optimizer is built last, if nothing else is wrong.
        wrong = 0
        for key, question in questions(shapes, self.options):
            if not (key == ("optimizer",) and wrong):
                wrong += self.ask((self.stage, *key), _said(question)) is None
        return None if wrong else shapes

    @property
    def _contrastive(self) -> tuple[Loss, ...]:
        """The contrastive loss of align, whatever its options are."""
        return (TaskLoss(),) if self.stage == "align" else ()

    @property
    def all_teachers(self) -> Sequence[Any]:
        """The options of the stage's teachers by number."""
        return [*([self.recipe.teacher] if self.recipe.teacher else []), *self.options.more_teachers]

    def work(self, shapes: Shapes) -> StageWork:
        """What decides the stage's time and space. Data that is still to be collected has none."""
        from dcclip_cli.train.estimate import StageWork

        data = {kind: one for kind in self.sizes if (one := self.preview(kind))}
        student = self.recipe.student if getattr(self.options, "start", "distill") in ("distill", "scratch") else None
        lock: Tower | None = "image" if student and student.keeps_images else getattr(self.options, "lock", None)
        teachers = self.all_teachers if shapes.teachers else []
        sizes = {kind: self.sizes[kind] for kind in data}
        return StageWork(self.stage, self.options, data, sizes, shapes, teachers, self.recipe.seed, self.device, lock)

    def _check_data(self) -> None:
        sizes = self.sizes
        for number, loss in enumerate(self.losses):
            self.ask((self.stage, "losses", number), partial(loss.check_data, sizes.keys()))
        for kind, size in sizes.items():
            key = self._size_key(kind)
            found = self.preview(kind)
            if found and found.exact and found.samples < size and not (kind == "texts" and self._phrases):
                what = Message("{} is larger than the data ({} {} in data.{})", size, found.samples, kind, _KINDS[kind])
                self._report((key,), DcclipError(what, Message("make {} smaller", key)))
            parts, by = self.options.fewest_parts * self.processes, "accumulate"
            if size % parts:
                by += " and processes" if self.processes > 1 else ""
                what = Message("{} cannot be split into {} parts ({})", size, parts, by)
                self._report((key,), DcclipError(what, Message("make it a multiple of {}", parts)))
        self._check_languages(sizes)
        if "texts" in sizes and "pairs" not in sizes:
            self._check_lines(sizes)

    def _size_key(self, kind: str) -> str:
        return _SIZES[kind] if getattr(self.options, _SIZES[kind], None) else "batch_size"

    @property
    def _phrases(self) -> int:
        return self.recipe.data.phrases if self.recipe.data else 0

    def _check_languages(self, sizes: Mapping[str, int]) -> None:
        """A batch with captions in one wanted language but not in another ends a run, and without images also one
        without any: there must be some.
        """
        data, captioned = self.data, [kind for kind in ("pairs", "texts") if kind in sizes]
        if data is None or not captioned or any(self.preview(kind) is None for kind in captioned):
            return
        languages = self.options.captions.languages
        absent = [language for language in languages if not self._may_have(language, data, captioned)]
        if "images" in sizes and len(absent) == len(languages):
            return
        for language in absent:
            places = " and ".join(f"data.{_KINDS[kind]}" for kind in captioned)
            others = [one for one in languages if one != language]
            hint = Message("set captions.languages: [{}], or add {} captions", ", ".join(others), language)
            error = DcclipError("there are no '{}' captions in {}", hint, language, places)
            self._report(("captions", "languages"), error)

    def _may_have(self, language: Language, data: DataOptions, kinds: Sequence[str]) -> bool:
        """Whether some of these kinds of data have captions in a language, or may have, where not all was looked at."""
        if any(one.get(language) for kind in kinds if (found := self.preview(kind)) for one in found.captions):
            return True
        if "pairs" in kinds and data.train == COLLECTED:
            return True
        if "pairs" in kinds and data.train and language in languages_in(data.train, data.columns):
            return True
        return "texts" in kinds and not self._all_texts_seen()

    def _check_lines(self, sizes: Mapping[str, int]) -> None:
        """Of a short list with lines in one language each, a small batch may have none in a wanted one."""
        texts, size, languages = self.preview("texts"), sizes["texts"], self.options.captions.languages
        if texts is None or not self._all_texts_seen() or self._phrases or size > len(texts.captions):
            return
        if "images" in sizes and len(languages) == 1:
            return  # a batch may have images alone
        lines = len(texts.captions)
        count = {language: sum(bool(one.get(language)) for one in texts.captions) for language in languages}
        language = min(count, key=lambda one: count[one])
        chance = comb(lines - count[language], size) / comb(lines, size)
        if count[language] and chance * self.options.total_steps(lines // size) > _RARE:
            what = Message(
                "{} of {} lines in data.texts is too few: {} of these have '{}' captions, and a "
                "batch without one ends a run",
                size,
                lines,
                count[language],
                language,
            )
            hint = Message("make it larger, or write each text in both languages in one line of a .tsv file")
            self._report((self._size_key("texts"),), DcclipError(what, hint))

    def _all_texts_seen(self) -> bool:
        texts = self.preview("texts")
        return texts is not None and texts.samples <= len(texts.captions)

    def _check_options(self) -> None:
        if self.options.precision == "fp16" and self.device == "cpu":
            hint = Message("set precision: auto, which is bf16 where the processor has it")
            self._report(("precision",), DcclipError("fp16 needs a GPU, and this runs on the CPU", hint))
        losses = (*self.losses, *self._contrastive)
        for key, error in loss_problems(self.options, losses, len(self.all_teachers)):
            self._report(key, error)
        start = getattr(self.options, "start", "distill")
        if start not in ("distill", "scratch") and not Path(start).is_dir():
            hint = Message("name a model directory, distill (this recipe's stage 1) or scratch")
            self._report(("start",), DcclipError("{} is not a directory", hint, start))

    def _report(self, key: Location, error: DcclipError) -> None:
        def fail() -> None:
            raise error

        self.ask((self.stage, *key), fail)


def _said(question: Callable[[], object]) -> Callable[[], bool]:
    """The question, answered with True where it raises nothing."""

    def asked() -> bool:
        question()
        return True

    return asked
