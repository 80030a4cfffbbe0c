"""`dcclip eval`, `compare` and `datasets`: metrics of models on test sets, in Chinese and in
English.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.core.errors import Message, all_of, joined
from dcclip_cli.core.text import split

if TYPE_CHECKING:
    from dcclip_cli.core.progress import Progress
    from dcclip_cli.eval.compare import Comparison
    from dcclip_cli.eval.result import EvalResult, Table
    from dcclip_cli.recipe.load import LoadedRecipe

_SET = Message("data set")
_METRIC = Message("metric")
_IMAGES = Message("images")
_CLASSES = Message("classes")
_TWINS = 10  # queries that are shown on the terminal; the results have all
_RESULTS = (
    "A results file or folder that eval --out wrote, or a run; FILE@MODEL chooses one of "
    "several models."
)
_DATASET_HELP = (
    "Name or group (see: dcclip datasets), Parquet or tar file of pairs with class names "
    "as captions, or folder of "
    "class folders. Repeatable."
)
_MODELS = Option("--model", metavar="MODEL", help=f"{flags.MODEL_HELP} Repeatable.")
_DATASETS = Option("--dataset", metavar="NAME|PATH", help=_DATASET_HELP)
_LANGUAGES = Option(
    "--languages",
    metavar="en,zh",
    help="Languages for your own data sets. Default: all that they contain.",
)
_DATA_ROOT = Option(
    "--data-root",
    metavar="DIR",
    help="Folder with the named data sets, each in DIR/NAME/. Default: load them from the hub.",
)
_LIMIT = Option(
    "--limit", min=1, help="Maximum number of images per data set: a fixed random sample."
)
_PARTIAL = Option(
    "--partial",
    help="Accept unreadable images and incomplete data sets. all: use all classes; "
    "present: only those with images.",
)
_TEMPLATES = Option(
    "--templates",
    help="Prompts: the data set's own (default), a few generic ones, or only the class name.",
)
_TASK = Option(
    "--task",
    help="retrieval: retrieve captions of your own pairs; probe: a linear classifier on "
    "embeddings; twins: whether a "
    "query in Chinese and in English returns the same images.",
)
_QUERIES = Option(
    "--queries",
    metavar="NAME|FILE",
    help="Queries of --task twins: class names of a data set, or a file with lines "
    "English<TAB>Chinese. Default: the "
    "class names or captions of --dataset.",
)
_SHOTS = Option(
    "--shots",
    metavar="5,20,50,all",
    help="Images per class for --task probe. Default: 5,20,50,all.",
)
_PRECISION = Option("--precision", help="Precision of torch models. Default: fp32.")
_WORKERS = Option(
    "--workers", min=1, callback=flags.at_a_time, help="Threads that read images. Default: 2."
)
_NO_CACHE = Option("--no-cache", help="Do not use the embedding cache.")
_JSON = Option("--json", help="Print the full results as JSON instead of a table.")
_OUT = Option("--out", metavar="DIR", help="Folder for results (JSON), tables and report.html.")
_RESULT_FILES = Option(
    "--results",
    metavar="PATH",
    help="Merge existing results into one report, without evaluating. Repeatable.",
)


def eval(
    recipe: flags.OptionalRecipe = None,
    model: Annotated[list[str] | None, _MODELS] = None,
    dataset: Annotated[list[str] | None, _DATASETS] = None,
    languages: Annotated[str, _LANGUAGES] = "",
    data_root: Annotated[Path | None, _DATA_ROOT] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    partial: Annotated[Literal["all", "present"] | None, _PARTIAL] = None,
    templates: Annotated[Literal["own", "compact", "name"] | None, _TEMPLATES] = None,
    task: Annotated[Literal["zero-shot", "retrieval", "probe", "twins"] | None, _TASK] = None,
    queries: Annotated[str | None, _QUERIES] = None,
    shots: Annotated[str, _SHOTS] = "",
    precision: Annotated[Literal["fp32", "bf16"] | None, _PRECISION] = None,
    dims: flags.Dims = None,
    workers: Annotated[int | None, _WORKERS] = None,
    no_cache: Annotated[bool, _NO_CACHE] = False,
    trust_remote_code: flags.TrustRemoteCode = False,
    as_json: Annotated[bool, _JSON] = False,
    sets: flags.Sets = None,
    out: Annotated[Path | None, _OUT] = None,
    results: Annotated[list[Path] | None, _RESULT_FILES] = None,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Evaluate models on test sets and compare them side by side.

    With a recipe, evaluates its model on its data sets and saves the results in runs/NAME/eval.
    """
    flags.out(out)
    options: dict[str, Any] = {key: value for key, value in {
        "datasets": dataset, "languages": split(languages), "data_root": data_root, "limit": limit,
        "partial": partial, "templates": templates, "task": task, "shots": _shot_counts(shots), "precision": precision,
        "dims": dims, "workers": workers, "queries": queries,
    }.items() if value}  # fmt: skip
    is_merging = out and not (recipe or model or sets or options)
    flags.refuse({
        Message("--set and --check need a recipe"): recipe is None and (sets or check),
        Message("--results needs --out DIR, and no other options"): results and not is_merging,
    })  # fmt: skip
    talk = console.talk(quiet, verbose)
    loaded = flags.open_recipe(recipe, sets, None if dataset else "eval") if recipe else None
    if loaded and check:
        return flags.show_checked(
            _check_options(loaded, options, model or ()), ["eval"], device, fresh=True
        )
    from dcclip_cli import api
    from dcclip_cli.eval.evaluate import IncompleteError

    if results and out:
        return show(api.merge_results(results, out, progress=talk), as_json)
    options |= {"out": out, "device": device, "cache": not no_cache, "progress": talk}
    options["trust_remote_code"] = trust_remote_code
    try:
        show(api.evaluate(loaded, model=model, **options), as_json)
    except IncompleteError as error:
        show(error.results, as_json)
        raise


def _shot_counts(shots: str) -> list[int | str]:
    """The numbers of --shots, 0 for `all`; what is no number stays a text, which is then refused."""
    counts: list[int | str] = []
    for shot in split(shots):
        if shot == "all":
            counts.append(0)
        else:
            counts.append(int(shot) if shot.isdecimal() else shot)
    return counts


def _check_options(
    loaded: LoadedRecipe, options: dict[str, Any], models: Sequence[str]
) -> LoadedRecipe:
    """The recipe with these options. Raises DcclipError for a model that is missing."""
    from dcclip_cli import api
    from dcclip_cli.model.reference import resolve

    checked = api.open_recipe(loaded, "eval", options)
    if not models:
        api.open_run(checked, None).trained_model()
    for name in models:
        resolve(name)
    return checked


def show(results: Sequence[EvalResult], as_json: bool = False) -> None:
    """Print all metrics of one model, or a table of several models for each data set; or
    everything `as_json`.
    """
    from dcclip_cli.eval.result import METRIC_NAMES, table

    if as_json:
        return console.show_json([asdict(result) for result in results])
    summary = table(results)
    lacking = len({(result.dataset, key) for result in results for key in result.corrupt})
    without = Message("excluding {:,} unreadable images", lacking) if lacking else ""
    for result in results:
        _show_twins(result)
    if len({result.label for result in results}) > 1:
        return _show_several(results, summary, without)
    shown = [name for name in METRIC_NAMES if any(name in result.metrics for result in results)]
    lines = []
    for result in results:
        images = f"{result.n:,}{f' (-{len(result.corrupt)})' if result.corrupt else ''}"
        images = Message("{} (sample)", images) if result.limit else images
        images = Message("{} (incomplete)", images) if result.partial else images
        name = _noted(
            f"{result.dataset} {result.language}", "" if "zero-shot" in result.task else result.task
        )
        metrics = [percent(result.metrics.get(metric)) for metric in shown]
        classes = f"{result.classes:,}" if result.classes else ""
        lines.append((name, METRIC_NAMES[result.metric], *metrics, images, classes))
    if summary.mean:
        means = [percent(value) for value in summary.mean.values if value is not None]
        lines.append((summary.mean.name, ", ".join(means), *[""] * len(shown), "", ""))
    columns = [_SET, _METRIC, *(METRIC_NAMES[name] for name in shown), _IMAGES]
    columns.append(Message("queries") if all(result.twins for result in results) else _CLASSES)
    used = [
        number for number in range(len(columns)) if any(line[number] for line in lines)
    ]  # retrieval has no classes
    cells = ([line[number] for number in used] for line in lines)
    console.show_table(
        _noted(results[0].label, without), [columns[number] for number in used], cells
    )


def _show_twins(result: EvalResult) -> None:
    """Print the queries whose images differ most between the languages; nothing for results of
    other tasks.
    """
    from dcclip_cli.eval.result import METRIC_NAMES

    names = (
        METRIC_NAMES["overlap@10"],
        METRIC_NAMES["rank_correlation"],
        Message("margin"),
        Message("nearest"),
    )
    lines = [
        (
            twin["en"], twin["zh"], percent(twin["overlap@10"]), percent(twin["rank_correlation"]),
            f"{twin['margin']:+.2f}", twin["nearest"],
        )
        for twin in result.twins[:_TWINS]
    ]  # fmt: skip
    if lines:
        title = Message("{}, {}: queries whose images differ most", result.dataset, result.label)
        console.show_table(title, ("en", "zh", *names), lines)


def _show_several(results: Sequence[EvalResult], summary: Table, without: str) -> None:
    """Print a table for each data set, with models as rows; next to top-1 of more than two classes
    their mean.
    """
    from dcclip_cli.eval.result import METRIC_NAMES, Column, table

    for_classes = table(
        [
            replace(result, metric="mean_per_class", value=result.metrics["mean_per_class"])
            for result in results
            if result.metric == "top1" and result.classes > 2
        ]
    )
    means = {
        row.name: dict(zip(for_classes.columns, row.values, strict=True))
        for row in for_classes.rows
    }
    for row in summary.rows:
        values = dict(zip(summary.columns, row.values, strict=True))
        mean = means.get(row.name, {})
        lines = [
            (
                model,
                *(
                    percent(values.get(Column(model, language)), language is None)
                    for language in ("en", "zh", None)
                ),
                *(percent(mean.get(Column(model, language))) for language in ("en", "zh")),
            )
            for model in dict.fromkeys(column.model for column in summary.columns)
        ]
        mean_columns = [
            joined(" ", (METRIC_NAMES["mean_per_class"], language)) for language in ("en", "zh")
        ]
        heads = [Message("model"), "en", "zh", "zh - en", *mean_columns]
        used = [number for number in range(len(heads)) if any(line[number] for line in lines)]
        title = _noted(joined(", ", (row.name, row.metric)), row.remark)
        console.show_table(
            title, [heads[at] for at in used], [[line[at] for at in used] for line in lines]
        )
    if without:
        console.show(without)


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction in 0..1 as a percentage; empty for None."""
    return "" if value is None else f"{value:{'+' if signed else ''}z.1%}"  # z: no -0.0


def _noted(name: str, remark: str) -> str:
    return Message("{} ({})", name, remark) if remark else name


def compare(
    a: Annotated[str, Argument(metavar="A", help=_RESULTS)],
    b: Annotated[str | None, Argument(metavar="B", help="Results of the second model.")] = None,
    force: Annotated[
        bool, Option("--force", help="Compare results even if class names or prompts differ.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="Print the differences as JSON instead of a table.")
    ] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Compare two models' results: B minus A. With the folder of a sweep alone: all pairs of its
    variants.

    The 95 % interval is from 1,000 bootstrap samples of the images, paired if both models saw the
    same images.
    """
    from dcclip_cli import api

    talk = console.talk(quiet, verbose)
    if b is None:
        comparisons = api.compare_variants(a, progress=talk)
    else:
        comparisons = [api.compare(a, b, force=force, progress=talk)]
    if not as_json:
        for comparison in comparisons:
            _show_comparison(comparison, talk)
        return

    records = []
    for comparison in comparisons:
        names = {} if b else {"a": comparison.first, "b": comparison.second}
        records += [
            names | asdict(row) | {"difference": row.value} for row in comparison.differences
        ]
    console.show_json(records)


def _show_comparison(comparison: Comparison, talk: Progress) -> None:
    from dcclip_cli.eval.result import METRIC_NAMES

    rows = []
    for row in comparison.differences:
        name = f"{row.dataset} {row.language}"
        if row.unlike:
            talk.say(Message("{}: the {} differ", name, all_of(row.unlike)))
        if not row.paired:
            talk.say(
                Message("{}: the images or their order differ, so the interval is wider", name)
            )
        low = percent(row.low, signed=True)
        high = percent(row.high, signed=True)
        verdict = (
            (Message("better") if row.value > 0 else Message("worse"))
            if row.is_clear
            else Message("unclear")
        )
        values = percent(row.first), percent(row.second), percent(row.value, signed=True)
        rows.append(
            (name, METRIC_NAMES[row.metric], *values, Message("{} to {}", low, high), verdict)
        )
    columns = (
        _SET,
        _METRIC,
        comparison.first,
        comparison.second,
        Message("difference"),
        Message("95 % interval"),
        "",
    )
    title = Message("{} against {}", comparison.second, comparison.first)
    console.show_table(title, columns, rows)
    signs = [(row.value > 0, row.is_clear) for row in comparison.differences]
    better = sum(is_better for is_better, _ in signs)
    counts = (
        comparison.second,
        better,
        len(rows),
        signs.count((True, True)),
        signs.count((False, True)),
    )
    console.show(
        Message("{} is better on {} of {} test sets: clearly on {}, clearly worse on {}", *counts)
    )


_NAME = Argument(metavar="NAME", help="Show this data set only.")
_LOOK_IN = Option("--data-root", metavar="DIR", help="Show which data sets are in DIR.")
_CLASSES_YAML = Option(
    "--classes-yaml", help="Print the classes of NAME in the format of classes.yaml."
)


def datasets(
    name: Annotated[str | None, _NAME] = None,
    data_root: Annotated[Path | None, _LOOK_IN] = None,
    classes_yaml: Annotated[bool, _CLASSES_YAML] = False,
) -> None:
    """List the data sets that eval knows by name, or one of them, or print its class names."""
    if classes_yaml:
        if name is None:
            raise BadParameter(Message("--classes-yaml needs NAME"))

        from dcclip_cli.eval.datasets import classes_yaml as as_yaml

        return console.show(as_yaml(name).rstrip("\n"))

    from dcclip_cli.eval import registry
    from dcclip_cli.eval.datasets import layout_of
    from dcclip_cli.eval.result import METRIC_NAMES

    sets = list(registry.SETS.values())
    if name:
        named = registry.find(name)
        if named is None:
            raise registry.unknown(name)
        sets = [named[0]]
    rows = []
    for dataset in sets:
        names = ", ".join(
            registry.name_in(dataset, language) for language in registry.languages_of(dataset)
        )
        where = (
            (layout_of(dataset, data_root) or "-")
            if data_root
            else f"wds_{dataset.hub}"
            if dataset.hub
            else ""
        )
        size, classes = (
            f"{number:,}" if number else "" for number in (dataset.size, dataset.classes)
        )
        rows.append(
            (
                names,
                METRIC_NAMES[dataset.metric],
                dataset.split,
                size,
                classes,
                where,
                dataset.remark,
            )
        )
    place = Message("in DIR") if data_root else Message("on the hub")
    columns = (Message("name"), _METRIC, Message("split"), _IMAGES, _CLASSES, place, "")
    console.show_table(
        Message("dcclip eval --dataset NAME --data-root DIR, with DIR/NAME/"), columns, rows
    )
    console.show(Message("groups: {}", ", ".join(registry.group_names())))
