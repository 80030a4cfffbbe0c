"""Running a model: from a bundle without torch, or from anything with it."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """This package, which has the name of a function of the API: `dcclip.predict(...)` calls that."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    @property
    def _function(self) -> Any:
        return importlib.import_module(f"{__name__}.files").predict

    @property
    def __signature__(self) -> Any:
        return inspect.signature(self._function)


sys.modules[__name__].__class__ = _Package
