"""Commands for a finished model: `dcclip calibrate`, `dcclip trim` and `dcclip push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.core.errors import Message
from dcclip_cli.core.text import split

if TYPE_CHECKING:
    from dcclip_cli.publish.push import PushPlan

_FOLDER = (
    "Folder with one folder of images per label; images in a folder named none or 其他 "
    "belong to no label."
)
_FILE = Option(
    "--out",
    metavar="FILE",
    help="File for the thresholds. Default: thresholds.json in the model directory.",
)


def calibrate(
    folder: Annotated[Path, Argument(metavar="FOLDER", help=_FOLDER)],
    model: flags.Model = None,
    out: Annotated[Path | None, _FILE] = None,
    as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find a threshold for each label from labelled images, for `predict --multi-label`.

    The name of a folder is the label of its images; classes.yaml can define labels in Chinese and
    English. The thresholds maximize F1 over all images and labels. An image below every threshold
    gets no label.
    """
    from dcclip_cli.photos import calibrate as inference

    talk = console.talk(quiet, verbose)
    result = inference.calibrate(
        folder, model=model, out=out, device=device, threads=threads, progress=talk
    )
    if as_json:
        console.show_json([vars(label) for label in result.thresholds])
    else:
        rows = [
            (row.label, f"{row.threshold:.3f}", f"{row.f1:.3f}", str(row.pictures))
            for row in result.thresholds
        ]
        headings = (Message("label"), Message("threshold"), "F1", Message("pictures"))
        console.show_table(Message("thresholds in {}", result.file), headings, rows)


_MOST_TEXTS = 1_000_000
_MOST_BYTES = 200_000_000
_NAMED = 8  # texts
_SOURCE = Argument(
    metavar="MODEL", help="Model directory (any format), run, hf:ORG/NAME or hf-hub:ORG/NAME."
)
_LANGUAGES = Option("--languages", metavar="zh,en", help="Languages to keep.")
_TRIMMED = Option(
    "--out", metavar="DIR", help="Directory for the trimmed model. Default: NAME-zh-en."
)
_TEXTS = Option(
    "--texts",
    metavar="FILE",
    help="File with texts, one per line: keep only the tokens of these texts and of "
    "dcclip's class names, and all "
    "single characters. Default: all tokens in the languages' scripts.",
)


def trim(
    model: Annotated[str, _SOURCE],
    languages: Annotated[str, _LANGUAGES] = "zh,en",
    out: Annotated[Path | None, _TRIMMED] = None,
    texts: Annotated[Path | None, _TEXTS] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Trim a multilingual model's vocabulary to the languages that you need.

    Writes a model directory in the format of the original, and prints sizes and path. All other
    weights are unchanged. The model needs a tokenizer.json of XLM-R's kind (Unigram), as AltCLIP
    has. The command compares both models on texts in both languages, and fails if an embedding
    changes though all tokens of its text are kept. It counts and lists the texts that lose tokens.
    """
    from dcclip_cli import api

    lines = flags.lines_of(texts, Message("text"), _MOST_TEXTS, _MOST_BYTES) if texts else None
    talk = console.talk(quiet, verbose)
    result = api.trim(model, languages=split(languages), out=out, texts=lines, progress=talk)
    rows = [
        (Message("tokens"), f"{result.pieces_before:,}", f"{result.pieces:,}"),
        (
            Message("parameters"),
            f"{result.parameters_before / 1e6:.2f} M",
            f"{result.parameters / 1e6:.2f} M",
        ),
        (
            Message("share"),
            "100 %",
            f"{result.parameters / result.parameters_before:.0%}".replace("%", " %"),
        ),
    ]
    console.show_table(str(result.folder), ("", Message("before"), Message("after")), rows)
    same = Message(
        "largest difference of {} embeddings: {:.1g}", result.compared, result.difference
    )
    share = f"{len(result.split) / max(1, result.texts):.1%}".replace("%", " %")
    talk.say(
        Message(
            "{:,} texts compared, {} are tokenized differently than before; {}",
            result.texts,
            share,
            same,
        )
    )
    for text in result.split[:_NAMED]:
        talk.say(Message("warning: this text loses a token: {}", text))
    if len(result.split) > _NAMED:
        talk.say(Message("warning: and {:,} more texts", len(result.split) - _NAMED))
    console.show(str(result.folder))


_MODEL = Argument(
    metavar="MODEL",
    help="Recipe, run, model directory or export. A run includes its results and export.",
)
_REPOSITORY = Argument(
    metavar="ORG/NAME", help="Repository on the hub; created if it does not exist."
)
_LICENSE = Option(
    "--license",
    metavar="ID",
    help="Hub license id, such as apache-2.0. Default: from the model card.",
)
_BUNDLE = Option(
    metavar="DIR", help="Export to upload with the model. Repeatable. Default: the run's exports."
)
_DATA = Option(
    metavar="DIR",
    help="Output of collect that the model was trained on, for the model card. "
    "Repeatable. Default: from the run.",
)
_PRIVATE = Option("--private", help="Create a private repository.")
_PULL_REQUEST = Option("--pull-request", help="Open a pull request in an existing repository.")
_OVERWRITE = Option("--overwrite", help="Allow existing files to be replaced.")
_YES = Option("--yes", "-y", help="Upload the files. Without --yes, nothing is sent (dry run).")


def push(
    model: Annotated[str, _MODEL],
    repository: Annotated[str, _REPOSITORY],
    license: Annotated[str | None, _LICENSE] = None,
    bundle: Annotated[list[Path] | None, _BUNDLE] = None,
    data: Annotated[list[Path] | None, _DATA] = None,
    private: Annotated[bool, _PRIVATE] = False,
    pull_request: Annotated[bool, _PULL_REQUEST] = False,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    yes: Annotated[bool, _YES] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Upload a model to the Hugging Face Hub, for --model hf-hub:ORG/NAME and open_clip.

    Uploads the model, its exports, and a card with license, results and data. Without --yes,
    prints the files and the card, and sends nothing. Log in with: hf auth login. Prints the
    address.
    """
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api

    flags_given = {
        "private": private,
        "pull_request": pull_request,
        "overwrite": overwrite,
        "yes": yes,
    }
    done = api.push(
        model,
        repository,
        license=license,
        bundles=bundle or (),
        data=data or (),
        progress=talk,
        **flags_given,
    )
    for note in done.plan.notes:
        talk.say(note)
    if not yes:
        _show_plan(done.plan)
        if private:
            talk.say(
                Message(
                    "{} will be private if it is new; if it exists and is public, --yes fails",
                    repository,
                )
            )
        return talk.say(Message("dry run: nothing was sent; add --yes to upload"))
    unchanged = len(done.plan.files) - done.changed
    talk.say(
        Message(
            "{} files uploaded, {} unchanged; load the model with --model hf-hub:{}",
            done.changed,
            unchanged,
            repository,
        )
    )
    console.show(done.url)


def _show_plan(plan: PushPlan) -> None:
    """Print the files of a repository with their sizes, and its card."""
    size_by_name = {}
    for name, file in plan.files.items():
        size_by_name[name] = len(file) if isinstance(file, bytes) else file.stat().st_size
    megabytes = sum(size_by_name.values()) / 1e6
    title = Message("{}: {} files, {:,.2f} MB", plan.repository, len(size_by_name), megabytes)
    rows = [(name, f"{size:,}") for name, size in size_by_name.items()]
    console.show_table(title, (Message("file"), Message("bytes")), rows)
    console.show("")
    console.show(plan.card.rstrip("\n"))
