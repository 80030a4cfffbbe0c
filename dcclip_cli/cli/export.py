"""`dcclip export [RECIPE]`: a trained model as a bundle that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags, stages
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.data.batches import DataOptions
    from dcclip_cli.export.export import ExportOptions
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.progress import Progress


def export(
    recipe: flags.OptionalRecipe = None,
    model: Annotated[
        str | None,
        Option(
            "--model", metavar="DIR", help="A model directory or run. Default: the recipe's run.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"] | None,
        Option("--precision", help="Of the weights; int8 needs a recipe with data. Default: the recipe's, else fp32."),
    ] = None,
    sets: flags.Sets = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="The bundle's folder. Default: runs/NAME/export.", show_default=False),
    ] = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Turn a trained model into a bundle that needs no torch.

    The bundle is compared with the model that it came from; where the two differ too much it fails and leaves nothing.
    Prints the bundle's folder.
    """
    if recipe is None and (sets or check or out is None):
        raise BadParameter("without a recipe, --out is needed, and --set and --check have no meaning")
    loaded = stages.open_recipe(recipe, sets) if recipe else None
    if loaded and check:
        return stages.check(loaded)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.export.export import ExportOptions
    from dcclip_cli.model.reference import resolve

    options, data = ExportOptions(), None
    reference = resolve(model) if model or not loaded else None
    if loaded:
        work = stages.Work(loaded, stages.open_run(loaded, None), "cpu", fresh, talk)
        options, data = loaded.recipe.export or options, work.data()
        reference = reference or work.trained_model()
        out = out or work.run.stage("export")
    assert reference is not None and out is not None
    if precision:
        options = options.model_copy(update={"precision": precision})
    talk.say(reference.said)
    run(options, reference, out, data, fresh, talk)
    console.show(str(out))


def run(
    options: ExportOptions, model: ModelReference, out: Path, data: DataOptions | None, fresh: bool, talk: Progress
) -> bool:
    """Make the bundle and say how close it is; whether there was anything to do."""
    from dcclip_cli.export.export import export

    if _holds_bundle_of(out, model, options) and not fresh:
        talk.say(f"export: finished before, in {out} (--fresh does it again)")
        return False
    result = export(options=options, model=model, out=out, data=data, progress=talk)
    parity = result.parity
    talk.say(
        f"export: done in {result.seconds:.0f} s, {result.size_bytes / 1e6:.1f} MB; on {parity.images} images and "
        f"{parity.texts} texts ({parity.source}) the largest differences are {parity.image_max_difference:.1g} and "
        f"{parity.text_max_difference:.1g}, and {parity.agreement:.1%} of the best matches agree"
    )
    return True


def _holds_bundle_of(out: Path, model: ModelReference, options: ExportOptions) -> bool:
    """Whether `out` holds this model's bundle. Raises DcclipError if it holds something that is no bundle at all."""
    from dcclip_cli.model.folder import folder_fingerprint
    from dcclip_cli.predict.bundle import read_description

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "image.onnx").is_file():
        raise DcclipError(f"{out} is not empty, and no bundle", "name a new folder with --out")
    return bool(read_description(out)["fingerprint"] == f"{folder_fingerprint(model.path)}-{options.precision}")
