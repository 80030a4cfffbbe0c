"""`dcclip mcp`: the official client talks to it over stdin and stdout, in two languages, and reads no other files."""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import dcclip
from tests.videos import film

mcp = pytest.importorskip("mcp", reason="mcp is not installed")
pytest.importorskip("av", reason="av is not installed")
STARTER = Path(__file__).parents[2] / "recipes/starter/photos"


ODD = r"\udcff\x1b\n\x41猫.jpg"  # a name on the disk that is no text, as it is shown


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "我的照片", tmp_path / "photos"]
    for folder in folders:
        folder.mkdir()
    for number, photo in enumerate(sorted(STARTER.glob("*.jpg"))):
        shutil.copy(photo, folders[number % 2])
    shutil.copy(STARTER / "cat.jpg", tmp_path / "secret.jpg")
    with Image.open(STARTER / "cat.jpg") as cat:
        cat.resize((cat.width // 2, cat.height // 2)).save(folders[1] / "小猫.jpg")
    (folders[0] / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folders[1] / "broken.jpg").write_bytes(b"no image")
    Image.radial_gradient("L").save(folders[0] / os.fsdecode(b"\xff\x1b\n\\x41\xe7\x8c\xab.jpg"))
    (folders[0] / "#recycle").mkdir()
    shutil.copy(STARTER / "cat.jpg", folders[0] / "#recycle" / "deleted.jpg")
    film(str(folders[1] / "假日.mp4"), [Image.open(STARTER / f"{name}.jpg") for name in ("astronaut", "temple")])
    return folders


def test_ten_dialogues_find_show_and_label_photos_and_paths_outside_are_refused(folders: list[Path]) -> None:
    command = ["-m", "dcclip_cli", "mcp", *map(str, folders), "--model", "starter", "--device", "cpu"]
    server = mcp.StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    cat = next(folders[0].parent.glob("*/cat.jpg"))
    rocket = next(folders[0].parent.glob("*/rocket.jpg"))

    async def talk() -> None:
        async with mcp.Client(server) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == ["search", "show", "label", "duplicates"]
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)

            async def call(name: str, **arguments: Any) -> Any:
                result = await client.call_tool(name, arguments)
                return result.content[0].text if result.is_error else result.structured_content or result.content

            queries = {"cat": "猫 a cat", "rocket": "火箭 a rocket", "coffee": "咖啡 coffee", "flower": "花 a flower"}
            for name, texts in queries.items():  # eight dialogues
                for text, labels in zip(texts.split(" ", 1), (["猫", "火箭", "咖啡", "花"], [*queries]), strict=True):
                    answer = await call("search", text=text, top_k=2)
                    best = answer["photos"][0]["photo"]
                    assert Path(best).name == f"{name}.jpg" and answer["fits"] and not answer["unknown"]
                    [shown] = await call("show", photo=best, max_px=64)
                    image = Image.open(io.BytesIO(base64.b64decode(shown.data)))
                    assert shown.mime_type == "image/jpeg" and max(image.size) == 64
                    [row] = (await call("label", photos=[best], labels=labels))["photos"]
                    assert next(iter(row["labels"])) == labels[[*queries].index(name)]
            # A ninth and a tenth: what resembles a photo, without something; labels each by itself, and none.
            alike = await call("search", like=str(rocket), without="猫", top_k=1)
            assert Path(alike["photos"][0]["photo"]).name == "rocket.jpg"
            for text, kept, without in (("动物 －猫", "动物", "猫"), ("animal -cat", "animal", "cat")):
                assert await call("search", text=text) == await call("search", text=kept, without=without)
            frame = f"{folders[1]}/假日.mp4#t=4.5"
            [hit] = (await call("search", like=frame, top_k=1))["photos"]
            assert hit["photo"].startswith(f"{folders[1]}/假日.mp4#t=")
            assert (await call("show", photo=hit["photo"]))[0].mime_type == "image/jpeg"
            copies = await call("duplicates")
            [[largest, copy]] = copies["copies"]
            assert copies["copies_count"] == 1 and (Path(largest["photo"]), Path(copy["photo"]).name) == (
                cat,
                "小猫.jpg",
            )
            rows = await call("label", photos=[str(cat), "broken.jpg"], labels=["cat", "火箭"], multi_label=True)
            [labels, failure] = rows["photos"]
            assert labels["labels"]["cat"] > 0.5 > labels["labels"]["火箭"]
            assert "not a readable image" in failure["error"]
            outside = ("../secret.jpg", str(folders[0] / "../secret.jpg"), "link.jpg", "/etc/passwd", "a\0", "", ".")
            for path in outside:
                assert "is not a photo in the served folders" in await call("show", photo=path)
                assert "is not a photo" in await call("label", photos=[str(cat), path], labels=["猫"])
            assert "is not a photo" in await call("search", like="../secret.jpg")
            assert "neither text nor an image" in await call("search", text=" ")
            for path in ("#recycle/deleted.jpg", "a" * 100_000):
                assert len(refusal := await call("show", photo=path)) < 400 and "use a path from" in refusal
            [hit] = (await call("search", like=ODD, top_k=1))["photos"]
            assert hit["photo"] == f"{folders[0]}/{ODD}"
            assert (await call("show", photo=hit["photo"], max_px=64))[0].mime_type == "image/jpeg"
            assert "at most 8,192" in await call("search", text="猫 dog " * 2000)
            assert "at most 8,192" in await call("label", photos=[str(cat)], labels=["猫", "dog" * 9000])
            assert "top_k" in await call("search", text="猫", top_k=101)

    refused = dcclip("mcp", folders[0], "--model", "starter", "--device", "mps", expect=1).stderr
    assert "error: onnxruntime does not support the device mps\nhint: " in refused
    before = {path: path.stat().st_mtime_ns for path in folders[0].parent.rglob("*")}
    asyncio.run(asyncio.wait_for(talk(), 120))
    assert {path: path.stat().st_mtime_ns for path in folders[0].parent.rglob("*")} == before


@pytest.mark.parametrize("end", ["SIGTERM", "closed pipes", "end of input"])
def test_half_a_surrogate_pair_is_answered_and_no_end_leaves_a_traceback(folders: list[Path], end: str) -> None:
    command = [sys.executable, "-m", "dcclip_cli", "mcp", str(folders[0]), "--model", "starter", "--device", "cpu"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    requests: list[tuple[str, dict[str, Any]]] = [
        (
            "initialize",
            {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "", "version": ""}},
        ),
        ("prompts/get", {"name": "\ud800"}),
        ("tools/call", {"name": "label", "arguments": {"photos": ["\udc00"], "labels": ["猫\ud800"]}}),
        ("tools/call", {"name": "search", "arguments": {"text": "\\ud800 \ud83d\ude00 火箭 \ud800", "top_k": 1}}),
    ]
    requests += [("tools/call", {"name": "search", "arguments": {"text": text}}) for text in ["猫", "dog"] * 10]
    with subprocess.Popen(command, **pipes) as server:  # type: ignore[call-overload]
        answers = {}
        for number, (method, parameters) in enumerate(requests):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            if number <= 3:
                answer = json.loads(server.stdout.readline())
                answers[answer["id"]] = answer
        assert "Unknown prompt" in answers[1]["error"]["message"]
        assert "'?' is not a photo" in answers[2]["result"]["content"][0]["text"]
        assert answers[3]["result"]["structuredContent"]["photos"][0]["photo"].endswith("rocket.jpg")
        if end == "SIGTERM":
            server.send_signal(signal.SIGTERM)
        else:
            server.stdin.close()
        if end == "closed pipes":
            server.stdout.close()
        assert server.wait(60) == (143 if end == "SIGTERM" else 0)
        stderr = server.stderr.read().decode()
    assert "Traceback" not in stderr and "rror" not in stderr, stderr
