"""The page of all commands, from the Typer program."""

import inspect
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from dcclip_cli.cli.app import app
from dcclip_cli.core.errors import Language
from docs.generate.markdown import MADE, anchor, code, escaped, table, text

HEAD: dict[Language, str] = {
    "en": """\
# Command line

`dcclip COMMAND --help` prints the same. What a command computes is on stdout, everything else on stderr. The exit code
is 0, or 1 after an error, with two lines that say what is wrong and what to do next, or 2 after a wrong option. Every
command also has `--quiet` (`-q`), `--verbose` (`-v`) and `--help` (`-h`).

""",
    "zh": """\
# 命令行

与 `dcclip COMMAND --help` 的内容相同（中文环境或 `DCCLIP_LANG=zh` 时是中文）。
算出的结果写到 stdout，其余都写到 stderr。退出码 0 表示成功；1 表示出错，并有两行文字说明错在哪里、接下来怎么办；
2 表示选项写错。每个命令还有 `--quiet`（`-q`）、`--verbose`（`-v`）和 `--help`（`-h`）。

""",
}
COLUMNS: dict[Language, tuple[str, ...]] = {
    "en": ("command", "what it does", "option", "default"),
    "zh": ("命令", "作用", "选项", "默认值"),
}
SHARED: dict[
    Language, tuple[str, str]
] = {  # the heading of what several commands have, and what leads to it
    "en": ("Shared options", "Also [shared options](#shared-options): {}."),
    "zh": ("共用选项", "另有[共用选项](#共用选项)：{}。"),
}
COMMANDS = 2  # from so many commands on, an option is listed once for all
EVERYWHERE = {"--quiet", "--verbose", "--help"}
TYPES = {bool: "", str: "TEXT", int: "N", float: "X", Path: "PATH"}


def page(language: Language = "en") -> str:
    found = list(commands(typer.main.get_command(app), "dcclip"))
    overview = [
        (f"[`{name}`](#{anchor(name)})", escaped(paragraphs(command, language)[0]))
        for name, command in found
    ]
    count = Counter(row for _, command in found for row in rows(command, language))
    shared = {row: None for row, commands in count.items() if commands >= COMMANDS}
    columns = (*COLUMNS[language][2:], COLUMNS[language][1])
    parts = [
        table(COLUMNS[language][:2], overview),
        f"\n## {SHARED[language][0]}\n\n{table(columns, shared)}",
    ]
    parts += [section(name, command, shared, columns, language) for name, command in found]
    return MADE + HEAD[language] + "".join(parts)


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands of the program, those in groups among them, with their full names."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def paragraphs(command: Any, language: Language) -> list[str]:
    """The paragraphs of its help, each on one line; the first is a summary."""
    join = "" if language == "zh" else " "
    return [join.join(part.split("\n")) for part in text(str(command.help), language).split("\n\n")]


def rows(command: Any, language: Language) -> list[tuple[str, ...]]:
    """The rows of a command's arguments and then of its options."""
    hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
    arguments, options = parameters(command)
    return [
        *((code(argument(one)), "", escaped(text(one.help or "", language))) for one in arguments),
        *(
            (
                option(one, hints.get(one.name)),
                default(one),
                escaped(text(one.help or "", language)),
            )
            for one in options
        ),
    ]


def parameters(command: Any) -> tuple[list[Any], list[Any]]:
    """The arguments and the options of a command that the page lists."""
    listed = [
        one for one in command.params if not EVERYWHERE.intersection(one.opts) and not one.hidden
    ]
    arguments = [one for one in listed if not one.opts[0].startswith("-")]
    return arguments, [one for one in listed if one not in arguments]


def section(
    name: str,
    command: Any,
    shared: Container[tuple[str, ...]],
    columns: Sequence[str],
    language: Language,
) -> str:
    """A command: usage, help and names of shared options in one paragraph, then its own arguments
    and options.
    """
    arguments, options = parameters(command)
    usage = " ".join([name, *map(argument, arguments), *(["[OPTIONS]"] if options else [])])
    colon, comma = ("：", "、") if language == "zh" else (": ", ", ")
    about = ("" if language == "zh" else " ").join(
        wrapped(part) for part in paragraphs(command, language)
    )
    listed = rows(command, language)
    often = [
        re.match("`[^`]*`", row[0]) for row in listed if row in shared and row[0].startswith("`--")
    ]
    if often:
        blank = "" if language == "zh" else " "
        about += blank + SHARED[language][1].format(comma.join(name[0] for name in often if name))
    parts = [
        f"## {name}\n",
        f"`{usage}`{colon}{about}\n",
        table(columns, [row for row in listed if row not in shared]),
    ]
    return "".join(f"\n{part}" for part in parts if part)


def wrapped(text: str) -> str:
    """A paragraph of help, in which options and names in angle brackets are no markup."""
    parts = re.split(r"(`[^`]*`)", escaped(text).replace(r"\|", "|"))
    parts[::2] = [re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", part) for part in parts[::2]]
    return "".join(parts)


def argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper().removesuffix("...") + (
        "..." if parameter.nargs == -1 else ""
    )
    return name if parameter.required else f"[{name}]"


def option(parameter: Any, hint: Any) -> str:
    """The option's names and the values that it takes."""
    names = sorted(parameter.opts, key=len, reverse=True) + parameter.secondary_opts
    return " ".join(
        [" / ".join(code(name) for name in names), *filter(None, [values(parameter, hint)])]
    )


def values(parameter: Any, hint: Any) -> str:
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return code(parameter.metavar)
    kind, information = get_args(hint)[:2] if hint is not None else (str, None)
    bare = next(
        (one for one in (kind, *get_args(kind)) if one in TYPES or get_origin(one) is Literal), kind
    )
    if get_origin(bare) is Literal:
        return " \\| ".join(code(value) for value in get_args(bare))
    bounds = [
        f"{sign} {bound}"
        for sign, bound in (("≥", information.min), ("≤", information.max))
        if bound is not None
    ]
    return ", ".join([code(TYPES.get(bare, "VALUE")), *bounds])


def default(parameter: Any) -> str:
    """What an option is without being given; empty for switches and where the help says it."""
    empty = parameter.is_flag or parameter.default in (None, "") or parameter.default == ()
    return "" if empty or callable(parameter.default) else code(parameter.default)
