"""A teacher's image tower as a student's, unchanged, for a text tower that learns the space of a model in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.hub_models import open_clip_config
from dcclip_cli.model.towers import OpenClipTowers
from dcclip_cli.model.weights import CONFIG, require_file

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

_SHARED = ("embed_dim", "vision_cfg", "init_logit_bias", "nonscalar_logit_scale")  # what both models have alike


def check_image_source(teacher: Towers) -> OpenClipTowers:
    """The teacher, if its image tower can be a student's. Raises DcclipError for models of other libraries."""
    if isinstance(teacher, OpenClipTowers):
        return teacher
    what = Message("student.image: teacher needs an open_clip model, and {} is one of another library", teacher.name)
    raise DcclipError(what, "name open_clip's version of the model, as in {{kind: open_clip, model: hf-hub:ORG/NAME}}")


def teacher_image_config(model: str, teacher: OpenClipTowers) -> dict[str, Any]:
    """A student's `model_cfg` without its text tower, as the teacher `model` has it: a directory, hub or own name."""
    found = _model_config(model)
    config = {key: found[key] for key in _SHARED if key in found}
    config["vision_cfg"] = {**config["vision_cfg"]}
    if "timm_model_pretrained" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    # open_clip sets this by the weights' tag as well, so the configuration is not enough.
    if any(type(module).__name__ == "QuickGELU" for module in teacher.model.visual.modules()):
        config["quick_gelu"] = True
    return config


def _model_config(model: str) -> dict[str, Any]:
    if Path(model).is_dir():
        config: dict[str, Any] = open_clip_config(Path(model))["model_cfg"]
    elif model.startswith("hf-hub:"):
        file = require_file(model.removeprefix("hf-hub:"), CONFIG)
        config = open_clip_config(file.parent, on_hub=True)["model_cfg"]
    else:
        import open_clip

        config = open_clip.get_model_config(model.rpartition("/")[0])
    return config


def copy_image_tower(model: Any, teacher: OpenClipTowers) -> None:
    """Give open_clip's `model` the teacher's image tower and its temperature.

    Raises DcclipError unless the copy computes the same.
    """
    import torch

    source: Any = teacher.model
    with torch.no_grad():
        model.visual.load_state_dict(source.visual.state_dict())
        model.logit_scale.copy_(source.logit_scale)
        if model.logit_bias is not None:
            model.logit_bias.copy_(source.logit_bias)
        side = model.visual.image_size
        height, width = side if isinstance(side, tuple | list) else (side, side)
        pixels = torch.linspace(-1, 1, 3 * height * width, device=source.logit_scale.device).view(1, 3, height, width)
        training = model.training
        own = model.eval().visual(pixels.cpu())
        model.train(training)
        if not torch.allclose(own, source.visual(pixels).cpu(), rtol=1e-3, atol=1e-4):
            what = Message(
                "{}: its image tower does not compute the same when it is built from its configuration", teacher.name
            )
            raise DcclipError(what, "use a model whose open_clip_config.json describes its image tower in full")
