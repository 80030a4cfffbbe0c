"""The starter's web page in Chromium: sizes, time to the first answer, and how far its answers are from Python's.

    pip install playwright; apt-get install chromium
    python benchmarks/export/web_page.py [PHOTO ...]

Prints one JSON object. Each run is a new browser with an empty cache, and the page comes from a server on this machine.
"""

import functools
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import sync_playwright

import dcclip_cli as dcclip

ROOT = Path(__file__).parents[2]
LABELS = ["宇航员", "猫", "coffee", "花", "rocket", "寺庙", "dog", "汽车"]
RUNS = 5
MODEL = ("image.onnx", "text.onnx", "tokenizer.json")


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def cpu_s() -> float:
    """CPU seconds of all processes that this one has started and that still run."""
    return sum(sum(one.cpu_times()[:2]) for one in psutil.Process().children(recursive=True))


def run(playwright: Any, address: str, photos: list[Path]) -> dict[str, Any]:
    """Seconds from opening the page to the answer for the first photograph, and what is known about all of them."""
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(locale="zh-CN")
    begin, used = time.perf_counter(), cpu_s()
    page.goto(address)
    page.fill("#labels", "，".join(LABELS))
    page.set_input_files("#files", photos)
    page.wait_for_selector("#pictures li ol li", timeout=120_000)
    first, first_cpu = time.perf_counter() - begin, cpu_s() - used
    page.wait_for_selector(f"#pictures > li:nth-child({len(photos)}) ol li", timeout=600_000)
    every = time.perf_counter() - begin
    rows = page.evaluate(
        """import("./app.js").then(({ dcclip }) => dcclip.pictures().map((one) =>
            [one.name, one.embedding, one.answer.querySelector("span").textContent]))"""
    )
    browser.close()
    return {"first_s": first, "first_cpu_s": first_cpu, "all_s": every, "rows": rows}


def main() -> None:
    photos = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "recipes/starter/photos").glob("*.jpg"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = dcclip.export(model="starter", format="web", out=Path(temporary) / "page").folder
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            runs = [run(playwright, f"http://127.0.0.1:{server.server_port}/", photos) for _ in range(RUNS)]
        server.shutdown()
    starter = dcclip.load("starter")
    embeddings = starter.embed_images(list(photos))
    predicted = starter.predict(list(photos), LABELS)
    cosines = [float(np.dot(row[1], one)) for row, one in zip(runs[0]["rows"], embeddings, strict=True)]
    same = [row[2] == next(iter(one)) for row, one in zip(runs[0]["rows"], predicted, strict=True)]
    model = sum(size for name, size in sizes.items() if name in MODEL)
    found = {
        "page_mb": (sum(sizes.values()) - model) / 1e6,
        "model_mb": model / 1e6,
        **{key: sorted(round(one[key], 2) for one in runs) for key in ("first_s", "first_cpu_s", "all_s")},
        "median_first_s": statistics.median(one["first_s"] for one in runs),
        "photos": len(photos),
        "same_top_label": sum(same),
        "lowest_cosine": min(cosines),
        "mean_cosine": statistics.mean(cosines),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
