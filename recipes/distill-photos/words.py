"""Words for a student's text tower: your labels, and the words next to them in a model's space, in
both languages.

    python recipes/distill-photos/words.py LABELS --count 1000 > words.txt

LABELS has a label in each line, Chinese or English. The words next to them are chosen from
recipes/starter/words.txt: the names of ImageNet's classes, their synonyms and kinds in WordNet,
and everyday words, in both languages. A student that has learnt them reads other names of what it
knows: `animal` and 动物 for a cat.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import dcclip_cli as dcclip

WORDS = Path(__file__).parents[1] / "starter/words.txt"


def words_near(labels: list[str], words: list[str], count: int, model: str) -> list[str]:
    """The labels, then the `count` words with the largest cosine to any of them, in the order of
    `words`.
    """
    loaded, known = dcclip.load(model), set(labels)
    cosines = loaded.embed_texts(words) @ loaded.embed_texts(labels).T
    new = [
        row
        for row in np.argsort(-cosines.max(1), kind="stable").tolist()
        if words[row] not in known
    ]
    return labels + [words[row] for row in sorted(new[:count])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", type=Path, help="file with a label in each line")
    parser.add_argument(
        "--count", type=int, default=1000, help="words next to the labels [default: 1000]"
    )
    parser.add_argument(
        "--model", default="starter", help="the teacher, or a model that knows the labels"
    )
    chosen = parser.parse_args()
    labels, words = (
        [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        for file in (chosen.labels, WORDS)
    )
    print("\n".join(words_near(list(dict.fromkeys(labels)), words, chosen.count, chosen.model)))


if __name__ == "__main__":
    main()
