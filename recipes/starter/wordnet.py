"""English nouns and their senses from WordNet 3.0, as packaged in Debian's wordnet-base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Lexicographer files (lexnames(5WN)) whose nouns name nothing that a photograph of one thing
# shows.
_ABSTRACT = {"04", "07", "09", "10", "12", "16", "21", "22", "23", "24", "26", "28"}
# And those of what it may show, or what is too near to it.
_VISIBLE = {"05", "06", "08", "11", "13", "14", "15", "17", "18", "19", "20", "25", "27"}


@dataclass(frozen=True)
class Synset:
    """A sense: its words, and the senses that it is a kind of. An ImageNet folder's name is such a
    sense's key.
    """

    words: tuple[str, ...]
    parents: tuple[str, ...]
    kind: str  # the lexicographer file


class WordNet:
    """The nouns, by key (`n02084071`) and by word."""

    def __init__(self, folder: Path) -> None:
        self.synsets = dict(self._read(folder / "data.noun"))
        self._times_seen = self._read_index(folder / "index.noun")
        self.senses = self._read_senses(folder / "index.noun")
        self._above: dict[str, frozenset[str]] = {}
        self._kinds: dict[str, set[str]] = defaultdict(set)
        for synset in self.synsets.values():
            for word in synset.words:
                self._kinds[word].add(synset.kind)

    @staticmethod
    def _read(file: Path) -> Iterable[tuple[str, Synset]]:
        for line in file.read_text("utf-8").splitlines():
            if line.startswith("  "):  # the license
                continue
            parts = line.split()
            count = int(parts[3], 16)
            words = tuple(word.replace("_", " ") for word in parts[4 : 4 + 2 * count : 2])
            pointers = parts[5 + 2 * count :]
            parents = tuple(
                f"n{pointers[place + 1]}"
                for place in range(0, 4 * int(parts[4 + 2 * count]), 4)
                if pointers[place] in ("@", "@i") and pointers[place + 2] == "n"
            )
            yield f"n{parts[0]}", Synset(words, parents, parts[1])

    @staticmethod
    def _read_index(file: Path) -> dict[str, int]:
        """Word -> how many of its senses WordNet's own texts have, which leaves the rare words
        out.
        """
        lines = [
            line.split()
            for line in file.read_text("utf-8").splitlines()
            if not line.startswith("  ")
        ]
        return {parts[0].replace("_", " "): int(parts[4 + int(parts[3]) + 1]) for parts in lines}

    @staticmethod
    def _read_senses(file: Path) -> dict[str, list[str]]:
        """Noun, in lower case -> the keys of its senses, the most frequent first."""
        lines = [
            line.split()
            for line in file.read_text("utf-8").splitlines()
            if not line.startswith("  ")
        ]
        return {
            parts[0].replace("_", " "): [f"n{key}" for key in parts[4 + int(parts[3]) + 2 :]]
            for parts in lines
        }

    def kinds_of(self, key: str) -> frozenset[str]:
        """Everything that a sense is a kind of, itself included."""
        if key not in self._above:
            self._above[key] = frozenset({key}).union(
                *(self.kinds_of(parent) for parent in self.synsets[key].parents)
            )
        return self._above[key]

    def classes_under(self, folders: list[str]) -> dict[str, frozenset[int]]:
        """Every sense that one of the classes is a kind of, or is -> the numbers of those classes."""
        under: dict[str, set[int]] = defaultdict(set)
        for number, folder in enumerate(folders):
            waiting = [folder]
            while waiting:
                key = waiting.pop()
                if number not in under[key]:
                    under[key].add(number)
                    waiting += self.synsets[key].parents
        return {key: frozenset(numbers) for key, numbers in under.items()}

    def abstract_words(self) -> list[str]:
        """Common nouns that have no visible sense, sorted: justice, economy, theorem."""
        return sorted(
            word
            for word, kinds in self._kinds.items()
            if kinds <= _ABSTRACT
            and not kinds & _VISIBLE
            and word.islower()
            and self._times_seen.get(word, 0) > 0
        )
