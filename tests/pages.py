"""The blocks of code of the documentation's pages; imports nothing that only the documentation needs."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(
    r"(?P<marked><!-- not run here: [^\n]+ -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<body>.*?)^```$',
    re.M | re.S,
)


def blocks(page: Path, language: str, marked: bool | None = None) -> list[str]:
    """The code blocks of a page in one language; if `marked` is given, those with or without the mark."""
    matches = BLOCK.finditer(page.read_text("utf-8"))
    return [
        block["body"]
        for block in matches
        if block["language"] == language and marked in (None, block["marked"] is not None)
    ]
