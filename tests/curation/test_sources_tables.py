"""Sources of rows: tables in every format, with images as paths, bytes and URLs; pairs; `datasets`."""

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.sources.tables import HubSource, TableSource
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from tests.curation.reading import PIXEL, read, reasons
from tests.images import encode


def table(folder: Path, text: str | bytes, name: str = "pairs.tsv") -> Path:
    (folder / "cat.png").write_bytes(PIXEL)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_table_gives_captions_by_column_and_keeps_the_other_columns(tmp_path: Path) -> None:
    path = table(tmp_path, "image\ten\tzh\tartist\r\ncat.png\ta cat\t一只猫，在睡觉\t李\r\n")
    (candidate,) = read(TableSource(path=path))
    meta = {"image": "cat.png", "artist": "李"}
    assert candidate == Candidate(Pair("2", PIXEL, zh=("一只猫，在睡觉",), en=("a cat",), meta=meta))


def test_the_first_of_bytes_and_url_that_a_row_has_is_taken(tmp_path: Path) -> None:
    rows = "image,url,en\ncat.png,,a\n, http://x/ ,c\ncat.png,http://x/,d\n,,e"
    samples = read(TableSource(path=table(tmp_path, rows, "a.csv")))
    assert [candidate.pair.image for candidate in samples] == [PIXEL, b"", PIXEL, b""]
    assert [candidate.url for candidate in samples] == [None, "http://x/", None, None]
    assert samples[2].pair.meta == {"image": "cat.png", "url": "http://x/"}
    assert samples[3].fault and samples[3].fault.reason == "image-missing"


@pytest.mark.parametrize(
    ("header", "named", "sentence"),
    [
        ("file\tzh", {}, r"pairs.tsv:1 has no column image or url \(found: file, zh\)"),
        ("image\ttitle", {}, r"pairs.tsv:1 has no column zh or en or caption \(found: image, title\)"),
        ("image\ten", {"zh": ("标题", "en")}, r"pairs.tsv:1 has no column 标题 \(found: image, en\)"),
        ("image\ten", {"where": {"LANGUAGE": "zh"}}, r"pairs.tsv:1 has no column LANGUAGE"),
        ("image\tzh\tzh", {}, r"pairs.tsv:1 has more than one column zh"),
    ],
)
def test_a_missing_column_is_named_with_those_found(
    tmp_path: Path, header: str, named: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DcclipError, match=sentence):
        TableSource(path=table(tmp_path, f"{header}\n"), **named).slices(10)


@pytest.mark.parametrize("named", [{}, {"image": "file", "zh": ("标题", "ZH"), "en": ("title", "EN")}])
def test_a_column_of_json_lines_may_begin_on_any_line(tmp_path: Path, named: dict[str, Any]) -> None:
    image, zh, en = ("file", "标题", "title") if named else ("image", "zh", "en")
    first = [{image: "cat.png", en: "a cat", "zhe": 1}] * 120
    rows = [
        *first,
        {image: "cat.png", zh: "一只猫", en: "a cat"},
        {image: "cat.png", "ZH": "狗"},
        {"EN": "x", image: "cat.png"},
    ]
    path = table(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), "two.jsonl")
    source = TableSource(path=path, **named)
    pairs = [candidate.pair for part in source.slices(60) for candidate in source.read(part.part)]
    assert [(pair.zh, pair.en) for pair in pairs[119:]] == [
        ((), ("a cat",)),
        (("一只猫",), ("a cat",)),
        (("狗",), ()),
        ((), ("x",)),
    ]
    assert {pair.image for pair in pairs} == {PIXEL} and pairs[0].meta == {image: "cat.png", "zhe": 1}
    for missing in ({"zh": "名称"}, {"where": {"LANGUAGE": "zh"}}):
        with pytest.raises(DcclipError, match=r"two.jsonl:1 has no column (名称|LANGUAGE) "):
            TableSource(path=path, **named | missing).slices(10)


WHOLE = {
    "tsv": ("image\tcaption\n", "cat.png\ta cat"),
    "csv": ("image,caption\n", "cat.png,a cat"),
    "jsonl": ("", '{"image": "cat.png", "url": null, "en": "a cat"}'),
}
ROWS = [  # format, reason, rows
    ("tsv", None, ["cat.png\t一只猫", "./cat.png\t一只猫"]),
    ("tsv", "image-outside", ["../cat.png\t一只猫", "/etc/hostname\ta cat"]),
    ("tsv", "image-missing", ["dog.png\t狗", "\ta cat", "cat.png\0.jpg\t一只猫", "x" * 5000 + ".png\ta cat"]),
    ("tsv", "image-missing", ["https://example.org/cat.png\ta cat"]),
    ("tsv", "row-malformed", ["cat.png", "cat.png\ta\tcat", "cat.png\t" + "猫" * 400_000, "cat.png\t\udc80"]),
    ("csv", "row-malformed", ['cat.png,"never closed', 'cat.png,"a"b', "cat.png,a\rb", "cat.png,a,b"]),
    ("jsonl", "row-malformed", ['{"image": "cat.png", "zh": "\udc80"}']),
    ("jsonl", "row-not-json", ["{", '{"image": "cat.png", "zh": "猫",}', "[1]", '"text"', "[" * 100_000]),
    ("jsonl", "captions-unreadable", ['{"image": "cat.png", "en": 3}', '{"image": "cat.png", "en": {"a": "b"}}']),
    ("jsonl", "image-missing", ['{"image": 3, "en": "a cat"}', '{"en": "a cat"}']),
]


@pytest.mark.parametrize(("form", "reason", "row"), [(*case, row) for *case, rows in ROWS for row in rows])
def test_a_row_that_cannot_be_read_is_a_fault_and_the_next_is_read(
    tmp_path: Path, form: str, reason: str | None, row: str
) -> None:
    header, good = WHOLE[form]
    content = f"{header}{row}\n\n{good}".encode("utf-8", "surrogateescape")
    assert reasons(TableSource(path=table(tmp_path, content, f"a.{form}"))) == [reason, None]


@pytest.mark.parametrize(("form", "header"), [("csv", "image,zh\n"), ("jsonl", "")])
def test_a_table_in_gb18030_is_one_error_and_a_row_of_it_one_fault(tmp_path: Path, form: str, header: str) -> None:
    row = "{}.jpg,一只猫在第{}把椅子上\n" if form == "csv" else '{{"image": "{}.jpg", "zh": "第{}只猫"}}\n'
    first, *others = (row.format(number, number) for number in range(300))
    path = table(tmp_path, "".join([header, first, *others]).encode("gb18030"), f"a.{form}")
    with pytest.raises(DcclipError, match="is encoded in GB18030 instead of UTF-8"):
        list(TableSource(path=path).slices(100))
    path = table(tmp_path, header.encode() + first.encode("gb18030") + "".join(others).encode(), f"b.{form}")
    assert reasons(TableSource(path=path)) == ["row-malformed", *["image-missing"] * 299]


def test_paths_may_start_from_another_folder_and_never_leave_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dog.png").write_bytes(b"dog")
    path = table(tmp_path, "image\tzh\ndog.png\t狗\n../cat.png\t猫\n")
    assert reasons(TableSource(path=path, images=tmp_path / "images")) == [None, "image-outside"]


def test_a_line_number_counts_blank_and_overlong_lines(tmp_path: Path) -> None:
    path = table(tmp_path, b"image\ten\n\n" + b"x" * 3_000_000 + b"\ncat.png\ta cat\n")
    for size in (1, 2, 10):
        samples = [(candidate.pair.key, candidate.fault is None) for candidate in read(TableSource(path=path), size)]
        assert samples == [("3", False), ("4", True)]


def laion(folder: Path, rows: int, group: int = 1000) -> Path:
    """As LAION-2B-multi ships."""
    content = {
        "URL": [f"https://example.org/{row}.jpg" for row in range(rows)],
        "TEXT": ["猫" if row % 2 else "a cat" for row in range(rows)],
        "WIDTH": pa.array(range(rows), pa.int32()),
        "similarity": [0.3] * rows,
        "LANGUAGE": ["zh" if row % 2 else "en" for row in range(rows)],
        "punsafe": [float("nan")] * rows,
        "seen": [datetime.datetime(2022, 8, 1)] * rows,
    }
    path = folder / "part-00000.snappy.parquet"
    pq.write_table(pa.table(content), path, row_group_size=group)
    return path


def test_laion_reads_as_it_ships(tmp_path: Path) -> None:
    second = read(TableSource(path=laion(tmp_path, 3), url="URL", caption="TEXT"))[1]
    assert second.url == "https://example.org/1.jpg"
    assert second.pair.zh == ("猫",)
    meta = {"url": "https://example.org/1.jpg", "WIDTH": 1, "similarity": 0.3, "LANGUAGE": "zh"}
    assert second.pair.meta == meta | {"punsafe": None, "seen": "2022-08-01 00:00:00"}


@pytest.mark.parametrize(("group", "size"), [(1000, 10), (7, 10), (10, 3), (3, 3), (50, 200), (64, 17)])
def test_slices_of_parquet_are_together_the_whole_however_its_rows_are_grouped(
    tmp_path: Path, group: int, size: int
) -> None:
    source = TableSource(path=laion(tmp_path, 100, group), url="URL", caption="TEXT")
    assert [candidate.pair.key for candidate in read(source, size)] == [str(number) for number in range(1, 101)]
    assert all(part.estimate <= 2 * size for part in source.slices(size))
    assert sum(part.estimate for part in source.slices(size)) == 100


def test_images_in_parquet_are_bytes_or_as_datasets_writes_them(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PIXEL)
    stored = [{"bytes": b"a", "path": "x.png"}, {"bytes": None, "path": "cat.png"}]
    for number, images in enumerate([[b"a", None], stored]):
        pq.write_table(pa.table({"image": images, "text": ["一只猫", "a cat"]}), tmp_path / f"{number}.parquet")
    samples = read(TableSource(path=tmp_path / "*.parquet", caption="text"))
    assert [candidate.pair.image for candidate in samples] == [b"a", b"", b"a", PIXEL]
    assert [row.pair.meta for row in samples] == [
        {},
        {"image": None},
        {},
        {"image": {"bytes": None, "path": "cat.png"}},
    ]


def test_a_damaged_parquet_file_gives_the_rows_before_and_behind_the_damage(tmp_path: Path) -> None:
    path = laion(tmp_path, 100, 25)
    offset = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    fault_names = reasons(TableSource(path=path, url="URL", caption="TEXT"))
    assert fault_names[:50] == [None] * 50
    assert fault_names[50:] == ["table-unreadable", *[None] * 25]


BAD_TEXTS = pa.array(["猫".encode(), b"\xff\xfe", "狗".encode()], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": pa.nulls(3_000_000), "zh": pa.nulls(3_000_000)}, ["table-unreadable"]),  # more rows than bytes
        ({"image": [b"a"] * 3, "zh": BAD_TEXTS}, [None, "row-malformed", None]),
        ({"image": [b"a"] * 2, "zh": ["猫" * 17_000_000, "猫"]}, ["captions-bytes", None]),
    ],
    ids=["rows", "UTF-8", "50 MB"],
)
def test_what_is_wrong_in_parquet_is_a_fault(tmp_path: Path, columns: Any, expected: list[str | None]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert reasons(TableSource(path=tmp_path / "a.parquet")) == expected


def test_pairs_come_as_they_were_written_with_their_keys(tmp_path: Path) -> None:
    pairs = [Pair("a", PIXEL, zh=("猫", "小猫"), en=("cat",), meta={"license": "MIT"}), Pair("b", b"a", en=("dog",))]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    for size in (1, 2, 10):
        assert read(TableSource(path=tmp_path / "pairs.parquet"), size) == [Candidate(pair) for pair in pairs]
    assert [row.pair.key for row in read(TableSource(path=tmp_path))] == ["pairs.parquet:a", "pairs.parquet:b"]


def test_pairs_without_images_or_with_other_than_json_are_faults(tmp_path: Path) -> None:
    rows = {
        "key": ["a", "b", "c", "d"],
        "image": [None, b"x", b"x", b"x"],
        "zh": [["猫"], ["狗"], ["鱼"], None],
        "en": ["cat", "dog" * 400_000, "fish", "bird"],  # a text where a list is usual
        "meta": ["{}", "{}", "[", None],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    source = TableSource(path=tmp_path / "pairs.parquet")
    assert reasons(source) == ["image-missing", "captions-bytes", "row-not-json", None]
    samples = read(source)
    assert (samples[0].pair.zh, samples[3].pair.en) == (("猫",), ("bird",))


PNGS = {colour: encode(Image.new("RGB", (4, 4), colour)) for colour in ("red", "green", "blue")}


def pictures(colours: list[str]) -> datasets.Dataset:
    text = datasets.Value("string")
    features = {"image": datasets.Image(), "text": text, "captions_zh": datasets.List(text)}
    features |= {"label": datasets.ClassLabel(names=["猫", "狗"])}
    content: dict[str, Any] = {
        "image": [{"bytes": PNGS[colour], "path": None} for colour in colours],
        "text": [f"a {colour} picture" for colour in colours],
        "captions_zh": [["一张图", f"{colour}色"] for colour in colours],
        "label": [0] * len(colours),
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_saved_data_set_gives_its_images_as_they_are(tmp_path: Path, size: int) -> None:
    pictures(["red", "green", "blue"]).save_to_disk(tmp_path / "saved")
    samples = read(HubSource(path=str(tmp_path / "saved"), zh="captions_zh", en="text"), size)
    assert [row.pair.key for row in samples] == ["0", "1", "2"]
    assert [candidate.pair.image for candidate in samples] == [PNGS["red"], PNGS["green"], PNGS["blue"]]
    assert (samples[1].pair.zh, samples[1].pair.en) == (("一张图", "green色"), ("a green picture",))
    assert samples[1].pair.meta == {"label": 0}


def test_a_saved_dictionary_has_splits(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": pictures(["red"]), "test": pictures(["green", "blue"])})
    saved.save_to_disk(tmp_path / "saved")
    assert len(read(HubSource(path=str(tmp_path / "saved"), split="test", caption="text"))) == 2
    with pytest.raises(DcclipError, match=r"no split validation \(found: train, test\)"):
        HubSource(path=str(tmp_path / "saved"), split="validation", caption="text").slices(10)


def test_images_that_a_row_only_names_are_read_inside_the_data_sets_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "saved"
    paths = [str(folder / "inside.png"), str(tmp_path / "secret.png"), "../secret.png"]
    images = [{"bytes": None, "path": path} for path in paths]
    datasets.Dataset.from_dict({"image": images, "zh": ["猫"] * 3}).save_to_disk(folder)
    (folder / "inside.png").write_bytes(b"inside")
    samples = read(HubSource(path=str(folder)))
    expected = [(b"inside", None), (b"", "image-outside"), (b"", "image-outside")]
    assert [(row.pair.image, row.fault and row.fault.reason) for row in samples] == expected


def test_a_folder_of_parquet_files_as_it_lies_on_the_hub_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository" / "data").mkdir(parents=True)
    pictures(["red", "green"]).to_parquet(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet")
    samples = read(HubSource(path=str(tmp_path / "repository"), caption="text"))
    assert [candidate.pair.image for candidate in samples] == [PNGS["red"], PNGS["green"]]
