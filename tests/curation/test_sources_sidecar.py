"""Images with sidecar files, in folders and tars as img2dataset, WebDataset and dcclip write them; hostile ones too."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcclip_cli.curation.sources.sidecar import FolderSource, TarsSource
from tests.curation.reading import PIXEL, faults, read, reasons, tar

# ---- a folder


def test_a_folder_gives_its_images_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.webp", "a/z.JPG", "a.png", "notes.md", "猫.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = [(candidate.pair.key, candidate.pair.image.decode()) for candidate in read(FolderSource(path=tmp_path))]
    assert found == [(name, name) for name in ("a/z.JPG", "a.png", "b.webp", "猫.jpeg")]


def test_pictures_that_no_recipe_keeps_are_candidates_too(tmp_path: Path) -> None:
    for name in ("a.svg", "b.GIF", "c.jfif", "d.mp4", "e"):
        (tmp_path / name).touch()
    assert [candidate.pair.key for candidate in read(FolderSource(path=tmp_path))] == ["a.svg", "b.GIF", "c.jfif"]


def test_slices_of_a_folder_are_of_the_size_asked_for_and_together_the_whole(tmp_path: Path) -> None:
    names = [f"{folder}{number}.png" for folder in ("", "a/", "a/b/", "c/") for number in range(6)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    source = FolderSource(path=tmp_path)
    for size in (1, 5, 7, 24, 100):
        slices = source.slices(size)
        assert [part.about for part in slices] == [size] * (24 // size) + [24 % size] * (24 % size > 0)
        assert [len(list(source.read(part.part))) for part in slices] == [part.about for part in slices]
        assert [one.pair.key for one in read(source, size)] == sorted(names, key=lambda name: name.split("/"))


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


@pytest.mark.parametrize(
    ("name", "size", "reason"), [("cat.zh.txt", 50_000_000, "captions-bytes"), ("cat.jpg", 64_000_001, "image-bytes")]
)
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, name: str, size: int, reason: str) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(size)
    assert reasons(FolderSource(path=tmp_path)) == [reason]


def test_links_out_of_the_folder_are_followed_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PIXEL)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "cat.png").symlink_to(tmp_path / "outside" / "secret.png")
    (inside / "deep").symlink_to(tmp_path / "outside")
    assert reasons(FolderSource(path=inside)) == ["image-outside"]
    found = read(FolderSource(path=inside, allow_outside=True))
    assert [(one.pair.key, one.pair.image) for one in found] == [("cat.png", PIXEL), ("deep/secret.png", PIXEL)]


def test_a_caption_file_that_is_a_link_out_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("口令")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "cat.png").write_bytes(PIXEL)
    (inside / "cat.txt").symlink_to(tmp_path / "secret")
    (candidate,) = read(FolderSource(path=inside))
    assert candidate.fault and candidate.fault.reason == "captions-outside"
    assert candidate.pair.zh == ()


def test_links_in_a_circle_are_a_missing_image_and_folders_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to(tmp_path / "dog.png")
    (tmp_path / "dog.png").symlink_to(tmp_path / "cat.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert reasons(FolderSource(path=tmp_path, allow_outside=True)) == ["image-missing"] * 2


def test_a_pipe_that_bears_an_images_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.png")
    assert reasons(FolderSource(path=tmp_path)) == ["image-missing"]


def test_names_that_are_too_long_or_no_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / ("x" * 251 + ".png")).write_bytes(PIXEL)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")).write_bytes(PIXEL)
    assert reasons(FolderSource(path=tmp_path)) == [None, None]


def test_a_tree_deeper_than_python_can_recurse_is_read(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("cat.png").write_bytes(PIXEL)
        assert reasons(FolderSource(path=tmp_path)) == [None]
        Path("cat.png").unlink()
        while os.getcwd() != str(tmp_path):  # pytest can't recurse so deep either
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)


# ---- tars


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
    assert [(part.part, part.about) for part in source.slices(10)] == [({"file": str(tmp_path / "00000.tar")}, 1)]
    (candidate,) = read(source)
    assert candidate.fault is None
    assert (candidate.pair.key, candidate.pair.image) == ("00000.tar:000000001", PIXEL)
    assert (candidate.pair.zh, candidate.pair.en) == ((caption,), ())  # once, not a caption for each line
    assert candidate.pair.meta == record


def test_dcclips_own_shards_and_texts_of_either_language_are_read(tmp_path: Path) -> None:
    members = [
        ("a.webp", PIXEL),
        ("a.json", '{"zh": ["猫", "小猫"], "en": "cat", "style": "noto"}'.encode()),
        ("a.en.txt", b"kitten\nanimal"),
        ("a.zh.txt", "动物".encode()),
        ("b.PNG", PIXEL),
        ("b.txt", "狗\ndog".encode()),
    ]
    a, b = read(TarsSource(path=tar(tmp_path / "0.tar", members)))
    assert (a.pair.key, a.pair.zh, a.pair.en) == ("a", ("猫", "小猫", "动物"), ("cat", "kitten", "animal"))
    assert a.pair.meta == {"style": "noto"}
    assert (b.pair.key, b.pair.zh, b.pair.en) == ("b", ("狗",), ("dog",))


def test_files_may_stand_in_any_order_in_folders_and_with_dots_in_their_names(tmp_path: Path) -> None:
    members = [("d/v1.2_b.jpg", b"b"), ("d/a.jpg", b"a"), ("d/a.txt", "猫".encode()), ("d/v1.2_b.txt", b"dog")]
    found = read(TarsSource(path=tar(tmp_path / "0.tar", members)))
    assert [(one.pair.key, one.pair.image, one.pair.zh + one.pair.en) for one in found] == [
        ("d/v1.2_b", b"b", ("dog",)),
        ("d/a", b"a", ("猫",)),
    ]


PICKLE = b"cos\nsystem\n(S'false'\ntR."
MEMBERS: dict[str, tuple[list[tuple[str, bytes]], dict[str, str | None]]] = {
    "pickles and other files are skipped": (
        [("a.jpg", PIXEL), ("a.pkl", PICKLE), ("a.pyd", b""), ("a.cls", b"3"), ("b", b"")],
        {"a": None},
    ),
    "captions without an image": ([("a.txt", b"cat"), *pair("b", "狗")], {"a": "image-missing", "b": None}),
    "relative path": ([*pair("../../etc/a", "猫"), *pair("b", "狗")], {"../../etc/a": "image-outside", "b": None}),
    "absolute path": ([*pair("/etc/a", "猫"), *pair("b", "狗")], {"/etc/a": "image-outside", "b": None}),
    "path through a folder": ([*pair("d/../../a", "猫"), *pair("b", "狗")], {"d/../../a": "image-outside", "b": None}),
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
            member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
            archive.addfile(member)
    assert in_tar(file) == ({"a": "image-outside"} if "LNK" in kind or "SYM" in kind else {})


def test_a_cut_tar_gives_the_pairs_before_the_cut_and_one_fault(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", [*pair("a", "猫"), *pair("b", "dog"), *pair("c", "鱼")])
    whole = file.read_bytes()
    ends = 512 + 512 + 512 + 512  # header and 300 bytes padded, header and text padded
    for cut, expected in (
        (2 * ends + 512 + 100, {"a": None, "b": None, "c": "tar-cut"}),  # in c.jpg
        (2 * ends + 1024 + 512 + 1, {"a": None, "b": None, "c": "tar-cut"}),  # in c.txt
        (2 * ends + 100, {"a": None, "b": None, f"@{2 * ends}": "tar-cut"}),  # in the header of c.jpg
        (2 * ends, {"a": None, "b": None, f"@{2 * ends}": "tar-cut"}),  # before it
        (100, {"@0": "tar-unreadable"}),
        (0, {"@0": "tar-unreadable"}),
    ):
        file.write_bytes(whole[:cut])
        assert in_tar(file) == expected, cut


def test_nonsense_in_the_midst_of_a_tar_is_a_fault(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", [*pair("a", "猫"), *pair("b", "dog")])
    content = bytearray(file.read_bytes())
    content[2048:2560] = b"nonsense" * 64
    file.write_bytes(content)
    assert in_tar(file) == {"a": None, "@2048": "tar-unreadable"}


def test_what_is_no_tar_is_one_fault_among_the_others(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", pair("a", "猫"))
    (tmp_path / "1.tar").write_bytes(b"\x1f\x8b" + os.urandom(2000))
    found = read(TarsSource(path=tmp_path))
    expected = [("0.tar:a", None), ("1.tar:@0", "tar-unreadable")]
    assert [(one.pair.key, one.fault and one.fault.reason) for one in found] == expected


def test_a_header_that_claims_terabytes_is_a_fault_and_takes_no_memory(tmp_path: Path) -> None:
    file = tar(tmp_path / "0.tar", pair("a", "猫"))
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE):
        header = tarfile.TarInfo("b.jpg")
        header.size, header.type = 1 << 45, kind
        (tmp_path / "1.tar").write_bytes(file.read_bytes()[:2048] + header.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)
        found = in_tar(tmp_path / "1.tar")
        assert found.pop("a") is None
        assert list(found.values()) == ["tar-cut" if kind == tarfile.REGTYPE else "tar-unreadable"]


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
    assert 2900 < part.about < 3100
    assert len(read(TarsSource(path=file))) == 3000
