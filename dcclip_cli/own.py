"""Own parts: classes named `package.module:Class` in a recipe, imported because it names them."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PlainSerializer, WrapValidator

from dcclip_cli.errors import DcclipError, Message

# What faulty code raises; torch's OutOfMemoryError, a RuntimeError, is about the machine.
_MISTAKES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)
_unsaid: list[str] = []


def is_own(name: object) -> bool:
    """Whether a kind or format is the name of a class outside of dcclip."""
    return isinstance(name, str) and ":" in name


def imported(name: str, base: type[Any]) -> type[Any]:
    """The class of that name. Raises ValueError unless it can be imported and is a subclass of `base`."""
    module, _, attribute = name.partition(":")
    known = module in sys.modules
    try:
        found = getattr(importlib.import_module(module), attribute)
    except _MISTAKES as error:
        raise ValueError(
            Message("{} cannot be imported: {} (install its package, or set PYTHONPATH)", name, _said(error, module))
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(Message("{} is no subclass of {}.{}", name, base.__module__, base.__name__))
    if issubclass(found, BaseModel) and found.model_fields["kind"].annotation is not str:
        raise ValueError(Message("{} must have the field `kind: str`, which receives its name here", name))
    if not known:
        _unsaid.append(Message("the recipe's own parts: code from {}", sys.modules[module].__file__))
    return found


def news() -> Iterator[str]:
    """A line for each module that was imported, once."""
    while _unsaid:
        yield _unsaid.pop(0)


def own_options(base: type[BaseModel]) -> WrapValidator:
    """Lets a section with a `kind` be an own subclass of `base`, whose fields are then its keys."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, dict) and is_own(value.get("kind")):
            return imported(value["kind"], base).model_validate(value)
        return value if isinstance(value, base) else handler(value)

    return WrapValidator(validate)


def own_name(base: type[Any]) -> tuple[WrapValidator, PlainSerializer]:
    """Lets a value be the name of an own subclass of `base`."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        if not is_own(value):
            return handler(value)
        imported(value, base)
        return value

    return WrapValidator(validate), PlainSerializer(str)


@contextmanager
def own_errors(name: str) -> Iterator[None]:
    """Let what the own part `name` does wrong in the block be an error of one line, with its file and line."""
    try:
        yield
    except _MISTAKES as error:
        if not is_own(name) or isinstance(error, DcclipError) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise DcclipError("{}: {}", "correct it there", name, _said(error, name.partition(":")[0])) from error


def _said(error: BaseException, module: str) -> str:
    """An exception in one line, with the last place in the module's own file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
