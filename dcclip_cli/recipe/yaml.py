"""Reading of a recipe's YAML into plain values, with the file and line of each value.

Only plain YAML is read: mappings, sequences and scalars with the YAML 1.2 meaning (`no` and
`12:30` are text, `1e-3` is a number). Tags, anchors and aliases are refused: a recipe cannot
create Python objects or expand without bound.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import read_bytes, refuse_special
from dcclip_cli.core.text import not_utf8

Location = tuple[str | int, ...]

MAX_BYTES = 1_000_000
_MAX_DEPTH = 30
_NAME = "name"
_WORDS = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "true": True,
    "True": True,
    "false": False,
    "False": False,
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
KEYS_HINT = Message("list all keys of a recipe with: dcclip recipe schema")
ARGUMENTS = "arguments"  # the place of values given in Python


@dataclass
class Document:
    """A recipe's plain values and the place of each: `file:line`, or the override that gave it."""

    values: dict[str, Any]
    places: dict[Location, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """The place of `location`, or of its nearest parent if it is missing."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places[location]

    def override(self, expression: str) -> None:
        """Apply one `--set a.b=value`: the value is YAML, a path in it is relative to the current
        directory.
        """
        place = f"--set {expression}"
        key, equals, text = expression.partition("=")
        if not equals or not all(key.split(".")) or key.count(".") > _MAX_DEPTH:
            raise DcclipError(
                "{}: expected KEY=VALUE",
                "write KEY=VALUE, for example: --set distill.epochs=3",
                place,
            )
        self._put(key, _parse(text, place)[0], place)

    def set(self, key: str, value: Any, place: str = ARGUMENTS) -> None:
        """Set a Python value by its dotted key; a mapping changes only the keys in it."""
        if isinstance(value, Mapping) and value:
            for name, item in value.items():
                self.set(f"{key}.{name}", item, place)
        else:
            self._put(key, value, place)

    def _put(self, key: str, value: Any, place: str) -> None:
        """Set a value by its dotted key, creating sections on the way."""
        steps = key.split(".")
        container: Any = self.values
        location: Location = ()
        for number, step in enumerate(steps, 1):
            at: str | int = step
            where = ".".join(map(str, location))
            if isinstance(container, list):
                if step not in map(str, range(len(container))):
                    problem = Message(
                        "{}: {} is a list of {} entries, numbered from 0",
                        place,
                        where,
                        len(container),
                    )
                    raise DcclipError(problem, Message("use a number, for example {}.0", where))
                at = int(step)
            elif not isinstance(container, dict):
                hint = Message("to replace it, set {} itself, not a key in it", where)
                raise DcclipError(
                    "{}: {} is {}, not a section", hint, place, where, _kind(container)
                )
            location = (*location, at)
            if number == len(steps):
                container[at] = value if at == _NAME else anchored(value, Path.cwd())
            elif isinstance(container, dict) and container.get(step) is None:
                container[step] = {}
            self.places.setdefault(location, place)
            container = container[at]
        self.places = {
            at: line for at, line in self.places.items() if at[: len(location)] != location
        }
        self.places[location] = place


def read(path: Path) -> tuple[str, Document]:
    """A recipe file's text and its document, relative paths in it anchored to the file's own
    folder.
    """
    refuse_special(path)
    try:
        content = read_bytes(path, MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DcclipError(
            "{} does not exist", "give a recipe, for example recipes/quickstart.yaml", path
        ) from None
    except IsADirectoryError:
        raise DcclipError(
            "{} is a folder, not a recipe", "give the YAML file in this folder", path
        ) from None
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    if len(content) > MAX_BYTES:
        raise DcclipError(
            "{} is larger than {:,} bytes", "check that this is a recipe", path, MAX_BYTES
        )
    values, places = _parse(text, str(path), numbered=True)
    if not isinstance(values, dict):
        raise DcclipError(
            "{}: expected sections such as `distill:`, found {}", KEYS_HINT, path, _kind(values)
        )
    return text, Document(anchored(values, path.resolve().parent), places)


def anchored(value: Any, folder: Path) -> Any:
    """A copy of `value` with the relative paths in it made absolute, as seen from `folder`.

    A Path, and a text like `./a` or `../a`, is a path; any other text names an entry of a hub or
    registry, and a `name` is never a path.
    """
    if isinstance(value, Mapping):
        return {
            key: item if key == _NAME else anchored(item, folder) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [anchored(item, folder) for item in value]
    named = isinstance(value, str) and (
        value in (".", "..") or value.startswith(("./", "../", "/"))
    )
    return str((folder / value).resolve()) if named or isinstance(value, os.PathLike) else value


def _parse(text: str, name: str, numbered: bool = False) -> tuple[Any, dict[Location, str]]:
    """The values in a YAML text and the place of each; all places are `name`, `numbered` adds the
    line to it.
    """

    def place(line: int) -> str:
        return f"{name}:{line + 1}" if numbered else name

    mistakes: list[str] = []
    places: dict[Location, str] = {(): place(0)}

    def build(node: yaml.Node, at: Location) -> Any:
        if isinstance(node, yaml.ScalarNode):
            text: str = node.value
            if node.style is not None:  # quoted or a block: text, whatever it looks like
                return text
            if text in _WORDS or _INTEGER.fullmatch(text):
                return _WORDS[text] if text in _WORDS else int(text)
            return float(text) if _FLOAT.fullmatch(text) else text
        if isinstance(node, yaml.SequenceNode):
            places.update(
                {(*at, index): place(item.start_mark.line) for index, item in enumerate(node.value)}
            )
            return [build(item, (*at, index)) for index, item in enumerate(node.value)]
        result: dict[str, Any] = {}
        for key, item in node.value:
            location = (*at, str(key.value))
            where = place(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                mistakes.append(Message("{}: {}", where, Message("a key must be text")))
            elif key.value in result:
                problem = Message(
                    "duplicate key (first on line {})", places[location].rpartition(":")[2]
                )
                mistakes.append(Message("{}: {}: {}", where, ".".join(map(str, location)), problem))
            else:
                places[location] = where
                result[key.value] = build(item, location)
        return result

    try:
        node = _PlainLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line if mark else 0) + (
            f":{mark.column + 1}" if mark and numbered else ""
        )
        problem = error.problem or Message("invalid YAML")
        if problem.startswith("but "):
            problem = Message("{}, {}", error.context, problem)
        raise DcclipError(
            "{}: {}", "fix the YAML on this line or the line above", where, problem
        ) from None
    except yaml.reader.ReaderError as error:
        where = place(text.count("\n", 0, error.position))
        raise DcclipError(
            "{}: unreadable character #x{:04x}", "remove it", where, error.character
        ) from None
    values = build(node, ()) if node else None
    if mistakes:
        raise DcclipError(joined("\n", mistakes), KEYS_HINT)
    return values, places


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes, refusing what a recipe has no use for."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = Message(
                "remove anchors (&) and aliases (*); quote text that starts with these characters"
            )
        elif getattr(event, "tag", None):
            problem = Message("remove tags ({}); quote text that starts with !", event.tag)
        elif self.depth > _MAX_DEPTH:
            problem = Message("more than {} levels of nesting", _MAX_DEPTH)
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _kind(value: Any) -> str:
    if value is None:
        return Message("nothing")
    if isinstance(value, list):
        return Message("a list")
    return Message("a section") if isinstance(value, dict) else repr(value)


def walk(value: Any, at: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every scalar in nested dicts and lists, with its location."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(item, (*at, key))
    else:
        yield at, value
