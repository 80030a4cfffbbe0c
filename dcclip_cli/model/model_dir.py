"""Saving and loading of model directories: open_clip directories with dcclip's record of their origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcclip_cli.checksums import FILES, Record, read_record, write_record
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_folder, read_json, write_json
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import check_tokenizer, load_tokenizer, save_tokenizer, tokenize_with
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    find_file,
    find_weights,
    is_pickled,
    safetensors_copy,
    say_what_is_loaded,
    weights_digest,
)
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.run_dir import RECORD

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

    from dcclip_cli.model.towers import OpenClipTowers

WEIGHTS, PROVENANCE = "open_clip_model.safetensors", RECORD
_COPY = Message("copy the whole model directory again, or make it again; README.md is the file for notes of your own")


def save_model(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    half: bool = False,
    others: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a model directory atomically; `half` stores weights as fp16, `others` are further files by name."""
    import torch
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
    provenance = {
        "kind": "model",
        "parameters": sum(p.numel() for p in model.parameters()),
        **provenance,
    }
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        write_json(
            temporary / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocessing.to_config()}, sort_keys=True
        )
        save_tokenizer(tokenizer, temporary, config["text_cfg"]["context_length"])
        for name, content in others.items():
            (temporary / name).write_bytes(content)
        (temporary / "README.md").write_text(_model_card(provenance), encoding="utf-8")
        write_record(temporary / PROVENANCE, provenance, sort_keys=True)


def read_provenance(folder: Path) -> Record:
    """dcclip's record of a model directory. Raises DcclipError if it is missing or not that of a model."""
    record = read_record(folder / PROVENANCE, _COPY)
    dims = record.content.get("trained_dims", [])
    if "kind" not in record.content or not (isinstance(dims, list) and all(type(one) is int for one in dims)):
        raise DcclipError(Message("{provenance} is not that of a dcclip model", provenance=record.file), _COPY)
    return record


def download_model(repository: str) -> Path | None:
    """The folder in the hub's cache with a repository's model directory or export, downloaded where it is not there.

    None if the repository has no record of dcclip that lists files: it is another library's.
    """
    from huggingface_hub import snapshot_download

    if (file := find_file(repository, PROVENANCE)) is None:
        return None
    if not isinstance(files := read_json(file, _COPY).get(FILES), dict):
        return None
    return Path(snapshot_download(repository, allow_patterns=[*files, PROVENANCE]))


def load_model(folder: Path, device: str = "cpu", progress: Progress | None = None) -> OpenClipTowers:
    """The towers of an open_clip directory, dcclip's or another's, in evaluation mode, fp32.

    Of pickled weights only tensors are read. Raises DcclipError if a file is missing or damaged.
    """
    record = read_provenance(folder) if (folder / PROVENANCE).exists() else None
    with record.checking() if record else nullcontext():
        towers = _load(folder, record, progress or Silent())
    return towers.eval().to(device)


def _load(folder: Path, record: Record | None, progress: Progress) -> OpenClipTowers:
    from safetensors import SafetensorError

    from dcclip_cli.model.library_configs import check_directory, open_clip_config
    from dcclip_cli.model.open_clip_models import build, directory_tokenizer, read_weights
    from dcclip_cli.model.towers import OpenClipTowers

    check_directory(folder)
    config = open_clip_config(folder)
    files = find_weights(str(folder), OPEN_CLIP_WEIGHTS)
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise DcclipError(
            "{folder} has no {weights} (found: {found})",
            "copy the whole model directory again",
            folder=folder,
            weights=WEIGHTS,
            found=found,
        )
    decisive = [folder / CONFIG, *files, folder / "tokenizer.json"]
    if is_pickled(files):
        files = [safetensors_copy(files, weights_digest(files), folder.name, progress)]
    say_what_is_loaded(folder.name, files, progress)
    try:
        model: Any = build(folder, config, files)
        # A student is copied out of its file, since it may be trained; of a teacher the file's pages are used.
        model.load_state_dict(read_weights(files), assign=record is None)
        settings = config.get("preprocess_cfg", {}) if record else dict(model.visual.preprocess_cfg)
        preprocessing = Preprocessing.from_config(settings)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(
            "{folder} cannot be loaded: {reason}", "copy the whole model directory again", folder=folder, reason=reason
        ) from None
    if record is None:
        fingerprint, library = files_fingerprint(decisive), directory_tokenizer(folder)
        towers = OpenClipTowers(model, library, preprocessing, folder.name, fingerprint)
        tokens = library.vocabulary_size
    else:
        name, fingerprint = str(record.content.get("name", folder.name)), files_fingerprint(decisive, record.digests)
        tokenizer = load_tokenizer(folder)
        length = config["model_cfg"]["text_cfg"].get("context_length", 77)
        tokenize = tokenize_with(tokenizer, length, str(folder / "tokenizer.json"))
        towers = OpenClipTowers(model, tokenize, preprocessing, name, fingerprint, tokenizer.get_vocab())
        tokens, towers.trained_dims = tokenizer.get_vocab_size(), tuple(record.content.get("trained_dims", ()))
    check_tokenizer(towers.tokenize, tokens, towers.vocabulary_rows, f"the tokenizer of {folder}")
    return towers


def model_fingerprint(folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS, "tokenizer.json")) -> str:
    """The sha256 of the files that decide the model's outputs; exports name their own files."""
    return files_fingerprint([folder / name for name in names])


def files_fingerprint(files: Sequence[Path], known: Mapping[str, str] = MappingProxyType({})) -> str:
    """The sha256 of the digests of those files that exist; `known` are digests by the file's name."""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(bytes.fromhex(known.get(file.name) or weights_digest([file])))
    return digest.hexdigest()


def _model_card(provenance: dict[str, Any]) -> str:
    metrics = "\n".join(f"| {key} | {value} |" for key, value in provenance.get("metrics", {}).items())
    return f"""---
library_name: open_clip
language: [zh, en]
pipeline_tag: zero-shot-image-classification
---
# {provenance.get("name", "dcclip model")}

A light Chinese-English CLIP made by dcclip ({provenance.get("stage", "unknown")} stage),
{provenance["parameters"]:,} parameters.
Parent: {provenance.get("parent") or "none, trained from scratch"}. Fingerprint of the training data:
`{provenance.get("data", {}).get("train", "unknown")}`; the full record is in `dcclip.json`.

```python
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH")
tokenizer = open_clip.get_tokenizer("local-dir:PATH")
```

| metric | value |
|---|---|
{metrics}
"""
