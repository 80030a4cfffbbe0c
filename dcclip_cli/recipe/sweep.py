"""Sweeps: a recipe's variants with several seeds, each a run in a folder of its own, and their comparison."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.errors import DcclipError, Message, translated
from dcclip_cli.files import atomic_file, atomic_write
from dcclip_cli.machine import ERROR_FILE
from dcclip_cli.options import decisive
from dcclip_cli.processes import end_with_launcher
from dcclip_cli.recipe.load import LoadedRecipe, record, varied
from dcclip_cli.recipe.run import RecipeRun
from dcclip_cli.recipe.summary import ModelSummary
from dcclip_cli.run_dir import RESOLVED, STAGES, RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dcclip_cli.eval.compare import Difference
    from dcclip_cli.eval.result import EvalResult

_LOG, _ERROR = "log.txt", "error.json"  # of a run in a process of its own
_LOOK_S = 0.2  # between two looks at running processes
_METRIC = "agreement"  # where nothing could be tested


@dataclass(frozen=True)
class SweepRow:
    """A model of a variant: its measurements by seed, and how its student differs from that of the first variant."""

    variant: str
    model: str
    runs: list[ModelSummary]
    differences: list[Difference]

    def scores(self) -> dict[tuple[str, str], list[float]]:
        """0..1 of each seed, by metric and by test set with its language."""
        return {
            (metric, on): [self.of(one)[metric][on] for one in self.runs]
            for metric, several in self.of(self.runs[0]).items()
            for on in several
        }

    @staticmethod
    def of(one: ModelSummary) -> Mapping[str, Mapping[str, float]]:
        """The scores of a run, else its agreement with the teacher."""
        return one.scores or ({_METRIC: one.agreement} if one.agreement else {})


@dataclass
class Sweep:
    """The variants of a recipe, each with each of the seeds. Runs are in ROOT/[VARIANT/]seed-N/."""

    loaded: LoadedRecipe
    root: Path
    seeds: tuple[int, ...]
    job: RecipeRun  # whose device, processes, progress and `fresh` all runs have
    at_a_time: int = 1

    def __post_init__(self) -> None:
        names = self.loaded.recipe.variants or {"": {}}
        self.runs = {
            (name, seed): RecipeRun(
                varied(self.loaded, name, seed),
                RunDir(self.root / name / f"seed-{seed}"),
                self.job.device,
                self.job.fresh,
                self.job.progress,
                self.job.processes,
            )
            for name in names
            for seed in self.seeds
        }

    def begin(self) -> None:
        """Check what all runs need, then write each one's recipe into its folder. Pairs are collected once."""
        first = next(iter(self.runs.values()))
        for run in self.runs.values():
            run.check_alone()
            run.preflight(run.loaded.recipe.stages)
        for run in self.runs.values():
            if run.fresh:
                _remove_stages(run.dir)
            run.fresh = False
            record(run.loaded, run.dir.root)
            collected = run.dir.stage("collect")
            if run is not first and self._shares(run, first) and not os.path.lexists(collected):
                collected.symlink_to(os.path.relpath(first.dir.stage("collect"), collected.parent))

    def _shares(self, run: RecipeRun, first: RecipeRun) -> bool:
        """Whether a run takes the pairs that the first one collects."""
        own = run.loaded.recipe.collect
        return own is not None and decisive(own) == decisive(first.loaded.recipe.collect)

    def run(self) -> None:
        """Run what is not finished: in this process one after the other, else so many at a time in their own."""
        first = next(iter(self.runs.values()))
        if first.loaded.recipe.collect is not None:
            first.run("collect")
        if self.at_a_time > 1:
            return self._in_processes()
        for run in self.runs.values():
            self.job.progress.say(Message("run: {}", run.dir.root))
            list(run.run_all(without=["collect"] if self._shares(run, first) else []))
            run.summary()
            run.fresh = False

    def _in_processes(self) -> None:
        """Stopped stops all of them, with their state saved; so does the first error, which is raised."""
        waiting, running = list(self.runs.values()), dict[int, tuple[RecipeRun, subprocess.Popen[bytes]]]()
        try:
            with self.job.progress.task(Message("runs"), len(waiting)) as task:
                while waiting or running:
                    for place in set(range(self.at_a_time)) - running.keys():
                        if waiting:
                            running[place] = (run := waiting.pop(0)), _started(run, place)
                    time.sleep(_LOOK_S)
                    for place, (run, process) in list(running.items()):
                        if (code := process.poll()) is not None:
                            del running[place]
                            _check_ended(run, code)
                            task.advance()
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()

    def rows(self) -> list[SweepRow]:
        """The models of all variants: the teacher once for each, students and bundles over all seeds."""
        found: list[SweepRow] = []
        names = list(dict.fromkeys(name for name, _ in self.runs))
        results = {name: self._results(name) for name in names}
        for name in names:
            summaries = [{one.name: one for one in run.summary()} for run in self._of(name)]
            for model in summaries[0]:
                compared = model == "student" and name != names[0] and results[name] and results[names[0]]
                runs = [summary[model] for summary in summaries]
                differences = _compared(results[names[0]], results[name]) if compared else []
                row = SweepRow(name, model, runs[:1] if model == "teacher" else runs, differences)
                if model != "teacher" or all(row.scores() != other.scores() for other in found):
                    found.append(row)
        return found

    def _of(self, name: str) -> Iterator[RecipeRun]:
        return (run for (variant, _), run in self.runs.items() if variant == name)

    def _results(self, name: str) -> list[EvalResult]:
        """The results of a variant's students, with details of each image; none where nothing was tested."""
        from dcclip_cli.eval.result import load_results
        from dcclip_cli.model.model_dir import model_fingerprint

        found: list[EvalResult] = []
        for run in self._of(name):
            if run.dir.stage("eval").is_dir():
                student = model_fingerprint(run.trained_model().path)
                every = load_results(run.dir.stage("eval"))
                found += [one for one in every if one.model_fingerprint.startswith(student)]
        return found

    def save(self, rows: Sequence[SweepRow]) -> None:
        """Write runs.csv, each run's scores; table.csv, means, deviations, differences; table.tex and sweep.svg."""
        each, table = list[Sequence[object]](), list[Sequence[object]]()
        for row in rows:
            differences = {f"{one.dataset} {one.language}": one for one in row.differences}
            for (metric, on), values in row.scores().items():
                where = row.variant, row.model, metric, on
                each += [(*where, seed, value) for seed, value in zip(self.seeds, values, strict=False)]
                one = differences.get(on)
                compared = (one.value, one.low, one.high) if one else ("", "", "")
                table.append((*where, len(values), *mean_and_deviation(values), *compared))
        head = ("variant", "model", "metric", "test set")
        _write_csv(self.root / "runs.csv", (*head, "seed", "value"), each)
        tail = ("runs", "mean", "standard deviation", "difference", "low", "high")
        _write_csv(self.root / "table.csv", (*head, *tail), table)
        atomic_write(self.root / "table.tex", _latex(rows))
        if drawn := _chart([row for row in rows if row.model != "bundle"]):
            atomic_write(self.root / "sweep.svg", drawn)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard deviation of the population that the values are a sample of, nan for a single one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _compared(first: Sequence[EvalResult], second: Sequence[EvalResult]) -> list[Difference]:
    from dcclip_cli.eval.compare import compare_results

    shared = {(one.dataset, one.language) for one in first} & {(one.dataset, one.language) for one in second}
    return compare_results(first, second, force=True) if shared else []


def _remove_stages(run: RunDir) -> None:
    for stage in STAGES:
        if (folder := run.stage(stage.name)).is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _started(run: RecipeRun, place: int) -> subprocess.Popen[bytes]:
    """`dcclip run` of one run, on GPUs of its own, the `place`-th ones; it ends when this process does."""
    command = [sys.executable, "-P", "-m", "dcclip_cli", "run", str(run.dir.root / RESOLVED)]
    command += ["--out", str(run.dir.root), "--device", run.device, "--processes", str(run.processes)]
    (run.dir.root / _ERROR).unlink(missing_ok=True)
    environment = os.environ | {ERROR_FILE: str(run.dir.root / _ERROR)}
    if gpus := _gpus(run.device):
        numbers = (place * run.processes + number for number in range(run.processes))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number % len(gpus)] for number in numbers)
    with (run.dir.root / _LOG).open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=end_with_launcher)


def _check_ended(run: RecipeRun, code: int) -> None:
    if not code:
        return
    log, error = run.dir.root / _LOG, run.dir.root / _ERROR
    if error.exists():
        report = json.loads(error.read_text("utf-8"))
        raise DcclipError("{}: {}", "{} (log: {})", run.dir.root, report["message"], report["hint"], log)
    lines = log.read_text("utf-8", errors="replace").splitlines()
    last = lines[-1] if lines and code > 0 else Message("killed by signal {}", -code)
    raise DcclipError("{}: {}", "all of it is in {}", run.dir.root, last, log)


def _gpus(device: str) -> list[str]:
    """The CUDA devices that this process may use; none unless runs would use one."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def fitting(device: str, processes: int) -> int:
    """How many runs this machine trains at a time: one for each GPU, or one on all cores."""
    return max(1, len(_gpus(device))) if processes == 1 else 1


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])


def _latex(rows: Sequence[SweepRow]) -> str:
    """Means with standard deviations in per cent, for a paper."""
    from dcclip_cli.eval.report import booktabs, tex_text
    from dcclip_cli.eval.result import METRIC_NAMES

    keys = list(dict.fromkeys(key for row in rows for key in row.scores()))
    lines = [["variant", "model", *(tex_text(f"{test}, {METRIC_NAMES.get(metric, metric)}") for metric, test in keys)]]
    for row in rows:
        scores = {key: mean_and_deviation(values) for key, values in row.scores().items()}
        texts = {
            key: f"{100 * mean:.1f}" + ("" if isnan(deviation) else rf" $\pm$ {100 * deviation:.1f}")
            for key, (mean, deviation) in scores.items()
        }
        lines.append([tex_text(row.variant), row.model, *(texts.get(key, "") for key in keys)])
    return booktabs(lines, 2)


def _chart(rows: Sequence[SweepRow]) -> bytes:
    """A bar for the mean of each model, its standard deviation, and a point for each seed."""
    from dcclip_cli.html import COLOURS, svg_chart

    places = list(dict.fromkeys(key for row in rows for key in row.scores()))
    height = 0.8 / len(rows)

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            colour: Any = COLOURS[number % len(COLOURS)]
            label = f"{row.variant} {row.model}".strip()
            for key, values in row.scores().items():
                at, (mean, deviation) = places.index(key) + height * number, mean_and_deviation(values)
                axes.barh(at, 100 * mean, height * 0.9, color=colour, alpha=0.5, label=label)
                axes.errorbar(100 * mean, at, xerr=np.nan_to_num(100 * deviation), color=colour, capsize=2)
                axes.plot([100 * value for value in values], [at] * len(values), "o", color=colour, markersize=3)
                label = ""  # once in the legend
        axes.set_yticks([at + 0.4 - height / 2 for at in range(len(places))], [" ".join(key) for key in places])
        axes.invert_yaxis()
        axes.set_xlabel(translated(Message("per cent")))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

    return svg_chart((8.5, 1.2 + (0.2 * len(rows) + 0.08) * len(places)), draw) if places else b""
