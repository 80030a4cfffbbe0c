"""Tables and plots of docs/results and of the READMEs are what docs/results/render.py makes of the CSV files."""

import re
from datetime import date
from pathlib import Path

import pytest

from docs.results import plots, render
from docs.results.records import FOLDER, LANGUAGES, exact, mean, records

NAMES = sorted(file.stem for file in FOLDER.glob("*.csv"))
REMEDY = "run: python -m docs.results.render"


@pytest.mark.parametrize("page", render.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_csv_files(page: Path) -> None:
    assert page.read_text("utf-8") == render.page(page.read_text("utf-8")), REMEDY


def test_every_table_is_on_a_page_and_every_plot_is_shown() -> None:
    text = "".join(page.read_text("utf-8") for page in render.PAGES)
    assert {name for name in render.tables() if f"<!-- table: {name} -->" not in text} == set()
    assert {name for name in plots.PLOTS if f"images/{name})" not in text} == set()


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_plot_is_drawn_from_the_numbers_of_today_and_is_dark_in_the_dark(name: str) -> None:
    svg = (plots.IMAGES_FOLDER / name).read_text("utf-8")
    assert f"<!-- {plots.digest()} -->" in svg, REMEDY
    assert "prefers-color-scheme: dark" in svg and "url(" not in svg.replace("url(#", "") and "<dc:date>" not in svg


def test_a_plot_has_labels_in_both_languages() -> None:
    assert ">teacher<" in plots.headline(plots.ENGLISH) and ">教师<" in plots.headline(plots.CHINESE)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_names_its_machine_its_day_and_its_command(name: str) -> None:
    for one in records(name):
        assert one["machine"].split()[0].rstrip(",") in {"fast", "plain", "any"} and date.fromisoformat(one["date"])
        assert one["language"] in {"", *LANGUAGES} and one["value"] and None not in one.values()
        scripts = re.findall(r"\S+\.(?:py|yaml|parquet)", one["command"])
        known = (script.startswith("benchmarks/") or (FOLDER.parents[1] / script).exists() for script in scripts)
        assert scripts and all(known), one["command"]  # a benchmark may be in an older commit: docs/results/index.md


def test_rounding_is_undone_where_the_number_of_images_is_known() -> None:
    assert exact({"value": "12.4", "data": "unseen"}) == 100 * 26 / 210
    assert exact({"value": "65.1", "data": "known classes, more drawings"}) == 65.1
    assert round(mean("unseen", "en", "student"), 3) == round(100 * (31 + 29 + 32 + 29 + 31 + 27) / 6 / 210, 3)
    assert round(mean("twemoji", "zh", "student", "fast (Intel Xeon)"), 1) == 70.1  # of 70.4, 70.2 and 69.8
