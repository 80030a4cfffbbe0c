"""The search page in Chromium: both languages, a phone, the address, the lightbox, images as queries, the token."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.index import open_index
from dcclip_cli.serve.app import application
from tests.conftest import opened
from tests.curation.test_executors import wait
from tests.serve.test_serve import running
from tests.videos import film

PHOTOS = Path(__file__).parents[2] / "recipes/starter/photos"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the starter's server of 30 photographs: five copies of six."""
    folder = tmp_path_factory.mktemp("secret") / "相册"
    for number in range(5):
        shutil.copytree(PHOTOS, folder / str(number))
    encoder = load_encoder(resolve("starter"))
    with running(application(encoder, [open_index(encoder, folder)])) as (_, port):
        yield f"http://127.0.0.1:{port}/"


def shown(page: Any, text: str | None = None) -> list[str]:
    """The names of the photos that are shown, for a text that is typed now or for what was asked before."""
    if text:
        page.fill("#text", text)
        page.press("#text", "Enter")
    page.wait_for_selector("#status:text-matches('(ms|毫秒)$')")
    return [Path(image.get_attribute("alt")).stem for image in page.locator("#photos img").all()]


def test_a_phone_searches_in_chinese_and_the_address_is_the_query(browser: Any, address: str) -> None:
    page = opened(browser, address, width=390)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.reload()
    page.wait_for_selector("#photos li:nth-child(15) img")
    assert page.title() == page.inner_text("h1") == "相册" and page.inner_text("#about") == "30 张照片"
    page.click("#examples a:nth-child(2)")
    assert shown(page)
    assert shown(page, "猫") == ["cat"] * 5 and "text=%E7%8C%AB" in page.url and page.title() == "猫 · 相册"
    assert page.inner_text("#status").startswith("30 张照片里找到 5 张，用时 ") and page.is_hidden("#more")
    left, right = (page.locator(f"#photos li:nth-child({place})").bounding_box() for place in (1, 2))
    assert left["y"] == right["y"] and page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.is_hidden("#photos b >> nth=0")
    page.click("#language")
    page.reload()
    assert shown(page)[0] == "cat" and page.inner_text("#about") == "30 photos" and page.input_value("#text") == "猫"
    page.check("#scores")
    assert float(page.inner_text("#photos b >> nth=0")) > 0.3 and "cosines" in page.inner_text("#score-help")
    page.go_back()
    page.go_back()
    page.wait_for_selector("#examples:visible")
    assert shown(page, "量子") and "does not know these words and ignored them: 量子" in page.inner_text("#notes")
    assert "Nothing fits well" in page.inner_text("#notes") and page.is_hidden("#more")
    assert page.inner_text("#status").startswith("The 24 nearest of 30 photos, ")
    answers = page.request.get(f"{address}folders"), page.request.post(f"{address}search", form={"text": "猫"})
    assert problems == [] and not any("secret" in answer.text() for answer in answers)


def test_the_lightbox_has_the_keyboard_and_photos_like_one_or_like_a_file_are_found(browser: Any, address: str) -> None:
    page = opened(browser, f"{address}?text=coffee#2", "en-US")
    page.wait_for_selector("#lightbox[open]")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("?text=coffee#3") and "coffee.jpg" in page.inner_text("#photo-name")
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert page.url.endswith("?text=coffee") and page.evaluate("document.activeElement.hash") == "#3"
    page.click("#photos li:nth-child(5) a")
    name = page.get_attribute("#photo", "alt")
    page.click("#similar")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert shown(page)[0] == Path(name).stem == "coffee" and "?like=images" in page.url
    page.go_back()
    page.wait_for_selector("#lightbox[open]")
    page.go_back()
    assert shown(page)[0] == "coffee" and page.input_value("#text") == "coffee"
    page.fill("#text", "")
    page.set_input_files("#image", PHOTOS / "rocket.jpg")
    assert shown(page)[:5] == ["rocket"] * 5 and page.is_visible("#like img")
    page.click("#more")
    page.wait_for_selector("#photos li:nth-child(30)")
    assert page.is_hidden("#more")
    page.click("#leave-out summary")
    page.fill("#not", "a rocket")
    page.press("#not", "Enter")
    page.wait_for_url("**/?not=a+rocket")
    page.fill("#not", "")
    image = "new File([await (await fetch('images/0/0/flower.jpg')).blob()], 'a.jpg', { type: 'image/jpeg' })"
    event = "new DragEvent('drop', { dataTransfer, bubbles: true })"
    create = f"async () => {{ const dataTransfer = new DataTransfer(); dataTransfer.items.add({image});"
    page.evaluate(f"{create} document.body.dispatchEvent({event}); }}")
    page.wait_for_selector("#photos li:first-child img[alt$='flower.jpg']")
    page.click("#unlike")
    page.wait_for_selector("#examples:visible")
    assert page.is_hidden("#like")


def test_a_folder_is_chosen_a_video_plays_from_its_second_and_a_tiff_is_large(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="av is not installed")
    names = ("cat", "coffee", "rocket")
    pictures = [Image.open(PHOTOS / f"{name}.jpg") for name in names]
    for year in ("2020", "2021 年"):
        (tmp_path / year).mkdir()
    pictures[0].save(tmp_path / "2020/cat.tiff")
    pictures[2].save(tmp_path / "2021 年/rocket.png")
    film(str(tmp_path / "2021 年/假日.webm"), pictures, "libvpx")
    encoder = load_encoder(resolve("starter"))
    with running(application(encoder, [open_index(encoder, tmp_path)])) as (_, port):
        page = opened(browser, f"http://127.0.0.1:{port}/?text=coffee")
        mark = "getComputedStyle(document.querySelector('.photos .video'), '::after').content"
        assert shown(page)[0] == "假日" and "▶" in page.evaluate(mark)
        page.click("#photos a >> nth=0")
        wait(lambda: page.evaluate("document.querySelector('video').currentTime") >= 3, within_s=10)
        assert page.is_hidden("#photo") and page.get_attribute("#download", "href").endswith(".webm")
        page.keyboard.press("Escape")
        page.click("#filters summary")
        page.select_option("#under", label="2020")
        page.wait_for_url("**/?text=coffee&under=images*2F0*2F2020")
        page.wait_for_selector("#status:text-matches('^1 张照片')")
        assert shown(page, "猫") == ["cat"]
        page.fill("#before", "2001-01-01")
        page.wait_for_selector("#status:text-matches('^0 张照片')")
        page.fill("#before", "")
        page.wait_for_selector("#status:text-matches('^1 张照片')")
        page.click("#photos a >> nth=0")
        wait(lambda: page.evaluate("document.querySelector('#photo').naturalWidth") > 400, within_s=10)
        assert page.get_attribute("#original", "href").endswith("cat.tiff") and page.is_hidden("video")


def test_the_page_asks_for_a_token_and_for_a_folder(browser: Any) -> None:
    with running(application(load_encoder(resolve("starter")), token="password")) as (_, port):
        page = opened(browser, f"http://127.0.0.1:{port}/?token=wrong", "en-US")
        wrong = "#sign-in-error:text('wrong')"
        for token, response in (("no", wrong), ("密", wrong), ("password", "#notes:has-text('--folder')")):
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.wait_for_selector(response)
        assert page.url == f"http://127.0.0.1:{port}/" and page.is_hidden("#sign-in")


def test_the_page_shows_how_many_photos_there_are_now(browser: Any, tmp_path: Path) -> None:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path)
    encoder = load_encoder(resolve("starter"))
    with running(application(encoder, [open_index(encoder, tmp_path)], follow_s=0.1)) as (_, port):
        pages = [opened(browser, f"http://127.0.0.1:{port}/", locale) for locale in ("zh-CN", "en-US")]
        shutil.copy(PHOTOS / "rocket.jpg", tmp_path)
        for page, text in zip(pages, ("2 张照片", "2 photos"), strict=True):
            page.wait_for_selector(f"#about:text('{text}')", timeout=10_000)


def test_duplicates_are_groups_of_photos_with_their_sizes_in_both_languages(browser: Any, address: str) -> None:
    page = opened(browser, address, width=390)
    page.click("#find-duplicates")
    page.wait_for_selector("#groups ul >> nth=4")
    assert page.inner_text("#status") == "6 组副本，0 组连拍" and page.title() == "重复照片 · 相册"
    assert page.locator("#groups img").count() == 25 and page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("#more")
    page.wait_for_selector("#groups ul >> nth=5")
    assert page.is_hidden("#more") and page.inner_text("#groups h2").startswith("副本：")
    page.click("#language")
    assert page.inner_text("#groups h2").startswith("Copies: ") and "Groups of copies: 6" in page.inner_text("#status")
    assert re.fullmatch(r"0/\w+\.jpg\s+\d+ × \d+", page.inner_text("#groups ul >> nth=1 >> li >> nth=0"))
    page.click("#groups ul >> nth=1 >> a >> nth=0")
    assert page.url.endswith("?duplicates#6") and page.inner_text("#photo-name").startswith("0/")
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox:not([open])", state="attached")
    assert page.evaluate("document.activeElement.hash") == "#6"
    assert shown(page, "cat")[0] == "cat" and page.locator("#groups img").count() == 0
