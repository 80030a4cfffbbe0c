"""`dcclip distill RECIPE`: stage 1, the student learns the teacher's features."""

from __future__ import annotations

from dcclip_cli.cli import console, flags, stages


def distill(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.FreshOrResume = None,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Train the student on the teacher's features (stage 1).

    Leaves a model directory in runs/NAME/distill/model and prints its path.
    """
    loaded = stages.open_recipe(recipe, sets, "distill")
    if check:
        return stages.check(loaded, device)
    work = stages.Work(loaded, stages.open_run(loaded, out), device, bool(fresh), console.talk(quiet, verbose))
    if fresh is False:
        work.expect_state("distill")
    work.begin("distill")
    work.train("distill")
    console.show_path(work.run.model("distill"))
