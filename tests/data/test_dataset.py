"""Datasets of pairs: every file layout gives back the pairs that were written, and says what is wrong with a file."""

import hashlib
import io
import json
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation.shards import write_shard
from dcclip_cli.data import dataset
from dcclip_cli.data.dataset import open_pairs, recipe_pairs, write_parquet
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import ConcatDataset, Pair
from dcclip_cli.data.preview import preview_pairs
from dcclip_cli.data.unpaired import open_images, open_texts
from tests.data.test_collator import collate
from tests.images import encode
from tests.pages import ROOT, blocks
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
    members = [("whole.jpg", b"image"), ("whole.json", '{"zh": "一只猫", "en": "a cat"}'.encode())]
    (tmp_path / "a.tar").write_bytes(tar_bytes([*half, ("link.json", b"{}"), *members]))
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
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
        ("text.parquet", b"key,image", "not a Parquet file"),
        ("text.tar", b"not a tar" * 100, "is not a readable tar file"),
        ("pairs.csv", b"key,image", "contains no pairs"),
        ("empty.tar", bytes(10240), "contains no pairs"),
    ],
)
def test_a_path_without_pairs_is_an_error_with_a_hint(
    tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DcclipError, match=f"{name}.*{what}") as raised:
        open_pairs(tmp_path / name)
    assert "dcclip collect" in raised.value.hint if name == "pairs.csv" else raised.value.hint


@pytest.mark.parametrize("record", [b"{'zh': 1}", b"[]", b"\xff\xfe"])
def test_a_broken_record_in_a_tar_is_named(tmp_path: Path, record: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", b"image"), ("1.json", record)]))
    with pytest.raises(DcclipError, match=r"a\.tar: 1\.json is not"):
        open_pairs(tmp_path / "a.tar")


def test_a_tar_that_is_cut_anywhere_before_its_end_mark_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "cut.tar"
    write_tar(tar, Pair("1", bytes(5000), en=("x",)), Pair("2", bytes(5000), en=("y",)))
    tar_content = tar.read_bytes()
    # The second pair begins at byte 6,656, its record's header is at 12,288, the end mark at 13,312.
    ends = (6656, 6657, 7167, 7168, 9000, 12_288, 12_300, 13_312)
    for content in (*(tar_content[:end] for end in ends), tar_content[:6656] + b"no header" * 200):
        tar.write_bytes(content)
        with pytest.raises(DcclipError, match="is not a readable tar file"):
            open_pairs(tar)
    tar.write_bytes(tar_content[: 13_312 + 512])  # the rest is padding
    assert [pair.key for pair in open_pairs(tar)] == ["1", "2"]


def test_embeddings_are_read_back_and_asking_for_an_image_is_an_error(tmp_path: Path) -> None:
    halves = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(2, dtype=np.float16).ravel()), 2)
    table = {"key": ["cat", "dog"], "embedding": halves, "zh": [["猫", "猫咪"], ["狗"]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    dataset = open_pairs(tmp_path / "a.parquet")
    assert dataset.embeddings is not None
    assert (dataset.embeddings.dtype, dataset.embeddings.tolist()) == (np.float32, [[1, 0], [0, 1]])
    assert dataset.captions("zh") == [("猫", "猫咪"), ("狗",)]
    with pytest.raises(DcclipError, match="contains embeddings instead of images"):
        dataset[0]


@pytest.mark.parametrize("bad", [[[1.0, 2.0], [1.0]], [[1.0, float("nan")], [0.0, 1.0]]])
def test_vectors_of_unequal_length_or_not_finite_are_refused(bad: list[list[float]], tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "embedding": bad}), tmp_path / "bad.parquet")
    with pytest.raises(DcclipError, match="the embeddings are not vectors of the same length"):
        open_pairs(tmp_path / "bad.parquet")


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
    assert joined.image_digest(2) == hashlib.blake2b(b"an image", digest_size=16).digest()
    write_tar(tmp_path / "two.tar", CAT, DOG)
    write_tar(tmp_path / "one.tar", CAT)
    sources = [tmp_path / name for name in ("two.tar", "one.tar", "pairs.parquet")]
    assert open_pairs(sources).sources == [0, 2, 3] and open_pairs(sources[:1]).sources == [0]
    rest = recipe_pairs(DataOptions(train=tuple(map(str, sources)), hold_out=1), "train")  # without the first pair
    assert rest is not None and rest.sources == [0, 1, 2]


def test_held_out_pairs_are_the_validation_pairs_and_not_trained_on(tmp_path: Path) -> None:
    pairs = [Pair(str(number), b"image %d" % number, (f"{number} 只猫",), (f"{number} cats",)) for number in range(9)]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    data = DataOptions(train=str(tmp_path / "pairs.parquet"), hold_out=3)
    held, rest = (recipe_pairs(data, kind) for kind in ("validation", "train"))
    assert held is not None
    assert rest is not None
    assert [pair.key for pair in held] == held.keys() == ["0", "4", "8"]
    assert list(rest) == [*pairs[1:4], *pairs[5:8]]
    assert rest.captions("zh") == [pair.zh for pair in rest]
    assert rest.image_digest(3) == hashlib.blake2b(b"image 5", digest_size=16).digest()
    both = open_pairs(tmp_path / "pairs.parquet")
    assert (rest.first_caption_ids(np.arange(6)) == both.first_caption_ids(np.array([1, 2, 3, 5, 6, 7]))).all()
    assert len({opened_set.fingerprint for opened_set in (held, rest, both)}) == 3
    with pytest.raises(DcclipError, match="hold_out is 9"):
        recipe_pairs(data.model_copy(update={"hold_out": 9}), "train")


IMAGE = encode(Image.new("RGB", (8, 8), "red"))
RECORD = json.dumps({"zh": ["红"], "en": ["red"]}).encode()
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
)


def tar_with(file: Path, headers: dict[str, str], record: bytes = RECORD) -> Path:
    """A tar of two pairs, the second image with an extended header."""
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("猫.png", IMAGE), ("猫.json", RECORD), ("b.png", IMAGE), ("b.json", record)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = headers if name == "b.png" else {}
            archive.addfile(info, io.BytesIO(content))
    return file


def test_half_a_character_in_a_caption_is_written_out(tmp_path: Path) -> None:
    content = b'{"en": ["red \\ud800 cat"], "zh": ["\\u732b \\udfff"]}'
    file = tar_with(tmp_path / "a.tar", {}, content)
    (tmp_path / "a.jsonl").write_bytes(content)
    for opened in (open_pairs(file)[1], open_texts(tmp_path / "a.jsonl")[0]):
        assert opened.en == ("red \\ud800 cat",) and opened.zh == ("猫 \\udfff",)
    assert preview_pairs(file).bytes_per_caption(("zh", "en")) == (3 + 3 + 10 + 14) / 4  # for an estimate


def parquet(file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"key": ["a"], "image": [IMAGE], "en": ["red"], **columns}), file)
    return file


@pytest.mark.parametrize("column", ["key", "en", "zh", "meta"])
def test_text_in_parquet_that_is_not_utf8_is_shown(tmp_path: Path, column: str) -> None:
    file = parquet(tmp_path / "坏.parquet", **{column: NOT_UTF8})
    for opener in (open_pairs, preview_pairs) if column in ("zh", "en") else (open_pairs,):
        with pytest.raises(DcclipError, match=r"坏\.parquet contains text that is not UTF-8: b'\\xff\\xfe'"):
            opener(file)


PAGE = ROOT / "docs/how-to/extend.md"


def test_a_class_and_its_name_in_layouts_make_a_dataset(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DcclipError, match="contains no pairs") as raised:
        open_pairs(tmp_path)
    assert (
        raised.value.hint == "use a .parquet file, a .tar file or a folder of such files, embeddings in a .parquet file"
    )
    [code] = [block for block in blocks(PAGE, "python") if "class CaptionedFolder" in block]
    [line] = [block for block in blocks(PAGE, "python") if block.startswith("LAYOUTS")]
    scope = dict(vars(dataset))
    exec(compile(code + line, PAGE, "exec"), scope)
    monkeypatch.setattr(dataset, "LAYOUTS", scope["LAYOUTS"])

    named_pairs = [Pair(f"{number}.png", pair.image, pair.zh[:1], pair.en[:1]) for number, pair in enumerate(pairs[:3])]
    for pair in named_pairs:
        (tmp_path / pair.key).write_bytes(pair.image)
    lines = [f"{pair.key}\t{pair.zh[0]}\t{pair.en[0]}\n" for pair in named_pairs]
    (tmp_path / "captions.tsv").write_text("".join(lines), "utf-8")
    photos = open_pairs(tmp_path)
    assert list(photos) == named_pairs
    batch = collate(photos).batch([(2, 0), (0, 0)])
    assert batch.pixels.shape == (2, 3, 8, 8)
    assert batch.texts["zh"].captions == [pairs[2].zh[0], pairs[0].zh[0]]
    assert len(photos.fingerprint) == 64
    assert [pair.image for pair in open_images(tmp_path)] == [pair.image for pair in pairs[:3]]
    assert {*open_texts(tmp_path).captions("en")} == {(), *(pair.en[:1] for pair in pairs[:3])}


def test_a_first_look_counts_pairs_and_captions(pairs: list[Pair], pairs_file: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", pairs[number::2])
    table = preview_pairs(pairs_file)
    tars = preview_pairs(tmp_path)
    assert table.samples == 40 and abs(tars.samples - 40) <= 4  # by the size of the files
    for opened in (table, tars):
        assert {tuple(map(len, captions.values())) for captions in opened.captions} == {(3, 3)}
    lengths = [len(text.encode()) for pair in pairs for text in pair.zh]
    assert table.bytes_per_caption(("zh",)) == pytest.approx(sum(lengths) / 120)
    for size in (-1_024, 700):  # without its end, which is zeros; in its first file
        (tmp_path / "2.tar").write_bytes((tmp_path / "1.tar").read_bytes().rstrip(b"\0")[:size])
        with pytest.raises(DcclipError, match=r"2\.tar is not a readable tar file"):
            preview_pairs(tmp_path)
