"""Effect of a trimmed vocabulary on tokens and features, and the parameters that it saves.

    python benchmarks/train/vocabulary.py [--teacher DIRECTORY] [--pairs PARQUET] [--others PARQUET]

The teacher's tokenizer is cut to the pieces that the pairs' captions use, and the rows of its text tower with it: both
must give the same for every caption. Other names, which the captions needn't cover, show what a cut costs there. By
default all is the quick start's.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.tokenizer import load_tokenizer, tokenize_with, trim_tokenizer
from dcclip_cli.model.towers import OpenClipTowers

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes/quickstart"
# XLM-RoBERTa's vocabulary at the widths of AltCLIP, of XLM-RoBERTa-base, and of the students M and S.
XLM_R_PIECES, WIDTHS = 250_002, (1024, 768, 384, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=QUICKSTART / "teacher")
    parser.add_argument("--pairs", type=Path, default=QUICKSTART / "train.parquet")
    parser.add_argument("--others", type=Path, default=QUICKSTART / "unseen.parquet")
    given = parser.parse_args()
    full, towers = load_tokenizer(given.teacher), load_model(given.teacher)
    corpus, others = captions(given.pairs), captions(given.others)
    used = {id for several in corpus.values() for line in full.encode_batch(several) for id in line.ids}
    every = [line for several in corpus.values() for line in several]
    trimmed = trim_tokenizer(given.teacher, every, size=full.get_vocab_size() - 1)
    small = sliced(towers, full, trimmed)
    before, after = (sum(one.numel() for one in both.model.text.parameters()) for both in (towers, small))
    print(f"{full.get_vocab_size()} pieces, {len(used)} in the captions, {trimmed.get_vocab_size()} kept")
    print(f"text tower {before:,} -> {after:,} parameters: {before - after:,} saved")
    print("| text | lines | cut the same | largest difference of a feature there |")
    print("|---|---|---|---|")
    for what, lines in (("captions", corpus), ("other names", others)):
        for language, several in lines.items():
            same = [one for one in several if full.encode(one).tokens == trimmed.encode(one).tokens]
            apart = difference(towers, small, same)
            print(f"| {what}, {language} | {len(several)} | {len(same) / len(several):.1%} | {apart:g} |")
    print("| kept of XLM-RoBERTa's pieces | " + " | ".join(f"saved at width {width}" for width in WIDTHS) + " |")
    print("|---" * (len(WIDTHS) + 1) + "|")
    for kept in (20_000, 32_000, 40_000):
        saved = [f"{(XLM_R_PIECES - kept) * width / 1e6:.1f} M" for width in WIDTHS]
        print(f"| {kept:,} | {' | '.join(saved)} |")


def captions(pairs: Path) -> dict[str, list[str]]:
    """All different captions of a file of pairs, by language."""
    table = open_pairs(str(pairs))
    return {one: sorted({line for several in table.captions(one) for line in several}) for one in LANGUAGES}


def sliced(towers: OpenClipTowers, full: Tokenizer, trimmed: Tokenizer) -> OpenClipTowers:
    """The towers with only the rows of the pieces that are kept."""
    pieces = sorted(trimmed.get_vocab().items(), key=lambda entry: entry[1])
    model = copy.deepcopy(towers.model)
    text = model.text
    rows = text.token_embedding.weight[[full.token_to_id(piece) for piece, _ in pieces]].detach().clone()
    text.token_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    text.pad_id, text.eos_id = trimmed.token_to_id("<pad>"), trimmed.token_to_id("</s>")
    tokenize = tokenize_with(trimmed, text.context_length)
    return OpenClipTowers(model, tokenize, towers.preprocessing, "trimmed", "trimmed").eval()


@torch.no_grad()
def difference(one: OpenClipTowers, other: OpenClipTowers, lines: Sequence[str]) -> float:
    """The largest absolute difference between the embeddings and token features that two models make of lines."""
    found = 0.0
    for start in range(0, len(lines), 256):
        some = list(lines[start : start + 256])
        left, right = (towers.text_features(towers.tokenize(some)) for towers in (one, other))
        for apart in (left.embedding - right.embedding, left.tokens - right.tokens):
            found = max(found, float(apart.abs().max()))
    return found


if __name__ == "__main__":
    main()
