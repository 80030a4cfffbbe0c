"""Images per second of `eval` next to CLIP_benchmark's loop, and the cost of a second language.

    python benchmarks/eval/throughput.py PHOTOS WORK --clip-benchmark FOLDER [--precision default] [--arch ViT-B-32]

PHOTOS has wnid folders with photographs; FOLDER is an unpacked clip_benchmark wheel, with `webdataset` installed.
Both read the same tars with the same model directory (a student of a preset, or random weights of an open_clip
architecture), in processes of their own, in turn, so that a change in the machine's load meets both alike. Timed are
reading, preprocessing and the image tower; libraries, weights and texts are not, and one small batch has gone through
the tower before. fp32 and bf16 are for both (CLIP_benchmark's --no_amp and --amp); `default` is what each does unless
told: CLIP_benchmark --amp, dcclip `auto`. CPU seconds are of all threads and processes. The second language is timed
from opening the tars to the result, its texts included; --templates own takes ImageNet's 52 and 80 in place of one.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from photos import make_model, random_model, write_recipe, write_tars

PEER = """
import json, resource, sys, time
import open_clip, torch
sys.path.insert(0, sys.argv[1])
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification as peer
tars, model_folder, amp = sys.argv[2], sys.argv[3], sys.argv[4] == "amp"
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
data = build_wds_dataset("photos", transform, data_dir=tars)
loader = torch.utils.data.DataLoader(data.batched(64), batch_size=None, shuffle=False, num_workers=4)
head = peer.zero_shot_classifier(model.eval(), tokenizer, data.classes, data.templates, "cpu", False)
with torch.no_grad(), torch.autocast("cpu", enabled=amp):
    model.encode_image(torch.zeros(8, 3, *model.visual.image_size))
def used():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before, begin = used(), time.perf_counter()
logits, target = peer.run_classification(model, head, loader, "cpu", amp=amp)
seconds = time.perf_counter() - begin
del loader
top1 = (logits.argmax(1) == target).float().mean().item()
print(json.dumps({"n": len(target), "seconds": seconds, "cpu": used() - before, "top1": top1}))
"""
OURS = """
import json, sys, time
from pathlib import Path
from dcclip_cli.machine import set_library_defaults
set_library_defaults()
import numpy as np
import psutil
sys.path.insert(0, str(Path(sys.argv[1])))
from photos import class_names, load_tars
from dcclip_cli.eval.dataset import Classes, DataSet
from dcclip_cli.eval import evaluate as module
from dcclip_cli.eval.embedding import Embedder, FeatureCache
from dcclip_cli.model.reference import resolve
from dcclip_cli.progress import Silent
tars, model_folder, precision, photos = Path(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5])
known = class_names(photos, sys.argv[7] == "own")
def dataset(language):
    found = load_tars(tars, known)
    truth = {language: Classes(tuple(known.names[language]), found.truth, tuple(known.templates[language]))}
    return DataSet("photos", found.images, truth)
reference = resolve(model_folder)
options = module.EvalOptions(datasets=["photos"], precision=precision)
model = module.load_encoder(reference, "cpu", precision)
module.load_encoder = lambda *_, **__: model
size = model.preprocessing["size"]
model.encode_pixels(np.zeros((8, 3, size, size), np.float32))
cache = FeatureCache(Path(sys.argv[6]))
def used():
    return sum(psutil.Process().cpu_times()[:2])
def run(language):
    [result] = module.evaluate([reference], [dataset(language)], options, device="cpu", cache=cache)
    return result
module.keep_freed_memory()
before, begin = used(), time.perf_counter()
data = dataset("en")
Embedder(model, cache, Silent(), options.batch_size, options.workers).images(data.images, data.transform, "", None)
seconds, cpu = time.perf_counter() - begin, used() - before
first = run("en")
whole, begin = time.perf_counter() - begin, time.perf_counter()
run("zh")
print(json.dumps({"n": first.n, "seconds": seconds, "cpu": cpu, "top1": first.value, "whole": whole,
                  "second_language": time.perf_counter() - begin, "precision": first.precision}))
"""


def run(code: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def spread(values: list[float], digits: int = 2) -> str:
    """The median, and between what the rounds lay."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--clip-benchmark", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000, help="of the photographs, from the first again if needed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="S")
    parser.add_argument("--arch", help="an architecture of open_clip in place of a preset")
    parser.add_argument("--pairs", type=Path, default=Path("recipes/quickstart/validation.parquet"))
    parser.add_argument("--precision", choices=["fp32", "bf16", "default"], default="fp32")
    parser.add_argument("--templates", choices=["one", "own"], default="one")
    given = parser.parse_args()
    tars, name = given.work / f"wds_photos-{given.images}", given.arch or given.preset
    images = write_tars(given.photos, tars, given.images)
    if given.arch:
        model = random_model(given.arch, given.work / given.arch)
    elif not (model := given.work / f"run-{name}/align/model").is_dir():
        make_model(write_recipe(given.work, given.pairs, name), given.work / f"run-{name}")
    peer_amp = "no-amp" if given.precision == "fp32" else "amp"
    precision = "fp32" if given.precision == "default" else given.precision
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(given.rounds):
        cache = given.work / f"cache-{number}"
        shutil.rmtree(cache, ignore_errors=True)
        more = (given.photos, cache, given.templates)
        rounds.append(
            (
                run(PEER, given.clip_benchmark, tars, model, peer_amp),
                run(OURS, Path(__file__).parent, tars, model, precision, *more),
            )
        )
        shutil.rmtree(cache, ignore_errors=True)
    asked = f"{name}, precision {given.precision} (dcclip: {rounds[0][1]['precision']}), {given.templates} template(s)"
    how = f"{given.rounds} rounds in turn: median (lowest to highest)"
    print(f"{images:,} photographs in tars, {asked}, {how}")
    for name, each in zip(("CLIP_benchmark", "dcclip"), zip(*rounds, strict=True), strict=True):
        print(f"{name:<16}{spread([one['n'] / one['seconds'] for one in each], 1)} images/s, "
              f"{spread([1000 * one['cpu'] / one['n'] for one in each])} CPU-ms an image, "
              f"top-1 {each[0]['top1']:.4f}")  # fmt: skip
    print(f"ratio by time   {spread([peer['seconds'] / own['seconds'] for peer, own in rounds])}")
    print(f"ratio by CPU    {spread([peer['cpu'] / own['cpu'] for peer, own in rounds])}")
    seconds = [statistics.median(own[key] for _, own in rounds) for key in ("whole", "second_language")]
    print(f"first language {seconds[0]:.2f} s, second {seconds[1]:.2f} s: "
          f"{spread([own['whole'] / own['second_language'] for _, own in rounds], 1)} x")  # fmt: skip


if __name__ == "__main__":
    main()
