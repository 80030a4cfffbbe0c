"""`dcclip eval [RECIPE]`: how often a model's first guess is right, in Chinese and in English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags, stages
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language
    from dcclip_cli.eval.evaluate import EvalOptions
    from dcclip_cli.eval.result import EvalResult
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.progress import Progress

_METRICS = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


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
            help="A name (see: dcclip datasets), a Parquet or tar file of pairs whose captions are the classes, "
            "or a folder of class folders. Repeatable.",
            show_default=False,
        ),
    ] = None,
    languages: Annotated[
        str, Option("--languages", metavar="en,zh", help="Which languages' class names. Default: all there are.")
    ] = "",
    data_root: Annotated[
        Path | None, Option("--data-root", metavar="DIR", help="Has the named data sets as DIR/NAME/.")
    ] = None,
    limit: Annotated[int | None, Option("--limit", min=1, help="At most so many images of a data set.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print the full results as JSON instead of a table.")] = False,
    sets: flags.Sets = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="Where the results are written as JSON.", show_default=False),
    ] = None,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure models on zero-shot data sets, side by side.

    With a recipe: its data sets and its run's model, and the results are kept in runs/NAME/eval.
    """
    if recipe is None and (sets or check):
        raise BadParameter("--set and --check need a recipe")
    given = {
        "datasets": dataset,
        "languages": _languages(languages),
        "data_root": str(data_root) if data_root else None,
        "limit": limit,
    }
    loaded = stages.open_recipe(recipe, sets, None if dataset else "eval") if recipe else None
    if loaded and check:
        return stages.check(loaded, device)
    options = _options(loaded.recipe.eval if loaded else None, given)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.eval.result import save_results
    from dcclip_cli.model.reference import resolve

    work = stages.Work(loaded, stages.open_run(loaded, None), device, False, talk) if loaded else None
    if work and not model:
        references = [work.trained_model()]
        out = out or work.run.stage("eval")
    else:
        references = [resolve(name) for name in model] if model else [resolve()]
    for reference in references:
        talk.say(reference.said)
    results = measure(references, options, device, talk)
    if out:
        save_results(results, out)
        talk.say(f"results: {out}")
    if as_json:
        console.show_json([asdict(result) for result in results])
    else:
        names = list(dict.fromkeys(result.model for result in results))
        show(results, names if len(names) == len(references) else [reference.target for reference in references])


def measure(
    models: Sequence[ModelReference], options: EvalOptions, device: flags.Device, progress: Progress
) -> list[EvalResult]:
    """The results of each model on the data sets chosen, model by model."""
    from dcclip_cli.eval.evaluate import evaluate

    return evaluate(
        models=models,
        datasets=options.datasets,
        languages=options.languages,
        data_root=Path(options.data_root) if options.data_root else None,
        limit=options.limit,
        batch_size=options.batch_size,
        device=device,
        progress=progress,
    )


def show(results: Sequence[EvalResult], models: Sequence[str]) -> None:
    """Print the figures of one model in full, or the top-1 of several side by side; results come model by model."""
    each = len(results) // len(models)
    columns = [results[start : start + each] for start in range(0, len(results), each)]
    if len(models) == 1:
        rows = [
            (
                f"{one.dataset} {one.language}",
                *(percent(one.metrics[name]) for name in _METRICS),
                f"{one.n:,}",
                f"{one.classes:,}",
            )
            for one in results
        ]
        return console.show_table(models[0], ("data set", *_METRICS.values(), "images", "classes"), rows)
    rows = [
        (f"{row[0].dataset} {row[0].language}", *(percent(one.value) for one in row))
        for row in zip(*columns, strict=True)
    ]
    console.show_table("top-1", ("data set", *models), rows)


def percent(share: float) -> str:
    """A share in 0..1 as people read it."""
    return f"{share:.1%}"


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
