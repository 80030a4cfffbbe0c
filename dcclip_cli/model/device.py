"""Which device does torch compute on?"""

from __future__ import annotations

from dcclip_cli.errors import DcclipError


def torch_device(asked: str, hint: str = "leave --device out, or say --device cpu") -> str:
    """`cpu`, `cuda` or `mps`: the one that `auto` means here, or the one asked for, as it is: `cuda:1` too.

    Raises DcclipError, with `hint`, where torch lacks the one that is asked for.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, found in there.items() if found)
    if not there.get(asked.partition(":")[0]):
        raise DcclipError(f"torch finds no device {asked}", hint)
    return asked
