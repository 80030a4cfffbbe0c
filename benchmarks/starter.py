"""Zero-shot accuracy on everyday photographs, and rejection of labels that do not apply.

    apt-get install wordnet-base
    python benchmarks/starter.py PHOTOS

PHOTOS has ImageNet photographs in folders by wnid (n01440764/...), of any number of the thousand
classes; ImageNet's terms allow research only, so none come with this repository. Prints a row a
question, English and Chinese side by side.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dcclip_cli.core.text import split
from dcclip_cli.data import prompts
from dcclip_cli.eval.loaders.files import images_by_class
from dcclip_cli.inference.encoder import Encoder, load_encoder
from dcclip_cli.inference.zero_shot import Labels, class_embeddings, fill, softmax
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve

sys.path.append(str(Path(__file__).parent.parent / "recipes/starter"))

import vocabulary
from wordnet import WordNet

LANGUAGES = ("en", "zh")
OTHERS = 20
BINS = 10
# Words that no training text has, of what no photograph shows.
FOREIGN = {
    "en": (
        "bureaucracy",
        "photosynthesis",
        "Shakespeare",
        "Thursday evening",
        "Ohio",
        "blockchain",
        "E minor",
    ),
    "zh": ("官僚主义", "光合作用", "莎士比亚", "周四晚上", "新疆", "区块链", "E小调"),
}
# Four answers each, half of them in the other language; what is typed goes through the command's
# own reading of labels.
TYPED = (
    "{},{},{},{}",
    "{}，{}，{}，{}",
    "a photo of a {},{}的照片,a photo of a {},{}的照片",
    "一张{}的照片，{}，一张{}的照片，{}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    model = load_encoder(resolve(arguments.model), "cpu")
    imagenet = prompts.read("imagenet")
    under = WordNet(arguments.wordnet).classes_under(list(imagenet.folders))
    words = vocabulary.read_words(under)
    files = images_by_class(arguments.photos)
    labels = np.asarray(
        [imagenet.folders.index(folder) for folder, group in files.items() for _ in group]
    )
    pixels = [model.preprocess(decode(file)) for group in files.values() for file in group]
    images = np.concatenate(
        [model.encode_pixels(np.stack(pixels[at : at + 32])) for at in range(0, len(pixels), 32)]
    )
    print(
        f"{model.name}: {len(labels)} photographs, {len(set(labels))} classes, "
        f"{len(words)} everyday words"
    )
    class_names(model, images, labels, imagenet)
    truth = np.stack([[label in meaning.classes for meaning in words] for label in labels])
    shown = truth.any(axis=0)
    print(f"everyday words that some photograph shows: {shown.sum()}")
    everyday(model, images, truth, words)
    mixed(model, images, truth, words)
    by_themselves(model, images, truth, words)
    foreign(model, images)


def row(question: str, **values: float) -> None:
    print(f"{question:<58}" + "   ".join(f"{name} {value:.3f}" for name, value in values.items()))


def class_names(
    model: Encoder, images: np.ndarray, labels: np.ndarray, imagenet: prompts.Prompts
) -> None:
    for kind in ("plain", "templates"):
        best = {}
        for language in LANGUAGES:
            templates = ("{}",) if kind == "plain" else imagenet.templates[language]
            classes = class_embeddings(
                model, [fill(templates, name) for name in imagenet.names[language]]
            )
            best[language] = (images @ classes.T).argmax(axis=1)
        row(
            f"top-1 among 1,000 class names, {kind}",
            **{key: float((best[key] == labels).mean()) for key in LANGUAGES},
        )
        row(f"same answer in both languages, {kind}", both=float((best["en"] == best["zh"]).mean()))


def everyday(
    model: Encoder, images: np.ndarray, truth: np.ndarray, words: list[vocabulary.Meaning]
) -> None:
    """Each photograph, each of its words, against random others; calibration on all these
    together.
    """
    right: dict[str, list[float]] = {}
    for language in LANGUAGES:
        texts = model.encode_texts([meaning.words[language][0] for meaning in words])
        random, hits, confidence, by_photo = np.random.default_rng(0), [], [], []
        for image, true in zip(images, truth, strict=True):
            cosines, of_photo = np.flatnonzero(true), []
            for word in cosines:
                chosen = np.append(
                    word, random.choice(np.flatnonzero(~true), OTHERS, replace=False)
                )
                answer = softmax(image[None], texts[chosen], model.logit_scale)[0]
                hits.append(answer.argmax() == 0)
                confidence.append(answer.max())
                of_photo.append(hits[-1])
            by_photo += [np.mean(of_photo)] if of_photo else []
        error = calibration_error(np.asarray(confidence), np.asarray(hits))
        right[language] = [float(np.mean(hits)), float(np.mean(by_photo)), error]
    questions = (
        f"a word against {OTHERS} others: of all questions",
        "the same, mean of photographs",
    )
    for place, question in enumerate((*questions, "expected calibration error of these")):
        row(question, **{language: right[language][place] for language in LANGUAGES})


def calibration_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """Mean distance of confidence and share of right answers over bins of equal width (Guo et al.
    2017).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [bins == number for number in range(BINS)]
    return float(
        sum(abs(confidence[bucket].sum() - hits[bucket].sum()) for bucket in inside) / len(hits)
    )


def mixed(
    model: Encoder, images: np.ndarray, truth: np.ndarray, words: list[vocabulary.Meaning]
) -> None:
    for typed in TYPED:
        random, hits = np.random.default_rng(0), []
        for image, true in zip(images, truth, strict=True):
            if not true.any():
                continue
            chosen = np.append(
                random.choice(np.flatnonzero(true)),
                random.choice(np.flatnonzero(~true), 3, replace=False),
            )
            languages = [LANGUAGES[(place + len(hits)) % 2] for place in range(4)]
            labels = [
                words[word].words[language][0]
                for word, language in zip(chosen, languages, strict=True)
            ]
            texts = model.encode_texts(split(typed.format(*labels)))
            hits.append((texts @ image).argmax() == 0)
        row(f"mixed labels: {typed}", right=float(np.mean(hits)))


def by_themselves(
    model: Encoder, images: np.ndarray, truth: np.ndarray, words: list[vocabulary.Meaning]
) -> None:
    """What `--multi-label` finds likelier than not."""
    likely = {}
    for language in LANGUAGES:
        names = [meaning.words[language][0] for meaning in words]
        likely[language] = Labels(model, names, multi_label=True).probabilities(images) > 0.5
    for kind, which in (("a photograph's own words", truth), ("other words", ~truth)):
        row(
            f"--multi-label finds, of {kind}",
            **{key: float(hit[which].mean()) for key, hit in likely.items()},
        )


def foreign(model: Encoder, images: np.ndarray) -> None:
    largest = {
        language: softmax(images, model.encode_texts(FOREIGN[language]), model.logit_scale).max(
            axis=1
        )
        for language in LANGUAGES
    }
    row(
        f"largest of {len(FOREIGN['en'])} probabilities, unknown labels: mean",
        **{k: v.mean() for k, v in largest.items()},
    )
    row("the same: 95th percentile", **{k: float(np.quantile(v, 0.95)) for k, v in largest.items()})


if __name__ == "__main__":
    main()
