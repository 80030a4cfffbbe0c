"""Paired bootstrap comparison of two models' results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message, all_of
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.pair import Language
from dcclip_cli.eval.metrics import metrics_of
from dcclip_cli.eval.result import EvalResult, load_results, unlike

RESAMPLES = 1000
_ROWS = (
    "labels",
    "image_ranks",
    "text_ranks",
    "margin",
)  # details whose rows are resampled, each independently


@dataclass(frozen=True)
class Difference:
    """`second` minus `first` on one data set, with the 95 % interval of a bootstrap over its
    images.

    Resamples that leave the metric undefined, such as AUC on images of one class, do not count.

    `paired` if both were measured on the very same images: each resample is then the same for
    both. `unlike` names what differs besides the model, for forced comparisons.
    """

    dataset: str
    language: Language
    task: str
    metric: str
    first: float
    second: float
    low: float
    high: float
    paired: bool
    unlike: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return round(
            self.second - self.first, 12
        )  # sums of the fractions that decide ties differ in the last bits

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Model `second` against model `first` on every data set that both were measured on."""

    first: str
    second: str
    differences: list[Difference]


def read_results(reference: str) -> list[EvalResult]:
    """One model's results in FILE or FOLDER, or FILE@MODEL where it has those of several. Raises
    DcclipError.

    Of a run, `@student` and `@teacher` name the models, and the student is the default.
    """
    path, at, model = reference.rpartition("@")
    if Path(reference).exists() or not at:
        path = reference
        model = ""
    results = load_results(Path(path))
    models = list(dict.fromkeys(result.model for result in results))
    student = _student_of_run(Path(path), results)
    if student and model in ("", "student"):
        model = student
    elif student and model == "teacher" and models[0] != student:  # the first that a run evaluates
        model = models[0]
    if model:
        results = [result for result in results if result.model == model]
        if not results:
            raise DcclipError(
                "{} has no results for the model {}",
                "choose one of: {}",
                path,
                model,
                ", ".join(models),
            )
    elif len(models) > 1:
        raise DcclipError(
            "{0} has results of {1} models", "choose one: {0}@{2}", path, len(models), models[0]
        )
    return results


def _student_of_run(run: Path, results: Sequence[EvalResult]) -> str | None:
    """The name under which the results of a run, or of its folder `eval`, have the student; None
    in any other.
    """
    from dcclip_cli.model.model_dir import model_fingerprint

    if run.name == "eval":
        run = run.parent
    for stage in ("align", "distill"):
        folder = RunDir(run).model(stage)
        if folder.is_dir():
            fingerprint = model_fingerprint(folder)
            names = (
                result.model
                for result in results
                if result.model_fingerprint.startswith(fingerprint)
            )
            return next(names, None)
    return None


def read_variants(sweep: Path) -> dict[str, list[EvalResult]]:
    """The students' results of a sweep by variant, of all seeds together. Raises DcclipError if
    there are not two.
    """
    results: dict[str, list[EvalResult]] = {}
    for folder in sorted(sweep.glob("*/seed-*/eval")):
        run = folder.parent
        results.setdefault(run.parent.name, []).extend(read_results(str(run)))
    if len(results) < 2:
        problem = Message(
            "{} is not the folder of a sweep with two variants that were evaluated", sweep
        )
        raise DcclipError(problem, "name the results of a second model: dcclip compare A B")
    return results


def compare_variants(
    results: Mapping[str, Sequence[EvalResult]], progress: Progress | None = None
) -> list[Comparison]:
    """All pairs of variants, each over all of its seeds, on the data sets that both have."""
    comparisons = []
    for first, second in combinations(results, 2):
        if _by_set(results[first]).keys() & _by_set(results[second]).keys():
            differences = compare_results(
                results[first], results[second], force=True, progress=progress
            )
            comparisons.append(Comparison(first, second, differences))
    return comparisons


def compare_results(
    first: Sequence[EvalResult],
    second: Sequence[EvalResult],
    force: bool = False,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> list[Difference]:
    """The differences on every data set that both have. Raises DcclipError where hashes differ,
    unless `force`.

    Several results on a data set are runs with other seeds, of which the means are compared:
    images are resampled, runs are not.
    """
    first_runs = _by_set(first)
    second_runs = _by_set(second)
    pairs = [(runs, second_runs[key]) for key, runs in first_runs.items() if key in second_runs]
    if not pairs:
        names = all_of(sorted({result.dataset for result in (*first, *second)}))
        raise DcclipError(
            "the models have no data set in common (they have {})",
            "evaluate both models on the same data set",
            names,
        )
    for run, other_run in ((runs[0], other_runs[0]) for runs, other_runs in pairs):
        if (differing := unlike(run, other_run)) and not force:
            raise DcclipError(
                "{} {}: the {} differ, so the results cannot be compared",
                "evaluate both models with the same settings, or compare anyway with --force",
                run.dataset,
                run.language,
                all_of(differing),
            )
    differences = []
    with (progress or Silent()).task(Message("bootstrap"), len(pairs)) as task:
        for runs, other_runs in pairs:
            run = runs[0]
            other_run = other_runs[0]
            details = [[_details(run) for run in of_model] for of_model in (runs, other_runs)]
            rows = [
                {name: len(arrays[0][name]) for name in _ROWS if name in arrays[0]}
                for arrays in details
            ]
            paired = run.truth_sha256 == other_run.truth_sha256 and rows[0] == rows[1]
            random = np.random.default_rng(0)
            samples = np.empty(resamples)
            for number in range(resamples):
                weights = _resample(rows[0], random)
                value = _mean(details[0], weights, run.metric)
                weights = weights if paired else _resample(rows[1], random)
                samples[number] = _mean(details[1], weights, other_run.metric) - value
            low, high = np.nanpercentile(samples, (2.5, 97.5)).round(12).tolist()
            mean, other_mean = (
                float(np.mean([run.value for run in of_model])) for of_model in (runs, other_runs)
            )
            identity = (run.dataset, run.language, run.task, run.metric)
            differences.append(
                Difference(*identity, mean, other_mean, low, high, paired, unlike(run, other_run))
            )
            task.advance()
    return differences


def bootstrap_interval(result: EvalResult) -> tuple[float, float]:
    """The 95 % interval of a result's metric, from a bootstrap over its images."""
    details = _details(result)
    random = np.random.default_rng(0)
    rows = {name: len(details[name]) for name in _ROWS if name in details}
    samples = [_mean([details], _resample(rows, random), result.metric) for _ in range(RESAMPLES)]
    low, high = map(float, np.nanpercentile(samples, (2.5, 97.5)))
    return low, high


def _by_set(results: Sequence[EvalResult]) -> dict[tuple[str, ...], list[EvalResult]]:
    runs_by_set: dict[tuple[str, ...], list[EvalResult]] = {}
    for result in results:
        runs_by_set.setdefault((result.dataset, result.language, result.task), []).append(result)
    return runs_by_set


def _mean(
    runs: Sequence[Mapping[str, np.ndarray]], weights: Mapping[str, np.ndarray], metric: str
) -> float:
    return float(np.mean([metrics_of(details, weights, (metric,))[metric] for details in runs]))


def _details(result: EvalResult) -> dict[str, np.ndarray]:
    arrays = ((name, result.detail(name)) for name in result.details if name != "predictions")
    details = {name: array for name, array in arrays if array is not None}
    if not details:
        raise DcclipError(
            "the result on {} has no per-image details", "evaluate the model again", result.dataset
        )
    return details


def _resample(rows: Mapping[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
    """How often each row is drawn, when as many are drawn as there are, with replacement."""
    return {
        name: np.bincount(random.integers(0, count, count), minlength=count).astype(float)
        for name, count in rows.items()
    }
