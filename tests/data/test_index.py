"""Indexes: written once, found by size and time, the same from collect and from the tar, never trusted blindly."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import index as indexes
from dcclip_cli.data.dataset import open_pairs, shards_at, write_parquet
from dcclip_cli.data.index import SUFFIX, find_index, find_indexes, own_place, verify_files
from dcclip_cli.data.pair import LANGUAGES, Pair, caption_id
from dcclip_cli.data.preview import may_have_captions, preview_pairs
from dcclip_cli.data.remote import local_file
from dcclip_cli.data.shards import Columns
from dcclip_cli.data.unpaired import open_images
from tests.damage import damage
from tests.data.test_dataset import CAT, DOG, IMAGE, add, write_tar

JPEG = b"\xff\xd8\xff"
NONE = Columns()


def many(count: int, start: int = 0) -> list[Pair]:
    numbers = range(start, start + count)
    return [Pair(f"{n:04}", JPEG + bytes([n % 256]) * (n % 700), (f"第{n}只猫", "猫"), (f"cat {n}",)) for n in numbers]


def index(*paths: Path, fresh: bool = False) -> None:
    find_indexes([file for path in paths for file in shards_at(path)], NONE, fresh=fresh, place=own_place)


def test_an_index_is_written_next_to_the_data_and_then_no_data_is_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", CAT, DOG)
    index(tmp_path)
    status = (tmp_path / "a.tar").stat()
    (tmp_path / "a.tar").write_bytes(bytes(status.st_size))
    os.utime(tmp_path / "a.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    pairs = open_pairs(tmp_path)
    assert pairs.keys() == ["cat", "dog"]
    assert pairs.captions("zh") == [("猫", "小猫"), ()] and pairs.captions("en") == [("cat",), ("dog", "hound")]
    with pytest.raises(DcclipError, match=r"a\.tar: the image of pair dog changed after it was indexed") as raised:
        pairs[1]
    assert "dcclip index --fresh" in raised.value.hint


@pytest.mark.parametrize("change", ["newer", "another size"])
def test_an_index_that_does_not_fit_its_file_is_written_again(tmp_path: Path, change: str) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, CAT)
    index(tar)
    later = Path(f"{tar}{SUFFIX}").stat().st_mtime_ns + 10**9
    if change == "newer":
        write_tar(tar, DOG)
        os.utime(tar, ns=(later, later))
    else:
        write_tar(tar, DOG, *many(20))
        os.utime(tar, ns=(later - 2 * 10**9,) * 2)
    assert find_index(local_file(tar), NONE) is None
    assert open_pairs(tar).keys()[0] == "dog"


@pytest.fixture(params=["next to the data", "in the cache folder, at the first start"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index of a tar of 50 pairs, in record batches of 20 rows."""
    monkeypatch.setattr(indexes, "_BATCH_ROWS", 20)
    tar = tmp_path / "数据 a.tar"
    write_tar(tar, *many(50))
    if request.param == "next to the data":
        index(tar)
        return Path(f"{tar}{SUFFIX}")
    open_pairs(tar)
    assert os.listdir(tmp_path) == [tar.name]
    return indexes.cached(local_file(tar), NONE)


@pytest.mark.parametrize("kind", ["cut", "emptied", "another format", "a pipe"])
def test_an_index_that_cannot_be_read_is_an_error_that_says_how_to_make_it_again(
    where: Path, kind: str, tmp_path: Path
) -> None:
    tar = tmp_path / "数据 a.tar"
    if kind == "another format":
        where.write_bytes(where.read_bytes().replace(b'"format": 1', b'"format": 9'))
    elif kind == "a pipe":
        where.unlink()
        os.mkfifo(where)
    else:
        damage(where, kind)
    with pytest.raises(
        DcclipError, match=r"index\.arrow is damaged, or was written by another version of dcclip"
    ) as raised:
        open_pairs(tar)
    assert raised.value.hint == f"index the data again: dcclip index --fresh {tar}"
    index(tar, fresh=True)
    pairs = open_pairs(tar)
    assert list(pairs) == many(50)
    ids = pairs.first_caption_ids(np.arange(50))
    assert ids.tolist() == [[caption_id(captions[0]) for captions in (pair.zh, pair.en)] for pair in pairs]


def test_a_changed_shard_is_found_by_reading_all_data_and_by_nothing_less(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", CAT, DOG)
    index(tmp_path)
    assert len(verify_files(shards_at(tmp_path), NONE)) == 2
    tar = tmp_path / "b.tar"
    content = tar.read_bytes()
    status = tar.stat()
    tar.write_bytes(content.replace("小猫".encode(), "大猫".encode()))
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_pairs(tmp_path).captions("zh")[2] == ("猫", "小猫")
    with pytest.raises(DcclipError, match=r"b\.tar differs from its index") as raised:
        verify_files(shards_at(tmp_path), NONE)
    assert "a.tar" not in raised.value.what
    index(tmp_path, fresh=True)
    assert open_pairs(tmp_path).captions("zh")[2] == ("猫", "大猫")


def test_shards_are_indexed_by_several_processes_and_what_is_done_stays_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "_FEW_BYTES", 0)
    monkeypatch.setattr(indexes, "cores", lambda: 2)
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", *many(20, number * 20))
    content = (tmp_path / "3.tar").read_bytes()
    (tmp_path / "3.tar").write_bytes(content[:5000])
    with pytest.raises(DcclipError, match=r"3\.tar is not a readable tar file") as raised:
        index(tmp_path)
    assert raised.value.hint == "download or collect it again"
    done = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(f"*{SUFFIX}")}
    assert done.keys() <= {f"{number}.tar{SUFFIX}" for number in range(3)}
    assert done  # the broken one is the last in the queue of two processes
    (tmp_path / "3.tar").write_bytes(content)
    index(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(f"*{SUFFIX}")}.items() > done.items()
    assert list(open_pairs(tmp_path)) == many(80)


def members(kind: str) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    folder = {"unicode": "目录/", "long names": f"{'n' * 60}/{'m' * 60}"}.get(kind, "")
    for number in range(3):
        name = f"{folder}{number}"
        headers = {"mtime": "1700000000.25"} if kind == "webdataset" else {}
        headers |= {"SCHILY.xattr.user": "x"} if kind == "attributes" else {}
        yield f"{name}.jpg", JPEG + bytes([number]) * 600, headers
        yield f"{name}.json", f'{{"zh": "第{number}只猫", "en": ["cat {number}"]}}'.encode(), headers


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("kind", ["plain", "unicode", "long names", "webdataset", "attributes", "folders", "appended"])
def test_tars_of_every_kind_are_read_as_tarfile_reads_them(tmp_path: Path, form: int, kind: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for name, content, headers in members(kind):
            if kind == "folders":
                folder = tarfile.TarInfo("folder")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = headers
            archive.addfile(member, io.BytesIO(content))
    if kind == "appended":
        path.write_bytes(path.read_bytes() + b"what follows the end is not read" * 40)
    expected = {}
    with tarfile.open(path) as archive:
        for file_index in archive:
            if file_index.name.endswith(".jpg") and (stream := archive.extractfile(file_index)):
                expected[file_index.name[:-4]] = stream.read()
    assert {pair.key: pair.image for pair in open_pairs(path)} == expected and len(expected) == 3


def test_images_without_a_record_are_no_pairs_and_still_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(6):
            add(archive, f"{number}.jpg", JPEG + bytes([number]))
            if number % 2:
                add(archive, f"{number}.json", f'{{"zh": "第{number}只猫"}}'.encode())
    pairs = open_pairs(tmp_path / "a.tar")
    images = open_images(tmp_path / "a.tar")
    assert pairs.keys() == ["1", "3", "5"] and images.keys() == list("012345")
    assert pairs.captions("zh") == [("第1只猫",), ("第3只猫",), ("第5只猫",)]
    assert [pairs.image(place)[-1] for place in range(3)] == [1, 3, 5]
    assert pairs.image_digest(2) == images.image_digest(5)
    assert pairs.first_caption_ids(np.array([2, 0]))[:, 0].tolist() == [caption_id("第5只猫"), caption_id("第1只猫")]


def test_columns_of_others_are_named(tmp_path: Path) -> None:
    images = [{"bytes": JPEG + b"1", "path": "1.jpg"}, {"bytes": JPEG + b"2", "path": None}, None]
    table = {"jpg": images, "alt": ["a cat", "一只猫", None], "text_zh": [["猫"], [], None], "id": [7, 8, 9]}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(table), tmp_path / "data/00.parquet")
    with pytest.raises(
        DcclipError, match=r"00\.parquet has no column image \(found: jpg, alt, text_zh, id\)"
    ) as raised:
        open_pairs(tmp_path / "data")
    assert "data.columns" in raised.value.hint
    pairs = open_pairs(tmp_path / "data", Columns(image="jpg", caption="alt", zh="text_zh", key="id"))
    assert [pairs[0], pairs[1]] == [Pair("7", JPEG + b"1", ("猫",), ("a cat",)), Pair("8", JPEG + b"2", ("一只猫",))]
    with pytest.raises(DcclipError, match="pair 9 has no image data"):
        pairs[2]
    added = Pair("10", IMAGE, ("狗",), ("a dog",))
    write_parquet(tmp_path / "own.parquet", [added])
    columns = Columns(image="jpg", caption="alt", zh="text_zh", key="id")
    both = open_pairs([tmp_path / "own.parquet", tmp_path / "data"], columns)
    assert [both[0], both[1]] == [added, pairs[0]]
    assert preview_pairs(tmp_path / "own.parquet", columns).captions == [{"zh": ("狗",), "en": ("a dog",)}]
    assert may_have_captions(tmp_path / "own.parquet", columns, ("zh", "en"))
    assert open_pairs(tmp_path / "data", Columns(image="jpg")).keys() == ["00:0", "00:1", "00:2"]
    for twice in (Columns(image="jpg", key="jpg"), Columns(image="jpg", zh="alt", en="alt")):
        with pytest.raises(DcclipError, match=r"00\.parquet: the same column is used for two keys"):
            open_pairs(tmp_path / "data", twice)
    with pytest.raises(DcclipError, match="has no column caption"):
        open_pairs(tmp_path / "data", Columns(image="jpg", caption="caption"))
    with pytest.raises(DcclipError, match="column alt is string instead of bytes"):
        open_pairs(tmp_path / "data", Columns(image="alt"))
    pq.write_table(pa.table([*table.values(), ["狗"] * 3], [*table, "text_zh"]), tmp_path / "data/00.parquet")
    with pytest.raises(DcclipError, match=r"00\.parquet has more than one column text_zh"):
        open_pairs(tmp_path / "data", columns)
    assert open_pairs(tmp_path / "data", Columns(image="jpg", caption="alt")).captions("en")[0] == ("a cat",)


def test_fields_of_others_in_the_json_of_tars_are_named_too(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:  # as img2dataset writes them
        add(archive, "0.jpg", JPEG)
        add(archive, "0.json", '{"caption": "一只猫", "url": "https://example.com/cat.jpg"}'.encode())
    [pair] = open_pairs(tmp_path, Columns(caption="caption"))
    assert pair == Pair("0", JPEG, ("一只猫",), (), {"url": "https://example.com/cat.jpg"})
    assert open_pairs(tmp_path).captions("zh") == [()]


def test_data_is_a_file_a_folder_a_glob_or_a_list_of_them(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "0.parquet", many(5, first))
        write_parquet(tmp_path / name / "1.parquet", many(5, first + 5))
    write_tar(tmp_path / "c/0.tar", DOG)
    (tmp_path / "a/.hidden.parquet").write_bytes(b"")
    keys = {
        "a": [*range(10)],
        "*/0.parquet": [*range(5), *range(10, 15), *range(20, 25)],
        "**/1.parquet": [*range(5, 10), *range(15, 20), *range(25, 30)],
    }
    for name, numbers in keys.items():
        assert open_pairs(tmp_path / name).keys() == [f"{number:04}" for number in numbers], name
    datasets = open_pairs([tmp_path / "b/1.parquet", tmp_path / "a", tmp_path / "c"])
    assert datasets.keys() == [f"{number:04}" for number in (*range(15, 20), *range(10))] + ["dog"]
    for language in LANGUAGES:
        ids = [caption_id(captions[0]) if captions else 0 for captions in datasets.captions(language)]
        column = LANGUAGES.index(language)
        assert datasets.first_caption_ids(np.arange(16))[:, column].tolist() == ids
    with pytest.raises(DcclipError, match="does not exist"):
        open_pairs([tmp_path / "a", tmp_path / "无"])
