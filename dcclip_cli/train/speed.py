"""Speed of training steps: images per second, waiting for data, memory; operations of a forward
pass.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcclip_cli.core.machine import peak_memory_bytes
from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.model.towers import Tokens, Towers


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass, by tower: two for each multiplication with
    addition.
    """

    image: float
    text: float

    @property
    def total(self) -> float:
        return self.image + self.text


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: what is allocated on a GPU, else the process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def forward_flops(towers: Towers, pixels: Tensor, texts: Sequence[Tokens]) -> Flops:
    """Operations of the towers' matrix products, convolutions and attention for these inputs,
    which may be empty.
    """
    copies: dict[
        int, Tensor
    ] = {}  # of weights, on the meta device, in place of which none are copied
    for parameter in towers.parameters():  # in fp32: a teacher's are in several types
        copies[id(parameter)] = nn.Parameter(
            parameter.detach().to("meta", torch.float32), requires_grad=False
        )
    copies |= {id(buffer): buffer.to("meta") for buffer in towers.buffers()}
    blank = copy.deepcopy(towers, copies)
    blank.compiled = {}
    with torch.no_grad(), FlopCounterMode(display=False) as images:
        if pixels.ndim == 4 and len(pixels):
            blank.image_features(pixels.to("meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as captions:
        for tokens in texts:
            blank.text_features_by_length(tokens.sorted().map(lambda tensor: tensor.to("meta")))
    return Flops(images.get_total_flops(), captions.get_total_flops())


class StepTimer:
    """Measures the steps since the last log entry: their speed, and the largest memory so far."""

    def __init__(self, step: int, device: torch.device) -> None:
        self._device = device
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step = step
        self._began = time.monotonic()
        self._waits = list[tuple[Any, Any]]()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data; on a GPU, as far as that has nothing left to
        compute.
        """
        began = self._now()
        yield
        self._waits.append((began, self._now()))

    def _now(self) -> Any:
        """The time; of a GPU an event, which it reaches when it has computed all that it was given
        before.
        """
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def speed(self, step: int, total_steps: int, sampler: MixedBatchSampler) -> dict[str, float]:
        """Images per second (of steps without images texts), seconds of a step spent waiting for
        data, and so on.

        Starts the next interval. Of a GPU, the step must have been waited for.
        """
        now = time.monotonic()
        count = step - self._step
        step_s = (now - self._began) / count
        on_gpu = self._device.type == "cuda"
        waits = (
            begin.elapsed_time(end) / 1000 if on_gpu else end - begin for begin, end in self._waits
        )
        rate = "images_per_second" if sampler.images_per_step else "texts_per_second"
        speed = {
            rate: (sampler.images_per_step or sampler.batch_size) / step_s,
            "data_wait_s": sum(waits) / count,
            "peak_memory_gb": peak_bytes(self._device) / 1e9,
            "seconds_left": step_s * (total_steps - step),
        }
        if on_gpu:
            speed["reserved_memory_gb"] = torch.cuda.max_memory_reserved(self._device) / 1e9
        self._restart(step)
        return speed
