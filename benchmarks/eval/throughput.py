"""How many images a second does `eval` get through, beside CLIP_benchmark's loop, and what does a second language cost?

    python benchmarks/eval/throughput.py PHOTOS WORK --clip-benchmark FOLDER [--copies 5] [--rounds 3] [--no-amp]

PHOTOS has wnid folders with photographs; FOLDER is an unpacked clip_benchmark wheel, with `webdataset` installed.
Both read the same tars with the same model directory, in processes of their own, in turn, so that a change in the
machine's load meets both alike. Timed are reading, preprocessing and the image tower; libraries and weights are loaded
before. CLIP_benchmark computes in bfloat16 unless told not to (--no-amp, as its --no_amp); dcclip is given the same.
CPU seconds are of all processes, and depend less on what else the machine does.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from photos import make_model, write_recipe, write_tars

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
head = peer.zero_shot_classifier(model.eval(), tokenizer, data.classes, data.templates, "cpu", amp)
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
import json, resource, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, str(Path(sys.argv[1])))
from photos import class_names, load_tars
from dcclip_cli.eval.datasets import Classes, DataSet
from dcclip_cli.eval import evaluate as module
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.model.reference import resolve
tars, model_folder, amp, photos = Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "amp", Path(sys.argv[5])
known = class_names(photos)
found = load_tars(tars, known)
def dataset(language):
    truth = {language: Classes(tuple(known.names[language]), found.labels, tuple(known.templates[language]))}
    return DataSet("photos", found.images, truth)
reference = resolve(model_folder)
model = module.load_model(reference, "cpu", amp)
module.load_model = lambda *_: model
model.encode_pixels(np.zeros((1, *model.preprocess(found.images.picture(0)).shape), np.float32))
cache = FeatureCache(Path(sys.argv[6]))
def used():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
def run(language):
    before, begin = used(), time.perf_counter()
    [result] = module.evaluate(models=[reference], datasets=[dataset(language)], device="cpu", cache=cache)
    return result, time.perf_counter() - begin, used() - before
model.encode_texts(["warm"])
first, whole, cpu = run("en")
second, again, _ = run("zh")
print(json.dumps({"n": first.n, "seconds": first.n / first.images_per_second, "cpu": cpu, "top1": first.value,
                  "whole": whole, "second_language": again}))
"""


def run(code: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--clip-benchmark", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="S")
    parser.add_argument("--pairs", type=Path, default=Path("recipes/quickstart/validation.parquet"))
    parser.add_argument("--no-amp", action="store_true")
    given = parser.parse_args()
    tars, model = given.work / "wds_photos", given.work / f"run-{given.preset}/align/model"
    images = write_tars(given.photos, tars, given.copies)
    if not model.is_dir():
        make_model(write_recipe(given.work, given.pairs, given.preset), given.work / f"run-{given.preset}")
    amp = "no-amp" if given.no_amp else "amp"
    rounds: dict[str, list[dict[str, float]]] = {"CLIP_benchmark": [], "dcclip": []}
    for number in range(given.rounds):
        rounds["CLIP_benchmark"].append(run(PEER, given.clip_benchmark, tars, model, amp))
        cache = given.work / f"cache-{number}"
        subprocess.run(["rm", "-rf", str(cache)], check=True)
        rounds["dcclip"].append(run(OURS, Path(__file__).parent, tars, model, amp, given.photos, cache))
    middle = {
        name: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for name, several in rounds.items()
    }
    print(f"{images:,} photographs in tars, preset {given.preset}, {'fp32' if given.no_amp else 'bf16'}, "
          f"median of {given.rounds} rounds in turn")  # fmt: skip
    for name, one in middle.items():
        speed, cost = one["n"] / one["seconds"], 1000 * one["cpu"] / one["n"]
        print(f"{name:<16}{speed:8.1f} images/s {cost:8.2f} CPU-ms an image  top-1 {one['top1']:.4f}")
    peer, own = middle["CLIP_benchmark"], middle["dcclip"]
    print(f"ratio           {peer['seconds'] / own['seconds']:8.2f} by time  {peer['cpu'] / own['cpu']:8.2f} by CPU")
    print(f"first language {own['whole']:.2f} s, second {own['second_language']:.2f} s: "
          f"{own['whole'] / own['second_language']:.1f} x")  # fmt: skip


if __name__ == "__main__":
    main()
