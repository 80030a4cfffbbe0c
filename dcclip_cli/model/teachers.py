"""Teachers: one options class per library, which loads its towers. The union at the end is their registry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import Precision, choose_precision
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from dcclip_cli.model.towers import OpenClipTowers, Towers, TransformersTowers


class _TeacherOptions(Options):
    precision: Precision = Field(
        "auto", description="Precision of the teacher (bf16: autocast); auto: bf16 if this machine is faster with it"
    )


class TransformersTeacher(_TeacherOptions):
    """A dual encoder of transformers: ChineseCLIP, CLIP, SigLIP, SigLIP2, MetaCLIP2, AltCLIP."""

    kind: Literal["transformers"] = "transformers"
    model: str = Field(description="Name on the Hugging Face Hub, or a directory written by save_pretrained")

    def load(self, device: str = "cpu") -> TransformersTowers:
        """The teacher's towers, frozen, in evaluation mode. Raises DcclipError if it cannot be loaded."""
        architecture = "AltCLIPModel" if isinstance(self, AltClipTeacher) else "AutoModel"
        return _frozen(_load_transformers(self.model, architecture), self.precision, device)


class AltClipTeacher(TransformersTeacher):
    """AltCLIP, the paper's teacher: ViT-L/14 and XLM-RoBERTa-large, 864 M parameters ("BAAI/AltCLIP")."""

    kind: Literal["altclip"] = "altclip"  # type: ignore[assignment]
    model: str = Field(
        "BAAI/AltCLIP", description="Name on the Hugging Face Hub, or a directory written by save_pretrained"
    )


class OpenClipTeacher(_TeacherOptions):
    """An open_clip model: `ARCH/TAG`, `hf-hub:ORG/NAME`, or a model directory such as dcclip writes."""

    kind: Literal["open_clip"] = "open_clip"
    model: str = Field(description="ARCH/TAG, hf-hub:ORG/NAME, or the path of a model directory")

    def load(self, device: str = "cpu") -> Towers:
        """The teacher's towers, frozen, in evaluation mode. Raises DcclipError if it cannot be loaded."""
        if Path(self.model).is_absolute():
            from dcclip_cli.model.model_dir import load_model

            return _frozen(load_model(Path(self.model)), self.precision, device)
        return _frozen(_load_open_clip(self.model), self.precision, device)


def _frozen(towers: Towers, precision: str, device: str) -> Any:
    towers.requires_grad_(False).eval().to(device)
    towers.precision = choose_precision(precision, device, towers)
    towers.fingerprint += f"-{towers.precision.precision}"
    return towers


def _load_transformers(model: str, architecture: str) -> TransformersTowers:
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    from dcclip_cli.model.towers import TransformersTowers

    transformers.utils.logging.disable_progress_bar()  # of "Loading weights"
    enable_progress_bars()  # of downloads, which the line above disables too
    if Path(model).is_absolute() and not (Path(model) / "config.json").is_file():
        raise DcclipError(f"{model} has no config.json", "name a directory written by transformers' save_pretrained")
    try:
        loaded = getattr(transformers, architecture).from_pretrained(model, use_safetensors=True, dtype="float32")
        image_processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DcclipError(
            f"teacher {model} cannot be loaded: {reason}",
            "check the name and the network connection, or give a directory that starts with ./ or /",
        ) from None
    if not hasattr(loaded, "get_image_features") or not hasattr(loaded, "get_text_features"):
        raise DcclipError(
            f"teacher {model} is a {type(loaded).__name__}, not an image-text dual encoder",
            "use AltCLIP, ChineseCLIP, CLIP, SigLIP, SigLIP2 or MetaCLIP2",
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocab = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    others = (loaded.config.to_json_string(), image_processor.to_json_string(), vocab)
    return TransformersTowers(loaded, image_processor, tokenizer, Path(model).name, _fingerprint(loaded, *others))


def _load_open_clip(model: str) -> OpenClipTowers:
    import open_clip
    import torch

    from dcclip_cli.model.towers import OpenClipTowers, Tokens

    name, tag = (model, None) if model.startswith("hf-hub:") else model.rpartition("/")[::2]
    if not name:
        raise DcclipError(f"open_clip model '{model}' has no tag", "write ARCH/TAG, as in ViT-B-32/laion2b_s34b_b79k")
    try:
        created, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag)
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise DcclipError(
            f"open_clip model {model} cannot be loaded: {reason}",
            "check the name against open_clip.list_pretrained(), and the network connection",
        ) from None
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0

    def tokenize(texts: list[str]) -> Tokens:
        ids = tokenizer(texts)
        # Padding comes last, so all tokens up to the last one that is not padding are real.
        real = (ids != padding).to(torch.int64).flip(1).cummax(1).values.flip(1)
        return Tokens(ids, real)

    full_name = f"{name}/{tag}" if tag else name
    return OpenClipTowers(created, tokenize, transform, full_name, _fingerprint(created))


def _fingerprint(model: Any, *others: str) -> str:
    """A sha256 of `others` and the names and sums of all weights: cheap, and different for different weights."""
    weights = sorted(model.state_dict().items())
    sums = {name: [float(value.double().sum()), float(value.double().abs().sum())] for name, value in weights}
    return hashlib.sha256(json.dumps([sums, *others], sort_keys=True).encode()).hexdigest()


Teacher = Annotated[AltClipTeacher | TransformersTeacher | OpenClipTeacher, Field(discriminator="kind")]
