"""Data sets of Hugging Face `datasets`, as `save_to_disk` leaves them and as `load_dataset` finds them."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from dcclip_cli.curation.candidate import Candidate
from dcclip_cli.curation.sources.base import SourceOptions
from dcclip_cli.curation.sources.hub import HubSource
from dcclip_cli.errors import DcclipError


def read(source: SourceOptions, size: int = 1000) -> list[Candidate]:
    parts = [json.loads(json.dumps(dict(part.part))) for part in source.slices(size)]
    return [candidate for part in parts for candidate in source.read(part)]


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "PNG")
    return stream.getvalue()


def pictures(colours: list[str]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "captions_zh": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["猫", "狗"]),
        }
    )
    content: dict[str, Any] = {
        "image": [{"bytes": png(colour), "path": None} for colour in colours],
        "text": [f"a {colour} picture" for colour in colours],
        "captions_zh": [["一张图", f"{colour}色"] for colour in colours],
        "label": [0] * len(colours),
    }
    return datasets.Dataset.from_dict(content, features=features)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_saved_data_set_gives_its_images_as_they_are(tmp_path: Path, size: int) -> None:
    pictures(["red", "green", "blue"]).save_to_disk(tmp_path / "saved")
    found = read(HubSource(path=str(tmp_path / "saved"), zh="captions_zh", en="text"), size)
    assert [one.pair.key for one in found] == ["0", "1", "2"]
    assert [one.pair.image for one in found] == [png("red"), png("green"), png("blue")]
    assert (found[1].pair.zh, found[1].pair.en) == (("一张图", "green色"), ("a green picture",))
    assert found[1].pair.meta == {"label": 0}


def test_a_saved_dictionary_has_splits(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": pictures(["red"]), "test": pictures(["green", "blue"])})
    saved.save_to_disk(tmp_path / "saved")
    assert len(read(HubSource(path=str(tmp_path / "saved"), split="test", caption="text"))) == 2
    with pytest.raises(DcclipError, match=r"no split validation \(found: train, test\)"):
        HubSource(path=str(tmp_path / "saved"), split="validation", caption="text").slices(10)


def test_a_column_that_is_missing_is_named_with_those_found(tmp_path: Path) -> None:
    pictures(["red"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(DcclipError, match=r"no column title \(found: image, text, captions_zh, label\)"):
        HubSource(path=str(tmp_path / "saved"), caption="title").slices(10)


def test_images_that_a_row_only_names_are_read_inside_the_data_sets_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "saved"
    paths = [str(folder / "inside.png"), str(tmp_path / "secret.png"), "../secret.png"]
    images = [{"bytes": None, "path": path} for path in paths]
    datasets.Dataset.from_dict({"image": images, "zh": ["猫"] * 3}).save_to_disk(folder)
    (folder / "inside.png").write_bytes(b"inside")
    found = read(HubSource(path=str(folder)))
    assert [(one.pair.image, one.fault and one.fault.reason) for one in found] == [
        (b"inside", None),
        (b"", "image-outside"),
        (b"", "image-outside"),
    ]


def test_urls_in_a_data_set_are_left_to_be_fetched(tmp_path: Path) -> None:
    rows = {"URL": ["http://a/", None], "TEXT": ["猫", "狗"], "LANGUAGE": ["zh", "zh"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    found = read(HubSource(path=str(tmp_path / "saved"), url="URL", caption="TEXT", where={"LANGUAGE": "zh"}))
    assert [(one.url, one.fault and one.fault.reason) for one in found] == [
        ("http://a/", None),
        (None, "image-missing"),
    ]


def test_a_folder_of_parquet_files_as_it_lies_on_the_hub_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repository" / "data").mkdir(parents=True)
    pictures(["red", "green"]).to_parquet(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet")
    found = read(HubSource(path=str(tmp_path / "repository"), caption="text"))
    assert [one.pair.image for one in found] == [png("red"), png("green")]


@pytest.mark.parametrize(
    "fields", [{"path": "nobody/nothing"}, {"path": "./absent"}, {"path": "nobody/x", "config": "zh"}]
)
def test_a_data_set_that_cannot_be_had_is_an_error_with_a_way_out(fields: dict[str, str]) -> None:
    with pytest.raises(DcclipError, match=fields["path"]):
        HubSource(**fields).slices(10)


def test_a_damaged_folder_is_an_error(tmp_path: Path) -> None:
    pictures(["red"]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"nonsense")
    with pytest.raises(DcclipError, match="cannot be loaded"):
        HubSource(path=str(tmp_path / "saved"), caption="text").slices(10)
