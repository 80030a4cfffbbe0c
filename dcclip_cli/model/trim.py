"""Models cut to languages: directories whose vocabulary and embedding table have only the pieces that these use."""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dcclip_cli.checksums import write_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_folder, read_json, write_json
from dcclip_cli.hub import files_on_hub
from dcclip_cli.model.hub_models import COPY_AGAIN, SENTENCEPIECE, TRANSFORMERS_CONFIG
from dcclip_cli.model.model_dir import PROVENANCE, read_provenance, text_tower_sizes
from dcclip_cli.model.reference import ModelSource, directory_source, library_of
from dcclip_cli.model.tokenizer import (
    CONTROL,
    TOKENIZER_FILES,
    cut_tokenizer,
    load_tokenizer,
    merges_of,
    read_sentencepiece,
)
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    as_safetensors,
    find_weights,
    stored_tensors,
)
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.text import HAN

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

Language = Literal["zh", "en"]

MOST_DIFFERENCE = 1e-6  # of embeddings of length 1
_COMPARED, _AT_A_TIME = 64, 16  # texts whose embeddings are compared: a large text tower takes a second for some
_TABLES = ("word_embeddings.weight", "token_embedding.weight")
_OF_OTHERS = (".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf")  # weights of other libraries
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", *_OF_OTHERS)
_REPORT = Message("report this bug, with the name of the model")
_SPECIAL_IDS = re.compile(r".*_token_id|padding_idx|(pad|bos|eos|cls|sep|mask)_id")

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
_NORMAL = 1  # type of pieces in sentencepiece's files


@dataclass(frozen=True)
class TrimResult:
    """A trimmed model: what it was cut from and to, and how it compares with its source on texts.

    Of the `texts`, `compared` were embedded by both: `difference` is the largest of any number of their embeddings, of
    length 1. `split` are those that are split into other pieces than before. `unseen_split` is the share of other texts
    of this kind that are, estimated by choosing pieces with every second one; None if they were chosen by script.
    """

    folder: Path
    pieces: int
    pieces_before: int
    parameters: int
    parameters_before: int
    texts: int
    compared: int
    difference: float
    split: tuple[str, ...]
    unseen_split: float | None


@dataclass(frozen=True)
class _Source:
    """What is read of a model before it is cut. `ids` are those of each text without padding."""

    folder: Path
    vocab: Mapping[str, int]
    special: set[int]
    rows: int
    parameters: int
    normalize: Callable[[str], str | None]
    lower_cases: bool  # though its files do not say so
    ids: Mapping[str, np.ndarray]


def trim(
    folder: Path,
    out: Path,
    languages: Collection[Language],
    sample: Sequence[str],
    texts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> TrimResult:
    """Write the model in `folder` to `out` with only those pieces of its vocabulary that `languages` use.

    These are all pieces written in the languages' scripts, or, with `texts`, those that these texts and the `sample`
    are split into; and always special tokens, single characters and bytes. Other weights are copied, in the source's
    format and precision. Raises DcclipError, and writes nothing, if a text whose pieces are all kept is split in
    another way than before, or embedded differently.
    """
    talk = progress or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DcclipError("{} exists and is not empty", "choose another folder with --out, or remove this one", out)
    checked = list(dict.fromkeys([*sample, *(texts or ())]))
    towers = _load(folder, trust_remote_code, talk)
    source = _read(folder, towers, checked)
    piece_ids = _kept(source, languages, None if texts is None else checked)
    new = {old: number for number, old in enumerate(sorted(piece_ids))}
    covered = [text for text, ids in source.ids.items() if new.keys() >= set(ids.tolist())]
    compared = covered[:: max(1, len(covered) // _COMPARED)][:_COMPARED]
    talk.say(Message("embedding {} texts with {} and its trimmed copy for comparison", len(compared), folder.name))
    expected = _embed(towers, compared)
    del towers
    gc.collect()  # models refer to themselves; with it goes the source's file from memory
    with atomic_folder(out) as temporary:
        _write(source, temporary, out, new)
        trimmed = _load(temporary, trust_remote_code, talk)
        split = _compare_tokens(temporary, trimmed, source, new)
        difference = float(np.abs(_embed(trimmed, compared) - expected).max(initial=0))
        if not difference <= MOST_DIFFERENCE:
            raise DcclipError("embeddings of {} and its trimmed copy differ by {:.1g}", _REPORT, folder, difference)
        unseen_split = None
        if texts is not None:  # the share of every second text that is split otherwise with the pieces of the others
            piece_ids, held_out = _kept(source, languages, [*sample, *texts[::2]]), texts[1::2]
            splits = sum(not piece_ids >= set(source.ids[text].tolist()) for text in held_out)
            unseen_split = splits / max(1, len(held_out))
        result = TrimResult(
            folder=out,
            pieces=len(new),
            pieces_before=source.rows,
            parameters=trimmed.parameters_count(),
            parameters_before=source.parameters,
            texts=len(checked),
            compared=len(compared),
            difference=difference,
            split=tuple(split),
            unseen_split=unseen_split,
        )
        _add_to_card(temporary, result, languages, texts is not None)
    return result


def trimmable(reference: ModelSource) -> Path:
    """The directory of a model, downloaded if it is on the hub. Raises DcclipError for what is no model directory."""
    if reference.kind == "bundle":
        raise DcclipError("{} is an export bundle", "trim the model directory it was exported from", reference.location)
    if folder := reference.folder():
        return folder
    if not reference.on_hub:
        hint = Message("give the repository that contains the weights: hf-hub:ORG/NAME")
        raise DcclipError("{} is not a repository on the hub", hint, f"{reference.kind}:{reference.location}")
    files_on_hub(reference.location)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(reference.location, ignore_patterns=[f"*{suffix}" for suffix in _OF_OTHERS]))


def _load(folder: Path, trust_remote_code: bool, progress: Progress) -> Towers:
    source = replace(directory_source(folder, "open_clip"), trust_remote_code=trust_remote_code)
    return source.load(progress).requires_grad_(False).eval()


def _read(folder: Path, towers: Any, texts: Sequence[str]) -> _Source:
    library = getattr(towers, "library_tokenizer", None)  # open_clip's, which cleans texts first
    tokenizer = getattr(library, "tokenizer", None) if library else getattr(towers, "tokenizer", None)
    if library and tokenizer is None:
        raise DcclipError("{} has CLIP's vocabulary, which is English only", "use a multilingual model", folder)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None) or (None if tokenizer else load_tokenizer(folder))
    lower_cases: bool = getattr(towers, "lower_cases", False)
    clean: Any = getattr(library, "clean_fn", None) or getattr(tokenizer, "canonicalize_text", str)
    splits = backend is not None and type(backend.model).__name__ == "WordPiece"

    def normalize(text: str) -> str | None:
        text = text.lower() if lower_cases else clean(text)
        if backend is not None and backend.normalizer:
            text = backend.normalizer.normalize_str(text)
        if splits and len(words := backend.pre_tokenizer.pre_tokenize_str(text)) == 1:
            return str(words[0][0])
        return None if splits else text.replace(_WORD, " ").strip(" ")

    vocab = dict((tokenizer or backend).get_vocab())
    special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids) if tokenizer else set()
    rows, parameters = towers.vocabulary_rows, towers.parameters_count()
    ids_of_text: dict[str, np.ndarray] = {}
    for start in range(0, len(texts), 1000):
        part = list(texts[start : start + 1000])
        tokens = towers.tokenize(part)
        ids, real = tokens.ids.numpy().astype(np.int32), tokens.mask.numpy() > 0
        ids_of_text |= {text: row[mask] for text, row, mask in zip(part, ids, real, strict=True)}
    return _Source(folder, vocab, special, rows, parameters, normalize, lower_cases, ids_of_text)


def _kept(source: _Source, languages: Collection[Language], texts: Sequence[str] | None) -> set[int]:
    """The ids of the pieces to keep: of all written in the languages, or, if there are `texts`, those that they use."""
    configs = [source.folder / name for name in (TRANSFORMERS_CONFIG, CONFIG)]
    named = {number for file in configs if file.is_file() for number in _special_ids(read_json(file, COPY_AGAIN))}
    if texts is None:
        pieces = pieces_by_script(source.vocab, languages, source.normalize)
    else:
        names = {number: piece for piece, number in source.vocab.items()}
        pieces = {names[number] for number in set().union(*(source.ids[text].tolist() for text in texts))}
    single = _single(languages)  # so that any text in these languages is split into known pieces
    pieces |= {
        piece
        for piece in source.vocab
        if _BYTE.fullmatch(piece) or not (bare := _bare(piece)) or single.fullmatch(bare)
    }
    pieces = _with_needed(source.folder, pieces)
    ids = {source.vocab[piece] for piece in pieces if piece in source.vocab}
    return ids | source.special | {number for number in named if 0 <= number < source.rows}


def pieces_by_script(
    pieces: Iterable[str], languages: Collection[Language], normalize: Callable[[str], str | None]
) -> set[str]:
    """The pieces whose characters are all of `languages`, and which a text can become.

    `normalize` returns what the tokenizer makes of a text before it looks for pieces, None where it splits the text: a
    piece that it changes, as capitals where texts are lower-cased, is in no text.
    """
    allowed, single = re.compile(f"[{_inside(languages)}]*"), _single(languages)
    written = ((piece, _bare(piece)) for piece in pieces)
    spelled = ((piece, text) for piece, text in written if allowed.fullmatch(text) or single.fullmatch(text))
    return {piece for piece, text in spelled if not text or normalize(text) == text}


def _inside(languages: Collection[Language]) -> str:
    return _COMMON + "".join(_LETTERS[language] for language in languages)


def _single(languages: Collection[Language]) -> re.Pattern[str]:
    """One character that texts in these languages may contain."""
    return re.compile(f"[{_inside(languages)}{_SINGLES}]")


def _bare(piece: str) -> str:
    """A piece without the mark of a word's beginning or middle, its spaces as spaces."""
    return piece.removeprefix(_PART).strip(_WORD).replace(_WORD, " ") if piece != _PART else piece


def _with_needed(folder: Path, pieces: set[str]) -> set[str]:
    """The pieces with those that the tokenizer needs by its kind.

    These are unknown and control pieces, the Unigram piece of the lowest score, on which the cost of an unknown
    character depends, and the parts of BPE pieces. Raises DcclipError for a vocabulary of bytes.
    """
    file = folder / "tokenizer.json"
    state = read_json(file, COPY_AGAIN) if file.is_file() else {}
    of_bytes = "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("normalizer")])
    if of_bytes or (not state and (folder / "merges.txt").is_file()):
        message = Message(
            "{} has a byte-level vocabulary, like CLIP's: its tokens cannot be assigned to languages", folder
        )
        raise DcclipError(message, "trim a multilingual model, with the vocabulary of XLM-R, mT5, Gemma or BERT")
    if state:
        model = state["model"]
        pieces = pieces | {token["content"] for token in state["added_tokens"]}
        if not isinstance(model["vocab"], dict):
            unknown = {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
            return pieces | unknown | {min(model["vocab"], key=lambda entry: entry[1])[0]}
        unknown = {model["unk_token"]} if model.get("unk_token") else set()
        return with_parts(pieces | unknown, model) if "merges" in model else pieces | unknown
    for name in SENTENCEPIECE:
        if (folder / name).is_file():
            listed = read_sentencepiece(folder / name).pieces
            lowest = min((piece for piece in listed if piece.type == _NORMAL), key=lambda piece: piece.score)
            return pieces | {lowest.piece} | {piece.piece for piece in listed if piece.type in CONTROL}
    return pieces


def with_parts(pieces: Collection[str], model: Mapping[str, Any]) -> set[str]:
    """BPE pieces with all that they are merged from: without these a text could not become them."""
    ranks = {pair: rank for rank, pair in enumerate(merges_of(model))}
    needed = set(pieces)
    for piece in pieces:
        parts = list(piece)
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
            needed.add(parts[at])
    return needed


def _write(source: _Source, target: Path, out: Path, new: Mapping[int, int]) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder, rows = source.folder, source.rows
    for file in folder.iterdir():
        is_written = file.name.endswith(_WEIGHTS) or file.name in (*TOKENIZER_FILES, PROVENANCE)
        if file.is_file() and not is_written:
            shutil.copyfile(file, target / file.name)
    for name in (TRANSFORMERS_CONFIG, CONFIG, "tokenizer_config.json"):
        if (folder / name).is_file():
            config = _renumbered(read_json(folder / name, COPY_AGAIN), rows, new)
            if name == "tokenizer_config.json" and source.lower_cases:
                config["tokenizer_class"] = "Siglip2Tokenizer"  # so that transformers lower-cases, too
            text = config["model_cfg"]["text_cfg"] if name == CONFIG else {}
            if tower := text.get("hf_model_name"):
                # open_clip would take it from the hub; it looks for it under a name there or a path: the finished one.
                write_json(target / TRANSFORMERS_CONFIG, _renumbered(text_tower_sizes(folder, tower), rows, new))
                text["hf_model_name"] = str(out.resolve())
            write_json(target / name, config)
    cut_tokenizer(folder, target, {piece for piece, number in source.vocab.items() if number in new}, new)
    names = OPEN_CLIP_WEIGHTS if library_of(folder, "open_clip") == "open_clip" else TRANSFORMERS_WEIGHTS
    files = as_safetensors(find_weights(str(folder), names), folder.name)
    shapes = {name: tensor.shape for name, tensor in stored_tensors(files).items()}
    tables = [name for name, shape in shapes.items() if name.endswith(_TABLES) and shape[:1] == (rows,)]
    if len(tables) != 1:
        message = Message("{} has {} embedding tables of {:,} tokens instead of one", folder, len(tables), rows)
        raise DcclipError(message, "trim a model with one text tower")
    [table] = tables
    for file in files:
        weights = load_file(file)
        if table in weights:
            weights[table] = weights[table][torch.tensor(sorted(new))]
        with safe_open(file, "pt") as content:
            save_file(weights, target / (file.name if len(files) > 1 else names[0]), content.metadata())
    if len(files) > 1:
        [index] = folder.glob("*.safetensors.index.json")
        size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        write_json(target / index.name, read_json(index, COPY_AGAIN) | {"metadata": {"total_size": size}})
    if (folder / PROVENANCE).is_file():
        parameters = source.parameters - (rows - len(new)) * shapes[table][1]
        changes = {"parameters": parameters, "trimmed_from": folder.name}
        write_record(target / PROVENANCE, read_provenance(folder).content | changes)


def _special_ids(config: Any) -> Iterator[int]:
    """The ids of pieces that a configuration names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if _SPECIAL_IDS.fullmatch(key) and type(value) is int:
                yield value
            elif key != "vision_config":
                yield from _special_ids(value)


def _renumbered(config: Any, rows: int, new: Mapping[int, int]) -> Any:
    """A configuration in which a vocabulary of `rows` pieces has the size of `new`, and ids of pieces are new ones."""
    if isinstance(config, list):
        return [_renumbered(value, rows, new) for value in config]
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
            changed[key] = _renumbered(value, rows, new)
    return changed


def _compare_tokens(folder: Path, trimmed: Any, source: _Source, new: Mapping[int, int]) -> list[str]:
    """The texts that lose a piece. Raises DcclipError for other pieces than `new`, and texts split otherwise."""
    again = _read(folder, trimmed, list(source.ids))
    if dict(again.vocab) != {piece: new[number] for piece, number in source.vocab.items() if number in new}:
        raise DcclipError("the tokenizer of {} cannot be trimmed: its files disagree about its tokens", _REPORT, folder)
    split = []
    for text, ids in source.ids.items():
        if not new.keys() >= set(ids.tolist()):
            split.append(text)
        elif again.ids[text].tolist() != [new[number] for number in ids.tolist()]:
            raise DcclipError("the trimmed tokenizer of {} splits {!r:.100} differently", _REPORT, folder, text)
    return split


def _embed(towers: Towers, texts: Sequence[str]) -> np.ndarray:
    """(N, D) embeddings of length 1."""
    import torch

    embeddings = [np.zeros((0, 1), np.float32)] if not texts else []
    for start in range(0, len(texts), _AT_A_TIME):
        with torch.inference_mode():
            tokens = towers.tokenize(list(texts[start : start + _AT_A_TIME]))
            vectors = towers.text_features(tokens).embedding.float().numpy()
        embeddings.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.concatenate(embeddings)


def _add_to_card(folder: Path, result: TrimResult, languages: Collection[Language], by_texts: bool) -> None:
    card = folder / "README.md"
    text = card.read_text("utf-8").rstrip("\n") if card.is_file() else f"# {result.folder.name}"
    chosen = "the pieces that given texts use" if by_texts else "all pieces in the scripts of these languages"
    lines = (
        f"Trimmed by `dcclip trim` to the languages {', '.join(languages)}: its vocabulary has {result.pieces:,} of "
        f"{result.pieces_before:,} pieces ({chosen}, special tokens, single characters), the model "
        f"{result.parameters:,} of {result.parameters_before:,} parameters. All other weights are unchanged. A text "
        "whose pieces are all there has the same embedding as before (largest difference of "
        f"{result.compared} texts: {result.difference:.1g})."
    )
    if (folder / CONFIG).is_file() and (folder / TRANSFORMERS_CONFIG).is_file():
        lines += (
            "\nopen_clip finds its text tower if `hf_model_name` in open_clip_config.json is this directory's path."
        )
    card.write_text(f"{text}\n\n## Trimmed vocabulary\n\n{lines}\n", "utf-8")
