"""Cost of one cold prediction: a whole process of `dcclip predict` on a bundle, and of torch with open_clip.

python benchmarks/export/start_up.py BUNDLE MODEL_DIRECTORY PICTURE
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

LABELS = "猫,dog,汽车,flower"
OPEN_CLIP = """
import sys, open_clip, torch
from PIL import Image
folder, image_file, labels = "local-dir:" + sys.argv[1], sys.argv[2], sys.argv[3].split(",")
model, _, preprocess = open_clip.create_model_and_transforms(folder)
tokenizer = open_clip.get_tokenizer(folder)
model.eval()
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open(image_file).convert("RGB")).unsqueeze(0), normalize=True)
    text = model.encode_text(tokenizer(labels), normalize=True)
    print((model.logit_scale.exp() * image @ text.T).softmax(dim=-1))
"""


def cost(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024 * 1.048576


def main() -> None:
    bundle, model, image_file = sys.argv[1:4]
    predict = [sys.executable, "-m", "dcclip_cli", "predict", image_file, "--labels", LABELS, "--model", bundle]
    commands = {
        "dcclip predict, bundle": (predict, 7),
        "torch + open_clip, model directory": ([sys.executable, "-c", OPEN_CLIP, model, image_file, LABELS], 3),
    }
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", *predict[1:]], capture_output=True, text=True, check=True
    ).stderr
    imported = any(line.rpartition("|")[2].strip() == "torch" for line in modules.splitlines())
    print(f"torch imported by dcclip predict: {imported}")
    print("| command | wall s | CPU s | MB |")
    print("|---|---|---|---|")
    for name, (command, times) in commands.items():
        cost(command)  # files into the page cache
        runs = [cost(command) for _ in range(times)]
        wall, cpu, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
