"""What the sources read, and what they call what they can't."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from dcclip_cli.data.pair import Pair
from dcclip_cli.data.sources import Candidate, FolderSource, PairsSource, Source, SourceOptions, TsvSource
from dcclip_cli.data.table import write_parquet
from dcclip_cli.errors import DcclipError

PIXEL = b"not an image: sources don't look inside"


def read(source: SourceOptions) -> list[Candidate]:
    return list(source.open().candidates)


def reasons(source: SourceOptions) -> list[str | None]:
    return [candidate.fault.reason if candidate.fault else None for candidate in read(source)]


def tsv(folder: Path, text: str | bytes) -> Path:
    (folder / "cat.png").write_bytes(PIXEL)
    path = folder / "pairs.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_folder_gives_its_images_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.webp", "a/z.JPG", "a.png", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    reading = FolderSource(path=tmp_path).open()
    assert reading.total == 3
    assert [(candidate.pair.key, candidate.pair.image) for candidate in reading.candidates] == [
        ("a/z.JPG", b"a/z.JPG"),
        ("a.png", b"a.png"),
        ("b.webp", b"b.webp"),
    ]


def test_captions_come_from_all_the_files_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    (tmp_path / "cat.json").write_text('{"zh": "猫脸", "en": ["cat face"], "artist": "李"}', "utf-8")
    (tmp_path / "cat.zh.txt").write_text("一只猫\n小猫\n", "utf-8")
    (tmp_path / "cat.en.txt").write_bytes(b"a cat\r\na kitten")
    (tmp_path / "cat.txt").write_text("\ufeff黑猫\nblack cat", "utf-8")
    (candidate,) = read(FolderSource(path=tmp_path))
    assert candidate.fault is None
    assert [text.strip() for text in candidate.pair.zh if text] == ["猫脸", "一只猫", "小猫", "黑猫"]
    assert [text.strip() for text in candidate.pair.en if text] == ["cat face", "a cat", "a kitten", "black cat"]
    assert candidate.pair.meta == {"artist": "李"}


@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b'{"zh": [3]}', '{"zh": "狗"}'.encode("gb18030"), b"[" * 100_000, b'{"en": {"a": 1}}']
)
def test_a_broken_caption_file_is_that_images_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    (tmp_path / "cat.json").write_bytes(content)
    assert reasons(FolderSource(path=tmp_path)) == ["captions-unreadable"]


def test_a_caption_file_of_50_mb_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    with (tmp_path / "cat.zh.txt").open("wb") as stream:
        stream.truncate(50_000_000)
    assert reasons(FolderSource(path=tmp_path)) == ["captions-bytes"]


def test_a_link_out_of_the_folder_is_followed_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PIXEL)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "cat.png").symlink_to(tmp_path / "secret.png")
    assert reasons(FolderSource(path=inside)) == ["image-outside"]
    assert reasons(FolderSource(path=inside, allow_outside=True)) == [None]


def test_links_in_a_circle_are_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to(tmp_path / "dog.png")
    (tmp_path / "dog.png").symlink_to(tmp_path / "cat.png")
    assert reasons(FolderSource(path=tmp_path, allow_outside=True)) == ["image-missing"] * 2


def test_a_pipe_called_like_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.png")
    assert reasons(FolderSource(path=tmp_path)) == ["image-missing"]


def test_an_image_whose_caption_files_would_have_too_long_a_name_is_read(tmp_path: Path) -> None:
    (tmp_path / ("x" * 251 + ".png")).write_bytes(PIXEL)
    assert reasons(FolderSource(path=tmp_path)) == [None]


def test_a_table_gives_captions_by_column_and_keeps_the_other_columns(tmp_path: Path) -> None:
    path = tsv(tmp_path, "image\ten\tzh\tartist\r\ncat.png\ta cat\t一只猫，在睡觉\t李\r\n")
    (candidate,) = read(TsvSource(path=path))
    assert candidate == Candidate(
        Pair("2", PIXEL, zh=("一只猫，在睡觉",), en=("a cat",), meta={"image": "cat.png", "artist": "李"})
    )


def test_columns_may_have_any_name_and_a_caption_column_either_language(tmp_path: Path) -> None:
    path = tsv(tmp_path, "\ufefffile\ttitle\tzh\ncat.png\t黑猫\t猫\ncat.png\tblack cat\t猫\n")
    first, second = read(TsvSource(path=path, image="file", caption="title"))
    assert (first.pair.zh, first.pair.en) == (("黑猫",), ())
    assert (second.pair.zh, second.pair.en) == ((), ("black cat",))


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("cat.png\t一只猫", None),
        ("./cat.png\t一只猫", None),
        ("../cat.png\t一只猫", "image-outside"),
        ("/etc/hostname\ta cat", "image-outside"),
        ("dog.png\t狗", "image-missing"),
        ("\ta cat", "image-missing"),
        ("cat.png\0.jpg\t一只猫", "image-missing"),
        ("x" * 5000 + ".png\ta cat", "image-missing"),
        ("https://example.org/cat.png\ta cat", "image-missing"),
        ("cat.png", "row-malformed"),
        ("cat.png\ta\tcat", "row-malformed"),
        ("cat.png\t" + "猫" * 400_000, "row-malformed"),
    ],
)
def test_a_row_that_cannot_be_read_is_a_fault(tmp_path: Path, cells: str, reason: str | None) -> None:
    assert reasons(TsvSource(path=tsv(tmp_path, f"image\tcaption\n{cells}\n\ncat.png\ta cat"))) == [reason, None]


def test_a_row_not_in_utf8_is_a_fault_and_the_next_is_read(tmp_path: Path) -> None:
    path = tsv(tmp_path, b"image\tzh\ncat.png\t" + "狗".encode("gb18030") + b"\ncat.png\t" + "猫".encode() + b"\n")
    assert reasons(TsvSource(path=path)) == ["row-malformed", None]


def test_a_line_number_counts_blank_and_overlong_lines(tmp_path: Path) -> None:
    path = tsv(tmp_path, b"image\ten\n\n" + b"x" * 3_000_000 + b"\ncat.png\ta cat\n")
    assert [(candidate.pair.key, candidate.fault is None) for candidate in read(TsvSource(path=path))] == [
        ("3", False),
        ("4", True),
    ]


@pytest.mark.parametrize(
    ("header", "named", "sentence"),
    [
        ("file\tzh", {}, r"pairs.tsv:1: no column image \(found: file, zh\)"),
        ("image\ttitle", {}, r"pairs.tsv:1: no column zh, en or caption \(found: image, title\)"),
        ("image\ten", {"zh": "标题"}, r"pairs.tsv:1: no column 标题 \(found: image, en\)"),
    ],
)
def test_a_missing_column_is_named_with_those_found(
    tmp_path: Path, header: str, named: dict[str, str], sentence: str
) -> None:
    with pytest.raises(DcclipError, match=sentence):
        TsvSource(path=tsv(tmp_path, f"{header}\n"), **named).open()


def test_a_table_in_gb18030_is_told_how_to_become_utf8(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="not in UTF-8") as caught:
        TsvSource(path=tsv(tmp_path, "image\t标题\n".encode("gb18030"))).open()
    assert caught.value.hint.startswith("convert it with: iconv -f GB18030 -t UTF-8")


def test_pairs_come_as_they_were_written(tmp_path: Path) -> None:
    pairs = [Pair("a", PIXEL, zh=("猫", "小猫"), en=("cat",), meta={"licence": "MIT"}), Pair("b", b"", en=("dog",))]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    assert read(PairsSource(path=tmp_path / "pairs.parquet")) == [Candidate(pair) for pair in pairs]


@pytest.mark.parametrize("kind", [FolderSource, TsvSource, PairsSource])
def test_a_source_that_is_not_there_is_an_error(tmp_path: Path, kind: type[SourceOptions]) -> None:
    with pytest.raises(DcclipError, match="absent"):
        kind(path=tmp_path / "absent").open()


def test_the_kind_chooses_the_source() -> None:
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    assert adapter.validate_json(json.dumps({"kind": "folder", "path": "/a"})) == FolderSource(path=Path("/a"))
    with pytest.raises(ValidationError, match="'folder', 'tsv', 'pairs'"):
        adapter.validate_python({"kind": "csv", "path": "/a"})


def test_a_picture_file_is_read_whole(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    (tmp_path / "red.png").write_bytes(picture())
    assert read(FolderSource(path=tmp_path))[0].pair.image == picture()
