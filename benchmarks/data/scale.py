"""Start, memory and resuming of `align` on 10,000, one million and ten million pairs.

    python benchmarks/data/scale.py make WORK [--tars 100]      # 1 M pairs, 3 GB; those of 10 M are hard links
    python benchmarks/data/scale.py index WORK                  # the index of 1 M pairs; 10 M: its files copied
    python benchmarks/data/scale.py start WORK [--rounds 3]     # from the command to the first step
    python benchmarks/data/scale.py memory WORK [--steps 1000]  # of the main process and of workers
    python benchmarks/data/scale.py resume WORK                 # from the command to a step in the middle of an epoch

Images are JPEG files of 64 px and 1.3 KB, 10,000 in a tar, each with a Chinese and an English caption; no two pairs of
the million are equal. The model is tiny: what is measured is everything else. CPU seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

from dcclip_cli.checksums import write_record

PER_TAR = 10_000
SIDE, QUALITY, IMAGES = 64, 48, 500  # quality: 1.3 KB a file
SIZES = {"10k": 1, "1M": 100, "10M": 1_000}  # tars
INDEX = ".index.arrow"


# ---- data


def make(work: Path, tars: int) -> None:
    """Write `tars` tars, and folders of links to them: data-10k, data-1M, data-10M."""
    folder = work / "data-1M"
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(2) as pool:
        pool.map(_tar, [folder / f"{number:05}.tar" for number in range(tars)], chunksize=1)
    for name, count in SIZES.items():
        (work / f"data-{name}").mkdir(exist_ok=True)
        for number in range(min(count, 10 * tars)):
            target = work / f"data-{name}/{number:05}.tar"
            if not target.exists():
                os.link(folder / f"{number % tars:05}.tar", target)


def _tar(path: Path) -> None:
    if path.exists():
        return
    number, images, words = int(path.stem), _images(), _words()
    random = np.random.default_rng(number)
    english = random.zipf(1.2, (PER_TAR, 12)) % len(words)
    chinese = random.integers(0x4E00, 0x4E00 + 3_000, (PER_TAR, 15))
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(PER_TAR):
            key = f"{number:05}{row:05}"
            record = {"en": " ".join(words[word] for word in english[row]), "zh": "".join(map(chr, chinese[row]))}
            image = images[int(random.integers(len(images)))]
            comment = b"\xff\xfe\0\x0c" + key.encode()  # a JPEG comment: no two files are equal
            for suffix, content in (
                ("jpg", image[:2] + comment + image[2:]),
                ("json", json.dumps(record, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    partial.replace(path)


def _images() -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for _ in range(IMAGES):
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return files


def _words() -> list[str]:
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfw"))
    return ["".join(random.choice(letters, int(random.integers(2, 10)))) for _ in range(20_000)]


# ---- index


def index(work: Path) -> None:
    """Time `dcclip index` of a million pairs, and give the links the same index."""
    folder = work / "data-1M"
    for file in work.glob(f"data-*/*{INDEX}"):
        file.unlink()
    began, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, "-m", "dcclip_cli", "index", str(folder)], check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    size = sum(file.stat().st_size for file in folder.glob(f"*{INDEX}"))
    print(f"index of 1 M pairs: {time.monotonic() - began:.1f} s, {cpu:.1f} CPU s, {size / 1e6:.0f} MB")
    tars = len(list(folder.glob("*.tar")))
    for name in SIZES:
        for tar in (work / f"data-{name}").glob("*.tar"):
            made, copied = (
                where / f"{stem}.tar{INDEX}"
                for where, stem in ((folder, f"{int(tar.stem) % tars:05}"), (tar.parent, tar.stem))
            )
            if made != copied:
                shutil.copy2(made, copied)


# ---- runs


def recipe(work: Path, size: str, batch: int, workers: int, **options: object) -> Path:
    """A recipe of `align` on so many pairs, from the tiny model that all runs start from."""
    align = {"batch_size": batch, "warmup_steps": 0, "workers": workers, "threads": 1, "epochs": 1, **options}
    start = work / "model/align/model"
    if start.is_dir():
        content: dict[str, object] = {"align": {**align, "start": str(start)}}
    else:
        text = {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 8_000}}
        image = {"timm": "test_efficientnet.r160_in1k", "size": 32}
        content = {"student": {"image": image, "text": text, "embed_dim": 16}, "align": {**align, "start": "scratch"}}
    content |= {"name": "scale", "data": {"train": str(work / f"data-{size}")}}
    file = work / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@contextmanager
def running(file: Path, out: Path, cache: Path) -> Iterator[psutil.Process]:
    """The command `dcclip align`, which is interrupted when the block ends."""
    command = [sys.executable, "-m", "dcclip_cli", "align", str(file), "--out", str(out), "-q"]
    process = psutil.Popen(command, env={**os.environ, "DCCLIP_CACHE": str(cache)}, process_group=0)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        if process.wait() not in (0, 143):
            raise SystemExit(f"{command} ended with {process.returncode}")


def step_of(out: Path) -> int:
    """The last step in metrics.jsonl, 0 if there is none."""
    file = out / "align/metrics.jsonl"
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for(process: psutil.Process, out: Path, step: int) -> float:
    """Seconds from the start of the process until a step is logged."""
    while step_of(out) < step:
        if process.poll() is not None:
            raise SystemExit(f"align ended with {process.returncode} before step {step}")
        time.sleep(0.02)
    return time.time() - process.create_time()


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and its children so far."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def small_model(work: Path) -> None:
    """Make the model that all runs start from, once."""
    if not (work / "model/align/model").is_dir():
        file = recipe(work, "10k", 8, 0, epochs=None, steps=1)
        command = [sys.executable, "-m", "dcclip_cli", "align", str(file), "--out", str(work / "model"), "-q"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def start(work: Path, batches: list[int], rounds: int) -> None:
    """Print the time from the command to the first step, by the number of pairs."""
    print("| batch | pairs | to the first step | of it CPU | above 10k |", "|---|---|---|---|---|", sep="\n")
    for batch in batches:
        found: dict[str, list[tuple[float, float]]] = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size, several in found.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                file = recipe(work, size, batch, 1, log_every_steps=1)
                with running(file, work / "out", work / "cache") as process:
                    wall = wait_for(process, work / "out", 1)
                    several.append((wall, cpu_of(process)))
        for size, several in found.items():
            wall, cpu = min(several)
            above = f"{wall - min(found['10k'])[0]:+.1f} s" if size != "10k" else ""
            print(f"| {batch} | {size} | {wall:.1f} s | {cpu:.1f} s | {above} |", flush=True)


def memory(work: Path, batches: list[int], steps: int, workers: int, sizes: list[str]) -> None:
    """Print private and resident memory of main process and workers after so many steps."""
    print("| batch | pairs | process | private | resident | of it file pages |", "|---|---|---|---|---|---|", sep="\n")
    for batch in batches:
        for size in sizes:
            shutil.rmtree(work / "out", ignore_errors=True)
            length = {"epochs": None, "steps": steps + 1_000}
            file = recipe(work, size, batch, workers, log_every_steps=steps, checkpoint_every_steps=100_000, **length)
            with running(file, work / "out", work / "cache") as process:
                wait_for(process, work / "out", steps)
                for number, one in enumerate((process, *process.children())):
                    used = one.memory_full_info()
                    name = f"worker {number}" if number else "main"
                    megabytes = (f"{value / 1e6:.0f} MB" for value in (used.uss, used.rss, used.shared))
                    print(f"| {batch} | {size} | {name} | {' | '.join(megabytes)} |", flush=True)


def resume(work: Path, batch: int) -> None:
    """Print the time from the command to the first step after the middle of an epoch, for each number of pairs.

    A state of step 1 is renamed to the middle: what is measured is finding the place in the data.
    """
    for size, tars in SIZES.items():
        out, middle = work / "out", tars * PER_TAR // batch // 2
        shutil.rmtree(out, ignore_errors=True)
        file = recipe(work, size, batch, 1, log_every_steps=1, checkpoint_every_steps=1)
        with running(file, out, work / "cache") as process:
            wait_for(process, out, 1)
        [state] = (out / "align/state").glob("step-*")
        content = json.loads((state / "state.json").read_text())
        write_record(state / "state.json", {**content, "step": middle})
        state.rename(state.with_name(f"step-{middle:08}"))
        with running(file, out, work / "cache") as process:
            wall = wait_for(process, out, middle + 1)
            cpu = cpu_of(process)
        print(f"{size}: step {middle + 1:,} after {wall:.1f} s, {cpu:.1f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "index", "start", "memory", "resume"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--tars", type=int, default=100)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=["10k", "10M"], choices=SIZES)
    given = parser.parse_args()
    work = given.work.resolve()
    if given.what == "make":
        return make(work, given.tars)
    if given.what == "index":
        return index(work)
    small_model(work)
    if given.what == "start":
        start(work, given.batch, given.rounds)
    elif given.what == "memory":
        memory(work, given.batch, given.steps, given.workers, given.sizes)
    else:
        resume(work, given.batch[0])


if __name__ == "__main__":
    main()
