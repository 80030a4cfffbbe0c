"""Models cut to languages: directories whose vocabulary and embedding table have only the tokens
that these use.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcclip_cli.core.checksums import write_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_folder, read_json
from dcclip_cli.core.hub import files_on_hub
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.text import HAN
from dcclip_cli.model.hub_models import COPY_AGAIN, SENTENCEPIECE, TRANSFORMERS_CONFIG
from dcclip_cli.model.model_dir import PROVENANCE, read_provenance, text_tower_sizes
from dcclip_cli.model.reference import ModelSource, directory_source, library_of
from dcclip_cli.model.tokenizer import check_trimmable, keep_tokens
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_WEIGHTS,
    as_safetensors,
    find_weights,
)

Language = Literal["zh", "en"]

MOST_DIFFERENCE = 1e-6  # of embeddings of length 1
_COMPARED = 64  # texts whose embeddings are compared: a large text tower takes a second for some
_TABLES = ("word_embeddings.weight", "token_embedding.weight")
_OF_OTHERS = (
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".onnx_data",
    ".gguf",
)  # weights of other libraries
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json", *_OF_OTHERS)
_CONFIGS = (TRANSFORMERS_CONFIG, CONFIG, "tokenizer_config.json")
_REPORT = Message("report this bug, with the name of the model")
_MULTILINGUAL = Message(
    "trim a model with XLM-R's kind of vocabulary, for example: dcclip trim hf:BAAI/AltCLIP"
)

# Insides of character classes. Digits, punctuation, symbols and emoji are of all languages.
_COMMON = (
    "\\s\u0021-\u0040\\[-`\\{-\u007e\u00a0-\u00bf\u00d7\u00f7"  # of ASCII and Latin-1
    # punctuation, currencies, arrows, mathematics, emoji
    "\u2000-\u2bff\ufe00-\ufe0f\U0001f000-\U0001faff"
)
_LETTERS: Mapping[Language, str] = {
    "en": "A-Za-z",
    # With radicals, CJK punctuation, the middle dot, squared and circled forms, full-width forms;
    # without kana.
    "zh": f"{HAN}\u2e80-\u303f\u30fb\u31c0-\u31ef\u3200-\u33ff\ufe10-\ufe1f\ufe30-\ufe4f\uff01-\uff65\uffe0-\uffe6",
}
_LATIN = "A-Za-z\u00c0-\u024f\u0300-\u0304\u030c"  # with accents, as in pinyin
_SPACE = "\u2581"  # in sentencepiece's tokens
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TrimResult:
    """A trimmed model; the largest `difference` of embeddings of `compared` texts, and the texts
    that lose tokens.
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


def trim(
    folder: Path,
    out: Path,
    languages: Collection[Language],
    sample: Sequence[str],
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> TrimResult:
    """Write the model in `folder` to `out` with only those tokens of its vocabulary that
    `languages` use.

    These are all tokens in the languages' scripts, or those of `texts` and the `sample`; and
    always special tokens and single characters. Raises DcclipError, and writes nothing, if the
    tokenizer is no Unigram one, or if a text whose tokens are all kept is split in another way
    than before, or embedded differently.
    """
    talk = progress or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DcclipError(
            "{} exists and is not empty",
            "choose another folder with --out, or remove this one",
            out,
        )
    check_trimmable(folder, _MULTILINGUAL)
    state = read_json(folder / "tokenizer.json", COPY_AGAIN)

    towers = directory_source(folder, "open_clip").load(talk).eval()
    rows = towers.vocabulary_rows
    parameters = towers.parameters_count()
    ids_before = _token_ids(towers, [*sample, *(texts or ())])
    used = None if texts is None else set().union(*ids_before.values())
    kept_ids = sorted(ids_to_keep(state, languages, used))
    new_ids = {old: new for new, old in enumerate(kept_ids)}

    complete = [text for text, ids in ids_before.items() if new_ids.keys() >= set(ids)]
    compared = complete[:: max(1, len(complete) // _COMPARED)][:_COMPARED]
    talk.say(
        Message(
            "embedding {} texts with {} and its trimmed copy for comparison",
            len(compared),
            folder.name,
        )
    )
    expected = _embed(towers, compared)

    with atomic_folder(out) as temporary:
        _copy_files(folder, temporary, out, rows, len(kept_ids))
        keep_tokens(state, kept_ids).save(str(temporary / "tokenizer.json"))
        _cut_table(folder, temporary, rows, kept_ids)
        trimmed = directory_source(temporary, "open_clip").load(talk).eval()
        if (folder / PROVENANCE).is_file():
            changes = {"parameters": trimmed.parameters_count(), "trimmed_from": folder.name}
            write_record(temporary / PROVENANCE, read_provenance(folder).content | changes)
        ids_after = _token_ids(trimmed, complete)
        for text in complete:
            if ids_after[text] != [new_ids[number] for number in ids_before[text]]:
                raise DcclipError(
                    "the trimmed tokenizer of {} splits {!r:.100} differently",
                    _REPORT,
                    folder,
                    text,
                )
        difference = float(np.abs(_embed(trimmed, compared) - expected).max(initial=0))
        if not difference <= MOST_DIFFERENCE:
            raise DcclipError(
                "embeddings of {} and its trimmed copy differ by {:.1g}",
                _REPORT,
                folder,
                difference,
            )
    return TrimResult(
        folder=out,
        pieces=len(kept_ids),
        pieces_before=rows,
        parameters=trimmed.parameters_count(),
        parameters_before=parameters,
        texts=len(ids_before),
        compared=len(compared),
        difference=difference,
        split=tuple(text for text, ids in ids_before.items() if not new_ids.keys() >= set(ids)),
    )


def trimmable(reference: ModelSource) -> Path:
    """The directory of a model, downloaded if it is on the hub. Raises DcclipError for what is no
    model directory.
    """
    if reference.kind == "bundle":
        raise DcclipError("{} is an export bundle", _MULTILINGUAL, reference.location)
    if folder := reference.folder():
        return folder
    if not reference.on_hub:
        hint = Message("give the repository that contains the weights: hf-hub:ORG/NAME")
        raise DcclipError(
            "{} is not a repository on the hub", hint, f"{reference.kind}:{reference.location}"
        )
    files_on_hub(reference.location)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            reference.location, ignore_patterns=[f"*{suffix}" for suffix in _OF_OTHERS]
        )
    )


def _token_ids(towers: Any, texts: Sequence[str]) -> dict[str, list[int]]:
    """The token ids of each text, without padding."""
    ids_of_text: dict[str, list[int]] = {}
    for start in range(0, len(texts), 1000):
        part = list(texts[start : start + 1000])
        tokens = towers.tokenize(part)
        for text, ids, mask in zip(part, tokens.ids, tokens.mask, strict=True):
            ids_of_text[text] = ids[mask > 0].tolist()
    return ids_of_text


def ids_to_keep(
    state: Mapping[str, Any], languages: Collection[Language], used: set[int] | None = None
) -> set[int]:
    """The ids of the tokens to keep: of all written in the languages, or of those `used`, and of
    single characters.
    """
    letters = "".join(_LETTERS[language] for language in languages)
    written = re.compile(f"[{_COMMON}{letters}]*")
    single = re.compile(f"[{_COMMON}{letters}{_LATIN}]?")
    ids = {state["model"]["unk_id"], *(used or ())}
    ids |= {token["id"] for token in state["added_tokens"] if token["special"]}
    for number, (token, _) in enumerate(state["model"]["vocab"]):
        text = token.strip(_SPACE).replace(_SPACE, " ")
        is_written = used is None and written.fullmatch(text)
        if is_written or single.fullmatch(text) or _BYTE.fullmatch(token):
            ids.add(number)
    return ids


def _copy_files(folder: Path, target: Path, out: Path, rows: int, size: int) -> None:
    """Copy all but weights and tokenizer, with `size` in place of `rows` as the vocabulary's size."""

    def write(name: str, config: Mapping[str, Any]) -> None:
        text = json.dumps(config, indent=2, ensure_ascii=False)
        text = re.sub(rf'("vocab_size": ){rows}\b', rf"\g<1>{size}", text)
        (target / name).write_text(f"{text}\n", "utf-8")

    replaced = ("tokenizer.json", "added_tokens.json", PROVENANCE, *SENTENCEPIECE, *_CONFIGS)
    for file in folder.iterdir():
        if file.is_file() and file.name not in replaced and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, target / file.name)
    for name in _CONFIGS:
        if not (folder / name).is_file():
            continue
        config = read_json(folder / name, COPY_AGAIN)
        config.pop("added_tokens_decoder", None)  # tokenizer.json has them, too
        tower = config["model_cfg"]["text_cfg"] if name == CONFIG else {}
        if "hf_model_name" in tower:
            # open_clip would take it from the hub; it looks for it under a name there or a path:
            # the finished one.
            write(TRANSFORMERS_CONFIG, text_tower_sizes(folder, tower["hf_model_name"]))
            tower["hf_model_name"] = str(out.resolve())
        write(name, config)
    card = target / "README.md"
    text = card.read_text("utf-8") if card.is_file() else f"# {out.name}\n"
    card.write_text(
        f"{text}\nTrimmed by `dcclip trim`: the vocabulary has {size:,} of {rows:,} tokens.\n",
        "utf-8",
    )


def _cut_table(folder: Path, target: Path, rows: int, kept_ids: list[int]) -> None:
    """Write the weights with these rows of the embedding table only."""
    from safetensors.torch import load_file, save_file

    names = (
        OPEN_CLIP_WEIGHTS
        if library_of(folder, "open_clip") == "open_clip"
        else TRANSFORMERS_WEIGHTS
    )
    weights: dict[str, Any] = {}
    for file in as_safetensors(find_weights(str(folder), names), folder.name):
        weights |= load_file(file)
    tables = [name for name in weights if name.endswith(_TABLES) and len(weights[name]) == rows]
    if len(tables) != 1:
        message = Message(
            "{} has {} embedding tables of {:,} tokens instead of one", folder, len(tables), rows
        )
        raise DcclipError(message, "trim a model with one text tower")
    weights[tables[0]] = weights[tables[0]][kept_ids]
    save_file(weights, target / names[0], {"format": "pt"})


def _embed(towers: Any, texts: Sequence[str]) -> np.ndarray:
    """(N, D) embeddings of length 1."""
    import torch

    with torch.inference_mode():
        vectors = [towers.text_features(towers.tokenize([text])).embedding[0] for text in texts]
    return np.array([vector.numpy() / np.linalg.norm(vector) for vector in vectors])
