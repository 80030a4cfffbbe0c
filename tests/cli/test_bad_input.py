"""What is wrong with a picture, a label list or a bundle is told in one clear line, with a hint, and exit code 1."""

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import dcclip
from tests.images import png_header


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCCLIP_MODEL", str(bundle))
    Image.new("RGB", (8, 8), "red").save("good.png")


PICTURES: dict[str, tuple[bytes, str]] = {
    "bomb.png": (png_header(9_000, 9_000), "has 9000 x 9000 pixels, more than 64,000,000"),
    "坏的图片.png": (b"broken", "坏的图片.png is not a readable image"),
    "two\nlines.png": (b"broken", "two\\nlines.png is not a readable image"),
    "\033[2Jclear.png": (b"broken", "\\x1b[2Jclear.png is not a readable image"),
}


def test_each_broken_image_is_one_line_and_the_next_is_shown() -> None:
    for name, (content, _) in PICTURES.items():
        Path(name).write_bytes(content)
    done = dcclip("predict", *PICTURES, "good.png", "--labels", "猫,dog", expect=1)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, (_, complaint) in zip(said, PICTURES.values(), strict=True):
        assert complaint in line and line.isprintable()
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.png", "--labels", "猫,dog"], "none.png does not exist"),
        (["good.png/inside.png", "--labels", "猫,dog"], "good.png/inside.png"),
        (["good.png"], "no labels given"),
        (["good.png", "--labels", ""], "--labels is empty"),
        (["good.png", "--labels-file", "none.txt"], "none.txt does not exist"),
        (["good.png", "--labels-file", "empty.txt"], "no labels given"),
        (["good.png", "--labels-file", "gbk.txt"], "gbk.txt is in GB18030, not in UTF-8"),
    ],
)
def test_what_is_missing_or_of_no_use_is_two_lines(arguments: list[str], complaint: str) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("gbk.txt").write_bytes("猫\n狗".encode("gbk"))
    said = [line for line in dcclip("predict", *arguments, expect=1).stderr.splitlines() if line[:6] != "model:"]
    assert len(said) == 2 and said[0].startswith("error: ") and complaint in said[0] and said[1].startswith("hint:  ")
