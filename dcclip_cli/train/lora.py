"""LoRA by the library peft: small matrices that are trained in place of a tower's weights, and
merged into them.
"""

from typing import Any, Literal

from pydantic import Field

from dcclip_cli.core.options import Options


class LoraOptions(Options):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) of a tower's linear layers and 1 x 1
    convolutions.

    Of the tower's own parameters, only the projection into the shared space is trained. The saved
    model is merged.
    """

    rank: int = Field(8, ge=1, le=1024, description="Rank of the update matrices")
    alpha: float = Field(
        16.0, gt=0, le=100_000, description="The update is multiplied by alpha / rank"
    )
    towers: Literal["both", "image", "text"] = Field(
        "both", description="Towers with LoRA, unless they are locked"
    )


def add_lora(model: Any, options: LoraOptions, locked: str | None, seed: int) -> None:
    """Freeze the towers of open_clip's `model` but for projections, and add LoRA, random from
    `seed`, where is none.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    def adapts(module: nn.Module) -> bool:
        pointwise = (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        )
        return (
            pointwise or type(module) is nn.Linear
        )  # attention only reads its output layer, of a subclass

    for name, tower in (("image", model.visual), ("text", model.text)):
        parameters = dict(tower.named_parameters())
        if (
            name == locked
            or options.towers not in (name, "both")
            or any("lora_A" in key for key in parameters)
        ):
            continue
        projections = [
            value
            for key, value in parameters.items()
            if is_projection(f".{key}") and value.requires_grad
        ]
        layers = [
            key
            for key, module in tower.named_modules()
            if adapts(module) and not is_projection(f".{key}.")
        ]
        # Attention has no layer for these.
        fused = [key for key in parameters if key.endswith("in_proj_weight")]
        config = LoraConfig(
            r=options.rank, lora_alpha=options.alpha, target_modules=layers, target_parameters=fused
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, tower)
        for parameter in projections:
            parameter.requires_grad_(True)


def merge_lora(model: Any) -> None:
    """Add the products to the weights, and leave the model as it was before `add_lora`."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            module.merge()
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def is_projection(name: str) -> bool:
    """Whether a parameter belongs to a projection into the shared space, which is not part of what
    was pretrained.
    """
    return ".head." in name or "classifier" in name or "text_projection" in name
