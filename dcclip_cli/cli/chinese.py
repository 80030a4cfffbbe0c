"""The help and the usage errors of commands in Chinese, Typer's own words included."""

import gettext
import os
import re
from functools import cache
from itertools import accumulate
from typing import Any

from dcclip_cli.core.errors import DOMAIN, FIELD, LOCALES, Message, translated
from dcclip_cli.core.text import rows

_USAGE = Message("Usage: ")
_HELP = Message("Show this message and exit.")
# Typer's usage errors, which are finished texts: the first that matches is the template.
_ERRORS = (
    Message("No such option: {option} (Possible options: {options})"),
    Message("No such option: {option}"),
    Message("No such command {name}. Did you mean {near}?"),
    Message("No such command {name}."),
    Message("Missing command."),
    Message("Missing argument {name}. {more}"),
    Message("Missing argument {name}."),
    Message("Missing option {name}. {more}"),
    Message("Missing option {name}."),
    Message("Invalid value for {name}: {what}"),
    Message("Invalid value: {what}"),
    Message("Got unexpected extra argument(s) ({arguments})"),
    Message("Option {name} requires an argument."),
    Message("Option {name} does not take a value."),
    Message("Value {value} is not a valid {kind}."),
    Message("{value} is not one of {choices}."),
    Message("{value} is not in the range {range}."),
    Message("Input should be greater than or equal to {least}"),
    Message("Input should be less than or equal to {most}"),
    Message("Input should be a valid integer, unable to parse string as an integer"),
    Message("Input should be a valid number, unable to parse string as a number"),
)
_CHINESE = re.compile(r"[\u2e80-\uffef]")


def speak_chinese(command: Any) -> None:
    """Let the help of a command, and of those in it, be in Chinese."""
    os.environ["LANGUAGE"] = "zh"  # for gettext, by which Typer looks up some of its words
    gettext.bindtextdomain(DOMAIN, LOCALES)
    gettext.textdomain(DOMAIN)
    _format_chinese(command.context_class)
    _translate(command)


@cache  # once: every call would wrap it again
def _format_chinese(context: Any) -> None:
    base: Any = context.formatter_class

    class Formatter(base):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            _wrap_chinese()  # now that help is shown

        def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
            super().write_usage(prog, args, prefix or translated(_USAGE))

    context.formatter_class = Formatter


def _translate(command: Any) -> None:
    for part in (command, *command.params):
        for name in ("help", "rich_help_panel"):
            if text := getattr(part, name, None):
                setattr(part, name, translated(Message(text)))
    help_option = command.get_help_option

    def in_chinese(context: Any) -> Any:
        option = help_option(context)
        if option is not None:
            option.help = translated(_HELP)
        return option

    command.get_help_option = in_chinese
    for subcommand in getattr(command, "commands", {}).values():
        _translate(subcommand)


@cache  # once: every call would wrap it again
def _wrap_chinese() -> None:
    """Let rich break lines between Chinese characters; it does so at white space only, and cuts
    what is longer.
    """
    from rich.containers import Lines
    from rich.text import Text

    usual: Any = Text.wrap

    def wrap(self: Text, console: Any, width: int, **options: Any) -> Lines:
        if not _CHINESE.search(self.plain):
            return usual(self, console, width, **options)
        lines = (
            (line, accumulate(map(len, rows(line.plain, width))))
            for line in self.split(allow_blank=True)
        )
        parts = [part for line, ends in lines for part in line.divide([*ends][:-1])]
        for part in parts:
            part.rstrip()
        return Lines(parts)

    Text.wrap = wrap  # type: ignore[method-assign]


def usage_error(error: Any) -> None:
    sentence = error.format_message()
    reason = getattr(error, "message", "")
    if isinstance(reason, Message):
        sentence = sentence.replace(reason, translated(reason))
    error.format_message = lambda: translated(_template_of(sentence))


def _template_of(text: str) -> Message | str:
    """A text of Typer as a Message with its template; the text itself if that is not known."""
    for message in _ERRORS:
        parts = enumerate(FIELD.split(message))
        pattern = "".join(
            f"(?P<{part}>.+?)" if number % 2 else re.escape(part) for number, part in parts
        )
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return Message(
                message, **{name: _template_of(value) for name, value in match.groupdict().items()}
            )
    return text
