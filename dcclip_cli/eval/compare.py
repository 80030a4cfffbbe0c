"""Paired bootstrap comparison of two models' results, and which results compare with those of anybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message, all_of
from dcclip_cli.eval import registry
from dcclip_cli.eval.metrics import metrics_of
from dcclip_cli.eval.result import ZERO_SHOT, EvalResult, load_results, sha256_of, unlike
from dcclip_cli.progress import Progress, Silent

RESAMPLES = 1000
_ROWS = ("labels", "image_ranks", "text_ranks")  # details whose rows are resampled, each independently


@dataclass(frozen=True)
class Difference:
    """`second` minus `first` on one data set, with the 95 % interval of a bootstrap over its images.

    Resamples that leave the metric undefined, such as AUC on images of one class, do not count.

    `paired` if both were measured on the very same images: each resample is then the same for both. `unlike` names
    what differs besides the model, for forced comparisons.
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
        return self.second - self.first

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
    """One model's results in FILE or FOLDER, or FILE@MODEL where it has those of several. Raises DcclipError."""
    path, at, model = reference.rpartition("@")
    if Path(reference).exists() or not at:
        path, model = reference, ""
    results = load_results(Path(path))
    models = list(dict.fromkeys(result.model for result in results))
    if model:
        results = [result for result in results if result.model == model]
        if not results:
            raise DcclipError("{} has no results of {}", "its models are {}", path, model, ", ".join(models))
    elif len(models) > 1:
        raise DcclipError("{0} has results of {1} models", "choose one: {0}@{2}", path, len(models), models[0])
    return results


def compare_results(
    first: Sequence[EvalResult],
    second: Sequence[EvalResult],
    force: bool = False,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> list[Difference]:
    """The differences on every data set that both have. Raises DcclipError where hashes differ, unless `force`.

    Several results on a data set are runs with other seeds, of which the means are compared: images are resampled,
    runs are not.
    """
    ones, others = _by_set(first), _by_set(second)
    pairs = [(runs, others[key]) for key, runs in ones.items() if key in others]
    if not pairs:
        names = all_of(sorted({result.dataset for result in (*first, *second)}))
        raise DcclipError("the two have no data set in common (they have {})", "evaluate both on the same one", names)
    for one, other in ((runs[0], other_runs[0]) for runs, other_runs in pairs):
        if (apart := unlike(one, other)) and not force:
            raise DcclipError(
                "{} {}: the {} differ, so the results are not comparable",
                "evaluate both alike, or compare them anyway with --force",
                one.dataset,
                one.language,
                all_of(apart),
            )
    found = []
    with (progress or Silent()).task(Message("bootstrap"), len(pairs)) as task:
        for runs, other_runs in pairs:
            found.append(_difference(runs, other_runs, resamples))
            task.advance()
    return found


def _by_set(results: Sequence[EvalResult]) -> dict[tuple[str, ...], list[EvalResult]]:
    found: dict[tuple[str, ...], list[EvalResult]] = {}
    for one in results:
        found.setdefault((one.dataset, one.language, one.task), []).append(one)
    return found


def _difference(runs: Sequence[EvalResult], other_runs: Sequence[EvalResult], resamples: int) -> Difference:
    one, other = runs[0], other_runs[0]
    details = [[_details(run) for run in several] for several in (runs, other_runs)]
    rows = [{name: len(arrays[0][name]) for name in _ROWS if name in arrays[0]} for arrays in details]
    paired = one.truth_sha256 == other.truth_sha256 and rows[0] == rows[1]
    random = np.random.default_rng(0)
    differences = np.empty(resamples)
    for number in range(resamples):
        weights = _resample(rows[0], random)
        value = _mean(details[0], weights, one.metric)
        weights = weights if paired else _resample(rows[1], random)
        differences[number] = _mean(details[1], weights, other.metric) - value
    low, high = np.nanpercentile(differences, (2.5, 97.5))
    first, second = (float(np.mean([run.value for run in several])) for several in (runs, other_runs))
    identity = (one.dataset, one.language, one.task, one.metric)
    return Difference(*identity, first, second, float(low), float(high), paired, unlike(one, other))


def _mean(runs: Sequence[Mapping[str, np.ndarray]], weights: Mapping[str, np.ndarray], metric: str) -> float:
    return float(np.mean([metrics_of(details, weights, (metric,))[metric] for details in runs]))


def _details(result: EvalResult) -> dict[str, np.ndarray]:
    found = {name: one for name in result.details if name != "predictions" and (one := result.detail(name)) is not None}
    if not found:
        raise DcclipError("the result on {} has no details of its images", "evaluate again", result.dataset)
    return found


def _resample(rows: Mapping[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
    """How often each row is drawn, when as many are drawn as there are, with replacement."""
    return {
        name: np.bincount(random.integers(0, count, count), minlength=count).astype(float)
        for name, count in rows.items()
    }


def unfit(result: EvalResult) -> str:
    """Why a result is on no leaderboard: it is not of a whole named data set with its own prompts; empty if it is."""
    found = registry.find(result.dataset)
    if found is None or found[1] != result.language:
        return "is no named data set"
    if result.partial or result.limit:
        return "was not measured in full"
    known, language = found
    if known.classes:
        own = prompts.read(registry.prompts_of(known))
        if result.task != ZERO_SHOT:
            return f"is a {result.task}"
        asked = sha256_of(own.names[language]), sha256_of(own.templates[language])
        if (result.class_names_sha256, result.templates_sha256) != asked:
            return "was measured with other class names or prompts than this version's own"
    return ""


def fit_for(results: Sequence[EvalResult], unfit: Callable[[EvalResult], str]) -> tuple[list[EvalResult], list[str]]:
    """The results for which `unfit` has no reason, and a line for the user about each of the others."""
    reasons = [(result, unfit(result)) for result in results]
    lines = [f"left out: {one.dataset} {one.language} of {one.model} {why}" for one, why in reasons if why]
    return [one for one, why in reasons if not why], lines
