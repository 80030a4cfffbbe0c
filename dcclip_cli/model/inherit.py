"""Initial weights of students out of their teachers': rows and layers of text towers, whole and
cut image towers.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.model.hub_models import open_clip_config
from dcclip_cli.model.reference import ModelSource
from dcclip_cli.model.towers import OpenClipTowers, Towers, evaluating
from dcclip_cli.model.weights import CONFIG, require_file

_SHARED = (
    "embed_dim",
    "vision_cfg",
    "init_logit_bias",
    "nonscalar_logit_scale",
)  # what both models have alike
_BLOCKS = ("DepthwiseSeparableConv", "InvertedResidual")


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def init_text_tower(text: Any, tokenizer: Tokenizer, teacher: Towers, layers: bool) -> None:
    """Copy the rows of shared tokens, and with `layers` whole layers, from the teacher to
    open_clip's tower `text`.

    Rows of another width are projected to the student's by PCA and scaled to the standard
    deviation of its random initialisation; rows of tokens that the teacher lacks stay random.
    Layers are taken at even distances, the first included (TinyCLIP, arXiv 2309.12314), with the
    positions, last norm and projection that fit. Raises DcclipError if the teacher has nothing
    that fits.
    """
    rows, vocab = teacher.token_embedding()
    shared = [
        (index, vocab[token]) for token, index in tokenizer.get_vocab().items() if token in vocab
    ]
    if not shared:
        raise DcclipError(
            "the teacher's vocabulary has none of the student's tokens",
            "set student.text.vocabulary: {{from: teacher, size: ...}}",
        )
    student_ids, teacher_ids = (
        torch.tensor(indices) for indices in zip(*sorted(shared), strict=True)
    )
    table = text.token_embedding.weight
    with torch.no_grad():
        embeddings = rows[teacher_ids].float()
        if rows.shape[1] != table.shape[1]:
            embeddings = principal_components(embeddings, table.shape[1])
            embeddings *= table.std() / embeddings.std()
        table[student_ids] = embeddings.to(table)
        if not layers:
            return
        source = _text_source(teacher)
        blocks = _fitting_blocks(text, teacher)
        # The first layer reads the rows: half of a two-layer tower is useless without it
        # (notes/lab-notes.md).
        for index, block in enumerate(text.transformer.resblocks):
            block.load_state_dict(
                blocks[index * len(blocks) // len(text.transformer.resblocks)].state_dict()
            )
        text.ln_final.load_state_dict(source.ln_final.state_dict())
        positions = min(len(text.positional_embedding), len(source.positional_embedding))
        text.positional_embedding[:positions] = source.positional_embedding[:positions]
        new = text.text_projection
        old = source.text_projection
        if isinstance(new, Tensor) and isinstance(old, Tensor) and new.shape == old.shape:
            new.copy_(old)


def principal_components(rows: Tensor, width: int) -> Tensor:
    """(V, width) centred rows (V, W) along directions of largest variance. Raises DcclipError for
    too few.
    """
    _check_width(rows, width, min(rows.shape))
    centred = (rows - rows.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # the largest come last
    chosen = directions[:, -width:].flip(1)
    # A direction's sign is arbitrary: make its largest entry positive, so that every machine gives
    # the same rows.
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return (centred @ (chosen * signs)).float()


def check_inherits(student: Any, teacher: Towers, layers: bool) -> None:
    """Raise DcclipError unless open_clip's text tower `student` can take rows, and with `layers`
    layers, by shape.
    """
    rows, _ = teacher.token_embedding()
    _check_width(rows, student.token_embedding.weight.shape[1], rows.shape[1])
    if layers:
        _fitting_blocks(student, teacher)


def _check_width(rows: Tensor, width: int, limit: int) -> None:
    if width > limit:
        raise DcclipError(
            "{0} embeddings of width {1} have {2} principal components, fewer than "
            "student.text.width {3}",
            "set student.text.width to at most {2}, or remove student.text.inherit",
            *(*rows.shape, min(rows.shape), width),
        )


def _text_source(teacher: Towers) -> Any:
    return getattr(
        teacher.model, "text", teacher.model
    )  # open_clip's CLIP class has the layers in the model itself


def _fitting_blocks(student: Any, teacher: Towers) -> Any:
    """The teacher's layers. Raises DcclipError if they are too few, or have another attention or
    other shapes.
    """
    blocks: Any = getattr(getattr(_text_source(teacher), "transformer", None), "resblocks", [])
    student_blocks = student.transformer.resblocks
    if len(blocks) < len(student_blocks) or _shapes(blocks[0]) != _shapes(student_blocks[0]):
        hint = Message(
            "set inherit: embeddings, or use an open_clip teacher of the same width with "
            "at least as many layers"
        )
        raise DcclipError("no layers of {} fit the student's text tower", hint, teacher.name)
    attention = teacher.text_layout.attention
    if (attention == "bidirectional") != (student.attn_mask is None):
        problem = Message(
            "the layers of {} were trained with {} attention", teacher.name, attention
        )
        raise DcclipError(
            problem,
            "remove student.text.attention and student.text.pooling, or set inherit: embeddings",
        )
    return blocks


# ---- whole image towers, for a text tower that learns the space of a model in use


def check_image_source(teacher: Towers) -> OpenClipTowers:
    """The teacher, if its image tower can be a student's. Raises DcclipError for models of other
    libraries.
    """
    if isinstance(teacher, OpenClipTowers):
        return teacher
    fault = Message(
        "student.image: teacher needs an open_clip model; {} is from another library", teacher.name
    )
    raise DcclipError(
        fault,
        "use open_clip's version of the model, as in {{kind: open_clip, model: hf-hub:ORG/NAME}}",
    )


def teacher_image_config(source: ModelSource, teacher: OpenClipTowers) -> dict[str, Any]:
    """A student's `model_cfg` without its text tower, as the `source` of a teacher has it."""
    if source.path.is_dir() or source.on_hub:
        folder = require_file(source.location, CONFIG).parent
        full_config = open_clip_config(folder, on_hub=source.on_hub)["model_cfg"]
    else:
        full_config = open_clip.get_model_config(source.location.rpartition("/")[0])
    config = {key: full_config[key] for key in _SHARED if key in full_config}
    config["vision_cfg"] = {**config["vision_cfg"]}
    if "timm_model_pretrained" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    # open_clip sets this by the weights' tag as well, so the configuration is not enough.
    if any(type(module).__name__ == "QuickGELU" for module in teacher.model.visual.modules()):
        config["quick_gelu"] = True
    return config


@torch.no_grad()
def copy_image_tower(model: Any, teacher: OpenClipTowers) -> None:
    """Copy the teacher's image tower and temperature. Raises DcclipError unless the copy computes
    the same.
    """
    source: Any = teacher.model
    model.visual.load_state_dict(source.visual.state_dict())
    model.logit_scale.copy_(source.logit_scale)
    if model.logit_bias is not None:
        model.logit_bias.copy_(source.logit_bias)
    side = model.visual.image_size
    height, width = side if isinstance(side, tuple | list) else (side, side)
    pixels = torch.linspace(-1, 1, 3 * height * width, device=source.logit_scale.device).view(
        1, 3, height, width
    )
    with evaluating(model):
        copied = model.visual(pixels.cpu())
    if not torch.allclose(copied, source.visual(pixels).cpu(), rtol=1e-3, atol=1e-4):
        message = Message(
            "{}: the image tower built from the configuration gives different outputs", teacher.name
        )
        raise DcclipError(
            message, "use a model whose open_clip_config.json describes the image tower completely"
        )


# ---- image towers cut out of larger ones, of timm's EfficientNet family (EfficientNet-Lite,
# MobileNetV2, MnasNet, ...) These are a stem, stages of depthwise-separable and inverted residual
# blocks, and a head. In both kinds of blocks `conv_pw` mixes the input channels. The idea is
# TinyCLIP's weight inheritance, there for transformers.


@torch.no_grad()
def inherit_image_tower(visual: Any, teacher: Towers) -> None:
    """Give open_clip's image tower `visual` the most important channels of the teacher's, and
    blocks at even distances.

    The importance of a channel is the standard deviation that batch norm gives it, |gamma|, times
    the L2 norm of the weights that read it; of a stage's output, both are taken over all blocks
    that write and read it. Of more blocks than a stage of the teacher has, the last ones add
    nothing at first. Larger depthwise kernels are cropped to the centre. The projection is copied
    if it has the same shape. Raises DcclipError if `visual` does not fit.
    """
    check_inherits_images(visual, teacher)
    source = teacher.model.visual
    readers_of_head = [
        layer.weight for layer in source.head.modules() if isinstance(layer, torch.nn.Linear)
    ][:1]
    student = visual.trunk
    teacher_trunk = source.trunk
    # Stem, stages and head, each with the input channels that the one before it has kept.
    first = teacher_trunk.blocks[0][0]
    inputs = _most_important([first.bn1], [first.conv_pw.weight], student.conv_stem.out_channels)
    _copy((student.conv_stem, student.bn1), (teacher_trunk.conv_stem, teacher_trunk.bn1), inputs)
    readers = [*(stage[0].conv_pw for stage in teacher_trunk.blocks[1:]), teacher_trunk.conv_head]
    for blocks, teacher_blocks, reader in zip(
        student.blocks, teacher_trunk.blocks, readers, strict=True
    ):
        weights = [*(block.conv_pw.weight for block in teacher_blocks[1:]), reader.weight]
        outputs = _most_important(
            [_last(block)[1] for block in teacher_blocks], weights, _last(blocks[0])[0].out_channels
        )
        for number, (block, origin) in enumerate(
            zip(blocks, _origins(teacher_blocks, len(blocks)), strict=True)
        ):
            if origin is None:
                torch.nn.init.zeros_(_last(block)[1].weight)
            else:
                _copy_block(block, origin, outputs if number else inputs, outputs)
        inputs = outputs
    features = _most_important([teacher_trunk.bn2], readers_of_head, student.conv_head.out_channels)
    _copy(
        (student.conv_head, student.bn2),
        (teacher_trunk.conv_head, teacher_trunk.bn2),
        features,
        inputs,
    )
    if _shapes(visual.head) == _shapes(source.head):
        visual.head.load_state_dict(source.head.state_dict())


def check_inherits_images(visual: Any, teacher: Towers) -> None:
    """Raise DcclipError unless `visual` can be cut out of the teacher's image tower, by the shapes
    of both.
    """
    if reason := misfit(visual, teacher):
        message = Message(
            "the network cannot be initialized from the image tower of {}: {}", teacher.name, reason
        )
        raise DcclipError(
            message,
            "use a smaller network of the same family, such as mobilenetv2_050 for "
            "efficientnet_lite0, or remove "
            "inherit",
        )


def misfit(visual: Any, towers: Towers | None) -> Message | None:
    """Why `visual` cannot be cut out of the image tower of a teacher's `towers`; None if it can."""
    teacher: Any = getattr(getattr(getattr(towers, "model", None), "visual", None), "trunk", None)
    student = visual.trunk
    if not _is_of_family(student):
        return Message("it is not in timm's EfficientNet family")
    if not _is_of_family(teacher):
        return Message("the teacher's network is not in timm's EfficientNet family")
    if len(student.blocks) != len(teacher.blocks):
        return Message("it has {} stages instead of {}", len(student.blocks), len(teacher.blocks))
    for number, (blocks, teacher_blocks) in enumerate(
        zip(student.blocks, teacher.blocks, strict=True)
    ):
        for block, origin in zip(blocks, _origins(teacher_blocks, len(blocks)), strict=True):
            if origin is None and not block.has_skip:
                return Message("its stage {} has too many blocks", number)
            if origin is not None and _kind(block) != _kind(origin):
                return Message("the blocks of its stage {} differ", number)
            shapes = _shapes(block)
            limits = _shapes(origin) if origin is not None else {}
            if any(
                new > old
                for name in limits
                for new, old in zip(shapes[name][:2], limits[name][:2], strict=True)
            ):
                return Message("its stage {} is wider", number)
    return (
        Message("its head is wider")
        if student.conv_head.out_channels > teacher.conv_head.out_channels
        else None
    )


def _is_of_family(trunk: Any) -> bool:
    # Unlike these, a ViT has no `conv_head`, and its blocks are in no stages.
    return hasattr(trunk, "conv_head") and all(
        type(block).__name__ in _BLOCKS for stage in trunk.blocks for block in stage
    )


def _kind(block: Any) -> tuple[type, bool]:
    """The class of a block, and whether it has squeeze-and-excitation."""
    return type(block), hasattr(block.se, "conv_reduce")


def _origins(stage: Sequence[Any], count: int) -> list[Any]:
    """For each of a student stage's `count` blocks the teacher's block, the first included; None
    for surplus ones.
    """
    copied = min(count, len(stage))
    return [
        *(stage[index * len(stage) // copied] for index in range(copied)),
        *[None] * (count - copied),
    ]


def _last(block: Any) -> tuple[Any, Any]:
    """The convolution at the end of a block, and its batch norm."""
    return (block.conv_pwl, block.bn3) if hasattr(block, "conv_pwl") else (block.conv_pw, block.bn2)


def _copy_block(student: Any, teacher: Any, inputs: Tensor, outputs: Tensor) -> None:
    """Copy one block; of the hidden channels, those that matter most to its output."""
    hidden = inputs
    if hasattr(student, "conv_pwl"):
        hidden = _most_important(
            [teacher.bn2], [teacher.conv_pwl.weight], student.conv_pwl.in_channels
        )
        _copy((student.conv_pw, student.bn1), (teacher.conv_pw, teacher.bn1), hidden, inputs)
        _copy((student.conv_dw, student.bn2), (teacher.conv_dw, teacher.bn2), hidden)
    else:
        _copy((student.conv_dw, student.bn1), (teacher.conv_dw, teacher.bn1), hidden)
    if hasattr(student.se, "conv_reduce"):
        expand = teacher.se.conv_expand.weight
        squeezed = (
            expand.flatten(1)
            .norm(dim=0)
            .topk(student.se.conv_reduce.out_channels)
            .indices.sort()
            .values
        )
        _copy((student.se.conv_reduce, None), (teacher.se.conv_reduce, None), squeezed, hidden)
        _copy((student.se.conv_expand, None), (teacher.se.conv_expand, None), hidden, squeezed)
    _copy(_last(student), _last(teacher), outputs, hidden)


def _most_important(norms: Sequence[Any], readers: Sequence[Tensor], count: int) -> Tensor:
    """The numbers of the `count` channels with the largest |gamma| times norm of the weights that
    read them, ascending.

    `norms` are the batch norms that write the channels, `readers` the weights (outputs, channels,
    ...) that read them.
    """
    written = torch.stack([norm.weight.float() ** 2 for norm in norms]).sum(0)
    norms_of_readers = [
        weight.float().transpose(0, 1).flatten(1).square().sum(1) for weight in readers
    ]
    importance = written * torch.stack(norms_of_readers).sum(0) if norms_of_readers else written
    return importance.topk(count).indices.sort().values


def _copy(
    student: tuple[Any, Any],
    teacher: tuple[Any, Any],
    outputs: Tensor,
    inputs: Tensor | None = None,
) -> None:
    """Copy channels of a convolution (`inputs` unless depthwise) and batch norm; kernels are
    cropped or padded.
    """
    weight = teacher[0].weight[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    margin = (weight.shape[-1] - student[0].weight.shape[-1]) // 2
    student[0].weight.copy_(torch.nn.functional.pad(weight, [-margin] * 4))
    if student[0].bias is not None:
        student[0].bias.copy_(teacher[0].bias[outputs])
    if student[1] is not None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(student[1], name).copy_(getattr(teacher[1], name)[outputs])
