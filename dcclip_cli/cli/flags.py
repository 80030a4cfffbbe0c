"""Arguments and options that several commands share, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, CallbackParam, Option

from dcclip_cli.cli import console
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import check_target, refuse_special
from dcclip_cli.core.text import read_text

if TYPE_CHECKING:
    from dcclip_cli.core.run_dir import StageName
    from dcclip_cli.recipe.load import LoadedRecipe

_MOST_CHARACTERS = 100_000  # of a line in a file
_MOST_AT_A_TIME = 64  # that every machine accepts
Device = Literal["auto", "cpu", "cuda", "mps"]

IMAGES = Argument(metavar="IMAGE", help="Images, folders or globs; - reads paths from stdin.")
RecipeFile = Annotated[Path, Argument(metavar="RECIPE", help="Recipe, a YAML file.")]
OptionalRecipe = Annotated[
    Path | None,
    Argument(
        metavar="RECIPE", help="Recipe: defines the settings of this command and the trained model."
    ),
]
_SETS = Option(
    "--set",
    metavar="KEY=VALUE",
    help="Override a recipe value, such as distill.epochs=3. Repeatable.",
)
Sets = Annotated[list[str] | None, _SETS]
Out = Annotated[
    Path | None, Option("--out", metavar="DIR", help="Run directory. Default: runs/NAME.")
]
Fresh = Annotated[
    bool, Option("--fresh/--resume", help="--fresh starts over; --resume continues the last run.")
]
_FRESH = Option(
    "--fresh/--resume",
    help="--fresh starts over; --resume requires a checkpoint. Default: resume if there "
    "is a checkpoint.",
)
FreshOrResume = Annotated[bool | None, _FRESH]
_CHECK = Option(
    "--check",
    help="Check the recipe, data, models, device and disk, and estimate time, memory and "
    "disk; run nothing.",
)
Check = Annotated[bool, _CHECK]


def at_a_time(number: int | None) -> int | None:
    """Refuses numbers of threads or processes that only cost: the system has a limited number for
    all its users.
    """
    limit = max(_MOST_AT_A_TIME, 4 * (os.cpu_count() or 1))
    if number is not None and number > limit:
        raise BadParameter(
            Message("{} exceeds the limit {} ({} CPU cores)", number, limit, os.cpu_count())
        )
    return number


def processes(value: str) -> int | Literal["auto"]:
    """The value of --processes. Raises BadParameter for anything but auto and a number of at least
    1.
    """
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise BadParameter(Message("{}: expected auto or a positive integer", value))
    return at_a_time(int(value)) or 1


_TOGETHER = "Number of training processes, at most one per GPU; auto: all GPUs."
Processes = Annotated[Any, Option("--processes", parser=processes, metavar="N", help=_TOGETHER)]
Where = Annotated[
    Device, Option("--device", help="Device to run the model on; auto uses a GPU if there is one.")
]
Threads = Annotated[
    int | None,
    Option(
        "--threads",
        min=1,
        callback=at_a_time,
        help="CPU threads per tower. Default: 1 for a bundle, else torch's default.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    Option(
        "--trust-remote-code",
        help="Run the code in a model's repository (FG-CLIP2 needs it). Read it first.",
    ),
]
_DIMS = "Use the first N dimensions of embeddings, for models trained with `dims`. Default: all."
Dims = Annotated[int | None, Option("--dims", min=8, max=8192, metavar="N", help=_DIMS)]
_EXCLUDE = (
    "Leave out files and folders with this name, or end of a path, such as '*_edit.jpg'. "
    "Repeatable."
)
Exclude = Annotated[list[str] | None, Option("--exclude", metavar="PATTERN", help=_EXCLUDE)]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Show library logs too.")]
MODEL_HELP = (
    "Model directory (dcclip, open_clip or transformers), export bundle, run directory, "
    "starter, hf:ORG/NAME, open_clip:ARCH/TAG, hf-hub:ORG/NAME or ms:ORG/NAME "
    "(ModelScope). Default: $DCCLIP_MODEL, "
    "else starter, the model included in dcclip."
)

Model = Annotated[str | None, Option("--model", metavar="MODEL", help=MODEL_HELP)]
EXPORTED_HELP = (
    "Model directory (dcclip, open_clip or transformers), run, bundle, "
    "starter, hf:ORG/NAME, open_clip:ARCH/TAG or hf-hub:ORG/NAME. Default: the recipe's run."
)


def lines_of(file: Path | None, kind: Message, most_lines: int, most_bytes: int) -> list[str]:
    """The lines of a file, stripped, without empty ones; none if `file` is None.

    Raises DcclipError if it is not a text file in UTF-8, or it or a line is larger; `kind` names
    what lines contain.
    """
    if file is None:
        return []
    hint = Message("give a file with one {} per line", kind)
    if file.parent != Path("/dev/fd"):  # where the shell puts <(COMMAND)
        refuse_special(file)
    lines = read_text(file, most_bytes, hint).splitlines()
    for number, line in enumerate(lines, 1):
        if (
            len(line) > _MOST_CHARACTERS
        ):  # a tokenizer takes 300 bytes for each, also of those that it cuts off
            message = Message(
                "{}: line {} has {:,} characters; the limit is {:,}",
                file,
                number,
                len(line),
                _MOST_CHARACTERS,
            )
            raise DcclipError(message, hint)
    lines = [stripped for line in lines if (stripped := line.strip())]
    if len(lines) > most_lines:
        raise DcclipError(
            "{} has {:,} lines; the limit is {:,}", hint, file, len(lines), most_lines
        )
    return lines


def text(value: str, option: str) -> str:
    """A text from the command line. Raises DcclipError if it is not UTF-8.

    Python decodes arguments in the locale's encoding, and what does not fit as halves of
    characters.
    """
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError:
        raise DcclipError(
            "{} {!r} is not UTF-8 text", "set the terminal to UTF-8: LANG=C.UTF-8", option, value
        ) from None


def texts(option: CallbackParam, values: list[str] | None) -> list[str]:
    """The texts of an option that can be repeated. Raises DcclipError for those that are not
    UTF-8.
    """
    return [text(value, option.opts[0]) for value in values or ()]


def out(path: Path | None, folder: bool = True) -> None:
    """Raise the error that writing a result to `path` would end in, before the work."""
    if path is not None:
        check_target(path, folder)


def refuse(problems: Mapping[Message, object]) -> None:
    """Raise BadParameter with the first message whose condition is true: of options that do not go
    together.
    """
    if problem := next((message for message, is_true in problems.items() if is_true), None):
        raise BadParameter(problem)


def open_recipe(
    path: Path, sets: Sequence[str] | None, needed: StageName | None = None
) -> LoadedRecipe:
    """The validated recipe, which must have the section `needed`. Files of its extensions are
    named.
    """
    from dcclip_cli import api
    from dcclip_cli.core import extensions

    extensions.announce_imports(console.info_line)
    return api.open_recipe(path, needed, sets=sets)


def show_checked(
    loaded: LoadedRecipe,
    stages: Collection[StageName],
    device: Device | None = None,
    out: Path | None = None,
    fresh: bool = False,
    processes: int | Literal["auto"] = 1,
) -> None:
    """Check device, and data, models and disk of `stages`; print estimates of time and disk, and
    what would run.
    """
    from dcclip_cli.api import open_run
    from dcclip_cli.model.precision import torch_device
    from dcclip_cli.recipe.preflight import unfinished

    if device not in (None, "cpu"):  # which needs no torch
        torch_device(device)
    job = open_run(loaded, out, device or "cpu", fresh, processes=processes)
    works = job.preflight(stages)
    stages_to_run = unfinished(job.dir, stages, fresh)
    for stage in works:
        from dcclip_cli.train.estimate import lines, measure  # torch, without which `collect` runs

        for line in lines(stage, measure(stage)):
            console.show_now(line)
    if works and "collect" in stages_to_run:
        console.show(
            Message("the estimates are for all pairs that collect would read, before filtering")
        )
    if stages_to_run:
        console.show(Message("ready to run in {}: {}", job.dir.root, ", ".join(stages_to_run)))
    else:
        console.show(
            Message("nothing to run in {}: already finished: {}", job.dir.root, ", ".join(stages))
        )
