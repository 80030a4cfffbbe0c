"""The page of all commands, from the Typer program."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from dcclip_cli.cli.app import app
from docs.generate.markdown import MADE, anchor, code, escaped, table

HEAD = """\
# Command line

`dcclip COMMAND --help` prints the same. What a command computes is on stdout, everything else on stderr. The exit code
is 0, or 1 after an error, with two lines that say what is wrong and what to do next, or 2 after a wrong option.

Every command also has `--quiet` (`-q`), `--verbose` (`-v`) and `--help` (`-h`), which the tables below leave out.

"""
EVERYWHERE = {"--quiet", "--verbose", "--help"}
TYPES = {bool: "", str: "TEXT", int: "N", float: "X", Path: "PATH"}


def page() -> str:
    found = list(commands(typer.main.get_command(app), "dcclip"))
    rows = [(f"[`{name}`](#{anchor(name)})", escaped(summary(command))) for name, command in found]
    return MADE + HEAD + table(("command", "what it does"), rows) + "".join(section(*one) for one in found)


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands of the program, those in groups among them, with their full names."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def summary(command: Any) -> str:
    """The first sentence of its help."""
    return str(command.help).partition("\n\n")[0]


def section(name: str, command: Any) -> str:
    """A command: usage, help, arguments and options."""
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    parameters = [one for one in command.params if not EVERYWHERE.intersection(one.opts) and not one.hidden]
    arguments = [one for one in parameters if not one.opts[0].startswith("-")]
    options = [one for one in parameters if one not in arguments]
    usage = " ".join([name, *(argument(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    paragraphs = [" ".join(part.split("\n")) for part in str(command.help).split("\n\n")]
    text = "\n\n".join(wrapped(part) for part in paragraphs)
    rows = [
        *((code(argument(one)), "", escaped(one.help or "")) for one in arguments),
        *((option(one, hints.get(one.name)), default(one), escaped(one.help or "")) for one in options),
    ]
    tables = table(("option", "default", "what it does"), rows)
    return f"\n## {name}\n\n```text\n{usage}\n```\n\n{text}\n" + (f"\n{tables}" if tables else "")


def wrapped(text: str) -> str:
    """A paragraph of help, in which options and names in angle brackets are no markup."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", escaped(text).replace(r"\|", "|"))


def argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def option(parameter: Any, hint: Any) -> str:
    """The option's names and the values that it takes."""
    names = sorted(parameter.opts, key=len, reverse=True) + parameter.secondary_opts
    return " ".join([" / ".join(code(name) for name in names), *filter(None, [values(parameter, hint)])])


def values(parameter: Any, hint: Any) -> str:
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return code(parameter.metavar)
    kind, information = get_args(hint)[:2] if hint is not None else (str, None)
    bare = next((one for one in (kind, *get_args(kind)) if one in TYPES or get_origin(one) is Literal), kind)
    if get_origin(bare) is Literal:
        return " \\| ".join(code(value) for value in get_args(bare))
    bounds = [
        f"{sign} {bound}" for sign, bound in (("≥", information.min), ("≤", information.max)) if bound is not None
    ]
    return ", ".join([code(TYPES.get(bare, "VALUE")), *bounds])


def default(parameter: Any) -> str:
    """What an option is without being given; empty for switches and where the help says it."""
    empty = parameter.is_flag or parameter.default in (None, "") or parameter.default == ()
    return "" if empty or callable(parameter.default) else code(parameter.default)
