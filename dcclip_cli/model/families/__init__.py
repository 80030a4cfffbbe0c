"""Families of dual encoders with a config.json: FAMILIES, one class each, with what is specific to
it.
"""

from pathlib import Path
from typing import Any

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.model.families.base import Family
from dcclip_cli.model.families.clip import (
    AltClipTowers,
    ChineseClipTowers,
    ClipTowers,
    MetaClip2Towers,
    SiglipTowers,
)
from dcclip_cli.model.families.fgclip2 import FgClip2Towers
from dcclip_cli.model.families.naflex import EmbeddingGemma2Towers, Siglip2Towers
from dcclip_cli.model.hub_models import check_directory, checked_json

FAMILIES: tuple[type[Family], ...] = (
    AltClipTowers,
    ChineseClipTowers,
    ClipTowers,
    EmbeddingGemma2Towers,
    FgClip2Towers,
    SiglipTowers,
    Siglip2Towers,
    MetaClip2Towers,
)


def checked_family(model: str, file: Path, trust_remote_code: bool) -> type[Family]:
    """The family of a config.json. Raises DcclipError for unsupported ones, and code that is not
    allowed.
    """
    if Path(model).is_dir():
        check_directory(Path(model))
    config, family = read_config(file, f"teacher {model}")
    family.check_files(model, config, file, trust_remote_code)
    return family


def read_config(file: Path, name: str) -> tuple[dict[str, Any], type[Family]]:
    """The config.json of a dual encoder, and its family. Raises DcclipError for others, and what
    runs code.
    """
    config = checked_json(file)
    family = next((family for family in FAMILIES if family.recognizes(config)), None)
    if family is None:
        message = Message(
            "{} is a model of type {} instead of an image-text dual encoder ({}: model_type)",
            *(name, config.get("model_type"), file.name),
        )
        *labels, last = (family.label for family in FAMILIES)
        raise DcclipError(message, Message("use {} or {}", ", ".join(labels), last))
    family.check_config(config, file)
    return config, family
