"""Class indices by folder key, number or name, so that labels of another source mean the same classes.

A source whose classes are in another order gives scores near chance, or plausible wrong ones: compare name by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.prompts import Prompts

_HINT = "restore the published file, or download the data set again"


def normalized(name: str) -> str:
    """A name without case and punctuation, for comparisons."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


class ClassIndex:
    """Finds a class by its folder's key, by its number as a folder's name, or by one of its English names."""

    def __init__(self, prompts: Prompts) -> None:
        self.folders = prompts.folders
        self._numbers: dict[str, int | None] = {}
        names = prompts.names.get("en", [])
        synonyms = [prompts.alternates.get("en", {}).get(name, []) for name in names]
        for number, name in [
            *((number, one) for number, several in enumerate(synonyms) for one in several),
            *enumerate(names),
        ]:
            key = normalized(name)
            self._numbers[key] = number if self._numbers.get(key, number) == number else None  # two classes share it
        self._numbers |= {normalized(folder): number for number, folder in enumerate(prompts.folders)}

    def find(self, name: str) -> int | None:
        """The class's number; None for a name that no class has, or that two classes share."""
        return self._numbers.get(normalized(name))

    def of_folder(self, name: str) -> int | None:
        """The class whose images are in a folder of that name: its key, its name, or its number."""
        found = self.find(name)
        if found is None and name.isdecimal() and int(name) < len(self.folders):
            return int(name)
        return found

    def order(self, names: Sequence[str], where: str, own_order: bool) -> np.ndarray:
        """(C,) the number here of each class in a separately published list, in our order if `own_order`."""
        if not own_order:
            return self.mapping(names, where)
        self.check_order(names, where)
        return np.arange(len(names))

    def mapping(self, names: Sequence[str], where: str) -> np.ndarray:
        """(C,) the number here of each class there. Raises DcclipError unless `names` has every class once.

        For lists that come with the images' own folders or files, which cannot be shuffled independently of them.
        """
        found = [self.find(name) for name in names]
        for name, number in zip(names, found, strict=True):
            if number is None:
                raise DcclipError(f"{where}: {name} is not a known class", _HINT)
        if lacking := sorted(set(range(len(self.folders))) - set(found)):
            raise DcclipError(f"{where}: the class {self.folders[lacking[0]]} is missing", _HINT)
        return np.asarray(found)

    def check_order(self, names: Sequence[str], where: str) -> None:
        """Raise DcclipError unless a separately published list has the same classes in the same order.

        An unknown name is accepted as another wording; a name of another class means a wrong order.
        """
        if len(names) != len(self.folders):
            raise DcclipError(f"{where} has {len(names):,} classes, not {len(self.folders):,}", _HINT)
        found = [self.find(name) for name in names]
        for number, other in enumerate(found):
            if other is not None and other != number and found[other] != other:
                expected = self.folders[number]
                raise DcclipError(f"{where}: class {number} is {names[number]!r}, {expected!r} is expected", _HINT)
