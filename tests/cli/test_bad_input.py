"""Pictures, labels, places and names that no command can use are refused before any work, in two lines."""

import os
import stat
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import dcclip
from tests.images import png_header

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
SAMPLE = ROOT / "recipes" / "collect-sample.yaml"
UNSEEN = ROOT / "recipes" / "quickstart" / "unseen.parquet"
COMMANDS: dict[str, list[object]] = {
    "run": ["run", RECIPE, "--out"],
    "collect": ["collect", SAMPLE, "--out"],
    "distill": ["distill", RECIPE, "--out"],
    "distill --check": ["distill", RECIPE, "--check", "--out"],
    "eval": ["eval", "--model", "starter", "--dataset", UNSEEN, "--out"],
    "export": ["export", "--model", "starter", "--out"],
    "demo": ["demo", "--no-open", "--out"],
    "search": ["search", "一只狗", ".", "--model", "starter", "--html"],
    "embed": ["embed", "--text", "狗", "--model", "starter", "--out"],
}
PLACES = {
    "below a file": ("文件.npy/x/图.npy", "Not a directory"),
    "a pipe": ("pipe.npy", "pipe.npy is a pipe, not a fi"),
    # A device is refused in the same way; a test that failed would replace one.
    "a socket": ("socket.npy", "socket.npy is a socket, not a fi"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("文件.npy").write_text("")
    os.mkfifo("pipe.npy")
    os.mknod("socket.npy", stat.S_IFSOCK | 0o600)
    Image.new("RGB", (8, 8), "red").save("good.png")
    monkeypatch.setenv("DCCLIP_MODEL", "starter")


@pytest.mark.parametrize(
    ("command", "place"), [(name, "below a file") for name in COMMANDS] + [("embed", name) for name in PLACES]
)
def test_a_place_that_cannot_be_written_is_refused_at_once(command: str, place: str) -> None:
    out, complaint = PLACES[place]
    before = sorted(Path().iterdir())
    rows = dcclip(*COMMANDS[command], out, expect=1).stderr.splitlines()
    assert rows[0].startswith("error: ") and complaint in rows[0]
    assert len(rows) == 2 and rows[1].startswith("hint:  ")
    assert sorted(Path().iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="a working directory cannot be deleted there")
def test_a_working_directory_that_is_gone_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    commands: list[list[object]] = [*COMMANDS.values(), ["new", "图.yaml", "--data"]]
    for command in commands:
        rows = dcclip(*command, "图.npy", expect=1).output.splitlines()
        assert "directory no longer exists" in rows[-2] and rows[-1] == "hint:  change to an existing directory: cd DIR"


def test_half_a_launch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = dcclip("distill", RECIPE, "-q", expect=1).stderr
    assert text.startswith("error: WORLD_SIZE is ") and "\nhint:  start several" in text
    assert "WORLD_SIZE is 2, but these variables are not set: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in text


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
    rows = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, (_, complaint) in zip(rows, PICTURES.values(), strict=True):
        assert complaint in line and line.isprintable()
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.png", "--labels", "猫,dog"], "none.png does not exist"),
        (["good.png"], "no labels given"),
        (["good.png", "--labels", ""], "--labels is empty"),
        (["good.png", "--labels-file", "none.txt"], "none.txt does not exist"),
        (["good.png", "--labels-file", "gbk.txt"], "gbk.txt is encoded in GB18030 instead of UTF-8"),
        (["good.png", "--labels-file", "长.txt"], "长.txt: line 2 has 100,001 characters; the limit is 100,000"),
        pytest.param(
            ["good.png", "--labels-file", "/proc/self/mem"],
            "/proc/self/mem: Input/output error",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="a file whose disk fails, on Linux alone"),
        ),
    ],
)
def test_what_is_missing_or_of_no_use_is_two_lines(arguments: list[str], complaint: str) -> None:
    Path("gbk.txt").write_bytes("猫\n狗".encode("gbk"))
    Path("长.txt").write_text("cat\n" + "猫" * 100_001, "utf-8")
    rows = [line for line in dcclip("predict", *arguments, expect=1).stderr.splitlines() if line[:6] != "model:"]
    assert len(rows) == 2 and rows[0].startswith("error: ") and complaint in rows[0] and rows[1].startswith("hint:  ")


@pytest.mark.skipif(sys.platform != "linux", reason="a file whose disk fails, on Linux alone")
def test_a_recipe_on_a_disk_that_fails_is_two_lines() -> None:
    Path("配方.yaml").symlink_to("/proc/self/mem")
    rows = dcclip("run", "配方.yaml", "--check", expect=1).stderr.splitlines()
    assert rows[-2] == "error: 配方.yaml: Input/output error" and rows[-1].startswith("hint:  check the path")
