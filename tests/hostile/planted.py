"""A program with planted faults, one command each, on which the verdicts of the battery are tested."""

import os
import subprocess
import sys
import time
from pathlib import Path

import typer

app = typer.Typer(pretty_exceptions_enable=False)


def _say(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


@app.command()
def fine() -> None:
    sys.stdout.write(Path("input").read_text())


@app.command()
def refuses() -> None:
    _say("error: input is damaged", "hint:  copy it again")
    raise typer.Exit(1)


@app.command()
def checks() -> None:
    if (given := Path("input").read_text()) != "whole":
        refuses()
    sys.stdout.write(given)


@app.command()
def crashes() -> None:
    sys.stdout.write(str(1 // 0))


@app.command()
def hangs() -> None:
    time.sleep(600)


@app.command()
def eats() -> None:
    eaten = [bytes(2**20) for _ in range(10**6)]
    sys.stdout.write(str(len(eaten)))


@app.command()
def no_hint() -> None:
    _say("error: input is damaged")
    raise typer.Exit(1)


@app.command()
def no_word() -> None:
    raise typer.Exit(1)


@app.command()
def none() -> None:
    _say("error: None: No space left on device", "hint:  free some")
    raise typer.Exit(1)


@app.command()
def raw() -> None:
    _say("error: \033[2J is missing", "hint:  give another")
    raise typer.Exit(1)


@app.command()
def leaves_a_file() -> None:
    Path(f".made.{os.getpid()}.partial").touch()


@app.command()
def leaves_a_process() -> None:
    subprocess.Popen(["sleep", "600"])


@app.command()
def dies() -> None:
    os.kill(os.getpid(), 11)
