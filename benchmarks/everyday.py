"""What a starter makes of everyday queries, known and unknown words, Traditional Chinese, and
other photographs.

    python benchmarks/everyday.py CALTECH [--flickr FLICKR8K] [--model MODEL] [--keep FILE.npy]

With FLICKR8K, pairs with sentences in both languages, 100 further queries of everyday.tsv and 40
of family.tsv search these and every second photograph of CALTECH: useful ones, and what share of
useful and useless ones has a warning, each half of a file by itself. The second halves were not
looked at while the vocabulary was written.

CALTECH are the pairs of Caltech-101, whose English name is that of a class. Prints the 40 queries
of recipes/starter/queries.tsv with how many of the first 8 photographs fit, or whether it says
that it does not know them; accuracy among the classes; and how often words of one meaning agree.
--keep stores the photographs' embeddings.
"""

from __future__ import annotations

import argparse
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import opencc

from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Pair
from dcclip_cli.inference.encoder import Encoder, load_encoder
from dcclip_cli.inference.zero_shot import class_embeddings, fill, text_embeddings, unknown_of
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.files import query_fits
from dcclip_cli.photos.index import ImageIndex

RECIPE = Path(__file__).parent.parent / "recipes/starter"
sys.path.append(str(RECIPE))

import held_out  # noqa: E402
import vocabulary  # noqa: E402
from wordnet import WordNet  # noqa: E402

FIRST, USEFUL = 8, 4
LANGUAGES = ("en", "zh")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("caltech", type=Path)
    parser.add_argument("--flickr", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    options = parser.parse_args()
    model = load_encoder(resolve(options.model), "cpu")
    names = prompts.read("caltech101")
    pairs = list(open_pairs(options.caltech))
    labels = np.asarray([names.names["en"].index(pair.en[0]) for pair in pairs])
    if options.keep and options.keep.exists():
        images = np.load(options.keep)
    else:
        images = embedded(model, pairs)
        if options.keep:
            np.save(options.keep, images)
    if options.flickr:
        photographs = list(open_pairs(options.flickr))
        sentences = [" . ".join((*pair.en, *pair.zh)).lower() for pair in photographs + pairs[1::2]]
        searched = np.concatenate([embedded(model, photographs), images[1::2]])
        for name in ("everyday.tsv", "family.tsv"):
            sentence_queries(model, searched, sentences, name)
    queries(model, images, labels, list(names.folders))
    classes(model, images, labels, names)
    net = WordNet(options.wordnet)
    under = net.classes_under(vocabulary.read_names()["folders"])
    meanings = vocabulary.read_meanings(net, vocabulary.read_words(under))
    known_words(model, meanings)
    agreement(model, meanings)


def embedded(model: Encoder, pairs: list[Pair]) -> np.ndarray:
    batches = (pairs[at : at + 32] for at in range(0, len(pairs), 32))
    pixels = (
        np.stack([model.preprocess(decode(pair.image)) for pair in batch]) for batch in batches
    )
    return np.concatenate([model.encode_pixels(batch) for batch in pixels])


def sentence_queries(model: Encoder, images: np.ndarray, sentences: list[str], name: str) -> None:
    """A photograph fits if its sentences, or the names of its class, have a word of every group."""
    rows = []
    index = ImageIndex(Path(), tuple(map(str, range(len(images)))), images, {}, 0)
    for line in (Path(__file__).parent / name).read_text("utf-8").splitlines()[1:]:
        query, _, groups = line.split("\t")
        patterns = [re.compile(pattern(group.split("|"))) for group in groups.split(", ")]
        [text] = model.encode_texts([query])
        scores = images @ text
        first = np.argsort(-scores)[:FIRST]
        fit = sum(all(words.search(sentences[place]) for words in patterns) for place in first)
        unfit = not query_fits(model, [index], [query])
        ignored = unknown_of(model, [query], text[None])
        rows.append((fit >= USEFUL, unfit, bool(ignored), unfit or bool(ignored)))
        print(
            f"{query}: {fit} of {FIRST}, {scores.max():.2f} "
            f"{'nothing fits' if unfit else ''} {', '.join(ignored)}"
        )
    for half, part in (("first half", rows[::2]), ("second half", rows[1::2])):
        useful, *warnings = np.array(part).T
        print(f"{half}: useful {useful.sum()} of {len(part)}")
        for warning, warned in zip(
            ("nothing fits", "ignored words", "either"), warnings, strict=True
        ):
            print(
                f"  {warning}: {warned[useful].mean():.2f} of useful, "
                f"{warned[~useful].mean():.2f} of useless"
            )


def pattern(words: list[str]) -> str:
    """English words as whole words, also in the plural, Chinese ones anywhere."""
    return "|".join(
        rf"\b{re.escape(word)}s?\b" if word.isascii() else re.escape(word) for word in words
    )


def queries(model: Encoder, images: np.ndarray, labels: np.ndarray, folders: list[str]) -> None:
    useful, marked = [], []
    for query, fits in vocabulary.lines("queries.tsv"):
        [text] = model.encode_texts([query])
        scores = images @ text
        first = [folders[label] for label in labels[np.argsort(-scores)[:FIRST]]]
        unknown = bool(unknown_of(model, [query], text[None]))
        note = (
            "unknown"
            if unknown
            else "nothing fits"
            if model.known and scores.max() < model.known.fits
            else ""
        )
        fit = sum(folder in fits.split() for folder in first)
        (useful if fits else marked).append(fit >= USEFUL if fits else bool(note))
        print(
            f"{query}: {fit if fits else '-'} of {FIRST}, {scores.max():.2f} {note} "
            f"{'' if fits else first[:3]}"
        )
    print(
        f"useful: {sum(useful)} of {len(useful)}; said to be unknown: {sum(marked)} of "
        f"{len(marked)}"
    )


def classes(model: Encoder, images: np.ndarray, labels: np.ndarray, names: prompts.Prompts) -> None:
    for language in LANGUAGES:
        for kind, templates in (("plain", ("{}",)), ("templates", names.templates[language])):
            texts = class_embeddings(
                model, [fill(templates, name) for name in names.names[language]]
            )
            right = (images @ texts.T).argmax(axis=1) == labels
            mean = np.mean([right[labels == label].mean() for label in np.unique(labels)])
            print(
                f"Caltech-101, {language}, {kind}: top-1 {right.mean():.3f}, mean over "
                f"classes {mean:.3f}"
            )


def known_words(model: Encoder, meanings: list[vocabulary.Meaning]) -> None:
    if not model.known:
        return
    for language in LANGUAGES:
        learned = [word for meaning in meanings for word in meaning.words[language]]
        twins = [getattr(word, language) for word in held_out.read()]
        low, high = (
            text_embeddings(model, words)[:, model.known.dimension] for words in (learned, twins)
        )
        pairs = (low[:, None] < high).mean() + (low[:, None] == high).mean() / 2
        note = (
            f"marked: {(high > model.known.most).mean():.3f} of held-out, "
            f"{(low > model.known.most).mean():.3f} of"
        )
        print(f"known or unknown, {language}: AUC {pairs:.3f}; {note} known words")


def agreement(model: Encoder, meanings: list[vocabulary.Meaning]) -> None:
    """Of all pairs of words for a meaning, and of words and their Traditional forms, those with
    one nearest class.
    """
    classes = text_embeddings(model, vocabulary.read_names()["en"]["names"])
    traditional, same, written = opencc.OpenCC("s2t").convert, [], []
    for meaning in meanings:
        words = meaning.words["en"] + meaning.words["zh"]
        twins = [traditional(word) for word in meaning.words["zh"]]
        near = (text_embeddings(model, words + twins) @ classes.T).argmax(axis=1)
        same += [first == second for first, second in combinations(near[: len(words)], 2)]
        pairs = zip(
            meaning.words["zh"],
            twins,
            near[len(words) - len(twins) :],
            near[len(words) :],
            strict=False,
        )
        written += [first == two for word, twin, first, two in pairs if word != twin]
    print(f"one nearest class: {np.mean(same):.3f} of {len(same)} pairs of words for one meaning")
    print(
        f"one nearest class: {np.mean(written):.3f} of {len(written)} words and their "
        f"Traditional forms"
    )


if __name__ == "__main__":
    main()
