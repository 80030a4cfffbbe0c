"""Datasets of pairs: every file layout gives back the pairs that were written, and says what is wrong with a file."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import ConcatDataset, Pair
from dcclip_cli.data.unpaired import open_images, open_texts
from dcclip_cli.errors import DcclipError
from tests.tars import tar_bytes, tar_of

CAT = Pair(key="cat", image=b"\x89PNG cat", zh=("猫", "小猫"), en=("cat",), meta={"license": "CC0", "作者": "李"})
DOG = Pair(key="dog", image=b"\xff\xd8 dog", zh=(), en=("dog", "hound"))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(file: Path, *pairs: Pair, suffix: str = ".jpg") -> None:
    file.write_bytes(tar_of(pairs, suffix))


def test_parquet_gives_back_the_pairs_that_were_written(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", [CAT, DOG])
    dataset = open_pairs(tmp_path / "pairs.parquet")
    assert list(dataset) == [CAT, DOG]
    assert dataset.captions("zh") == [("猫", "小猫"), ()]
    assert dataset.captions("en") == [("cat",), ("dog", "hound")]
    write_parquet(tmp_path / "again.parquet", [CAT, DOG])
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "pairs.parquet").read_bytes()


def test_tars_give_back_the_pairs_that_were_written_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "000001.tar", DOG, suffix=".webp")
    write_tar(tmp_path / "000000.tar", CAT, suffix=".PNG")
    assert list(open_pairs(tmp_path)) == [CAT, DOG]
    assert list(open_pairs(tmp_path / "000001.tar")) == [DOG]


def test_a_plain_string_is_one_caption_and_members_of_a_tar_that_are_no_whole_pair_are_skipped(tmp_path: Path) -> None:
    half = [("no-caption.jpg", b"image"), ("no-image.json", b'{"en": "nothing"}'), ("readme.txt", b"text")]
    whole = [("whole.jpg", b"image"), ("whole.json", '{"zh": "一只猫", "en": "a cat"}'.encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*half, ("link.json", b"{}"), *whole]))
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(open_pairs(tmp_path / "a.tar")) == [Pair("whole", b"image", ("一只猫",), ("a cat",))]


def test_the_fingerprint_changes_with_every_part_of_the_data_and_not_with_its_place(tmp_path: Path) -> None:
    def of(*pairs: Pair) -> str:
        write_tar(tmp_path / "a.tar", *pairs)
        return open_pairs(tmp_path / "a.tar").fingerprint

    changed: list[dict[str, Any]] = [{"key": "c"}, {"image": b"x" + CAT.image[1:]}, {"meta": {"n": 1}}]
    changed += [{"zh": ("猫",)}, {"en": ("Cat",)}]
    prints = [of(CAT, DOG), of(DOG, CAT), *(of(replace(CAT, **change), DOG) for change in changed)]
    assert len(set(prints)) == len(prints)
    (tmp_path / "elsewhere").mkdir()
    write_tar(tmp_path / "elsewhere/b.tar", CAT, DOG)
    assert open_pairs(tmp_path / "elsewhere").fingerprint == prints[0]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("none.parquet", None, "does not exist"),
        ("text.parquet", b"key,image", "is not a Parquet file"),
        ("text.tar", b"not a tar" * 100, "is not a readable tar file"),
        ("pairs.csv", b"key,image", "has no pairs"),
        ("empty.tar", bytes(10240), "has no pairs"),
    ],
)
def test_a_path_without_pairs_is_an_error_with_a_hint(
    tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DcclipError, match=f"{name}.*{what}") as raised:
        open_pairs(tmp_path / name)
    assert raised.value.hint


@pytest.mark.parametrize("record", [b"{'zh': 1}", b"[]", b"\xff\xfe"])
def test_a_broken_record_in_a_tar_is_named(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"image"), ("1.json", record)]))
    with pytest.raises(DcclipError, match=r"a\.tar: 1\.json is not"):
        open_pairs(tmp_path / "a.tar")


def test_a_tar_that_is_cut_anywhere_before_its_end_mark_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "cut.tar"
    write_tar(tar, Pair("1", bytes(5000), en=("x",)), Pair("2", bytes(5000), en=("y",)))
    whole = tar.read_bytes()
    # The second pair begins at byte 6,656, its record's header is at 12,288, the end mark at 13,312.
    ends = (6656, 6657, 7167, 7168, 9000, 12_288, 12_300, 13_312)
    for content in (*(whole[:end] for end in ends), whole[:6656] + b"no header" * 200):
        tar.write_bytes(content)
        with pytest.raises(DcclipError, match="is not a readable tar file"):
            open_pairs(tar)
    tar.write_bytes(whole[: 13_312 + 512])  # the rest is padding
    assert [pair.key for pair in open_pairs(tar)] == ["1", "2"]


# ---- embeddings in place of images


def test_embeddings_are_read_back_and_asking_for_an_image_is_an_error(tmp_path: Path) -> None:
    halves = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(2, dtype=np.float16).ravel()), 2)
    table = {"key": ["cat", "dog"], "embedding": halves, "zh": [["猫", "猫咪"], ["狗"]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    dataset = open_pairs(tmp_path / "a.parquet")
    assert dataset.embeddings is not None
    assert (dataset.embeddings.dtype, dataset.embeddings.tolist()) == (np.float32, [[1, 0], [0, 1]])
    assert dataset.captions("zh") == [("猫", "猫咪"), ("狗",)]
    with pytest.raises(DcclipError, match="has embeddings, no images"):
        dataset[0]


@pytest.mark.parametrize("bad", [[[1.0, 2.0], [1.0]], [[1.0, float("nan")], [0.0, 1.0]]])
def test_vectors_of_unequal_length_or_not_finite_are_refused(bad: list[list[float]], tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "embedding": bad}), tmp_path / "bad.parquet")
    with pytest.raises(DcclipError, match="not vectors of one length"):
        open_pairs(tmp_path / "bad.parquet")


# ---- several datasets as one


def test_indices_continue_through_the_datasets_and_so_do_their_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pairs.parquet", [CAT, DOG])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"an image")
    (tmp_path / "texts.tsv").write_text("蓝色的猫\tblue cat\n", "utf-8")
    parts = [open_pairs(tmp_path / "pairs.parquet"), open_images(tmp_path / "images")]
    joined = ConcatDataset([*parts, open_texts(tmp_path / "texts.tsv")])
    assert (len(joined), joined.num_images, joined.firsts) == (4, 3, [0, 2, 3, 4])
    assert joined[1] == DOG
    assert joined[2] == Pair("a.png", b"an image")
    assert joined.captions("zh") == [("猫", "小猫"), (), (), ("蓝色的猫",)]
    assert joined.keys() == ["cat", "dog", "a.png", "0"]
    assert joined.blocks.tolist() == [0, 2, 3]
    assert joined.image_digest(2) == hashlib.blake2b(b"an image", digest_size=16).digest()
