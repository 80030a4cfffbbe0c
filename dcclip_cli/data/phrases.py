"""Phrases: lines made of a few short ones, from which a text tower learns how words join, not just those it was given.

What a student copies is the teacher's answer, so nobody has to have written the text: Tang et al. (arXiv 1903.12136)
distil BERT on sentences made by changing and cutting real ones.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from functools import cached_property

import numpy as np

from dcclip_cli.data.augment import generator
from dcclip_cli.data.joined import JoinedTable
from dcclip_cli.data.lines import Captions, Lines
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.table import PairTable
from dcclip_cli.errors import DcclipError

_SEED = 0  # not the recipe's: the same lines make the same phrases, and the teacher's answers to them serve every run
_JOINED, _THREE = 0.6, 0.3  # how many phrases are joined rather than listed, and of three parts rather than two
_JOINS: dict[Language, tuple[str, str]] = {"zh": ("", "，"), "en": (" ", ", ")}  # joined, listed
_LONGEST: dict[Language, int] = {"zh": 8, "en": 30}  # characters of a part: names and keywords, no sentences
_LIST = re.compile("[,，、;；]")


def with_phrases(lines: PairTable, count: int) -> PairTable:
    """Lines of text, and `count` phrases after them: two or three short lines joined, or listed with commas.

    What stands in one line in both languages is joined in both, so that parallel text stays parallel. The same lines
    make the same phrases. Raises DcclipError where no two lines are short enough, and hold no list themselves.
    """
    return JoinedTable([lines, _Phrases(lines, count)])


class _Phrases(Lines):
    """The phrases alone."""

    def __init__(self, lines: PairTable, count: int) -> None:
        super().__init__(lines.path, _phrases(lines, count))

    @cached_property
    def file_digests(self) -> list[bytes]:
        """The sha256 of each file's bytes and the number of phrases."""
        return [hashlib.sha256(digest + str(len(self)).encode()).digest() for digest in super().file_digests]


def _phrases(lines: PairTable, count: int) -> list[Captions]:
    by_languages: dict[tuple[Language, ...], list[dict[Language, str]]] = defaultdict(list)
    for line in lines:
        part = {language: own[0] for language in LANGUAGES if (own := line.captions(language))}
        if all(len(text) <= _LONGEST[language] and not _LIST.search(text) for language, text in part.items()):
            by_languages[tuple(part)].append(part)
    kinds = [kind for kind in by_languages.values() if len(kind) > 1]  # one language, the other, or both
    if not kinds:
        raise DcclipError(
            f"{lines.path} has no two short lines to make phrases of",
            f"short is up to {_LONGEST['zh']} Chinese or {_LONGEST['en']} English characters without a comma; "
            "add some, or set data.phrases: 0",
        )
    upto = np.cumsum([len(kind) for kind in kinds])
    made: list[Captions] = []
    for which, joined, three, *places in generator(_SEED, 0, 0).random((count, 6)).tolist():
        kind = kinds[int(np.searchsorted(upto, which * upto[-1], side="right"))]
        parts = [kind[int(place * len(kind))] for place in places[: 2 + (three < _THREE)]]
        made.append(
            {
                language: (_JOINS[language][joined >= _JOINED].join(part[language] for part in parts),)
                for language in parts[0]
            }
        )
    return made
