"""Limits of what a client may send in one request, over HTTP or MCP."""

from collections.abc import Sequence

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.text import check_unicode

MAX_TEXTS = 2048  # of a request, as with OpenAI
MAX_CHARACTERS = (
    8192  # of a text; tokens beyond the model's context length do not count, but are computed
)
MAX_ALL_CHARACTERS = 2 << 20  # of a request
MAX_LABELS = 1000  # of a request


def check_texts(texts: Sequence[str]) -> None:
    """Raise DcclipError for no text, too many or too long ones, an empty one, or one that is not
    Unicode.
    """
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise DcclipError(
            "a request cannot contain {:,} texts", "send 1 to {:,}", len(texts), MAX_TEXTS
        )
    if (longest := max(map(len, texts))) > MAX_CHARACTERS:
        raise DcclipError(
            "text too long ({:,} characters)", "send at most {:,}", longest, MAX_CHARACTERS
        )
    if (length := sum(map(len, texts))) > MAX_ALL_CHARACTERS:
        raise DcclipError(
            "the texts are too long in total ({:,} characters)",
            "send at most {:,}",
            length,
            MAX_ALL_CHARACTERS,
        )
    if not all(text.strip() for text in texts):
        raise DcclipError("empty text", "remove it")
    check_unicode(texts)
