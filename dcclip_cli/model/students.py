"""Student options and architecture: a timm image tower and open_clip's text transformer as one
open_clip model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import Options
from dcclip_cli.model.hub_models import check_timm_name
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import END_ID, PADDING_ID
from dcclip_cli.model.weights import stored_tensors

if TYPE_CHECKING:
    from torch import nn

    from dcclip_cli.model.towers import TextLayout

Level = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=0.001, le=10)]


class ImageTower(Options):
    """A timm network, random or with pretrained weights.

    `weights` is a safetensors file with the parameter names of timm's network, or, with the
    projection, those of the whole open_clip image tower (`trunk.` and `head.`).
    """

    timm: str = Field(description="Name of a timm network, as for timm.create_model")
    size: int = Field(224, ge=32, le=1024, description="Side of the square input image, in pixels")
    weights: str | None = Field(
        None,
        description="Pretrained weights: path of a .safetensors file, or 'timm' for the weights "
        "that timm provides",
    )
    projection: Literal["linear", "mlp"] = Field(
        "linear",
        description="Projection to the shared space; mlp: with a GELU hidden layer of twice the width",
    )
    mean: tuple[Level, Level, Level] | None = Field(
        None,
        description="Mean of the input channels; default: timm's value for the network, or the "
        "teacher's with inherit",
    )
    std: tuple[Spread, Spread, Spread] | None = Field(
        None, description="Standard deviation of the input channels; default: as for mean"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate before the projection")
    inherit: Literal["nothing", "teacher"] = Field(
        "nothing",
        description="Initial weights: random, or from `weights`; or the most important channels "
        "and blocks of the "
        "teacher's larger network of the same family (EfficientNet-Lite, MobileNetV2, "
        "MnasNet, ...)",
    )

    @model_validator(mode="after")
    def _has_one_source_of_weights(self) -> Self:
        if self.weights is not None and self.inherit != "nothing":
            raise ValueError(
                Message(
                    "weights and inherit: teacher both set the initial weights: remove one of them"
                )
            )
        return self


class Vocabulary(Options):
    """Vocabulary of the text tower."""

    source: Literal["teacher", "data"] = Field(
        "data",
        alias="from",
        description="Trim the teacher's vocabulary to the captions, or train one on the captions",
    )
    size: int = Field(20_000, ge=300, le=300_000, description="Maximum vocabulary size")
    characters: bool = Field(
        False,
        description="Fill the trimmed vocabulary up to its maximum size with single characters that no "
        "caption contains",
    )
    captions: int = Field(
        1_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="Maximum number of captions to build the vocabulary from; larger data is "
        "sampled at random",
    )


class TextTower(Options):
    """open_clip's text transformer. By default it attends and pools as the first teacher's text
    tower does.

    open_clip masks no padding in bidirectional attention: such a tower sees it, and every text is
    padded to `context_length`, in training and by all clients.
    """

    layers: int = Field(4, ge=1, le=48, description="Transformer blocks")
    width: int = Field(256, ge=32, le=4096, multiple_of=32, description="Width of the transformer")
    heads: int | None = Field(
        None, ge=1, le=128, description="Attention heads; default: width / 64"
    )
    context_length: int = Field(
        77, ge=8, le=512, description="Maximum tokens per text, start and end included"
    )
    attention: Literal["bidirectional", "causal"] | None = Field(
        None,
        description="Tokens that a token sees: all, every text padded to `context_length`; or "
        "those before it. "
        "Default: as in the first teacher; without one, causal",
    )
    pooling: Literal["first", "end", "last"] | None = Field(
        None,
        description="State that becomes the embedding: of `<s>`, of `</s>`, or of the last "
        "position, padding included; "
        "causal towers pool at the end. Default: as in the first teacher if attention is "
        "the same, else first or end",
    )
    vocabulary: Vocabulary = Field(Vocabulary(), description="Vocabulary of the text tower")
    inherit: Literal["nothing", "embeddings", "layers"] = Field(
        "nothing",
        description="Initial weights: random; the teacher's embedding rows (by PCA if the widths "
        "differ); or these and "
        "the teacher's layers (for equal widths)",
    )

    @property
    def head_count(self) -> int:
        return self.heads or max(1, self.width // 64)

    @model_validator(mode="after")
    def _pools_what_sees_the_text(self) -> Self:
        if self.attention == "causal" and self.pooling in ("first", "last"):
            raise ValueError(
                Message("a causal text tower pools at the end: set attention: bidirectional")
            )
        return self

    def layout(self, teacher: TextLayout | None) -> TextLayout:
        """How the tower attends and pools: as set, else as the teacher's."""
        from dcclip_cli.model.towers import TextLayout

        teacher = teacher or TextLayout()
        attention = self.attention or teacher.attention
        if self.pooling in ("first", "last"):
            attention = "bidirectional"
        if self.pooling is not None:
            return TextLayout(attention, self.pooling)
        if attention == teacher.attention and teacher.pooling != "mean":
            return TextLayout(attention, teacher.pooling)
        return TextLayout(attention, "end" if attention == "causal" else "first")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.head_count:
            ways = [count for count in range(1, 129) if self.width % count == 0]
            near = min(ways, key=lambda count: abs(count - self.head_count))
            raise ValueError(
                Message(
                    "width {} cannot be split into {} heads: set heads: {}",
                    self.width,
                    self.head_count,
                    near,
                )
            )
        return self


def _preset(
    timm: str, width: int, tokens: int, image: Any = None, text: Any = None
) -> dict[str, Any]:
    tower = {"layers": 4, "width": width, "vocabulary": {"from": "teacher", "size": tokens}}
    return {"image": {"timm": timm, **(image or {})}, "text": {**tower, **(text or {})}}


# Sizes and latencies: docs/reference/students.md.
PRESETS = {
    "S": _preset("mobilenetv4_conv_small", 256, 20_000),
    "M": _preset("mobilenetv4_conv_medium", 384, 32_000),
    "RN50": _preset("resnet50", 384, 32_000),
    "XS": _preset("mnasnet_075", 64, 2_400, {"size": 128}, {"layers": 1}),
}


# The discriminator keeps a mistake in a network from being reported as not being `teacher` as
# well.
Image = Annotated[
    Annotated[ImageTower, Tag("network")] | Annotated[Literal["teacher"], Tag("teacher")],
    Discriminator(lambda image: "network" if isinstance(image, dict | ImageTower) else "teacher"),
]


class StudentOptions(Options):
    """A student: a preset, a preset with changes, or both towers in full."""

    preset: Literal["S", "M", "RN50", "XS"] | None = Field(
        None, description="Both towers (docs/reference/students.md)"
    )
    image: Image = Field(
        description="Image tower; presets include one. `teacher`: the frozen image tower of an "
        "open_clip teacher, to "
        "train only a text tower"
    )
    text: TextTower = Field(TextTower(), description="Text tower; presets include one")
    embed_dim: int | None = Field(
        None,
        ge=8,
        le=8192,
        description="Width of the shared embedding space; default: the teacher's, or 256",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        # An unknown preset is reported by its field; S replaces it here, so that `image` is not
        # reported as missing.
        preset = PRESETS.get(str(given["preset"]), PRESETS["S"])
        towers = {part: given.get(part) or {} for part in ("image", "text")}
        return {
            **given,
            **{
                part: {**preset[part], **keys}
                for part, keys in towers.items()
                if isinstance(keys, dict)
            },
        }

    @model_validator(mode="after")
    def _has_the_teachers_width(self) -> Self:
        if self.image == "teacher" and self.embed_dim is not None:
            raise ValueError(
                Message(
                    "with image: teacher, the embedding space is the teacher's: remove embed_dim"
                )
            )
        return self

    @property
    def keeps_images(self) -> bool:
        """Whether its image tower is the teacher's, and only the text tower is trained."""
        return self.image == "teacher"

    @property
    def inherits_images(self) -> bool:
        """Whether its image tower is cut out of the teacher's."""
        return isinstance(self.image, ImageTower) and self.image.inherit == "teacher"

    @property
    def from_teacher(self) -> list[tuple[str, ...]]:
        """The keys of what is taken from the teacher: towers, initial weights, vocabulary."""
        sources = {
            ("image",): self.keeps_images,
            ("image", "inherit"): self.inherits_images,
            ("text", "inherit"): self.text.inherit != "nothing",
            ("text", "vocabulary", "from"): self.text.vocabulary.source == "teacher",
        }
        return [key for key, is_taken in sources.items() if is_taken]

    @property
    def inherits(self) -> bool:
        """Whether any of its initial weights are the teacher's."""
        return self.text.inherit != "nothing" or self.keeps_images or self.inherits_images


def no_vocabulary() -> DcclipError:
    """What is wrong where a vocabulary is to be made from the texts of data that has none."""
    hint = Message(
        "set data.texts, use pairs with captions, or set vocabulary: {{from: teacher, size: ...}}"
    )
    return DcclipError("the data contains no text for the student's vocabulary", hint)


def preprocessing_of(image: ImageTower, teacher: Preprocessing | None = None) -> Preprocessing:
    """The student's preprocessing: bicubic resize to the tower's size, with the teacher's or
    timm's normalisation.
    """
    import timm

    config = teacher or timm.get_pretrained_cfg(image.timm, allow_unregistered=True)
    mean = image.mean or (config.mean if config else None) or (0.5, 0.5, 0.5)
    std = image.std or (config.std if config else None) or (0.5, 0.5, 0.5)
    return Preprocessing(size=image.size, mean=tuple(mean), std=tuple(std))


def model_config(
    options: StudentOptions,
    embed_dim: int,
    vocab_size: int,
    teacher: Mapping[str, Any] | None = None,
    layout: TextLayout | None = None,
) -> dict[str, Any]:
    """The student as open_clip's `model_cfg`; with `image: teacher`, `teacher` is all of it but
    the text tower.

    `layout` is that of the first teacher's text tower.
    """
    text = options.text
    image = options.image
    images = teacher
    if isinstance(image, ImageTower):
        # MobileNetV3 and V4 widen their features after pooling: then their classifier projects.
        # open_clip 3.3 sizes a linear projection by `num_features`, which is the width before
        # that.
        network = blank_network(image.timm)
        has_wide_head = (
            getattr(network, "head_hidden_size", network.num_features) != network.num_features
        )
        if has_wide_head and image.projection == "mlp":
            problem = Message(
                "{} uses its classifier layer as the image projection and does not support mlp",
                image.timm,
            )
            raise DcclipError(problem, "remove student.image.projection, or use another network")
        vision = {
            "image_size": image.size,
            "timm_model_name": image.timm,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "" if has_wide_head else image.projection,
            **({"timm_proj_bias": True} if image.projection == "mlp" else {}),
            "timm_drop": image.dropout,
            "timm_drop_path": None,
        }
        images = {"embed_dim": embed_dim, "vision_cfg": vision}
    assert images is not None
    attention, pooling = text.layout(layout)
    return {
        **images,
        "custom_text": True,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": vocab_size,
            # open_clip then loads the tokenizer from the model directory
            "hf_tokenizer_name": "tokenizer",
            "width": text.width,
            "heads": text.head_count,
            "layers": text.layers,
            "pad_id": PADDING_ID,
            "eos_id": END_ID,
            "pool_type": "eos" if pooling == "end" else pooling,
            **({"no_causal_mask": True} if attention == "bidirectional" else {}),
        },
    }


def blank_network(name: str) -> Any:
    """timm's network without a classifier, on torch's meta device. Raises DcclipError if timm has
    none of this name.
    """
    import timm
    import torch

    check_timm_name(name, "student.image.timm")
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def build_model(config: dict[str, Any], seed: int) -> nn.Module:
    """The open_clip model of a `model_cfg`, with random weights from `seed`."""
    import torch
    from open_clip.model import CustomTextCLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CustomTextCLIP(
            **{key: value for key, value in config.items() if key != "custom_text"}
        )
    if (bias := projection_bias(model)) is not None:
        torch.nn.init.zeros_(bias)
    return model


def projection_bias(model: Any) -> nn.Parameter | None:
    """The bias of a projecting classifier, which students keep at 0: transformers has no parameter
    for it.
    """
    trunk = getattr(model.visual, "trunk", None)
    if trunk is None or len(model.visual.head):
        return None
    bias: nn.Parameter | None = getattr(trunk.get_classifier(), "bias", None)
    return bias


def init_image_tower(model: nn.Module, image: ImageTower) -> None:
    """Load `image.weights` into the image tower or its trunk. Raises DcclipError on a mismatch."""
    if image.weights is None:
        return
    trunk: Any = model.visual.trunk  # type: ignore[union-attr]
    if image.weights == "timm":
        import timm

        weights = timm.create_model(image.timm, pretrained=True).state_dict()
    else:
        from safetensors.torch import load_file

        stored_tensors([Path(image.weights)])  # raises DcclipError for what is no safetensors file
        weights = load_file(image.weights)
    if is_image_tower := any(name.startswith("trunk.") for name in weights):
        trunk = model.visual
    state = trunk.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in state and state[name].shape == value.shape
    }
    missing = [
        name for name in state if name not in fitting and not name.endswith("num_batches_tracked")
    ]
    if missing and (
        is_image_tower
        or not all(name.startswith(("classifier", "head.", "fc.")) for name in missing)
    ):
        message = Message(
            "student.image.weights: {} does not fit {}: no matching {}",
            image.weights,
            image.timm,
            missing[0],
        )
        raise DcclipError(message, "use weights of the same timm network")
    trunk.load_state_dict(fitting, strict=False)
