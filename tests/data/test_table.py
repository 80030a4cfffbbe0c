"""Reading pairs back from every form they come in."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

CAT = Pair(key="cat", image=b"\x89PNG cat", zh=("猫", "小猫"), en=("cat",), meta={"licence": "CC0", "作者": "李"})
DOG = Pair(key="dog", image=b"\xff\xd8 dog", zh=(), en=("dog", "hound"))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(file: Path, *pairs: Pair, suffix: str = ".jpg") -> None:
    with tarfile.open(file, "w") as archive:
        for pair in pairs:
            record = {"zh": list(pair.zh), "en": list(pair.en), **pair.meta}
            add(archive, pair.key + suffix, pair.image)
            add(archive, pair.key + ".json", json.dumps(record, ensure_ascii=False).encode())


def test_parquet_gives_back_the_very_pairs_that_were_written(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", [CAT, DOG])
    table = open_pairs(tmp_path / "pairs.parquet")
    assert list(table) == [CAT, DOG]
    assert table.captions("zh") == [("猫", "小猫"), ()]
    assert table.captions("en") == [("cat",), ("dog", "hound")]


def test_the_same_pairs_make_the_same_parquet_bytes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_parquet(tmp_path / name, [CAT, DOG])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_tar_gives_back_the_very_pairs(tmp_path: Path) -> None:
    write_tar(tmp_path / "000000.tar", CAT, DOG)
    assert list(open_pairs(tmp_path / "000000.tar")) == [CAT, DOG]


def test_a_folder_of_tars_is_read_in_the_order_of_the_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "000001.tar", DOG, suffix=".webp")
    write_tar(tmp_path / "000000.tar", CAT, suffix=".PNG")
    assert [pair.key for pair in open_pairs(tmp_path)] == ["cat", "dog"]


def test_a_caption_that_is_a_plain_string_counts_as_one_caption(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.jpg", b"image")
        add(archive, "1.json", '{"zh": "一只猫", "en": "a cat"}'.encode())
    pair = open_pairs(tmp_path / "a.tar")[0]
    assert (pair.zh, pair.en) == (("一只猫",), ("a cat",))


def test_members_of_a_tar_that_are_no_whole_pair_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "no-caption.jpg", b"image")
        add(archive, "no-image.json", b'{"en": "nothing"}')
        add(archive, "readme.txt", b"text")
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "link.json", b"{}")
        add(archive, "whole.jpg", b"image")
        add(archive, "whole.json", b"{}")
    assert [pair.key for pair in open_pairs(tmp_path / "a.tar")] == ["whole"]


def test_the_fingerprint_is_the_sha256_of_the_files_sha256s(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", CAT)
    write_tar(tmp_path / "b.tar", DOG)
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a.tar", "b.tar")]
    assert open_pairs(tmp_path).fingerprint == hashlib.sha256(b"".join(digests)).hexdigest()
    assert open_pairs(tmp_path / "a.tar").fingerprint != open_pairs(tmp_path).fingerprint


def test_columns_beyond_key_and_image_may_be_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["1"], "image": [b"image"], "zh": [["猫"]]}), tmp_path / "a.parquet")
    assert open_pairs(tmp_path / "a.parquet")[0] == Pair("1", b"image", zh=("猫",), en=())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.parquet", None, "does not exist"),
        ("text.parquet", b"key,image", "is not a Parquet file"),
        ("text.tar", b"not a tar" * 100, "is not a readable tar file"),
        ("pairs.csv", b"key,image", "has no pairs"),
        ("empty.tar", bytes(10240), "has no pairs"),
    ],
)
def test_what_holds_no_pairs_is_named_with_a_hint(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DcclipError, match=said) as raised:
        open_pairs(tmp_path / name)
    assert name in raised.value.what
    assert raised.value.hint


def test_a_parquet_file_without_images_is_refused_by_the_column_it_lacks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["1"], "url": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DcclipError, match=r"no column image \(found: key, url\)"):
        open_pairs(tmp_path / "a.parquet")


@pytest.mark.parametrize("record", [b"{'zh': 1}", b"[]", b"\xff\xfe"])
def test_a_broken_record_in_a_tar_is_named(tmp_path: Path, record: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.jpg", b"image")
        add(archive, "1.json", record)
    with pytest.raises(DcclipError, match=r"a\.tar: 1\.json is not"):
        open_pairs(tmp_path / "a.tar")


def test_a_tar_cut_off_in_a_member_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", Pair("1", bytes(5000), en=("x",)), Pair("2", bytes(5000), en=("y",)))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:9000])
    with pytest.raises(DcclipError, match="is not a readable tar file"):
        open_pairs(tmp_path / "a.tar")
