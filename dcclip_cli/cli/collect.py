"""`dcclip collect RECIPE`: filtered shards of image-caption pairs from raw sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option, launch

from dcclip_cli.cli import console, flags, stages

if TYPE_CHECKING:
    from dcclip_cli.curation.manifest import CollectResult
    from dcclip_cli.recipe.load import LoadedRecipe

_ENGINE = Option("--engine", help="What runs the tasks; ray and slurm as collect.cluster in the recipe says.")
_WORKERS = Option("--workers", min=1, help="Tasks at a time. Default: one for each core.", show_default=False)
_LIMIT = Option("--limit", min=1, metavar="N", help="Try the recipe on about N pairs, in a folder of their own.")


def collect(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    engine: Annotated[Literal["local", "ray", "slurm"], _ENGINE] = "local",
    workers: Annotated[int | None, _WORKERS] = None,
    limit: Annotated[int | None, _LIMIT] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Gather image-caption pairs, filter them, and write them as shards.

    Leaves shards, report.html, and the list of what was dropped and why in runs/NAME/collect; with --limit in
    runs/NAME/collect-limit, whose report is opened where there is a browser. Prints the counts. --check also tells
    what there is to read.
    """
    loaded = stages.open_recipe(recipe, sets, "collect")
    if check:
        stages.check(loaded)
        return _show_plan(loaded)
    work = stages.Work(loaded, stages.open_run(loaded, out), "cpu", fresh, console.talk(quiet, verbose))
    if limit is None:
        work.begin("collect")
    result = work.collect(engine, workers, limit)
    show(result)
    if limit is not None and console.has_screen():
        launch(str(_report(result)))


def _show_plan(loaded: LoadedRecipe) -> None:
    """Print what would be read, behind the resolved recipe, as comments: stdout stays YAML."""
    from dcclip_cli.curation.plan import plan

    assert loaded.recipe.collect is not None
    found = plan(loaded.recipe.collect)
    for reading in found.readings:
        console.show(f"# {reading.label} ({reading.kind}): {_pairs(reading.about)}, {reading.slices:,} slices")
    console.show(f"# collect would read {_pairs(found.about)} in {len(found.assignments):,} slices")


def _pairs(about: int) -> str:
    return f"about {about:,} pairs"


def show(result: CollectResult) -> None:
    """Print what was kept and what was dropped for which reason."""
    counts = {"pairs": result.pairs, **{f"{language} captions": count for language, count in result.captions.items()}}
    reasons = sorted({reason for count in counts.values() for reason in count.dropped})
    rows = [
        ("read", *(f"{count.read:,}" for count in counts.values())),
        *((reason, *(f"{count.dropped.get(reason, 0):,}" for count in counts.values())) for reason in reasons),
        ("kept", *(f"{count.kept:,}" for count in counts.values())),
    ]
    console.show_table(f"{result.folder}, shards: {result.shards}", ("", *counts), rows)
    console.show(f"{_report(result)}")


def _report(result: CollectResult) -> Path:
    return result.folder / "report.html"
