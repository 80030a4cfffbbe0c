"""Images per second of `eval` compared with CLIP_benchmark's loop, and the cost of a second
language.

    python benchmarks/eval/throughput.py PHOTOS WORK --clip-benchmark FOLDER [--precision default] [--arch ViT-B-32]

PHOTOS has ImageNet's photographs in wnid folders, which come with neither; FOLDER is an unpacked
clip_benchmark wheel, with `webdataset` installed. Both read the same tars with the same model
directory (a student of a preset, or random weights of an open_clip architecture), in processes of
their own, in turn, so that the machine's load is the same for both. Timed are reading,
preprocessing and the image tower; libraries, weights and texts are not, and the tower computes a
small batch before. fp32 and bf16 are for both (CLIP_benchmark's --no_amp and --amp); `default` is
CLIP_benchmark's --amp and dcclip's fp32. CPU seconds are of all threads and processes. The second
language is timed from opening the tars to the result, texts included; --templates own uses
ImageNet's 52 and 80, `name` one text per class.
"""

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.train.student import new_student

PAIRS = "recipes/quickstart/validation.parquet"  # of the student's vocabulary
TARS = 4
PEER = """
import json, resource, sys, time
import open_clip, torch
sys.path.insert(0, sys.argv[1])
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics.zeroshot_classification import run_classification
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[3]}")
amp = sys.argv[4] == "amp"
data = build_wds_dataset("imagenet", transform, data_dir=sys.argv[2])
loader = torch.utils.data.DataLoader(data.batched(64), batch_size=None, shuffle=False, num_workers=4)
with torch.no_grad(), torch.autocast("cpu", enabled=amp):
    width = model.eval().encode_image(torch.zeros(8, 3, *model.visual.image_size)).shape[1]
def cpu_seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before, begin = cpu_seconds(), time.perf_counter()
logits, target = run_classification(model, torch.ones(width, len(data.classes)), loader, "cpu", amp=amp)
seconds = time.perf_counter() - begin
del loader
print(json.dumps({"n": len(target), "seconds": seconds, "cpu": cpu_seconds() - before}))
"""
OURS = """
import json, sys, time
from pathlib import Path
from dcclip_cli.core.machine import set_library_defaults
set_library_defaults()
import numpy as np
import psutil
from dcclip_cli.eval import evaluate as module
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.embedding import Embedder, FeatureCache
from dcclip_cli.model.reference import resolve
from dcclip_cli.core.progress import Silent
root, model_folder, precision, cache_folder, templates = sys.argv[1:]
reference, cache = resolve(model_folder), FeatureCache(Path(cache_folder))
options = module.EvalOptions(datasets=["imagenet"], precision=precision)
model = module.load_encoder(reference, "cpu", precision)
module.load_encoder = lambda *_, **__: model
size = model.preprocessing["size"]
model.encode_pixels(np.random.default_rng(0).random((8, 3, size, size), np.float32))
def dataset(name):
    return open_dataset(name, data_root=Path(root), templates=templates, partial="present")
def cpu_seconds():
    return sum(psutil.Process().cpu_times()[:2])
def evaluate(name):
    [result] = module.evaluate([reference], [dataset(name)], options, device="cpu", cache=cache)
    return result
module.keep_freed_memory()
before, begin = cpu_seconds(), time.perf_counter()
data = dataset("imagenet")
Embedder(model, cache, Silent(), options.batch_size, options.workers).images(data.images, data.transform, "", None)
seconds, cpu = time.perf_counter() - begin, cpu_seconds() - before
result = evaluate("imagenet")
first_language, begin = time.perf_counter() - begin, time.perf_counter()
evaluate("imagenet-cn")
print(json.dumps({"n": result.n, "seconds": seconds, "cpu": cpu, "first_language": first_language,
                  "second_language": time.perf_counter() - begin}))
"""


def write_tars(photos: Path, folder: Path, count: int) -> None:
    """Write `count` photographs, from the first again if there are fewer, as
    clip_benchmark_export_wds does.
    """
    imagenet = prompts.read("imagenet")
    files = [
        (path, imagenet.folders.index(path.parent.name)) for path in sorted(photos.glob("*/*"))
    ]
    rows = list(enumerate(islice(cycle(files), count)))
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(imagenet.names["en"]) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (folder / "test/nshards.txt").write_text(f"{TARS}\n")
    for number in range(TARS):
        with tarfile.open(folder / f"test/{number}.tar", "w") as archive:
            for row, (path, label) in rows[number::TARS]:
                for name, content in (
                    (f"s{row:07}.jpg", path.read_bytes()),
                    (f"s{row:07}.cls", str(label).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_model(folder: Path, preset: str, arch: str | None) -> None:
    """Write random weights: accuracy does not matter for speed."""
    if not arch:
        text = {"vocabulary": {"from": "data", "size": 2000}}
        student = new_student(
            StudentOptions(preset=preset, text=text), 512, open_pairs(PAIRS), preset, 0
        )  # type: ignore[arg-type]
        return student.save(folder, {})
    import open_clip
    from safetensors.torch import save_model

    model = open_clip.create_model(arch)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "open_clip_model.safetensors"))
    config = {
        "model_cfg": open_clip.get_model_config(arch),
        "preprocess_cfg": model.visual.preprocess_cfg,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def run(code: str, *arguments: object) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    if process.returncode:
        raise SystemExit(process.stderr)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def spread(values: list[float], digits: int = 2) -> str:
    """The median, lowest and highest of the rounds."""
    median, low, high = (
        f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--clip-benchmark", type=Path, required=True)
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        help="of the photographs, from the first again if needed",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="S")
    parser.add_argument("--arch", help="an architecture of open_clip instead of a preset")
    parser.add_argument("--precision", choices=["fp32", "bf16", "default"], default="fp32")
    parser.add_argument("--templates", choices=["name", "own"], default="name")
    arguments = parser.parse_args()
    root, name = arguments.work / str(arguments.images), arguments.arch or arguments.preset
    model, cache = arguments.work / f"model-{name}", arguments.work / "cache"
    write_tars(arguments.photos, root / "imagenet", arguments.images)
    if not model.is_dir():
        write_model(model, arguments.preset, arguments.arch)
    amp = "no-amp" if arguments.precision == "fp32" else "amp"
    precision = arguments.precision.replace("default", "fp32")
    rounds = []
    for _ in range(arguments.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        peer = run(PEER, arguments.clip_benchmark, root / "imagenet", model, amp)
        rounds.append((peer, run(OURS, root, model, precision, cache, arguments.templates)))
    print(f"{name}, {arguments.images:,} photos, precision {arguments.precision}, " f"templates {arguments.templates}, "
          f"{arguments.rounds} rounds in turn: median (lowest to highest)")  # fmt: skip
    for program, times in zip(("CLIP_benchmark", "dcclip"), zip(*rounds, strict=True), strict=True):
        print(f"{program:<16}{spread([time['n'] / time['seconds'] for time in times], 1)} " f"images/s, "
              f"{spread([1000 * time['cpu'] / time['n'] for time in times])} CPU-ms per image")  # fmt: skip
    print(f"ratio by time   {spread([peer['seconds'] / ours['seconds'] for peer, ours in rounds])}")
    print(f"ratio by CPU    {spread([peer['cpu'] / ours['cpu'] for peer, ours in rounds])}")
    first, second = (
        [ours[f"{order}_language"] for _, ours in rounds] for order in ("first", "second")
    )
    ratio = spread([ours["first_language"] / ours["second_language"] for _, ours in rounds], 1)
    print(f"first language {spread(first)} s, second {spread(second)} s: {ratio} x")


if __name__ == "__main__":
    main()
