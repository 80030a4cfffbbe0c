"""CLIP and the families that differ from it in a line or two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.families.base import TransformersTowers
from dcclip_cli.model.hub_models import ELSEWHERE, check_timm_name
from dcclip_cli.model.towers import TextLayout


class ClipTowers(TransformersTowers):
    """CLIP, and any two towers as one model, as dcclip exports students."""

    label = "CLIP"
    model_types = ("clip", "vision-text-dual-encoder")

    @property
    def text_layout(self) -> TextLayout:
        if self.model.config.text_config.model_type.startswith("clip"):
            return TextLayout()
        return TextLayout("bidirectional", "first")

    @property
    def logit_bias(self) -> float | None:
        """That of a student is in its configuration, since transformers' class has no parameter
        for it.
        """
        bias = getattr(self.model.config, "logit_bias", None)
        return None if bias is None else float(bias)

    @classmethod
    def check_config(cls, config: Mapping[str, Any], file: Path) -> None:
        super().check_config(config, file)
        if not isinstance(config.get("logit_bias"), float | None):
            raise DcclipError(
                "{}: logit_bias is not a number", "copy or create the directory again", file
            )
        image = config.get("vision_config")
        if config["model_type"] == "vision-text-dual-encoder" and isinstance(image, dict):
            if image.get("backbone") or image.get("use_pretrained_backbone"):
                raise DcclipError(
                    "{}: vision_config.backbone refers to a network outside the directory",
                    ELSEWHERE,
                    file,
                )
            if isinstance(image.get("architecture"), str):
                check_timm_name(
                    image["architecture"], f"{file}: vision_config.architecture", ELSEWHERE
                )


class AltClipTowers(TransformersTowers):
    label = "AltCLIP"
    model_types = ("altclip",)
    attention = "bidirectional"
    pooling = "first"

    @property
    def _table(self) -> Any:
        # The text model is one level deeper, and its own method for this returns the wrapper's
        # table.
        return self.model.text_model.roberta.get_input_embeddings()


class ChineseClipTowers(TransformersTowers):
    """ChineseCLIP and QA-CLIP."""

    label = "ChineseCLIP"
    model_types = ("chinese_clip",)
    attention = "bidirectional"
    pooling = "first"
    text_length = 52
    identity = ("52 tokens",)


class MetaClip2Towers(TransformersTowers):
    label = "MetaCLIP2"
    model_types = ("metaclip_2",)
    attention = "causal"


class SiglipTowers(TransformersTowers):
    """SigLIP, and SigLIP2's checkpoints for images of one size."""

    label = "SigLIP"
    model_types = ("siglip",)
    attention = "bidirectional"
    pooling = "last"
    fixed_length = True
