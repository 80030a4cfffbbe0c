"""Size, load time, latency and memory of a model and its export on this machine, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters import FormatName
from dcclip_cli.machine import cores
from dcclip_cli.model.reference import ModelReference

_LIMIT_S = 600


@dataclass(frozen=True)
class Cost:
    """The cost of one model. Latencies are medians for one image and one short text."""

    name: str
    size_bytes: int
    load_s: float  # imports included
    image_ms: float
    text_ms: float
    threads: int
    image_ms_threads: float
    text_ms_threads: float
    peak_bytes: int | None


# The rows of a table: label -> the text for a model.
ROWS: dict[str, Callable[[Cost], str]] = {
    "size of the weights": lambda cost: f"{cost.size_bytes / 1e6:.1f} MB",
    "load time": lambda cost: f"{cost.load_s:.2f} s",
    "one image, 1 thread": lambda cost: f"{cost.image_ms:.2f} ms",
    "one text, 1 thread": lambda cost: f"{cost.text_ms:.2f} ms",
    "one image, all threads": lambda cost: f"{cost.image_ms_threads:.2f} ms",
    "one text, all threads": lambda cost: f"{cost.text_ms_threads:.2f} ms",
    "threads": lambda cost: str(cost.threads),
    "peak memory": lambda cost: f"{cost.peak_bytes / 1e6:.0f} MB" if cost.peak_bytes else "unknown",
}


def benchmark(model: ModelReference, format: FormatName, folder: Path) -> list[Cost]:
    """The costs of the model and of its export in `folder`. Not for comparing machines."""
    return [_in_a_process("model", model.kind, model.target), _in_a_process(format, format, str(folder))]


def _in_a_process(name: str, kind: str, target: str) -> Cost:
    command = [sys.executable, "-m", "dcclip_cli.exporters.benchmark", name, kind, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise DcclipError(f"{target} cannot be measured: {reason[0]}", "try it with dcclip predict")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _measure(name: str, kind: str, target: str) -> Cost:
    begin = time.perf_counter()
    from dcclip_cli.exporters.formats import FORMATS
    from dcclip_cli.predict.encoder import Encoder, load_encoder
    from dcclip_cli.predict.footprint import footprint, peak_bytes

    kinds = {"onnx": "bundle", "open_clip": "folder"}

    def load(threads: int) -> Encoder:
        if kind not in FORMATS or kind in kinds:
            reference = ModelReference(kinds.get(kind, kind), target, "")  # type: ignore[arg-type]
            return load_encoder(reference, "cpu", threads=threads)
        encoder = FORMATS[kind].open(Path(target))  # type: ignore[index]
        if encoder is None:
            raise DcclipError(f"{target}: {kind} has no runtime on this system", "measure it on a device")
        return encoder

    encoder = load(1)
    load_s = time.perf_counter() - begin
    one, peak, threads = footprint(encoder), peak_bytes(), cores()
    all_threads = footprint(load(threads), threads=threads)
    return Cost(
        name=name,
        size_bytes=one.size_bytes,
        load_s=load_s,
        image_ms=one.image_ms,
        text_ms=one.text_ms,
        threads=threads,
        image_ms_threads=all_threads.image_ms,
        text_ms_threads=all_threads.text_ms,
        peak_bytes=peak,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure(*sys.argv[1:4]))) + "\n")
