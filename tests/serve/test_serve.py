"""`dcclip serve`: what each kind of client gets, what is refused, and a stop in the middle of requests."""

import base64
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import dcclip_cli.serve.guard as guard
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.index import open_index
from dcclip_cli.inference.model import Model
from dcclip_cli.model.known import Known
from dcclip_cli.model.reference import resolve
from dcclip_cli.serve.app import application
from tests.images import encode, png_header


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
    rows = np.array([one["embedding"] for one in answer["data"]])
    texts, [image] = model.embed_texts(["红色的圆", "a green moon"]), model.embed_images([pictures[0]])
    assert (rows * np.stack([texts[0], image, texts[1]])).sum(axis=1).min() > 0.9999
    assert [one["index"] for one in answer["data"]] == [0, 1, 2] and answer["object"] == "list"
    short = client.post("/v1/embeddings", json={"input": "红", "dimensions": 8, "encoding_format": "base64"}).json()
    found = np.frombuffer(base64.b64decode(short["data"][0]["embedding"]), "<f4")
    wanted = model.embed_texts(["红"])[0, :8]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": inputs[1]}}]}]  # vLLM's
    assert (
        np.array(client.post("/v1/embeddings", json={"messages": chat}).json()["data"][0]["embedding"]) @ image > 0.9999
    )


def test_immich_gets_a_list_as_a_text_padded_with_zeros_for_whatever_model_it_names(
    client: TestClient, model: Model, pictures: list[Path]
) -> None:
    assert client.get("/ping").text == "pong"
    entries = {"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}
    files = {"image": ("blob", pictures[0].read_bytes())}
    answer = client.post("/predict", data={"entries": json.dumps(entries)}, files=files).json()
    vector, image = np.array(json.loads(answer["clip"])), Image.open(pictures[0])
    assert vector.shape == (512,) and not vector[16:].any()
    assert vector[:16] @ model.embed_images([pictures[0]])[0] > 0.9999
    assert (answer["imageWidth"], answer["imageHeight"]) == image.size
    entries = {"clip": {"textual": {"modelName": "other", "options": {"language": "zh-CN"}}}}  # type: ignore[dict-item]
    text = json.loads(client.post("/predict", data={"entries": json.dumps(entries), "text": "红"}).json()["clip"])
    assert np.array(text[:16]) @ model.embed_texts(["红"])[0] > 0.9999
    faces = {"facial-recognition": {"detection": {"modelName": "buffalo_l"}}}
    refused = client.post("/predict", data={"entries": json.dumps(faces)}, files=files)
    assert refused.status_code == 422 and "not facial-recognition" in refused.json()["error"]["message"]


def test_labels_and_search_are_those_of_predict_and_search(
    client: TestClient, model: Model, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures[0].read_bytes()
    found = client.post("/classify", data={"labels": "红，green、圆"}, files={"image": content}).json()["labels"]
    wanted = model.predict(pictures[0], ["红", "green", "圆"])
    assert [one["label"] for one in found] == list(wanted)
    assert found[0]["probability"] == pytest.approx(next(iter(wanted.values())), abs=1e-4)
    hits = client.post("/search", files={"image": content}, data={"top_k": 2}).json()["results"]
    assert hits[0]["path"] == pictures[0].name and hits[0]["score"] > 0.99 and len(hits) == 2
    less = client.post("/search", data={"text": ["红", "圆"], "not": "green"}).json()["results"]
    plus, minus = model.embed_texts(["红", "圆"]).sum(axis=0), model.embed_texts(["green"])[0]
    query = (plus - minus) / np.linalg.norm(plus - minus)
    scores = {path.name: float(model.embed_images([path])[0] @ query) for path in pictures}
    assert [one["path"] for one in less] == sorted(scores, key=lambda name: -scores[name])
    assert client.get(f"/images/0/{pictures[0].name}").content == content
    assert client.get(f"/images/0/{pictures[0].name}?small=true").headers["content-type"] == "image/jpeg"
    assert client.get("/images/0/..%2Fsecret.png").status_code == 404
    assert "<form>" in client.get("/").text
    monkeypatch.setattr(model._encoder, "known", Known(dimension=0, most=-1.1, fits=0))  # it never learnt anything
    sent = (
        client.post("/classify", data={"labels": "雨,rain"}, files={"image": content}),
        client.post("/search", data={"text": ["雨", "rain"]}),
    )
    assert [one.json()["unknown"] for one in sent] == [["雨", "rain"]] * 2


@pytest.mark.parametrize(
    ("request_of", "status", "said"),
    [
        ({"content": b"{"}, 422, "the request is not as it should be"),
        ({"json": {"input": ""}}, 422, "a text is empty"),
        ({"json": {"input": [[1, 2]]}}, 422, "token ids of another model"),
        ({"json": {"input": ["a"] * 2049}}, 422, "2,049 texts"),
        ({"json": {"input": "data:image/png;base64,%"}}, 422, "not base64"),
        ({"json": {"input": data_url(png_header(50_000, 50_000))}}, 422, "pixels, more than 64,000,000"),
        ({"json": {"input": data_url(b"no image")}}, 422, "not a readable image"),
        ({"content": b'"\\ud800"', "headers": {"content-type": "application/json"}}, 422, "the request"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    client: TestClient, request_of: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post("/v1/embeddings", **request_of)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def test_errors_are_in_the_clients_language(client: TestClient) -> None:
    body = {"input": data_url(b"no image")}
    said = client.post("/v1/embeddings", json=body, headers={"Accept-Language": "zh-CN,zh;q=0.9"}).json()["error"]
    assert re.search("[\u4e00-\u9fff]", said["message"]) and re.search("[\u4e00-\u9fff]", said["hint"])


def test_large_bodies_many_requests_and_a_missing_token_are_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    with TestClient(application(model._encoder, token="secret")) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/v1/models").status_code == 200  # by the page's cookie
        client.cookies.clear()
        client.headers["Authorization"] = "Bearer secret"
        assert client.post("/v1/embeddings", content=b"x" * 1001).status_code == 413
        assert client.post("/v1/embeddings", content=iter([b"x" * 600, b"x" * 600])).status_code == 413
        monkeypatch.setattr(guard, "_AT_A_TIME", 0)
        busy = client.post("/v1/embeddings", json={"input": "a"})
        assert busy.status_code == 429 and busy.headers["Retry-After"] == "1"
        assert 'dcclip_requests_total{path="other",status="413"} 2.0' in _metrics(client, monkeypatch)


def _metrics(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(guard, "_AT_A_TIME", 10)
    return client.get("/metrics").text


def test_a_stop_answers_what_was_accepted_and_needs_no_torch(bundle_folder: Path) -> None:
    code = "import sys; from dcclip_cli.__main__ import main; sys.modules['torch'] = None; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--model", str(bundle_folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url, statuses = server.stdout.readline().strip(), []
    body = json.dumps({"input": [f"红 {number}" for number in range(2000)]}).encode()

    def ask() -> None:
        asked = urllib.request.Request(f"{url}v1/embeddings", body, {"Content-Type": "application/json"})
        try:
            statuses.append(len(json.load(urllib.request.urlopen(asked))["data"]))
        except urllib.error.HTTPError as error:
            statuses.append(error.code)

    ask()
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    said = server.communicate()[1]
    assert server.returncode == 0 and "Traceback" not in said
    assert statuses[0] == 2000 and set(statuses) <= {2000, 503}


def test_a_picture_in_avif_and_in_heic_is_read(model: Model, pictures: list[Path]) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    image = Image.open(pictures[0]).convert("RGB")
    [wanted] = model.embed_images([image])
    with TestClient(application(model._encoder)) as client:
        for kind in ("AVIF", "HEIF"):
            content = encode(image, kind, quality=95)
            answer = client.post("/v1/embeddings", json={"input": data_url(content)}).json()
            assert np.array(answer["data"][0]["embedding"]) @ wanted > 0.98, kind
