"""What both stages let a recipe choose about the loop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dcclip_cli.data.augment import Augment
from dcclip_cli.data.batches import CaptionOptions
from dcclip_cli.options import Options


class OptimizerOptions(Options):
    """AdamW; biases, norms and positions are not decayed."""

    lr: float = Field(1e-3, gt=0, description="Peak learning rate")
    image_lr_scale: float = Field(
        1.0, ge=0, description="Factor on it for the image tower's trunk, gentle on pretrained weights"
    )
    weight_decay: float = Field(0.05, ge=0, description="On matrices and convolutions")
    betas: tuple[float, float] = Field((0.9, 0.98), description="Decay of the running means of gradient and its square")
    eps: float = Field(1e-6, gt=0, description="Added to the root of the squared gradient's mean")


class LoopOptions(Options):
    """How long and how a stage trains. Give `epochs` or `steps`."""

    epochs: float | None = Field(None, gt=0, description="Passes over the training pairs, in parts too")
    steps: int | None = Field(None, ge=1, description="Batches, instead of epochs")
    batch_size: int = Field(256, ge=2, description="Over all processes")
    optimizer: OptimizerOptions = Field(OptimizerOptions(), description="AdamW's settings")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear rise to the peak rate; then half a cosine to 0")
    clip_norm: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; null: any")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast, the weights stay fp32; fp16 needs a GPU"
    )
    captions: CaptionOptions = Field(CaptionOptions(), description="Which of a pair's captions a step sees")
    augment: Augment = Field(Augment(), description="Random changes of the pictures")
    workers: int = Field(1, ge=0, description="Processes that read pictures, for each training process")
    threads: int | None = Field(None, ge=1, description="Of torch; part of what makes a run bit-identical")
    log_every_steps: int = Field(20, ge=1, description="Steps between two entries in metrics.jsonl and TensorBoard")
    checkpoint_every_steps: int = Field(200, ge=1, description="Steps between two saved states to go on from")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self
