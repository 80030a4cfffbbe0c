"""What an engineer would do without dcclip: timm fine-tunes an image network on class folders.

    python benchmarks/photographs/fine_tuning.py TRAIN HELD OUT

TRAIN and HELD have a folder of images for each class. The image network of a model directory gets
a linear head and is trained for --seconds of CPU time in one thread. onnxruntime quantizes it to
static int8. Prints the accuracy of OUT/image.onnx on HELD, its size and its latency, next to which
stand those of `dcclip fit --data TRAIN` and of `dcclip eval --model FIT/export --dataset HELD`.
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
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

STARTER = Path(__file__).parents[2] / "dcclip_cli/starter/model"
BATCH = 64
RATE = 1e-3
NORMALIZE = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]


class Calibration(CalibrationDataReader):
    """Some images for the quantizer."""

    def __init__(self, images: ImageFolder) -> None:
        rows = range(0, len(images), len(images) // 64)
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


def fine_tune(network: torch.nn.Module, train: Path, side: int, seconds: float) -> int:
    """Train on class folders for `seconds` of CPU time; returns the number of steps."""
    crop = transforms.RandomResizedCrop(side, scale=(0.35, 1.0))
    augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *NORMALIZE])
    images = ImageFolder(str(train), augment)
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
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
                group["lr"] = RATE * warm_up * (1 + math.cos(math.pi * done)) / 2
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
    calibration = Calibration(images)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune an image network on class folders.")
    parser.add_argument("train", type=Path)
    parser.add_argument("held", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=680)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "image.onnx"
    calibration = centred(chosen.train, chosen.side)
    network = image_network(chosen.model, len(calibration.classes))
    steps = fine_tune(network, chosen.train, chosen.side, chosen.seconds)
    quantize(network, calibration, chosen.side, file)
    outputs, classes, ms = outputs_of(file, chosen.held)
    print(f"{steps} steps: top-1 {np.mean(outputs.argmax(1) == classes):.1%}")
    print(f"{file.stat().st_size / 1e6:.2f} MB, {ms:.2f} ms")


if __name__ == "__main__":
    main()
