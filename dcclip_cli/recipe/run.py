"""Running of a recipe's stages in its run directory: finished stages are skipped, interrupted ones
resume.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.extensions import is_extension
from dcclip_cli.core.files import cache_folder, write_json
from dcclip_cli.core.machine import is_first_process, is_launched, is_one_of_several
from dcclip_cli.core.options import decisive
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import (
    RESOLVED,
    STAGES,
    RunDir,
    StageName,
    TrainResult,
    finished,
    has_product,
)
from dcclip_cli.curation.collect import CollectResult, collect
from dcclip_cli.curation.executors import Engine
from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import DataOptions
from dcclip_cli.eval.card import update_card
from dcclip_cli.eval.datasets import data_set
from dcclip_cli.eval.embedding import FeatureCache
from dcclip_cli.eval.evaluate import EvalOptions, check_complete, evaluate, open_datasets, say_alike
from dcclip_cli.eval.report import save_report
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.exporters.export import ExportOptions, ExportResult, export
from dcclip_cli.exporters.samples import recipe_samples
from dcclip_cli.inference.bench import Bench, bench
from dcclip_cli.model.model_dir import model_fingerprint, read_provenance
from dcclip_cli.model.precision import torch_device
from dcclip_cli.model.reference import ModelSource, directory_source, resolve
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.recipe.load import LoadedRecipe, record
from dcclip_cli.recipe.preflight import check
from dcclip_cli.recipe.summary import COSTS, SUMMARY, ModelSummary, agreements, kept_summary
from dcclip_cli.train.launch import launch
from dcclip_cli.train.metrics_log import MetricsListener

if TYPE_CHECKING:
    from dcclip_cli.train.estimate import BlankStage

_MOST_VALIDATED = 5_000  # validation images that models are compared on at the end

StageResult: TypeAlias = CollectResult | TrainResult | ExportResult | list[EvalResult]


@dataclass
class RecipeRun:
    """A recipe and the directory that its stages write to. `fresh` makes finished stages again.

    `processes` train together; they are started here, unless this is one of them. `listener`
    receives what is logged of training in this process.
    """

    loaded: LoadedRecipe
    dir: RunDir
    device: str = "auto"
    fresh: bool = False
    progress: Progress = field(default_factory=Silent)
    processes: int = 1
    listener: MetricsListener | None = None
    _results: dict[str, list[EvalResult]] = field(
        default_factory=dict
    )  # by model: teacher, student, bundle

    def preflight(self, stages: Iterable[StageName]) -> list[BlankStage]:
        """The stages that train. Raises DcclipError with all that would keep the unfinished of
        these from running.
        """
        if not self.loaded.recipe.stages:
            raise DcclipError(
                "{} contains no stage", "add a stage, for example: distill", self.loaded.path
            )
        device = "cpu"  # which needs no torch
        if self.device != "cpu" and any(stage.trains for stage in STAGES if stage.name in stages):
            device = torch_device(self.device)
        return check(self.loaded, self.dir, stages, self.fresh, device, self.processes)

    def begin(self, *stages: StageName) -> None:
        """Write the recipe into the run directory after `preflight`, which the first of several
        processes has done.
        """
        if is_launched():
            return
        self.preflight(stages)
        if is_first_process():
            record(self.loaded, self.dir.root)

    def begin_all(self) -> None:
        """`begin` for all stages. Raises DcclipError if there is one that several processes cannot
        run.
        """
        collects = "collect" in self.loaded.recipe.stages and (
            self.fresh or not finished(self.dir.root, "collect")
        )
        if collects and is_one_of_several():
            hint = Message(
                "run dcclip collect {} first, then this command without --fresh", self.loaded.path
            )
            raise DcclipError("collect runs in one process only", hint)
        with self._claimed():
            self.begin(*self.loaded.recipe.stages)

    def _claimed(self) -> AbstractContextManager[None]:
        """Hold the run's directory: the process that writes there, or the command that started it
        with others.
        """
        return self.dir.claimed() if is_first_process() and not is_launched() else nullcontext()

    def train_alone(self, stage: StageName, resume: bool = False) -> TrainResult:
        """`begin` and `train`. With `resume`, raises DcclipError if it has neither a product nor a
        saved state.
        """
        state = self.dir.stage(stage) / "state"
        if resume and not finished(self.dir.root, stage) and not any(state.glob("step-*")):
            raise DcclipError(
                "{} contains no checkpoint to resume from",
                "remove --resume to start at step 0",
                state,
            )
        with self._claimed():
            self.begin(stage)
            return self.train(stage)

    def run_all(
        self, without: Collection[StageName] = ()
    ) -> Iterator[tuple[StageName, StageResult]]:
        """Run the recipe's stages in order; a stage after one that was run is made again, for its
        input is new.

        Of several processes that a launcher started, all train, and the first one runs the other
        stages.
        """
        shared = {stage.name for stage in STAGES if stage.trains or is_first_process()}
        with self._claimed():
            for stage in (
                name for name in self.loaded.recipe.stages if name in shared.difference(without)
            ):
                result = self.run(stage)
                already = not result if isinstance(result, list) else result.already_finished
                self.fresh = self.fresh or not already
                yield stage, result

    def run(self, stage: StageName) -> StageResult:
        """Run one stage if it is not finished. `eval` returns no results if they are kept from an
        earlier run.
        """
        if stage == "collect":
            return self.collect()
        if stage == "export":
            assert self.loaded.recipe.export is not None
            return self.export(
                self.loaded.recipe.export, self.trained_model(), self.dir.stage("export")
            )
        if stage == "eval":
            summary = not self.fresh and kept_summary(
                self.dir.root, self._identity(), self.progress
            )
            return [] if summary else self._evaluate("teacher", "student")
        return self.train(stage)

    def collect(self, engine: Engine | None = None, limit: int | None = None) -> CollectResult:
        """Collect the recipe's pairs; with `limit` only about so many of them, into the folder
        `collect-limit`.
        """
        options = self.loaded.recipe.collect
        fresh = self.fresh or limit is not None
        assert options is not None
        out = self.dir.stage("collect" if limit is None else "collect-limit")
        result = collect(options, out, self.progress, fresh, engine, limit)
        self._tell("collect", result.folder, result)
        return result

    def train(self, stage: StageName) -> TrainResult:
        from dcclip_cli.train.stage import Stage
        from dcclip_cli.train.trainer import train_stage

        if self.processes > 1 and (self.fresh or not finished(self.dir.root, stage)):
            return self._train_in_processes(stage)
        recipe = self.loaded.recipe
        assert recipe.data is not None
        shared = (
            self.dir,
            recipe.data,
            recipe.teacher,
            recipe.student,
            recipe.seed,
            torch_device(self.device),
        )
        job = Stage(
            getattr(recipe, stage),
            *shared,
            fresh=self.fresh,
            progress=self.progress,
            track=recipe.track,
        )
        job.listener = self.listener
        result = train_stage(job)
        distilled = self.dir.model("distill")
        aligned = self.dir.model("align")
        options = recipe.align
        if stage == "align" and options and result.already_finished and options.start == "distill":
            parent = read_provenance(aligned).content.get("parent")
            if distilled.is_dir() and parent != model_fingerprint(
                distilled
            ):  # it was replaced since
                problem = Message(
                    "{} was created from a different model than {}", aligned, distilled
                )
                raise DcclipError(problem, "create it again with --fresh")
        self._tell(
            stage,
            result.model,
            result,
            *(f"{name} {value:.4g}" for name, value in result.metrics.items()),
        )
        return result

    def _train_in_processes(self, stage: StageName) -> TrainResult:
        """`train` in several processes, from the recipe that `begin` wrote. The first one says
        what `train` says.
        """
        from dcclip_cli.train.checkpoint import telling_saved_step

        if self.fresh:
            shutil.rmtree(self.dir.stage(stage), ignore_errors=True)
        begun = time.monotonic()
        arguments = [
            stage,
            str(self.dir.root / RESOLVED),
            "--out",
            str(self.dir.root),
            "--device",
            self.device,
        ]
        if isinstance(self.progress, Silent):
            arguments.append("--quiet")
        if logging.getLogger().isEnabledFor(logging.INFO):
            arguments.append("--verbose")
        with telling_saved_step(self.dir.stage(stage), self.fresh):
            launch(arguments, self.processes, self.progress)
        provenance = read_provenance(self.dir.model(stage)).content
        metrics = provenance.pop("metrics", {})
        return TrainResult(
            self.dir.model(stage), False, time.monotonic() - begun, metrics, provenance
        )

    def export(self, options: ExportOptions, model: ModelSource, out: Path) -> ExportResult:
        """Export a model, checked on the recipe's data and test sets."""
        result = export(
            options=options,
            model=model,
            out=out,
            data=self.data(),
            evaluation=self.loaded.recipe.eval,
            fresh=self.fresh,
            progress=self.progress,
        )
        compared = Message(
            "not compared with the model: the runtime is not available on this system"
        )
        if parity := result.parity:
            counts = parity.agreement, parity.images, parity.source
            tests = (
                Message(
                    "top-1 in {} on {} test images {:.1%} -> {:.1%}",
                    name,
                    test.images,
                    test.before,
                    test.after,
                )
                for name, test in parity.by_language().items()
            )
            agreement = Message("best text unchanged for {:.1%} of {} images ({})", *counts)
            compared = joined("; ", (agreement, *tests))
        self._tell(
            "export", out, result, Message("{:.1f} MB; {}", result.size_bytes / 1e6, compared)
        )
        return result

    def data(self) -> DataOptions | None:
        """The recipe's data, with the path of its own collected shards."""
        data = self.loaded.recipe.data
        return data and data.after_collect(self.dir.stage("collect"))

    def trained_model(self) -> ModelSource:
        """The run's model directory of the furthest training stage. Raises DcclipError if there is
        none yet.
        """
        for stage in reversed(STAGES):
            if stage.trains and has_product(self.dir.root, stage.name):
                return resolve(str(self.dir.model(stage.name)))
        problem = Message("{} contains no trained model", self.dir.root)
        if self.loaded.recipe.variants:
            raise DcclipError(
                problem, "choose one of its runs with --model {}/VARIANT/seed-N", self.dir.root
            )
        raise DcclipError(
            problem, "train one with: dcclip run {}, or choose one with --model", self.loaded.path
        )

    def summary(self) -> list[ModelSummary]:
        """Teacher, student and bundle compared, measured once and kept in the run; empty if
        nothing is trained.
        """
        if not (self.loaded.recipe.distill or self.loaded.recipe.align) or not is_first_process():
            return []
        rows = [] if self.fresh else kept_summary(self.dir.root, self._identity(), self.progress)
        if rows:
            self.progress.say(Message("eval: already done (use --fresh to redo)"))
            return rows
        models = self.models()
        results = self._evaluate(*models)
        options = self.loaded.recipe.eval
        if options is not None:
            check_complete(results, options)
        no_test = "teacher" in models and not results
        images = recipe_samples(self.data(), "validation", "train") if no_test else None
        agreement = {} if images is None else agreements(models, images, self.device, self.progress)
        costs: dict[str, Bench] = {}
        # The student before its teacher, which is larger: the two can share a process, whose
        # memory only grows.
        for group in ("student", "teacher"), ("bundle",):
            names = [name for name in group if name in models]
            benches = bench([models[name] for name in names], together=True, progress=self.progress)
            costs |= dict(zip(names, benches, strict=True))
        samples = sum(
            steps * getattr(self.loaded.recipe, name).batch_size
            for name, steps in self.steps().items()
        )
        trained = self._training_pairs(), samples
        for name in models:
            measured: dict[str, Any] = {field: getattr(costs[name], field) for field in COSTS}
            counts = (0, 0) if name == "teacher" else trained
            row = ModelSummary(name, {}, agreement.get(name, {}), *counts, **measured)
            for result in self._results.get(name, ()):
                row.scores.setdefault(result.metric, {})[f"{result.dataset} {result.language}"] = (
                    result.value
                )
            rows.append(row)
        write_json(
            self.dir.root / SUMMARY, {"of": self._identity(), "rows": [asdict(row) for row in rows]}
        )
        return rows

    def _training_pairs(self) -> int:
        """How many pairs the stages were trained on; pairs that several stages read count once."""
        counts: dict[str, int] = {}
        data = self.data()
        if data is None:
            return 0
        for name in self.steps():
            stage_data = getattr(self.loaded.recipe, name).stage_data(
                data, self.loaded.recipe.student
            )
            pairs = recipe_pairs(stage_data, "train")
            if pairs is not None:
                counts[pairs.fingerprint] = pairs.num_pairs
        return sum(counts.values())

    def steps(self) -> dict[str, int]:
        """How many steps the student was trained for, by stage."""
        models = {
            name: self.dir.model(name)
            for name in ("distill", "align")
            if getattr(self.loaded.recipe, name)
        }
        return {
            name: read_provenance(model).content.get("steps", 0) for name, model in models.items()
        }

    def _tell(self, stage: StageName, product: Path, result: Any, *measured: str) -> None:
        if result.already_finished:
            self.progress.say(Message("{}: already done: {} (use --fresh to redo)", stage, product))
        else:
            done = Message("{}: done in {:.0f} s", stage, result.seconds)
            self.progress.say(joined(", ", (done, *measured)))

    def models(self) -> dict[str, ModelSource]:
        """The run's teacher, student and bundle; a teacher or bundle only if there is one."""
        references: dict[str, ModelSource] = {}
        if self.loaded.recipe.teacher is not None:
            references["teacher"] = teacher_reference(self.loaded.recipe.teacher)
        references["student"] = self.trained_model()
        if finished(self.dir.root, "export"):
            with suppress(
                DcclipError
            ):  # dcclip's commands do not load the formats of other programs
                references["bundle"] = resolve(str(self.dir.stage("export")))
        return references

    def _evaluate(self, *names: str) -> list[EvalResult]:
        """Evaluate those of the run's models `names` that are not yet, by default on its
        validation pairs.
        """
        options = self.loaded.recipe.eval
        data = self.data()
        if options is not None:
            datasets = open_datasets(options)
        elif (
            data
            and (pairs := recipe_pairs(data, "validation")) is not None
            and pairs.embeddings is None
        ):
            datasets = [data_set(pairs)]
            options = EvalOptions(datasets=(datasets[0].name,), limit=_MOST_VALIDATED)
        else:
            return []
        cache = FeatureCache(cache_folder(), self.progress.say)
        new = {
            name: model
            for name, model in self.models().items()
            if name in names and name not in self._results
        }
        for name, model in new.items():
            # Bundles compute in the precision of their export.
            chosen = (
                options.model_copy(update={"precision": "fp32"})
                if model.kind == "bundle"
                else options
            )
            self._results[name] = evaluate(
                [model], datasets, chosen, device=self.device, cache=cache, progress=self.progress
            )
        evaluated = [result for results in self._results.values() for result in results]
        if len(evaluated) == sum(
            len(self._results[name]) for name in new
        ):  # not again for the bundle
            say_alike(evaluated, self.progress)
        save_report(evaluated, datasets, self.dir.stage("eval"), self.progress)
        for name, model in new.items():
            if name != "teacher":
                update_card(model.path, self._results[name])
        return evaluated

    def _identity(self) -> str:
        """A hash over the trained weights and the sections of the recipe that decide evaluation
        and export.
        """
        sections = {
            name for stage in STAGES if stage.name in ("eval", "export") for name in stage.made_from
        }
        parts = {name: decisive(getattr(self.loaded.recipe, name)) for name in sections}
        parts["model"] = model_fingerprint(self.trained_model().path)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def teacher_reference(teacher: Teacher) -> ModelSource:
    """The teacher as `--model` would name it, with its leave to run code."""
    if is_extension(teacher.kind):
        return ModelSource("hf", teacher.model, teacher.kind, teacher=teacher)
    source = teacher.source
    if source.path.is_dir() or source.path.is_absolute():
        directory = directory_source(source.path, source.library)
        return replace(directory, trust_remote_code=source.trust_remote_code, name=source.name)
    return source
