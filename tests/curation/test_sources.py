"""What all sources share."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dcclip_cli.curation import sources
from dcclip_cli.curation.sources import Source, SourceOptions
from dcclip_cli.curation.sources.base import by_language, files_of, key_prefix
from dcclip_cli.curation.sources.captions import Base64Source, CaptionsSource
from dcclip_cli.curation.sources.sidecar import FolderSource, TarsSource
from dcclip_cli.curation.sources.tables import HubSource, TableSource
from dcclip_cli.data.reading import plain
from dcclip_cli.errors import DcclipError
from tests.curation.reading import read
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs/how-to/extend.md"  # its example of a new source works as shown


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"kind": "folder", "path": "/a"}, FolderSource),
        ({"kind": "table", "path": "/a.csv", "url": "URL", "caption": ["TEXT", "title"]}, TableSource),
        ({"kind": "tars", "path": "/a/*.tar"}, TarsSource),
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
    kinds = "'folder', 'class_folders', 'table', 'tars', 'hub', 'base64', 'captions'"
    with pytest.raises(ValidationError, match=kinds):
        adapter.validate_python({"kind": "csv", "path": "/a"})


@pytest.mark.parametrize(
    "source",
    [
        FolderSource(path=Path("/absent")),
        TableSource(path=Path("/absent.csv")),
        TableSource(path=Path("/absent/*.csv")),
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


def test_the_label_is_the_name_or_the_last_part_of_the_path() -> None:
    assert FolderSource(path=Path("/data/猫"), name="cats").label == "cats"
    assert FolderSource(path=Path("/data/猫/")).label == "猫"
    assert HubSource(path="org/name").label == "name"
    assert CaptionsSource(images=Path("/coco/images"), zh=Path("/coco-cn.txt")).label == "images"
    assert CaptionsSource(en=Path("/coco/captions.json")).label == "captions.json"


@pytest.mark.parametrize("kind", [TableSource, TarsSource, Base64Source])
def test_a_folder_without_the_right_files_is_an_error(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "notes.md").write_text("笔记", "utf-8")
    with pytest.raises(DcclipError, match="contains no file that ends in"):
        kind(path=tmp_path).slices(10)


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


def test_captions_of_unknown_language_go_by_their_script_and_blank_ones_are_left_out() -> None:
    captions = [("caption", "一只猫在睡觉"), ("caption", "a cat"), ("zh", "cat"), ("en", " \n"), ("caption", "ねこ")]
    assert by_language(captions) == {"zh": ("一只猫在睡觉", "cat"), "en": ("a cat", "ねこ")}  # type: ignore[arg-type]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@settings(max_examples=30)
@given(_ANY)
def test_any_value_becomes_strict_json(value: Any) -> None:
    json.dumps(plain(value), allow_nan=False)


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
    assert [one.fault and one.fault.reason for one in (cat, dog, fox)] == [None, None, "image-missing"]
