"""`dcclip predict IMAGE... --labels 猫,dog`: which label fits each picture, and how well."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Exit, Option

from dcclip_cli.cli import console, errors, flags
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.predict.predict import Prediction


def predict(
    images: Annotated[
        list[str],
        Argument(metavar="IMAGE", help="Pictures, folders or globs; - reads paths from stdin.", show_default=False),
    ],
    labels: Annotated[
        str, Option("--labels", metavar="猫,dog", help="Labels in any mix of languages; , and ， separate them.")
    ] = "",
    labels_file: Annotated[
        Path | None, Option("--labels-file", metavar="FILE", help="More labels, one a line.", show_default=False)
    ] = None,
    model: Annotated[str | None, Option("--model", metavar="MODEL", help=flags.MODEL_HELP, show_default=False)] = None,
    top_k: Annotated[int, Option("--top-k", min=1, help="How many labels to show for each picture.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON list.")] = False,
    as_jsonl: Annotated[bool, Option("--jsonl", help="Print one JSON object a line, each as soon as known.")] = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV: image, label, probability.")] = False,
    device: flags.Where = "auto",
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Say which label fits each picture, and how well.

    The probabilities are over the labels given.
    From an export bundle this needs no torch. Exit code 1 if a picture could not be read; the others are still shown.
    """
    if as_json + as_jsonl + as_csv > 1:
        raise BadParameter("--json, --jsonl and --csv exclude each other")
    wanted = _labels(labels, labels_file)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.images import find_images
    from dcclip_cli.predict.predict import predict as run

    paths = list(find_images(images, sys.stdin))
    reference = resolve(model)
    talk.say(reference.said)
    unread = 0

    def readable() -> Iterable[Prediction]:
        nonlocal unread
        for prediction in run(model=reference, images=paths, labels=wanted, top_k=top_k, device=device):
            if prediction.error is None:
                yield prediction
            else:
                errors.say("error: ", prediction.error, errors.RED)
                unread += 1

    if as_jsonl:
        for prediction in readable():
            console.show(json.dumps(_plain(prediction), ensure_ascii=False))
            sys.stdout.flush()
    elif as_json:
        console.show_json([_plain(prediction) for prediction in readable()])
    elif as_csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["image", "label", "probability"])
        for prediction in readable():
            table.writerows([prediction.image, label, f"{value:.6f}"] for label, value in prediction.labels)
    else:
        for prediction in readable():
            scores = "   ".join(f"{label} {value:.1%}" for label, value in prediction.labels)
            console.show(f"{prediction.image}   {scores}")
    if unread:
        raise Exit(1)


def _plain(prediction: Prediction) -> dict[str, object]:
    labels = [{"label": label, "probability": round(value, 6)} for label, value in prediction.labels]
    return {"image": str(prediction.image), "labels": labels}


def _labels(text: str, file: Path | None) -> list[str]:
    """The labels typed and those in a file. Raises DcclipError if there are none."""
    lines: Sequence[str] = ()
    if file is not None:
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
            raise DcclipError(
                f"{file} is not there, or not text in UTF-8", "give a file with one label a line"
            ) from None
    found = list(dict.fromkeys([*flags.split(text), *(line.strip() for line in lines if line.strip())]))
    if not found:
        raise DcclipError("no labels given", "say what to look for, for example: --labels 猫,dog")
    return found
