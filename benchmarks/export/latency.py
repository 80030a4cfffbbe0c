"""Size, load time, latency and peak memory of models on this machine, each in a process of its own.

python benchmarks/export/latency.py MODEL...   (as for --model: a run, a model directory, an export bundle ...)
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def measure(model: str) -> dict[str, str]:
    begin = time.perf_counter()
    from dcclip_cli.inference.encoder import footprint, load_encoder
    from dcclip_cli.machine import cores
    from dcclip_cli.model.reference import resolve

    reference, threads = resolve(model), cores()
    encoder = load_encoder(reference, "cpu", threads=1)
    seconds, one = time.perf_counter() - begin, footprint(encoder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    several = footprint(load_encoder(reference, "cpu", threads=threads), threads=threads)
    return {
        "size of the weights": f"{one.size_bytes / 1e6:.1f} MB",
        "load time, imports included": f"{seconds:.2f} s",
        "one image, 1 thread": f"{one.image_ms:.2f} ms",
        "one text, 1 thread": f"{one.text_ms:.2f} ms",
        f"one image, {threads} threads": f"{several.image_ms:.2f} ms",
        f"one text, {threads} threads": f"{several.text_ms:.2f} ms",
        "peak memory, 1 thread": f"{peak / 1e6:.0f} MB",
    }


if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        columns = list(pool.map(measure, sys.argv[1:]))
    print("| |", " | ".join(sys.argv[1:]), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} |", " | ".join(column[name] for column in columns), "|")
