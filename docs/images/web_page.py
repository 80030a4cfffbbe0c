"""Draws web-page.png and web-page-zh.png: the starter's web page in Chromium, with its answers for three photographs.

    pip install playwright; apt-get install chromium fonts-noto-cjk
    python docs/images/web_page.py [ADDRESS]

ADDRESS is that of a page that is served already (`dcclip demo` prints it).
"""

import contextlib
import functools
import io
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import dcclip_cli as dcclip

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = [ROOT / f"recipes/starter/photos/{name}.jpg" for name in ("cat", "coffee", "rocket")]
LABELS = "猫, dog, 咖啡, rocket"
PAGES = {"en-US": "web-page.png", "zh-CN": "web-page-zh.png"}


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of the starter's page, served while the context lasts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = dcclip.export(model="starter", format="web", out=Path(temporary) / "page").folder
        handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def main() -> None:
    address = contextlib.nullcontext(sys.argv[1]) if sys.argv[1:] else served()
    with address as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for locale, name in PAGES.items():
            page = browser.new_page(locale=locale, viewport={"width": 900, "height": 600})
            page.goto(url)
            page.fill("#labels", LABELS)
            page.set_input_files("#files", PHOTOS)
            page.evaluate("document.activeElement.blur()")
            page.wait_for_selector(f"#pictures > li:nth-child({len(PHOTOS)}) ol li", timeout=120_000)
            height = page.evaluate("document.querySelector('#pictures').getBoundingClientRect().bottom + scrollY + 24")
            clip = {"x": 0, "y": 0, "width": 900, "height": height}
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
            picture.convert("P", palette=Image.Palette.ADAPTIVE).save(Path(__file__).with_name(name), optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
