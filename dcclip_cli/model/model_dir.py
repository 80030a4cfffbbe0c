"""Model directories, dcclip's and open_clip's: saving, loading, and open_clip's models by their
names on a hub.

A directory is open_clip's; dcclip.json in it is dcclip's record of its origin.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcclip_cli.core.checksums import Record, read_record, write_record
from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_folder, write_json
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import RECORD
from dcclip_cli.model.hub_models import (
    COPY_AGAIN,
    TRANSFORMERS_CONFIG,
    check_directory,
    checked_json,
    library_errors,
    open_clip_config,
)
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import (
    check_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenize_with,
    tokenizer_errors,
)
from dcclip_cli.model.weights import (
    CONFIG,
    OPEN_CLIP_WEIGHTS,
    as_safetensors,
    check_fit,
    find_weights,
    require_file,
    weights_digest,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

    from dcclip_cli.model.towers import OpenClipTowers, Tokens

WEIGHTS = "open_clip_model.safetensors"
PROVENANCE = RECORD
RECORD_HINT = Message(
    "copy or create the whole model directory again; put your own notes into README.md"
)
_OLD_BUFFERS = ("text.transformer.embeddings.position_ids",)  # that transformers saved until 2023

# Sizes of the text towers that open_clip's own models name, as in their repositories on the
# Hugging Face Hub.
_ROBERTA: dict[str, Any] = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
_ROBERTA |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50_265, **_ROBERTA, **_BASE},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250_002, **_ROBERTA, **_BASE},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "vocab_size": 250_002, **_ROBERTA, **_LARGE},
}


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
    """Write a model directory atomically; `half` stores weights as fp16, `others` are further
    files by name.
    """
    import torch
    from safetensors.torch import save_file

    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    if half:
        weights = {
            name: value.half() if value.is_floating_point() else value
            for name, value in weights.items()
        }
    assert all(
        torch.isfinite(value).all() for value in weights.values() if value.is_floating_point()
    )
    provenance = {
        "kind": "model",
        "parameters": sum(p.numel() for p in model.parameters()),
        **provenance,
    }
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        content = {"model_cfg": config, "preprocess_cfg": preprocessing.to_config()}
        write_json(temporary / CONFIG, content, sort_keys=True)
        save_tokenizer(tokenizer, temporary, config["text_cfg"]["context_length"])
        for name, further in others.items():
            (temporary / name).write_bytes(further)
        (temporary / "README.md").write_text(_model_card(provenance), encoding="utf-8")
        write_record(temporary / PROVENANCE, provenance, sort_keys=True)


def read_provenance(folder: Path) -> Record:
    """dcclip's record of a model directory. Raises DcclipError if it is missing or not that of a
    model.
    """
    record = read_record(folder / PROVENANCE, RECORD_HINT)
    dims = record.content.get("trained_dims", [])
    if (
        "kind" in record.content
        and isinstance(dims, list)
        and all(type(dim) is int for dim in dims)
    ):
        return record
    raise DcclipError("{} is not a valid dcclip.json of a dcclip model", RECORD_HINT, record.file)


def load_model(folder: Path, progress: Progress | None = None) -> OpenClipTowers:
    """The towers of an open_clip directory, in evaluation mode, fp32. Of pickled weights only
    tensors are read.
    """
    from safetensors.torch import load_file

    from dcclip_cli.model.towers import OpenClipTowers

    record = read_provenance(folder) if (folder / PROVENANCE).exists() else None
    with record.checking() if record else nullcontext():
        check_directory(folder)
        config = open_clip_config(folder)
        files = find_weights(str(folder), OPEN_CLIP_WEIGHTS)
        decisive = [folder / CONFIG, *files, folder / "tokenizer.json"]
        fingerprint = files_fingerprint(decisive, record.digests if record else {})
        files = as_safetensors(files, folder.name, progress=progress or Silent())
        with library_errors(Message("{} cannot be loaded", folder), COPY_AGAIN):
            model: Any = build(folder, config, files)
            weights = {
                name: value.float() if value.is_floating_point() else value
                for file in files
                for name, value in load_file(file).items()
                if name not in _OLD_BUFFERS
            }
            # A student is copied out of its file, since it may be trained; of a teacher the file's
            # pages are used.
            model.load_state_dict(weights, assign=record is None)
            settings = (
                config.get("preprocess_cfg", {}) if record else dict(model.visual.preprocess_cfg)
            )
            preprocessing = Preprocessing.from_config(settings)
        if record is None:
            library = directory_tokenizer(folder, config)
            towers = OpenClipTowers(model, library, preprocessing, folder.name, fingerprint)
            tokens = getattr(
                library.library, "tokenizer", library.library
            ).vocab_size  # without those added later
        else:
            tokenizer = load_tokenizer(folder)
            tokenize = tokenize_with(
                tokenizer, config["model_cfg"]["text_cfg"], str(folder / "tokenizer.json")
            )
            name = str(record.content.get("name", folder.name))
            towers = OpenClipTowers(
                model, tokenize, preprocessing, name, fingerprint, tokenizer.get_vocab()
            )
            tokens = tokenizer.get_vocab_size()
            towers.trained_dims = tuple(record.content.get("trained_dims", ()))
            towers.known = (
                KnownWords(**record.content["known"]) if record.content.get("known") else None
            )
        check_tokenizer(
            towers.tokenize, tokens, towers.vocabulary_rows, f"the tokenizer of {folder}"
        )
    return towers.eval()


def blank_model(folder: Path) -> OpenClipTowers:
    """The model in a directory of open_clip, dcclip's or another's, without its weights."""
    from dcclip_cli.model.towers import OpenClipTowers

    config = open_clip_config(folder)
    model: Any = build(folder, config)
    with library_errors(Message("{} contains an unusable model", folder), COPY_AGAIN):
        if not (folder / PROVENANCE).is_file():
            preprocessing = Preprocessing.from_config(dict(model.visual.preprocess_cfg))
            return OpenClipTowers(
                model, directory_tokenizer(folder, config), preprocessing, folder.name, ""
            )
        preprocessing = Preprocessing.from_config(config.get("preprocess_cfg", {}))
        tokenizer = load_tokenizer(folder)
    tokenize = tokenize_with(tokenizer, config["model_cfg"]["text_cfg"])
    return OpenClipTowers(model, tokenize, preprocessing, folder.name, "", tokenizer.get_vocab())


def model_fingerprint(
    folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS, "tokenizer.json")
) -> str:
    """The sha256 of the files that decide the model's outputs; exports name their own files."""
    return files_fingerprint([folder / name for name in names])


def files_fingerprint(
    files: Sequence[Path], digests: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The sha256 of the digests of those files that exist; `digests` has some, by name, that are
    known.
    """
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(bytes.fromhex(digests.get(file.name) or weights_digest([file])))
    return digest.hexdigest()


def load_named(model: str, repository: str) -> OpenClipTowers:
    """The towers of open_clip's `ARCH/TAG`, or of a hub's `repository`. Raises DcclipError if they
    cannot be loaded.
    """
    import open_clip

    from dcclip_cli.model.towers import TREATMENT, OpenClipTowers, module_digest

    name, tag = (model, None) if repository else model.rpartition("/")[::2]
    if not name:
        raise DcclipError(
            "the open_clip model '{}' has no tag",
            "write ARCH/TAG, for example ViT-B-32/laion2b_s34b_b79k",
            model,
        )
    hint = Message("check the name against open_clip.list_pretrained(), and the network connection")
    message = Message("open_clip model {} cannot be loaded", model)
    with library_errors(message, hint), tokenizer_errors(message):
        if repository:
            open_clip_config(require_file(repository, CONFIG).parent, on_hub=True)
        created, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
        tokenizer = LibraryTokenizer(open_clip.get_tokenizer(name))
    return OpenClipTowers(created, tokenizer, transform, model, module_digest(created, TREATMENT))


def build(folder: Path, config: dict[str, Any], files: Sequence[Path] = ()) -> nn.Module:
    """The model that a configuration describes: on the meta device, or with weight `files`, whose
    headers must fit.
    """
    text_tower = config["model_cfg"]["text_cfg"].get("hf_model_name")
    message = Message("{}: open_clip cannot build this model", folder / CONFIG)
    with _quiet(), library_errors(message, COPY_AGAIN), TemporaryDirectory() as name:
        source = folder
        if (
            text_tower
        ):  # built from its configuration only; open_clip would download its weights as well
            source = Path(name)
            text = config["model_cfg"]["text_cfg"] | {"hf_model_name": name}
            write_json(
                source / CONFIG, config | {"model_cfg": config["model_cfg"] | {"text_cfg": text}}
            )
            write_json(source / TRANSFORMERS_CONFIG, text_tower_sizes(folder, text_tower))
        blank = _create(source, "meta")
        if not files:
            return blank
        check_fit(blank, files, CONFIG, _OLD_BUFFERS)
        return _create(source, "cpu")


def _create(source: Path, device: str) -> nn.Module:
    import open_clip
    import torch

    with torch.device(device):
        return open_clip.create_model(
            f"local-dir:{source}", device=device, load_weights=False, pretrained_hf=False
        )


def text_tower_sizes(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a text tower of transformers: in the directory, or known. Raises
    DcclipError if neither.
    """
    from open_clip.hf_configs import arch_dict

    file = folder / TRANSFORMERS_CONFIG
    text_config = checked_json(file) if file.is_file() else {}
    if text_config.get("model_type") in list(arch_dict):
        return text_config
    if sizes := _TEXT_TOWERS.get(name.removeprefix("FacebookAI/")):
        return sizes
    raise DcclipError(
        "{0} has no config.json that gives the size of its text tower {1}",
        "copy the config.json of {1} into the directory",
        *(folder, name),
    )


def directory_tokenizer(folder: Path, config: dict[str, Any]) -> LibraryTokenizer:
    """open_clip's tokenizer of a model directory. Raises DcclipError if its files are missing."""
    import open_clip

    named = config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    local = {"local_files_only": True, "trust_remote_code": False} if named else {}
    message = Message("the tokenizer of {} cannot be loaded", folder)
    with _quiet(), library_errors(message, COPY_AGAIN), tokenizer_errors(message):
        return LibraryTokenizer(open_clip.get_tokenizer(f"local-dir:{folder}", **local))


@dataclass(frozen=True)
class LibraryTokenizer:
    """open_clip's tokenizer of a model, with its cleaning of texts."""

    library: Any

    @property
    def vocab(self) -> dict[str, int] | None:
        inner = getattr(self.library, "tokenizer", None)
        return None if inner is None else dict(inner.get_vocab())

    def __call__(self, texts: list[str]) -> Tokens:
        import torch

        from dcclip_cli.model.towers import Tokens

        ids = self.library(texts)
        padding = getattr(getattr(self.library, "tokenizer", None), "pad_token_id", None) or 0
        # Padding comes last, so all tokens up to the last one that is not padding are real.
        real = (ids != padding).to(torch.int64).flip(1).cummax(1).values.flip(1)
        return Tokens(ids, real)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of open_clip about missing weights, which are loaded later."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _model_card(provenance: dict[str, Any]) -> str:
    metrics = "\n".join(
        f"| {key} | {value} |" for key, value in provenance.get("metrics", {}).items()
    )
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
