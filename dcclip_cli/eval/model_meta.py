"""The facts about a model that mteb's ModelMeta asks for, from the model's own files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dcclip_cli.files import json_object
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.run_dir import RECORD

_FRAMEWORKS = {
    "folder": ["PyTorch", "safetensors"],
    "open_clip": ["PyTorch"],
    "hf": ["PyTorch", "Transformers"],
    "bundle": ["ONNX"],
}
_ISO = {"zh": "zho-Hans", "en": "eng-Latn"}
_EMBEDDINGS = ("token_embedding.weight", "word_embeddings.weight", "embed_tokens.weight")
_ODD = re.compile(r"[^\w.-]+")
_LONG = "猫 " * 4_096  # more tokens than any text tower takes


_UNKNOWN = (
    "release_date", "languages", "n_parameters", "n_embedding_parameters", "memory_usage_mb", "max_tokens", "embed_dim",
    "license", "open_weights", "public_training_code", "public_training_data", "training_datasets",
)  # fmt: skip


def model_meta(name: str, fingerprint: str, owner: str | None = None) -> dict[str, Any]:
    """The fields of ModelMeta for a model that is known by name only.

    mteb's names are OWNER/NAME; without an `owner` on the hub it is local/NAME.
    """
    return dict.fromkeys(_UNKNOWN) | {
        "loader": None,
        "name": f"{owner or 'local'}/{_ODD.sub('-', name)}",
        "revision": fingerprint,
        "framework": [],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "modalities": ["image", "text"],
        "model_type": ["dense"],
    }


def model_meta_of(model: Encoder, reference: ModelReference, owner: str | None = None) -> dict[str, Any]:
    """The fields of ModelMeta for a loaded model, None for all that its files do not say."""
    found = model_meta(model.name, model.fingerprint, owner) | _facts(model, reference)
    return found | ({"name": name} if (name := _hub_name(reference)) else {})


def _facts(model: Encoder, reference: ModelReference) -> dict[str, Any]:
    folder = reference.path if reference.kind != "open_clip" and reference.path.is_dir() else None
    return {
        "languages": _languages(folder),
        "n_parameters": model.parameters,
        "n_embedding_parameters": _embedding_parameters(folder),
        "memory_usage_mb": round(model.size_bytes / 2**20, 1),
        "max_tokens": model.tokenize([_LONG]).shape[1],
        "embed_dim": model.encode_texts(["猫"]).shape[1],
        "license": _license(folder),
        "framework": _FRAMEWORKS[reference.kind],
    }


def _hub_name(reference: ModelReference) -> str:
    """OWNER/NAME on the hub; empty for a model in a folder, and for open_clip's own names."""
    if reference.path.is_dir():
        return ""
    if reference.kind == "hf" or reference.target.startswith("hf-hub:"):
        return reference.target.removeprefix("hf-hub:").partition("@")[0]
    return ""


def _languages(folder: Path | None) -> list[str] | None:
    """Of a model or bundle that dcclip made; a bundle lists them, and every model that it trains knows both."""
    if folder is None or not (folder / RECORD).is_file():
        return None
    record = folder / RECORD
    return [_ISO[one] for one in json_object(record.read_text("utf-8"), str(record), "").get("languages", _ISO)]


def _embedding_parameters(folder: Path | None) -> int | None:
    from safetensors import safe_open

    sizes = []
    for file in folder.glob("*.safetensors") if folder else ():
        with safe_open(file, "np") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys() if name.endswith(_EMBEDDINGS)]  # noqa: SIM118
        sizes += [rows * width for rows, width in shapes]
    return sum(sizes) or None


def _license(folder: Path | None) -> str | None:
    """That of the model card's head."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---\n", card.read_text("utf-8", "replace"), re.S)
    try:
        about = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:  # a card that its user edited
        return None
    found = about.get("license") if isinstance(about, dict) else None
    return found.lower() if isinstance(found, str) else None
