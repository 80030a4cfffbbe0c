"""Is a caption written mostly in the script of its language?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Drop
from dcclip_cli.curation.rules.base import Rule
from dcclip_cli.curation.rules.scripts import HAN, LATIN_WORD, plain

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language


class ScriptRule(Rule):
    """Weighs Han characters against Latin words, one to one; code-mixing (苹果 iPhone 手机壳) is allowed or not."""

    kind: Literal["script"] = "script"
    mixed: bool = Field(True, description="Whether Han and Latin letters may meet in one caption")
    min_share: float = Field(
        0.25, ge=0, le=1, description="Of Han characters plus Latin words, the caption's own script has at least this"
    )

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """`caption-mixed` where mixing isn't allowed, `caption-script` where the other script has too much of it."""
        text = plain(caption)
        han, latin = len(HAN.findall(text)), len(LATIN_WORD.findall(text))
        if not han or not latin:
            return None
        said = f"{han} Han characters, {latin} Latin words"
        if not self.mixed:
            return Drop("caption-mixed", said)
        own = han if language == "zh" else latin
        return Drop("caption-script", said) if own < self.min_share * (han + latin) else None
