"""The web page in Chromium: Python's answers, nothing sent elsewhere, both languages, keyboard, phones, errors."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.cli.serve import _server
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import cache_folder
from dcclip_cli.inference.model import load
from tests.conftest import opened
from tests.images import encode
from tests.static_site import Site, serve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PHOTOS = [*sorted((ROOT / "recipes/starter/photos").glob("*.jpg")), ROOT / "docs/images/cat.png"]
LABELS = ["宇航员", "猫", "coffee", "花", "rocket", "寺庙"]


@pytest.fixture(scope="module")
def site(page_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The page in a subfolder of a static host."""
    root = tmp_path_factory.mktemp("host")
    shutil.copytree(page_folder, root / "some/where")
    with serve(root) as served:
        served.address += "some/where/"
        yield served


def answers(page: Any) -> dict[str, list[tuple[str, float]]]:
    """File name -> labels and percentages, as they are shown."""
    cards = """[...document.querySelectorAll("#pictures > li")].map((card) => [
        card.querySelector("img").alt,
        [...card.querySelectorAll("ol li")].map((row) => [row.children[0].textContent, row.children[1].textContent]),
    ])"""
    return {name: [(label, float(value.rstrip("%"))) for label, value in rows] for name, rows in page.evaluate(cards)}


def embeddings(page: Any) -> dict[str, list[float]]:
    return dict(
        page.evaluate(
            "import('./app.js').then(({ dcclip }) => dcclip.pictures().map((one) => [one.name, one.embedding]))"
        )
    )


def awkward(folder: Path) -> list[Path]:
    """Pictures that a browser and Pillow might treat differently: turned by EXIF, transparent, grey, tall, enlarged."""
    photo = Image.open(PHOTOS[1]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    files = {
        "turned.jpg": encode(photo, "JPEG", quality=95, exif=exif),
        "clear.png": encode(clear),
        "grey.jpg": encode(photo.convert("L"), "JPEG", quality=95),
        "tall.webp": encode(photo.crop((100, 0, 190, 300)), "WEBP", lossless=True),
        "small.png": encode(photo.resize((61, 40))),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def test_the_page_answers_as_python_does(browser: Any, site: Site, tmp_path: Path) -> None:
    files = [*PHOTOS, *awkward(tmp_path)]
    page = opened(browser, site.address)
    page.fill("#labels", "，".join(LABELS))
    page.set_input_files("#files", files)
    page.wait_for_selector(f"#pictures > li:nth-child({len(files)}) details:not([hidden]), #errors li")
    assert page.locator("#errors li").all_inner_texts() == []
    starter = load("starter")
    expected = dict(zip((file.name for file in files), starter.embed_images(list(files)), strict=True))
    vectors = embeddings(page)
    cosines = {name: float(np.dot(vectors[name], expected[name])) for name in expected}
    assert min(cosines[file.name] for file in PHOTOS) >= 0.99, cosines
    assert min(cosines.values()) >= 0.98, cosines
    shown = answers(page)
    predicted = starter.predict(list(files), LABELS)
    for file, labels in zip(files, predicted, strict=True):
        assert shown[file.name][0][0] == next(iter(labels))
        for label, percentage in shown[file.name]:
            assert percentage / 100 == pytest.approx(labels[label], abs=0.06)
    alone = answers(page)
    page.check("#multi")
    while answers(page) == alone:
        page.wait_for_timeout(100)
    multi_label = starter.predict(list(files), LABELS, multi_label=True)
    for file, labels in zip(files, multi_label, strict=True):
        assert dict(answers(page)[file.name])[next(iter(labels))] / 100 == pytest.approx(max(labels.values()), abs=0.06)
    page.check("input[value=search]")
    page.fill("#query", "a cup of coffee")
    page.wait_for_selector("#pictures > li:first-child img[alt='coffee.jpg']")
    notes = {"a cat": f"共 {len(files)} 张图片", "沙发上的猫": "没有很符合的图片。", "a red cat": "模型没有学过：red"}
    for query, note in notes.items():
        page.fill("#query", query)
        page.wait_for_selector(f"#status:text-is('{note}')")
    page.check("input[value=labels]")
    doubtful = ["a red car", "两个人在拥抱", "爷爷和旗袍和狗", "量子", "沙发上的两只狗"]
    doubtful += ["dad at the chickenpox ultrasound"]
    page.fill("#labels", ", ".join(doubtful))
    page.wait_for_selector(f"#status:text-is('模型没有学过：{', '.join(starter.unknown(doubtful))}')")
    page.context.close()


def test_examples_can_be_tried_labels_may_all_be_wrong_and_excel_reads_the_table(browser: Any, site: Site) -> None:
    page = opened(browser, site.address)
    page.click("#examples button:nth-of-type(2)")
    page.wait_for_selector("#pictures ol li:first-child:has-text('咖啡')")
    assert page.is_hidden(".none") and page.is_hidden("#examples")
    assert page.locator("#pictures > li > ol > li").count() == 3
    page.fill("#labels", "=蛇, piano")
    page.wait_for_selector(".none:text('都不像')")
    with page.expect_download() as download:
        page.click("#table")
    table = Path(download.value.path()).read_bytes().decode()
    assert table.startswith("\ufeffimage,label,probability\r\n") and '"example-coffee.jpg","\'=蛇",0.' in table
    page.check("#multi")
    page.wait_for_selector(".none", state="hidden")
    page.context.close()


def test_nothing_leaves_the_page(browser: Any, site: Site, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("elsewhere")
    page = opened(browser, site.address)
    with serve(tmp_path) as elsewhere:
        tries = """async (url) => {
            const inside = new Blob([`fetch("${url}").then(() => postMessage(true), () => postMessage(false))`]);
            const worker = new Worker(URL.createObjectURL(inside));
            const fromWorker = new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data)));
            return [await fetch(url).then(() => true, () => false), await fromWorker];
        }"""
        assert page.evaluate(tries, elsewhere.address) == [False, False]
        assert elsewhere.requests == []
    page.set_input_files("#files", PHOTOS[:1])
    page.wait_for_selector("#pictures li ol li")
    assert all(path.startswith("/some/where/") for path in site.requests)
    page.context.close()


def test_both_languages_the_keyboard_and_a_phone(browser: Any, site: Site) -> None:
    page = opened(browser, site.address, "en-US", width=360)
    assert page.title() == "What is in the picture?" and page.locator("html").get_attribute("lang") == "en"
    for focused in ("language", "files", None, "labels", "multi"):  # None: the choice of what to do
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.id == 'folder' || document.activeElement.matches('#examples *')"):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == (focused or "")
    names = page.locator("button:visible, input:visible, textarea:visible")
    is_named = "control => control.labels?.length || control.innerText.trim() || control.ariaLabel"
    assert all(control.evaluate(is_named) for control in names.all())
    page.set_input_files("#files", PHOTOS[:2])
    page.wait_for_selector("#pictures > li:nth-child(2) ol li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("#language")
    assert page.locator("html").get_attribute("lang") == "zh-Hans" and page.title() == "看图识物"
    page.wait_for_selector("#pictures >> text=猫")
    assert page.get_by_label("移除 cat.jpg").is_visible()
    page.reload()
    assert page.title() == "看图识物"
    page.context.close()


def test_errors_are_sentences(browser: Any, site: Site, page_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "thin.png").write_bytes(encode(Image.new("RGB", (1200, 2))))
    page = opened(browser, site.address, "en-US")
    page.set_input_files("#files", [tmp_path / "notes.jpg", tmp_path / "thin.png", PHOTOS[1]])
    page.wait_for_selector("#pictures li ol li")
    first, second = page.locator("#errors li").all_inner_texts()
    assert re.match(r"notes.jpg is not a picture that this browser reads; convert it", first)
    assert re.match(r"thin.png is too thin \(1200 × 2 pixels, one side over 100 times the other\)", second)
    page.fill("#labels", "")
    page.wait_for_selector("#status:text('Write some labels first.')")
    page.context.close()
    broken = shutil.copytree(page_folder, tmp_path / "broken")
    (broken / "text.onnx").unlink()
    with serve(broken) as served:
        page = opened(browser, served.address, "zh-CN")
        page.wait_for_selector("#errors:has-text('缺少文件 text.onnx')")
        page.context.close()


def test_demo_serves_the_page_of_a_bundle_without_torch_until_it_is_stopped(
    browser: Any, packages: Path, tmp_path: Path
) -> None:
    shutil.copytree(packages, cache_folder() / "npm", dirs_exist_ok=True)
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'open_clip', 'transformers', 'timm']));"
        "sys.argv[1:] = ['demo', '--model', 'starter', '--no-open', '--out', sys.argv[1]];"
        "from dcclip_cli.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "page")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), process.stderr.read()
        page = opened(browser, address)
        with pytest.raises(DcclipError, match=r"cannot use port \d+: Address already in use"):
            _server(tmp_path, int(address.strip("/").rpartition(":")[2]))
        assert page.evaluate("crossOriginIsolated")  # so that WebAssembly has threads
        page.set_input_files("#files", PHOTOS[1:2])
        page.wait_for_selector("#pictures li ol li:has-text('猫')")
        page.context.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped: run the same command again" in errors
    assert "Traceback" not in errors
