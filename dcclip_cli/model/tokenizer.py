"""Tokenizers: of students, trained on captions or cut out of the teacher's, and of others with
fewer pieces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json, write_json
from dcclip_cli.core.text import HAN_BMP

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Tokens

# Begin, padding, end, unknown, as in XLM-RoBERTa.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_TRIAL_TEXTS = ("一张狗的照片", "a photo of a dog", "", "🐕\u200d🦺 \ufffd é, 1!", "长" * 600)
BEGIN_ID, PADDING_ID, END_ID, UNKNOWN_ID = range(4)
_STEP = 1e-4  # `min_score_penalty_delta` in tokenizers' UnigramTrainer
_TRAIN_VOCABULARY = Message("set student.text.vocabulary: {{from: data, size: ...}}")


def train_tokenizer(captions: Iterable[str], size: int) -> Tokenizer:
    """A Unigram tokenizer of at most `size` tokens, lower-cased and NFKC-normalised, Chinese in
    single characters.

    Single characters let the model read Chinese words that no caption contains as a whole. NFKC
    unifies full-width punctuation and letters with the usual ones. The same captions give the same
    tokenizer. Raises DcclipError if `size` is less than the number of different characters in the
    captions.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(f"[{HAN_BMP}]"), "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    try:
        tokenizer.train_from_iterator(captions, trainer)
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise DcclipError(
            "cannot train a vocabulary of {} tokens: {}",
            "increase student.text.vocabulary.size",
            size,
            error,
        ) from None
    tokenizer = _in_fixed_order(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BEGIN_ID), ("</s>", END_ID)]
    )
    return tokenizer


def _in_fixed_order(tokenizer: Tokenizer) -> Tokenizer:
    """The trained tokenizer with its tokens in order of falling score, then of name, with scores
    rounded.

    The trainer iterates over hash maps: from run to run, equal scores change places and sums
    differ in their last bits, up to 4e-11 on 60,000 captions, so that a student built twice would
    have different rows for the same tokens.
    """
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    scores: dict[str, float] = dict(vocab[len(SPECIAL) :])
    # Characters that were pruned and put back have the lowest score, plus 0, 1, 2, ... times
    # `_STEP`, in the order of a hash map: they get these scores in order of their names. Other
    # characters with one of these scores cannot be told from them, and are ordered with them.
    lowest = min(scores.values(), default=0.0)
    restored = list[str]()
    singles: dict[float, list[str]] = {}
    for token, score in scores.items():
        if len(token) == 1:
            singles.setdefault(round((score - lowest) / _STEP, 4), []).append(token)
    step = 0.0
    while step in singles:
        restored += singles[step]
        step += 1
    scores |= dict(zip(sorted(restored), [scores[token] for token in restored], strict=True))
    trained = [(token, round(score, 6)) for token, score in scores.items()]
    state["model"]["vocab"] = vocab[: len(SPECIAL)] + sorted(
        trained, key=lambda entry: (-entry[1], entry[0])
    )
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def trim_tokenizer(
    source: Path, captions: Iterable[str], size: int, characters: bool = False
) -> Tokenizer:
    """The teacher's tokenizer with only the tokens that the captions use, at most `size` of them,
    the commonest first.

    Words that were added to it, each a token of its own, are tokens like the others. Scores stay,
    and with them the cost of an unknown character, which depends on the lowest score: a text whose
    tokens are all kept is tokenized exactly as before. With `characters`, single characters that
    no caption contains fill the rest of `size`, ASCII first, then by score. `source` is a
    directory with a tokenizer.json. Raises DcclipError if that is missing or not a Unigram
    tokenizer (XLM-RoBERTa's is one).
    """
    check_trimmable(source)
    full = Tokenizer.from_file(str(source / "tokenizer.json"))
    state = json.loads(full.to_str())
    vocab: list[list[Any]] = state["model"]["vocab"]
    if full.get_vocab_size() <= size:
        return full
    counts: Counter[int] = Counter()
    for encoding in full.encode_batch(list(captions), add_special_tokens=False):
        counts.update(encoding.ids)
    always = {token["id"] for token in state["added_tokens"] if token["special"]} | {
        state["model"]["unk_id"]
    }
    always |= {index for index, (token, _) in enumerate(vocab) if token == "▁"}
    by_frequency = [
        index for index, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    if characters:  # ASCII first, then by score
        plain = {index: token.removeprefix("▁") for index, (token, _) in enumerate(vocab)}
        single = [index for index, character in plain.items() if len(character) == 1]
        single.sort(key=lambda index: (not plain[index].isascii(), -vocab[index][1]))
        by_frequency = list(dict.fromkeys([*by_frequency, *single]))
    ids = sorted(
        always
        | set(
            [index for index in by_frequency if index not in always][: max(0, size - len(always))]
        )
    )
    return keep_tokens(state, ids)


def check_trimmable(source: Path, hint: str = _TRAIN_VOCABULARY) -> None:
    """Raise DcclipError unless a directory has a Unigram tokenizer with the special tokens that a
    student needs.
    """
    file = source / "tokenizer.json"
    if not file.is_file():
        raise DcclipError("{} has no tokenizer.json", hint, source)
    model = read_json(file, hint).get("model", {})
    kind = model.get("type", "Unigram" if "unk_id" in model else None)
    if kind != "Unigram":
        raise DcclipError(
            "{} is a {} tokenizer; only Unigram tokenizers can be trimmed", hint, file, kind
        )
    tokens = {token for token, _ in model.get("vocab", ())}
    if missing := [token for token in ("<pad>", "</s>") if token not in tokens]:
        raise DcclipError("the teacher's tokenizer has no {} token", hint, missing[0])


def copy_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without the padding and truncation set by its last caller."""
    state = json.loads(tokenizer.to_str())
    state["padding"] = state["truncation"] = None
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write the files from which transformers, and so open_clip, load the tokenizer."""
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
    write_json(folder / "tokenizer_config.json", config)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a model directory or bundle. Raises DcclipError if it is missing or
    damaged.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DcclipError(
            "{} has no tokenizer.json",
            "create the model again, or copy the whole directory",
            folder,
        )
    with tokenizer_errors(str(file)):
        return Tokenizer.from_file(str(file))


@contextmanager
def tokenizer_errors(where: str) -> Iterator[None]:
    """Turn what the tokenizers library raises, Exception and panics, into a DcclipError that
    begins with `where`.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DcclipError(
            "{} is not a tokenizer: {}", "copy the model directory again", where, reason
        ) from None


def check_tokenizer(
    tokenize: Callable[[list[str]], Tokens], tokens: int, rows: int, where: str
) -> None:
    """Try a tokenizer of `tokens`. Raises DcclipError where it is not that of a text tower with so
    many `rows`.
    """
    hint = Message(
        "copy the whole model directory again: tokenizer and weights are from different models"
    )
    if tokens > rows or 2 * tokens < rows:
        raise DcclipError(
            "{} has {:,} tokens, but the text tower has {:,}: they are from different models",
            hint,
            where,
            tokens,
            rows,
        )
    with tokenizer_errors(where):
        ids = tokenize(list(_TRIAL_TEXTS)).ids
    if (largest := int(ids.max())) >= rows:
        raise DcclipError(
            "{} returned token id {:,}, but the text tower has only {:,} token "
            "embeddings: they are from different "
            "models",
            hint,
            where,
            largest,
            rows,
        )


def tokenize_with(
    tokenizer: Tokenizer, text_cfg: Mapping[str, Any], where: str = "the tokenizer of the student"
) -> Callable[[list[str]], Tokens]:
    """A function from texts to Tokens for open_clip's text tower; truncated texts keep `</s>`.
    Both raise DcclipError.

    Texts are padded to the longest, or to the context length where attention is bidirectional and
    so sees padding.
    """
    context_length = text_cfg.get("context_length", 77)
    length = context_length if text_cfg.get("no_causal_mask") else None
    padding = tokenizer.token_to_id("<pad>")
    if padding is None:
        raise DcclipError("{} has no token <pad>", "copy the model directory again", where)
    with tokenizer_errors(where):
        tokenizer.enable_truncation(context_length)
        tokenizer.enable_padding(pad_id=padding, pad_token="<pad>", length=length)
    return partial(_tokenized, tokenizer, where)  # which can be sent to a process


def _tokenized(tokenizer: Tokenizer, where: str, texts: list[str]) -> Tokens:
    import torch

    from dcclip_cli.model.towers import Tokens

    with tokenizer_errors(where):
        encoded = tokenizer.encode_batch([" ".join(text.split()) for text in texts])
    ids = torch.tensor([item.ids for item in encoded])
    return Tokens(ids, torch.tensor([item.attention_mask for item in encoded]))


def keep_tokens(state: dict[str, Any], ids: Iterable[int]) -> Tokenizer:
    """The Unigram tokenizer of a tokenizer.json with only these tokens, renumbered in the order of
    `ids`.
    """
    vocab = state["model"]["vocab"]
    new_ids = {old: new for new, old in enumerate(ids)}
    # An unknown character costs the lowest score of all less 10. The score of <unk> itself is not
    # used otherwise: with the source's lowest score in it, unknown characters keep their cost.
    vocab[state["model"]["unk_id"]][1] = min(score for _, score in vocab)
    state["model"]["vocab"] = [entry for number, entry in enumerate(vocab) if number in new_ids]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] in new_ids]
    return renumbered(state, new_ids)


def renumbered(state: dict[str, Any], new: Mapping[int, int]) -> Tokenizer:
    """The tokenizer of a tokenizer.json whose vocabulary was cut or reordered, its special tokens
    under `new` ids.
    """
    if state["model"].get("unk_id") is not None:
        state["model"]["unk_id"] = new.get(state["model"]["unk_id"], state["model"]["unk_id"])
    for token in state["added_tokens"]:
        token["id"] = new.get(token["id"], token["id"])
    processor = state.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [new.get(index, index) for index in token["ids"]]
        for name in ("cls", "sep"):  # of BERT's and RoBERTa's
            if name in part:
                part[name] = [part[name][0], new.get(part[name][1], part[name][1])]
    if padding := state.get("padding"):
        padding["pad_id"] = new.get(padding["pad_id"], padding["pad_id"])
    state["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
