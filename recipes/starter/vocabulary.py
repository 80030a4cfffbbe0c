"""Chinese and English words for each ImageNet class, and the captions made of them for training."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from wordnet import WordNet

HERE = Path(__file__).parent
NAMES = HERE.parent.parent / "dcclip_cli/data/prompts/imagenet.json"
LANGUAGES = ("zh", "en")
TEMPLATES_OF_A_WORD = 3
LONGEST = {"zh": 14, "en": 36}  # characters: every text of a batch is as long as the longest, padding included
# Beside the evaluation's own: what people type.
MORE_TEMPLATES = {
    "en": (
        "a photo of a {}", "a photo of {}", "a picture of a {}", "this is a {}", "there is a {} in the photo",
        "one {}", "an image of a {}", "photo of {}", "two {}", "a photograph of some {}", "my {}", "it is a {}",
        "a {} in the wild", "a small {}", "a big {}", "a close-up of a {}",
    ),
    "zh": (
        "一张{}的照片", "{}的照片", "一个{}", "一只{}", "一辆{}", "一条{}", "一把{}", "一件{}", "一种{}", "这是{}",
        "这是一只{}", "这是一个{}", "图片里有一个{}", "照片中的{}", "{}图片", "我的{}", "很多{}", "两只{}",
        "一朵{}", "一座{}", "一台{}", "一架{}", "一艘{}", "一匹{}", "一头{}", "一棵{}", "一幅{}的图片",
        "有{}的图片", "小{}", "大{}",
    ),
}  # fmt: skip


@dataclass
class Meaning:
    """One set of classes with every word for it, the name proper first."""

    classes: frozenset[int]
    words: dict[str, list[str]] = field(default_factory=lambda: {language: [] for language in LANGUAGES})


def read_names() -> dict[str, dict[str, list]]:
    """The class names that the evaluation uses, folders and templates included."""
    return json.loads(NAMES.read_text("utf-8"))


def read_words(under: dict[str, frozenset[int]]) -> list[Meaning]:
    """words.tsv: everyday words with the classes that they hold for. A word on two lines means both."""
    meanings = []
    for line in (HERE / "words.tsv").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        en, zh, synsets = line.split("\t")
        classes = frozenset().union(*(under[synset.rpartition(".")[2]] for synset in synsets.split()))
        meanings.append(Meaning(classes, {"en": en.split(";"), "zh": zh.split(";")}))
    return meanings


def read_meanings(net: WordNet, everyday: list[Meaning]) -> list[Meaning]:
    """Class names, their synonyms and the everyday words, one Meaning for each set of classes.

    A name by which the evaluation knows a class means that class alone; any other word means all it is listed with.
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
    return sorted(collected.values(), key=lambda meaning: (len(meaning.classes), sorted(meaning.classes)))


def _synonyms(net: WordNet, names: dict, language: str, number: int) -> list[str]:
    if language == "zh":
        return names["zh"]["alternates"].get(names["zh"]["names"][number], [])
    return list(net.synsets[names["folders"][number]].words)


def captions(words: list[str], language: str, templates: list[str], random: random.Random) -> list[str]:
    """What a text tower is shown of one meaning: the first word, then all of them plainly and within templates."""
    if not words:
        return []
    shown = [words[0]]
    for word in words:
        shown += [word, word, _with_article(word, random) if language == "en" else f"{random.choice('一那这')}个{word}"]
        shown += [template.replace("{}", word) for template in random.sample(templates, TEMPLATES_OF_A_WORD)]
    return [caption for caption in shown if len(caption) <= LONGEST[language] or caption == words[0]]


def all_templates(language: str) -> list[str]:
    """The evaluation's templates, and, as often, those that people type."""
    own = [template for template in read_names()[language]["templates"] if len(template) < 50]
    more = list(MORE_TEMPLATES[language])
    return own + more * max(1, len(own) // len(more))


def _with_article(word: str, random: random.Random) -> str:
    plural = word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")
    return random.choice([f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}", f"the {word}", plural])
