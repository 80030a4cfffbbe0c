"""Models cut to languages: directories whose vocabulary and embedding table have only the pieces that these use."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.checksums import write_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_folder, read_json, write_json
from dcclip_cli.hub import files_on_hub
from dcclip_cli.model.hub_models import COPY_AGAIN, TRANSFORMERS_CONFIG, is_uform, whole_cached_folder
from dcclip_cli.model.model_dir import PROVENANCE, read_provenance
from dcclip_cli.model.open_clip_models import text_tower_sizes
from dcclip_cli.model.reference import ModelReference, library_of
from dcclip_cli.model.teachers import FgClip2Teacher, OpenClipTeacher, TransformersTeacher
from dcclip_cli.model.tokenizer import load_tokenizer
from dcclip_cli.model.vocabulary import (
    TOKENIZER_FILES,
    Language,
    bpe_model,
    cut_tokenizer,
    fallback_pieces,
    needed_pieces,
    pieces_by_script,
    renumbered_config,
    special_ids,
    with_parts,
)
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    SAFETENSORS,
    TRANSFORMERS_WEIGHTS,
    find_weights,
    is_pickled,
    safetensors_copy,
    stored_tensors,
    weights_digest,
)
from dcclip_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

MOST_DIFFERENCE = 1e-6  # of embeddings of length 1
_COMPARED, _AT_A_TIME = 64, 16  # texts whose embeddings are compared: a large text tower takes a second for some
_TABLES = ("word_embeddings.weight", "token_embedding.weight")
_OF_OTHERS = (".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf")  # weights of other libraries
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", *_OF_OTHERS)


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

    vocab: Mapping[str, int]
    special: set[int]
    rows: int
    parameters: int
    read: Callable[[str], str | None]
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
    _check(folder, out)
    checked = list(dict.fromkeys([*sample, *(texts or ())]))
    towers = _load(folder, trust_remote_code, talk)
    source = _read(folder, towers, checked)
    kept = _kept(folder, source, languages, None if texts is None else checked)
    new = {old: number for number, old in enumerate(sorted(kept))}
    covered = [text for text, ids in source.ids.items() if new.keys() >= set(ids.tolist())]
    compared = covered[:: max(1, len(covered) // _COMPARED)][:_COMPARED]
    talk.say(Message("embedding {} texts with {} and its trimmed copy, to compare them", len(compared), folder.name))
    expected = _embed(towers, compared)
    del towers
    gc.collect()  # models refer to themselves; with it goes the source's file from memory
    with atomic_folder(out) as temporary:
        _write(folder, temporary, out, source, new)
        trimmed = _load(temporary, trust_remote_code, talk)
        split = _compare_tokens(temporary, trimmed, source, new)
        difference = float(np.abs(_embed(trimmed, compared) - expected).max(initial=0))
        if not difference <= MOST_DIFFERENCE:
            what = Message("embeddings of {} and its trimmed copy differ by {:.1g}", folder, difference)
            raise DcclipError(what, "please report it, with the model's name")
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
            unseen_split=None if texts is None else _unseen(folder, source, languages, sample, texts),
        )
        _add_to_card(temporary, result, languages, texts is not None)
    return result


def trimmable(reference: ModelReference) -> Path:
    """The directory of a model, downloaded if it is on the hub. Raises DcclipError for what is no model directory."""
    name = reference.target.removeprefix("hf-hub:")
    if reference.kind == "bundle":
        raise DcclipError("{} is an export", "trim the model directory that it was exported from", name)
    if Path(name).is_dir():
        return Path(name)
    if reference.kind == "open_clip" and name == reference.target:
        raise DcclipError("open_clip:{} is no repository", "name the one of its weights: hf-hub:ORG/NAME", name)
    if cached := whole_cached_folder(name):
        return cached
    files_on_hub(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, ignore_patterns=[f"*{suffix}" for suffix in _OF_OTHERS]))


def _check(folder: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DcclipError("{} exists and is not empty", "name another folder with --out, or remove it", out)
    library_of(folder, "open_clip")
    if (folder / TRANSFORMERS_CONFIG).is_file() and is_uform(folder / TRANSFORMERS_CONFIG):
        raise DcclipError("{} is a model of UForm, which cannot be trimmed yet", "trim another model", folder)


def _load(folder: Path, trust_remote_code: bool, progress: Progress) -> Towers:
    teacher: OpenClipTeacher | TransformersTeacher
    if library_of(folder, "open_clip") == "open_clip":
        teacher = OpenClipTeacher(model=str(folder), precision="fp32")
    elif trust_remote_code:
        teacher = FgClip2Teacher(model=str(folder), precision="fp32", trust_remote_code=True)
    else:
        teacher = TransformersTeacher(model=str(folder), precision="fp32")
    return teacher.load("cpu", progress)


def _read(folder: Path, towers: Any, texts: Sequence[str]) -> _Source:
    library = getattr(towers, "library_tokenizer", None)  # open_clip's, which cleans texts first
    own = getattr(library, "tokenizer", None) if library else getattr(towers, "tokenizer", None)
    if library and own is None:
        raise DcclipError("{} has CLIP's English vocabulary", "trim a multilingual model", folder)
    backend: Any = getattr(own, "backend_tokenizer", None) or (None if own else load_tokenizer(folder))
    # SigLIP2's and FG-CLIP2's towers lower-case texts for Gemma's tokenizer.
    lower_cases = bool(getattr(towers, "fixed_length", False)) and "gemma" in type(own).__name__.lower()
    clean: Any = getattr(library, "clean_fn", None) or getattr(own, "canonicalize_text", str)
    splits = backend is not None and type(backend.model).__name__ == "WordPiece"

    def read(text: str) -> str | None:
        text = text.lower() if lower_cases else clean(text)
        if backend is not None and backend.normalizer:
            text = backend.normalizer.normalize_str(text)
        if splits and len(words := backend.pre_tokenizer.pre_tokenize_str(text)) == 1:
            return str(words[0][0])
        return None if splits else text.replace("\u2581", " ").strip(" ")

    vocab = dict((own or backend).get_vocab())
    special = set(own.get_added_vocab().values()) | set(own.all_special_ids) if own else set()
    return _Source(
        vocab, special, towers.vocabulary_rows, towers.parameters_count(), read, lower_cases, _tokens(towers, texts)
    )


def _tokens(towers: Towers, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The ids of each text without padding."""
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(texts), 1000):
        part = list(texts[start : start + 1000])
        tokens = towers.tokenize(part)
        ids, real = tokens.ids.numpy().astype(np.int32), tokens.mask.numpy() > 0
        found |= {text: row[mask] for text, row, mask in zip(part, ids, real, strict=True)}
    return found


def _kept(folder: Path, source: _Source, languages: Collection[Language], texts: Sequence[str] | None) -> set[int]:
    """The ids of the pieces to keep: of all written in the languages, or, if there are `texts`, those that they use."""
    configs = [folder / name for name in (TRANSFORMERS_CONFIG, CONFIG)]
    named = {one for file in configs if file.is_file() for one in special_ids(read_json(file, COPY_AGAIN))}
    if texts is None:
        pieces = pieces_by_script(source.vocab, languages, source.read)
    else:
        names = {number: piece for piece, number in source.vocab.items()}
        pieces = {names[number] for number in set().union(*(source.ids[text].tolist() for text in texts))}
    pieces |= fallback_pieces(source.vocab, languages) | needed_pieces(folder)
    if model := bpe_model(folder):
        pieces = with_parts(pieces, model)
    ids = {source.vocab[piece] for piece in pieces if piece in source.vocab}
    return ids | source.special | {number for number in named if 0 <= number < source.rows}


def _unseen(folder: Path, source: _Source, languages: Collection[Language], sample: Any, texts: Sequence[str]) -> float:
    """The share of every second text that is split otherwise with only the pieces of the others and the sample."""
    kept = _kept(folder, source, languages, [*sample, *texts[::2]])
    held_out = texts[1::2]
    return sum(not kept >= set(source.ids[text].tolist()) for text in held_out) / max(1, len(held_out))


# ---- files


def _write(folder: Path, target: Path, out: Path, source: _Source, new: Mapping[int, int]) -> None:
    for file in folder.iterdir():
        leave = file.suffix in _WEIGHTS or file.name.endswith(".index.json") or file.name in TOKENIZER_FILES
        if file.is_file() and not leave and file.name != PROVENANCE:
            shutil.copyfile(file, target / file.name)
    for name in (TRANSFORMERS_CONFIG, CONFIG, "tokenizer_config.json"):
        if (folder / name).is_file():
            config = renumbered_config(read_json(folder / name, COPY_AGAIN), source.rows, new)
            if name == "tokenizer_config.json" and source.lower_cases:
                config["tokenizer_class"] = "Siglip2Tokenizer"  # so that transformers lower-cases, too
            write_json(target / name, config)
    if (target / CONFIG).is_file():
        _write_text_tower(folder, target, out, source.rows, new)
    pieces = {piece: new[number] for piece, number in source.vocab.items() if number in new}
    cut_tokenizer(folder, target, pieces, new)
    _write_weights(folder, target, source.rows, sorted(new))
    if (folder / PROVENANCE).is_file():
        content = read_provenance(folder).content
        width = stored_tensors(_files(folder))[_table(folder, source.rows)].shape[1]
        parameters = source.parameters - (source.rows - len(new)) * width
        write_record(target / PROVENANCE, {**content, "parameters": parameters, "trimmed_from": folder.name})


def _write_text_tower(folder: Path, target: Path, out: Path, rows: int, new: Mapping[int, int]) -> None:
    """Write the configuration of a text tower of transformers, which open_clip would take from the hub, next to it.

    open_clip looks for it under a name of the hub or a path, which is that of the finished directory.
    """
    config = read_json(target / CONFIG, COPY_AGAIN)
    text = config["model_cfg"]["text_cfg"]
    if name := text.get("hf_model_name"):
        write_json(target / TRANSFORMERS_CONFIG, renumbered_config(text_tower_sizes(folder, name), rows, new))
        text["hf_model_name"] = str(out.resolve())
        write_json(target / CONFIG, config)


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model's weights, or of a copy of pickled ones."""
    is_open_clip = library_of(folder, "open_clip") == "open_clip"
    files = find_weights(str(folder), OPEN_CLIP_WEIGHTS if is_open_clip else TRANSFORMERS_WEIGHTS)
    return [safetensors_copy(files, weights_digest(files), folder.name)] if is_pickled(files) else files


def _table(folder: Path, rows: int) -> str:
    """The name of the text tower's embedding table. Raises DcclipError if it is not known."""
    shapes = {name: tensor.shape for name, tensor in stored_tensors(_files(folder)).items()}
    found = [name for name, shape in shapes.items() if name.endswith(_TABLES) and shape[:1] == (rows,)]
    if len(found) != 1:
        what = Message("{} has {} embedding tables of {:,} pieces, not one", folder, len(found), rows)
        raise DcclipError(what, "trim a model with one text tower")
    return found[0]


def _write_weights(folder: Path, target: Path, rows: int, kept: Sequence[int]) -> None:
    """Write the weights with only the `kept` rows of the table; the others go from the file's pages to the new file."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    table, files = _table(folder, rows), _files(folder)
    is_open_clip = library_of(folder, "open_clip") == "open_clip"
    for file in files:
        name = file.name if len(files) > 1 else OPEN_CLIP_WEIGHTS[0] if is_open_clip else SAFETENSORS
        weights = load_file(file)
        if table in weights:
            weights[table] = weights[table][torch.tensor(kept)]
        with safe_open(file, "pt") as content:
            save_file(weights, target / name, content.metadata())
    if len(files) > 1:
        [index] = folder.glob("*.safetensors.index.json")
        size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        content = read_json(index, COPY_AGAIN)
        write_json(target / index.name, {**content, "metadata": {"total_size": size}})


# ---- comparison


def _compare_tokens(folder: Path, trimmed: Any, source: _Source, new: Mapping[int, int]) -> list[str]:
    """The texts that are split into other pieces than before, each of which has a piece that is gone.

    Raises DcclipError where the tokenizer has other pieces than `new`, or splits a text otherwise whose pieces it has.
    """
    again = _read(folder, trimmed, list(source.ids))
    hint = Message("please report it, with the model's name")
    if dict(again.vocab) != {piece: new[number] for piece, number in source.vocab.items() if number in new}:
        raise DcclipError("the tokenizer of {} cannot be cut: its files disagree about its pieces", hint, folder)
    split = []
    for text, ids in source.ids.items():
        if not new.keys() >= set(ids.tolist()):
            split.append(text)
        elif again.ids[text].tolist() != [new[number] for number in ids.tolist()]:
            raise DcclipError("the trimmed tokenizer of {} splits {!r:.100} in another way", hint, folder, text)
    return split


def _embed(towers: Towers, texts: Sequence[str]) -> np.ndarray:
    """(N, D) embeddings of length 1."""
    import torch

    found = [np.zeros((0, 1), np.float32)] if not texts else []
    for start in range(0, len(texts), _AT_A_TIME):
        with torch.inference_mode():
            tokens = towers.tokenize(list(texts[start : start + _AT_A_TIME]))
            vectors = towers.text_features(tokens).embedding.float().numpy()
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.concatenate(found)


def _add_to_card(folder: Path, result: TrimResult, languages: Collection[Language], by_texts: bool) -> None:
    card = folder / "README.md"
    own = card.read_text("utf-8").rstrip("\n") if card.is_file() else f"# {result.folder.name}"
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
    card.write_text(f"{own}\n\n## Trimmed vocabulary\n\n{lines}\n", "utf-8")
