"""Throughput of `dcclip predict` on a folder, compared with decoding alone and the model alone on this machine.

python benchmarks/export/throughput.py BUNDLE [--images 2000] [--side 640]

The images are JPEGs of noise, smoothed to look like photographs to a decoder. "decoding" is reading, decoding and
preprocessing them on as many threads as there are processors; "model" is the image tower on preprocessed input, on as
many threads. The same processors do both, so decoding D images a second and the model M, no program comes beyond
1 / (1/D + 1/M), "both": it is near the smaller of the two only where the other one is much larger.
"predict" is the function behind the command, loading the model included; "the command" is a whole process, "from its
first line" the same without its start: what a larger folder comes to. Each in turn, three times; medians are told.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter

from dcclip_cli.machine import keep_freed_memory
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import load_encoder
from dcclip_cli.predict.images import BATCH_SIZE
from dcclip_cli.predict.model import predict
from dcclip_cli.predict.onnx_encoder import OnnxEncoder
from dcclip_cli.predict.zero_shot import Labels

LABELS = ("猫", "dog", "汽车")
ROUNDS = 3


def image_files(folder: Path, count: int, side: int) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        if number < 20:
            noise = random.integers(0, 256, (side * 3 // 4 // 8, side // 8, 3), np.uint8)
            image = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
            image = image.filter(ImageFilter.UnsharpMask(1))
            image.save(folder / f"{number:05}.jpg", quality=90)
        else:
            (folder / f"{number:05}.jpg").write_bytes((folder / f"{number % 20:05}.jpg").read_bytes())
        paths.append(folder / f"{number:05}.jpg")
    return paths


def the_command(command: list[str]) -> tuple[float, float]:
    """Seconds that a whole process takes, and those from its first line of output to its last."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = last = time.perf_counter()
        for _ in process.stdout:
            last = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return time.perf_counter() - begin, last - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=640)
    given = parser.parse_args()
    keep_freed_memory()  # as the command does; decoding alone and the model alone have it too
    model, cores = OnnxEncoder(given.bundle, "cpu"), os.cpu_count() or 1
    with TemporaryDirectory() as temporary:
        paths = image_files(Path(temporary), given.images, given.side)
        batch = np.stack([model.preprocess(decode(path)) for path in paths[:BATCH_SIZE]])
        batches = range(max(1, len(paths) // BATCH_SIZE))
        reference = resolve(str(given.bundle))
        command = [sys.executable, "-m", "dcclip_cli", "predict", temporary, "--labels", ",".join(LABELS), "--jsonl"]
        command += ["--model", str(given.bundle), "--device", "cpu", "--quiet"]

        def on_all_cores(call: Callable[[object], object], items: object) -> None:
            with ThreadPoolExecutor(cores) as pool:
                for _ in pool.map(call, items):  # type: ignore[call-overload]
                    pass

        ways: dict[str, Callable[[], object]] = {
            "decoding": lambda: on_all_cores(lambda path: model.preprocess(decode(path)), paths),  # type: ignore[arg-type]
            "model": lambda: on_all_cores(lambda _: model.encode_pixels(batch), batches),
            "predict": lambda: list(predict(loaded := load_encoder(reference, "cpu"), Labels(loaded, LABELS), paths)),
        }
        times: dict[str, list[float]] = {name: [] for name in (*ways, "command", "lines")}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin)
            whole, lines = the_command(command)
            times["command"].append(whole)
            times["lines"].append(lines)
    count = {name: len(batches) * BATCH_SIZE if name == "model" else len(paths) for name in times}
    count["lines"] -= BATCH_SIZE  # the first line comes with the first batch
    rate = {name: count[name] / statistics.median(seconds) for name, seconds in times.items()}
    bound, both = min(rate["decoding"], rate["model"]), 1 / (1 / rate["decoding"] + 1 / rate["model"])
    print(f"{cores} cores, {len(paths)} JPEGs of {given.side} x {given.side * 3 // 4}, {model.name}")
    print(f"decoding {rate['decoding']:.0f}/s, model {rate['model']:.0f}/s, both {both:.0f}/s")
    for name, label in (("predict", "predict"), ("command", "the command"), ("lines", "from its first line")):
        print(f"{label} {rate[name]:.0f}/s: {rate[name] / bound:.0%} of what binds, {rate[name] / both:.0%} of both")


if __name__ == "__main__":
    main()
