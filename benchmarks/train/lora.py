"""Memory and time of `align` with LoRA compared with whole towers, for a model of Chinese-CLIP
ViT-B/16's shape.

    python benchmarks/train/lora.py WORK [--steps 3] [--batch 8] [--rank 8] [--threads 2] [--small]

Random weights: ViT-B/16 at 224 pixels, 12 layers of width 768 for texts, a vocabulary from the
quick start's captions (Chinese-CLIP's has 21,128 tokens, which are 14 M parameters more). Each run
is a process of its own; seconds of a step are those of the last one. `--small`: a tiny model,
which shows that the script runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.train.student import new_student

DATA = Path(__file__).parents[2] / "recipes/quickstart/train.parquet"
BIG = {
    "image": {"timm": "vit_base_patch16_224", "size": 224},
    "text": {"layers": 12, "width": 768, "heads": 12},
}
SMALL = {"image": {"timm": "test_vit", "size": 160}, "text": {"layers": 2, "width": 64, "heads": 2}}
COMMON = {"context_length": 52, "vocabulary": {"from": "data", "size": 21_128}}


def start_model(folder: Path, small: bool) -> int:
    """Write the model that both runs start from; return the number of its parameters."""
    sizes = SMALL if small else BIG
    options = StudentOptions.model_validate(
        {**sizes, "text": sizes["text"] | COMMON, "embed_dim": 512}
    )
    student = new_student(options, 512, open_pairs(str(DATA)), "big", 0)
    student.save(folder, {})
    return student.towers.parameters_count()


def measured(start: Path, root: Path, given: argparse.Namespace, rank: int) -> dict[str, float]:
    """Megabytes of the optimizer, peak of resident memory in GB, seconds of the last step. Rank 0:
    whole towers.
    """
    align = {
        "start": str(start),
        "steps": given.steps,
        "batch_size": given.batch,
        "threads": given.threads,
    }
    align |= {
        "workers": 0,
        "log_every_steps": 1,
        "checkpoint_every_steps": given.steps - 1,
        "warmup_steps": 0,
    }
    align |= {"precision": "fp32", "lora": {"rank": rank} if rank else None}
    root.mkdir()
    recipe = root / "recipe.yaml"
    recipe.write_text(
        json.dumps({"name": root.name, "data": {"train": str(DATA)}, "align": align}), "utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "dcclip_cli",
        "align",
        str(recipe),
        "--out",
        str(root / "run"),
        "-q",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [file] = (root / "run/align/state").glob("*/tensors.safetensors")
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("optimizer/")]  # noqa: SIM118
        moments = [tensors.get_tensor(name) for name in names]
        optimizer = sum(moment.nbytes for moment in moments)
    last = [
        json.loads(line)
        for line in (root / "run/align/metrics.jsonl").read_text("utf-8").splitlines()
    ][-1]
    seconds = given.batch / last["images_per_second"]
    return {"optimizer_mb": optimizer / 1e6, "peak_gb": last["peak_memory_gb"], "step_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    for name, default in (("steps", 3), ("batch", 8), ("rank", 8), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--small", action="store_true")
    parsed = parser.parse_args()
    root = parsed.work.resolve() / "lora"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    print(f"{start_model(root / 'start', parsed.small):,} parameters", flush=True)
    for name, rank in (("whole", 0), ("lora", parsed.rank)):
        print(name, json.dumps(measured(root / "start", root / name, parsed, rank)), flush=True)
        shutil.rmtree(root / name)


if __name__ == "__main__":
    main()
