"""The site of the documentation builds strictly in both languages, and every link in it leads somewhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import dcclip_cli as dcclip

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """The anchors of a page, the addresses that its links lead to, and those that a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = set[str]()
        self.links = set[str]()
        self.fetched = set[str]()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links |= {values[name] for name in ("href", "src") if name in values}
        if tag in ("img", "script") or (tag == "link" and values.get("rel") in ("stylesheet", "icon", "preconnect")):
            self.fetched |= {values[name] for name in ("href", "src") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True)
    assert built.returncode == 0, built.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    """Each link within the site whose file or anchor does not exist."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                yield f"{path}: {link}"


@pytest.mark.slow
def test_links_lead_to_anchors_in_both_languages_to_all_of_python_and_fetch_from_no_other_host(
    pages: dict[Path, Page], site: Path
) -> None:
    assert {site / "index.html", site / "zh/index.html", site / "zh/benchmark/index.html"} <= pages.keys()
    assert list(broken(pages)) == []
    exported = {f"dcclip_cli.{name}" for name in dcclip.__all__ if not name.startswith("_")}
    assert exported <= pages[site / "reference/python-api/index.html"].anchors
    assert not any(urlsplit(link).netloc for page in pages.values() for link in page.fetched)


def test_every_title_of_the_navigation_has_a_chinese_one() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").replace("!!python/object/apply:pymdownx.slugs.slugify", "")
    config = yaml.safe_load(text)
    [languages] = [plugin["i18n"]["languages"] for plugin in config["plugins"] if "i18n" in plugin]
    assert set(titles(config["nav"])) == languages[1]["nav_translations"].keys()


def titles(items: Any) -> Iterator[str]:
    """The titles of a part of the navigation and of all below it; pages without one have that of their heading."""
    for item in items:
        for title, inner in item.items() if isinstance(item, dict) else ():
            yield title
            if isinstance(inner, list):
                yield from titles(inner)
