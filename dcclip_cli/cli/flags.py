"""The options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

Device = Literal["auto", "cpu", "cuda", "mps"]

RecipeFile = Annotated[Path, Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)]
OptionalRecipe = Annotated[
    Path | None, Argument(metavar="RECIPE", help="A recipe: its section and its run's model.", show_default=False)
]
Sets = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: distill.epochs=3. Repeatable."),
]
Out = Annotated[
    Path | None,
    Option("--out", metavar="DIR", help="The run's folder, instead of runs/NAME.", show_default=False),
]
Fresh = Annotated[
    bool, Option("--fresh/--resume", help="Start over, or go on from where the last run of it was stopped.")
]
FreshOrResume = Annotated[
    bool | None,
    Option(
        "--fresh/--resume",
        help="Start over, or go on from a saved state and fail where there is none. Default: go on if there is one.",
        show_default=False,
    ),
]
Check = Annotated[
    bool, Option("--check", help="Check recipe, files and device, print the recipe resolved, do nothing else.")
]
Where = Annotated[Device, Option("--device", help="Where the model runs; auto takes a GPU if there is one.")]
Threads = Annotated[
    int | None,
    Option("--threads", min=1, help="Processor threads for one tower. Default: 1 for a bundle.", show_default=False),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Also show what the libraries below say.")]
MODEL_HELP = (
    "A model directory, export bundle or run directory, starter, hf:ORG/NAME, open_clip:ARCH/TAG or hf-hub:ORG/NAME. "
    "Default: $DCCLIP_MODEL, else the newest finished run, else starter, the model that comes with dcclip."
)

EXPORTED_HELP = (
    "A model directory or run, hf:ORG/NAME, open_clip:ARCH/TAG or hf-hub:ORG/NAME. Default: the recipe's run."
)


def split(text: str) -> list[str]:
    """The parts of a list typed with English or Chinese commas, without blanks, empty parts and repetitions."""
    parts = (part.strip() for part in text.replace("，", ",").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def lines_of(file: Path | None, kind: str) -> list[str]:
    """The lines of a file, without blanks around them and empty ones; none where there is no file.

    Raises DcclipError for what is not text in UTF-8, each line a `kind`.
    """
    from dcclip_cli.errors import DcclipError

    if file is None:
        return []
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise DcclipError(f"{file} is not there, or not text in UTF-8", f"give a file with one {kind} a line") from None
    if any("\0" in line for line in lines):
        raise DcclipError(f"{file} is not text in UTF-8", f"give a file with one {kind} a line")
    return [line.strip() for line in lines if line.strip()]


def resolve_device(asked: Device) -> str:
    """`cpu`, `cuda` or `mps`. Raises DcclipError if the one asked for is not there."""
    if asked == "cpu":
        return asked
    from dcclip_cli.model.precision import torch_device

    return torch_device(asked)
