"""Source of an export: a model, with its tokenizer and preprocessing in forms that need no torch.

The tokenizer has only steps that JavaScript's tokenizers.js does as Python does.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.exporters.samples import TEXTS
from dcclip_cli.inference.encoder import Encoder, TorchEncoder, load_encoder
from dcclip_cli.inference.onnx_encoder import OnnxEncoder, read_description
from dcclip_cli.model.preprocess import Preprocessing, read_preprocessing
from dcclip_cli.model.reference import ModelSource
from dcclip_cli.model.tokenizer import copy_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers


@dataclass
class Source:
    """A loaded model. Texts are padded with `padding_id` to the longest of them, or to
    `context_length` if `fixed`.

    `folder` is the model directory or the bundle, if it was loaded from one. The graphs cut
    embeddings to `dims` numbers.
    """

    encoder: Encoder
    tokenizer: Tokenizer
    context_length: int
    padding_id: int
    fixed: bool
    preprocessing: Preprocessing
    folder: Path | None = None
    dims: int | None = None

    def __post_init__(self) -> None:
        self.tokenizer = for_all_clients(self.tokenizer)

    @property
    def towers(self) -> Towers:
        assert isinstance(self.encoder, TorchEncoder), "it is a bundle"
        return self.encoder.towers

    def release(self) -> None:
        """Free the memory of the weights, whatever still refers to them: torch's ONNX exporter
        does.
        """
        for weight in (*self.towers.parameters(), *self.towers.buffers()):
            weight.data = weight.data.new_empty(0)
        gc.collect()


def load_source(reference: ModelSource) -> Source:
    """The model meant by a reference, on the CPU. Raises DcclipError for models that cannot leave
    torch.
    """
    if reference.kind == "bundle":
        description, record = read_description(reference.path)
        bundle = OnnxEncoder(reference.path, "cpu")
        bundle.name = description.name.removesuffix(
            f"-{description.precision}"
        )  # the model's, as its fingerprint
        bundle.fingerprint = record.content.get("model_fingerprint") or description.fingerprint
        tokenizer = load_tokenizer(reference.path)
        preprocessing = read_preprocessing(description.preprocessing)
        length = description.context_length
        padding = description.padding_id
        return Source(
            bundle,
            tokenizer,
            length,
            padding,
            description.fixed_length,
            preprocessing,
            reference.path,
        )
    encoder = load_encoder(reference, "cpu")
    if not isinstance(encoder, TorchEncoder):
        raise DcclipError(
            "{} is an export bundle", "give a folder downloaded with hf download", reference.target
        )
    towers: Any = encoder.towers
    preprocessing = (
        towers.preprocessing or getattr(towers, "match_patches", towers.match_preprocessing)()
    )
    if reference.kind == "hf":
        tokenizer = copy_tokenizer(_backend(towers, towers.tokenizer))
        padding = int(towers.tokenizer.pad_token_id)
        source = Source(
            encoder, tokenizer, towers.context_length, padding, towers.fixed_length, preprocessing
        )
    elif reference.kind == "folder" and towers.library_tokenizer is None:
        tokenizer = load_tokenizer(reference.path)
        length = towers.context_length
        padding = tokenizer.token_to_id("<pad>") or 0
        source = Source(
            encoder, tokenizer, length, padding, _is_fixed(towers), preprocessing, reference.path
        )
    else:
        import open_clip

        from_open_clip = towers.library_tokenizer
        if isinstance(from_open_clip, open_clip.tokenizer.SimpleTokenizer):
            tokenizer = _byte_pairs(from_open_clip)
            padding = 0
        else:
            inner = getattr(from_open_clip, "tokenizer", from_open_clip)
            tokenizer = _with_cleaning(
                copy_tokenizer(_backend(towers, inner)), from_open_clip.clean_fn
            )
            padding = int(inner.pad_token_id or 0)
        length = int(from_open_clip.context_length)
        source = Source(encoder, tokenizer, length, padding, _is_fixed(towers), preprocessing)
    expected = source.towers.tokenize(list(TEXTS)).ids.numpy()
    token_ids = np.asarray([encoding.ids for encoding in prepare(source).encode_batch(list(TEXTS))])
    width = min(
        token_ids.shape[1], expected.shape[1]
    )  # open_clip pads to the full length, which changes nothing
    for text, ids, expected_ids in zip(TEXTS, token_ids, expected, strict=True):
        if list(ids[:width]) != list(expected_ids[:width]) or set(expected_ids[width:]) - {
            source.padding_id
        }:
            library = type(source.towers.model).__module__.split(".")[0]
            raise DcclipError(
                "{}: without {}, its tokenizer would split '{}' differently",
                "export another model, or report this as a bug",
                source.towers.name,
                library,
                text[:30],
            )
    return source


def _backend(towers: Towers, tokenizer: Any) -> Tokenizer:
    """The tokenizer of the tokenizers library inside one of transformers."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        reason = Message(
            "{} has a {} without a tokenizer.json", towers.name, type(tokenizer).__name__
        )
        raise DcclipError(
            reason, "save it as a fast tokenizer with transformers, or export another model"
        )
    return backend


def _byte_pairs(simple: Any) -> Tokenizer:
    """open_clip's own tokenizer (the original CLIP's) as a tokenizer of the tokenizers library."""
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    tokenizer = Tokenizer(
        models.BPE(simple.encoder, merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    begin = "<start_of_text>"
    end = "<end_of_text>"
    tokenizer.add_special_tokens([begin, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(begin, simple.sot_token_id), (end, simple.eot_token_id)],
    )
    return _with_cleaning(tokenizer, simple.clean_fn)


def _with_cleaning(tokenizer: Tokenizer, clean: Callable[[str], str]) -> Tokenizer:
    """The tokenizer with open_clip's cleaning of texts as its first steps.

    That includes ftfy's changes to valid texts (full-width letters and punctuation become narrow,
    curly quotes straight), but not its repair of wrongly decoded ones.
    """
    narrow = {0x3000: " "} | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    straight = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
    steps: list[Any] = [
        normalizers.Replace(chr(code), char) for code, char in (narrow | straight).items()
    ]
    steps.append(normalizers.NFC())
    if clean("A_B.") == "a b":  # "canonicalize", of SigLIP's tokenizers
        punctuation = Regex(r"[!-/:-@\[-^`{-~]")
        steps += [
            normalizers.Replace("_", " "),
            normalizers.Replace(punctuation, ""),
            normalizers.Lowercase(),
        ]
    elif clean("A") == "a":
        steps.append(normalizers.Lowercase())
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def prepare(source: Source) -> Tokenizer:
    """The source's tokenizer, set to truncate texts and to pad the shorter texts of a batch."""
    tokenizer = source.tokenizer
    length = source.context_length
    tokenizer.enable_truncation(length)
    token = tokenizer.id_to_token(source.padding_id) or ""
    tokenizer.enable_padding(
        pad_id=source.padding_id, pad_token=token, length=length if source.fixed else None
    )
    return tokenizer


def _is_fixed(towers: Any) -> bool:
    """Whether padding changes the features of an open_clip text tower: it does unless a causal
    mask hides it.
    """
    if hasattr(towers.model, "text"):
        return not towers.takes_any_length
    # open_clip's CLIP class has the text layers in the model itself
    return towers.model.text_pool_type not in ("argmax", "eos") or towers.model.attn_mask is None


_MARK = "\ue000"  # of private use, so in no text: before a word that is a token only as a whole
# Insides of character classes: what Python takes for a part of a word, and for white space.
_WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\u200c\u200d"
_SPACE = "\\s\\x1c-\\x1f"
_SPACES = {
    "type": "Split",
    "pattern": {"Regex": f"[{_SPACE}]+"},
    "behavior": "Removed",
    "invert": False,
}
_MARKS = {**_SPACES, "pattern": {"Regex": "[\\p{P}!-/:-@\\[-`{-~]"}, "behavior": "Isolated"}
_SPLITS = {
    "WhitespaceSplit": [_SPACES],
    "PunctuationIsolated": [_MARKS],
    "BertPreTokenizer": [_SPACES, _MARKS],
}
# Gemma's tokenizer has it before a split at spaces, where none is left.
_JOINED = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Steps, models and ways to split that tokenizers.js has, and does alike.
_ALIKE = {
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Replace",
    "Prepend",
}
_ALIKE |= {
    "Precompiled",
    "BertNormalizer",
    "Split",
    "Metaspace",
    "ByteLevel",
    "WordPiece",
    "Unigram",
    "BPE",
}
_ALIKE |= {"Removed", "Isolated"}


def for_all_clients(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same tokens for the same texts, in JavaScript as well, as far as its
    kinds of steps allow.

    tokenizers.js takes other characters for white space, finds words that are tokens inside longer
    words, and makes one of unknown characters next to each other also where they are of two words,
    as Chinese characters are.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    added = state["added_tokens"]
    cleaning = _steps(state["normalizer"])
    steps = [
        new
        for step in _steps(state["pre_tokenizer"])
        if _JOINED not in cleaning or step.get("pattern") != {"String": " "}
        for new in _SPLITS.get(step["type"] + step.get("behavior", ""), [step])
    ]
    if words := [token for token in added if token["single_word"] and token["normalized"]]:
        normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
        any_word = _any_of({normalize(token["content"]) for token in words})
        cleaning.append(_replace(f"(?<![{_WORD}{_MARK}])(?={any_word}(?![{_WORD}]))", _MARK))
        clean = Tokenizer.from_str(
            json.dumps({**state, "normalizer": _sequence(normalizers=cleaning)})
        ).normalizer
        for token in words:
            token.update(content=clean.normalize_str(token["content"]), single_word=False)
    if model["type"] == "Unigram" and all(
        step["type"] == "Split" and not step["invert"] for step in steps
    ):
        for unknown in (
            token for token in added if token["id"] == model["unk_id"] and not token["normalized"]
        ):
            unknown["normalized"] = True
            tokens = [piece for piece, _ in model["vocab"]] + [token["content"] for token in added]
            cleaning.append(_replace(_unknown(tokens, steps), unknown["content"]))
    state |= {
        "normalizer": _sequence(normalizers=cleaning),
        "pre_tokenizer": _sequence(pretokenizers=steps),
    }
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def check_alike(tokenizer: Tokenizer, name: str) -> None:
    """Raise DcclipError if JavaScript cannot read a tokenizer of `for_all_clients` as Python does."""
    state = json.loads(tokenizer.to_str())
    parts = json.dumps([state[part] for part in ("normalizer", "pre_tokenizer", "model")])
    single = {"single_word" for token in state["added_tokens"] if token["single_word"]}
    if unlike := single | set(re.findall(r'"(?:type|behavior)": "(\w+)"', parts)) - _ALIKE:
        raise DcclipError(
            "the tokenizer of {} has {}, which behaves differently in JavaScript",
            "use a format for Python, such as --format open_clip, or another model",
            name,
            ", ".join(sorted(unlike)),
        )


def _unknown(tokens: Collection[str], steps: Collection[Mapping[str, Any]]) -> str:
    """A pattern of what is one unknown token: characters of a word, or one that `steps` isolate,
    that is no token.

    A character that is in longer tokens only is left where it is in one of these.
    """
    characters = {token for token in tokens if len(token) == 1} | {_MARK}
    inside = {
        (token[:at], token[at:])
        for token in tokens
        for at, character in enumerate(token)
        if character not in characters | {" "}
    }
    longer = [f"(?<={_literal(before)}){_literal(rest)}" for before, rest in sorted(inside)]
    ends = [step["pattern"]["Regex"] for step in steps if step.get("behavior") == "Isolated"]
    # first: it is quick, and false for most
    unknown = f"(?=[^{_literal(''.join(sorted(characters)))}{_SPACE}])"
    return f"{unknown}(?:(?:{unknown}(?!{'|'.join(ends + longer)}).)+|(?!{'|'.join(longer)}).)"


def _any_of(texts: Collection[str]) -> str:
    """A pattern of the longest of some texts that is there."""
    by_first = groupby(sorted(filter(None, texts)), key=lambda text: text[0])
    longer = "|".join(
        _literal(first) + _any_of([text[1:] for text in group]) for first, group in by_first
    )
    return (
        f"(?:{longer}|(?!{longer}))"
        if longer and "" in texts
        else f"(?:{longer})"
        if longer
        else ""
    )


def _literal(text: str) -> str:
    """A text in a pattern, in or outside a class of characters."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda match: f"\\x{ord(match[0]):02x}", text)


def _sequence(**steps: list[Any]) -> dict[str, Any] | None:
    return {"type": "Sequence", **steps} if any(steps.values()) else None


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _steps(step: Any) -> list[Any]:
    """The steps of a normalizer or pre-tokenizer, of which each is one or a Sequence."""
    inner = step and (step.get("normalizers") or step.get("pretokenizers"))
    return (
        [inner_step for part in inner for inner_step in _steps(part)]
        if inner
        else [step]
        if step
        else []
    )
