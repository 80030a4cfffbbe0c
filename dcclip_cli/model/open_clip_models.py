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

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import temporary_folder, write_json
from dcclip_cli.model.hub_models import (
    COPY_AGAIN,
    TRANSFORMERS_CONFIG,
    library_errors,
    open_clip_config,
    text_tower_config,
)
from dcclip_cli.model.tokenizer import tokenizer_errors
from dcclip_cli.model.weights import CONFIG, check_fit, require_file, unpickled

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


_OLD_BUFFERS = ("text.transformer.embeddings.position_ids",)  # that transformers saved until 2023


@dataclass(frozen=True)
class LibraryTokenizer:
    """open_clip's tokenizer of a model, with its cleaning of texts."""

    own: Any

    @property
    def vocab(self) -> dict[str, int] | None:
        """The row of each token, if it is a tokenizer of transformers."""
        inner = getattr(self.own, "tokenizer", None)
        return None if inner is None else dict(inner.get_vocab())

    @property
    def vocabulary_size(self) -> int:
        """How many tokens it has, without those that were added to its vocabulary later."""
        return int(getattr(self.own, "tokenizer", self.own).vocab_size)

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
        raise DcclipError("open_clip model '{}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k", model)
    hint = "check the name against open_clip.list_pretrained(), and the network connection"
    what = f"open_clip model {model} cannot be loaded"
    with library_errors(what, hint), tokenizer_errors(what):
        if name.startswith("hf-hub:"):
            open_clip_config(require_file(name.removeprefix("hf-hub:"), CONFIG).parent, on_hub=True)
        created, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
        tokenizer = LibraryTokenizer(open_clip.get_tokenizer(name))
    full_name = f"{name}/{tag}" if tag else name
    return OpenClipTowers(created, tokenizer, transform, full_name, "")


def build(folder: Path, config: dict[str, Any], files: Sequence[Path]) -> nn.Module:
    """The model that a directory's configuration describes, with random weights.

    It is built without memory for its weights first, and compared with the headers of the weight `files`.
    """
    with _source(folder, config) as source:
        check_fit(_create(source, "meta"), files, CONFIG, _OLD_BUFFERS)
        return _create(source, "cpu")


def build_blank(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model that a directory's configuration describes, on the meta device."""
    with _source(folder, config) as source:
        return _create(source, "meta")


def _create(source: Path, device: str) -> nn.Module:
    import open_clip
    import torch

    with torch.device(device):
        return open_clip.create_model(f"local-dir:{source}", device=device, load_weights=False, pretrained_hf=False)


@contextmanager
def _source(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The directory from which open_clip builds a model, its errors as DcclipError.

    A text tower of transformers is built from its configuration only; open_clip would download its weights as well.
    """
    text_tower = config["model_cfg"]["text_cfg"].get("hf_model_name")
    with (
        _quiet(),
        library_errors(Message("{}: open_clip cannot build this model", folder / CONFIG), COPY_AGAIN),
    ):
        if not text_tower:
            yield folder
            return
        changed = copy.deepcopy(config)
        with temporary_folder(Path(gettempdir()) / "dcclip-open-clip") as temporary:
            changed["model_cfg"]["text_cfg"]["hf_model_name"] = str(temporary)
            write_json(temporary / CONFIG, changed)
            write_json(temporary / TRANSFORMERS_CONFIG, text_tower_sizes(folder, text_tower))
            yield temporary


def text_tower_sizes(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a text tower of transformers: in the directory, or known. Raises DcclipError if neither."""
    if (folder / TRANSFORMERS_CONFIG).is_file() and (there := text_tower_config(folder / TRANSFORMERS_CONFIG)):
        return there
    if known := _TEXT_TOWERS.get(name.removeprefix("FacebookAI/")):
        return known
    raise DcclipError(
        "{0} does not say the sizes of its text tower {1}: it has no config.json of a text model",
        "copy the config.json of {1} into the directory",
        folder,
        name,
    )


def directory_tokenizer(folder: Path) -> LibraryTokenizer:
    """open_clip's tokenizer of a model directory. Raises DcclipError if its files are missing."""
    import open_clip

    named = open_clip_config(folder)["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
    local = {"local_files_only": True, "trust_remote_code": False} if named else {}
    what = f"the tokenizer of {folder} cannot be loaded"
    with _quiet(), library_errors(what, COPY_AGAIN), tokenizer_errors(what):
        return LibraryTokenizer(open_clip.get_tokenizer(f"local-dir:{folder}", **local))


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The weights in files as fp32; those of a safetensors file stay in the file's pages until they are written to."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= load_file(file) if file.suffix == ".safetensors" else unpickled(file)
    for name in _OLD_BUFFERS:
        weights.pop(name, None)
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
