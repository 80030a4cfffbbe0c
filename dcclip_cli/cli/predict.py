"""`dcclip predict IMAGE... --labels 猫,dog`: zero-shot classification of images."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Exit, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.predict.model import Prediction


_Labels = Annotated[
    str, Option("--labels", metavar="猫,dog", help="Labels in Chinese, English or both, separated by , or ，.")
]
_LabelsFile = Annotated[
    Path | None,
    Option("--labels-file", metavar="FILE", help="File with more labels, one per line.", show_default=False),
]
_Template = Annotated[
    list[str] | None,
    Option(
        "--template",
        metavar="TEXT",
        help="Prompt template; {} is the label. Used for labels of its script. Repeatable.",
    ),
]
_MultiLabel = Annotated[
    bool, Option("--multi-label", help="Score each label independently: none, one or several may be right.")
]
_Threshold = Annotated[
    float, Option("--threshold", min=0, max=1, help="Show only labels with at least this probability.")
]
_JsonLines = Annotated[bool, Option("--jsonl", help="Print one JSON object per line, each as soon as it is known.")]


def predict(
    images: Annotated[list[str], flags.IMAGES],
    labels: _Labels = "",
    labels_file: _LabelsFile = None,
    model: flags.Model = None,
    template: _Template = None,
    no_template: Annotated[bool, Option("--no-template", help="Use the labels as they are.")] = False,
    multi_label: _MultiLabel = False,
    top_k: Annotated[int, Option("--top-k", min=1, help="Number of labels to show per image.")] = 5,
    threshold: _Threshold = 0.0,
    as_json: Annotated[bool, Option("--json", help="Print one JSON list.")] = False,
    as_jsonl: _JsonLines = False,
    as_csv: Annotated[bool, Option("--csv", help="Print CSV: image, label, probability.")] = False,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Classify images zero-shot: probabilities of the given labels.

    The probabilities of an image sum to 1, except with --multi-label. With an export bundle, torch is not needed.
    Exit code 1 if an image cannot be read; the others are still shown.
    """
    if as_json + as_jsonl + as_csv > 1:
        raise BadParameter("--json, --jsonl and --csv exclude each other")
    if template and no_template:
        raise BadParameter("--template and --no-template exclude each other")
    wanted = _labels(labels, labels_file)
    talk = console.talk(quiet, verbose)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads take a fifth of a cold start's CPU time

    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.encoder import load_encoder
    from dcclip_cli.predict.images import find_images
    from dcclip_cli.predict.model import predict as run
    from dcclip_cli.predict.zero_shot import Labels

    paths = list(find_images(images, sys.stdin))
    if len(paths) > 1:
        keep_freed_memory()
    reference = resolve(model)
    talk.say(reference.description)
    encoder = load_encoder(reference, device, threads=threads)
    ready = Labels(encoder, wanted, [] if no_template else template or None, multi_label)
    predictions = run(encoder, ready, paths, top_k, threshold)
    counted = console.counted(talk, "predict", predictions, len(paths), shown_at_once=not as_json)
    if as_json:
        unread = _show_json(list(counted))
    elif as_csv:
        unread = _show_csv(counted)
    else:
        unread = _show_lines(counted, as_jsonl)
    if unread:
        raise Exit(1)


def _show_lines(predictions: Iterable[Prediction], as_json: bool) -> int:
    """Print each prediction as soon as it is known; returns how many images could not be read."""
    unread = 0
    for prediction in predictions:
        unread += _told(prediction)
        if as_json:
            console.show(json.dumps(_plain(prediction), ensure_ascii=False))
            sys.stdout.flush()
        elif prediction.error is None:
            scores = "   ".join(f"{label} {value:.1%}" for label, value in prediction.labels)
            console.show(f"{prediction.image}   {scores or '-'}")
    return unread


def _show_json(predictions: Sequence[Prediction]) -> int:
    console.show_json([_plain(prediction) for prediction in predictions])
    return sum(_told(prediction) for prediction in predictions)


def _show_csv(predictions: Iterable[Prediction]) -> int:
    unread = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["image", "label", "probability"])
    for prediction in predictions:
        unread += _told(prediction)
        table.writerows([prediction.image, label, f"{value:.6f}"] for label, value in prediction.labels)
    return unread


def _told(prediction: Prediction) -> bool:
    """Whether the image could not be read; if so, prints the error."""
    if prediction.error is not None:
        console.error_line(prediction.error)
    return prediction.error is not None


def _plain(prediction: Prediction) -> dict[str, object]:
    if prediction.error is not None:
        return {"image": str(prediction.image), "error": prediction.error}
    labels = [{"label": label, "probability": round(value, 6)} for label, value in prediction.labels]
    return {"image": str(prediction.image), "labels": labels}


def _labels(text: str, file: Path | None) -> list[str]:
    """The labels of the command line and of a file. Raises DcclipError if there are none."""
    found = list(dict.fromkeys([*flags.split(text), *flags.lines_of(file, "label")]))
    if not found:
        raise DcclipError("no labels given", "give some, for example: --labels 猫,dog")
    return found
