"""Is one model better than another, or was it the luck of the test images? Told by a bootstrap over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.result import EvalResult, load_results
from dcclip_cli.eval.scoring import figures
from dcclip_cli.progress import Progress, Silent

RESAMPLES = 1000
_ROWS = ("labels", "image_ranks", "text_ranks")  # details that are drawn from, each by itself
_HASHES = {
    "class_names_sha256": "class names",
    "templates_sha256": "prompts",
    "metric": "metrics",
    "split": "splits",
    "limit": "samples",
    "n": "numbers of images",
}


@dataclass(frozen=True)
class Difference:
    """`second` minus `first` on one data set, with the 95 % interval of a bootstrap over its images.

    `paired` where both were measured on the very same images, each resample then being the same for both. `unlike`
    names what differs beside the model, where the comparison was forced.
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
        """Whether the interval leaves out no difference at all."""
        return self.low > 0 or self.high < 0


def read_side(reference: str) -> list[EvalResult]:
    """One model's results: FILE or FOLDER, or FILE@MODEL where it has those of several. Raises DcclipError."""
    path, at, wanted = reference.rpartition("@")
    if Path(reference).exists() or not at:
        path, wanted = reference, ""
    results = load_results(Path(path))
    models = list(dict.fromkeys(result.model for result in results))
    if wanted:
        results = [result for result in results if result.model == wanted]
        if not results:
            raise DcclipError(f"{path} has no results of {wanted}", f"its models are {', '.join(models)}")
    elif len(models) > 1:
        raise DcclipError(f"{path} has results of {len(models)} models", f"say which one: {path}@{models[0]}")
    return results


def compare(
    first: Sequence[EvalResult],
    second: Sequence[EvalResult],
    force: bool = False,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> list[Difference]:
    """The differences on every data set that both have. Raises DcclipError where hashes differ, unless `force`."""
    others = {_identity(result): result for result in second}
    pairs = [(one, others[_identity(one)]) for one in first if _identity(one) in others]
    if not pairs:
        names = " and ".join(sorted({result.dataset for result in (*first, *second)}))
        raise DcclipError(f"the two have no data set in common (they have {names})", "evaluate both on the same one")
    for one, other in pairs:
        unlike = _unlike(one, other)
        if unlike and not force:
            raise DcclipError(
                f"{one.dataset} {one.language}: the {' and '.join(unlike)} differ, so the figures can't be compared",
                "evaluate both alike, or compare all the same with --force",
            )
    with (progress or Silent()).task("bootstrap", len(pairs)) as task:
        found = []
        for one, other in pairs:
            found.append(_difference(one, other, resamples))
            task.advance()
    return found


def _identity(result: EvalResult) -> tuple[str, Language, str]:
    return result.dataset, result.language, result.task


def _unlike(one: EvalResult, other: EvalResult) -> tuple[str, ...]:
    return tuple(said for name, said in _HASHES.items() if getattr(one, name) != getattr(other, name))


def _difference(one: EvalResult, other: EvalResult, resamples: int) -> Difference:
    sides = [_details(one), _details(other)]
    rows = [{name: len(side[name]) for name in _ROWS if name in side} for side in sides]
    paired = one.truth_sha256 == other.truth_sha256 and rows[0] == rows[1]
    random = np.random.default_rng(0)
    differences = np.empty(resamples)
    for number in range(resamples):
        weights = _drawn(rows[0], random)
        values = [_value(one, sides[0], weights)]
        values.append(_value(other, sides[1], weights if paired else _drawn(rows[1], random)))
        differences[number] = values[1] - values[0]
    low, high = np.percentile(differences, (2.5, 97.5))
    identity = (one.dataset, one.language, one.task, one.metric)
    return Difference(*identity, one.value, other.value, float(low), float(high), paired, _unlike(one, other))


def _details(result: EvalResult) -> dict[str, np.ndarray]:
    found = {name: result.detail(name) for name in result.details}
    arrays = {name: one for name, one in found.items() if one is not None and name != "predictions"}
    if not arrays:
        raise DcclipError(f"the result on {result.dataset} does not say what was found of each image", "evaluate again")
    return arrays


def _drawn(rows: Mapping[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
    """How often each row is drawn, when as many are drawn as there are."""
    return {
        name: np.bincount(random.integers(0, count, count), minlength=count).astype(float)
        for name, count in rows.items()
    }


def _value(result: EvalResult, details: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> float:
    return figures(details, weights, (result.metric,))[result.metric]
