"""A folder's index is made once, follows its files, and finds the nearest."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Lines, Silent
from dcclip_cli.data.pair import Pair
from dcclip_cli.inference.encoder import shortened
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.photos.files import query_fits
from dcclip_cli.photos.index import (
    ImageIndex,
    distinct,
    embedded_images,
    open_index,
    say_missing,
    search_all,
)


def blocks() -> list[Path]:
    return list(Path(os.environ["DCCLIP_CACHE"]).rglob("*.safetensors"))


def test_pictures_are_embedded_once_and_again_when_they_change(bundle_folder: Path, pictures: list[Path]) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
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


def test_a_picture_of_several_folders_is_one_hit(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures[0].parent
    (folder / "下").mkdir()
    for picture in pictures[:3]:
        picture.rename(folder / "下" / picture.name)
    monkeypatch.chdir(folder.parent)
    (folder.parent / "链接").symlink_to(folder)
    model = OnnxEncoder(bundle_folder, "cpu")
    alone = open_index(model, folder)
    spellings = [folder, Path(folder.name), Path(folder.name, "下", ".."), Path("链接")]
    assert len(distinct(spellings)) == 1 and distinct([Path(folder, "下"), *spellings])[0] == Path(folder, "下")
    query = np.asarray(alone.embeddings[0])
    for top_k in (2, 5, 99):
        indexes = [open_index(model, path) for path in (Path("链接/下"), folder, folder / "下")]
        hits = search_all(indexes, query, top_k)
        assert [hit.image.resolve() for hit in hits] == [hit.image for hit in alone.search(query, top_k)]


def test_where_the_cache_cannot_be_written_a_search_is_answered_and_says_that_nothing_is_kept(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    pictures[0].rename(folder.parent / "later.png")
    before = open_index(model, folder)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    lines: list[str] = []
    (folder.parent / "later.png").rename(pictures[0])
    monkeypatch.setattr("os.fsync", refuse)
    for _ in range(2):
        index = open_index(model, folder, progress=Lines(lines.append))
        assert (index.embedded, len(index.paths)) == (1, 5)
        np.testing.assert_array_equal(index.embeddings[1:], before.embeddings)
    refusal = f"{blocks()[0].parent} cannot be written ({os.strerror(errno.EROFS)}): new features are not cached"
    assert lines == [refusal] * 2


def test_rows_of_a_disk_that_is_away_remain(bundle_folder: Path, pictures: list[Path]) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    (disk := folder / "硬盘 disk").mkdir()
    for picture in pictures[1:]:
        picture.rename(disk / picture.name)
    open_index(model, folder)
    disk.rename(folder.parent / "away")
    assert len(open_index(model, folder).paths) == 1
    (folder.parent / "away").rename(disk)
    assert open_index(model, folder).embedded == 0


def test_a_broken_picture_is_reported_once_until_it_changes(bundle_folder: Path, pictures: list[Path]) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    short = shortened(model, 8, Silent())
    name = pictures[0].name
    pictures[0].write_bytes(b"broken")
    (folder / "film.psd").touch()
    first = open_index(model, folder)
    assert (list(first.errors), first.unreadable, first.embedded) == ([name], (), 4)
    for index in (open_index(model, folder), open_index(short, folder)):
        assert (index.errors, index.unreadable, index.embedded, len(index.paths)) == ({}, (name,), 0, 4)
    lines: list[str] = []
    for _ in range(2):
        say_missing("search", [index], Lines(lines.append))
    rest = f"search: skipped 1 images that are still unreadable, such as {pictures[0]}"
    assert lines == ["search: skipped 1 .psd", rest, rest]
    assert list(open_index(model, folder, fresh=True).errors) == [name]
    os.utime(pictures[0], ns=(1, 1))
    assert list(open_index(model, folder).errors) == [name]
    pictures[0].write_bytes(pictures[1].read_bytes())
    index = open_index(model, folder)
    assert (index.errors, index.unreadable, index.embedded) == ({}, (), 1)


def test_a_subfolder_and_a_folder_with_exclusions_use_the_index_above(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    below = folder / "下" / "\udcff"
    below.mkdir(parents=True)
    for picture in pictures[:3]:
        picture.rename(below / picture.name)
    above = open_index(model, folder)
    rows = dict(zip(above.paths, above.embeddings, strict=True))
    monkeypatch.chdir(folder)
    short = shortened(model, 8, Silent())
    for path, encoder in ((folder / "下", model), (Path("下"), short)):
        index = open_index(encoder, path)
        assert (index.embedded, len(index.paths)) == (0, 3)
        if encoder is model:
            np.testing.assert_array_equal(index.embeddings, [rows[f"下/{name}"] for name in index.paths])
    assert len(open_index(model, folder, exclude=["下"]).paths) == 2
    assert open_index(model, folder).embedded == 0  # those are stored still
    assert open_index(model, below, fresh=True).embedded == 3


class Stopping:
    """A model that is stopped at its third batch."""

    def __init__(self, model: OnnxEncoder) -> None:
        self._model = model
        self._batches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self._batches += 1
        if self._batches == 3:
            raise KeyboardInterrupt
        return self._model.encode_pixels(pixels)


def test_embeddings_of_a_stopped_call_are_used_and_bit_for_bit_the_same(
    bundle_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    out = tmp_path / "出.npy"
    paths = [tmp_path / f"{pair.key}.png" for pair in pairs]
    for path, pair in zip(paths, pairs, strict=True):
        path.write_bytes(pair.image)
    paths[3].write_bytes(b"broken")  # which is tried again, and changes no batch
    with embedded_images(model, paths, tmp_path / "other.npy", Silent()) as full:
        pass
    with pytest.raises(KeyboardInterrupt), embedded_images(Stopping(model), paths, out, Silent()):
        pass
    with embedded_images(model, paths, out, Silent()) as rest:
        assert (len(rest.vectors), rest.computed, list(rest.errors)) == (39, 8, [3])
        np.testing.assert_array_equal(rest.vectors, full.vectors)
    assert blocks() == []


def test_dimensions_that_a_model_was_not_trained_for_are_warned_of_and_too_many_refused(bundle_folder: Path) -> None:
    lines: list[str] = []
    model = OnnxEncoder(bundle_folder, "cpu")
    short = shortened(model, 8, Lines(lines.append))
    assert lines == [
        f"warning: {model.name} was not trained for 8 dimensions (trained: none; see the training option dims)"
    ]
    vectors = short.encode_texts(["a red circle", "红色的圆"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with pytest.raises(DcclipError, match="the embeddings have 16 dimensions, fewer than 24"):
        shortened(model, 24, Silent()).encode_texts(["猫"])


@pytest.mark.parametrize(
    ("photos", "cats", "fits"), [(400, 1, True), (1500, 2, False), (1500, 3, True), (9000, 8, True)]
)
def test_a_query_fits_if_enough_of_the_photos_fit_each_of_its_words(photos: int, cats: int, fits: bool) -> None:
    rows = {"猫": (1, 0, 0), "cat": (1, 0, 0), "狗": (0, 1, 0), "dog": (0, 1, 0)}  # others are unknown, as 一只 is

    class Words:
        known = KnownWords(dimension=2, most=0.9, fits=0.5)

        def tokenize(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[text in rows, 0] for text in texts], np.int64)

        def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
            sums = [np.sum([rows[word] for word in rows if word in text] or [(0, 0, 1)], axis=0) for text in texts]
            return np.array([total / np.linalg.norm(total) for total in sums], np.float32)

    embeddings = np.array([rows["猫"] if number < cats else rows["狗"] for number in range(photos)], np.float32)
    index = ImageIndex(Path(), tuple(map(str, range(photos))), embeddings, {}, 0)
    texts = ["一只猫", "狗"], ["a cat", "dog"], ["猫狗"]
    assert [query_fits(Words(), [index], text) for text in texts] == [fits] * 3  # type: ignore[arg-type]
    assert not query_fits(Words(), [index], ["一只"])  # type: ignore[arg-type]  # no word that the model knows
