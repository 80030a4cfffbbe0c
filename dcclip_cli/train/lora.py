"""LoRA by the library peft: small matrices that are trained in place of a tower's weights, and merged into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.options import Options

if TYPE_CHECKING:
    from torch import nn

_ATTENTION = "in_proj_weight"  # query, key and value of torch's MultiheadAttention, which has no linear layer for them


class LoraOptions(Options):
    """Low-rank adaptation: few trained parameters (Hu et al. 2021, arXiv 2106.09685).

    Each linear layer and 1 x 1 convolution of a tower gets two matrices whose product is added to its weights. Of the
    tower's own parameters only the projection into the shared space is trained. The saved model is merged.
    """

    rank: int = Field(8, ge=1, le=1024, description="Rank of the products: the matrices' shorter side")
    alpha: float = Field(16.0, gt=0, le=100_000, description="The products are multiplied by alpha / rank")
    towers: Literal["both", "image", "text"] = Field(
        "both", description="Towers that get LoRA; the other one is trained whole, unless it is locked"
    )


def add_lora(model: Any, options: LoraOptions, locked: str | None, seed: int) -> None:
    """Freeze the towers of open_clip's `model` but for their projections, and add LoRA, random from `seed`.

    A locked tower gets none, and a model that has LoRA keeps it.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    from dcclip_cli.train.optimizer import is_projection

    if any(isinstance(module, LoraLayer) for module in model.modules()):
        return
    for name, tower in (("image", model.visual), ("text", model.text)):
        if name == locked or options.towers not in (name, "both"):
            continue
        inside = [key for key, module in tower.named_modules() if _is_linear(module) and not is_projection(f".{key}.")]
        attention = [key for key, _ in tower.named_parameters() if key.endswith(_ATTENTION)]
        kept = [one for key, one in tower.named_parameters() if is_projection(f".{key}") and one.requires_grad]
        config = LoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules=inside, target_parameters=attention or None
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, tower)
        for parameter in kept:
            parameter.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Add the products to the weights, and leave the model as it was before `add_lora`."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            module.merge()
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer or a 1 x 1 convolution. Attention uses its output layer's weights only."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
