"""`dcclip eval [RECIPE]`: how good models are on test sets, in Chinese and in English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags, stages
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import Precision

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language
    from dcclip_cli.eval.datasets import DataSet
    from dcclip_cli.eval.evaluate import EvalOptions
    from dcclip_cli.eval.result import EvalResult
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.progress import Progress

# Figures shown of one model, the first of each group that a result has.
_SHOWN = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "map11": "11-point mAP",
    "roc_auc": "ROC AUC",
    "image_recall@1": "images R@1",
    "image_recall@5": "R@5",
    "image_recall@10": "R@10",
    "text_recall@1": "texts R@1",
    "text_recall@5": "R@5",
    "text_recall@10": "R@10",
    "mean_recall": "mean recall",
}


def eval(
    recipe: flags.OptionalRecipe = None,
    model: Annotated[
        list[str] | None,
        Option("--model", metavar="MODEL", help=f"{flags.MODEL_HELP} Repeatable.", show_default=False),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        Option(
            "--dataset",
            metavar="NAME|PATH",
            help="A name or group (see: dcclip datasets), a Parquet or tar file of pairs whose captions are the "
            "classes, or a folder of class folders. Repeatable.",
            show_default=False,
        ),
    ] = None,
    languages: Annotated[
        str, Option("--languages", metavar="en,zh", help="Of data sets of your own. Default: all there are.")
    ] = "",
    data_root: Annotated[
        Path | None,
        Option("--data-root", metavar="DIR", help="Has the named data sets as DIR/NAME/. Default: the hub."),
    ] = None,
    limit: Annotated[int | None, Option("--limit", min=1, help="At most so many images of a data set.")] = None,
    templates: Annotated[
        Literal["own", "compact", "name"] | None,
        Option("--templates", help="Prompts: the data set's own (default), a few for all, or the bare name."),
    ] = None,
    task: Annotated[
        Literal["zero-shot", "retrieval", "probe"] | None,
        Option("--task", help="retrieval: all captions of your own pairs; probe: a linear layer on embeddings."),
    ] = None,
    shots: Annotated[
        str, Option("--shots", metavar="5,20,50,all", help="Images a class that probes are trained on.")
    ] = "",
    compare: Annotated[
        tuple[str, str] | None,
        Option(
            "--compare",
            metavar="A.json B.json",
            help="Show B minus A of two results, or folders of them; FILE@MODEL picks one of several models.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, Option("--force", help="Compare results of unlike class names or prompts.")] = False,
    precision: Annotated[
        Precision | None,
        Option("--precision", help="What torch computes in. Default: auto, what is faster here."),
    ] = None,
    workers: Annotated[int | None, Option("--workers", min=1, help="Threads that read images. Default: 2.")] = None,
    processes: Annotated[
        int | None,
        Option("--processes", min=1, help="Processes that share the images, each with the model. Default: 1."),
    ] = None,
    cache: Annotated[
        Path | None,
        Option("--cache", metavar="DIR", help="Where embeddings are kept. Default: $DCCLIP_CACHE or ~/.cache/dcclip."),
    ] = None,
    no_cache: Annotated[bool, Option("--no-cache", help="Keep no embeddings, and use none.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the full results as JSON instead of a table.")] = False,
    sets: flags.Sets = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="For the results as JSON, tables and report.html.", show_default=False),
    ] = None,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure models on test sets, side by side.

    With a recipe: its data sets and its run's model, and the results are kept in runs/NAME/eval.
    """
    if recipe is None and (sets or check):
        raise BadParameter("--set and --check need a recipe")
    if compare:
        return _compare(compare, force, as_json, console.talk(quiet, verbose))
    given = {
        "datasets": dataset,
        "languages": _languages(languages),
        "data_root": str(data_root) if data_root else None,
        "limit": limit,
        "templates": templates,
        "task": task,
        "shots": _shots(shots),
        "precision": precision,
        "workers": workers,
        "processes": processes,
    }
    loaded = stages.open_recipe(recipe, sets, None if dataset else "eval") if recipe else None
    if loaded and check:
        return stages.check(loaded, device)
    options = _options(loaded.recipe.eval if loaded else None, given)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.model.reference import resolve

    work = stages.Work(loaded, stages.open_run(loaded, None), device, False, talk) if loaded else None
    if work and not model:
        references = [work.trained_model()]
        out = out or work.run.stage("eval")
    else:
        references = [resolve(name) for name in model] if model else [resolve()]
    for reference in references:
        talk.say(reference.description)
    datasets = open_all(options)
    results = measure(references, datasets, options, device, talk, cache, no_cache)
    if len({result.model for result in results}) < len(references):  # models of one name: told apart by where they lie
        results = _named_by_path(results, references)
    if out:
        keep(results, datasets, out)
        talk.say(f"results: {out} (open {out / 'report.html'})")
    if as_json:
        console.show_json([asdict(result) for result in results])
    else:
        show(results)


def open_all(options: EvalOptions) -> list[DataSet]:
    """The data sets chosen, each checked to be whole. Raises DcclipError."""
    from dcclip_cli.eval.evaluate import open_datasets

    root = Path(options.data_root) if options.data_root else None
    return open_datasets(options.datasets, options.languages, root, options.templates, options.task)


def measure(
    models: Sequence[ModelReference],
    datasets: Sequence[DataSet],
    options: EvalOptions,
    device: flags.Device,
    progress: Progress,
    cache: Path | None = None,
    no_cache: bool = False,
) -> list[EvalResult]:
    """The results of each model on the data sets, model by model."""
    from dcclip_cli.eval.evaluate import evaluate
    from dcclip_cli.eval.feature_cache import FeatureCache
    from dcclip_cli.files import cache_folder

    return evaluate(
        models=models,
        datasets=datasets,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        task=options.task,
        shots=options.shots,
        device=device,
        precision=options.precision,
        processes=options.processes,
        cache=FeatureCache(None if no_cache else cache or cache_folder()),
        progress=progress,
    )


def keep(results: Sequence[EvalResult], datasets: Sequence[DataSet], folder: Path) -> None:
    """Write the results as JSON, as tables in Markdown and LaTeX, and as report.html."""
    from dcclip_cli.eval.report.html import write_report
    from dcclip_cli.eval.result import save_results
    from dcclip_cli.eval.tables import latex, markdown

    save_results(results, folder)
    (folder / "table.md").write_text(markdown(results), "utf-8")
    (folder / "table.tex").write_text(latex(results), "utf-8")
    write_report(folder / "report.html", results, datasets)


def show(results: Sequence[EvalResult]) -> None:
    """Print the figures of one model in full, or each data set's own of several side by side."""
    from dcclip_cli.eval.tables import MEAN, METRIC_NAMES, table

    models = list(dict.fromkeys(result.model for result in results))
    found = table(results)
    if len(models) > 1:
        gaps = [column.is_gap for column in found.columns]
        titles = [f"{column.model} {column.language or 'zh - en'}" for column in found.columns]
        rows = [(_with_remark(row.name, row.remark), row.metric, *map(_share, row.values, gaps)) for row in found.rows]
        return console.show_table("", ("data set", "metric", *titles), rows)
    shown = [name for name in _SHOWN if any(name in result.metrics for result in results)]
    lines = [
        (
            _with_remark(f"{one.dataset} {one.language}", "" if "zero-shot" in one.task else one.task),
            METRIC_NAMES.get(one.metric, one.metric),
            *(percent(one.metrics[name]) if name in one.metrics else "" for name in shown),
            f"{one.n:,}" + (f" (-{len(one.corrupt)})" if one.corrupt else "") + (" of a sample" if one.limit else ""),
            f"{one.classes:,}" if one.classes else "",
        )
        for one in results
    ]
    for row in found.rows:
        if row.name == MEAN:
            means = [
                percent(value) for value, column in zip(row.values, found.columns, strict=True) if value is not None
            ]
            lines.append((row.name, ", ".join(means), *[""] * len(shown), "", ""))
    columns = ("data set", "metric", *(_SHOWN[name] for name in shown), "images", "classes")
    console.show_table(models[0], columns, lines)


def percent(share: float) -> str:
    """A share in 0..1 as people read it."""
    return f"{share:.1%}"


def _share(value: float | None, is_gap: bool) -> str:
    return "" if value is None else f"{value:+.1%}" if is_gap else f"{value:.1%}"


def _with_remark(name: str, remark: str) -> str:
    return f"{name} ({remark})" if remark else name


def _compare(sides: tuple[str, str], force: bool, as_json: bool, talk: Progress) -> None:
    from dcclip_cli.eval.compare import compare, read_side
    from dcclip_cli.eval.tables import METRIC_NAMES

    first, second = (read_side(side) for side in sides)
    found = compare(first, second, force, progress=talk)
    if as_json:
        return console.show_json([asdict(one) | {"difference": one.value} for one in found])
    for one in found:
        if one.unlike:
            talk.say(f"{one.dataset} {one.language}: the {' and '.join(one.unlike)} differ")
        if not one.paired:
            talk.say(f"{one.dataset} {one.language}: not the same images in the same order, so the interval is wider")
    rows = [
        (
            f"{one.dataset} {one.language}",
            METRIC_NAMES.get(one.metric, one.metric),
            percent(one.first),
            percent(one.second),
            f"{one.value:+.1%}",
            f"{one.low:+.1%} to {one.high:+.1%}",
            ("better" if one.value > 0 else "worse") if one.is_clear else "not clear",
        )
        for one in found
    ]
    columns = ("data set", "metric", first[0].model, second[0].model, "difference", "95 % interval", "")
    console.show_table(f"{second[0].model} against {first[0].model}", columns, rows)


def _named_by_path(results: Sequence[EvalResult], references: Sequence[ModelReference]) -> list[EvalResult]:
    from dataclasses import replace

    each = len(results) // len(references)
    return [replace(result, model=references[number // each].target) for number, result in enumerate(results)]


def _options(recipe: EvalOptions | None, given: Mapping[str, object]) -> EvalOptions:
    """The recipe's choices with those of the command line over them. Raises DcclipError if no data set is named."""
    from dcclip_cli.eval.evaluate import EvalOptions

    merged = {**(recipe.model_dump() if recipe else {}), **{key: value for key, value in given.items() if value}}
    if not merged.get("datasets"):
        raise DcclipError("no data set is named", "name one with --dataset NAME or PATH (see: dcclip datasets)")
    return EvalOptions.model_validate(merged)


def _languages(text: str) -> list[Language] | None:
    given = flags.split(text)
    if wrong := [language for language in given if language not in ("en", "zh")]:
        raise BadParameter(f"--languages: {wrong[0]} is neither en nor zh")
    return cast("list[Language]", given) or None


def _shots(text: str) -> list[int]:
    given = flags.split(text)
    if wrong := [one for one in given if one != "all" and not (one.isdecimal() and int(one))]:
        raise BadParameter(f"--shots: {wrong[0]} is neither a number nor all")
    return [0 if one == "all" else int(one) for one in given]
