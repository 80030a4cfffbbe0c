"""One stage of a recipe, run or looked at: what the commands that take a recipe have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.cli import console
from dcclip_cli.cli.errors import YELLOW, say
from dcclip_cli.cli.flags import Device, resolve_device
from dcclip_cli.errors import DcclipError
from dcclip_cli.pipeline import STAGES, finished

if TYPE_CHECKING:
    from dcclip_cli.curation.executors import EngineName
    from dcclip_cli.curation.result import CollectResult
    from dcclip_cli.data.options import DataOptions
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.pipeline import StageName
    from dcclip_cli.progress import Progress
    from dcclip_cli.recipe.load import LoadedRecipe
    from dcclip_cli.run_dir import RunDir


def open_recipe(path: Path, sets: Sequence[str] | None, needed: StageName | None = None) -> LoadedRecipe:
    """The checked recipe, which must have the section `needed`."""
    from dcclip_cli.recipe.load import load

    loaded = load(path, sets or ())
    if console.is_first_process():
        for line in loaded.warnings:
            say("warning: ", line, YELLOW)
    if needed and needed not in loaded.recipe.stages:
        there = ", ".join(loaded.recipe.stages) or "none"
        raise DcclipError(f"{path} has no section {needed}", f"add one; its stages are: {there}")
    return loaded


def open_run(loaded: LoadedRecipe, out: Path | None) -> RunDir:
    """The folder of this recipe's run: `out`, or `runs/NAME` under the current directory."""
    from dcclip_cli.run_dir import RunDir

    return RunDir(out or Path("runs") / loaded.recipe.name)


def check(loaded: LoadedRecipe, device: Device | None = None) -> None:
    """Look for every file in the recipe and for the device, then print the resolved recipe on stdout."""
    from dcclip_cli.recipe.load import resolved_yaml

    missing = loaded.missing_files()
    if missing:
        raise DcclipError("\n".join(missing), "mend the paths; they are relative to the recipe's own folder")
    if device is not None:
        resolve_device(device)
    console.show(resolved_yaml(loaded.recipe).rstrip("\n"))


@dataclass(frozen=True)
class Work:
    """A recipe about to be worked on: its run, where it runs, whether finished stages are done again, who is told."""

    loaded: LoadedRecipe
    run: RunDir
    device: Device
    fresh: bool
    progress: Progress

    def finished(self, stage: StageName) -> bool:
        """Whether a stage's product lies in the run."""
        return finished(self.run.root, stage)

    def expect_state(self, stage: StageName) -> None:
        """Raise DcclipError where a training stage is neither finished nor has a saved state to go on from."""
        state = self.run.stage(stage) / "state"
        if not self.finished(stage) and not any(state.glob("step-*")):
            raise DcclipError(f"{state} holds no saved state to go on from", "leave --resume out to start at step 0")

    def begin(self, *stages: StageName) -> None:
        """Write the recipe into the run. Raises DcclipError where a finished stage belongs to a recipe that differs."""
        from dcclip_cli.recipe.record import record

        if console.is_first_process():
            again = stages if self.fresh else ()
            record(
                self.loaded,
                self.run.root,
                [one.name for one in STAGES if one.name not in again and self.finished(one.name)],
            )

    def collect(
        self, engine: EngineName = "local", workers: int | None = None, limit: int | None = None
    ) -> CollectResult:
        """Gather the recipe's pairs; only about `limit` of them, into a folder beside, if that is given."""
        from dcclip_cli.curation.collect import collect
        from dcclip_cli.curation.executors import Engine

        options = self.loaded.recipe.collect
        assert options is not None
        out, how = self.run.stage("collect"), Engine(engine, workers, options.cluster)
        if limit is None:
            result = collect(options, out, self.progress, self.fresh, how)
        else:
            result = collect(options, out.with_name("collect-limit"), self.progress, True, how, limit)
        self.tell("collect", result.folder, result.already_finished, result.seconds, {})
        return result

    def train(self, stage: StageName) -> bool:
        """Do `distill` or `align`; whether there was anything to do."""
        from dcclip_cli.train.align import align
        from dcclip_cli.train.distill import distill
        from dcclip_cli.train.options import StageContext

        recipe, device = self.loaded.recipe, resolve_device(self.device)
        assert recipe.data is not None
        context = StageContext(
            self.run, recipe.data, recipe.teacher, recipe.student, recipe.seed, device, self.fresh, self.progress
        )
        if stage == "distill":
            assert recipe.distill is not None
            result = distill(recipe.distill, context)
        else:
            assert recipe.align is not None
            result = align(recipe.align, context)
        if stage == "align" and result.already_finished:
            self._check_parent()
        self.tell(stage, result.model, result.already_finished, result.seconds, result.metrics)
        return not result.already_finished

    def data(self) -> DataOptions | None:
        """The recipe's data, its own collected shards given by their path."""
        from dcclip_cli.data.options import COLLECTED

        data = self.loaded.recipe.data
        if data is None or data.train != COLLECTED:
            return data
        return data.model_copy(update={"train": str(self.run.stage("collect"))})

    def trained_model(self) -> ModelReference:
        """The run's model directory of the furthest training stage. Raises DcclipError if there is none yet."""
        from dcclip_cli.model.reference import resolve

        for stage in ("align", "distill"):
            if self.run.model(stage).is_dir():
                return resolve(str(self.run.model(stage)))
        raise DcclipError(
            f"{self.run.root} holds no trained model yet",
            f"train one with: dcclip run {self.loaded.path}, or name one with --model",
        )

    def _check_parent(self) -> None:
        """Raise DcclipError if the aligned model was made from a distilled one that has been replaced since."""
        from dcclip_cli.files import read_json
        from dcclip_cli.model.model_dir import PROVENANCE, model_fingerprint

        align = self.loaded.recipe.align
        distilled, aligned = self.run.model("distill"), self.run.model("align")
        if align is None or align.start != "distill" or not distilled.is_dir():
            return
        if read_json(aligned / PROVENANCE, "").get("parent") != model_fingerprint(distilled):
            raise DcclipError(f"{aligned} was made from another model than {distilled}", "do it again with --fresh")

    def tell(self, stage: StageName, folder: Path, finished: bool, seconds: float, figures: dict[str, float]) -> None:
        """Say what became of a stage."""
        if finished:
            self.progress.say(f"{stage}: finished before, in {folder} (--fresh does it again)")
        else:
            measured = "".join(f", {name} {value:.4g}" for name, value in figures.items())
            self.progress.say(f"{stage}: done in {seconds:.0f} s{measured}")
