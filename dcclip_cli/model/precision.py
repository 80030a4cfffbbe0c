"""Choice of torch device and precision (fp32, bf16 or fp16), and the check that embeddings are
finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import has_native_bf16

if TYPE_CHECKING:
    from torch import nn

_MAX_LOGIT = (
    1e6  # CLIP learns a scale of up to 100, SigLIP one of about 115 and a bias of about -16
)
INPUTS = {
    "images": Message("images"),
    "texts": Message("texts"),
}  # whose embeddings an error is about
_HINT = Message(
    "download the model again if its weights are damaged, or use fp32 if the computation overflowed"
)


def torch_device(name: str, hint: str = "remove --device, or use --device cpu") -> str:
    """The device for `auto`, other names unchanged. Raises DcclipError, with `hint`, if torch does
    not have it.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_available in available.items() if is_available)
    if not available.get(name.partition(":")[0]):
        raise DcclipError("torch does not support the device {}", hint, name)
    return name


class NotFiniteError(DcclipError):
    """A model returned NaN or infinity, which every ranking, mean and index built on it would
    hide.
    """


def finite(values: np.ndarray, model: str, inputs: str, hint: str = _HINT) -> np.ndarray:
    """`values` (N, ...) that `model` returned for N `inputs`, unchanged. Raises NotFiniteError for
    NaN or infinity.
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
    """Raise NotFiniteError unless a model's logit scale and bias turn cosines into finite logits,
    the best first.
    """
    if not (0 < scale <= _MAX_LOGIT and (bias is None or abs(bias) <= _MAX_LOGIT)):
        raise NotFiniteError(
            "{}: the logit scale ({:.3g}) or logit bias ({:.3g}) is out of range",
            _HINT,
            model,
            scale,
            bias or 0,
        )


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen."""

    precision: str
    reason: str

    def line(self, subject: str) -> Message:
        return Message("{}: computes in {} ({})", subject, self.precision, self.reason)


AS_ASKED = Choice("fp32", Message("as requested"))


def choose_precision(
    requested: str, device: str, trained: nn.Module | None = None, fp16: bool = True
) -> Choice:
    """The precision that `requested` ("auto", "fp32", "bf16", "fp16") means on `device`, to infer
    or for `trained`.

    `auto` depends on the processor, on the convolutions of `trained` and on whether `fp16` is
    enough for the model. It measures nothing: other work on the machine would change the choice,
    and with it the weights.
    """
    import torch

    kind = torch.device(device).type
    if requested == "bf16" and kind == "cpu" and not torch_has_bf16():
        return Choice(
            requested, Message("as requested, but slower than fp32: this CPU has no native bf16")
        )
    if requested != "auto":
        return Choice(requested, Message("as requested"))
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", Message("native on this GPU"))
        return Choice("fp16" if fp16 else "fp32", Message("no native bf16 on this GPU"))
    if kind != "cpu":
        return Choice("fp32", Message("bf16 is not used on {}", kind))
    if not torch_has_bf16():
        return Choice("fp32", Message("no native bf16 on this CPU"))
    # Convolutions in groups take 1.2 to 1.8 times as long in bf16 as in fp32:
    # docs/results/engineering.md.
    if trained is not None and any(getattr(layer, "groups", 1) > 1 for layer in trained.modules()):
        return Choice("fp32", Message("depthwise convolutions train slower in bf16 on a CPU"))
    return Choice("bf16", Message("native on this CPU"))


def torch_has_bf16() -> bool:
    """Whether torch has native bf16 kernels for this CPU: x86-64 with AVX512-BF16 or AMX. ARM's
    were not measured.
    """
    import torch

    return has_native_bf16() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def newton_schulz_precision(device: str) -> Literal["fp32", "bf16"]:
    """The faster precision for Muon's matrix products: native bf16 2 to 4 times
    (docs/results/engineering.md).
    """
    return "bf16" if choose_precision("auto", device).precision == "bf16" else "fp32"
