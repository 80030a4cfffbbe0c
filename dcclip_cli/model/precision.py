"""Choice of torch device and precision (fp32 or bf16), and the check that embeddings are finite."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import cache_folder, lock, read_cached, write_json
from dcclip_cli.machine import cpu_name, has_native_bf16, keep_freed_memory
from dcclip_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAST_GAIN = 1.2  # speed-up of bf16 below which its coarser numbers are not worth it
_ROUNDS, _PROBE_S = 3, 0.1  # passes timed in each precision, and the time that one should take
_MOST, _FEWEST = 64, 2  # images and texts per pass
_TEXTS = ("一张猫的照片", "a photo of a cat on a sofa")
_MOST_LOGIT = 1e6  # CLIP learns a scale of up to 100, SigLIP one of about 115 and a bias of about -16
INPUTS = {"images": Message("images"), "texts": Message("texts")}  # whose embeddings an error is about
_HINT = Message("the weights are damaged or the computation overflowed: download the model again, or use fp32")


def torch_device(asked: str, hint: str = "omit --device, or use --device cpu") -> str:
    """`cpu`, `cuda` or `mps` for `auto`; any other name, such as `cuda:1`, unchanged.

    Raises DcclipError, with `hint`, if torch does not have the device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, found in available.items() if found)
    if not available.get(asked.partition(":")[0]):
        raise DcclipError("torch finds no device {}", hint, asked)
    return asked


class NotFiniteError(DcclipError):
    """A model returned NaN or infinity, which every ranking, mean and index built on it would hide."""


def finite(values: np.ndarray, model: str, inputs: str, hint: str = _HINT) -> np.ndarray:
    """`values` (N, ...) unchanged: the embeddings that `model` returned for N `inputs` ("images" or "texts").

    Raises NotFiniteError if a number is NaN or infinite.
    """
    numbers = np.isfinite(values)
    if not numbers.all():
        bad = int((~numbers.all(axis=tuple(range(1, values.ndim)))).sum())
        raise NotFiniteError(
            "{} returned embeddings that are not finite (NaN or infinite) for {} of {} {}",
            hint,
            *(model, bad, len(values), INPUTS[inputs]),
        )
    return values


def check_logits(scale: float, bias: float | None, model: str) -> None:
    """Raise NotFiniteError unless a model's logit scale and bias turn cosines into finite logits, the best first."""
    if not (0 < scale <= _MOST_LOGIT and (bias is None or abs(bias) <= _MOST_LOGIT)):
        raise NotFiniteError(
            "{} has a logit scale of {:.3g} and a logit bias of {:.3g}", _HINT, model, scale, bias or 0
        )


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen. `gain`: time in fp32 divided by time in bf16, if it was measured."""

    precision: str
    reason: str
    gain: float | None = None

    def lines(self, who: str) -> list[str]:
        """The messages for the user: the precision of `who`, and a warning if bf16 was requested and is slower."""
        message = Message("{}: computes in {} ({})", who, self.precision, self.reason)
        if self.precision != "bf16" or self.gain is None or self.gain >= 1:
            return [message]
        slow = Message(
            "bf16 is {:.1f} times slower than fp32 on this machine: set precision to auto or fp32", 1 / self.gain
        )
        return [message, Message("warning: {}", slow)]


AS_ASKED = Choice("fp32", Message("as requested"))


def choose_precision(
    asked: str,
    device: str,
    towers: nn.Module,
    training: bool = False,
    image: bool = True,
    progress: Progress | None = None,
) -> Choice:
    """The precision that `asked` ("auto", "fp32", "bf16", "fp16") means for these Towers on `device`.

    On a CPU, bf16 has to be native and at least LEAST_GAIN times faster when these towers are timed; `training` times
    a backward pass too, `image=False` the text tower alone. The result is kept in the cache folder, so that a machine
    makes the same choice each time.
    """
    import torch

    if asked not in ("auto", "bf16"):
        return Choice(asked, Message("as requested"))
    if asked == "auto" and (choice := choice_without_probe(device)):
        return choice
    if asked == "bf16" and torch.device(device).type != "cpu":
        return Choice("bf16", Message("as requested"))
    gain = _cached_gain(towers, training, image, progress or Silent())
    return Choice("bf16", Message("as requested"), gain) if asked == "bf16" else choice_by_gain(gain)


def choice_without_probe(device: str) -> Choice | None:
    """The choice of `auto` that does not depend on the model; None on a CPU with native bf16, where it does."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", Message("native on this GPU"))
        return Choice("fp32", Message("no native bf16 on this GPU"))
    if kind != "cpu":
        return Choice("fp32", Message("bf16 is not tried on {}", kind))
    return None if torch_has_bf16() else Choice("fp32", Message("no native bf16 on this CPU"))


def choice_by_gain(gain: float) -> Choice:
    """The choice of `auto` for a model that is `gain` times as fast in bf16 as in fp32."""
    reason = Message("bf16 is {:.2f} times as fast as fp32 here", gain)
    return Choice("bf16" if gain >= LEAST_GAIN else "fp32", reason, gain)


def torch_has_bf16() -> bool:
    """Whether torch computes bf16 natively on this CPU: supported by it and not disabled in torch."""
    import torch

    return has_native_bf16() and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "DEFAULT")


def newton_schulz_precision(device: str) -> Literal["fp32", "bf16"]:
    """The precision in which Muon's matrix products are faster on `device`.

    Its products are large enough that native bf16 always wins (2 to 4 times), and emulated bf16 always loses
    (20 to 50 times): docs/results/training.md.
    """
    known = choice_without_probe(device)  # None: native, on a CPU
    return "bf16" if known is None or known.precision == "bf16" else "fp32"


def bf16_gain(run: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """How many times as fast `run` is under bf16 autocast as in fp32 on the CPU: the fastest of `rounds` each.

    Measured in CPU time of one thread, which other work on the machine hardly changes.
    """
    import torch

    threads = torch.get_num_threads()
    fastest = {False: float("inf"), True: float("inf")}
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for bf16 in fastest:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    begin = time.thread_time()
                    run()
                    fastest[bf16] = min(fastest[bf16], time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    return fastest[False] / fastest[True]


def _cached_gain(towers: nn.Module, training: bool, image: bool, progress: Progress) -> float:
    """The gain of bf16, measured once per architecture, machine and torch version."""
    import torch

    shapes = sorted({f"{type(module).__name__} {module}" for module in towers.modules() if not list(module.children())})
    machine = [cpu_name(), torch.backends.cpu.get_cpu_capability(), torch.__version__]
    key = hashlib.sha256(json.dumps([machine, training, image, shapes]).encode()).hexdigest()[:32]
    file = cache_folder() / "bf16-gain" / f"{key}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock(file.with_suffix(".lock")):  # processes that start together make the same choice
            if (known := read_cached(file, lambda content: float(content["gain"]), progress.say)) is not None:
                return known
            gain = _measured_gain(towers, training, image)
            write_json(file, {"gain": gain})
            return gain
    except OSError:  # a folder that cannot be written
        return _measured_gain(towers, training, image)


def _measured_gain(towers: Any, training: bool, image: bool) -> float:
    """Time a few passes of Towers. Running means, gradients and random state of `towers` do not change."""
    import torch
    from PIL import Image

    probed = copy.deepcopy(towers).train() if training else towers
    blank = torch.from_numpy(towers.preprocess(Image.new("RGB", (64, 64), "white")))

    def run(count: int) -> None:
        features = [probed.text_features(probed.tokenize(list(_TEXTS) * (count // 2))).embedding]
        if image:
            pixels = blank.expand(count, *blank.shape).contiguous(memory_format=torch.channels_last)
            features.append(probed.image_features(pixels).embedding)
        if training:
            sum(one.float().square().mean() for one in features).backward()
            probed.zero_grad()

    with torch.random.fork_rng(), torch.set_grad_enabled(training):
        run(_FEWEST)
        begin = time.thread_time()
        run(_FEWEST)
        each = (time.thread_time() - begin) / _FEWEST
        count = 2 * max(1, min(_MOST, int(_PROBE_S / each)) // 2)
        return bf16_gain(lambda: run(count), 1 if each * count > 10 * _PROBE_S else _ROUNDS)


def typical_choices(device: str) -> dict[str, dict[str, Choice]]:
    """The choice for inference and training, by kind of tower; timed for half a second on a CPU with native bf16."""
    uses = ("inference", "training")
    if known := choice_without_probe(device):
        return {use: {"convolutional": known, "transformer": known} for use in uses}
    keep_freed_memory()  # as the commands do: without it fp32, whose blocks are larger, loses
    towers = {"convolutional": _convolutional(), "transformer": _transformer()}
    return {
        use: {kind: choice_by_gain(bf16_gain(_pass(*tower, use == "training"))) for kind, tower in towers.items()}
        for use in uses
    }


def _pass(tower: nn.Module, batch: Tensor, training: bool) -> Callable[[], None]:
    """A function that runs `tower` on a batch, with a backward pass if `training`."""
    import torch

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = tower.train(training)(batch).float().square().mean()
            if training:
                out.backward()
                tower.zero_grad()

    run()
    return run


def _convolutional() -> tuple[nn.Module, Tensor]:
    """Six MobileNet blocks and a batch of images; bf16 gains as much as in EfficientNet-Lite0."""
    import torch
    from torch import nn

    def layers(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]

    tower = nn.Sequential(*layers(3, 32, 3, 2))
    for inputs, outputs, stride in ((32, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1)):
        wide = 6 * inputs
        tower.extend([*layers(inputs, wide), *layers(wide, wide, 3, stride, wide), *layers(wide, outputs)[:2]])
    batch = torch.rand(8, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    return tower.to(memory_format=torch.channels_last), batch  # type: ignore[call-overload]


def _transformer() -> tuple[nn.Module, Tensor]:
    """Two layers of a text tower and a batch of hidden states."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.rand(16, 32, 256)
