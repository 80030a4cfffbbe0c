"""`dcclip calibrate`: thresholds of labels, from a few pictures of each."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import Message

_FOLDER = "Folder with one folder of images per label; images in a folder named none or 其他 belong to no label."
_OUT = Option("--out", metavar="FILE", help="File for the thresholds. Default: thresholds.json in the model directory.")


def calibrate(
    folder: Annotated[Path, Argument(metavar="FOLDER", help=_FOLDER)],
    model: flags.Model = None,
    out: Annotated[Path | None, _OUT] = None,
    as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find a threshold for each label from labelled images, for `predict --multi-label`.

    The name of a folder is the label of its images; classes.yaml can define labels in Chinese and English. The
    thresholds maximize F1 over all images and labels. An image below every threshold gets no label.
    """
    from dcclip_cli.inference import calibrate as inference

    talk = console.talk(quiet, verbose)
    result = inference.calibrate(folder, model=model, out=out, device=device, threads=threads, progress=talk)
    if as_json:
        console.show_json([vars(label) for label in result.thresholds])
    else:
        rows = [(row.label, f"{row.threshold:.3f}", f"{row.f1:.3f}", str(row.pictures)) for row in result.thresholds]
        headings = (Message("label"), Message("threshold"), "F1", Message("pictures"))
        console.show_table(Message("thresholds in {}", result.file), headings, rows)
