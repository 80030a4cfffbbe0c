"""The examples of a new data set and a new layout in docs/how-to/extend.md work as shown."""

import json
from pathlib import Path

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.eval import datasets, loaders, registry
from dcclip_cli.eval.dataset import Classes, DataSet
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.loaders import files
from tests.eval import layouts
from tests.eval.conftest import clear
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs/how-to/extend.md"


@pytest.fixture
def beans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data set of the page, added to the registry; its class folders."""
    [names] = [block for block in blocks(PAGE, "text") if '"folders"' in block]
    [entry] = [block for block in blocks(PAGE, "python") if block.startswith("OTHERS")]
    layouts.write(tmp_path / "prompts/beans.json", names)
    layouts.write(tmp_path / "prompts/compact.json", (prompts.FOLDER / "compact.json").read_bytes())
    scope = dict(vars(registry))
    exec(compile(entry, PAGE, "exec"), scope)
    monkeypatch.setattr(prompts, "FOLDER", tmp_path / "prompts")
    monkeypatch.setattr(registry, "SETS", {known_set.name: known_set for known_set in scope["OTHERS"]})
    clear()
    folders: list[str] = json.loads(names)["folders"]
    return folders


def labels(dataset: DataSet, language: str) -> list[int]:
    truth = dataset.truth[language]  # type: ignore[index]
    assert isinstance(truth, Classes)
    assert [layouts.label_of(dataset.images.load(index)) for index in range(3)] == truth.labels.tolist()[:3]
    return truth.labels.tolist()


def test_a_file_of_class_names_and_one_entry_make_a_data_set(tmp_path: Path, beans: list[str]) -> None:
    for number in range(128):
        layouts.write(tmp_path / f"beans/test/{beans[number % 3]}/{number}.png", layouts.image(number % 3))
    assert sorted(labels(open_dataset("beans-cn", data_root=tmp_path), "zh")) == sorted(n % 3 for n in range(128))
    assert open_dataset("beans", data_root=tmp_path).truth["en"].names[2] == "healthy bean leaf"  # type: ignore[union-attr]


def test_a_loader_class_adds_a_layout(tmp_path: Path, beans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [block for block in blocks(PAGE, "python") if "(Loader)" in block]
    scope = dict(vars(files))
    exec(compile("from __future__ import annotations\n" + code, PAGE, "exec"), scope)
    monkeypatch.setattr(datasets, "LOADERS", (*loaders.LOADERS, scope["LabelsCsv"]))
    for number in range(128):
        layouts.write(tmp_path / f"beans/test/{number}.png", layouts.image(number % 3))
    lines = [f"{number}.png,{beans[number % 3]}\n" for number in range(128)]
    layouts.write(tmp_path / "beans/test/labels.csv", "".join(lines))
    assert labels(open_dataset("beans-cn", data_root=tmp_path), "zh") == [number % 3 for number in range(128)]
    clear()
    layouts.write(tmp_path / "beans/test/labels.csv", "0.png,weed\n")
    with pytest.raises(DcclipError, match=r"labels\.csv: unknown class weed"):
        open_dataset("beans", data_root=tmp_path)
