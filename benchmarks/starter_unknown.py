"""How often words that the starter never learnt win against words that fit, and how high they score in a search.

    apt-get install wordnet-base
    python benchmarks/starter_unknown.py PHOTOS

PHOTOS as for starter.py. The unknown words are those of recipes/starter/held_out.tsv: concrete words in both languages,
chosen by a hash before training, which no training text is or translates. Prints a row for each question, with English
and Chinese side by side, and which kinds of words were wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from starter import LANGUAGES, OTHERS, row

from dcclip_cli.data import prompts
from dcclip_cli.eval.loaders.files import images_by_class
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import Encoder, load_encoder
from dcclip_cli.predict.zero_shot import text_embeddings

sys.path.append(str(Path(__file__).parent.parent / "recipes/starter"))

import held_out
import vocabulary
from wordnet import WordNet


@dataclass(frozen=True)
class Scores:
    """Cosines of P photographs with K known and U unknown words, and which known words fit which photograph."""

    known: np.ndarray  # (P, K)
    unknown: np.ndarray  # (P, U)
    fits: np.ndarray  # (P, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    model = load_encoder(resolve(arguments.model), "cpu")
    imagenet = prompts.read("imagenet")
    everyday = vocabulary.read_words(WordNet(arguments.wordnet).classes_under(list(imagenet.folders)))
    files = images_by_class(arguments.photos)
    labels = [imagenet.folders.index(folder) for folder, several in files.items() for _ in several]
    images = np.concatenate(
        [model.encode_pixels(model.preprocess(decode(file))[None]) for several in files.values() for file in several]
    )
    report(model, images, labels, imagenet, everyday)


def report(
    model: Encoder,
    images: np.ndarray,
    labels: list[int],
    imagenet: prompts.Prompts,
    everyday: list[vocabulary.Meaning],
) -> None:
    """Print all rows. Known words are ImageNet's class names and the everyday words."""
    classes = [frozenset({number}) for number in range(len(imagenet.folders))]
    classes += [meaning.classes for meaning in everyday]
    fits = np.asarray([[label in several for several in classes] for label in labels])
    words = held_out.read()
    kinds = np.asarray([word.kind for word in words])
    print(f"{model.name}: {len(labels)} photographs, {len(classes)} known words, {len(words)} unknown ones")
    drawn: dict[str, Counter[str]] = {}
    results: dict[str, dict[str, float]] = {}
    for language in LANGUAGES:
        known = [*imagenet.names[language], *(meaning.words[language][0] for meaning in everyday)]
        texts, unknown = (text_embeddings(model, several) for several in (known, [getattr(w, language) for w in words]))
        scores = Scores(images @ texts.T, images @ unknown.T, fits)
        drawn[language], results[language] = Counter(), {}
        results[language] |= questions(scores, kinds, drawn[language]) | search(scores)
    for question in results["en"]:
        row(question, **{language: results[language][question] for language in LANGUAGES})
    for language in LANGUAGES:
        wrong = ", ".join(f"{kind} {count}" for kind, count in drawn[language].most_common())
        print(f"unknown words that won, {language}: {wrong}")


def questions(scores: Scores, kinds: np.ndarray, drawn: Counter[str]) -> dict[str, float]:
    """Each photograph and each of its words, against OTHERS known words that do not fit and as many unknown ones."""
    random, right, asked = np.random.default_rng(0), 0, 0
    for known, unknown, fit in zip(scores.known, scores.unknown, scores.fits, strict=True):
        for word in np.flatnonzero(fit):
            wrong = random.choice(np.flatnonzero(~fit), OTHERS, replace=False)
            strange = random.choice(len(unknown), OTHERS, replace=False)
            own, of_known, of_unknown = known[word], known[wrong].max(), unknown[strange].max()
            asked += 1
            right += own > max(of_known, of_unknown)
            if of_unknown >= max(own, of_known):
                drawn[str(kinds[strange[unknown[strange].argmax()]])] += 1
    return {
        f"a word against {OTHERS} known and {OTHERS} unknown others: right": right / asked,
        "of all answers, an unknown word": drawn.total() / asked,
        "of the wrong answers, an unknown word": drawn.total() / (asked - right),
    }


def search(scores: Scores) -> dict[str, float]:
    """The highest score of each unknown text among the photographs, and those of known texts on photographs they fit.

    Every pair of an unknown text and a known one that some photograph shows is asked which scores higher.
    """
    highest = scores.unknown.max(axis=0)
    shown = np.flatnonzero(scores.fits.any(axis=0))
    lowest = np.asarray([scores.known[scores.fits[:, word], word].min() for word in shown])
    return {
        "search: highest score of an unknown text, mean": float(highest.mean()),
        "the same: 95th percentile": float(np.quantile(highest, 0.95)),
        "lowest right score of a known text, mean": float(lowest.mean()),
        "unknown text's highest is below known text's lowest right": float((highest[:, None] < lowest).mean()),
    }


if __name__ == "__main__":
    main()
