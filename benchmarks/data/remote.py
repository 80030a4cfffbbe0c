"""`align` on shards in an S3 store, compared with the same shards on disk, and a store that is killed meanwhile.

    pip install 'dcclip[remote]' 'moto[server]'
    python benchmarks/data/remote.py speed WORK [--pairs 40000] [--rounds 3]
    python benchmarks/data/remote.py killed WORK [--pairs 40000]

Images are JPEG files of 256 px and 15 KB in 100 tars, shuffled two tars at a time; the store is moto's S3 server, in a
process of its own on loopback, and the block cache a tenth of the data. `speed`: images/s from disk and from the store
by turns, loading included, each in a process of its own and with an empty block cache, without the first steps.
`killed`: the store is killed with signal 9 in the middle of a run and started again when the run has ended with an
error; the run resumes. The weights must be those of a run from disk.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

TARS, IMAGES, BATCH_SIZE = 100, 1000, 128
SKIPPED = 20  # steps at the start, before the first windows are there
BUCKET = "bucket"
STORE = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
WORDS = {
    "red": "红",
    "green": "绿",
    "blue": "蓝",
    "small": "小",
    "large": "大",
    "old": "旧",
    "new": "新",
    "round": "圆",
}


def make(folder: Path, pairs: int) -> int:
    """Write the shards unless they are there; the bytes of all."""
    random, images = np.random.default_rng(0), list[bytes]()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TARS):
        path = folder / f"{number:05}.tar"
        if path.exists():
            continue
        images = images or [_image(random) for _ in range(IMAGES)]
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(pairs // TARS):
                key = f"{number:05}{row:05}"
                words = random.choice(list(WORDS), 4).tolist()
                record = {"en": f"{' '.join(words)} {key}", "zh": "".join(WORDS[word] for word in words) + key}
                image = images[int(random.integers(IMAGES))]
                _add(tar, f"{key}.jpg", image[:2] + b"\xff\xfe\0\x0c" + key.encode() + image[2:])  # a comment
                _add(tar, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        partial.replace(path)
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def _image(random: np.random.Generator) -> bytes:
    small = Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=45)
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# ---- the store


class Store:
    """moto's S3 server in a process of its own, with the shards in its memory."""

    def __init__(self, shards: Path) -> None:
        self._shards = shards
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **STORE, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}"}

    def start(self) -> None:
        """Start the server, and upload the shards: killed, it forgets them."""
        import boto3

        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", self._port)) == 0:
                    break
            time.sleep(0.1)
        login = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client: Any = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._port}", **login)
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(self._shards.glob("*.tar")):
            client.put_object(Bucket=BUCKET, Key=f"shards/{path.name}", Body=path.read_bytes())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def store(shards: Path) -> Iterator[Store]:
    running = Store(shards)
    try:
        yield running
    finally:
        running.kill()


# ---- runs


def recipe(folder: Path, train: str, cache_gb: float, steps: int) -> Path:
    """Write the recipe of a run: a tiny student from scratch, without a teacher."""
    file = folder.with_suffix(".yaml")
    window = steps * BATCH_SIZE * 2 // TARS
    text = {"layers": 1, "width": 64, "heads": 1, "context_length": 32, "vocabulary": {"from": "data", "size": 500}}
    content = {
        "format": 1,
        "name": folder.name,
        "student": {"image": {"timm": "test_resnet", "size": 64}, "text": text, "embed_dim": 64},
        "data": {"train": train, "shuffle_window": window, "cache_gb": round(cache_gb, 6)},
        "align": {
            "start": "scratch",
            "losses": [],
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "warmup_steps": 10,
            "workers": 1,
            "threads": 1,
            "precision": "fp32",
            "augment": {"crop": 0.9},
            "log_every_steps": 10,
            "checkpoint_every_steps": 50,
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content), "utf-8")
    return file


def start(folder: Path, file: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dcclip_cli", "align", str(file), "--out", str(folder), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(run: subprocess.Popen[str]) -> None:
    _, said = run.communicate()
    if run.returncode:
        raise SystemExit(said)


def logged(folder: Path) -> list[dict[str, Any]]:
    file = folder / "align/metrics.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def rate(folder: Path) -> float:
    """Images per second, without the first steps."""
    lines = [line for line in logged(folder) if "images_per_second" in line and line["step"] > SKIPPED]
    return statistics.harmonic_mean([line["images_per_second"] for line in lines])


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "align/model/open_clip_model.safetensors").read_bytes()).hexdigest()[:16]


def largest(folder: Path, run: subprocess.Popen[str]) -> int:
    """The largest size of the block cache while a run goes on."""
    most = 0
    while run.poll() is None:
        entries = [entry for entry in folder.glob("*") if entry.suffix in (".block", ".partial")]
        sizes = [entry.stat().st_size for entry in entries if entry.exists()]
        most = max(most, sum(sizes))
        time.sleep(0.2)
    return most


def speed(root: Path, shards: Path, size: int, pairs: int, rounds: int) -> None:
    steps, cache_gb = pairs // BATCH_SIZE, size / 10 / 1e9
    found: dict[str, list[float]] = {"disk": [], "store": []}
    with store(shards) as running:
        places = {"disk": str(shards), "store": f"s3://{BUCKET}/shards"}
        for number in range(rounds):
            for name in found if number % 2 == 0 else reversed(found):
                folder, cache = root / f"{name}-{number}", root / "cache"
                shutil.rmtree(cache / "blocks", ignore_errors=True)
                environment = {**running.environment, "DCCLIP_CACHE": str(cache)}
                run = start(folder, recipe(folder, places[name], cache_gb, steps), environment)
                most = largest(cache / "blocks", run)
                finish(run)
                found[name].append(rate(folder))
                cached = f", block cache at most {most / 1e6:.1f} of {size / 1e6:.0f} MB" if most else ""
                said = f"{name} {found[name][-1]:.0f} images/s, weights {sha256(folder)}"
                print(f"round {number + 1}: {said}{cached}", flush=True)
    disk, remote = (statistics.median(rates) for rates in found.values())
    print(f"disk {disk:.0f} images/s, store {remote:.0f}: {remote / disk:.3f} x", flush=True)


def killed(root: Path, shards: Path, size: int, pairs: int) -> None:
    steps, cache_gb, cache = pairs // BATCH_SIZE, size / 10 / 1e9, root / "cache"
    disk, remote = root / "killed-disk", root / "killed-store"
    environment = {**os.environ, "DCCLIP_CACHE": str(cache)}
    finish(start(disk, recipe(disk, str(shards), cache_gb, steps), environment))
    with store(shards) as running:
        environment = {**running.environment, "DCCLIP_CACHE": str(cache)}
        file = recipe(remote, f"s3://{BUCKET}/shards", cache_gb, steps)
        run = start(remote, file, environment)
        while run.poll() is None and not any(line["step"] >= steps // 2 for line in logged(remote)):
            time.sleep(0.1)
        running.kill()
        begin = time.monotonic()
        _, said = run.communicate()
        at, waited_s = max(line["step"] for line in logged(remote)), time.monotonic() - begin
        print(f"store killed about step {at} of {steps}; {waited_s:.0f} s later exit code {run.returncode}:")
        print("\n".join(line for line in said.splitlines() if line.startswith(("error:", "hint:"))), flush=True)
        running.start()
        run = start(remote, file, environment)
        finish(run)
    same = sha256(disk) == sha256(remote)
    print(f"resumed to step {steps}: weights {sha256(remote)}, from disk {sha256(disk)}: {'same' if same else 'OTHER'}")
    sys.exit(not same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "killed"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    root = given.work.resolve() / "remote"
    shards = root / f"shards-{given.pairs}"
    size = make(shards, given.pairs)
    shutil.rmtree(runs := root / "runs", ignore_errors=True)
    if given.part == "speed":
        speed(runs, shards, size, given.pairs, given.rounds)
    else:
        killed(runs, shards, size, given.pairs)


if __name__ == "__main__":
    main()
