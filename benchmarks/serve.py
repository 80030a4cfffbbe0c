"""`dcclip serve` under load: speed next to `dcclip embed`, good requests among broken ones, and
hostile clients.

python benchmarks/serve.py speed FOLDER     # of images; on an idle machine
python benchmarks/serve.py stress 20000     # ends the server by SIGTERM three times
python benchmarks/serve.py live 10000       # photographs, to which a tenth comes while a twentieth leaves
python benchmarks/serve.py hostile [NAME]   # only against servers that it starts on this machine; ends within minutes
"""

import base64
import collections
import http.client
import io
import json
import multiprocessing
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli import load

PORT, CLIENTS = 8377, 32
COMMAND = [sys.executable, "-m", "dcclip_cli"]
TEXTS = [f"{word}的照片 {number}" for word in ("猫", "海滩", "dog") for number in range(20)]
LOST = 0  # the status of a connection without an answer


def start(descriptors: int = 0) -> subprocess.Popen[str]:
    """A server that answers, with at most so many open files."""
    server = subprocess.Popen(
        [*COMMAND, "serve", "--port", str(PORT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (descriptors,) * 2) if descriptors else None,
    )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline()
    while ask("GET", "/health")[0] != 200:
        time.sleep(0.1)
    return server


def ask(
    method: str, path: str, body: bytes | None = None, kind: str = "application/json"
) -> tuple[int, bytes]:
    """Status and body of an answer; -1 where nobody listens."""
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)) as connection:
        try:
            connection.connect()
        except OSError:
            return -1, b""
        with suppress(OSError, http.client.HTTPException):
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
    return LOST, b""


def part(body: bytes, length: int, wait_s: float) -> tuple[int, bytes]:
    """Send a body that is shorter than it says, and leave after a while."""
    with (
        suppress(OSError, IndexError),
        socket.create_connection(("127.0.0.1", PORT), timeout=10) as connection,
    ):
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
            + body
        )
        time.sleep(wait_s)
        return (int(connection.recv(1000).split()[1]), b"") if not body else (LOST, b"")
    return LOST, b""


def inputs(*given: str | bytes) -> bytes:
    """The request for embeddings of texts, and of files of images."""
    urls = [
        "data:image/jpeg;base64," + base64.b64encode(part).decode()
        if isinstance(part, bytes)
        else part
        for part in given
    ]
    return json.dumps({"input": urls}).encode()


def send_broken(image: bytes) -> str:
    """Send one of many kinds of broken requests; returns what is wrong with the answer, if
    anything.
    """
    header = b"IHDR" + struct.pack(
        ">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0
    )  # as many pixels, in a few bytes
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )
    bodies = [inputs(part) for part in (bomb, image[:900], "data:image/png;base64,%")]
    bodies += [
        b"[" * 100_000,
        b'{"input": [1, {}]}',
        b'{"input": "\\ud800"}',
        b"\xff",
        inputs(*["x"] * 2049),
        inputs(),
    ]
    sent: list[tuple[Callable[[], tuple[int, bytes]], set[int]]] = [
        *((partial(ask, "POST", "/v1/embeddings", body), {400, 422}) for body in bodies),
        (
            partial(ask, "POST", "/predict", b"--x\r\nbroken", "multipart/form-data; boundary=x"),
            {400, 422},
        ),
        *(
            (partial(part, image, 2 * len(image), wait_s), {LOST})
            for wait_s in (0, random.uniform(0, 3))
        ),
        (partial(part, b"", 99_999_999_999, 0), {413, LOST}),
    ]
    call, right = random.choice(sent)
    wrong = (status := (answer := call())[0]) not in right | {
        -1,
        429,
        503,
    } or b"Traceback" in answer[1]
    return f"broken, other: {call} {status}"[:200] if wrong else "broken, as expected"


def stress(requests: int) -> None:
    """Good and broken requests at once; the server is ended by SIGTERM three times and started
    again.
    """
    image, model, counted = noise(640, 480), load(), collections.Counter[str]()
    data = {inputs(text): row for text, row in zip(TEXTS, model.embed_texts(TEXTS), strict=True)}
    data[inputs(image)] = model.embed_images([image])[0]

    def send(number: int) -> list[str]:
        if number % 3 == 0:
            return [send_broken(image)]
        body, expected = random.choice(list(data.items())[-1 - number % 2 * len(TEXTS) :])
        problems = []
        while (answer := ask("POST", "/v1/embeddings", body))[0] in (
            -1,
            429,
            503,
        ):  # refused: not accepted
            problems.append(f"good, refused: {answer[0]}")
            time.sleep(0.3)
        right = (
            answer[0] == 200
            and np.array(json.loads(answer[1])["data"][0]["embedding"]) @ expected > 0.9999
        )
        return [
            *problems,
            "good, right" if right else f"good, other: {answer[0]} {answer[1][:80]!r}",
        ]

    server, peak = start(), 0.0
    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(send, number) for number in range(requests)]
        for third in (1, 2, 3):
            futures[requests * third // 4].result()
            text = ask("GET", "/metrics")[1].decode()
            peak = max(peak, float(text.split("\nprocess_resident_memory_bytes ")[1].split()[0]))
            server.terminate()
            stderr = server.communicate()[1]
            counted[
                f"server ended with "
                f"{server.returncode}{', a traceback in its log' * ('Traceback' in stderr)}"
            ] += 1
            server = start()
    counted.update(chain.from_iterable(future.result() for future in futures))
    server.terminate()
    print(
        *(f"{number:8,} {name}" for name, number in sorted(counted.items())),
        f"{peak / 2**20:.0f} MiB",
        sep="\n",
    )


def seconds(body: bytes, pause: float = 0.0) -> float:
    time.sleep(pause * random.random())
    begin = time.perf_counter()
    assert ask("POST", "/v1/embeddings", body)[0] == 200
    return time.perf_counter() - begin


def speed(folder: Path) -> None:
    """Images per second of `embed` and of 32 clients by turns, and the latency of a text."""
    files, server, model = sorted(folder.rglob("*.jpg"))[:1000], start(), load()
    for count in (1, CLIENTS):
        bare = [time.perf_counter() for _ in range(300) if len(model.embed_texts(TEXTS[:count]))]
        print(f"encoder, {count} texts at once: median {1000 * np.median(np.diff(bare)):.1f} ms")
    for clients, pause in (
        (1, 0.0),
        (CLIENTS, 0.2),
        (CLIENTS, 0.0),
    ):  # seconds, at most, between requests of a client
        with ThreadPoolExecutor(clients) as pool:
            times = 1000 * np.array(
                list(pool.map(partial(seconds, pause=pause), map(inputs, TEXTS * 40)))
            )
        told = (
            f"{clients} clients, pauses up to {pause} s, one text: median {np.median(times):.1f} ms"
        )
        print(f"{told}, p99 {np.percentile(times, 99):.1f} ms")
    for _ in range(3):
        begin = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda file: seconds(inputs(file.read_bytes())), files))
        served, begin, names = (
            time.perf_counter() - begin,
            time.perf_counter(),
            "\n".join(map(str, files)),
        )
        with tempfile.TemporaryDirectory() as out:
            subprocess.run(
                [*COMMAND, "embed", "-", "-q", "--out", f"{out}/a.npy"],
                input=names,
                text=True,
                check=True,
            )
        print(
            f"{len(files) / served:.0f} images/s served, "
            f"{len(files) / (time.perf_counter() - begin):.0f} by embed"
        )
    server.terminate()


PROBE_S = 15.0  # other clients ask for so long


def noise(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def large_picture() -> bytes:
    """A small file that takes much memory: transparent, and lying on its side."""
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (7_800, 7_950)).save(stream, "PNG", exif=exif)
    return stream.getvalue()


def form_of(image: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
    return b"".join(
        [
            head % (b"labels", b""),
            b"cat,dog\r\n",
            head % (b"image", b'; filename="a"'),
            image,
            b"\r\n--x--\r\n",
        ]
    )


def leave_after(body: bytes, wait_s: float) -> None:
    """Send a request and leave without its answer."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
        head = (
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(wait_s)


def endless_headers() -> None:
    """Header lines for 10 seconds and 500 MB at most, or until the server closes the connection."""
    lines, end = (
        b"".join(b"X-%d: %b\r\n" % (number, b"a" * 1000) for number in range(1000)),
        time.monotonic() + 10,
    )
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(500):
            connection.sendall(lines)
            if time.monotonic() > end:
                return


def stay_idle() -> None:
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=5):
        time.sleep(PROBE_S)


def attack_as(clients: int, attack: Callable[[], object]) -> None:
    """The attack of so many clients, in a process of its own; prints the statuses that they get."""
    with ThreadPoolExecutor(clients) as pool:
        answers = [future.result() for future in [pool.submit(attack) for _ in range(clients)]]
    print(
        "    attackers:",
        dict(collections.Counter(answer[0] for answer in answers if isinstance(answer, tuple))),
    )


def hostile(only: str = "") -> None:
    """How long other clients wait, and the server's memory, while some do what no good client
    does.
    """
    small, large = noise(640, 480), large_picture()
    attacks: dict[str, tuple[int, int, Callable[[], object]]] = {
        "nothing": (1, 0, lambda: None),
        "a text of 16 MB": (
            1,
            0,
            partial(ask, "POST", "/v1/embeddings", inputs("cat dog " * 2_000_000)),
        ),
        "64 clients that leave, 62 megapixels x 4 each": (
            64,
            0,
            partial(leave_after, inputs(*[large] * 4), 1.0),
        ),
        "endless headers": (1, 0, endless_headers),
        "400 idle connections, 256 descriptors": (400, 256, stay_idle),
        "200 clients with 16 images each": (
            200,
            0,
            partial(ask, "POST", "/v1/embeddings", inputs(*[small] * 16)),
        ),
        "40 clients with 30 MB each": (
            40,
            0,
            partial(ask, "POST", "/v1/embeddings", inputs(*[small * 6] * 15)),
        ),
    }
    probes = {
        "health": partial(ask, "GET", "/health"),
        "text": partial(ask, "POST", "/v1/embeddings", inputs("一只狗")),
        "image": partial(
            ask, "POST", "/classify", form_of(small), "multipart/form-data; boundary=x"
        ),
    }

    def probe(call: Callable[[], tuple[int, bytes]]) -> list[tuple[float, int]]:
        answers, end = [], time.monotonic() + PROBE_S
        while (begin := time.monotonic()) < end:
            answers.append((call()[0], time.monotonic() - begin))
            time.sleep(0.1)
        return [(wait_s, status) for status, wait_s in answers]

    for name, (clients, descriptors, attack) in attacks.items():
        if only not in name:
            continue
        server = start(descriptors)
        attacker = multiprocessing.get_context("fork").Process(
            target=attack_as, args=(clients, attack), daemon=True
        )
        attacker.start()
        time.sleep(0.5)
        with ThreadPoolExecutor(len(probes)) as pool:
            waits = dict(zip(probes, pool.map(probe, probes.values()), strict=True))
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        print(f"{name}: {peak:,.0f} MiB, load {os.getloadavg()[0]:.0f}", flush=True)
        for kind, answers in waits.items():
            statuses = dict(collections.Counter(status for _, status in answers))
            times = sorted(wait_s for wait_s, _ in answers)
            print(
                f"    {kind}: median {times[len(times) // 2]:.2f} s, longest "
                f"{times[-1]:.2f} s, {statuses}",
                flush=True,
            )
        attacker.join(5)
        attacker.kill()
        server.kill()


def live(count: int) -> None:
    """Reload Duplicates three times while photographs come and leave; print what ran at once, and
    the result.
    """
    import uvicorn

    from dcclip_cli.inference.encoder import load_encoder
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.photos.duplicates import find_duplicates
    from dcclip_cli.photos.index import open_index
    from dcclip_cli.serve import app

    noises = np.random.default_rng(0).integers(0, 256, (count + count // 10, 6, 8, 3), np.uint8)
    running, most, comparisons = 0, 0, 0

    def write(folder: Path, number: int, width: int = 320) -> None:
        picture = Image.fromarray(noises[number]).resize(
            (width, width * 3 // 4), Image.Resampling.BICUBIC
        )
        picture.save(folder / f"{number}-{width}.jpg")

    def find_and_count(*arguments: object) -> object:
        nonlocal running, most, comparisons
        running, comparisons = running + 1, comparisons + 1
        most = max(most, running)
        begin, begin_s = time.monotonic(), time.process_time()
        result = find_duplicates(*arguments)
        running -= 1
        print(
            f"comparison: {time.monotonic() - begin:.1f} s, CPU "
            f"{time.process_time() - begin_s:.1f} s",
            flush=True,
        )
        return result

    app.find_duplicates = find_and_count
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["DCCLIP_CACHE"] = f"{temporary}/cache"
        folder = Path(temporary, "photos")
        folder.mkdir()
        for number in range(count):
            write(folder, number)
        for number in range(20):
            write(folder, number, 240)  # copies
        encoder, lines = load_encoder(resolve("starter")), list[str]()
        served = app.application(
            encoder, [open_index(encoder, folder)], say=lines.append, follow_s=1.5
        )
        server = uvicorn.Server(uvicorn.Config(served, port=PORT, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while ask("GET", "/health")[0] != 200:
            time.sleep(0.1)
        for part in range(10):
            for number in range(count + part * count // 100, count + (part + 1) * count // 100):
                write(folder, number)
            for number in range(
                count // 2 + part * count // 200, count // 2 + (part + 1) * count // 200
            ):
                (folder / f"{number}-320.jpg").unlink()
            (folder / f"{part}-240.jpg").unlink()
            if part < 3:
                with socket.create_connection(("127.0.0.1", PORT)) as connection:
                    connection.sendall(b"GET /duplicates HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    time.sleep(0.5)
        expected = count + count // 10 - count // 20 + 10
        while json.loads(ask("GET", "/health")[1])["images"] != expected:
            time.sleep(0.5)
        with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=3600)) as connection:
            connection.request("GET", "/duplicates")
            copies = json.loads(connection.getresponse().read())["copies"]
        server.should_exit = True
        thread.join()
    groups = {tuple(photo["path"] for photo in group) for group in copies}
    is_right = groups == {(f"{number}-320.jpg", f"{number}-240.jpg") for number in range(10, 20)}
    print(
        f"{expected:,} photographs; comparisons {comparisons}, at once {most}; right: "
        f"{is_right}; said: {lines}"
    )


match sys.argv[1:]:
    case ["live", count]:
        live(int(count))
    case ["speed", folder]:
        speed(Path(folder))
    case ["stress", count]:
        stress(int(count))
    case ["hostile", *names]:
        hostile(*names)
