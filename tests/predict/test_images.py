"""Names, folders, globs and lists become picture files."""

from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.images import find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.txt", "下/猫.JPG", "下/更下/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_means_the_pictures_in_it_and_below(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_images([str(folder)])]
    assert found == ["a.png", "下/更下/c.webp", "下/猫.JPG"]


def test_a_glob_means_the_files_that_match(folder: Path) -> None:
    assert [path.name for path in find_images([f"{folder}/**/猫*"])] == ["猫.JPG"]


def test_a_dash_means_the_listed_lines_each_again_a_name_folder_or_glob(folder: Path) -> None:
    listed = [f"{folder}/a.png\n", "\n", f"{folder}/下\r\n", "-\n"]
    assert [path.name for path in find_images(["-"], listed)] == ["a.png", "c.webp", "猫.JPG"]


def test_a_name_is_taken_as_it_is_even_if_it_looks_like_a_glob(folder: Path) -> None:
    (folder / "[1].png").touch()
    assert [path.name for path in find_images([f"{folder}/[1].png", f"{folder}/no.png"])] == ["[1].png", "no.png"]


def test_a_folder_without_pictures_and_a_glob_without_files_are_refused(folder: Path) -> None:
    (folder / "空").mkdir()
    with pytest.raises(DcclipError, match="空 holds no pictures"):
        list(find_images([str(folder / "空")]))
    with pytest.raises(DcclipError, match=r"no file matches .*狗"):
        list(find_images([f"{folder}/狗*.png"]))
