"""The version of dcclip, versions of the libraries that a result depends on, and the packages of
each extra.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

VERSION = "0.2.0"
LIBRARIES = (
    "dcclip", "torch", "open_clip_torch", "timm", "transformers", "tokenizers", "onnxruntime", "numpy", "pillow",
)  # fmt: skip
# Packages that are imported by another name.
_MODULES = {
    "open_clip_torch": "open_clip",
    "scikit_learn": "sklearn",
    "pillow_jxl_plugin": "pillow_jxl",
}


@cache
def extras() -> dict[str, list[str]]:
    """The packages by the extra that installs them, smaller extras first; none where dcclip is not
    installed.
    """
    from importlib.metadata import PackageNotFoundError, requires

    packages_by_extra: dict[str, list[str]] = {}
    with suppress(PackageNotFoundError):
        for requirement in requires("dcclip") or ():
            match = re.fullmatch(r"""([\w-]+)[^;]*; extra == ['"](\w+)['"]""", requirement)
            if match and match[2] not in ("all", "dev", "docs"):
                name = match[1].replace("-", "_").lower()
                packages_by_extra.setdefault(match[2], []).append(_MODULES.get(name, name))
    return dict(sorted(packages_by_extra.items(), key=lambda extra: len(extra[1])))


def versions(libraries: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the installed libraries by name; `libraries` are those that only some results
    depend on.
    """
    from importlib.metadata import PackageNotFoundError, version

    installed = {}
    for name in (*LIBRARIES, *libraries):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
