"""The concrete words that the starter is measured by and never taught: held_out.tsv, and how they
were chosen.

    apt-get install wordnet-base wamerican-small
    python recipes/starter/held_out.py

prints by kind the English candidates in the order of the SHA-256 of the word: nouns in
wamerican-small whose first sense in WordNet is of the kind, but for those that name an ImageNet
class or something above or below one. From the top of each list, those with a plain concrete
meaning were taken and given a Chinese name. Places and brands were written down in both languages
and sorted by the same hash: the first 50 of each are in held_out.tsv, the others are taught as
foreign (unknown.tsv). Words in either language that the starter was taught at that time were left
out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import vocabulary
from wordnet import WordNet

HERE = Path(__file__).parent
COMMON = Path("/usr/share/dict/american-english-small")
KINDS = {
    "05": "animal",
    "20": "plant",
    "06": "thing",
    "13": "food",
    "18": "person",
    "04": "action",
}  # lexnames(5WN)


class HeldOut(NamedTuple):
    """A word in both languages; kind is one of KINDS, "place" or "brand"."""

    kind: str
    en: str
    zh: str


def read() -> list[HeldOut]:
    """The words of held_out.tsv."""
    return [
        HeldOut(*line.split("\t"))
        for line in (HERE / "held_out.tsv").read_text("utf-8").splitlines()
    ]


def candidates(net: WordNet) -> dict[str, list[str]]:
    """English words by kind, in the order of their hash."""
    folders = vocabulary.read_names()["folders"]
    above = set(net.classes_under(folders))
    taught = {word.casefold() for word in (HERE / "words.txt").read_text("utf-8").splitlines()}
    found: dict[str, list[str]] = defaultdict(list)
    for word in sorted(set(COMMON.read_text("utf-8").split()) - taught, key=digest):
        if not (word.isalpha() and word.islower() and 3 <= len(word) <= 14 and word in net.senses):
            continue
        senses = net.senses[word]
        kind = KINDS.get(net.synsets[senses[0]].kind)
        if kind and not any(
            sense in above or net.kinds_of(sense) & set(folders) for sense in senses
        ):
            found[kind].append(word)
    return dict(found)


def digest(word: str) -> str:
    """By which words are sorted."""
    return hashlib.sha256(word.encode()).hexdigest()


if __name__ == "__main__":
    for kind, words in candidates(WordNet(Path("/usr/share/wordnet"))).items():
        print(f"{kind}: {' '.join(words[:150])}")
