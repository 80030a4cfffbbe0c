"""`dcclip serve`: what each kind of client gets, what is refused, and a stop in the middle of requests."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from dcclip_cli.cli import serve
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.model import Model
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.index import open_index
from dcclip_cli.serve import guard, server
from dcclip_cli.serve.app import application
from dcclip_cli.serve.batches import BatchedEncoder
from dcclip_cli.serve.server import make_server
from tests.curation.test_executors import wait
from tests.images import encode, png_header
from tests.videos import film


@pytest.fixture
def model(bundle_folder: Path) -> Model:
    return Model(load_encoder(resolve(str(bundle_folder))))


@pytest.fixture
def client(model: Model, pictures: list[Path]) -> Iterator[TestClient]:
    indexes = [open_index(model._encoder, pictures[0].parent)]
    with TestClient(application(model._encoder, indexes)) as client:
        yield client


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_embeddings_have_the_form_of_openai_for_texts_and_images_in_their_order(
    client: TestClient, model: Model, pictures: list[Path]
) -> None:
    inputs = ["红色的圆", data_url(pictures[0].read_bytes()), "a green moon"]
    answer = client.post("/v1/embeddings", json={"model": "any", "input": inputs}).json()
    rows = np.array([row["embedding"] for row in answer["data"]])
    texts = model.embed_texts(["红色的圆", "a green moon"])
    [image] = model.embed_images([pictures[0]])
    assert (rows * np.stack([texts[0], image, texts[1]])).sum(axis=1).min() > 0.9999
    assert [row["index"] for row in answer["data"]] == [0, 1, 2] and answer["object"] == "list"
    tokens = sum(model._encoder.tokenize([text]).size for text in inputs[::2])
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert [client.get("/v1/models/any/name").json()] == client.get("/v1/models").json()["data"]
    refused = client.post("/v1/embeddings", json={"input": ["红", "https://a.b/c.jpg"]})
    assert refused.status_code == 422 and "https://a.b/c.jpg" in refused.text
    short = client.post("/v1/embeddings", json={"input": "红", "dimensions": 8, "encoding_format": "base64"}).json()
    embedding = np.frombuffer(base64.b64decode(short["data"][0]["embedding"]), "<f4")
    expected = model.embed_texts(["红"])[0, :8]
    np.testing.assert_allclose(embedding, expected / np.linalg.norm(expected), atol=1e-5)
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": inputs[1]}}]}]  # vLLM's
    chat += [{"role": "user", "content": "data: 季度报告"}]
    rows = np.array([row["embedding"] for row in client.post("/v1/embeddings", json={"messages": chat}).json()["data"]])
    assert (rows * np.stack([image, *model.embed_texts(["data: 季度报告"])])).sum(axis=1).min() > 0.9999


def test_immich_gets_a_list_as_a_text_padded_with_zeros_for_whatever_model_it_names(
    client: TestClient, model: Model, pictures: list[Path]
) -> None:
    assert client.get("/ping").text == "pong"
    entries = {"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}
    files = {"image": ("blob", pictures[0].read_bytes())}
    answer = client.post("/predict", data={"entries": json.dumps(entries)}, files=files).json()
    vector = np.array(json.loads(answer["clip"]))
    image = Image.open(pictures[0])
    assert vector.shape == (512,) and not vector[16:].any()
    assert vector[:16] @ model.embed_images([pictures[0]])[0] > 0.9999
    assert (answer["imageWidth"], answer["imageHeight"]) == image.size
    entries = {"clip": {"textual": {"modelName": "other", "options": {"language": "zh-CN"}}}}  # type: ignore[dict-item]
    text = json.loads(client.post("/predict", data={"entries": json.dumps(entries), "text": "红"}).json()["clip"])
    assert np.array(text[:16]) @ model.embed_texts(["红"])[0] > 0.9999
    faces = {"facial-recognition": {"detection": {"modelName": "buffalo_l"}}}
    refused = client.post("/predict", data={"entries": json.dumps(faces)}, files=files)
    assert refused.status_code == 422 and "not facial-recognition" in refused.json()["error"]["message"]
    assert client.post("/predict", data={"entries": '{"\\ud800": {}}'}, files=files).status_code == 422


def test_mt_photos_gets_numbers_as_texts_and_its_key_is_the_token(model: Model, pictures: list[Path]) -> None:
    upload = {"file": ("照片.jpg", pictures[0].read_bytes(), "image/jpeg")}
    with TestClient(application(model._encoder, token="secret"), headers={"api-key": "secret"}) as client:
        assert client.post("/check").json()["result"] == "pass"
        for path in ("/check", "/clip/txt"):
            wrong = client.post(path, json={"text": "红"}, headers={"api-key": "mt_photos_ai_extra"})
            assert wrong.status_code == 401 and wrong.json()["detail"] == "Invalid API key"
            assert client.post(path, headers={"api-key": ""}).status_code == 401
        answers = [client.post("/clip/img", files=upload).json()["result"]]
        answers += [client.post("/clip/txt", json={"text": text}).json()["result"] for text in ("飞机", "a plane")]
        assert all(re.fullmatch(r"-?\d\.\d{16}", number) for numbers in answers for number in numbers)
        expected = np.concatenate([model.embed_images([pictures[0]]), model.embed_texts(["飞机", "a plane"])])
        np.testing.assert_allclose(np.array(answers, float), np.pad(expected, ((0, 0), (0, 512 - 16))), atol=1e-5)
        broken = client.post("/clip/img", files={"file": ("a.jpg", b"no image")})
        assert broken.status_code == 200 and broken.json()["result"] == []
        assert [client.post(path, files=upload).status_code for path in ("/ocr", "/represent", "/restart")] == [404] * 3
        assert "not a readable image" in broken.json()["msg"] and client.get("/health").status_code == 200


def test_labels_and_search_are_those_of_predict_and_search(
    client: TestClient, model: Model, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    labels = client.post("/classify", data={"labels": "红，green、圆"}, files={"image": content}).json()["labels"]
    assert 'dcclip_batch_size_sum{kind="text"} 3.0' in client.get("/metrics").text  # in the queue of all texts
    expected = model.predict(pictures[0], ["红", "green", "圆"])
    assert [row["label"] for row in labels] == list(expected)
    assert labels[0]["probability"] == pytest.approx(next(iter(expected.values())), abs=1e-4)
    hits = client.post("/search", files={"image": content}, data={"top_k": 2}).json()["results"]
    assert hits[0]["path"] == pictures[0].name and hits[0]["score"] > 0.99 and len(hits) == 2
    less = client.post("/search", data={"text": ["红", "圆"], "not": "green"}).json()["results"]
    plus = model.embed_texts(["红", "圆"]).sum(axis=0)
    minus = model.embed_texts(["green"])[0]
    query = (plus - minus) / np.linalg.norm(plus - minus)
    scores = {path.name: float(model.embed_images([path])[0] @ query) for path in pictures}
    assert [hit["path"] for hit in less] == sorted(scores, key=lambda name: -scores[name])
    assert client.get(f"/images/0/{pictures[0].name}").content == content
    assert client.get(f"/{hits[0]['url']}?small=true").headers["content-type"] == "image/jpeg"
    assert client.get("/images/0/..%2Fsecret.png").status_code == 404
    assert client.get("/redoc").status_code == client.get("/page/..%2Fapp.py").status_code == 404
    assert client.get("/").headers["x-content-type-options"] == "nosniff"
    assert less and client.post("/search", data={"text": "红"}).json()["fits"]
    for text in ("红 -green 圆", "红 圆 －green"):
        minus = client.post("/search", data={"text": [text]}).json()["results"]
        assert minus == client.post("/search", data={"text": ["红 圆"], "not": "green"}).json()["results"]
    monkeypatch.setattr(
        model._encoder, "known", KnownWords(dimension=0, most=-1.1, fits=1.1)
    )  # it never learnt anything
    sent = (
        client.post("/classify", data={"labels": "雨,rain"}, files={"image": content}),
        client.post("/search", data={"text": ["雨", "rain"]}),
    )
    assert [response.json()["unknown"] for response in sent] == [["雨", "rain"]] * 2 and not sent[1].json()["fits"]


def test_pictures_with_any_name_are_found_and_those_that_were_replaced_are_not(
    model: Model, pictures: list[Path]
) -> None:
    names = [b"bad\xff.png", "猫 #1.png".encode(), b"a.png", b"b.png", b"c.png"]
    paths = [pictures[0].with_name(os.fsdecode(name)) for name in names]
    for path in paths:
        path.write_bytes(pictures[0].read_bytes())
    indexes = [open_index(model._encoder, pictures[0].parent)]
    for path in paths[2:]:
        path.unlink()
    os.mkfifo(paths[3])
    paths[4].symlink_to(__file__)
    with TestClient(application(model._encoder, indexes)) as client:
        hits = client.post("/search", data={"text": "红"}).json()["results"]
        for small in ("", "?small=true"):
            statuses = {hit["path"]: client.get(f"/{hit['url']}{small}").status_code for hit in hits}
            remaining = {"bad\ufffd.png": 200, "猫 #1.png": 200} | {path.name: 200 for path in pictures}
            assert statuses == remaining | {"a.png": 404, "b.png": 404, "c.png": 404}


def test_a_search_among_a_folder_and_days_and_large_pictures_for_browsers(model: Model, pictures: list[Path]) -> None:
    folder = pictures[0].parent
    trip = pictures[0].parent / "旅行 trip"
    trip.mkdir()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2020:05:01 23:59:59"  # DateTimeOriginal
    wide = Image.open(pictures[0]).convert("RGB").resize((4000, 90))
    wide.save(trip / "a.jpg", exif=exif)
    wide.save(folder / "b.tiff")
    pictures.append(folder / "b.tiff")
    for path in pictures:
        os.utime(path, (1614859200,) * 2)  # 4 March 2021
    with TestClient(application(model._encoder, [open_index(model._encoder, folder)])) as client:
        below = client.get("/folders").json()["subfolders"][0]
        assert below == {"folder": 0, "path": "旅行 trip", "url": "images/0/%E6%97%85%E8%A1%8C%20trip"}

        def searched(**choice: str) -> tuple[list[str], int]:
            content = client.post("/search", data={"text": "红", **choice}).json()
            assert len(content["results"]) == content["images"] >= content["hits"]
            return sorted(hit["path"] for hit in content["results"]), content["images"]

        of_trip = (["旅行 trip/a.jpg"], 1)
        others = (sorted(path.name for path in pictures), len(pictures))
        assert searched(under=below["url"]) == searched(after="2020-05-01", before="2020-05-01") == of_trip
        assert searched(after="2021-03-04", before="2021-03-04") == others and searched()[1] == len(pictures) + 1
        assert searched(under=below["url"], after="2021-01-01") == ([], 0)
        for wrong in ({"under": "images/1/"}, {"under": "旅行"}, {"after": "昨天"}):
            assert client.post("/search", data={"text": "红", **wrong}).status_code == 422
        url = "/images/0/b.tiff"
        assert client.get(url).headers["content-type"] == "image/tiff"
        assert Image.open(io.BytesIO(client.get(f"{url}?large=true").content)).size == (2048, 46)
        original = client.get(f"/images/0/{pictures[0].name}?large=true").content
        assert original == pictures[0].read_bytes()


def test_links_out_of_the_folders_are_neither_indexed_nor_sent(
    model: Model, pictures: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="av is not installed")
    folder = pictures[0].parent
    outside = tmp_path / "外面 outside"
    outside.mkdir()
    film(str(outside / "假日.mp4"), [Image.open(pictures[0])])
    (outside / "secret.png").write_bytes(pictures[0].read_bytes())
    targets = {
        "a.mp4": outside / "假日.mp4",
        "图.png": outside / "secret.png",
        "下": outside,
        "b.mp4": Path("/etc/passwd"),
    }
    for name, target in {**targets, "inside.png": pictures[1]}.items():
        (folder / name).symlink_to(target)
    served = {"inside.png", *(path.name for path in pictures)}
    index = open_index(model._encoder, folder, within=[folder.resolve()])
    assert index.images.keys() == served and index.skipped == {"links": 5}
    everything = open_index(model._encoder, folder)
    assert everything.images.keys() == served | {"a.mp4", "图.png", "下/假日.mp4", "下/secret.png"}
    with TestClient(application(model._encoder, [everything])) as client:
        names = [*served, *targets, "下/假日.mp4", "下/secret.png"]
        statuses = {name: client.get(f"/images/0/{name}").status_code for name in names}
        assert {name for name, status in statuses.items() if status != 404} == served
        frame = everything.images["a.mp4"].replace("#", "%23")
        assert client.get(f"/images/0/{frame}?small=true").status_code == 404
    with TestClient(application(model._encoder, [everything], follow_s=0.1)) as client:
        wait(lambda: client.get("/health").json()["images"] == len(served), within_s=10)


def test_a_video_is_sent_as_what_it_is_now(
    model: Model, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="av is not installed")
    video = pictures[0].with_name("假日.mp4")
    film(str(video), [Image.open(path) for path in pictures[:2]])
    with video.open("ab") as stream:
        stream.truncate(100 << 20)
    index = open_index(model._encoder, video.parent)
    with running(application(model._encoder, [index])) as (_, port):
        late = "9" * 25
        assert answer(send(port, get(f"/images/0/{quote(video.name)}%23t={late}"))).startswith(b"HTTP/1.1 404")
        with send(port, get(f"/images/0/{quote(video.name)}")) as shrinking:
            assert shrinking.recv(1000).startswith(b"HTTP/1.1 200")
            os.truncate(video, 1 << 20)
            with suppress(ConnectionError):
                while shrinking.recv(1 << 20):
                    pass
        video.write_bytes(b"root:x:0:0" * 9)
        assert answer(send(port, get(f"/images/0/{quote(video.name)}"))).startswith(b"HTTP/1.1 404")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_of", "status", "said"),
    [
        ({"content": b"{"}, 422, "invalid request: "),
        ({"json": {"input": ""}}, 422, "empty text"),
        ({"json": {"input": "", "dimensions": 17}}, 422, "dimensions=17 exceeds the model's embedding size 16"),
        ({"json": {"input": [[1, 2]]}}, 422, "an item that is not a string"),
        ({"json": {"input": ["a"] * 2049}}, 422, "2,049 texts"),
        ({"json": {"input": "狗 dog" * 2000}}, 422, "text too long (10,000 characters)"),
        ({"json": {"input": ["狗" * 8192] * 257}}, 422, "too long in total (2,105,344 characters)"),
        ({"json": {"messages": [{"content": ""}]}}, 422, "empty text"),
        ({"json": {"input": "data:image/png;base64,%"}}, 422, "not valid base64"),
        ({"json": {"input": data_url(png_header(50_000, 50_000))}}, 422, "pixels, more than 64,000,000"),
        ({"json": {"input": data_url(b"no image")}}, 422, "not a readable image"),
        ({"content": b'"\\ud800"', "headers": {"content-type": "application/json"}}, 422, "invalid request"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    client: TestClient, request_of: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post("/v1/embeddings", **request_of)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def test_a_request_with_many_wrong_items_is_refused_at_the_first(client: TestClient) -> None:
    nulls = [None] * 400_001
    image_url = {"type": "image_url", "image_url": dict.fromkeys(range(400_001)) | {"url": "https://a.b"}}
    for body, problem in (
        ({"input": nulls}, "the input contains an item that is not a string"),
        ({"messages": nulls}, "body.messages: "),
        ({"messages": [{"content": nulls}]}, "body.messages.content"),
        ({"messages": [{"content": [image_url]}]}, "not a data URL: 'https://a.b'"),
    ):
        content = json.dumps(body)
        begin = time.process_time()
        answer = client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and problem in answer.json()["error"]["message"]
        assert time.process_time() - begin < 1.5


def test_errors_are_in_the_clients_language(client: TestClient) -> None:
    body = {"input": data_url(b"no image")}
    error = client.post("/v1/embeddings", json=body, headers={"Accept-Language": "zh-CN,zh;q=0.9"}).json()["error"]
    assert re.search("[\u4e00-\u9fff]", error["message"]) and re.search("[\u4e00-\u9fff]", error["hint"])


def test_large_bodies_and_a_missing_token_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    with TestClient(application(model._encoder, token="secret"), follow_redirects=False) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models?token=secret").status_code == 401
        for query in ("token=wrong", "token=%ff"):
            assert client.get(f"/?{query}").headers["location"] == "./"
            assert client.get("/folders").status_code == client.get("/token").status_code == 401
        page = client.get("/?text=%E7%8C%AB+a&token=secret&not=b")
        assert page.status_code == 303 and page.headers["location"] == "./?text=%E7%8C%AB+a&not=b"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert client.get("/v1/models").status_code == 200  # by the page's cookie
        client.cookies.clear()
        client.headers["Authorization"] = "Bearer secret"
        assert client.post("/v1/embeddings", content=b"x" * 1001).status_code == 413
        assert client.post("/v1/embeddings", content=iter([b"x" * 600, b"x" * 600])).status_code == 413
        monkeypatch.setattr(guard, "_MAX_BYTES", -1)
        monkeypatch.setattr(guard, "_SMALL_BYTES", 500)
        assert client.get("/ping").status_code == 200  # small ones have a place
        busy = client.post("/v1/embeddings", json={"input": "a" * 600})
        assert busy.status_code == 429 and busy.headers["Retry-After"] == "1"
        assert client.get("/openapi.json").status_code == 429  # a large answer
        monkeypatch.setattr(guard, "_MAX_BYTES", 1 << 20)
        assert 'dcclip_requests_total{path="other",status="413"} 2.0' in client.get("/metrics").text


def test_a_server_of_this_machine_answers_to_its_own_names_only(model: Model) -> None:
    for host in ("LOCALHOST", "127.1", "127.0.0.2", "0.0.0.0"):
        with serve._listen(host, 0) as listening:
            names = serve._names(host, listening)
            is_for_others = serve._address_for_others(listening) is not None
        assert bool(names) is not is_for_others is (host == "0.0.0.0")
        with TestClient(application(model._encoder, hosts=names)) as client:
            wrong = (
                "evil.example",
                "127.0.0.1.evil.example",
                "[::1",
                "",
                "evil.example:x",
                "evil.example:99999",
                "\xff",
            )
            hosts = [name.encode("latin-1") for name in ("localhost:80", host, *wrong)]
            statuses = [client.get("/ping", headers={b"Host": name}).status_code for name in hosts]
            assert statuses == [200, 200, *([400 if names else 200] * len(wrong))]
    with pytest.raises(DcclipError, match=r"^cannot listen on host no.such.invalid: "):
        serve._listen("no.such.invalid", 0)


@contextmanager
def running(app: FastAPI, connections: int = 100) -> Iterator[tuple[BatchedEncoder, int]]:
    """The encoder and the port of a server in a thread."""
    with serve._listen("127.0.0.1", 0) as listening:
        uvicorn = make_server(app, verbose=False)
        uvicorn.config.limit_concurrency = connections
        thread = threading.Thread(target=uvicorn.run, args=([listening],))
        thread.start()
        try:
            yield app.state.server.encoder, listening.getsockname()[1]
        finally:
            uvicorn.should_exit = True
            thread.join()


def send(port: int, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    with suppress(OSError):  # the server closes it
        connection.sendall(content)
    return connection


def post(content: bytes) -> bytes:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content


def answer(connection: socket.socket) -> bytes:
    with connection, suppress(ConnectionError):
        return connection.recv(1000)
    return b""


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def test_connections_without_a_request_end_and_give_way(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CLIENT_S", 60.0)
    incomplete = b"G", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    with running(application(model._encoder), connections=8) as (_, port):
        idle = [send(port, part) for part in incomplete * 10]
        assert answer(send(port, HEALTH)).startswith(b"HTTP/1.1 200")
        assert [answer(connection) for connection in idle[:12]] == [b""] * 12
        monkeypatch.setattr(server, "_CLIENT_S", 0.5)
        with send(port, HEALTH + b"G") as slow:  # a byte a time, after a request
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
            with pytest.raises(ConnectionError):
                for _ in range(200):
                    slow.send(b"E")
                    time.sleep(0.1)
        headers = b"".join(b"X-%d: a\r\n" % number for number in range(100_000))
        assert not answer(send(port, HEALTH[:-2] + headers)).startswith(b"HTTP/1.1 200")
        assert b"400 Bad Request" in answer(send(port, HEALTH[:-2] + b"Host: evil\r\n\r\n"))


def test_the_work_of_a_client_that_leaves_is_dropped_and_the_place_of_its_images_is_free(model: Model) -> None:
    image = encode(Image.new("RGB", (5000, 4000)), "PNG")
    with running(application(model._encoder)) as (encoder, port):
        large = send(port, post(json.dumps({"input": [data_url(image)] * 60}).encode()))
        wait(lambda: encoder.waiting("image") == 60)
        time.sleep(0.3)
        assert encoder.waiting("image") == 60  # those in decoding count
        small = send(port, post(json.dumps({"input": [data_url(encode(Image.new("RGB", (9, 9)), "PNG"))]}).encode()))
        assert answer(small).startswith(b"HTTP/1.1 200") and encoder.waiting("image") == 60  # it had its turn
        large.close()
        wait(lambda: encoder.waiting("image") == 0, within_s=2)
        refused = send(port, post(json.dumps({"input": [data_url(image)] * 60 + [""]}).encode()))
        assert answer(refused).startswith(b"HTTP/1.1 422")
        wait(lambda: encoder.waiting("image") == 0, within_s=2)  # the images of a request without an answer


def test_a_stop_answers_what_was_accepted_and_needs_no_torch(bundle_folder: Path, pictures: list[Path]) -> None:
    code = "import sys; from dcclip_cli.__main__ import main; sys.modules['torch'] = None; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--model", str(bundle_folder), "-q"]
    command += ["--host", "0.0.0.0", "--folder", str(pictures[0].parent), "--exclude", pictures[0].name]
    if os.name == "posix":
        command = ["sh", "-c", 'ulimit -n 256; exec "$0" "$@"', *command]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    assert json.load(urllib.request.urlopen(f"{url}health"))["images"] == len(pictures) - 1
    port = int(url.strip("/").rpartition(":")[2])
    idle = [send(port, b"") for _ in range(400)]  # more than files that it may open
    assert answer(send(port, HEALTH)).startswith(b"HTTP/1.1 200")
    request = post(json.dumps({"input": [f"红 {number}" for number in range(2000)]}).encode())
    with send(port, request[:-9]) as accepted:
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            send(port, HEALTH)
        accepted.sendall(request[-9:])
        assert accepted.recv(1000).startswith(b"HTTP/1.1 200")
    text = server.communicate()[1]
    for connection in idle:
        connection.close()
    assert "Too many open files" not in text
    # onnxruntime warns first on a processor that it does not know.
    assert server.returncode == 0 and "Traceback" not in text and "warning: anyone who can reach port " in text
