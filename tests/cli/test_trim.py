"""`dcclip trim`: what it prints, and the commands that then take the directory."""

from pathlib import Path

import pytest

from tests.cli.conftest import dcclip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_prints_sizes_and_path_names_texts_that_lose_a_piece_and_the_result_predicts(
    altclip_folder: Path, pictures: list[Path]
) -> None:
    Path("文本.txt").write_text("红色的圆\n\nred circle\n一张 picture of a cat\n", "utf-8")
    done = dcclip("trim", altclip_folder, "--texts", "文本.txt")
    assert done.stdout.splitlines()[-1] == "altclip-zh-en"
    assert "before" in done.stdout and "parameters" in done.stdout
    assert "0.0 % are split into other pieces than before; largest difference of 64 embeddings: " in done.stderr
    assert "of other texts like those in 文本.txt about" in done.stderr
    asked = ["predict", *pictures, "--labels", "红色的圆,red circle", "--csv"]
    assert dcclip(*asked, "--model", "altclip-zh-en").stdout == dcclip(*asked, "--model", altclip_folder).stdout
    again = dcclip("trim", altclip_folder, expect=1)
    assert "error: altclip-zh-en exists and is not empty" in again.stderr and "--out" in again.stderr


@pytest.mark.parametrize(
    ("languages", "what"), [("zh,ja", "dcclip knows no scripts of ja"), ("，", "no language is named")]
)
def test_languages_are_chinese_and_english(languages: str, what: str, altclip_folder: Path) -> None:
    refused = dcclip("trim", altclip_folder, "--languages", languages, expect=1)
    assert refused.stderr.splitlines()[-2:] == [f"error: {what}", "hint:  its languages are zh and en"]
