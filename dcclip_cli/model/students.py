"""What a student is made of: a timm image tower and open_clip's text tower, as one open_clip configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import END_ID, PADDING_ID
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from torch import nn

Triple = tuple[float, float, float]


class ImageTower(Options):
    """A timm network. `weights` starts it from a safetensors file with the network's own parameter names.

    A file with the whole image tower's names, `trunk.` and `head.` as open_clip has them, brings the projection too.
    """

    timm: str = Field(description="A name that timm.create_model knows")
    size: int = Field(224, ge=32, le=1024, description="Side of the square input, in pixels")
    weights: str | None = Field(
        None, description="Path of a .safetensors file, or 'timm' for timm's pretrained weights"
    )
    projection: Literal["linear", "mlp"] = Field(
        "linear", description="From the network's features to the shared space; mlp: over a layer twice as wide, GELU"
    )
    mean: Triple | None = Field(None, description="Of the input's channels, in 0..1; default: timm's for this network")
    std: Triple | None = Field(None, description="Of the input's channels; default: timm's for this network")
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the projection")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Stochastic depth")


class Vocabulary(Options):
    """The pieces that texts are cut into, each a row of the text tower's embedding."""

    source: Literal["teacher", "data"] = Field(
        "data", alias="from", description="Cut the teacher's vocabulary to the captions, or train one on them"
    )
    size: int = Field(20_000, ge=300, le=300_000, description="Most pieces it may have")
    characters: bool = Field(
        False, description="Of the teacher's pieces, also single characters that no caption has, as far as size allows"
    )


class TextTower(Options):
    """open_clip's text transformer: causal, pooled at the end token, so that padding and length change nothing."""

    layers: int = Field(4, ge=1, le=48, description="Transformer blocks")
    width: int = Field(256, ge=32, le=4096, multiple_of=32, description="Of every layer, before the projection")
    heads: int | None = Field(None, ge=1, description="Attention heads; default: one for each 64 of the width")
    context_length: int = Field(77, ge=8, le=512, description="Most tokens of a text, both ends included; more are cut")
    vocabulary: Vocabulary = Field(Vocabulary(), description="The pieces that texts are cut into")
    inherit: Literal["nothing", "embeddings", "layers"] = Field(
        "nothing",
        description="What it starts from: random weights; the teacher's rows for its pieces, by PCA where widths "
        "differ; these and the teacher's layers, where the widths agree",
    )


# Sizes and latencies: docs/students.md.
PRESETS: dict[str, dict[str, Any]] = {
    "S": {
        "image": {"timm": "mobilenetv4_conv_small"},
        "text": {"layers": 4, "width": 256, "vocabulary": {"from": "teacher", "size": 20_000}},
    },
    "M": {
        "image": {"timm": "mobilenetv4_conv_medium"},
        "text": {"layers": 4, "width": 384, "vocabulary": {"from": "teacher", "size": 32_000}},
    },
    "RN50": {
        "image": {"timm": "resnet50"},
        "text": {"layers": 4, "width": 384, "vocabulary": {"from": "teacher", "size": 32_000}},
    },
}


class StudentOptions(Options):
    """A student: a preset, its two towers spelt out, or a preset with parts of it replaced."""

    preset: Literal["S", "M", "RN50"] | None = Field(None, description="Both towers by one name: docs/students.md")
    image: ImageTower = Field(description="The image tower; a preset brings one")
    text: TextTower = Field(TextTower(), description="The text tower; a preset brings one")
    embed_dim: int | None = Field(None, ge=8, le=8192, description="Shared width; default: the teacher's, else 256")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        # A preset that does not exist is refused as such; S stands in for it, lest `image` be called missing too.
        preset = PRESETS.get(str(given["preset"]), PRESETS["S"])
        own = {part: given.get(part) or {} for part in ("image", "text")}
        return {**given, **{part: {**preset[part], **keys} for part, keys in own.items() if isinstance(keys, dict)}}


def preprocessing_of(image: ImageTower) -> Preprocessing:
    """The student's preprocessing: bicubic resize to the tower's size, scaled as timm says for this network."""
    import timm

    config = timm.get_pretrained_cfg(image.timm, allow_unregistered=True)
    mean = image.mean or (config.mean if config else None) or (0.5, 0.5, 0.5)
    std = image.std or (config.std if config else None) or (0.5, 0.5, 0.5)
    return Preprocessing(size=image.size, mean=tuple(mean), std=tuple(std))


def model_config(options: StudentOptions, embed_dim: int, vocab_size: int) -> dict[str, Any]:
    """The student as open_clip's `model_cfg`, complete in itself."""
    text, image = options.text, options.image
    return {
        "embed_dim": embed_dim,
        "custom_text": True,
        "vision_cfg": {
            "image_size": image.size,
            "timm_model_name": image.timm,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "" if _has_wide_head(image.timm) else image.projection,
            **({"timm_proj_bias": True} if image.projection == "mlp" else {}),
            "timm_drop": image.dropout,
            "timm_drop_path": image.drop_path or None,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tokenizer",  # open_clip then takes the tokenizer that lies in the directory
            "width": text.width,
            "heads": text.heads or max(1, text.width // 64),
            "layers": text.layers,
            "pad_id": PADDING_ID,
            "eos_id": END_ID,
            "pool_type": "eos",
        },
    }


def _has_wide_head(name: str) -> bool:
    """Whether the network widens its features after pooling (MobileNetV3 and V4 do): its own classifier projects then.

    open_clip 3.3 sizes a linear projection by `num_features`, which is the width before that.
    """
    import timm
    import torch

    with torch.device("meta"):
        network: Any = timm.create_model(name, num_classes=0)
    return bool(getattr(network, "head_hidden_size", network.num_features) != network.num_features)


def build_model(config: dict[str, Any], seed: int) -> nn.Module:
    """The open_clip model of a `model_cfg`, its weights random from `seed`."""
    import torch
    from open_clip.model import CustomTextCLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {key: value for key, value in config.items() if key != "custom_text"}
        model = CustomTextCLIP(**parts)
    if (bias := projection_bias(model)) is not None:
        torch.nn.init.zeros_(bias)
    return model


def projection_bias(model: Any) -> nn.Parameter | None:
    """The bias of a network that projects with its own classifier: open_clip asks for one, students keep it at 0.

    A projection behind the network has none either, and transformers has no place for it.
    """
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None or len(model.visual.head):
        return None
    bias: nn.Parameter | None = getattr(trunk.get_classifier(), "bias", None)
    return bias


def start_image_tower(model: nn.Module, image: ImageTower) -> None:
    """Load the weights that `image.weights` names into image tower or trunk. Raises DcclipError on a mismatch."""
    if image.weights is None:
        return
    from pathlib import Path

    from dcclip_cli.errors import DcclipError

    trunk: Any = model.visual.trunk  # type: ignore[union-attr]
    if image.weights == "timm":
        import timm

        weights = timm.create_model(image.timm, pretrained=True).state_dict()
    elif not Path(image.weights).is_file():
        raise DcclipError(f"student.image.weights: {image.weights} does not exist", "check the path, or leave it out")
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(image.weights)
        except SafetensorError as error:
            what = f"student.image.weights: {image.weights} is not a safetensors file: {error}"
            raise DcclipError(
                what, "dcclip reads safetensors only; save pickled weights as safetensors first"
            ) from None
    if whole := any(name.startswith("trunk.") for name in weights):
        trunk = model.visual
    own = trunk.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting and not name.endswith("num_batches_tracked")]
    if missing and (whole or not all(name.startswith(("classifier", "head.", "fc.")) for name in missing)):
        raise DcclipError(
            f"student.image.weights: {image.weights} does not fit {image.timm}: no fitting {missing[0]}",
            "use weights of this very timm network",
        )
    trunk.load_state_dict(fitting, strict=False)
