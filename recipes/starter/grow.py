"""Add words to a trained starter by their kinds, each as a token of its own.

    python recipes/starter/grow.py runs/starter/align/model

more_words.tsv has words for things without an ImageNet class, such as "emu", each with the nearest kind in WordNet that
some classes are of. A word is at SHARE of the place of these classes, the rest is foreign (space.FOREIGN), so that on a
photograph of an ostrich "ostrich" wins against "emu", and "emu" against "car". The tower does not change, nor does the
embedding of a text without one of these words.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import NamedTuple

import space
import torch
import vocabulary
import word_tokens
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from wordnet import WordNet

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.towers import Towers

HERE = Path(__file__).parent
SHARE = 0.5  # the largest tenth for which more words draw less than 30 % of the wrong answers, as unknown ones do
STEPS, RATE = 120, 0.03
TEMPLATES = (
    "{}",
    "{}",
    "a photo of a {}",
    "a picture of {}",
    "this is a {}",
    "一张{}的照片",
    "{}的照片",
    "一个{}",
    "这是{}",
)


class More(NamedTuple):
    """A word in both languages, each with its other forms or without any, and the key of its kind."""

    en: list[str]
    zh: list[str]
    kind: str


def read() -> list[More]:
    """The words of more_words.tsv."""
    rows = [line.split("\t") for line in (HERE / "more_words.tsv").read_text("utf-8").splitlines()]
    words = [([word for word in en.split(";") if word], [word for word in zh.split(";") if word]) for en, zh, _ in rows]
    return [More(*both, kind.rpartition(".")[2]) for both, (_, _, kind) in zip(words, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = WordNet(arguments.wordnet)
    under = net.classes_under(vocabulary.read_names()["folders"])
    places = space.places(space.kinship(under))
    # Words of one embedding are neighbours, which makes the package small.
    by_classes: dict[frozenset[int], dict[str, bool]] = {}
    for more in sorted(read(), key=lambda more: sorted(under[more.kind])):
        words = by_classes.setdefault(under[more.kind], {})
        words |= dict.fromkeys(more.en, True)
        words |= dict.fromkeys(more.zh, False)
    wanted = torch.stack([space.place_of(classes, places) for classes in by_classes])
    embeddings = optimised(load_model(arguments.model), wanted)
    counts = torch.tensor([len(words) for words in by_classes.values()])
    single = {word: alone for words in by_classes.values() for word, alone in words.items()}
    if len(single) != counts.sum():
        raise SystemExit("a word has two kinds")
    word_tokens.append(arguments.model, single, embeddings.repeat_interleave(counts, dim=0))
    print(f"{len(single)} words for {len(by_classes)} sets of classes")


def optimised(towers: Towers, wanted: Tensor) -> Tensor:
    """(N, 320) embeddings of tokens whose texts are at SHARE of the (N, 512) places, plain and in templates.

    The two parts of a text, along FOREIGN and at right angles to it, have a loss each: with one for their sum, some of
    the words stay foreign, as all are at the start.
    """
    towers.model.text.requires_grad_(False)
    tokens = towers.model.text.token_embedding.weight.data
    module = word_tokens.with_more(towers, torch.zeros(len(wanted), tokens.shape[1]))
    numbers = range(len(tokens), len(tokens) + len(wanted))
    foreign = torch.nn.functional.one_hot(torch.tensor(space.FOREIGN), space.WIDTH)
    chance = random.Random(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    for step in range(STEPS):
        ids = word_tokens.ids_around(towers, chance.choices(TEMPLATES, k=len(wanted)), numbers)
        texts = normalize(word_tokens.encoded(towers, module, ids), dim=-1)
        cosines = cosine_similarity(texts * (1 - foreign), wanted)
        away = texts @ foreign.float() - math.sqrt(1 - SHARE**2)
        optimizer.zero_grad()
        (1 - cosines + away.square()).mean().backward()
        optimizer.step()
        schedule.step()
        if step % 30 == 29:
            lowest = f"{cosines.mean().item():.3f}, lowest {cosines.min().item():.3f}"
            print(f"step {step + 1}: cosine {lowest}, {away.square().mean().sqrt().item():.3f} off", flush=True)
    return module.weight.data


if __name__ == "__main__":
    main()
