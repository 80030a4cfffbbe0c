"""dcclip distills a large Chinese-English CLIP into a small one, from data to device.

import dcclip_cli as dcclip

dcclip.distill("recipe.yaml", steps=300)  # likewise collect, align, evaluate, export, run, compare, push, trim
dcclip.load("runs/quickstart").predict("img.jpg", ["猫", "dog"])
"""

from __future__ import annotations

from dcclip_cli.errors import DcclipError
from dcclip_cli.versions import VERSION as __version__

TYPE_CHECKING = False  # typing takes a while to import
if TYPE_CHECKING:
    from dcclip_cli.api import align, collect, compare, distill, evaluate, export, push, run, sweep, trim
    from dcclip_cli.predict.model import load

_FUNCTIONS = ("align", "collect", "compare", "distill", "evaluate", "export", "load", "push", "run", "sweep", "trim")
__all__ = [
    "DcclipError", "__version__", "align", "collect", "compare", "distill", "evaluate", "export", "load", "push",
    "run", "sweep", "trim",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The functions of the API, imported when they are first used."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "load":  # without recipes and pydantic, so that a prediction starts fast
        from dcclip_cli.predict.model import load

        return load
    from dcclip_cli import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})
