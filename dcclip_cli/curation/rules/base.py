"""What is a rule? Two questions about a pair, each answered with None (fit) or with the reason for leaving out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcclip_cli.curation.candidate import Drop, Picture
from dcclip_cli.options import Options

if TYPE_CHECKING:
    from dcclip_cli.data.pair import Language, Pair


class Rule(Options):
    """One reason or a few of one sort; it asks one of the two questions, sometimes both.

    A rule sees one pair or one caption and nothing else, so it can be asked anywhere and in any order.
    """

    def reason(self, pair: Pair, picture: Picture) -> Drop | None:
        """Why the pair should go, judged by its picture."""
        return None

    def caption_reason(self, caption: str, language: Language) -> Drop | None:
        """Why this one caption, tidied before, should go; the pair stays as long as it has others."""
        return None
