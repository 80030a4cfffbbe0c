"""What all sources share, and what the folder source reads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dcclip_cli.curation.candidate import Candidate
from dcclip_cli.curation.sources import Source, SourceOptions
from dcclip_cli.curation.sources.base import by_language, files_of, place_in
from dcclip_cli.curation.sources.base64 import Base64Source
from dcclip_cli.curation.sources.captions import CaptionsSource
from dcclip_cli.curation.sources.folder import FolderSource
from dcclip_cli.curation.sources.hub import HubSource
from dcclip_cli.curation.sources.pairs import PairsSource
from dcclip_cli.curation.sources.table import TableSource
from dcclip_cli.curation.sources.tars import TarsSource
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.files.reading import plain
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

PIXEL = b"not an image: sources don't look inside"


def read(source: SourceOptions, size: int = 1000) -> list[Candidate]:
    # As the engine does, the parts are written down and read back.
    parts = [json.loads(json.dumps(dict(part.part))) for part in source.slices(size)]
    return [candidate for part in parts for candidate in source.read(part)]


def reasons(source: SourceOptions) -> list[str | None]:
    return [candidate.fault.reason if candidate.fault else None for candidate in read(source)]


# ---- all of them


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"kind": "folder", "path": "/a"}, FolderSource),
        ({"kind": "table", "path": "/a.csv", "url": "URL", "caption": ["TEXT", "title"]}, TableSource),
        ({"kind": "tars", "path": "/a/*.tar"}, TarsSource),
        ({"kind": "pairs", "path": "/a.parquet"}, PairsSource),
        ({"kind": "hub", "path": "org/name", "split": "validation"}, HubSource),
        ({"kind": "base64", "path": "/muge"}, Base64Source),
        ({"kind": "captions", "images": "/images", "zh": "/zh.txt", "en": ["/a.json", "/b.json"]}, CaptionsSource),
    ],
)
def test_the_kind_chooses_the_source(fields: dict[str, Any], kind: type[SourceOptions]) -> None:
    adapter: TypeAdapter[SourceOptions] = TypeAdapter(Source)
    source = adapter.validate_json(json.dumps(fields))
    assert type(source) is kind
    assert adapter.validate_python(source.model_dump(mode="json")) == source  # as the manifest keeps it


def test_an_unknown_kind_is_answered_with_those_there_are() -> None:
    adapter: TypeAdapter[SourceOptions] = TypeAdapter(Source)
    with pytest.raises(ValidationError, match="'folder', 'table', 'tars', 'pairs', 'hub', 'base64', 'captions'"):
        adapter.validate_python({"kind": "csv", "path": "/a"})


@pytest.mark.parametrize(
    "source",
    [
        FolderSource(path=Path("/absent")),
        TableSource(path=Path("/absent.csv")),
        TableSource(path=Path("/absent/*.csv")),
        TarsSource(path=Path("/absent")),
        PairsSource(path=Path("/absent.parquet")),
        HubSource(path="/absent"),
        Base64Source(path=Path("/absent")),
        CaptionsSource(images=Path("/absent"), zh=Path("/absent.txt")),
    ],
    ids=lambda source: source.kind,
)
def test_a_source_that_is_not_there_is_an_error(source: SourceOptions) -> None:
    with pytest.raises(DcclipError, match="/absent"):
        source.slices(10)


def test_the_label_is_the_name_or_the_last_part_of_the_path() -> None:
    assert FolderSource(path=Path("/data/猫"), name="cats").label == "cats"
    assert FolderSource(path=Path("/data/猫/")).label == "猫"
    assert HubSource(path="org/name").label == "name"
    assert CaptionsSource(images=Path("/coco/images"), zh=Path("/coco-cn.txt")).label == "images"
    assert CaptionsSource(en=Path("/coco/captions.json")).label == "captions.json"


@pytest.mark.parametrize("kind", [TableSource, TarsSource, PairsSource, Base64Source])
def test_a_folder_without_the_right_files_is_an_error(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "notes.md").write_text("笔记", "utf-8")
    with pytest.raises(DcclipError, match="holds no file that ends in"):
        kind(path=tmp_path).slices(10)


def test_files_come_from_a_file_a_folder_or_a_pattern_and_keys_say_from_which(tmp_path: Path) -> None:
    for name in ("b.tar", "a.TAR", "a.parquet", "deep/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files_of(tmp_path / "b.tar", (".tar",)) == [tmp_path / "b.tar"]
    assert files_of(tmp_path, (".tar",)) == [tmp_path / "a.TAR", tmp_path / "b.tar"]
    assert files_of(tmp_path / "**" / "*.tar", (".tar",)) == [tmp_path / "b.tar", tmp_path / "deep" / "c.tar"]
    assert place_in(tmp_path / "b.tar", tmp_path / "b.tar") == ""
    assert place_in(tmp_path, tmp_path / "b.tar") == "b.tar:"
    assert place_in(tmp_path / "**" / "*.tar", tmp_path / "deep" / "c.tar") == "deep/c.tar:"


def test_captions_of_unknown_language_go_by_their_script_and_blank_ones_are_left_out() -> None:
    captions = [
        ("caption", "一只猫，在睡觉。"),
        ("caption", "a cat"),
        ("zh", "cat"),
        ("en", " \n"),
        ("caption", "ねこ"),
    ]
    assert by_language(captions) == {"zh": ("一只猫，在睡觉。", "cat"), "en": ("a cat", "ねこ")}  # type: ignore[arg-type]


def test_metadata_is_what_json_can_hold() -> None:
    assert plain({"a": float("nan"), 1: b"\0", "b": [float("inf"), (1, "猫")]}) == {
        "a": None,
        "1": None,
        "b": [None, [1, "猫"]],
    }
    deep: Any = "bottom"
    for _ in range(5000):
        deep = [deep]
    assert "bottom" not in json.dumps(plain(deep))


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(_ANY)
def test_any_value_becomes_strict_json(value: Any) -> None:
    json.dumps(plain(value), allow_nan=False)


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
        assert [candidate.pair.key for candidate in read(source, size)] == sorted(
            names, key=lambda name: name.split("/")
        )


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


def test_a_caption_file_of_50_mb_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(PIXEL)
    with (tmp_path / "cat.zh.txt").open("wb") as stream:
        stream.truncate(50_000_000)
    assert reasons(FolderSource(path=tmp_path)) == ["captions-bytes"]


def test_an_image_of_more_than_64_mb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "cat.jpg").open("wb") as stream:
        stream.truncate(64_000_001)
    assert reasons(FolderSource(path=tmp_path)) == ["image-bytes"]


def test_links_out_of_the_folder_are_followed_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PIXEL)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "cat.png").symlink_to(tmp_path / "outside" / "secret.png")
    (inside / "deep").symlink_to(tmp_path / "outside")
    assert reasons(FolderSource(path=inside)) == ["image-outside"]
    found = read(FolderSource(path=inside, allow_outside=True))
    assert [(candidate.pair.key, candidate.pair.image) for candidate in found] == [
        ("cat.png", PIXEL),
        ("deep/secret.png", PIXEL),
    ]


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


def test_pairs_come_as_they_were_written_with_their_keys(tmp_path: Path) -> None:
    pairs = [Pair("a", PIXEL, zh=("猫", "小猫"), en=("cat",), meta={"licence": "MIT"}), Pair("b", b"", en=("dog",))]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    for size in (1, 2, 10):
        assert read(PairsSource(path=tmp_path / "pairs.parquet"), size) == [Candidate(pair) for pair in pairs]
    assert [candidate.pair.key for candidate in read(PairsSource(path=tmp_path))] == [
        "pairs.parquet:a",
        "pairs.parquet:b",
    ]


def test_pairs_without_images_or_with_other_than_json_are_faults(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "key": ["a", "b", "c", "d"],
        "image": [None, b"x", b"x", b"x"],
        "zh": [["猫"], ["狗"], ["鱼"], None],
        "en": ["cat", "dog" * 400_000, "fish", "bird"],  # a text where a list is usual
        "meta": ["{}", "{}", "[", None],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    found = read(PairsSource(path=tmp_path / "pairs.parquet"))
    assert [candidate.fault.reason if candidate.fault else None for candidate in found] == [
        "image-missing",
        "captions-bytes",
        "record-unreadable",
        None,
    ]
    assert (found[0].pair.zh, found[3].pair.en) == (("猫",), ("bird",))


def test_a_parquet_file_of_another_form_is_no_pairs(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"URL": ["http://x"], "TEXT": ["猫"]}), tmp_path / "laion.parquet")
    with pytest.raises(DcclipError, match=r"has no column key or image \(found: URL, TEXT\)"):
        PairsSource(path=tmp_path / "laion.parquet").slices(10)
