"""Class names and prompt templates in both languages, one JSON file per data set, and class
indices by name.

    {"folders": [key of each class in the source's label order],
     "en": {"names": [...], "alternates": {"name": ["synonym", ...]}, "templates": [...]}, "zh": {...}}

`plain_names` of a language are shorter names that captions have for some classes: `eval` also says
what they give. `one_thing` lists pairs of classes, by folder, that are one thing in both
languages; `gap_remark` says why scores in the two languages do not compare. `{"subset_of":
"imagenet", "folders": [...]}` takes the names and templates of these folders from another file.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.data.pair import LANGUAGES, Language

FOLDER = Path(__file__).parent
_COMPACT = "compact"  # templates alone
_HINT = Message("restore the published file, or download the data set again")


@dataclass(frozen=True)
class Prompts:
    """The class `folders` in label order and, per language, the classes' names, synonyms of names,
    and templates.

    `one_thing` are pairs of class numbers that nobody can tell apart by name in either language.
    `gap_remark` says why a difference between the languages is one of the question; empty where it
    is not. `plain_names` are other names for some of the names.
    """

    folders: list[str]
    names: dict[Language, list[str]]
    alternates: dict[Language, dict[str, list[str]]]
    templates: dict[Language, list[str]]
    one_thing: list[tuple[int, int]] = field(default_factory=list)
    gap_remark: str = ""
    plain_names: dict[Language, dict[str, str]] = field(default_factory=dict)


def languages(name: str) -> list[Language]:
    """The languages of a data set's class names, English first; none without a file."""
    return sorted(read(name).names) if (FOLDER / f"{name}.json").is_file() else []


@functools.cache
def read(name: str) -> Prompts:
    """A data set's class names and its own templates."""
    content = _json(name)
    if "subset_of" in content:
        parent = read(content["subset_of"])
        folders = content["folders"]
        place = {folder: number for number, folder in enumerate(parent.folders)}
        chosen = {
            language: [names[place[folder]] for folder in folders]
            for language, names in parent.names.items()
        }
        pairs = [[parent.folders[number] for number in pair] for pair in parent.one_thing]
        same = _numbered(pairs, folders)
        return Prompts(
            folders, chosen, parent.alternates, parent.templates, same, parent.gap_remark
        )
    entries = {language: content[language] for language in LANGUAGES if language in content}
    return Prompts(
        folders=content["folders"],
        names={language: entry["names"] for language, entry in entries.items()},
        alternates={language: entry.get("alternates", {}) for language, entry in entries.items()},
        templates={language: entry["templates"] for language, entry in entries.items()},
        one_thing=_numbered(content.get("one_thing", []), content["folders"]),
        gap_remark=content.get("gap_remark", ""),
        plain_names={
            language: entry["plain_names"]
            for language, entry in entries.items()
            if "plain_names" in entry
        },
    )


def all_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.json") if file.stem != _COMPACT)


def texts(language: Language) -> list[str]:
    """All class names, and each template with one of them: what `eval` asks models with."""
    queries = list[str]()
    for prompts in (read(name) for name in all_names()):
        names = prompts.names.get(language, [])
        templates = prompts.templates.get(language, [])
        queries += names
        queries += [
            template.replace("{}", name) for template, name in zip(templates, names, strict=False)
        ]
    return list(dict.fromkeys(queries))


def compact(language: Language) -> tuple[str, ...]:
    """A few generic templates for any data set."""
    return tuple(_json(_COMPACT)[language])


def _numbered(pairs: Sequence[Sequence[str]], folders: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs of folders as class numbers; a pair of which one is missing is left out."""
    place = {folder: number for number, folder in enumerate(folders)}
    return [
        (place[first], place[second])
        for first, second in pairs
        if first in place and second in place
    ]


def _json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def normalized(name: str) -> str:
    """A name without case and punctuation, for comparisons."""
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


class ClassIndex:
    """Finds a class by its folder's key, by its number as a folder's name, or by one of its
    English names.

    So labels of another source mean the same classes. A source whose classes are in another order
    gives scores near chance, or plausible wrong ones: its list of names is compared name by name.
    """

    def __init__(self, prompts: Prompts) -> None:
        self.folders = prompts.folders
        self._numbers: dict[str, int | None] = {}
        synonyms = prompts.alternates.get("en", {})
        for number, name in enumerate(prompts.names.get("en", [])):
            for key in map(normalized, (name, *synonyms.get(name, []))):
                shared = self._numbers.get(key, number) != number
                self._numbers[key] = None if shared else number
        self._numbers |= {
            normalized(folder): number for number, folder in enumerate(prompts.folders)
        }

    def find(self, name: str) -> int | None:
        """The class's number; None for a name that no class has, or that two classes share."""
        return self._numbers.get(normalized(name))

    def of_folder(self, name: str) -> int | None:
        """The class whose images are in a folder of that name: its key, its name, or its number."""
        number = self.find(name)
        if number is None and name.isdecimal() and int(name) < len(self.folders):
            return int(name)
        return number

    def order(self, names: Sequence[str], where: str, own_order: bool) -> np.ndarray:
        """(C,) the number here of each class in a separately published list, in our order if
        `own_order`.
        """
        if not own_order:
            return self.mapping(names, where)
        self.check_order(names, where)
        return np.arange(len(names))

    def mapping(self, names: Sequence[str], where: str) -> np.ndarray:
        """(C,) the number here of each class there. Raises DcclipError unless `names` has every
        class once.

        For lists that come with the images' own folders or files, which cannot be shuffled
        independently of them.
        """
        numbers = [self.find(name) for name in names]
        for name, number in zip(names, numbers, strict=True):
            if number is None:
                raise DcclipError("{}: unknown class {}", _HINT, where, name)
        if lacking := sorted(set(range(len(self.folders))) - set(numbers)):
            raise DcclipError("{}: class {} is missing", _HINT, where, self.folders[lacking[0]])
        return np.asarray(numbers)

    def check_order(self, names: Sequence[str], where: str) -> None:
        """Raise DcclipError unless a separately published list has the same classes in the same
        order.

        An unknown name is accepted as another wording; a name of another class means a wrong
        order.
        """
        if len(names) != len(self.folders):
            raise DcclipError(
                "{} has {:,} classes instead of {:,}", _HINT, where, len(names), len(self.folders)
            )
        numbers = [self.find(name) for name in names]
        for index, number in enumerate(numbers):
            if number is not None and number != index and numbers[number] != number:
                expected = self.folders[index]
                raise DcclipError(
                    "{}: class {} is {!r} instead of {!r}",
                    _HINT,
                    where,
                    index,
                    names[index],
                    expected,
                )
