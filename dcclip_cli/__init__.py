"""dcclip distills a large Chinese-English CLIP into a small one, from data to device.

import dcclip_cli as dcclip

dcclip.distill("recipe.yaml", steps=300)  # likewise new, collect, index, align, evaluate, export, run, sweep, ...
dcclip.load("runs/quickstart").predict("img.jpg", ["猫", "dog"])
"""

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.versions import VERSION as __version__

TYPE_CHECKING = False  # typing takes a while to import
if TYPE_CHECKING:
    from dcclip_cli.api import (
        align,
        collect,
        compare,
        compare_variants,
        datasets,
        distill,
        evaluate,
        export,
        fit,
        index,
        new,
        push,
        run,
        sweep,
        trim,
    )
    from dcclip_cli.inference.bench import bench
    from dcclip_cli.inference.model import load
    from dcclip_cli.photos.calibrate import calibrate
    from dcclip_cli.photos.duplicates import duplicates
    from dcclip_cli.photos.files import embed, predict, search

_LIGHT = {  # without recipes
    "bench": "inference.bench", "calibrate": "photos.calibrate", "load": "inference.model",
    "embed": "photos.files", "predict": "photos.files", "search": "photos.files",
    "duplicates": "photos.duplicates",
}  # fmt: skip
__all__ = [
    "DcclipError", "__version__", "align", "bench", "calibrate", "collect", "compare", "compare_variants",
    "datasets", "distill", "duplicates", "embed", "evaluate", "export", "fit", "index", "load", "new", "predict",
    "push", "run", "search", "sweep", "trim",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The functions of the API, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LIGHT.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
