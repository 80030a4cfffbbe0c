"""The words that the starter is measured by are of all kinds, and none of its training words is among them."""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

STARTER = Path(__file__).parent.parent.parent / "recipes/starter"
sys.path.append(str(STARTER))
held_out = importlib.import_module("held_out")

WORDS = held_out.read()


def test_there_are_more_than_400_words_of_eight_kinds_in_both_languages() -> None:
    kinds = Counter(word.kind for word in WORDS)
    assert kinds.keys() == {*held_out.KINDS.values(), "place", "brand"}
    assert min(kinds.values()) >= 40
    assert len({word.en.casefold() for word in WORDS}) == len({word.zh for word in WORDS}) == len(WORDS) == 425
    assert all(word.en.isascii() and not word.zh.isascii() for word in WORDS)


def test_no_training_word_is_among_them() -> None:
    taught = {word.casefold() for word in (STARTER / "words.txt").read_text("utf-8").splitlines()}
    names = json.loads((STARTER.parent.parent / "dcclip_cli/data/prompts/imagenet.json").read_text("utf-8"))
    taught |= {name.casefold() for language in ("en", "zh") for name in names[language]["names"]}
    taught |= {name for several in names["zh"]["alternates"].values() for name in several}
    taught |= set((STARTER / "unknown.zh.txt").read_text("utf-8").split())
    for line in (STARTER / "words.tsv").read_text("utf-8").splitlines()[1:]:
        taught |= {word.casefold() for words in line.split("\t")[:2] for word in words.split(";")}
    for line in (STARTER / "unknown.tsv").read_text("utf-8").splitlines():
        taught |= {word.casefold() for word in line.split("\t")}
    assert {"dog", "狗", "正义", "丰田", "toyota"} <= taught
    assert not taught & {word for held in WORDS for word in (held.en.casefold(), held.zh)}


def test_of_places_and_brands_the_first_by_their_hash_are_held_out() -> None:
    taught = [line.split("\t")[0] for line in (STARTER / "unknown.tsv").read_text("utf-8").splitlines()]
    for kind, others in (("place", taught[:50]), ("brand", taught[50:])):
        assert others == sorted(others, key=held_out.digest)
        assert max(held_out.digest(word.en) for word in WORDS if word.kind == kind) < held_out.digest(others[0])
