"""Extensions: classes named `package.module:Class` in a recipe, imported because it names them."""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    WrapValidator,
    create_model,
)

from dcclip_cli.core.errors import DcclipError, Message

# What faulty code raises; torch's OutOfMemoryError, a RuntimeError, is about the machine.
_MISTAKES = (
    *(
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        RuntimeError,
    ),
    *(SyntaxError, TypeError, ValueError),
)
_NAME = re.compile(r"[\w.]+:\w+")
_announcements: list[str] = []
_announce: Callable[[str], object] = _announcements.append
_classes: dict[str, type[Any]] = {}  # that were imported, by name
_importing = True


def is_extension(name: object) -> bool:
    """Whether a kind or format is the name of a class outside of dcclip."""
    return isinstance(name, str) and ":" in name


def import_class(name: str, base: type[Any]) -> type[Any]:
    """The class of that name. Raises ValueError unless it can be imported and is a subclass of
    `base`.
    """
    module, _, attribute = name.partition(":")
    if not _NAME.fullmatch(name):
        raise ValueError(Message("{!a} does not have the form MODULE:CLASS", name))
    try:
        if module not in sys.modules:
            _announce(Message("the recipe uses your own code from {}", _file_of(module) or module))
        part = getattr(importlib.import_module(module), attribute)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        hint = Message(
            "install its package, or put it in a file of its own and set PYTHONPATH"
        )  # of __main__ as well
        raise ValueError(
            Message("{} cannot be imported: {} ({})", name, _in_one_line(error, module), hint)
        ) from None
    if not (isinstance(part, type) and issubclass(part, base)):
        raise ValueError(
            Message("{} is not a subclass of {}.{}", name, base.__module__, base.__name__)
        )
    if issubclass(part, BaseModel) and part.model_fields["kind"].annotation is not str:
        raise ValueError(
            Message(
                "{} must have the field `kind: str`, which receives the name used in the recipe",
                name,
            )
        )
    if abstract := ", ".join(sorted(getattr(part, "__abstractmethods__", ()))):
        raise ValueError(Message("{} lacks the method {}", name, abstract))
    _classes[name] = part
    return part


def import_notices() -> Iterator[str]:
    """A line for each file that code was imported from, once; none of those that were announced."""
    while _announcements:
        yield _announcements.pop(0)


def announce_imports(announce: Callable[[str], object]) -> None:
    """From now on, name a file before its code is imported."""
    global _announce
    _announce = announce


@contextmanager
def without_importing() -> Iterator[None]:
    """In the block, extensions that were not imported before are only their keys: for the recipes
    of strangers.
    """
    global _importing
    importing = _importing
    _importing = False
    try:
        yield
    finally:
        _importing = importing


class _AnyKeys(BaseModel):
    model_config = ConfigDict(extra="allow")


def extension_options(base: type[BaseModel]) -> WrapValidator:
    """Lets a section with a `kind` be an extension, a subclass of `base`, whose fields are then
    its keys.
    """

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        name = str(value.get("kind")) if isinstance(value, dict) else ""
        if not is_extension(name):
            return value if isinstance(value, base) else handler(value)
        if not _importing and name not in _classes:
            keys_alone: Any = create_model("KeysAlone", __base__=(base, _AnyKeys), kind=(str, ...))
            keys_alone.__abstractmethods__ = frozenset()
            return keys_alone.model_validate(value)
        part = import_class(name, base)
        try:
            return part.model_validate(value)
        except ValidationError:
            raise
        except _MISTAKES as error:
            raise ValueError(
                Message("{}: {}", name, _in_one_line(error, name.partition(":")[0]))
            ) from None

    return WrapValidator(validate)


def extension_name(base: type[Any]) -> tuple[WrapValidator, PlainSerializer]:
    """Lets a value be the name of an extension, a subclass of `base`."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        if not is_extension(value):
            return handler(value)
        if _importing:
            import_class(value, base)
        return value

    return WrapValidator(validate), PlainSerializer(str)


@contextmanager
def extension_errors(name: str) -> Iterator[None]:
    """Let what the extension `name` does wrong in the block be an error of one line, with its file
    and line.
    """
    try:
        yield
    except _MISTAKES as error:
        if (
            not is_extension(name)
            or isinstance(error, DcclipError)
            or type(error).__name__ == "OutOfMemoryError"
        ):
            raise
        line = _in_one_line(error, name.partition(":")[0])
        raise DcclipError("{}: {}", "fix the error in that file", name, line) from error


def _file_of(module: str) -> str | None:
    """The file of a module, or, where it is not imported, of the package that it is in."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None)
    package = PathFinder.find_spec(module.partition(".")[0])
    return package.origin if package else None


def _in_one_line(error: BaseException, module: str) -> str:
    """An exception in one line, with the last place in the module's own file."""
    file = _file_of(module)
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
    ]
    where = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
