"""dcclip: make a light Chinese-English CLIP out of a big one, from data to device.

In Python, `load` is the door to using a model; all else is the command line's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcclip_cli.predict.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(reference: str | os.PathLike[str] | None = None, *, device: str = "auto", threads: int | None = None) -> Model:
    """The model meant by a reference, loaded: `load("runs/quickstart").predict("img.jpg", ["猫", "dog"])`.

    What `--model` takes: a model directory, an export bundle, a run, `hf:ORG/NAME`, `open_clip:ARCH/TAG`,
    `hf-hub:ORG/NAME`; without one $DCCLIP_MODEL, else the newest finished run, else the starter model.
    `device` is auto, cpu, cuda or mps. `threads` of the processor for one tower: by default one for a bundle, torch's
    own choice else. Raises dcclip_cli.errors.DcclipError, whose `what` and `hint` say what is wrong and what to do.
    """
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.encoder import load_encoder
    from dcclip_cli.predict.model import Model

    found = resolve(os.fspath(reference) if reference is not None else None)
    return Model(load_encoder(found, device, threads=threads))
