"""Retrieval on pairs that have sentences in both languages: of pictures by sentences, and of
sentences by sentences.

    python benchmarks/sentences.py PAIRS MODEL [MODEL ...]

Prints a row for each model: mean recall of pictures and English, of pictures and Chinese, and of
the Chinese and the English sentences about the same picture, in %. Mean recall is the mean of
recall at 1, 5 and 10 in both directions; equal sentences are one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dcclip_cli as dcclip
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.eval.metrics import score_retrieval
from dcclip_cli.model.preprocess import decode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("models", nargs="+")
    parsed = parser.parse_args()
    pairs = list(open_pairs(parsed.pairs))
    print("| model | en | zh | zh and en |\n| --- | --: | --: | --: |")
    for name in parsed.models:
        model = dcclip.load(name)
        images = model.embed_images([decode(pair.image) for pair in pairs])
        descriptions, texts = {}, {}
        for language in LANGUAGES:
            pictures: dict[str, list[int]] = {}
            for number, pair in enumerate(pairs):
                for sentence in getattr(pair, language):
                    pictures.setdefault(sentence, []).append(number)
            descriptions[language], texts[language] = (
                list(pictures.values()),
                model.embed_texts(list(pictures)),
            )
        english = [set[int]() for _ in pairs]
        for row, numbers in enumerate(descriptions["en"]):
            for number in numbers:
                english[number].add(row)
        same = [
            sorted(set().union(*(english[number] for number in numbers)))
            for numbers in descriptions["zh"]
        ]
        scores = [
            score_retrieval(images, texts["en"], descriptions["en"]),
            score_retrieval(images, texts["zh"], descriptions["zh"]),
            score_retrieval(texts["en"], texts["zh"], same),
        ]
        print(
            f"| {name} |",
            " | ".join(f"{100 * score.metrics['mean_recall']:.1f}" for score in scores),
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main()
