"""What does a person see of an evaluation? One HTML file, without network or scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dcclip_cli.data.pair import Language
from dcclip_cli.eval.datasets import DataSet
from dcclip_cli.eval.report.charts import overview, probes
from dcclip_cli.eval.report.errors import errors_of
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.eval.tables import (
    METRIC_NAMES,
    elevater_mean,
    latex,
    markdown,
    percent,
    table,
)
from dcclip_cli.html import write_page

_LANGUAGES: dict[Language, str] = {"en": "English", "zh": "Chinese"}


def write_report(path: Path, results: Sequence[EvalResult], datasets: Iterable[DataSet] = ()) -> None:
    """Write report.html. Pictures of errors are shown of the data sets given; the rest is in the results."""
    by_name = {dataset.name: dataset for dataset in datasets}
    models = list(dict.fromkeys(result.model for result in results))
    means = {
        f"{model}, {_LANGUAGES[language]}": mean
        for model in models
        for language in _LANGUAGES
        if (mean := elevater_mean(results, model, language)) is not None
    }
    found = [errors for result in results if (errors := errors_of(result, by_name))]
    write_page(
        path,
        "dcclip_cli.eval.report",
        "report.html.j2",
        results=results,
        models=models,
        means=means,
        table=table(results),
        overview=overview(results),
        probes=probes(results),
        errors=found,
        languages=_LANGUAGES,
        metric_names=METRIC_NAMES,
        points=percent,
        markdown=markdown(results),
        latex=latex(results),
        corrupt={result.dataset: result.corrupt for result in results if result.corrupt},
    )
