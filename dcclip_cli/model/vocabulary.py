"""Vocabularies cut to languages: the pieces that they use, and tokenizer files without the others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json, write_json
from dcclip_cli.model.hub_models import COPY_AGAIN
from dcclip_cli.model.tokenizer import renumbered
from dcclip_cli.text import HAN

Language = Literal["zh", "en"]

# Insides of character classes. Digits, punctuation, symbols and emoji are of all languages.
_COMMON = (
    "\\s\u0021-\u0040\\[-`\\{-\u007e\u00a0-\u00bf\u00d7\u00f7"  # of ASCII and Latin-1
    "\u2000-\u2bff\ufe00-\ufe0f\U0001f000-\U0001faff"  # punctuation, currencies, arrows, mathematics, emoji
)
_LETTERS: Mapping[Language, str] = {
    "en": "A-Za-z",
    # With radicals, CJK punctuation, the middle dot, squared and circled forms, full-width forms; without kana.
    "zh": f"{HAN}\u2e80-\u303f\u30fb\u31c0-\u31ef\u3200-\u33ff\ufe10-\ufe1f\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffe6",
}
_SINGLES = "A-Za-z\u00c0-\u024f\u0300-\u0304\u030c"  # and in pieces of one character: Latin with accents, as in pinyin
_WORD, _PART = "\u2581", "##"  # before a word of sentencepiece, before the middle of a word of BERT
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "added_tokens.json", *_SENTENCEPIECE)
_NORMAL, _CONTROL = 1, (2, 3, 4)  # types of pieces in sentencepiece's files: unknown, control, user-defined
_SPECIAL_IDS = re.compile(r".*_token_id|padding_idx|(pad|bos|eos|cls|sep|mask)_id")


class Alphabet:
    """The characters of some languages, by their scripts."""

    def __init__(self, languages: Collection[Language]) -> None:
        inside = _COMMON + "".join(_LETTERS[language] for language in languages)
        self._whole = re.compile(f"[{inside}]*")
        self._single = re.compile(f"[{inside}{_SINGLES}]")

    def spells(self, text: str) -> bool:
        """Whether all characters of a piece are of these languages."""
        return self._whole.fullmatch(text) is not None

    def is_single(self, text: str) -> bool:
        """Whether it is one character that texts in these languages may contain."""
        return self._single.fullmatch(text) is not None


def bare(piece: str) -> str:
    """A piece without the mark of a word's beginning or middle, its spaces as spaces."""
    return piece.removeprefix(_PART).strip(_WORD).replace(_WORD, " ") if piece != _PART else piece


def pieces_by_script(
    pieces: Iterable[str], languages: Collection[Language], read: Callable[[str], str | None]
) -> set[str]:
    """The pieces whose characters are all of `languages`, and which a text can become.

    `read` is what the tokenizer makes of a text before it looks for pieces, None where it splits the text: a piece that
    it changes, as capitals where texts are lower-cased, is in no text.
    """
    alphabet = Alphabet(languages)
    written = ((piece, bare(piece)) for piece in pieces)
    spelled = ((piece, text) for piece, text in written if alphabet.spells(text) or alphabet.is_single(text))
    return {piece for piece, text in spelled if not text or read(text) == text}


def fallback_pieces(pieces: Iterable[str], languages: Collection[Language]) -> set[str]:
    """The pieces of one character, so that any text in these languages is split into known pieces, and of one byte."""
    alphabet = Alphabet(languages)
    return {
        piece for piece in pieces if _BYTE.fullmatch(piece) or len(bare(piece)) == 0 or alphabet.is_single(bare(piece))
    }


def cut_tokenizer(source: Path, target: Path, kept: Mapping[str, int], new: Mapping[int, int]) -> None:
    """Write a tokenizer's files into `target` with the `kept` pieces only, whose ids become `new` ones.

    Order is kept, so that ids stay in order. Raises DcclipError for a kind of tokenizer that cannot be cut.
    """
    written = False
    for file in sorted(source.iterdir()):
        if file.name == "tokenizer.json":
            _cut_json(file, target / file.name, kept, new)
        elif file.name in _SENTENCEPIECE:
            _cut_sentencepiece(file, target / file.name, kept)
        elif file.name == "vocab.txt":
            lines = file.read_text("utf-8").split("\n")  # by number: transformers reads U+2028 as an empty piece
            (target / file.name).write_text("".join(f"{line}\n" for at, line in enumerate(lines) if at in new), "utf-8")
        elif file.name == "added_tokens.json":
            content = read_json(file, COPY_AGAIN)
            write_json(target / file.name, {token: new.get(number, number) for token, number in content.items()})
            continue
        else:
            continue
        written = True
    if not written:
        raise DcclipError("{} has no vocabulary of pieces that can be cut", "trim a multilingual model", source)


def _cut_json(file: Path, target: Path, kept: Collection[str], new: Mapping[int, int]) -> None:
    state = read_json(file, COPY_AGAIN)
    model, added = state["model"], {token["content"]: token["id"] for token in state["added_tokens"]}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if token in kept}
    else:
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
    if "merges" in model:
        model["merges"] = [[*pair] for pair in merges_of(model) if kept_merge(pair, model["vocab"])]
    assert added.keys() <= set(kept)
    renumbered(state, new).save(str(target))


def merges_of(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges of a BPE model in a tokenizer.json, which are lists of two, in older files texts with a space."""
    for merge in model.get("merges", ()):
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield first, second


def kept_merge(pair: tuple[str, str], vocab: Collection[str]) -> bool:
    """Whether both parts of a merge and what it makes are in a vocabulary."""
    return pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab


def with_parts(pieces: Collection[str], model: Mapping[str, Any]) -> set[str]:
    """BPE pieces with all that they are merged from: without these a text could not become them."""
    ranks = {pair: rank for rank, pair in enumerate(merges_of(model))}
    found = set(pieces)
    for piece in pieces:
        parts = list(piece)
        while len(parts) > 1:
            pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts))]
            rank, at = min(pairs)
            if rank == len(ranks):
                break
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
            found.add(parts[at])
    return found


def _sentencepiece(file: Path) -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(file.read_bytes())
    return model


def _cut_sentencepiece(file: Path, target: Path, kept: Collection[str]) -> None:
    model = _sentencepiece(file)
    pieces = [piece for piece in model.pieces if piece.piece in kept or piece.type in _CONTROL]
    place = {piece.piece: number for number, piece in enumerate(pieces)}
    for name in ("unk", "bos", "eos", "pad"):
        token = getattr(model.trainer_spec, f"{name}_piece")
        if getattr(model.trainer_spec, f"{name}_id") >= 0 and token in place:
            setattr(model.trainer_spec, f"{name}_id", place[token])
    model.trainer_spec.vocab_size = len(pieces)
    copies = [type(piece).FromString(piece.SerializeToString()) for piece in pieces]
    del model.pieces[:]
    model.pieces.extend(copies)
    target.write_bytes(model.SerializeToString())


def renumbered_config(config: Any, rows: int, new: Mapping[int, int]) -> Any:
    """A configuration in which a vocabulary of `rows` pieces has the size of `new`, and ids of pieces are new ones."""
    if isinstance(config, list):
        return [renumbered_config(value, rows, new) for value in config]
    if not isinstance(config, dict):
        return config
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key == "vocab_size" and value == rows:
            changed[key] = len(new)
        elif _SPECIAL_IDS.fullmatch(key) and type(value) is int:
            changed[key] = new.get(value, value)
        elif key == "added_tokens_decoder":
            changed[key] = {str(new.get(int(number), number)): token for number, token in value.items()}
        else:
            changed[key] = renumbered_config(value, rows, new)
    return changed


def special_ids(config: Any) -> Iterator[int]:
    """The ids of pieces that a configuration names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if _SPECIAL_IDS.fullmatch(key) and type(value) is int:
                yield value
            elif key != "vision_config":
                yield from special_ids(value)


def needed_pieces(source: Path) -> set[str]:
    """Pieces that a tokenizer needs by its kind: unknown and control pieces, and the Unigram piece of the lowest score.

    The cost of an unknown character depends on the lowest score.
    """
    if (source / "tokenizer.json").is_file():
        state = read_json(source / "tokenizer.json", COPY_AGAIN)
        model, found = state["model"], {token["content"] for token in state["added_tokens"]}
        if isinstance(model["vocab"], dict):
            return found | {model["unk_token"]} if model.get("unk_token") else found
        unknown = {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
        return found | unknown | {min(model["vocab"], key=lambda entry: entry[1])[0]}
    for name in _SENTENCEPIECE:
        if (source / name).is_file():
            pieces = _sentencepiece(source / name).pieces
            lowest = min((piece for piece in pieces if piece.type == _NORMAL), key=lambda piece: piece.score)
            return {lowest.piece} | {piece.piece for piece in pieces if piece.type in _CONTROL}
    return set()


def bpe_model(source: Path) -> dict[str, Any] | None:
    """The model of a tokenizer.json with merges. Raises DcclipError for one of bytes, whose pieces have no script."""
    file = source / "tokenizer.json"
    if not file.is_file():
        if (source / "merges.txt").is_file():
            raise _of_bytes(source)
        return None
    state = read_json(file, COPY_AGAIN)
    if "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("normalizer")]):
        raise _of_bytes(source)
    model: dict[str, Any] = state["model"]
    return model if "merges" in model else None


def _of_bytes(source: Path) -> DcclipError:
    what = Message("the vocabulary of {} is of bytes, as CLIP's English one: no piece belongs to a language", source)
    return DcclipError(what, "trim a multilingual model: of XLM-R's, mT5's, Gemma's or BERT's vocabulary")
