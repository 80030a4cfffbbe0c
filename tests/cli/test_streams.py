"""The program's standard streams: closed, full, cut off, in other encodings, and without control characters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dcclip_cli.cli.predict import csv_cell
from dcclip_cli.core.text import printable
from tests.cli.conftest import dcclip

ODD = b"n\xff.png"  # no UTF-8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("图 pictures")
    for name in (b"a.png", b"=1+1.png", b"x\ny\x1b[31m.png", ODD):
        with open(os.fsencode(folder) + b"/" + name, "wb") as stream:
            Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line with `dcclip` in it, run by a shell in the folder."""
    program = f"{sys.executable} -m dcclip_cli"
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(
        ["bash", "-c", command.replace("dcclip", program)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_names_are_printed_without_control_characters_and_json_keeps_them(folder: Path) -> None:
    lines = dcclip("predict", ".", "--labels", "猫,dog", "-q").stdout.splitlines()
    assert [line.split("   ")[0] for line in lines] == ["=1+1.png", "a.png", "n\\udcff.png", "x\\ny\\x1b[31m.png"]
    done = dcclip("predict", ".", "--labels", "猫,dog", "-q", "--json")
    names = [os.fsencode(prediction["image"]) for prediction in json.loads(done.stdout)]
    assert names == [b"=1+1.png", b"a.png", ODD, b"x\ny\x1b[31m.png"] and done.stdout.replace("\n", "").isprintable()
    assert printable("　猫👩‍🔬\u202e\x9b") == "　猫👩‍🔬\\u202e\\x9b"


def test_a_spreadsheet_takes_no_cell_for_a_formula(folder: Path) -> None:
    lines = dcclip("predict", "=1+1.png", "--labels", "=x,猫", "-q", "--csv").stdout.splitlines()
    assert lines[0] == "image,label,probability"
    dcclip("predict", "=1+1.png", "--labels", "=x,猫", "-q", "--csv", "--out", "新/表.csv")
    table = folder / "新/表.csv"
    content = table.read_bytes()
    assert content.decode() == "\ufeff" + "\n".join([*lines, ""])  # as Excel needs it
    full_disk = shell("ulimit -f 0; dcclip predict a.png --labels 猫,dog -q --csv --out 新/表.csv", folder)
    assert (full_disk.returncode, table.read_bytes(), [*table.parent.iterdir()]) == (1, content, [table])
    assert "--out needs --csv" in dcclip("predict", ".", "--labels", "猫", "--out", "表.csv", expect=2).output
    assert {line.rpartition(",")[0] for line in lines[1:]} == {"'=1+1.png,'=x", "'=1+1.png,猫"}
    assert [csv_cell(text) for text in ("-1", "@a", "猫=1", "")] == ["'-1", "'@a", "猫=1", ""]


def test_a_name_that_is_no_text_goes_through_every_command(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "数据 data"
    for name in ("猫", "狗"):
        (data / name).mkdir(parents=True)
        with open(os.fsencode(data / name) + b"/" + ODD, "wb") as stream:
            Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    assert "n\\udcff.png" in dcclip("search", "猫", ".", "-q", "--html", "新 new/页 page.html").stdout
    assert "n%FF.png" in (folder / "新 new/页 page.html").read_text("utf-8")
    dcclip("embed", ".", "--out", "图.npy", "-q")
    assert "n\\udcff.png" in (folder / "图.txt").read_text("utf-8").splitlines()
    dcclip("embed", ".", "--out", "图.parquet", "-q")
    dcclip("eval", "--dataset", data, "--out", tmp_path / "result", "-q")


def test_other_encodings_print_what_they_can(folder: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    text = shell("dcclip predict a.png --labels 猫,dog -q", folder, **locale)
    assert text.returncode == 0 and "\\u732b" in text.stdout and not text.stderr
    predictions = json.loads(shell("dcclip predict a.png --labels 猫,dog -q --json", folder, **locale).stdout)
    assert {label["label"] for label in predictions[0]["labels"]} == {"猫", "dog"}
    assert shell("dcclip -h", folder, **locale).returncode == 0


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("dcclip predict a.png --labels 猫,dog -q >&-", 0, ""),
        ("dcclip predict none.png --labels 猫,dog -q 2>&-", 1, ""),
        ("dcclip predict - --labels 猫,dog -q <&-", 1, "error: stdin contains no image paths"),
        ("dcclip predict '' --labels 猫,dog", 1, "error: an argument is empty"),
        ("dcclip predict a.png --labels $'\\xff' -q", 1, "error: --labels '\\udcff' is not UTF-8 text"),
        ("dcclip predict a.png --labels 猫,dog -q >/dev/full", 1, "error: cannot write to stdout: No space left"),
        ("set -o pipefail; dcclip models | true", 141, ""),
        ("printf 'n\\xff.png\\na.png\\n' | dcclip predict - --labels 猫,dog -q", 0, ""),
    ],
)
def test_streams_that_are_closed_full_or_empty_end_in_order(command: str, code: int, said: str, folder: Path) -> None:
    done = shell(command, folder)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
    if code == 1 and said:
        assert "\nhint:  " in done.stderr


def test_pipes_and_devices_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "管道 pipe"
    os.mkfifo(pipe)
    for command in (
        ["predict", pipe, "--labels", "a"],
        ["predict", "a.png", "--labels-file", pipe],
        ["embed", "a.png", "--out", "a.npy", "--texts-file", pipe],
        ["predict", "a.png", "--labels-file", "/dev/zero"],
    ):
        stderr = dcclip(*command, "-q", expect=1).stderr
        assert "is a pipe, not a file" in stderr or "is a device" in stderr, command
    assert shell("dcclip predict a.png --labels-file <(echo 猫; echo dog) -q", folder).returncode == 0


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_images(folder: Path, tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "recipes" / "quickstart" / "unseen.parquet"
    cache = tmp_path / "缓存 cache"
    done = shell(f"ulimit -f 150; dcclip eval --dataset '{data}' -q", folder, DCCLIP_CACHE=str(cache))
    assert done.returncode == 1 and "is readable" not in done.stderr and not done.stdout
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {cache}/images/") and error.endswith(": File too large")
    assert hint == "hint:  set DCCLIP_CACHE to another folder"
