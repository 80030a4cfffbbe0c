"""tokenizer.json in steps that every client does alike: JavaScript's tokenizers.js does some in another way."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MARK = "\ue000"  # of private use, so in no text: before a word that is a token only as a whole
# Insides of character classes: what Python takes for a part of a word, and for white space.
_WORD, _SPACE = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\u200c\u200d", "\\s\\x1c-\\x1f"
_SPACES = {"type": "Split", "pattern": {"Regex": f"[{_SPACE}]+"}, "behavior": "Removed", "invert": False}
_MARKS = {**_SPACES, "pattern": {"Regex": "[\\p{P}!-/:-@\\[-`{-~]"}, "behavior": "Isolated"}
_SPLITS = {"WhitespaceSplit": [_SPACES], "PunctuationIsolated": [_MARKS], "BertPreTokenizer": [_SPACES, _MARKS]}
# Steps, models and ways to split that tokenizers.js has, and does alike.
_ALIKE = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Replace", "Prepend"}
_ALIKE |= {"Precompiled", "BertNormalizer", "Split", "Metaspace", "ByteLevel", "WordPiece", "Unigram", "BPE"}
_ALIKE |= {"Removed", "Isolated"}


def for_all_clients(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with the same tokens for the same texts, in JavaScript as well, as far as its kinds of steps allow.

    tokenizers.js takes other characters for white space, finds words that are tokens inside longer words, and makes one
    of unknown characters next to each other also where they are of two words, as Chinese characters are.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    model, added, normalizers = state["model"], state["added_tokens"], _steps(state["normalizer"])
    steps = [
        new
        for step in _steps(state["pre_tokenizer"])
        for new in _SPLITS.get(step["type"] + step.get("behavior", ""), [step])
    ]
    if words := [token for token in added if token["single_word"] and token["normalized"]]:
        read = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
        whole = _any_of({read(token["content"]) for token in words})
        normalizers.append(_replace(f"(?<![{_WORD}{_MARK}])(?={whole}(?![{_WORD}]))", _MARK))
        clean = Tokenizer.from_str(json.dumps({**state, "normalizer": _sequence(normalizers=normalizers)})).normalizer
        for token in words:
            token.update(content=clean.normalize_str(token["content"]), single_word=False)
    if model["type"] == "Unigram" and all(step["type"] == "Split" and not step["invert"] for step in steps):
        for unknown in (token for token in added if token["id"] == model["unk_id"] and not token["normalized"]):
            unknown["normalized"] = True
            tokens = [piece for piece, _ in model["vocab"]] + [token["content"] for token in added]
            normalizers.append(_replace(_unknown(tokens, steps), unknown["content"]))
    state |= {"normalizer": _sequence(normalizers=normalizers), "pre_tokenizer": _sequence(pretokenizers=steps)}
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def check_alike(tokenizer: Tokenizer, name: str) -> None:
    """Raise DcclipError if JavaScript cannot read a tokenizer of `for_all_clients` as Python does."""
    state = json.loads(tokenizer.to_str())
    parts = json.dumps([state[part] for part in ("normalizer", "pre_tokenizer", "model")])
    single = {"single_word" for token in state["added_tokens"] if token["single_word"]}
    if other := single | set(re.findall(r'"(?:type|behavior)": "(\w+)"', parts)) - _ALIKE:
        what = Message(
            "the tokenizer of {} has {}, which JavaScript reads otherwise than Python", name, ", ".join(sorted(other))
        )
        raise DcclipError(what, "use a format that no browser reads, as --format open_clip, or another model")


def _unknown(tokens: Collection[str], steps: Collection[Mapping[str, Any]]) -> str:
    """A pattern of what is one unknown token: characters of a word, or one that `steps` isolate, that is no token.

    A character that is in longer tokens only is left where it is in one of these.
    """
    known = {token for token in tokens if len(token) == 1} | {_MARK}
    inside = {(token[:at], token[at:]) for token in tokens for at, one in enumerate(token) if one not in known | {" "}}
    left = [f"(?<={_literal(before)}){_literal(rest)}" for before, rest in sorted(inside)]
    ends = [step["pattern"]["Regex"] for step in steps if step.get("behavior") == "Isolated"]
    other = f"(?=[^{_literal(''.join(sorted(known)))}{_SPACE}])"  # first: it is quick, and false for most
    return f"{other}(?:(?:{other}(?!{'|'.join(ends + left)}).)+|(?!{'|'.join(left)}).)"


def _any_of(texts: Collection[str]) -> str:
    """A pattern of the longest of some texts that is there."""
    by_first = groupby(sorted(filter(None, texts)), key=lambda text: text[0])
    longer = "|".join(_literal(first) + _any_of([text[1:] for text in several]) for first, several in by_first)
    return f"(?:{longer}|(?!{longer}))" if longer and "" in texts else f"(?:{longer})" if longer else ""


def _literal(text: str) -> str:
    """A text in a pattern, in or outside a class of characters."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _sequence(**steps: list[Any]) -> dict[str, Any] | None:
    return {"type": "Sequence", **steps} if any(steps.values()) else None


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _steps(step: Any) -> list[Any]:
    """The steps of a normalizer or pre-tokenizer, of which each is one or a Sequence."""
    inner = step and (step.get("normalizers") or step.get("pretokenizers"))
    return [one for part in inner for one in _steps(part)] if inner else [step] if step else []
