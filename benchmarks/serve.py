"""`dcclip serve` under load: speed next to `dcclip embed`, and good requests among broken ones, with SIGTERM.

python benchmarks/serve.py speed FOLDER     # of images; on an idle machine
python benchmarks/serve.py stress --requests 20000
"""

import argparse
import asyncio
import base64
import collections
import io
import json
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.predict.model import load

PORT, TEXTS = 8377, [f"{word}的照片 {number}" for word in ("猫", "海滩", "dog") for number in range(20)]


def start() -> subprocess.Popen[str]:
    """A server that answers."""
    command = [sys.executable, "-m", "dcclip_cli", "serve", "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    time.sleep(1)
    return server


def post(path: str, kind: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def embeddings(*inputs: str) -> bytes:
    return post("/v1/embeddings", "application/json", json.dumps({"input": inputs}).encode())


def image_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 50,000 x 50,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


async def ask(data: bytes, slow: bool = False, cut: bool = False) -> tuple[int, bytes]:
    """Status and body of the answer on a connection of its own; status 0 without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        return -1, b""
    try:
        if cut or slow:
            writer.write(data[: len(data) // 2])
            await writer.drain()
            await asyncio.sleep(random.uniform(0, 3 if slow else 0.01))
        else:
            writer.write(data)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(
                next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1]
            )
            return int(head.split()[1]), await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return 0, b""


def broken(image: bytes) -> list[tuple[bytes, dict[str, bool], tuple[int, ...]]]:
    """Requests with how they are sent and the statuses that are right; 0 where nobody waits for an answer."""
    good = embeddings(image_url(image))
    large = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    return [
        (good, {"cut": True}, (0,)), (good, {"slow": True}, (0,)), (large, {}, (413,)),
        (embeddings(image_url(bomb())), {}, (422,)), (embeddings(image_url(image[:900])), {}, (422,)),
        (embeddings("data:image/png;base64,%%"), {}, (422,)), (embeddings(*["x"] * 2049), {}, (422,)),
        (post("/v1/embeddings", "application/json", b'{"input": [1, {}]}'), {}, (422,)),
        (post("/v1/embeddings", "application/json", b'{"input": "\\ud800"}'), {}, (422,)),
        (post("/v1/embeddings", "application/json", b"[" * 100_000), {}, (400, 422)),
        (post("/predict", "multipart/form-data; boundary=x", b"--x\r\nbroken"), {}, (400, 422)),
        (post("/v1/embeddings", "text/plain", b"\xff\xfe"), {}, (400, 422)),
    ]  # fmt: skip


async def stress(requests: int, clients: int) -> None:
    """Good and broken requests at once; the server is ended by SIGTERM three times and started again."""
    stream = io.BytesIO()
    Image.effect_noise((640, 480), 80).convert("RGB").save(stream, "JPEG")
    image, model, counted = stream.getvalue(), load(), collections.Counter[str]()
    expected, seen = model.embed_texts(TEXTS), model.embed_images([image])[0]
    bad, server, peak, left = broken(image), start(), 0.0, iter(range(requests))

    async def client() -> None:
        for number in left:
            if number % 3 == 0:
                data, how, right = random.choice(bad)
                status, body = await ask(data, **how)
                counted["broken, as expected" if status in (*right, 503, 429) else f"broken, other: {status}"] += (
                    status != -1
                )
                counted["tracebacks"] += b"Traceback" in body
                continue
            place = number % len(TEXTS)
            data, wanted = (
                (embeddings(TEXTS[place]), expected[place]) if number % 2 else (embeddings(image_url(image)), seen)
            )
            while (answer := await ask(data))[0] in (-1, 429, 503):  # refused: not accepted
                counted[f"good, refused: {answer[0]}"] += 1
                await asyncio.sleep(0.3)
            if answer[0] == 200:
                found = np.array(json.loads(answer[1])["data"][0]["embedding"])
                counted["good, right" if found @ wanted > 0.9999 else "good, WRONG"] += 1
            else:
                counted[f"good, other: {answer[0]} {answer[1][:80]!r}"] += 1

    async def ender() -> None:
        nonlocal server, peak
        for _ in range(3):
            await asyncio.sleep(requests / 1000)
            text = (await ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"))[1].decode()
            peak = max(
                [peak, *(float(line.split()[1]) for line in text.splitlines() if line.startswith("process_resident"))]
            )
            server.send_signal(signal.SIGTERM)
            _, said = await asyncio.to_thread(server.communicate)
            counted[f"server ended with {server.returncode}"] += 1
            counted["tracebacks in the log"] += said.count("Traceback")
            server = await asyncio.to_thread(start)

    await asyncio.gather(ender(), *(client() for _ in range(clients)))
    server.terminate()
    print(
        *(f"{count:8,} {name}" for name, count in sorted(counted.items())), f"{peak / 2**20:8.0f} MiB at most", sep="\n"
    )


async def timed(requests: list[bytes], clients: int) -> np.ndarray:
    """Seconds of each request, by so many clients at a time."""
    left, times = iter(requests), []

    async def client() -> None:
        for data in left:
            begin = time.perf_counter()
            assert (await ask(data))[0] == 200
            times.append(time.perf_counter() - begin)

    await asyncio.gather(*(client() for _ in range(clients)))
    return np.array(times)


def speed(folder: Path) -> None:
    """Images per second of `embed` and of 32 clients by turns, and the latency of a text."""
    files = sorted(folder.rglob("*.jpg"))[:1000]
    server, model = start(), load()
    bare = [(time.perf_counter(), model.embed_texts([text]), time.perf_counter()) for text in TEXTS * 5]
    print(f"encoder, one text: median {1000 * np.median([end - begin for begin, _, end in bare]):.1f} ms")
    for clients in (1, 32):
        times = 1000 * asyncio.run(timed([embeddings(text) for text in TEXTS * 20], clients))
        print(f"{clients} clients, one text: median {np.median(times):.1f} ms, p99 {np.percentile(times, 99):.1f} ms")
    for _ in range(3):
        begin = time.perf_counter()
        asyncio.run(timed([embeddings(image_url(file.read_bytes())) for file in files], 32))
        served, begin = time.perf_counter() - begin, time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            names = "\n".join(map(str, files))
            command = [sys.executable, "-m", "dcclip_cli", "embed", "-", "-q", "--out", f"{out}/a.npy"]
            subprocess.run(command, input=names, text=True, check=True, stdout=subprocess.DEVNULL)
        print(f"{len(files) / served:.0f} images/s served, {len(files) / (time.perf_counter() - begin):.0f} by embed")
    server.terminate()


parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["speed", "stress"])
parser.add_argument("folder", type=Path, nargs="?")
parser.add_argument("--requests", type=int, default=2000)
given = parser.parse_args()
if given.what == "speed":
    speed(given.folder)
else:
    asyncio.run(stress(given.requests, 32))
