"""`dcclip push`: a model, its exports and its card on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import Message

_MODEL = Argument(
    metavar="MODEL", help="Recipe, run, model directory or export. A run includes its results and export."
)
_REPOSITORY = Argument(metavar="ORG/NAME", help="Repository on the hub; created if it does not exist.")
_LICENSE = Option("--license", metavar="ID", help="Hub license id, such as apache-2.0. Default: from the model card.")
_BUNDLE = Option(metavar="DIR", help="Export to upload with the model. Repeatable. Default: the run's exports.")
_DATA = Option(
    metavar="DIR",
    help="Output of collect that the model was trained on, for the model card. Repeatable. Default: from the run.",
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
    """Upload a model to the Hugging Face Hub, for --model hf-hub:ORG/NAME, open_clip and leaderboards.

    Uploads the model, its exports, results for leaderboards, and a card with license, results and data. Without --yes,
    prints the files and the card, and sends nothing. Log in with: hf auth login. Prints the address.
    """
    talk = console.talk(quiet, verbose)

    from dcclip_cli import api

    flags_given = {"private": private, "pull_request": pull_request, "overwrite": overwrite, "yes": yes}
    done = api.push(
        model, repository, license=license, bundles=bundle or (), data=data or (), progress=talk, **flags_given
    )
    for note in done.plan.notes:
        talk.say(note)
    if not yes:
        sizes = {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in done.plan.files.items()
        }
        counts = len(sizes), sum(sizes.values()) / 1e6
        visibility = "private" if private else "public"
        title = Message("{}, a {} model: {} files, {:,.2f} MB", done.plan.repository, visibility, *counts)
        rows = [(name, f"{size:,}") for name, size in sizes.items()]
        console.show_table(title, (Message("file"), Message("bytes")), rows)
        console.show("")
        console.show(done.plan.card.rstrip("\n"))
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
