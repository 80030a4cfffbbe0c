"""Words that are one token each: how their embeddings are optimised, with the text tower locked, and stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dcclip_cli.checksums import write_record
from dcclip_cli.model.model_dir import WEIGHTS
from dcclip_cli.model.towers import Tokens, Towers

PAD, END = 1, 2  # the ids of the starter's tokenizer


class WithMore(nn.Module):
    """The token embedding with more at its end, which alone are trained."""

    def __init__(self, tokens: Tensor, more: Tensor) -> None:
        super().__init__()
        self.tokens, self.weight = tokens, nn.Parameter(more.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, torch.cat([self.tokens, self.weight]))


def with_more(towers: Towers, more: Tensor) -> WithMore:
    """What `encoded` takes, from the (N, 320) embeddings of more tokens."""
    return WithMore(towers.model.text.token_embedding.weight.data, more)


@contextmanager
def _embedded_by(text: nn.Module, embedding: nn.Module) -> Iterator[None]:
    kept = text.token_embedding
    text.token_embedding = embedding
    try:
        yield
    finally:
        text.token_embedding = kept


def encoded(towers: Towers, embedding: WithMore, ids: Tensor) -> Tensor:
    """(N, 512) the text tower's output for the ids."""
    with _embedded_by(towers.model.text, embedding):
        return towers.text_features(Tokens(ids, ids != PAD)).embedding


def ids_around(towers: Towers, templates: Sequence[str], tokens: Sequence[int]) -> Tensor:
    """(N, longest) a token in each template, in place of its {}."""
    halves = {
        template: [towers.tokenize([part]).ids[0].tolist() for part in template.split("{}")]
        for template in dict.fromkeys(templates)
    }
    rows = []
    for template, token in zip(templates, tokens, strict=True):
        before, after = halves[template]
        rows.append(torch.tensor([*before[: before.index(END)], token, *after[1 : after.index(END) + 1]]))
    return pad_sequence(rows, batch_first=True, padding_value=PAD)


def append(folder: Path, words: dict[str, bool], embeddings: Tensor) -> None:
    """Write words as tokens, with their (N, 320) embeddings, into a model directory.

    Each with whether it stands alone, between spaces or punctuation marks, as English words do and Chinese ones do not.
    One that is a piece of the vocabulary has a token already, whose embedding is replaced.
    """
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text("utf-8"))
    pieces = {piece: number for number, (piece, _) in enumerate(tokenizer["model"]["vocab"])}
    weights = load_file(folder / WEIGHTS)
    tokens = weights["text.token_embedding.weight"]
    added = [number for number, word in enumerate(words) if word not in pieces]
    for number, word in enumerate(words):
        if word in pieces:
            tokens[pieces[word]] = embeddings[number].to(tokens.dtype)
    weights["text.token_embedding.weight"] = torch.cat([tokens, embeddings[added].to(tokens.dtype)])
    save_file(weights, folder / WEIGHTS)
    flags = {"lstrip": False, "rstrip": False, "normalized": True, "special": False}
    names = list(words)
    tokenizer["added_tokens"] += [
        {"id": len(tokens) + place, "content": names[number], "single_word": words[names[number]], **flags}
        for place, number in enumerate(added)
    ]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    config = folder / "open_clip_config.json"
    about = json.loads(config.read_text("utf-8"))
    about["model_cfg"]["text_cfg"]["vocab_size"] = len(tokens) + len(added)
    config.write_text(json.dumps(about, indent=2, sort_keys=True), "utf-8")
    note = folder / "dcclip.json"
    about = json.loads(note.read_text("utf-8"))
    parameters = about["parameters"] + len(added) * embeddings.shape[1]
    write_record(note, {**about, "parameters": parameters}, sort_keys=True)
