"""Docs, recipes, comments, docstrings and messages are free of the phrasings listed in wording.txt."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("wording.txt")
FILES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.yaml", "recipes/**/*.md", "dcclip_cli/**/*.py")
    for file in ROOT.glob(pattern)
    if not file.name.endswith(".zh.md") and file.name != "CHANGELOG.md"
)


def phrasings() -> list[tuple[re.Pattern[str], str]]:
    """Each listed expression, and what is better."""
    lines = [line for line in LIST.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.rsplit(" -> ", 1) for line in lines]
    return [(re.compile(expression.replace(" ", r"[\s#]+"), re.I), better) for expression, better in pairs]


def prose(file: Path) -> str:
    """The text of a file that people read, with its line numbers: a page without code, of code comments and strings."""
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        code = re.compile(r"^```.*?^```$|`[^`\n]+`|<!--.*?-->", re.M | re.S)
        return code.sub(lambda match: "\n" * match[0].count("\n"), text)
    if file.suffix != ".py":
        return text
    lines = text.splitlines()
    shown = [""] * len(lines)
    with file.open("rb") as opened:
        for token in tokenize.tokenize(opened.readline):
            if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                for offset, part in enumerate(token.string.splitlines()):
                    shown[token.start[0] - 1 + offset] += part
    return "\n".join(shown)


def found(text: str) -> list[str]:
    """Where listed phrasings are in a text."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}, better: {better}"
        for expression, better in phrasings()
        for match in expression.finditer(text)
    ]


@pytest.mark.parametrize("part", ["docs", "recipes", "dcclip_cli", "."])
def test_listed_phrasings_are_not_used(part: str) -> None:
    files = [file for file in FILES if (file.relative_to(ROOT).parts[0] if file.parent != ROOT else ".") == part]
    assert files
    assert [f"{file.relative_to(ROOT)}:{one}" for file in files for one in found(prose(file))] == []


def test_phrasings_are_found_across_lines_in_comments_and_messages_and_not_in_code(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text('mend = 1  # it lies\n# in the folder\nraise ValueError("mend it")\n', "utf-8")
    assert found(prose(file)) == ["3: 'mend', better: fix", "1: 'lies\\n# in', better: is in"]
    page = tmp_path / "page.md"
    page.write_text("`mend`\n\n```sh\nmend\n```\n\nThe figures\n", "utf-8")
    assert found(prose(page)) == ["7: 'figures', better: numbers, metrics"]
