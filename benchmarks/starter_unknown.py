"""How often words that the starter never learnt win against words that fit, and how high they score in a search.

    apt-get install wordnet-base
    python benchmarks/starter_unknown.py PHOTOS

PHOTOS as for starter.py. The unknown words are those of recipes/starter/held_out.tsv: concrete words in both languages,
chosen by a hash before training, which no training text is or translates. Prints a row for each question, with English
and Chinese side by side, and which kinds of words were wrong. Then the same for recipes/starter/more_words.tsv, words
that were added by their kinds, and how often the photograph that such a word finds first is one of its kind.
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

import grow
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
    under = WordNet(arguments.wordnet).classes_under(list(imagenet.folders))
    files = images_by_class(arguments.photos)
    labels = [imagenet.folders.index(folder) for folder, several in files.items() for _ in several]
    images = np.concatenate(
        [model.encode_pixels(model.preprocess(decode(file))[None]) for several in files.values() for file in several]
    )
    report(model, images, labels, imagenet, under)


def report(
    model: Encoder,
    images: np.ndarray,
    labels: list[int],
    imagenet: prompts.Prompts,
    under: dict[str, frozenset[int]],
) -> None:
    """Print all rows. Known words are ImageNet's class names and the everyday words."""
    everyday = vocabulary.read_words(under)
    classes = [frozenset({number}) for number in range(len(imagenet.folders))]
    classes += [meaning.classes for meaning in everyday]
    fits = fitting(labels, classes)
    held = held_out.read()
    kinds = np.asarray([word.kind for word in held])
    print(f"{model.name}: {len(labels)} photographs, {len(classes)} known words, {len(held)} unknown ones")
    drawn: dict[str, Counter[str]] = {language: Counter() for language in LANGUAGES}
    results: dict[str, dict[str, float]] = {}
    more_results: dict[str, dict[str, float]] = {}
    for language in LANGUAGES:
        known = [*imagenet.names[language], *(meaning.words[language][0] for meaning in everyday)]
        scores = images @ text_embeddings(model, known).T
        unknown = images @ text_embeddings(model, [getattr(word, language) for word in held]).T
        compared = Scores(scores, unknown, fits)
        results[language] = questions(compared, kinds, drawn[language]) | search(compared)
        added = {getattr(more, language)[0]: more.kind for more in grow.read() if getattr(more, language)}
        of_added = images @ text_embeddings(model, list(added)).T
        of_kind = fitting(labels, [under[kind] for kind in added.values()])
        more_results[language] = questions(Scores(scores, of_added, fits), np.asarray(list(added)), Counter())
        more_results[language] |= finds(of_added, of_kind)
    for question in results["en"]:
        row(question, **{language: results[language][question] for language in LANGUAGES})
    for language in LANGUAGES:
        wrong = ", ".join(f"{kind} {count}" for kind, count in drawn[language].most_common())
        print(f"unknown words that won, {language}: {wrong}")
    print("the same, with words added by their kinds for unknown ones:")
    for question in more_results["en"]:
        row(question, **{language: more_results[language][question] for language in LANGUAGES})


def fitting(labels: list[int], words: list[frozenset[int]]) -> np.ndarray:
    """(photographs, words) whether the photograph's class is one of the word's."""
    return np.asarray([[label in classes for classes in words] for label in labels])


def finds(scores: np.ndarray, of_kind: np.ndarray) -> dict[str, float]:
    """How well (photographs, words) scores find the photographs of each word's kind."""
    shown = of_kind.any(axis=0)
    scores, of_kind = scores[:, shown], of_kind[:, shown]
    first = of_kind[scores.argmax(axis=0), np.arange(len(scores.T))]
    return {
        "words whose kind some photograph shows": float(shown.sum()),
        "search: the first photograph is of the word's kind": float(first.mean()),
        "score on photographs of the word's kind, mean": float(scores[of_kind].mean()),
        "score on other photographs, mean": float(scores[~of_kind].mean()),
    }


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
