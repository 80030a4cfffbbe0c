"""open_clip's models and tokenizers: from its hub names, and from directories without asking the hub."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import read_json, temporary_folder, write_json
from dcclip_cli.model.weights import unpickled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.model.towers import OpenClipTowers, Tokens

# Sizes of the text towers that open_clip's own models name, as in their repositories on the Hugging Face Hub.
_ROBERTA: dict[str, Any] = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50_265, **_ROBERTA, **_BASE},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250_002, **_ROBERTA, **_BASE},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "vocab_size": 250_002, **_ROBERTA, **_LARGE},
}


@dataclass(frozen=True)
class LibraryTokenizer:
    """open_clip's tokenizer of a model, with its cleaning of texts."""

    own: Any

    @property
    def vocab(self) -> dict[str, int] | None:
        """The row of each token, if it is a tokenizer of transformers."""
        inner = getattr(self.own, "tokenizer", None)
        return None if inner is None else dict(inner.get_vocab())

    def __call__(self, texts: list[str]) -> Tokens:
        import torch

        from dcclip_cli.model.towers import Tokens

        ids = self.own(texts)
        padding = getattr(getattr(self.own, "tokenizer", None), "pad_token_id", None) or 0
        # Padding comes last, so all tokens up to the last one that is not padding are real.
        real = (ids != padding).to(torch.int64).flip(1).cummax(1).values.flip(1)
        return Tokens(ids, real)


def load_named(model: str) -> OpenClipTowers:
    """The towers of `ARCH/TAG` or `hf-hub:ORG/NAME`. Raises DcclipError if they cannot be loaded."""
    import open_clip

    from dcclip_cli.model.towers import OpenClipTowers

    name, tag = (model, None) if model.startswith("hf-hub:") else model.rpartition("/")[::2]
    if not name:
        raise DcclipError(f"open_clip model '{model}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k")
    try:
        created, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
        tokenizer = LibraryTokenizer(open_clip.get_tokenizer(name))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(
            f"open_clip model {model} cannot be loaded: {reason}",
            "check the name against open_clip.list_pretrained(), and the network connection",
        ) from None
    full_name = f"{name}/{tag}" if tag else name
    return OpenClipTowers(created, tokenizer, transform, full_name, "")


def build(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model that a directory's configuration describes, with random weights.

    A text tower of transformers is built from its configuration only; open_clip would download its weights as well.
    """
    import open_clip

    text = config["model_cfg"]["text_cfg"]
    with _quiet():
        if not text.get("hf_model_name"):
            model: nn.Module = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            return model
        changed = copy.deepcopy(config)
        with temporary_folder(Path(gettempdir()) / "dcclip-open-clip") as temporary:
            changed["model_cfg"]["text_cfg"]["hf_model_name"] = str(temporary)
            write_json(temporary / "open_clip_config.json", changed)
            write_json(temporary / "config.json", _text_tower(folder, text["hf_model_name"]))
            model = open_clip.create_model(f"local-dir:{temporary}", load_weights=False, pretrained_hf=False)
    return model


def _text_tower(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a text tower of transformers: in the directory, known, in the hub's cache, or on the hub."""
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig

    if (folder / "config.json").is_file():
        there = read_json(folder / "config.json", "")
        if there.get("model_type") in arch_dict:
            return there
    if known := _TEXT_TOWERS.get(name.removeprefix("FacebookAI/")):
        return known
    try:
        return dict(AutoConfig.from_pretrained(name).to_dict())
    except (OSError, ValueError) as error:
        raise DcclipError(
            f"{folder} does not say the sizes of its text tower {name}: {str(error).strip().splitlines()[0]}",
            f"copy the config.json of {name} into the directory",
        ) from None


def directory_tokenizer(folder: Path) -> LibraryTokenizer:
    """open_clip's tokenizer of a model directory. Raises DcclipError if its files are missing."""
    import open_clip

    try:
        with _quiet():
            return LibraryTokenizer(open_clip.get_tokenizer(f"local-dir:{folder}"))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(
            f"the tokenizer of {folder} cannot be loaded: {reason}", "copy the whole model directory again"
        ) from None


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The weights in files as fp32; those of a safetensors file stay in the file's pages until they are written to."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= load_file(file) if file.suffix == ".safetensors" else unpickled(file)
    weights.pop("text.transformer.embeddings.position_ids", None)  # a buffer that transformers saved until 2023
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


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
