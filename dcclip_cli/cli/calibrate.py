"""`dcclip calibrate`: thresholds of labels, from a few pictures of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError, Message

_NONE = ("none", "其他")  # folders of pictures that no label is right for
_FOLDER = "Folder with a folder of pictures for each label; pictures in one named none or 其他 are of no label."
_OUT = Option("--out", metavar="FILE", help="File for the thresholds. Default: thresholds.json in the model's folder.")


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
    """Find a threshold for each label on labelled pictures, which `predict --multi-label` then uses.

    A label is the name of its folder, or those in classes.yaml, in Chinese and English. The thresholds are those
    with the highest F1 on all pictures and labels together; a picture that reaches none is shown without labels.
    """
    from dcclip_cli.data.class_folders import class_names, folders_in
    from dcclip_cli.inference.calibrate import THRESHOLDS, calibrate, write_thresholds
    from dcclip_cli.inference.files import open_encoder
    from dcclip_cli.inference.index import open_index
    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.model.reference import STARTER, resolve

    reference = resolve(model)
    if out is None and (reference.path.name == STARTER or not reference.path.is_dir()):
        hint = Message("name a file: --out thresholds.json, and give it to dcclip predict --thresholds")
        raise DcclipError("thresholds cannot be written next to {}", hint, reference.target)
    file = out or reference.path / THRESHOLDS
    flags.out(file, folder=False)
    talk = console.talk(quiet, verbose)
    classes = [path.name for path in folders_in(folder) if path.name not in _NONE and not path.name.startswith(".")]
    if not classes:
        raise DcclipError("{} has no folders with images", "make a folder for each label, with its pictures", folder)
    names = class_names(folder, classes)
    labels = {name: [translated[place] for translated in names.values()] for place, name in enumerate(classes)}
    encoder = open_encoder(model, device, threads, talk)
    keep_freed_memory()
    calibrated = calibrate(encoder, open_index(encoder, folder, progress=talk), labels, talk)
    write_thresholds(file, encoder, calibrated)
    if as_json:
        console.show_json([vars(label) for label in calibrated])
    else:
        rows = [(label.label, f"{label.threshold:.3f}", f"{label.f1:.3f}", str(label.pictures)) for label in calibrated]
        headings = (Message("label"), Message("threshold"), "F1", Message("pictures"))
        console.show_table(Message("thresholds in {}", file), headings, rows)
