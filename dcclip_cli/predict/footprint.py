"""Size and latency of a loaded model on this machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dcclip_cli.predict.encoder import Encoder

TEXT = "一只在雪地里的狗 a dog in the snow"


@dataclass(frozen=True)
class Footprint:
    """`image_ms` and `text_ms` are medians for one image or one short text, without preprocessing."""

    parameters: int
    size_bytes: int
    image_ms: float
    text_ms: float


def footprint(model: Encoder, budget_s: float = 1.0, threads: int = 1) -> Footprint:
    """A model's size and latency. Not for comparing machines, or measurements made next to other work.

    `threads` are torch's; a bundle is loaded with its own number.
    """
    pixels = model.preprocess(Image.new("RGB", (256, 256), "white"))[np.newaxis]
    with _torch_threads(threads):
        image_ms = _median_ms(lambda: model.encode_pixels(pixels), budget_s / 2)
        text_ms = _median_ms(lambda: model.encode_texts([TEXT]), budget_s / 2)
    return Footprint(model.parameters, model.size_bytes, image_ms, text_ms)


def peak_bytes() -> int | None:
    """The peak memory of this process so far; None on Windows, which does not report it."""
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)  # macOS counts bytes, Linux kilobytes


def _median_ms(call: Callable[[], object], budget_s: float) -> float:
    call()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


@contextmanager
def _torch_threads(wanted: int) -> Iterator[None]:
    torch = sys.modules.get("torch")  # if it is not loaded, the model does not use it
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
