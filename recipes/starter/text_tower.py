"""The text tower, which is written down, not trained: a text is at the sum of the places of its
words.

Each word is one token, whose embedding is the word's place with a weight, and along a dimension
that nothing reads for the rest of its length. One attention layer without queries takes the mean
of all tokens, so the order of words does not count, nor do words without weight: articles, measure
words, "a photo of". Characters that are in no known word are along space.FOREIGN. All words of one
meaning, in both languages and in Traditional Chinese, have the same embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import space
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, processors
from torch import Tensor

from dcclip_cli.model.tokenizer import BEGIN_ID, END_ID, SPECIAL

PIECES = space.FOREIGN + 1  # dimensions of the space that texts use
# these, one that nothing reads, and one that layer normalisation takes away, in a multiple of 4
WIDTH = 452
CONFIG = {
    "context_length": 64, "eos_id": END_ID, "heads": 1, "hf_tokenizer_name": "tokenizer", "layers": 1,
    "mlp_ratio": 0.0125, "pad_id": 1, "pool_type": "eos", "width": WIDTH,
}  # fmt: skip
LOUD = 20.0  # of the words against the end of the text, to which the layer adds them
LETTER, CHARACTER, OTHER = (
    0.1,
    0.35,
    0.5,
)  # weights along FOREIGN: of a letter, a Chinese character, any other one
BEGIN = 0.05  # of a text without a word of any weight; in int8, rounding is a tenth of it
EDGE = "_"  # before and after each word of Latin letters


def tokenizer_of(words: list[str]) -> Tokenizer:
    """A tokenizer with each word, as `normalized`, for a token, in this order, and the longest
    words preferred.

    Scores fall a little from word to word, so that no two ways to split a text are equally good.
    """
    scored = [
        (word, (-9.5 if len(word) == 1 else -10.0) - 1e-6 * place)
        for place, word in enumerate(words, 4)
    ]
    vocab = [(token, 0.0) for token in SPECIAL] + scored
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN_ID), ("</s>", END_ID)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.enable_truncation(int(CONFIG["context_length"]))
    tokenizer.enable_padding(pad_id=1, pad_token=SPECIAL[1])
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))


def normalizer() -> normalizers.Normalizer:
    """Texts of letters, digits and emoji without spaces, with an _ at both ends of each word of
    Latin letters.
    """
    latin = "[a-z0-9]"
    edges = f"(?<!{latin})(?={latin})|(?<={latin})(?!{latin})"
    return normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(EDGE, " "),
            normalizers.Replace(Regex("'s(?!\\w)"), ""),
            normalizers.Replace(Regex(edges), EDGE),
            normalizers.Replace(Regex(f"[^\\p{{L}}\\p{{N}}\\p{{So}}{EDGE}]+"), ""),
        ]
    )


def weights(places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's weights for tokens with (512,) places no longer than 1, in the order of the
    tokenizer.
    """
    basis = _basis()
    known = torch.stack(list(places.values()))[:, :PIECES]
    special = torch.zeros(len(SPECIAL), PIECES)
    special[BEGIN_ID, space.FOREIGN], special[SPECIAL.index("<unk>"), space.FOREIGN] = BEGIN, OTHER
    read = torch.cat([special, known])
    rest = (1 - read.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    hidden = int(WIDTH * CONFIG["mlp_ratio"])
    block = "text.transformer.resblocks.0."
    heard = basis[:, :PIECES] @ basis[:, :PIECES].T
    zeros, ones = torch.zeros(WIDTH), torch.ones(WIDTH)
    projection = torch.zeros(WIDTH, space.WIDTH)
    projection[:, :PIECES] = basis[:, :PIECES]
    return {
        "text.token_embedding.weight": torch.cat([read, rest], dim=1) @ basis.T,
        "text.positional_embedding": torch.zeros(int(CONFIG["context_length"]), WIDTH),
        f"{block}ln_1.weight": ones, f"{block}ln_1.bias": zeros,
        f"{block}attn.in_proj_weight": torch.cat([torch.zeros(2 * WIDTH, WIDTH), heard]),
        f"{block}attn.in_proj_bias": torch.zeros(3 * WIDTH),
        f"{block}attn.out_proj.weight": LOUD * torch.eye(WIDTH), f"{block}attn.out_proj.bias": zeros,
        f"{block}ln_2.weight": ones, f"{block}ln_2.bias": zeros,
        f"{block}mlp.c_fc.weight": torch.zeros(hidden, WIDTH), f"{block}mlp.c_fc.bias": torch.zeros(hidden),
        f"{block}mlp.c_proj.weight": torch.zeros(WIDTH, hidden), f"{block}mlp.c_proj.bias": zeros,
        "text.ln_final.weight": ones, "text.ln_final.bias": zeros,
        "text.text_projection": projection,
    }  # fmt: skip


def _basis() -> Tensor:
    """(WIDTH, PIECES + 1) orthonormal columns, all at right angles to the mean that layer
    normalisation takes away.
    """
    random = torch.randn(
        WIDTH, PIECES + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    columns = torch.linalg.qr(
        torch.cat([torch.ones(WIDTH, 1, dtype=torch.float64), random], dim=1)
    ).Q
    return (columns * torch.sign(columns[:1] + 0.0))[:, 1:].float()
