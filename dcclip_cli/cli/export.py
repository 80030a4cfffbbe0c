"""`dcclip export [RECIPE]`: a model in a form that runs without torch, proven to say the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags, stages
from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters import FormatName, Precision

if TYPE_CHECKING:
    from dcclip_cli.data.options import DataOptions
    from dcclip_cli.eval.evaluate import EvalOptions
    from dcclip_cli.exporters.export import ExportOptions
    from dcclip_cli.exporters.parity import Parity
    from dcclip_cli.model.reference import ModelReference
    from dcclip_cli.progress import Progress


def export(
    recipe: flags.OptionalRecipe = None,
    model: Annotated[
        str | None, Option("--model", metavar="MODEL", help=flags.EXPORTED_HELP, show_default=False)
    ] = None,
    format: Annotated[
        FormatName | None, Option("--format", help="What will run it. Default: the recipe's, else onnx.")
    ] = None,
    precision: Annotated[
        Precision | None,
        Option("--precision", help="Of the weights; int8 needs pictures. Default: the recipe's, else fp32."),
    ] = None,
    calibration: Annotated[
        Path | None,
        Option("--calibration", metavar="DIR", help="Pictures for int8, instead of the recipe's.", show_default=False),
    ] = None,
    benchmark: Annotated[
        bool, Option("--benchmark", help="Then print size, load time, latency and memory beside the model's.")
    ] = False,
    sets: flags.Sets = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="The export's folder. Default: runs/NAME/export.", show_default=False),
    ] = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Turn a model into something that runs without torch, on a server, a phone or in a browser.

    The export is compared with the model that it came from; where the two differ too much it fails and leaves nothing.
    Prints the export's folder.
    """
    if recipe is None and (sets or check or out is None):
        raise BadParameter("without a recipe, --out is needed, and --set and --check have no meaning")
    loaded = stages.open_recipe(recipe, sets) if recipe else None
    if loaded and check:
        return stages.check(loaded)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.exporters.export import ExportOptions
    from dcclip_cli.model.reference import resolve

    options, data, evaluation = ExportOptions(), None, None
    reference = resolve(model) if model or not loaded else None
    if loaded:
        work = stages.Work(loaded, stages.open_run(loaded, None), "cpu", fresh, talk)
        options, data, evaluation = loaded.recipe.export or options, work.data(), loaded.recipe.eval
        reference = reference or work.trained_model()
        out = out or work.run.stage("export")
    assert reference is not None and out is not None
    given = {"format": format, "precision": precision, "calibration": str(calibration) if calibration else None}
    options = options.model_copy(update={key: value for key, value in given.items() if value})
    talk.say(reference.description)
    run(options, reference, out, data, evaluation, fresh, talk)
    console.show(str(out))
    if benchmark:
        _benchmark(reference, options, out)


def run(
    options: ExportOptions,
    model: ModelReference,
    out: Path,
    data: DataOptions | None,
    evaluation: EvalOptions | None,
    fresh: bool,
    talk: Progress,
) -> bool:
    """Make the export and say how close it is; whether there was anything to do."""
    from dcclip_cli.exporters.export import export

    if _holds_export_of(out, model, options) and not fresh:
        talk.say(f"export: finished before, in {out} (--fresh does it again)")
        return False
    result = export(options=options, model=model, out=out, data=data, evaluation=evaluation, progress=talk)
    talk.say(f"export: done in {result.seconds:.0f} s, {result.size_bytes / 1e6:.1f} MB; {_said(result.parity)}")
    return True


def _said(parity: Parity | None) -> str:
    if parity is None:
        return "not compared with the model: its runtime is not to be had on this system"
    tests = "".join(
        f"; top-1 in {language} on {one.images} test images {one.before:.1%} -> {one.after:.1%}, "
        f"{one.agreement:.1%} the same"
        for language, one in parity.by_language().items()
    )
    return (
        f"on {parity.images} images and {parity.texts} texts ({parity.source}) the largest differences are "
        f"{parity.image_max_difference:.1g} and {parity.text_max_difference:.1g}, and {parity.agreement:.1%} of the "
        f"best matches agree{tests}"
    )


def _holds_export_of(out: Path, model: ModelReference, options: ExportOptions) -> bool:
    """Whether `out` holds this export of this model. Raises DcclipError if it holds something that is no export."""
    from dcclip_cli.exporters.export import made_from
    from dcclip_cli.files import read_json
    from dcclip_cli.predict.onnx_encoder import DESCRIPTION

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / DESCRIPTION).is_file():
        raise DcclipError(f"{out} is not empty, and no export", "name a new folder with --out")
    about = read_json(out / DESCRIPTION, "name a new folder with --out")
    if "made_from" not in about and about.get("kind") != "bundle":
        raise DcclipError(f"{out} holds a model, and no export", "name a new folder with --out")
    return bool(about.get("made_from") == made_from(model, options))


def _benchmark(model: ModelReference, options: ExportOptions, out: Path) -> None:
    from dcclip_cli.exporters.benchmark import benchmark

    rows = benchmark(model, options.format, out)
    columns = ("", *(row.name for row in rows))
    lines = [(what, *(say(row) for row in rows)) for what, say in rows[0].lines().items()]
    console.show_table("measured here, each in a process of its own", columns, lines)
