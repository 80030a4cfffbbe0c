"""Chinese and English words for ImageNet's classes, for things near them, and for scenes and
people.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wordnet import WordNet

HERE = Path(__file__).parent
NAMES = HERE.parent.parent / "dcclip_cli/data/prompts/imagenet.json"
LANGUAGES = ("zh", "en")


@dataclass
class Meaning:
    """One set of classes with every word for it, the name proper first."""

    classes: frozenset[int]
    words: dict[str, list[str]] = field(
        default_factory=lambda: {language: [] for language in LANGUAGES}
    )


class Scene(NamedTuple):
    """Words for what is in photographs of some classes, such as people, and how much they count in
    a text.
    """

    words: list[str]
    weight: float
    classes: list[int]


class More(NamedTuple):
    """A word in both languages, each with its other forms or without any, and the key of its
    nearest kind.
    """

    en: list[str]
    zh: list[str]
    kind: str


def lines(name: str) -> list[list[str]]:
    """The cells of a file of tab-separated values, without comments."""
    text = (HERE / name).read_text("utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def read_scenes() -> list[Scene]:
    """scenes.tsv, in its order."""
    folders = read_names()["folders"]
    return [
        Scene(
            [*en.split(";"), *zh.split(";")],
            float(weight),
            [folders.index(one) for one in classes.split()],
        )
        for weight, en, zh, classes in lines("scenes.tsv")
    ]


def read_more() -> list[More]:
    """more_words.tsv: things without a class of their own."""
    several = (
        [[word for word in words.split(";") if word] for words in row[:2]]
        for row in lines("more_words.tsv")
    )
    kinds = (row[2].rpartition(".")[2] for row in lines("more_words.tsv"))
    return [More(*words, kind) for words, kind in zip(several, kinds, strict=True)]


def plural(word: str) -> str:
    """The regular plural of an English word."""
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"


def read_names() -> dict[str, dict[str, list]]:
    """The class names that the evaluation uses, folders and templates included."""
    return json.loads(NAMES.read_text("utf-8"))


def read_words(under: dict[str, frozenset[int]]) -> list[Meaning]:
    """words.tsv: everyday words with the classes that they hold for. A word on two lines means
    both.
    """
    meanings = []
    for line in (HERE / "words.tsv").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        en, zh, synsets = line.split("\t")
        classes = frozenset().union(
            *(under[synset.rpartition(".")[2]] for synset in synsets.split())
        )
        meanings.append(Meaning(classes, {"en": en.split(";"), "zh": zh.split(";")}))
    return meanings


def read_meanings(net: WordNet, everyday: list[Meaning]) -> list[Meaning]:
    """Class names, their synonyms and the everyday words, one Meaning for each set of classes.

    A name by which the evaluation knows a class means that class alone; any other word means all
    it is listed with.
    """
    names = read_names()
    collected: dict[frozenset[int], Meaning] = {}
    for language in LANGUAGES:
        proper: dict[str, set[int]] = defaultdict(set)
        further: dict[str, set[int]] = defaultdict(set)
        synonyms: dict[str, set[int]] = defaultdict(set)
        for number, name in enumerate(names[language]["names"]):
            proper[name].add(number)
            synonyms[re.sub(r"\s*[(（].*[)）]", "", name)].add(number)
            for other in _synonyms(net, names, language, number):
                synonyms[other].add(number)
        for meaning in everyday:
            for word in meaning.words[language]:
                further[word] |= meaning.classes
        known = {word.casefold() for word in proper}
        for words in (proper, further, synonyms):
            for word, classes in words.items():
                if words is not proper and word.casefold() in known:
                    continue
                key = frozenset(classes)
                collected.setdefault(key, Meaning(key)).words[language].append(word)
            known |= {word.casefold() for word in words}
    return sorted(
        collected.values(), key=lambda meaning: (len(meaning.classes), sorted(meaning.classes))
    )


def _synonyms(net: WordNet, names: dict, language: str, number: int) -> list[str]:
    if language == "zh":
        return names["zh"]["alternates"].get(names["zh"]["names"][number], [])
    return list(net.synsets[names["folders"][number]].words)
