"""What an engineer would do without dcclip: timm fine-tunes an image network on class folders.

    python benchmarks/photographs/fine_tuning.py TRAIN HELD OUT
    python benchmarks/photographs/fine_tuning.py --score BUNDLE HELD

TRAIN and HELD have a folder of images for each class. The image network of a model directory gets
a linear head and is trained with AdamW, a cosine schedule, random resized crops, mirrors and label
smoothing, for --seconds of CPU time in one thread. onnxruntime quantizes it to static int8. Prints
the accuracy of OUT/image.onnx on HELD, its size and its latency. With --score, prints those of a
bundle of dcclip with the names in HELD/classes.yaml, by onnxruntime and tokenizers alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
import yaml
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

STARTER = Path(__file__).parents[2] / "dcclip_cli/starter/model"
BATCH = 64
NORMALIZE = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]


class Calibration(CalibrationDataReader):
    """Gives some images of a folder to the quantizer, one at a time."""

    def __init__(self, images: ImageFolder, count: int) -> None:
        rows = range(0, len(images), len(images) // count)
        self.images = ({"pixel_values": images[row][0][None].numpy()} for row in rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.images, None)


def centred(folder: Path, side: int) -> ImageFolder:
    resize = transforms.Resize(side, transforms.InterpolationMode.BICUBIC)
    crop = transforms.CenterCrop(side)
    return ImageFolder(str(folder), transforms.Compose([resize, crop, *NORMALIZE]))


def image_network(model: Path, classes: int) -> torch.nn.Module:
    """The image network of an open_clip model directory, with a new linear head."""
    config = json.loads((model / "open_clip_config.json").read_text("utf-8"))
    name = config["model_cfg"]["vision_cfg"]["timm_model_name"]
    network = timm.create_model(name, num_classes=classes)
    for key, tensor in load_file(model / "open_clip_model.safetensors").items():
        if key.startswith("visual.trunk."):
            network.state_dict()[key.removeprefix("visual.trunk.")].copy_(tensor)
    return network.to(memory_format=torch.channels_last)


def fine_tune(network: torch.nn.Module, train: Path, side: int, seconds: float, rate: float) -> int:
    """Train on class folders for `seconds` of CPU time; returns the number of steps."""
    crop = transforms.RandomResizedCrop(side, scale=(0.35, 1.0))
    augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *NORMALIZE])
    images = ImageFolder(str(train), augment)
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05)
    network.train()
    steps = 0
    began = time.process_time()
    while True:
        for pixels, labels in loader:
            done = (time.process_time() - began) / seconds
            if done >= 1:
                return steps
            warm_up = min(1.0, (steps + 1) / 20)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm_up * (1 + math.cos(math.pi * done)) / 2
            logits = network(pixels.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1


def quantize(network: torch.nn.Module, images: ImageFolder, side: int, file: Path) -> None:
    """Write the network as a static int8 graph."""
    traced = file.with_name("fp32.onnx")
    pixels = torch.zeros(1, 3, side, side)
    names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(network.eval(), (pixels,), str(traced), dynamo=False, **names)
    quant_pre_process(traced, traced)
    calibration = Calibration(images, 64)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(traced, file, calibration, per_channel=True, **types)


def open_graph(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options)


def outputs_of(graph: Path, held: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """(N, D) outputs for the images of class folders, (N,) classes, and the median milliseconds."""
    session = open_graph(graph)
    images = centred(held, session.get_inputs()[0].shape[-1])
    outputs = []
    times = []
    for pixels, _ in images:
        began = time.perf_counter()
        outputs.append(session.run(None, {"pixel_values": pixels[None].numpy()})[0][0])
        times.append(1_000 * (time.perf_counter() - began))
    return np.stack(outputs), np.array(images.targets), float(np.median(times))


def score(bundle: Path, held: Path) -> None:
    images, classes, ms = outputs_of(bundle / "image.onnx", held)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    text_tower = open_graph(bundle / "text.onnx")
    names = yaml.safe_load((held / "classes.yaml").read_text("utf-8"))
    for language in ("en", "zh"):
        texts = []
        for name in sorted(names):
            ids = np.array([tokenizer.encode(names[name][language]).ids])
            texts.append(text_tower.run(None, {"input_ids": ids})[0][0])
        predicted = (images @ np.stack(texts).T).argmax(1)
        print(f"{language}: top-1 {np.mean(predicted == classes):.1%}")
    size = sum(file.stat().st_size for file in bundle.iterdir())
    print(f"{size / 1e6:.2f} MB, {ms:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=680)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    torch.set_num_threads(1)
    if chosen.score:
        return score(*chosen.folders)
    train, held, out = chosen.folders
    out.mkdir(parents=True, exist_ok=True)
    calibration = centred(train, chosen.side)
    network = image_network(chosen.model, len(calibration.classes))
    steps = fine_tune(network, train, chosen.side, chosen.seconds, chosen.rate)
    quantize(network, calibration, chosen.side, out / "image.onnx")
    outputs, classes, ms = outputs_of(out / "image.onnx", held)
    print(f"{steps} steps: top-1 {np.mean(outputs.argmax(1) == classes):.1%}")
    print(f"{(out / 'image.onnx').stat().st_size / 1e6:.2f} MB, {ms:.2f} ms")


if __name__ == "__main__":
    main()
