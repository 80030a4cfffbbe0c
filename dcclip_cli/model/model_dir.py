"""Saving and loading of model directories: open_clip directories with dcclip's record of their origin."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_folder, read_json, write_json
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import load_tokenizer, save_tokenizer, tokenize_with

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import nn

    from dcclip_cli.model.towers import OpenClipTowers

CONFIG, WEIGHTS, PROVENANCE = "open_clip_config.json", "open_clip_model.safetensors", "dcclip.json"
FORMAT = 1
READS_SAFETENSORS = "dcclip reads safetensors only; save pickled weights as safetensors first"  # a hint


def save_model(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    half: bool = False,
) -> None:
    """Write a model directory atomically; `half` stores weights as fp16."""
    import torch
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
    provenance = {
        "format": FORMAT,
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
        write_json(temporary / PROVENANCE, provenance, sort_keys=True)
        (temporary / "README.md").write_text(_model_card(provenance), encoding="utf-8")


def load_model(folder: Path, device: str = "cpu") -> OpenClipTowers:
    """The towers of an open_clip directory, dcclip's or another's, in evaluation mode, fp32.

    Only safetensors weights are read. Raises DcclipError if a file is missing or damaged, also for pickled weights.
    """
    import open_clip
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from dcclip_cli.model.towers import OpenClipTowers

    config = read_json(folder / CONFIG, "make a model with: dcclip run recipes/quickstart.yaml")
    if not (folder / WEIGHTS).is_file():
        raise DcclipError(
            f"{folder} has no {WEIGHTS} (found: {', '.join(sorted(path.name for path in folder.iterdir()))})",
            READS_SAFETENSORS,
        )
    root = logging.getLogger()
    level = root.level
    try:
        preprocessing = Preprocessing.from_config(config.get("preprocess_cfg", {}))
        root.setLevel(logging.ERROR)  # no warnings about missing weights, which are loaded below
        try:
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        finally:
            root.setLevel(level)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(f"{folder} cannot be loaded: {reason}", "copy the whole model directory again") from None
    tokenizer = load_tokenizer(folder)
    tokenize = tokenize_with(tokenizer, config["model_cfg"]["text_cfg"].get("context_length", 77))
    provenance = read_json(folder / PROVENANCE, "") if (folder / PROVENANCE).is_file() else {}
    name = str(provenance.get("name", folder.name))
    vocab = tokenizer.get_vocab()
    towers = OpenClipTowers(model, tokenize, preprocessing, name, model_fingerprint(folder), vocab)
    return towers.eval().to(device)


def model_fingerprint(folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS, "tokenizer.json")) -> str:
    """The sha256 of the files that decide the model's outputs; exports name their own files."""
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
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
