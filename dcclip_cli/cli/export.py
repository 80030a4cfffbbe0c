"""`dcclip export [RECIPE]`: a model in a format that runs without torch, compared with the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.exporters import FormatName, Precision

_Model = Annotated[str | None, Option("--model", metavar="MODEL", help=flags.EXPORTED_HELP, show_default=False)]
_Format = Annotated[
    FormatName | None, Option("--format", help="Format of the export. Default: the recipe's, else onnx.")
]
_Precision = Annotated[
    Precision | None,
    Option("--precision", help="Precision of the weights; int8 needs images. Default: the recipe's, else fp32."),
]
_Calibration = Annotated[
    Path | None,
    Option(
        "--calibration", metavar="DIR", help="Images to calibrate int8 on. Default: the recipe's.", show_default=False
    ),
]
_Benchmark = Annotated[
    bool, Option("--benchmark", help="Also print size, load time, latency and memory of the export and the model.")
]
_Out = Annotated[
    Path | None,
    Option("--out", metavar="DIR", help="Folder of the export. Default: runs/NAME/export.", show_default=False),
]


def export(
    recipe: flags.OptionalRecipe = None,
    model: _Model = None,
    format: _Format = None,
    precision: _Precision = None,
    calibration: _Calibration = None,
    benchmark: _Benchmark = False,
    sets: flags.Sets = None,
    out: _Out = None,
    fresh: flags.Fresh = False,
    check: flags.Check = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Export a model to run without torch: on a server, a phone or in a browser.

    The export is compared with the original model; if they differ too much, the command fails and writes nothing.
    Prints the folder of the export.
    """
    if recipe is None and (sets or check or out is None):
        raise BadParameter("without a recipe, --out is required, and --set and --check have no effect")
    loaded = flags.open_recipe(recipe, sets) if recipe else None
    if loaded and check:
        return flags.show_checked(loaded)
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api

    given = {"format": format, "precision": precision, "calibration": calibration}
    options: dict[str, Any] = {key: value for key, value in given.items() if value}
    result = api.export(loaded, model=model, out=out, fresh=fresh, progress=talk, **options)
    console.show(str(result.folder))
    if benchmark:
        from dcclip_cli.exporters.benchmark import ROWS
        from dcclip_cli.exporters.benchmark import benchmark as measure
        from dcclip_cli.model.reference import resolve

        original = api.open_run(loaded, None).trained_model() if loaded and not model else resolve(model)
        rows = measure(original, result.format, result.folder)
        columns = ("", *(row.name for row in rows))
        lines = [(name, *(text(row) for row in rows)) for name, text in ROWS.items()]
        console.show_table("measured here, each in its own process", columns, lines)
