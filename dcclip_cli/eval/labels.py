"""Does a source mean the same by class number 7 as we do?

A list in another order gives figures near chance, or, worse, ones that look right: it is compared name by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.prompts import Prompts

_HINT = "put the file back as it was published, or fetch the data set again"


def plain(name: str) -> str:
    """A name as it is compared: no case, no punctuation."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


class ClassKeys:
    """Finds a class by its folder's key, by its number as a folder's name, or by one of its names."""

    def __init__(self, prompts: Prompts) -> None:
        self.folders = prompts.folders
        self._places: dict[str, int | None] = {}
        names = prompts.names.get("en", [])
        synonyms = [prompts.alternates.get("en", {}).get(name, []) for name in names]
        for number, name in [
            *((number, one) for number, several in enumerate(synonyms) for one in several),
            *enumerate(names),
        ]:
            known = plain(name)
            self._places[known] = number if self._places.get(known, number) == number else None  # of two classes
        self._places |= {plain(folder): number for number, folder in enumerate(prompts.folders)}

    def find(self, said: str) -> int | None:
        """The class's number; None for what is no class, or might be two."""
        return self._places.get(plain(said))

    def of_folder(self, name: str) -> int | None:
        """The class whose images a folder of that name has: its key, its name, or its number."""
        found = self.find(name)
        if found is None and name.isdecimal() and int(name) < len(self.folders):
            return int(name)
        return found

    def mapping(self, said: Sequence[str], where: str) -> np.ndarray:
        """(C,) our number for each of theirs, told by the names. Raises DcclipError unless every class is there once.

        For lists that come with the images' own folders or files, so that they can't be shuffled by themselves.
        """
        found = [self.find(name) for name in said]
        for name, number in zip(said, found, strict=True):
            if number is None:
                raise DcclipError(f"{where}: {name} is no class known here", _HINT)
        if lacking := sorted(set(range(len(self.folders))) - set(found)):
            raise DcclipError(f"{where}: the class {self.folders[lacking[0]]} is missing", _HINT)
        return np.asarray(found)

    def check_order(self, said: Sequence[str], where: str) -> None:
        """Raise DcclipError unless a list that was made by itself has our classes in our order.

        A name that is unknown here is another wording; one that is another class's is a wrong order.
        """
        if len(said) != len(self.folders):
            raise DcclipError(f"{where} has {len(said):,} classes, not {len(self.folders):,}", _HINT)
        found = [self.find(name) for name in said]
        for number, other in enumerate(found):
            if other is not None and other != number and found[other] != other:
                wanted = self.folders[number]
                raise DcclipError(f"{where}: class {number} is {said[number]!r} there, {wanted!r} is expected", _HINT)
