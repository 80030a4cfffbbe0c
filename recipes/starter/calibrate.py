"""Calibrate the temperature of a model directory, and what it knows, on held-out words and images.

    python recipes/starter/calibrate.py runs/starter/align/model EMOJI_DIR

Nobody has to say what the pictures show: the head holds the classifier, whose own probabilities
say which of some words fit, and the temperature is the one at which the model is as sure as it is
often right by these. Words: kinds of the classes by WordNet's names that it was not taught
("passerine", "kitchen utensil"), of which it can know little, and everyday ones in both languages,
of which it knows most: what is right for the former is wrong for the latter, so the sum of the
three calibration errors decides. Pictures: photos.parquet, and drawings of emoji.
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
from dataclasses import dataclass
from pathlib import Path

import held_out
import numpy as np
import space
import torch
import vocabulary
from safetensors.torch import load_file, save_file
from wordnet import WordNet

from dcclip_cli.core.checksums import write_record
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.model.model_dir import WEIGHTS, load_model
from dcclip_cli.model.preprocess import decode, flatten
from dcclip_cli.model.towers import OpenClipTowers

HERE = Path(__file__).parent
WORDS, DRAWINGS, QUESTIONS = (
    21,
    300,
    200,
)  # words to choose from, drawings, choices for each picture
SCALES = np.geomspace(4, 60, 55)
BINS = 10
FOLDER = 14  # times as many pictures as here: five thousand


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("emoji", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = WordNet(arguments.wordnet)
    under = net.classes_under(vocabulary.read_names()["folders"])
    groups = {"held out": held_out_words(net, under)}
    for language in vocabulary.LANGUAGES:
        everyday = vocabulary.read_words(under)
        groups[f"everyday, {language}"] = {
            meaning.words[language][0]: meaning.classes for meaning in everyday
        }
    towers = load_model(arguments.model)
    photos = [flatten(decode(pair.image)) for pair in open_pairs(HERE / "photos.parquet")]
    pictures = photos + drawings(arguments.emoji / "fluent-color.tar")
    with torch.no_grad():
        features = []
        for start in range(0, len(pictures), 20):
            pixels = np.stack(
                [towers.preprocess(picture) for picture in pictures[start : start + 20]]
            )
            trunk = towers.model.visual.trunk
            features.append(
                trunk.forward_head(
                    trunk.forward_features(torch.from_numpy(pixels)), pre_logits=True
                )
            )
        pooled = torch.cat(features)
        head = towers.model.visual.head
        images = torch.nn.functional.normalize(head(pooled), dim=-1).numpy()
        believed = (head.mlp.fc1(pooled)[:, :1000] + space.THRESHOLD).softmax(dim=-1).numpy()
        texts = {
            group: towers.text_features(towers.tokenize(list(words))).embedding
            for group, words in groups.items()
        }
    asked, asked_of = {}, {}
    for group, words in groups.items():
        members = np.stack(
            [[number in classes for number in range(1000)] for classes in words.values()]
        )
        cosines = images @ torch.nn.functional.normalize(texts[group], dim=-1).numpy().T
        asked_of[group] = cosines, believed @ members.T
        asked[group] = Questions.of(*asked_of[group])
    errors = {
        group: np.asarray([one.calibration_error(scale) for scale in SCALES])
        for group, one in asked.items()
    }
    best = int(sum(errors.values()).argmin())
    scale = float(SCALES[best])
    for group, one in asked.items():
        said = (
            f"{len(one.right)} questions, {one.right.mean():.1%} right, "
            f"{one.confidence(scale).mean():.1%} sure"
        )
        print(
            f"{group}: {len(groups[group])} words, {said}, expected calibration error "
            f"{errors[group][best]:.3f}"
        )
    weights = load_file(arguments.model / WEIGHTS)
    weights["logit_scale"] = torch.full_like(weights["logit_scale"], math.log(scale))
    save_file(weights, arguments.model / WEIGHTS)
    note = arguments.model / "dcclip.json"
    about = json.loads(note.read_text("utf-8"))
    about["known"] = {
        "dimension": space.FOREIGN,
        "most": most_foreign(towers),
        "fits": least_of_fitting(asked_of),
    }
    write_record(note, about, sort_keys=True)
    print(f"{len(pictures)} pictures: logit scale {scale:.2f}, {about['known']}")


def most_foreign(towers: OpenClipTowers) -> float:
    """The length along space.FOREIGN that tells known words best from held-out ones, half of each
    language.
    """
    known = (HERE / "words.txt").read_text("utf-8").splitlines()
    known += [word for more in vocabulary.read_more() for word in (*more.en, *more.zh)]
    others = [word for held in held_out.read() for word in (held.en, held.zh)]
    along = []
    for words in (known, others):
        texts = torch.nn.functional.normalize(
            towers.text_features(towers.tokenize(words)).embedding.detach(), dim=-1
        )
        along.append(texts[:, space.FOREIGN].numpy())
    return best_limit(*along)


def least_of_fitting(asked: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """The cosine that tells everyday words on pictures that they fit from the highest of a word
    that fits none.

    A folder has more pictures than there are here, and the more there are, the nearer to any word
    is the nearest one. So the highest of several words that fit none stands for that of one word
    among several times as many pictures.
    """
    above, below = [], []
    for group, (cosines, believed) in asked.items():
        if group != "held out":
            above.append(cosines[believed >= 0.5])
            highest = cosines[:, believed.max(axis=0) < 0.1].max(axis=0)
            below.append(highest[: len(highest) // FOLDER * FOLDER].reshape(FOLDER, -1).max(axis=0))
    none, shown = np.concatenate(below), np.concatenate(above)
    limits = np.linspace(0, 1, 201).tolist()
    return round(
        min(limits, key=lambda limit: abs((none > limit).mean() - (shown <= limit).mean())), 3
    )


def best_limit(low: np.ndarray, high: np.ndarray) -> float:
    """The number with the largest sum of the shares of low values below it and of high ones above
    it.
    """
    limits = np.linspace(0, 1, 201)
    right = [(low <= limit).mean() + (high > limit).mean() for limit in limits]
    best = np.flatnonzero(np.isclose(right, max(right)))
    return round(float(limits[best].mean()), 3)


def held_out_words(net: WordNet, under: dict[str, frozenset[int]]) -> dict[str, frozenset[int]]:
    """Words of WordNet for kinds of the classes, which were not taught, and their classes."""
    taught = {word.casefold() for word in (HERE / "words.txt").read_text("utf-8").splitlines()}
    taught |= {word for more in vocabulary.read_more() for word in more.en}
    return {
        synset.words[0]: classes
        for key, classes in sorted(under.items())
        if len(classes) < 200 and (synset := net.synsets[key]).words[0].casefold() not in taught
    }


def drawings(style: Path) -> list:
    """Every so many-th drawing of a style, on white."""
    with tarfile.open(style) as tar:
        names = sorted(member.name for member in tar if member.name.endswith(".webp"))
        chosen = names[:: max(1, len(names) // DRAWINGS)]
        return [flatten(decode(tar.extractfile(name).read())) for name in chosen]


@dataclass(frozen=True)
class Questions:
    """Which of WORDS words does a picture show, by cosines, and is it the word that the classifier
    believes?
    """

    below: np.ndarray  # (Q, WORDS), cosines less the largest of their question
    right: np.ndarray  # (Q,)

    @classmethod
    def of(cls, cosines: np.ndarray, believed: np.ndarray) -> Questions:
        """Random ones from (P, W) cosines and (P, W) beliefs.

        Choices of which the classifier believes none, or several (a dog is an animal too), are
        left out.
        """
        random = np.random.default_rng(0)
        below, right = [], []
        for cosine, belief in zip(cosines, believed, strict=True):
            for _ in range(QUESTIONS):
                chosen = random.choice(len(belief), WORDS, replace=False)
                if (belief[chosen] > 0.1).sum() == 1 and belief[chosen].max() >= 0.5:
                    below.append(cosine[chosen] - cosine[chosen].max())
                    right.append(cosine[chosen].argmax() == belief[chosen].argmax())
        return cls(np.stack(below), np.asarray(right))

    def confidence(self, scale: float) -> np.ndarray:
        """(Q,) the probability of each best word."""
        return np.asarray(1 / np.exp(scale * self.below).sum(axis=1))

    def calibration_error(self, scale: float) -> float:
        """Mean distance of confidence and share of right answers over bins of equal width (Guo et
        al. 2017).
        """
        confidence = self.confidence(scale)
        inside = np.minimum((confidence * BINS).astype(int), BINS - 1)
        off = [
            abs(confidence[inside == one].sum() - self.right[inside == one].sum())
            for one in range(BINS)
        ]
        return float(sum(off) / len(self.right))


if __name__ == "__main__":
    main()
