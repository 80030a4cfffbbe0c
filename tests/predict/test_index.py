"""A folder's index is made once, follows its files, and finds the nearest."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.images import FOLDER, Index, open_index
from dcclip_cli.predict.onnx_encoder import OnnxEncoder


def test_the_nearest_come_first() -> None:
    embeddings = np.asarray([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)
    index = Index(Path("相册"), ("a.png", "b.png", "c.png", "d.png"), embeddings, {}, 0)
    hits = index.search(np.asarray([0.8, 0.6], np.float32), 2)
    assert [hit.image for hit in hits] == [Path("相册/b.png"), Path("相册/a.png")]
    assert [hit.score for hit in hits] == pytest.approx([0.96, 0.8])
    assert len(index.search(np.asarray([1, 0], np.float32), 99)) == 4


def test_pictures_are_embedded_once_and_again_when_they_change(bundle_folder: Path, pictures: list[Path]) -> None:
    model, folder = OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent
    first = open_index(model, folder)
    assert (first.embedded, len(first.paths)) == (5, 5)
    again = open_index(model, folder)
    assert again.embedded == 0 and again.paths == first.paths
    np.testing.assert_allclose(again.embeddings, first.embeddings, atol=1e-3)  # kept as fp16
    pictures[0].write_bytes(pictures[1].read_bytes())
    os.utime(pictures[0], ns=(1, 1))
    pictures[2].unlink()
    (folder / "下").mkdir()
    (folder / "下/新.png").write_bytes(pictures[3].read_bytes())
    changed = open_index(model, folder)
    assert changed.embedded == 2
    assert set(changed.paths) == {*(path.name for path in pictures if path.exists()), "下/新.png"}
    row = dict(zip(changed.paths, changed.embeddings, strict=True))
    np.testing.assert_allclose(row[pictures[0].name], row[pictures[1].name], atol=1e-3)
    assert open_index(model, folder, fresh=True).embedded == 5


def damage(file: Path, content: bytes | str) -> None:
    whole = file.read_bytes()
    file.unlink()
    match content:
        case "folder":
            (file / "below").mkdir(parents=True)
        case "pipe":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file)
        case _:
            file.write_bytes(content if isinstance(content, bytes) else whole[:-2] + b"\0\x7e")  # NaN in fp16


@pytest.mark.parametrize("content", [b"", b"dcclip features\n", b"\x93NUMPY", "NaN", "folder", "pipe", "loop"])
def test_an_index_that_is_broken_is_created_again(
    bundle_folder: Path, pictures: list[Path], content: bytes | str
) -> None:
    model, folder = OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent
    whole = open_index(model, folder)
    for file in (folder / FOLDER).rglob("*.block"):
        damage(file, content)
    again = open_index(model, folder)
    assert again.embedded == 5
    np.testing.assert_array_equal(again.embeddings, whole.embeddings)


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.fsync", refuse)
    for _ in range(2):
        assert open_index(OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent).embedded == 5


def test_an_index_of_many_changes_stays_small(bundle_folder: Path, pictures: list[Path]) -> None:
    model, folder = OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent
    for second in range(12):
        os.utime(pictures[0], ns=(second, second))
        open_index(model, folder)
    assert len(list((folder / FOLDER).rglob("*.block"))) < 8


def test_broken_pictures_are_named_and_tried_again(bundle_folder: Path, pictures: list[Path]) -> None:
    model, folder = OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent
    pictures[0].write_bytes(b"broken")
    for expected in (4, 0):
        index = open_index(model, folder)
        assert list(index.errors) == [pictures[0].name] and index.embedded == expected


def test_a_folder_without_pictures_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    with pytest.raises(DcclipError, match="is not a folder"):
        open_index(model, tmp_path / "none")
    with pytest.raises(DcclipError, match="contains no images"):
        open_index(model, tmp_path)
    (tmp_path / "坏.png").write_bytes(b"broken")
    with pytest.raises(DcclipError, match="has no image that can be read"):
        open_index(model, tmp_path)
