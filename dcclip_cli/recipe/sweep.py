"""Sweeps: a recipe's variants with several seeds, each a run in a folder of its own, and their
comparison.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.core.files import atomic_file, atomic_write
from dcclip_cli.core.html import COLOURS, svg_chart
from dcclip_cli.core.machine import ERROR_FILE, can_fork, is_one_of_several
from dcclip_cli.core.options import decisive
from dcclip_cli.core.processes import end_with_launcher
from dcclip_cli.core.run_dir import RESOLVED, STAGES, RunDir
from dcclip_cli.eval.compare import (
    Comparison,
    Difference,
    bootstrap_interval,
    compare_results,
    compare_variants,
)
from dcclip_cli.eval.result import METRIC_NAMES, EvalResult, load_results
from dcclip_cli.model.model_dir import model_fingerprint
from dcclip_cli.recipe.load import LoadedRecipe, record, varied
from dcclip_cli.recipe.run import RecipeRun
from dcclip_cli.recipe.summary import COSTS, ModelSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of a run in a process of its own
_LOG = "log.txt"
_ERROR = "error.json"
_LOOK_S = 0.2  # between two looks at running processes
_STOP_S = 120.0  # in which a run ends its step and saves its state
_METRIC = "agreement"  # where nothing could be tested


@dataclass(frozen=True)
class SweepRow:
    """A model of a variant: its measurements by seed, and how its student differs from that of the
    first variant.
    """

    variant: str
    model: str
    runs: list[ModelSummary]
    differences: list[Difference]
    intervals: Mapping[
        str, tuple[float, float]
    ]  # of one seed: 95 % over images, by test set with its language
    results: Sequence[EvalResult] = ()  # of a student, with details of each image

    def scores(self) -> dict[tuple[str, str], list[float]]:
        """0..1 of each seed, by metric and by test set with its language; else agreement with the
        teacher.
        """
        runs = [
            run.scores or ({_METRIC: run.agreement} if run.agreement else {}) for run in self.runs
        ]
        tests = [(metric, test) for metric, values in runs[0].items() for test in values]
        return {(metric, test): [scores[metric][test] for scores in runs] for metric, test in tests}


@dataclass
class Sweep:
    """The variants of a recipe, each with each of the seeds. Runs are in ROOT/[VARIANT/]seed-N/."""

    loaded: LoadedRecipe
    root: Path
    seeds: tuple[int, ...]
    job: RecipeRun  # whose device, processes, progress and `fresh` all runs have
    at_a_time: int = 1

    def __post_init__(self) -> None:
        self.runs = {
            (variant, seed): replace(
                self.job,
                loaded=varied(self.loaded, variant, seed),
                dir=RunDir(self.root / variant / f"seed-{seed}"),
                _results={},
            )
            for variant in self.loaded.recipe.variants or {"": {}}
            for seed in self.seeds
        }
        self.first = next(iter(self.runs.values()))

    def begin(self) -> None:
        """Check what all runs need, then write each one's recipe into its folder. Pairs are
        collected once.
        """
        if is_one_of_several():
            problem = Message("seeds and variants cannot run under torchrun or another launcher")
            raise DcclipError(problem, "use --processes N instead of torchrun, srun or mpirun")
        for run in self.runs.values():
            run.preflight(run.loaded.recipe.stages)
        with ExitStack() as claims:
            for (
                run
            ) in self.runs.values():  # all of them before `fresh` removes the first one's stages
                claims.enter_context(run.dir.claimed())
            for run in self.runs.values():
                for folder in (run.dir.stage(stage.name) for stage in STAGES if run.fresh):
                    folder.unlink() if folder.is_symlink() else shutil.rmtree(
                        folder, ignore_errors=True
                    )
                run.fresh = False
                record(run.loaded, run.dir.root)
                collected = run.dir.stage("collect")
                if run is not self.first and self._shares(run) and not os.path.lexists(collected):
                    collected.symlink_to(
                        os.path.relpath(self.first.dir.stage("collect"), collected.parent)
                    )

    def _shares(self, run: RecipeRun) -> bool:
        """Whether a run takes the pairs that the first one collects."""
        collect = run.loaded.recipe.collect
        return collect is not None and decisive(collect) == decisive(
            self.first.loaded.recipe.collect
        )

    def run(self) -> None:
        """Run what is not finished: in this process one after the other, else so many at a time in
        their own.
        """
        if self.first.loaded.recipe.collect is not None:
            self.first.run("collect")
        if self.at_a_time > 1:
            return self._in_processes()
        for run in self.runs.values():
            self.job.progress.say(Message("run: {}", run.dir.root))
            list(run.run_all(without=["collect"] if self._shares(run) else []))
            run.summary()
            run.fresh = False

    def _in_processes(self) -> None:
        """Stopped stops all of them, with their state saved; so does the first error, which is
        raised.
        """
        waiting = list(self.runs.values())
        running = dict[int, tuple[RecipeRun, subprocess.Popen[bytes]]]()
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
                            log = run.dir.root / _LOG
                            error = run.dir.root / _ERROR
                            if code and error.exists():
                                problem, hint = map(
                                    json.loads(error.read_text("utf-8")).get, ("message", "hint")
                                )
                                raise DcclipError(
                                    "{}: {}", "{} (log: {})", run.dir.root, problem, hint, log
                                )
                            if code:
                                lines = log.read_text("utf-8", errors="replace").splitlines()
                                end = (lines or [Message("exit code {}", code)])[-1]
                                end = Message("killed by signal {}", -code) if code < 0 else end
                                raise DcclipError("{}: {}", "full log: {}", run.dir.root, end, log)
                            task.advance()
        finally:
            _stop([process for _, process in running.values()])

    def rows(self) -> list[SweepRow]:
        """The models of all variants: the teacher once for each, students and bundles over all
        seeds.
        """
        rows = list[tuple[tuple[str, int, str], SweepRow]]()  # with their architecture
        first: list[EvalResult] = []
        for variant in dict.fromkeys(variant for variant, _ in self.runs):
            runs = [run for (name, _), run in self.runs.items() if name == variant]
            summaries = [{summary.name: summary for summary in run.summary()} for run in runs]
            results: list[EvalResult] = []  # of students, with details of each image
            intervals: dict[str, dict[str, tuple[float, float]]] = {
                model: {} for model in summaries[0]
            }
            for run in (run for run in runs if run.dir.stage("eval").is_dir()):
                trained = model_fingerprint(run.trained_model().path)
                evaluated = load_results(run.dir.stage("eval"))
                results += [
                    result for result in evaluated if result.model_fingerprint.startswith(trained)
                ]
                prints = [
                    *dict.fromkeys(result.model_fingerprint for result in evaluated)
                ]  # in the summary's order
                for model, fingerprint in (
                    zip(intervals, prints, strict=False) if len(runs) == 1 else ()
                ):
                    for result in (
                        result for result in evaluated if result.model_fingerprint == fingerprint
                    ):
                        intervals[model][f"{result.dataset} {result.language}"] = (
                            bootstrap_interval(result)
                        )
            first = first or results
            tested = [
                {(result.dataset, result.language) for result in part} for part in (first, results)
            ]
            for model in summaries[0]:
                compared = model == "student" and results is not first and tested[0] & tested[1]
                differences = compare_results(first, results, force=True) if compared else []
                seeds = [summary[model] for summary in summaries]
                seeds = seeds[:1] if model == "teacher" else seeds
                students = results if model == "student" else ()
                row = SweepRow(variant, model, seeds, differences, intervals[model], students)
                if model != "teacher" or all(row.scores() != shown.scores() for _, shown in rows):
                    recipe = runs[0].loaded.recipe
                    section = str(recipe.teacher if model == "teacher" else recipe.student)
                    rows.append(((model, seeds[0].size_bytes, section), row))

        def least(
            key: tuple[str, int, str],
        ) -> dict[str, Any]:  # what a model costs does not depend on its weights
            runs = [run for architecture, row in rows if architecture == key for run in row.runs]
            return {cost: min(getattr(run, cost) for run in runs) for cost in COSTS}

        return [
            replace(row, runs=[replace(run, **least(key)) for run in row.runs]) for key, row in rows
        ]

    def save(self, rows: Sequence[SweepRow]) -> None:
        """Write runs.csv, the scores of runs; table.csv, means and differences; table.tex and
        sweep.svg.
        """
        head = ["variant", "model", "metric", "test set"]
        runs: list[list[Any]] = [[*head, "seed", "value"]]
        table: list[list[Any]] = [
            [*head, "runs", "mean", "standard deviation", "difference", "low", "high"]
        ]
        for row in rows:
            differences = {
                f"{pair.dataset} {pair.language}": (pair.value, pair.low, pair.high)
                for pair in row.differences
            }
            for (metric, test), values in row.scores().items():
                where = [row.variant, row.model, metric, test]
                runs += [
                    [*where, seed, value] for seed, value in zip(self.seeds, values, strict=False)
                ]
                table.append(
                    [
                        *where,
                        len(values),
                        *mean_and_deviation(values),
                        *differences.get(test, ("", "", "")),
                    ]
                )
        for name, lines in (("runs.csv", runs), ("table.csv", table)):
            with (
                atomic_file(self.root / name) as partial,
                partial.open("w", encoding="utf-8", newline="") as stream,
            ):
                csv.writer(stream, lineterminator="\n").writerows(lines)
        students = {row.variant: row.results for row in rows if row.results}
        comparisons = compare_variants(students, self.job.progress)
        atomic_write(
            self.root / "table.tex", _latex(rows, comparisons) + _latex_of_pairs(comparisons)
        )
        if drawn := _chart([row for row in rows if row.model != "bundle"]):
            atomic_write(self.root / "sweep.svg", drawn)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard deviation of the population that the values are a sample of, nan
    for a single one.
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float(
        "nan"
    )


def per_cent(values: Sequence[float], sign: str = "±") -> str:
    """Mean and deviation of values in 0..1, as `43.1 ± 0.2`; the value alone of one run, nothing
    of none.
    """
    mean, deviation = mean_and_deviation(values) if len(values) else (nan, nan)
    spread = "" if isnan(deviation) else f" {sign} {100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}" if len(values) else ""


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let runs save their state and end; one that hangs is killed."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _started(run: RecipeRun, place: int) -> subprocess.Popen[bytes]:
    """`dcclip run` of one run, on GPUs of its own, the `place`-th ones; it ends when this process
    does.
    """
    command = [sys.executable, "-P", "-m", "dcclip_cli", "run", str(run.dir.root / RESOLVED)]
    command += [
        "--out",
        str(run.dir.root),
        "--device",
        run.device,
        "--processes",
        str(run.processes),
    ]
    (run.dir.root / _ERROR).unlink(missing_ok=True)
    environment = os.environ | {ERROR_FILE: str(run.dir.root / _ERROR)}
    if gpus := _gpus(run.device):
        numbers = (place * run.processes + number for number in range(run.processes))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            gpus[number % len(gpus)] for number in numbers
        )
    before = end_with_launcher if can_fork() else None  # Windows has no such function
    with (run.dir.root / _LOG).open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=before)


def _gpus(device: str) -> list[str]:
    """The CUDA devices that this process may use; none unless runs would use one."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        visible.split(",")
        if visible
        else [str(number) for number in range(torch.cuda.device_count())]
    )


def fitting(device: str, processes: int) -> int:
    """How many runs this machine trains at a time: one for each GPU, or one on all cores."""
    return max(1, len(_gpus(device))) if processes == 1 else 1


def _latex(rows: Sequence[SweepRow], comparisons: Sequence[Comparison]) -> str:
    """Models as rows, test sets and languages as columns, in per cent.

    A student is bold where its interval against every other student excludes 0. With ± the
    standard deviation over the seeds; of one seed, with the interval over images.
    """
    losers: dict[
        tuple[str, str], set[str]
    ] = {}  # by variant and test: the variants that it is clearly better than
    for comparison in comparisons:
        for difference in comparison.differences:
            test = f"{difference.dataset} {difference.language}"
            if difference.low > 0:
                losers.setdefault((comparison.second, test), set()).add(comparison.first)
            elif difference.high < 0:
                losers.setdefault((comparison.first, test), set()).add(comparison.second)
    students = {row.variant for row in rows if row.model == "student"}

    def cell(row: SweepRow, metric: str, test: str) -> str:
        values = row.scores().get((metric, test), ())
        low, high = row.intervals.get(test, (nan, nan))
        spread = (
            ""
            if isnan(low) or len(values) != 1
            else rf" {{\scriptsize [{100 * low:.1f}, {100 * high:.1f}]}}"
        )
        text = per_cent(values, r"$\pm$")
        rivals = students - {row.variant}
        if row.model == "student" and rivals and losers.get((row.variant, test), set()) >= rivals:
            text = rf"\textbf{{{text}}}"
        return text + spread

    keys = list(dict.fromkeys(key for row in rows for key in row.scores()))
    heads = (_tex_text(f"{test}, {METRIC_NAMES.get(metric, metric)}") for metric, test in keys)
    lines = [
        [_tex_text(row.variant), row.model, *(cell(row, *key) for key in keys)] for row in rows
    ]
    return _booktabs([["variant", "model", *heads], *lines])


def _latex_of_pairs(comparisons: Sequence[Comparison]) -> str:
    """All pairs of variants: the second minus the first in points, with its 95 % interval; clear
    ones in bold.
    """
    if not comparisons:
        return ""
    lines = [["first", "second", "test set", "difference", r"95 \% interval"]]
    for comparison in comparisons:
        for difference in comparison.differences:
            value = f"{100 * difference.value:+.1f}"
            text = rf"\textbf{{{value}}}" if difference.is_clear else value
            interval = f"[{100 * difference.low:.1f}, {100 * difference.high:.1f}]"
            test = _tex_text(f"{difference.dataset} {difference.language}")
            lines.append(
                [_tex_text(comparison.first), _tex_text(comparison.second), test, text, interval]
            )
    return "\n" + _booktabs(lines)


def _booktabs(lines: Sequence[Sequence[str]]) -> str:
    """A LaTeX table whose first two columns are texts, with a rule between groups with the same
    first cell.
    """
    head, *rows = (" & ".join(line) + r" \\" for line in lines)
    variants = [line[0] for line in lines[1:]]
    for number in range(len(variants) - 1, 0, -1):
        if variants[number] != variants[number - 1] and len(set(variants)) < len(variants):
            rows.insert(number, r"\midrule")
    begin = rf"\begin{{tabular}}{{ll{'r' * (len(lines[0]) - 2)}}}"
    return "\n".join(
        [begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
    )


def _tex_text(text: str) -> str:
    special: dict[str, Any] = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    return text.translate(str.maketrans(special | {char: "\\" + char for char in "&%$#_{}"}))


def _chart(rows: Sequence[SweepRow]) -> bytes:
    """A bar for the mean of each model, its standard deviation, and a point for each seed."""
    places = list(dict.fromkeys(key for row in rows for key in row.scores()))
    height = 0.8 / len(rows)

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            colour: Any = COLOURS[number % len(COLOURS)]
            label = f"{row.variant} {row.model}".strip()
            for key, values in row.scores().items():
                at = places.index(key) + height * number
                (mean, deviation) = mean_and_deviation(values)
                axes.barh(at, 100 * mean, height * 0.9, color=colour, alpha=0.5, label=label)
                axes.errorbar(
                    100 * mean, at, xerr=np.nan_to_num(100 * deviation), color=colour, capsize=2
                )
                axes.plot(
                    [100 * value for value in values],
                    [at] * len(values),
                    "o",
                    color=colour,
                    markersize=3,
                )
                label = ""  # once in the legend
        axes.set_yticks(
            [at + 0.4 - height / 2 for at in range(len(places))], [" ".join(key) for key in places]
        )
        axes.invert_yaxis()
        axes.set_xlabel(translated(Message("per cent")))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)

    return svg_chart((8.5, 1.2 + (0.2 * len(rows) + 0.08) * len(places)), draw) if places else b""
