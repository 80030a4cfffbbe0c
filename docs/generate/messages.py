"""Writes the catalogue of messages: dcclip_cli/locale/zh/LC_MESSAGES/dcclip.po, and dcclip.mo,
which dcclip reads.

    python -m docs.generate.messages

Translate what is empty in dcclip.po, and run it again. tests/test_messages.py fails while anything
is missing.
"""

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment, nodes
from typer import rich_utils
from typer.main import get_command

from dcclip_cli.cli.app import app
from dcclip_cli.core.errors import DOMAIN, LOCALES
from dcclip_cli.curation.report import _explanations
from dcclip_cli.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
FILE = LOCALES / "zh" / "LC_MESSAGES" / f"{DOMAIN}.po"
# Calls whose first arguments are messages, and how many.
CALLS = {"Message": 1} | dict.fromkeys(
    (
        "DcclipError",
        "AgainError",
        "NotFiniteError",
        "RefusedError",
        "ImageError",
        "TooManyPixelsError",
    ),
    2,
)
TYPER = "typer"
HEADER = """\
# Messages of dcclip in Chinese, written by docs/generate/messages.py.
msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Language: zh\\n"

"""


def in_code() -> Iterator[tuple[str, str]]:
    """The messages in the package's code, each with its file."""
    for file in sorted((ROOT / "dcclip_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for argument in node.args[: CALLS.get(node.func.id, 0)]:
                    if (
                        isinstance(argument, ast.Constant)
                        and isinstance(argument.value, str)
                        and argument.value
                    ):
                        yield argument.value, file.relative_to(ROOT).as_posix()


def in_help(command: Any) -> Iterator[tuple[str, str]]:
    """The help of a command, of its options and of the commands in it."""
    for part in (command, *command.params):
        for text in (getattr(part, "help", None), getattr(part, "rich_help_panel", None)):
            if text:
                yield text, "dcclip_cli/cli"
    for each in getattr(command, "commands", {}).values():
        yield from in_help(each)


def in_schema(part: Any) -> Iterator[tuple[str, str]]:
    """The descriptions of recipe keys."""
    if isinstance(part, dict) and isinstance(part.get("description"), str):
        yield part["description"], "dcclip_cli/recipe/schema.py"
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from in_schema(each)


def in_templates() -> Iterator[tuple[str, str]]:
    """The messages in the templates of HTML reports, and the drop reasons in them."""
    for file in sorted((ROOT / "dcclip_cli").rglob("*.j2")):
        for call in Environment().parse(file.read_text("utf-8")).find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in ("_", "message"):
                first = call.args[0]
                for each in (
                    first.find_all(nodes.Const) if isinstance(first, nodes.CondExpr) else call.args
                ):
                    if isinstance(each, nodes.Const) and isinstance(each.value, str):
                        yield each.value, file.relative_to(ROOT).as_posix()
    for step, meanings in _explanations().items():
        for text in (step, *(meaning.partition(" | ")[0] for meaning in meanings.values())):
            if text:
                yield text, "dcclip_cli/curation/report/reasons.yaml"


def of_typer() -> Iterator[tuple[str, str]]:
    """The words of Typer, which it looks up in the catalogue by gettext."""
    names = (
        "DEFAULT_STRING",
        "REQUIRED_LONG_STRING",
        "ARGUMENTS_PANEL_TITLE",
        "OPTIONS_PANEL_TITLE",
    )
    for name in (*names, "COMMANDS_PANEL_TITLE", "ERRORS_PANEL_TITLE", "ABORTED_TEXT", "RICH_HELP"):
        yield getattr(rich_utils, name), TYPER


def extracted(before: Catalog) -> Catalog:
    """The catalogue of the messages that there are now, with the translations in the one `before`."""
    catalog = Catalog(locale="zh", domain=DOMAIN, fuzzy=False)
    for text, file in (
        *of_typer(),
        *in_help(get_command(app)),
        *in_code(),
        *in_templates(),
        *in_schema(Recipe.model_json_schema()),
    ):
        known = before.get(text)
        catalog.add(text, known.string if known else "", [(file, 1)])
    return catalog


def po(catalog: Catalog) -> bytes:
    """The text of dcclip.po."""
    file = BytesIO()
    write_po(file, catalog, width=120, include_lineno=False, omit_header=True)
    return HEADER.encode() + file.getvalue()


def mo(catalog: Catalog) -> bytes:
    """The bytes of dcclip.mo."""
    file = BytesIO()
    catalog.creation_date = catalog.revision_date = datetime(
        2026, 1, 1, tzinfo=UTC
    )  # not another file each time
    write_mo(file, catalog)
    return file.getvalue()


def read() -> Catalog:
    """The catalogue in dcclip.po."""
    with FILE.open("rb") as file:
        return read_po(file, locale="zh", domain=DOMAIN)


def main() -> None:
    catalog = extracted(read() if FILE.exists() else Catalog(locale="zh"))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(po(catalog))
    FILE.with_suffix(".mo").write_bytes(mo(catalog))
    missing = sum(not message.string for message in catalog if message.id)
    print(f"{FILE.relative_to(ROOT)}: {len(catalog)} messages, {missing} without a translation")


if __name__ == "__main__":
    main()
