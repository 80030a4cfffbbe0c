"""What all sources share; images with sidecar files in folders and tars, as others and dcclip write them."""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation import sources
from dcclip_cli.curation.sources import SourceOptions
from dcclip_cli.curation.sources.base import by_language, files_of, key_prefix
from dcclip_cli.curation.sources.captions import Base64Source, CaptionsSource
from dcclip_cli.curation.sources.sidecar import FolderSource, TarsSource
from dcclip_cli.curation.sources.tables import HubSource, TableSource
from tests.curation.reading import PIXEL, faults, read, reasons, tar
from tests.pages import ROOT, blocks


def test_slices_of_a_folder_are_of_the_size_asked_for_and_together_the_whole(tmp_path: Path) -> None:
    names = [
        f"{folder}{name}" for folder in ("", "a/", "a/b/", "猫/") for name in ("z.JPG", "1.png", "b.webp", "猫.jpeg")
    ]
    for name in (*names, "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(name.encode())
    source = FolderSource(path=tmp_path)
    for size in (1, 5, 7, 16, 100):
        slices = source.slices(size)
        assert [part.estimate for part in slices] == [size] * (16 // size) + [16 % size] * (16 % size > 0)
        assert [len(list(source.read(part.part))) for part in slices] == [part.estimate for part in slices]
        pairs = [candidate.pair for candidate in read(source, size)]
        assert [pair.key for pair in pairs] == sorted(names, key=lambda name: name.split("/"))
        assert all(pair.image == pair.key.encode() for pair in pairs)


def test_captions_come_from_all_the_files_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    record = '{"zh": "猫脸", "en": ["cat face"], "caption": "花猫", "artist": "李"}'
    (tmp_path / "cat.json").write_text(record, "utf-8")
    (tmp_path / "cat.zh.txt").write_text("一只猫\n小猫\n", "utf-8")
    (tmp_path / "cat.en.txt").write_bytes(b"a cat\r\na kitten")
    (tmp_path / "cat.txt").write_text("\ufeff黑猫\nblack cat", "utf-8")
    (candidate,) = read(FolderSource(path=tmp_path))
    assert candidate.fault is None
    assert [text.strip() for text in candidate.pair.zh] == ["猫脸", "花猫", "一只猫", "小猫", "黑猫"]
    assert [text.strip() for text in candidate.pair.en] == ["cat face", "a cat", "a kitten", "black cat"]
    assert candidate.pair.meta == {"artist": "李"}


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'{"zh": [3]}', '{"zh": "狗"}'.encode("gb18030"), b"[" * 100_000, b'{"en": {"a": 1}}']
)
def test_a_broken_caption_file_is_that_images_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    (tmp_path / "cat.json").write_bytes(content)
    (tmp_path / "dog.jpg").write_bytes(PIXEL)
    assert reasons(FolderSource(path=tmp_path)) == ["captions-unreadable", None]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PIXEL)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "cat.png").symlink_to(tmp_path / "outside" / "secret.png")
    (inside / "deep").symlink_to(tmp_path / "outside")
    (inside / "dog.png").write_bytes(PIXEL)
    (inside / "dog.txt").symlink_to(tmp_path / "outside" / "secret.png")
    assert reasons(FolderSource(path=inside)) == ["image-outside", "captions-outside"]


def in_tar(file: Path) -> dict[str, str | None]:
    return faults(TarsSource(path=file))


def pair(key: str, caption: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", key.encode() * 300), (f"{key}.txt", caption.encode())]


def test_img2dataset_reads_as_it_writes(tmp_path: Path) -> None:
    caption = "一只猫，\n在睡觉"
    record = {"url": "https://x.org/cat.jpg", "key": "000000001", "error_message": None, "width": 256, "sha256": "ab"}
    sidecars = [("txt", caption.encode()), ("json", json.dumps(record | {"caption": caption}).encode())]
    tar(tmp_path / "00000.tar", [(f"000000001.{suffix}", content) for suffix, content in [("jpg", PIXEL), *sidecars]])
    (tmp_path / "00000.parquet").touch()
    (tmp_path / "00000_stats.json").touch()
    source = TarsSource(path=tmp_path)
    assert [(part.part, part.estimate) for part in source.slices(10)] == [({"file": str(tmp_path / "00000.tar")}, 1)]
    (candidate,) = read(source)
    assert candidate.fault is None
    assert (candidate.pair.key, candidate.pair.image) == ("00000.tar:000000001", PIXEL)
    assert (candidate.pair.zh, candidate.pair.en) == ((caption,), ())  # once, not a caption for each line
    assert candidate.pair.meta == record


def test_dcclips_own_shards_and_texts_of_either_language_in_any_order_and_folder_are_read(tmp_path: Path) -> None:
    members = [
        ("d/v1.2_c.txt", b"fish"),
        ("a.webp", PIXEL),
        ("a.json", '{"zh": ["猫", "小猫"], "en": "cat", "style": "noto"}'.encode()),
        ("a.en.txt", b"kitten\nanimal"),
        ("a.zh.txt", "动物".encode()),
        ("b.PNG", PIXEL),
        ("b.txt", "狗\ndog".encode()),
        ("d/v1.2_c.jpg", b"c"),
    ]
    c, a, b = read(TarsSource(path=tar(tmp_path / "0.tar", members)))
    assert (a.pair.key, a.pair.zh, a.pair.en) == ("a", ("猫", "小猫", "动物"), ("cat", "kitten", "animal"))
    assert a.pair.meta == {"style": "noto"}
    assert (b.pair.key, b.pair.zh, b.pair.en) == ("b", ("狗",), ("dog",))
    assert (c.pair.key, c.pair.image, c.pair.en) == ("d/v1.2_c", b"c", ("fish",))


PICKLE = b"cos\nsystem\n(S'false'\ntR."
MEMBERS: dict[str, tuple[list[tuple[str, bytes]], dict[str, str | None]]] = {
    "pickles and other files are skipped": (
        [("a.jpg", PIXEL), ("a.pkl", PICKLE), ("a.pyd", b""), ("a.cls", b"3"), ("b", b"")],
        {"a": None},
    ),
    "captions without an image": ([("a.txt", b"cat"), *pair("b", "狗")], {"a": "image-missing", "b": None}),
    "relative path": ([*pair("../../etc/a", "猫"), *pair("b", "狗")], {"../../etc/a": "image-outside", "b": None}),
    "absolute path": ([*pair("/etc/a", "猫"), *pair("b", "狗")], {"/etc/a": "image-outside", "b": None}),
    "texts that are too long or not UTF-8": (
        [*pair("a", "猫" * 17_000_000), ("b.jpg", PIXEL), ("b.txt", "狗".encode("gb18030")), *pair("c", "鱼\0")],
        {"a": "captions-bytes", "b": "captions-unreadable", "c": None},
    ),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_members_of_a_tar_are_pairs_or_faults(tmp_path: Path, case: str) -> None:
    members, expected = MEMBERS[case]
    assert in_tar(tar(tmp_path / "0.tar", members)) == expected


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "FIFOTYPE", "DIRTYPE"])
def test_a_link_to_an_image_is_a_fault_and_devices_pipes_and_folders_are_skipped(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "0.tar"
    with tarfile.open(file, "w") as archive:
        for name in ("a.jpg", "readme"):
            member = tarfile.TarInfo(name)
            member.type = getattr(tarfile, kind)
            member.linkname = "/etc/passwd"
            archive.addfile(member)
    assert in_tar(file) == ({"a": "image-outside"} if "LNK" in kind or "SYM" in kind else {})


def test_a_cut_tar_gives_the_pairs_before_the_cut_and_one_fault(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", [*pair("a", "猫"), *pair("b", "dog"), *pair("c", "鱼")])
    content = file.read_bytes()
    ends = 512 + 512 + 512 + 512  # header and 300 bytes padded, header and text padded
    for cut, expected in (
        (2 * ends + 512 + 100, {"a": None, "b": None, "c": "tar-cut"}),  # in c.jpg
        (2 * ends + 1024 + 512 + 1, {"a": None, "b": None, "c": "tar-cut"}),  # in c.txt
        (2 * ends + 100, {"a": None, "b": None, f"@{2 * ends}": "tar-cut"}),  # in the header of c.jpg
        (2 * ends, {"a": None, "b": None, f"@{2 * ends}": "tar-cut"}),  # before it
        (100, {"@0": "tar-unreadable"}),
        (0, {"@0": "tar-unreadable"}),
    ):
        file.write_bytes(content[:cut])
        assert in_tar(file) == expected, cut


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4095), st.binary(min_size=1, max_size=40), st.integers(0, 10_240))
def test_no_damage_makes_reading_fail(tmp_path: Path, at: int, damage: bytes, cut: int) -> None:
    file = tar(tmp_path / "0.tar", [*pair("a", "猫"), *pair("b", "dog")])
    content = bytearray(file.read_bytes())
    content[at : at + len(damage)] = damage
    file.write_bytes(content[:cut])
    assert len(read(TarsSource(path=file))) < 8


def test_how_many_pairs_a_long_tar_has_is_told_from_its_beginning(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", [member for number in range(3000) for member in pair(f"{number:05d}", "猫")])
    (part,) = TarsSource(path=file).slices(10)
    assert 2900 < part.estimate < 3100
    assert len(read(TarsSource(path=file))) == 3000


PAGE = ROOT / "docs/how-to/extend.md"  # its example of a new source works as shown


@pytest.mark.parametrize(
    "source",
    [
        FolderSource(path=Path("/absent")),
        TableSource(path=Path("/absent.csv")),
        TarsSource(path=Path("/absent")),
        HubSource(path="/absent"),
        Base64Source(path=Path("/absent")),
        CaptionsSource(images=Path("/absent"), zh=Path("/absent.txt")),
    ],
    ids=lambda source: source.kind,
)
def test_a_source_that_is_not_there_is_an_error(source: SourceOptions) -> None:
    with pytest.raises(DcclipError, match="/absent"):
        source.slices(10)


def test_files_come_from_a_file_a_folder_or_a_pattern_and_keys_say_from_which(tmp_path: Path) -> None:
    for name in ("b.tar", "a.TAR", "a.parquet", "deep/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files_of(tmp_path / "b.tar", (".tar",)) == [tmp_path / "b.tar"]
    assert files_of(tmp_path, (".tar",)) == [tmp_path / "a.TAR", tmp_path / "b.tar"]
    assert files_of(tmp_path / "**" / "*.tar", (".tar",)) == [tmp_path / "b.tar", tmp_path / "deep" / "c.tar"]
    assert key_prefix(tmp_path / "b.tar", tmp_path / "b.tar") == ""
    assert key_prefix(tmp_path, tmp_path / "b.tar") == "b.tar:"
    assert key_prefix(tmp_path / "**" / "*.tar", tmp_path / "deep" / "c.tar") == "deep/c.tar:"


def test_a_folder_that_the_hub_was_downloaded_into_gives_its_training_split(tmp_path: Path) -> None:
    repository = tmp_path / "中文"
    converted = tmp_path / "converted"
    other = tmp_path / "other"
    for file in (
        repository / "data" / "train-00000-of-00002.parquet",
        repository / "data" / "test-00000-of-00001.parquet",
        converted / "default" / "train" / "0000.parquet",
        other / "metadata" / "part.parquet",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert [file.name for file in files_of(repository, (".parquet",))] == ["train-00000-of-00002.parquet"]
    assert [file.name for file in files_of(converted, (".parquet",))] == ["0000.parquet"]
    assert key_prefix(repository, repository / "data" / "train-0.parquet") == "data/train-0.parquet:"
    with pytest.raises(DcclipError, match="other contains no file") as error:
        files_of(other, (".parquet",))
    assert str(other / "metadata") in str(error.value.hint)


def test_captions_of_unknown_language_go_by_their_script_and_blank_ones_are_left_out() -> None:
    captions = [("caption", "一只猫在睡觉"), ("caption", "a cat"), ("zh", "cat"), ("en", " \n"), ("caption", "ねこ")]
    assert by_language(captions) == {"zh": ("一只猫在睡觉", "cat"), "en": ("a cat", "ねこ")}  # type: ignore[arg-type]


def test_a_class_and_a_name_in_the_union_add_a_source(tmp_path: Path) -> None:
    scope = dict(vars(sources))
    for beginning in ("import sqlite3", "Source = Annotated"):
        [block] = [block for block in blocks(PAGE, "python") if block.startswith(beginning)]
        exec(compile(block, PAGE, "exec"), scope)
    adapter: TypeAdapter[SourceOptions] = TypeAdapter(scope["Source"])
    source = adapter.validate_python({"kind": "sqlite", "path": tmp_path / "pairs.db"})
    with pytest.raises(DcclipError, match="does not exist"):
        source.slices(2)
    with closing(sqlite3.connect(tmp_path / "pairs.db")) as connection, connection:
        connection.execute("CREATE TABLE pairs (image BLOB, caption TEXT)")
        rows = [(b"1", "一只猫"), (b"2", "a dog"), (None, "a fox")]
        connection.executemany("INSERT INTO pairs VALUES (?, ?)", rows)
    cat, dog, fox = read(source, size=2)
    assert (cat.pair.key, cat.pair.image, cat.pair.zh, dog.pair.en) == ("1", b"1", ("一只猫",), ("a dog",))
    assert [row.fault and row.fault.reason for row in (cat, dog, fox)] == [None, None, "image-missing"]
