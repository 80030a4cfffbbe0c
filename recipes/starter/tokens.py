"""The tokens of the starter's text tower, each with its place: words in both languages, and
characters.

A word has the place of what it names, or of what photographs of it show together (mixtures.tsv),
and a weight, its length: what few photographs lack, such as people, counts less than things, and
grammar.tsv has words that count for nothing, such as measure words, or little. Words of one
meaning have one place. Each Chinese word is there as Taiwan and Hong Kong write it and call it,
too (OpenCC, regional.tsv).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, product
from pathlib import Path

import opencc
import space
import text_tower
import torch
import vocabulary
from torch import Tensor
from torch.nn.functional import normalize
from vocabulary import Meaning
from wordnet import WordNet

HERE = Path(__file__).parent
SHARE = 0.5  # of more_words.tsv, along the place of their kind; the rest is foreign
FOREIGN_WORD = (
    0.6  # weight of a word for what can't be seen, where its characters would be known words
)
EMOJI = (
    (0x2600, 0x27C0),
    (0x1F300, 0x1F650),
    (0x1F680, 0x1F700),
    (0x1F900, 0x1FA00),
    (0x1FA70, 0x1FB00),
)
MIXTURE = 0.8  # weight of a word of mixtures.tsv, unless its line has another
ABOUT = 0.1  # weight of "photo", along space.UNKNOWN
# What says nothing about a picture. `--multi-label` holds each label against the first, and people
# put "other" last.
NOTHING = (
    "something", "something else", "thing", "things", "object", "item", "stuff", "anything", "nothing", "other",
    "others", "none of these", "unknown", "东西", "别的东西", "事物", "物品", "物体", "物件", "一些东西", "任何东西",
    "什么都没有", "其他", "其它", "以上都不是", "未知",
)  # fmt: skip


class Table:
    """Places by token; the first place that a word is given stays."""

    def __init__(self) -> None:
        self.places: dict[str, Tensor] = {}
        self._normalized = text_tower.normalizer().normalize_str
        variants = ("s2t", "s2tw", "s2hk", "s2twp")
        self._traditional: list[Callable[[str], str]] = [
            opencc.OpenCC(one).convert for one in variants
        ]
        self._regional = dict(vocabulary.lines("regional.tsv"))

    def add(self, words: Iterable[str], place: Tensor, plurals: bool = False) -> None:
        """Words with their other forms, and with `plurals` those of English words."""
        for word in words:
            for form in self._forms(word, plurals):
                if token := self._normalized(form):
                    self.places.setdefault(token, place)

    def add_mixtures(self, scenes: Mapping[str, Tensor]) -> None:
        """The words of mixtures.tsv, also those that have a place; `scenes` are directions by a
        scene's first word.
        """
        mixtures = []
        for english, chinese, parts, _, *weights in vocabulary.lines("mixtures.tsv"):
            total = torch.zeros(space.WIDTH)
            for name, weight in (
                re.fullmatch(r"(.*?)(?: (0\.\d+))?", part).groups() for part in parts.split(";")
            ):
                place = scenes[name[1:]] if name.startswith("@") else self.place_of(name)
                total += float(weight or 1) * normalize(place, dim=0)
            mixtures.append(
                (
                    f"{english};{chinese}".split(";"),
                    float(*weights or [MIXTURE]) * normalize(total, dim=0),
                )
            )
        for words, place in mixtures:
            forms = (form for word in words if word for form in self._forms(word, plurals=True))
            self.places |= {self._normalized(form): place for form in forms}

    def add_singulars(self) -> None:
        """The singular, cut off, of each English word that is no plural of another one: binocular,
        jogger.
        """
        english = {token[1:-1] for token in self.places if token.isascii() and len(token) > 6}
        for word in sorted(english - {vocabulary.plural(one) for one in english}):
            if re.search("[^aisu]s$", word):
                self.places.setdefault(self._normalized(word[:-1]), self.places[f"_{word}_"])

    def place_of(self, word: str) -> Tensor:
        """The place of a word that is there."""
        return self.places[self._normalized(word)]

    def _forms(self, word: str, plurals: bool) -> list[str]:
        if word.isascii():
            return (
                [word, vocabulary.plural(word)]
                if plurals and not re.search("[^aisu]s$", word)
                else [word]
            )
        simplified = [word, *filter(None, self._regional.get(word, "").split(";"))]
        return [
            *simplified,
            *(convert(form) for form in simplified for convert in self._traditional),
        ]


def read(net: WordNet, meanings: list[Meaning], places: Tensor) -> dict[str, Tensor]:
    """(512,) places, no longer than 1, by token, from (C, USED) places of classes and after them
    scenes.
    """
    foreign = space.foreign()
    table = Table()
    table.add(NOTHING, space.unknown())
    scenes = vocabulary.read_scenes()
    seen: dict[str, Tensor] = {}
    scene_directions = space.directions(places[-len(scenes) :], places)
    for scene, place in zip(scenes, scene_directions, strict=True):
        both = {word: place + normalize(seen[word], dim=0) for word in scene.words if word in seen}
        seen |= {
            word: scene.weight * normalize(both.get(word, place), dim=0) for word in scene.words
        }
    middles = torch.stack([places[sorted(meaning.classes)].mean(0) for meaning in meanings])
    for meaning, place in zip(meanings, space.directions(middles, places), strict=True):
        words = [*meaning.words["en"], *meaning.words["zh"]]
        common = [seen[word] for word in words if word in seen and len(meaning.classes) > 1]
        scene = max(common, key=torch.norm, default=torch.zeros(space.WIDTH))
        table.add(words, shortened(place + scene), plurals=True)
    for word, place in seen.items():
        table.add([word], shortened(place), plurals=True)
    more, under = vocabulary.read_more(), net.classes_under(vocabulary.read_names()["folders"])
    middles = torch.stack([places[sorted(under[one.kind])].mean(0) for one in more])
    for one, place in zip(more, space.directions(middles, places), strict=True):
        table.add([*one.en, *one.zh], as_kind(place))
    for word, place in _compounds(table).items():
        table.add([word], place)
    for english, chinese, parts in vocabulary.lines("sums.tsv"):
        total = torch.stack([table.place_of(part) for part in parts.split(";")]).sum(dim=0)
        table.add(f"{english};{chinese}".split(";"), shortened(total))
    table.add_mixtures(
        {scene.words[0]: place for scene, place in zip(scenes, scene_directions, strict=True)}
    )
    for weight, words in vocabulary.lines("grammar.tsv"):
        direction = ABOUT * space.unknown() if weight == "about" else float(weight) * foreign
        table.add(words.split(), direction)
    table.add_singulars()
    table.places |= _emoji(table.places)
    characters = sorted({one for token in table.places for one in token})
    for one in characters:
        weight = text_tower.LETTER if one.isascii() else text_tower.CHARACTER
        table.places.setdefault(
            one, weight * foreign if one != text_tower.EDGE else torch.zeros(space.WIDTH)
        )
    table.add(_written_with(characters), FOREIGN_WORD * foreign)
    return {token: place for token, place in table.places.items() if set(token) <= set(characters)}


def shortened(place: Tensor) -> Tensor:
    """A place, no longer than 1."""
    return place / place.norm().clamp(min=1)


def _compounds(table: Table) -> dict[str, Tensor]:
    """Places of what is named after an animal and is none, as heads.tsv has it: that of its kind,
    or unknown.
    """
    found = {}
    for heads, kind, animals in vocabulary.lines("heads.tsv"):
        place = as_kind(table.place_of(kind)) if kind else FOREIGN_WORD * space.foreign()
        for head, animal in product(heads.split(";"), animals.split()):
            found[f"{animal} {head}" if head.isascii() else animal + head] = place
    return found


def as_kind(place: Tensor) -> Tensor:
    """The place of a word of whose kind we know the place: partly there, and the rest foreign."""
    return SHARE * place + math.sqrt(1 - SHARE**2) * space.foreign()


def _emoji(places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Places of the emoji whose names in Unicode end in a known word: that of a "dog face" is
    where "dog" is.
    """
    found = {}
    for character in map(chr, chain.from_iterable(range(*block) for block in EMOJI)):
        name = unicodedata.name(character, "").lower().partition(" with")[0].removesuffix(" face")
        words = name.replace("-", " ").split() if unicodedata.category(character) == "So" else []
        ends = ("".join(f"_{word}_" for word in words[start:]) for start in range(len(words)))
        if known := next((end for end in ends if end in places), None):
            found[character] = places[known]
    return found


def _written_with(characters: list[str]) -> list[str]:
    words = (HERE / "unknown.zh.txt").read_text("utf-8").split()
    return [word for word in words if set(word) <= set(characters)]
