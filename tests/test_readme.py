"""The file tree in both READMEs is that of the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")
_LINE = re.compile(r"(?P<indent>[│ ]*)[├└]── (?P<name>\S+)\s+# \S")


def listed(readme: str) -> list[str]:
    """The paths in a README's tree, in its order. A line without a name or a remark is a mistake."""
    block = (ROOT / readme).read_text("utf-8").partition("```text\n.\n")[2].partition("```")[0]
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines():
        match = _LINE.match(line)
        assert match, f"{readme}: {line}"
        depth = len(match["indent"]) // 4
        parents = [*parents[:depth], match["name"]]
        paths.append("/".join(parents))
    return paths


@pytest.mark.parametrize("readme", READMES)
def test_every_path_in_the_tree_exists(readme: str) -> None:
    paths = listed(readme)
    assert "dcclip_cli/eval/prompts" in paths and "recipes/quickstart.yaml" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("readme", READMES)
def test_every_folder_of_the_package_and_every_module_of_a_part_is_in_the_tree(readme: str) -> None:
    files = [file.relative_to(ROOT) for file in (ROOT / "dcclip_cli").rglob("*.py")]
    folders = {str(file.parent) for file in files}
    modules = {str(file) for file in files if not file.name.startswith("__") and len(file.parts) <= 3}
    assert sorted((folders | modules) - set(listed(readme))) == []


def test_both_languages_have_the_same_tree() -> None:
    assert listed("README.md") == listed("README.zh.md")
