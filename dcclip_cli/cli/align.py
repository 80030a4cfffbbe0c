"""`dcclip align RECIPE`: stage 2, image and caption meet in one space."""

from __future__ import annotations

from dcclip_cli.cli import console, flags, stages


def align(
    recipe: flags.RecipeFile,
    sets: flags.Sets = None,
    out: flags.Out = None,
    fresh: flags.FreshOrResume = None,
    check: flags.Check = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Train the student by contrast of images and captions (stage 2).

    Leaves a model directory in runs/NAME/align/model and prints its path.
    """
    loaded = stages.open_recipe(recipe, sets, "align")
    if check:
        return stages.check(loaded, device)
    work = stages.Work(loaded, stages.open_run(loaded, out), device, bool(fresh), console.talk(quiet, verbose))
    if fresh is False:
        work.expect_state("align")
    work.begin("align")
    work.train("align")
    console.show_path(work.run.model("align"))
