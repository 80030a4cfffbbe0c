"""Takes the screenshots of dcclip's three pages in Chromium: the search page, the page in the
browser, and a report.

    pip install playwright; apt-get install chromium fonts-noto-cjk budgie-backgrounds
    python docs/images/screenshots.py [search] [web] [report]

search-page.png and search-page-zh.png: `dcclip serve` on the repository's six photographs and the
18 pictures of Debian's package budgie-backgrounds (CC0). web-page.png and web-page-zh.png: `dcclip
demo` with three photographs. report.png: the report of `dcclip eval` on two data sets of the quick
start.
"""

import contextlib
import functools
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import dcclip_cli as dcclip

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "recipes/starter/photos"
BACKGROUNDS = Path("/usr/share/backgrounds/budgie")
QUERY = "鸟"
LABELS = "猫, dog, 咖啡, rocket"
QUICKSTART = ROOT / "recipes/quickstart"
SUFFIXES = {"en-US": "", "zh-CN": "-zh"}  # of a file's name, by the browser's language


def save(page: Page, name: str, width: int, height: float) -> None:
    """Writes the top of a page as a PNG with a palette."""
    png = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
    palette = Image.open(io.BytesIO(png)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(Path(__file__).with_name(name), optimize=True)


@contextlib.contextmanager
def search_server(folder: Path) -> Iterator[str]:
    """The address of `dcclip serve` on the pictures in a folder, while the context lasts."""
    (folder / "cache").mkdir()
    photos = folder / "Pictures"
    shutil.copytree(PHOTOS, photos)
    shutil.copytree(BACKGROUNDS, photos, dirs_exist_ok=True)
    command = [sys.executable, "-m", "dcclip_cli", "serve", "--folder", "Pictures", "--port", "0"]
    env = {**os.environ, "DCCLIP_CACHE": str(folder / "cache")}
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def search(browser: Browser) -> None:
    with tempfile.TemporaryDirectory() as temporary, search_server(Path(temporary)) as url:
        for locale, suffix in SUFFIXES.items():
            page = browser.new_page(locale=locale, viewport={"width": 1000, "height": 700})
            page.goto(url)
            page.fill("#text", QUERY)
            page.press("#text", "Enter")
            page.wait_for_selector("#status:text-matches('(ms|毫秒)$')", timeout=60_000)
            page.wait_for_load_state("networkidle")
            bottom = page.eval_on_selector(
                "#photos > :nth-child(18)", "(li) => li.getBoundingClientRect().bottom"
            )
            page.evaluate("document.activeElement.blur()")
            save(page, f"search-page{suffix}.png", 1000, bottom)


@contextlib.contextmanager
def web_server() -> Iterator[str]:
    """The address of the starter's page, served while the context lasts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = dcclip.export(model="starter", format="web", out=Path(temporary) / "page").folder
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def web(browser: Browser) -> None:
    photos = [PHOTOS / f"{name}.jpg" for name in ("cat", "coffee", "rocket")]
    with web_server() as url:
        for locale, suffix in SUFFIXES.items():
            page = browser.new_page(locale=locale, viewport={"width": 900, "height": 600})
            page.goto(url)
            page.fill("#labels", LABELS)
            page.set_input_files("#files", photos)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_selector(
                f"#pictures > li:nth-child({len(photos)}) ol li", timeout=120_000
            )
            bottom = page.evaluate(
                "document.querySelector('#pictures').getBoundingClientRect().bottom + scrollY + 24"
            )
            save(page, f"web-page{suffix}.png", 900, bottom)


def report(browser: Browser) -> None:
    datasets = [QUICKSTART / f"{name}.parquet" for name in ("emojione2", "unseen")]
    with tempfile.TemporaryDirectory() as temporary:
        dcclip.evaluate(model=QUICKSTART / "teacher", datasets=datasets, out=temporary)
        page = browser.new_page(locale="en-US", viewport={"width": 1000, "height": 690})
        page.goto(f"file://{temporary}/report.html")
        save(page, "report.png", 1000, 690)


SCREENSHOTS = {"search": search, "web": web, "report": report}


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name in sys.argv[1:] or SCREENSHOTS:
            SCREENSHOTS[name](browser)
        browser.close()


if __name__ == "__main__":
    main()
