"""Speed of training steps: images per second, waiting for data, memory, and MFU from operations that are counted."""

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcclip_cli.data.batch import Batch
from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.machine import peak_memory_bytes
from dcclip_cli.model.towers import Tokens, Towers

# Dense bf16 operations per second in 1e12 (fp16 where bf16 is missing: T4, V100), by words in the device's name. Data
# sheets' numbers with sparsity are twice these. The first entry that matches counts.
_PEAKS = {
    "GB200": 2500,
    "B200": 2250,
    "GH200": 989,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H800 PCIe": 756,
    "H800": 989,
    "H20": 148,
    "A800": 312,
    "A100": 312,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L20": 119,
    "L4": 121,
    "RTX A6000": 155,
    "T4": 65,
    "V100": 125,
    "MI300X": 1307,
    "RTX 5090": 209,
    "RTX 4090 D": 147,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass, by tower: two for each multiplication with addition."""

    image: float
    text: float

    @property
    def total(self) -> float:
        return self.image + self.text


def peak_flops(device: torch.device) -> float | None:
    """A GPU's dense bf16 operations per second, whatever precision is used; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for words, peak in _PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: what is allocated on a GPU, else the process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()


def forward_flops(towers: Towers, pixels: Tensor, texts: Sequence[Tokens]) -> Flops:
    """Operations of the towers' matrix products, convolutions and attention for these inputs, which may be empty."""
    copies: dict[int, Tensor] = {}  # of weights, on the meta device, in place of which none are copied
    for parameter in towers.parameters():  # in fp32: a teacher's are in several types
        copies[id(parameter)] = nn.Parameter(parameter.detach().to("meta", torch.float32), requires_grad=False)
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


def training_flops(towers: Towers, pixels: Tensor, texts: Sequence[Tokens]) -> float:
    """Operations of a step: a backward pass takes twice those of the forward pass, for the share that is trained.

    What gradient checkpointing and gradient caching compute again is not counted, as is usual for MFU.
    """
    flops, text = forward_flops(towers, pixels, texts), getattr(towers.model, "text", towers.model)
    return flops.image * _passes(towers.model.visual) + flops.text * _passes(text)


def _passes(tower: nn.Module) -> float:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in tower.parameters()]
    return 1 + 2 * sum(size for size, trained in sizes if trained) / max(1, sum(size for size, _ in sizes))


class StepTimer:
    """Measures the steps since the last log entry: their speed, and the largest memory so far.

    The MFU is that of the step whose operations were counted, of a GPU whose peak is known.
    """

    def __init__(self, step: int, device: torch.device) -> None:
        self._device, self._peak = device, peak_flops(device)
        self._flops: float | None = None
        self._restart(step)

    def count_once(self, flops: Callable[[Batch], float], batch: Batch) -> None:
        """Count the operations of the first step, before it: a second or some, which are not those of steps."""
        if self._peak and self._flops is None:
            self._flops = 0.0  # unknown: an operation of the towers depends on values, and a meta tensor has none
            with suppress(RuntimeError):
                self._flops = flops(batch)
            self._restart(self._step)

    def _restart(self, step: int) -> None:
        self._step, self._began, self._waits = step, time.monotonic(), list[tuple[Any, Any]]()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data; on a GPU, as far as that has nothing left to compute."""
        began = self._now()
        yield
        self._waits.append((began, self._now()))

    def _now(self) -> Any:
        """The time; of a GPU an event, which it reaches when it has computed all that it was given before."""
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def speed(self, step: int, total_steps: int, sampler: MixedBatchSampler) -> dict[str, float]:
        """Images per second (of steps without images texts), seconds of a step spent waiting for data, and so on.

        Starts the next interval. Of a GPU, the step must have been waited for.
        """
        now, count = time.monotonic(), step - self._step
        step_s = (now - self._began) / count
        on_gpu = self._device.type == "cuda"
        waits = (begin.elapsed_time(end) / 1000 if on_gpu else end - begin for begin, end in self._waits)
        rate = "images_per_second" if sampler.images_per_step else "texts_per_second"
        speed = {
            rate: (sampler.images_per_step or sampler.batch_size) / step_s,
            "data_wait_s": sum(waits) / count,
            "peak_memory_gb": peak_bytes(self._device) / 1e9,
            "seconds_left": step_s * (total_steps - step),
        }
        if on_gpu:
            speed["reserved_memory_gb"] = torch.cuda.max_memory_reserved(self._device) / 1e9
        if self._flops and self._peak:
            speed["mfu"] = self._flops / step_s / self._peak
        self._restart(step)
        return speed
