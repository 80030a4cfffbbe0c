"""Class names for every data set, made up, so that layouts can be tried in small."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dcclip_cli.data import prompts
from dcclip_cli.eval import datasets, registry
from dcclip_cli.eval.registry import SETS, KnownSet


def clear() -> None:
    """Forget the class names and data sets that were read."""
    prompts.read.cache_clear()
    datasets._load.cache_clear()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, KnownSet]]:
    """Every data set of classes, of 120 at most with an image each, and names in both languages: `alpha_7`, `七7`."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    smaller = {entry.name: replace(entry, classes=min(entry.classes, 120), texts=None) for entry in SETS.values()}
    smaller = {name: replace(entry, size=entry.classes or None) for name, entry in smaller.items()}
    for entry in smaller.values():
        if entry.classes:
            keys = [f"alpha_{number}" for number in range(entry.classes)]
            content = {
                "folders": ["negative", "positive"] if entry.name == "rendered_sst2" else keys,
                "en": {
                    "names": [f"Thing {number}" for number in range(entry.classes)],
                    "alternates": {"Thing 0": ["Zeroth thing"]},
                    "templates": ["a photo of a {}.", "{}"],
                },
                "zh": {"names": [f"东西{number}" for number in range(entry.classes)], "templates": ["一张{}的照片。"]},
            }
            (folder / f"{registry.prompts_of(entry)}.json").write_text(json.dumps(content), "utf-8")
    (folder / "compact.json").write_text(json.dumps({"en": ["a {}"], "zh": ["一个{}"]}), "utf-8")
    monkeypatch.setattr(prompts, "FOLDER", folder)
    monkeypatch.setattr(registry, "SETS", smaller)
    clear()
    yield smaller
    clear()
