"""Folders that change while they are served."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.near_duplicates import perceptual_hashes
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.images import read
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.duplicates import find_duplicates
from dcclip_cli.photos.index import open_index
from dcclip_cli.serve.app import application
from tests.curation.test_executors import wait
from tests.serve.test_serve import get, running, send
from tests.videos import film


def test_the_server_follows_its_folder_and_waits_for_complete_files(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    lines = list[str]()
    content = pictures[0].read_bytes()
    name = "下/慢\n slow.png"
    names = {path.name for path in pictures}
    slow = folder / name
    index = open_index(model, folder, exclude=["不要", "*.tmp.png"])
    with TestClient(application(model, [index], say=lines.append, follow_s=0.1)) as client:

        def served() -> tuple[set[str], int, int]:
            hits = client.post("/search", data={"text": ["红", "red"]}).json()["results"]
            health = client.get("/health").json()
            images = client.get("/folders").json()["images"]
            return {hit["path"] for hit in hits}, health["unreadable"], images

        for excluded in (folder / "不要/a.png", folder / "b.tmp.png"):
            excluded.parent.mkdir(exist_ok=True)
            excluded.write_bytes(content)
        slow.parent.mkdir()
        slow.write_bytes(content[: len(content) // 2])
        wait(lambda: served() == (names, 1, 5), within_s=5)
        slow.write_bytes(content)
        wait(lambda: served() == (names | {name}, 0, 6), within_s=5)
        assert client.get("/images/0/%E4%B8%8B/%E6%85%A2%0A%20slow.png").content == content
        pictures[0].unlink()
        wait(lambda: served() == (names - {pictures[0].name} | {name}, 0, 5), within_s=5)
        monkeypatch.setattr("dcclip_cli.photos.live._NEW_IMAGES", 0)  # stored ones are not new
        folder.rename(folder.with_name("away"))  # as a disk that is unmounted
        wait(lambda: served() == (set(), 0, 0), within_s=5)
        health = client.get("/health").json()
        assert (health["status"], health["missing_folders"]) == ("a folder is missing", 1)
        folder.with_name("away").rename(folder)
        wait(lambda: served()[2] == 5, within_s=5)
        assert client.get("/health").json()["status"] == "ok"
    assert open_index(model, folder, exclude=index.exclude).embedded == 0
    assert [sum(text in line for line in lines) for text in (str(slow), "no photographs any more")] == [1, 1]


def test_following_goes_on_after_an_error_and_what_was_unreadable_for_a_moment_is_read_again(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    broken = [True]

    class Encoder(OnnxEncoder):
        def encode_pixels(self, pixels: np.ndarray) -> Any:
            if broken[0]:
                raise RuntimeError("the device was lost")
            return super().encode_pixels(pixels)

    def read_unless_away(path: Any) -> Any:
        if broken[0] and path.name == "别处 away.png":
            raise DcclipError("{} cannot be read", "check the disk", path)
        return read(path)

    monkeypatch.setattr("dcclip_cli.photos.index.read", read_unless_away)
    index = open_index(OnnxEncoder(bundle_folder, "cpu"), pictures[0].parent)
    encoder = Encoder(bundle_folder, "cpu")
    with TestClient(application(encoder, [index], say=lines.append, follow_s=0.05)) as client:

        def images() -> int:
            return int(client.get("/health").json()["images"])

        away = index.folder / "别处 away.png"
        new = index.folder / "new.png"
        away.write_bytes(pictures[0].read_bytes())
        wait(lambda: any("cannot be read" in line for line in lines), within_s=5)
        new.write_bytes(pictures[1].read_bytes())
        wait(lambda: any("the device was lost" in line for line in lines), within_s=5)
        time.sleep(0.3)  # it is not said again
        assert images() == 5 and len(lines) == 2
        broken[0] = False
        wait(lambda: images() == 7, within_s=10)


def test_of_many_new_files_only_the_one_that_ends_an_update_is_skipped_until_it_can_be_read(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    poisoned = {"7 毒.png", "15 poison.png"}

    def read_or_run_out_of_memory(path: Any) -> Any:
        if path.name in poisoned:
            raise MemoryError
        return read(path)

    monkeypatch.setattr("dcclip_cli.photos.index.read", read_or_run_out_of_memory)
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    index = open_index(model, folder)
    with TestClient(application(model, [index], say=lines.append, follow_s=0.05)) as client:

        def served() -> tuple[int, int]:
            health = client.get("/health").json()
            return health["images"], health["unreadable"]

        for number in range(20):
            suffix = {7: " 毒", 15: " poison"}.get(number, "")
            (folder / f"{number}{suffix}.png").write_bytes(pictures[number % 5].read_bytes())
        wait(lambda: served() == (23, 2), within_s=10)
        expected = {f"serve: skipped {folder / name}: MemoryError" for name in poisoned}
        assert set(lines) == expected and len(lines) == 2
        poisoned.clear()
        wait(lambda: served() == (25, 0), within_s=10)


def test_a_stop_does_not_wait_for_the_list_of_a_slow_folder(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    begun = threading.Event()
    end = threading.Event()

    def list_slowly(*_: Any, **__: Any) -> dict[str, bytes]:
        begun.set()
        end.wait(30)
        return {}

    app = application(model, [open_index(model, pictures[0].parent)], follow_s=0.05)
    monkeypatch.setattr("dcclip_cli.photos.live.list_images", list_slowly)
    with TestClient(app):
        assert begun.wait(5)
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    end.set()


def test_a_large_copy_is_embedded_in_parts_without_a_look_for_each(
    bundle_folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    monkeypatch.setattr("dcclip_cli.photos.live._NEW_IMAGES", 1)
    with TestClient(application(model, [open_index(model, folder)], follow_s=1)) as client:
        for number in range(20):
            (folder / f"{number} 张.png").write_bytes(pictures[number % 5].read_bytes())
        wait(lambda: client.get("/health").json()["images"] == 25, within_s=10)


def test_a_video_is_followed_and_its_frames_open_it_at_their_times(bundle_folder: Path, pictures: list[Path]) -> None:
    pytest.importorskip("av", reason="av is not installed")
    model = OnnxEncoder(bundle_folder, "cpu")
    video = pictures[0].with_name("假日 #1.mp4")
    with TestClient(application(model, [open_index(model, video.parent)], follow_s=0.1)) as client:
        film(str(video), [Image.open(path) for path in pictures[:3]])
        wait(lambda: client.get("/health").json()["images"] == 6, within_s=10)
        url = "images/0/%E5%81%87%E6%97%A5%20%231.mp4"
        samples = client.get("/folders").json()["samples"]
        frame = client.get(f"/{url}%23t%3D4.5?small=true").content
        hit = client.post("/search", files={"image": frame}).json()["results"][0]
        assert hit["path"].startswith("假日 #1.mp4 @ 0:0") and 2.8 <= hit["time_s"] <= 6.2
        assert hit["video"] == f"{url}#t={hit['time_s']}" and sum("video" in sample for sample in samples) == 1
        assert client.get(f"/{hit['url']}").headers["content-type"] == "image/jpeg"
        part = client.get(f"/{hit['video']}", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"ftyp", "video/mp4")
        content = video.read_bytes() * 9
        video.write_bytes(content)  # more than a part of an answer
        wait(lambda: client.get(f"/{url}").content == content, within_s=10)  # not while it changes
        video.unlink()
        wait(lambda: client.get("/health").json()["images"] == 5, within_s=5)
        assert client.get(f"/{hit['url']}").status_code == client.get(f"/{url}").status_code == 404


def test_duplicates_are_of_all_folders_as_they_are_now(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="av is not installed")
    photos = Path(__file__).parents[2] / "recipes/starter/photos"
    folders = [tmp_path / "相册", tmp_path / "photos"]
    shutil.copytree(photos, folders[0])
    (folders[1] / "下").mkdir(parents=True)
    cat = Image.open(photos / "cat.jpg")
    copy = folders[1] / "下/小 猫.jpg"
    for name in (copy, copy.with_name("c.tmp.jpg")):
        cat.resize((cat.width // 2, cat.height // 2)).save(name)
    film(str(folders[1] / "猫.mp4"), [cat])
    encoder = load_encoder(resolve("starter"), "cpu")
    indexes = [open_index(encoder, folder, exclude=["*.tmp.jpg"]) for folder in folders]
    with TestClient(application(encoder, indexes, token="secret", follow_s=0.1)) as client:
        assert client.get("/duplicates").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        response = client.get("/duplicates")
        [[largest, smaller]] = response.json()["copies"]
        bursts = response.json()["bursts"]
        assert (largest["folder"], largest["path"], largest["width"]) == (0, "cat.jpg", cat.width) and bursts == []
        assert (smaller["folder"], smaller["path"], smaller["width"]) == (1, "下/小 猫.jpg", cat.width // 2)
        assert client.get(f"/{smaller['url']}").content == copy.read_bytes() and str(tmp_path) not in response.text
        copy.unlink()
        wait(lambda: client.get("/duplicates").json()["copies"] == [], within_s=10)


def test_reloads_wait_for_one_comparison_and_later_ones_compare_new_photographs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = Path(__file__).parents[2] / "recipes/starter/photos"
    folder = tmp_path / "相册"
    shutil.copytree(photos, folder)
    cat = Image.open(photos / "cat.jpg")
    cat.resize((cat.width // 2, cat.height // 2)).save(folder / "小猫.jpg")
    encoder = load_encoder(resolve("starter"), "cpu")
    calls = list[str]()
    compared = list[int]()

    def find_slowly(*arguments: Any) -> Any:
        calls.append("begin")
        time.sleep(1)
        result = find_duplicates(*arguments)
        calls.append("end")
        return result

    def hash_and_count(thumbs: np.ndarray) -> np.ndarray:
        compared.append(len(thumbs))
        return perceptual_hashes(thumbs)

    monkeypatch.setattr("dcclip_cli.serve.app.find_duplicates", find_slowly)
    monkeypatch.setattr("dcclip_cli.photos.duplicates.perceptual_hashes", hash_and_count)
    with running(application(encoder, [open_index(encoder, folder)], follow_s=0.1)) as (_, port):

        def groups() -> list[list[str]]:
            with urlopen(f"http://127.0.0.1:{port}/duplicates", timeout=60) as response:
                return [[photo["path"] for photo in group] for group in json.load(response)["copies"]]

        for _ in range(3):  # reloads
            with send(port, get("/duplicates")):
                time.sleep(0.2)
        assert groups() == groups() == [["cat.jpg", "小猫.jpg"]]
        assert calls == ["begin", "end"] and compared == [7]
        cat.save(folder / "cat 2.png")
        wait(lambda: len(groups()[0]) == 3, within_s=20)
        assert compared == [7, 7]  # six that repeat none, and the new one
        (folder / "cat.jpg").unlink()
        wait(lambda: groups() == [["cat 2.png", "小猫.jpg"]], within_s=20)
        assert compared == [7, 7, 7] and calls == ["begin", "end"] * (len(calls) // 2)


def test_no_request_waits_for_an_update_and_a_stop_stores_its_part(bundle_folder: Path, pictures: list[Path]) -> None:
    begun = threading.Event()

    class SlowEncoder(OnnxEncoder):
        def encode_pixels(self, pixels: np.ndarray) -> Any:
            begun.set()
            time.sleep(0.3)
            return super().encode_pixels(pixels)

    model = SlowEncoder(bundle_folder, "cpu")
    folder = pictures[0].parent
    app = application(model, [open_index(model, folder)], follow_s=0.1)
    for number in range(300):
        (folder / f"{number}.png").write_bytes(pictures[number % 5].read_bytes())
    begun.clear()
    with TestClient(app) as client:
        assert begun.wait(10)
        begin = time.monotonic()
        assert len(client.post("/search", data={"text": "红", "top_k": 400}).json()["results"]) == 5
        assert time.monotonic() - begin < 1
    assert time.monotonic() - begin < 3
    assert 0 < 300 - open_index(OnnxEncoder(bundle_folder, "cpu"), folder).embedded < 100
