# mypy: ignore-errors
"""Configuration of FG-CLIP2, written for dcclip's tests after the interface of qihoo360/fg-clip2-base.

That repository cannot be reached here. Its own file defines the same names and keys without SigLIP2's classes.
"""

from transformers import PreTrainedConfig, Siglip2TextConfig, Siglip2VisionConfig


class Fgclip2TextConfig(Siglip2TextConfig):
    model_type = "fgclip2_text_model"
    keep_len: int = 20
    longtext_len: int = 196


class Fgclip2VisionConfig(Siglip2VisionConfig):
    model_type = "fgclip2_vision_model"


class Fgclip2Config(PreTrainedConfig):
    model_type = "fgclip2"
    sub_configs = {"text_config": Fgclip2TextConfig, "vision_config": Fgclip2VisionConfig}

    def __init__(self, text_config=None, vision_config=None, **more):
        super().__init__(**more)
        self.text_config = Fgclip2TextConfig(**text_config or {})
        self.vision_config = Fgclip2VisionConfig(**vision_config or {})
