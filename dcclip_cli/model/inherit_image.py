"""An image tower cut out of the teacher's in width and depth, for networks of timm's EfficientNet family.

Such a network is a stem, stages of depthwise-separable and inverted residual blocks, and a head: EfficientNet(-Lite),
MobileNetV2, MnasNet and others. The idea is TinyCLIP's weight inheritance (Wu et al., arXiv 2309.12314), there for
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.init_from_teacher import shapes

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

_BLOCKS = ("DepthwiseSeparableConv", "InvertedResidual")


def inherit_image_tower(visual: Any, teacher: Towers) -> None:
    """Give open_clip's image tower `visual` the most important channels of the teacher's, and blocks at even distances.

    The importance of a channel is the standard deviation that batch norm gives it, |gamma|, times the L2 norm of the
    weights that read it; of a stage's output, both are taken over all blocks that write and read it. Of more blocks
    than a stage of the teacher has, the last ones add nothing at first. Larger depthwise kernels are cropped to the
    centre. The projection is copied if it has the same shape. Raises DcclipError if `visual` does not fit.
    """
    check_inherits_images(visual, teacher)
    source = teacher.model.visual
    with torch.no_grad():
        readers = [layer.weight for layer in source.head.modules() if isinstance(layer, torch.nn.Linear)][:1]
        _cut(visual.trunk, source.trunk, readers)
        if shapes(visual.head) == shapes(source.head):
            visual.head.load_state_dict(source.head.state_dict())


def check_inherits_images(visual: Any, teacher: Towers) -> None:
    """Raise DcclipError unless `visual` can be cut out of the teacher's image tower, by the shapes of both."""
    own = visual.trunk
    trunk = getattr(getattr(getattr(teacher, "model", None), "visual", None), "trunk", None)
    if reason := _misfit(own, trunk):
        what = Message("the network cannot be cut out of the image tower of {}: {}", teacher.name, reason)
        raise DcclipError(
            what, "use a smaller network of its family, such as mobilenetv2_050 for efficientnet_lite0, or omit inherit"
        )


@dataclass(frozen=True)
class _Block:
    """The convolutions of a block, each with its batch norm. `widen` is None in a depthwise-separable block."""

    widen: tuple[Any, Any] | None
    depthwise: tuple[Any, Any]
    narrow: tuple[Any, Any]
    squeeze: Any  # squeeze-and-excitation, or an identity

    @property
    def reader(self) -> Any:
        """The convolution that mixes the block's input channels."""
        return self.widen[0] if self.widen else self.narrow[0]


def _parts(block: Any) -> _Block:
    if hasattr(block, "conv_pwl"):
        widen, depthwise, narrow = (block.conv_pw, block.bn1), (block.conv_dw, block.bn2), (block.conv_pwl, block.bn3)
        return _Block(widen, depthwise, narrow, block.se)
    return _Block(None, (block.conv_dw, block.bn1), (block.conv_pw, block.bn2), block.se)


def _misfit(own: Any, teacher: Any) -> Message | None:
    for trunk, message in (
        (own, Message("it is not of timm's EfficientNet family")),
        (teacher, Message("the teacher's is not of timm's EfficientNet family")),
    ):
        is_alike = hasattr(trunk, "conv_head")  # unlike a ViT, whose blocks are in no stages
        if not is_alike or any(type(block).__name__ not in _BLOCKS for stage in trunk.blocks for block in stage):
            return message
    if len(own.blocks) != len(teacher.blocks):
        return Message("it has {} stages instead of {}", len(own.blocks), len(teacher.blocks))
    for number, (mine, theirs) in enumerate(zip(own.blocks, teacher.blocks, strict=True)):
        for block, origin in zip(mine, _origins(theirs, len(mine)), strict=True):
            if origin is None and not block.has_skip:
                return Message("its stage {} has too many blocks", number)
            if origin is not None and not _is_alike(block, origin):
                return Message("its stage {} has other blocks", number)
            if origin is not None and _is_wider(block, origin):
                return Message("its stage {} is wider", number)
    return Message("its head is wider") if own.conv_head.out_channels > teacher.conv_head.out_channels else None


def _is_alike(own: Any, teacher: Any) -> bool:
    return type(own) is type(teacher) and hasattr(own.se, "conv_reduce") == hasattr(teacher.se, "conv_reduce")


def _is_wider(own: Any, teacher: Any) -> bool:
    mine, theirs = (dict(block.named_parameters()) for block in (own, teacher))
    pairs = (zip(mine[name].shape[:2], theirs[name].shape[:2], strict=True) for name in mine)
    return any(ours > given for sizes in pairs for ours, given in sizes)


def _origins(stage: Sequence[Any], count: int) -> list[Any]:
    """For each of a student stage's `count` blocks the teacher's block, the first included; None for surplus ones."""
    taken = min(count, len(stage))
    return [*(stage[index * len(stage) // taken] for index in range(taken)), *[None] * (count - taken)]


def _cut(own: Any, teacher: Any, readers_of_features: Sequence[Tensor]) -> None:
    """Copy the trunk: stem, stages and head, each with the input channels that the one before it has kept."""
    first = _parts(teacher.blocks[0][0])
    norm = first.widen[1] if first.widen else first.depthwise[1]
    kept = _most_important([norm], [first.reader.weight], own.conv_stem.out_channels)
    _copy((own.conv_stem, own.bn1), (teacher.conv_stem, teacher.bn1), kept)
    heads = [*(_parts(stage[0]).reader for stage in teacher.blocks[1:]), teacher.conv_head]
    for mine, theirs, after in zip(own.blocks, teacher.blocks, heads, strict=True):
        blocks = [_parts(block) for block in theirs]
        readers = [*(block.reader.weight for block in blocks[1:]), after.weight]
        outputs = _most_important(
            [block.narrow[1] for block in blocks], readers, _parts(mine[0]).narrow[0].out_channels
        )
        for number, (block, origin) in enumerate(zip(mine, _origins(theirs, len(mine)), strict=True)):
            if origin is None:
                torch.nn.init.zeros_(_parts(block).narrow[1].weight)
            else:
                _copy_block(_parts(block), _parts(origin), outputs if number else kept, outputs)
        kept = outputs
    features = _most_important([teacher.bn2], readers_of_features, own.conv_head.out_channels)
    _copy((own.conv_head, own.bn2), (teacher.conv_head, teacher.bn2), features, kept)


def _copy_block(own: _Block, teacher: _Block, inputs: Tensor, outputs: Tensor) -> None:
    """Copy one block; of the hidden channels, those that matter most to its output."""
    hidden = inputs
    if own.widen and teacher.widen:
        hidden = _most_important([teacher.depthwise[1]], [teacher.narrow[0].weight], own.narrow[0].in_channels)
        _copy(own.widen, teacher.widen, hidden, inputs)
    _copy(own.depthwise, teacher.depthwise, hidden)
    if hasattr(own.squeeze, "conv_reduce"):
        expand = teacher.squeeze.conv_expand.weight
        squeezed = expand.flatten(1).norm(dim=0).topk(own.squeeze.conv_reduce.out_channels).indices.sort().values
        _copy((own.squeeze.conv_reduce, None), (teacher.squeeze.conv_reduce, None), squeezed, hidden)
        _copy((own.squeeze.conv_expand, None), (teacher.squeeze.conv_expand, None), hidden, squeezed)
    _copy(own.narrow, teacher.narrow, outputs, hidden)


def _most_important(norms: Sequence[Any], readers: Sequence[Tensor], count: int) -> Tensor:
    """The numbers of the `count` channels with the largest |gamma| times norm of the weights that read them, ascending.

    `norms` are the batch norms that write the channels, `readers` the weights (outputs, channels, ...) that read them.
    """
    written = torch.stack([norm.weight.float() ** 2 for norm in norms]).sum(0)
    read = [weight.float().transpose(0, 1).flatten(1).square().sum(1) for weight in readers]
    importance = written * torch.stack(read).sum(0) if read else written
    return importance.topk(count).indices.sort().values


def _copy(own: tuple[Any, Any], teacher: tuple[Any, Any], outputs: Tensor, inputs: Tensor | None = None) -> None:
    """Copy chosen channels of a convolution, and of its batch norm. A depthwise one has no `inputs` to choose."""
    weight = teacher[0].weight[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    own[0].weight.copy_(_resize_kernel(weight, own[0].weight.shape[-1]))
    if own[0].bias is not None:
        own[0].bias.copy_(teacher[0].bias[outputs])
    if own[1] is not None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(own[1], name).copy_(getattr(teacher[1], name)[outputs])


def _resize_kernel(weight: Tensor, size: int) -> Tensor:
    """(..., k, k) weights as (..., size, size): the centre of a larger kernel, a smaller one with zeros around it."""
    cut = (weight.shape[-1] - size) // 2
    return torch.nn.functional.pad(weight, [-cut] * 4)
