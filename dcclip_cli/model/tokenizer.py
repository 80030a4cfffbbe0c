"""Which pieces a student's text tower knows: a tokenizer trained on captions, or the teacher's cut to them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dcclip_cli.model.towers import Tokens

# As in XLM-RoBERTa: begin, padding, end, unknown.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BEGIN_ID, PADDING_ID, END_ID, UNKNOWN_ID = range(4)
_HAN = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"


def train_tokenizer(captions: Iterable[str], size: int) -> Tokenizer:
    """A Unigram tokenizer of at most `size` pieces, case-folded and NFKC-normalised, Chinese in single characters.

    Single characters let the model read Chinese words that no caption had as a whole. NFKC makes full-width
    punctuation and letters one with the usual ones. The same captions give the same tokenizer. Raises DcclipError where
    `size` is less than the captions' characters.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_HAN), "isolated"), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    try:
        tokenizer.train_from_iterator(captions, trainer)
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise DcclipError(
            f"no vocabulary of {size} pieces can be made: {error}", "make student.text.vocabulary.size larger"
        ) from None
    return _with_ends(_in_fixed_order(tokenizer))


def _with_ends(tokenizer: Tokenizer) -> Tokenizer:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN_ID), ("</s>", END_ID)]
    )
    return tokenizer


def _in_fixed_order(tokenizer: Tokenizer) -> Tokenizer:
    """The trained tokenizer with its pieces by falling score, then by name, scores rounded.

    The trainer goes through hash maps: from run to run equal scores change places and sums differ in their last bits,
    up to 4e-11 on 60,000 captions, so that a student built twice would have other rows for the same pieces.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    pieces = [(piece, round(score, 6)) for piece, score in state["model"]["vocab"]]
    special, trained = pieces[: len(SPECIAL)], pieces[len(SPECIAL) :]
    state["model"]["vocab"] = special + sorted(trained, key=lambda entry: (-entry[1], entry[0]))
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def trim_tokenizer(source: Path, captions: Iterable[str], size: int, characters: bool = False) -> Tokenizer:
    """The teacher's tokenizer with only the pieces that the captions use, at most `size` of them, the commonest first.

    Scores stay, and with them what an unknown character costs, which hangs on the lowest score: so text whose pieces
    are all kept is cut exactly as before. With `characters`, single ones that no caption has fill up what is left of
    `size`, ASCII first, then by score. `source` is a directory with a tokenizer.json. Raises DcclipError where it isn't
    a Unigram tokenizer (XLM-RoBERTa's is).
    """
    from tokenizers import Tokenizer

    file = source / "tokenizer.json"
    if not file.is_file():
        raise DcclipError(f"{source} has no tokenizer.json", "write student.text.vocabulary: {from: data, size: ...}")
    full = Tokenizer.from_file(str(file))
    state = json.loads(full.to_str())
    if state["model"].get("type") != "Unigram":
        raise DcclipError(
            f"{file} is a {state['model'].get('type')} tokenizer; only Unigram ones can be trimmed",
            "write student.text.vocabulary: {from: data, size: ...}",
        )
    pieces: list[list[Any]] = state["model"]["vocab"]
    if len(pieces) <= size:
        return full
    counts: Counter[int] = Counter()
    for encoding in full.encode_batch(list(captions), add_special_tokens=False):
        counts.update(encoding.ids)
    always = {token["id"] for token in state["added_tokens"]} | {state["model"]["unk_id"]}
    always |= {index for index, (piece, _) in enumerate(pieces) if piece == "▁"}
    wanted = [index for index, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    if characters:
        single = [index for index, (piece, _) in enumerate(pieces) if len(piece.removeprefix("▁")) == 1]
        ascii_first = sorted(
            single, key=lambda index: (not pieces[index][0].removeprefix("▁").isascii(), -pieces[index][1])
        )
        wanted = list(dict.fromkeys([*wanted, *ascii_first]))
    chosen = set([index for index in wanted if index not in always][: max(0, size - len(always))]) | always
    kept = sorted(chosen)
    # An unknown character costs the lowest score of all less 10. The score of <unk> itself is used for nothing else:
    # with the teacher's lowest one in it, unknown characters get no cheaper than they were.
    lowest = min(score for _, score in pieces)
    pieces[state["model"]["unk_id"]][1] = lowest
    new = {old: position for position, old in enumerate(kept)}
    state["model"]["vocab"] = [pieces[index] for index in kept]
    state["model"]["unk_id"] = new[state["model"]["unk_id"]]
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in (state.get("post_processor") or {}).get("special_tokens", {}).values():
        token["ids"] = [new[index] for index in token["ids"]]
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write the files from which transformers, and so open_clip, loads the tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a model directory or bundle. Raises DcclipError where it is missing or broken."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DcclipError(f"{folder} has no tokenizer.json", "make the model again, or copy the whole directory")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise DcclipError(f"{file} is not a tokenizer: {error}", "copy the model directory again") from None


def tokenize_with(tokenizer: Tokenizer, context_length: int) -> Callable[[list[str]], Tokens]:
    """A function from texts to Tokens, padded to the longest of them; too long texts lose their end, but not `</s>`."""
    import torch

    from dcclip_cli.model.towers import Tokens

    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>"), pad_token="<pad>")

    def tokenize(texts: list[str]) -> Tokens:
        encoded = tokenizer.encode_batch([" ".join(text.split()) for text in texts])
        ids = torch.tensor([item.ids for item in encoded])
        return Tokens(ids, torch.tensor([item.attention_mask for item in encoded]))

    return tokenize
