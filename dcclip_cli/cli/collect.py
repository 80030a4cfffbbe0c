"""`dcclip collect RECIPE`: filtered shards of image-caption pairs from raw sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcclip_cli.cli import console, flags, stages

if TYPE_CHECKING:
    from dcclip_cli.data.collect import CollectResult


def collect(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Gather image-caption pairs, filter them, and write them as shards.

    Leaves shards, counts of what was dropped and why, and the list of what was dropped in runs/NAME/collect.
    Prints the counts.
    """
    loaded = stages.open_recipe(recipe, sets, "collect")
    if check:
        return stages.check(loaded)
    work = stages.Work(loaded, stages.open_run(loaded, out), "cpu", fresh, console.talk(quiet, verbose))
    work.begin("collect")
    show(work.collect())


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
