"""The hub is asked what it has; a server on this machine stands for it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.hub import files_on_hub


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.startswith("/api/models/ORG/clip")
        body = {"id": "ORG/clip", "siblings": [{"rfilename": "config.json"}, {"rfilename": "vocab.txt"}]}
        content = json.dumps(body if found else {"error": "Repository not found"}).encode()
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_which_files_a_repository_has(hub: ThreadingHTTPServer) -> None:
    assert files_on_hub("ORG/clip") == {"config.json", "vocab.txt"}
    with pytest.raises(DcclipError, match="the hub does not have it, or not for you") as caught:
        files_on_hub("ORG/klip")
    assert caught.value.hint.startswith("check the name")


def test_a_hub_that_cannot_be_reached_is_told_from_a_wrong_name(hub: ThreadingHTTPServer) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DcclipError, match=r"ORG/clip .* the hub cannot be reached: .*refused") as caught:
        files_on_hub("ORG/clip", "dataset")
    assert "hf download ORG/clip --repo-type dataset" in caught.value.hint
    with pytest.raises(DcclipError, match="neither a directory nor a name on the hub"):
        files_on_hub("/no/such/folder")
