"""Time per image and text, and file size, of the S student, AltCLIP and Chinese-CLIP RN50 in int8.

python benchmarks/export/peers.py make DIR --cn-clip SITE    (AltCLIP needs 10 GB of memory and minutes)
python benchmarks/export/peers.py time DIR

All weights are random: that changes neither time nor size, and says nothing about accuracy. Chinese-CLIP's towers
come from its own package: pip install --no-deps --target SITE cn-clip six. Each model is exported and quantised by
dcclip, and run by onnxruntime on one thread with one image of 224 px and one text at the model's own full length (77;
Chinese-CLIP 52). Times are medians of the calling thread's CPU time over rounds that take the models in turn, so that
work of others on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

PIXELS, TOKENS = (1, 3, 224, 224), 77
LENGTHS = {"student-S": 77, "altclip": 77, "cn-clip-rn50": 52}
ROUNDS = 12


def student() -> tuple[Any, Any, int]:
    """Image tower, text tower, vocabulary."""
    from dcclip_cli.exporters.graphs import open_clip_text
    from dcclip_cli.model.students import StudentOptions, build_model, model_config

    options = StudentOptions(preset="S")  # type: ignore[call-arg]
    size = options.text.vocabulary.size
    model: Any = build_model(model_config(options, 768, size), seed=0).eval()
    return model.visual, lambda ids: open_clip_text(model, ids, fixed=False), size


def altclip() -> tuple[Any, Any, int]:
    from transformers import AltCLIPConfig, AltCLIPModel

    text = {"vocab_size": 250_002, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    text |= {"num_attention_heads": 16, "max_position_embeddings": 514, "project_dim": 768, "type_vocab_size": 1}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    image = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    image |= {"image_size": 224, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"}
    model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=image, projection_dim=768)).eval()

    def texts(ids: Any) -> Any:
        return model.get_text_features(input_ids=ids, attention_mask=(ids != 1).long()).pooler_output

    return lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output, texts, 250_002


def cn_clip() -> tuple[Any, Any, int]:
    import cn_clip.clip.model as own

    folder = Path(own.__file__).parent / "model_configs"
    image, text = (json.loads((folder / f"{name}.json").read_text()) for name in ("RN50", "RBT3-chinese"))
    model = own.CLIP(**{**image, **text, "vision_layers": eval(str(image["vision_layers"]))}).float().eval()
    return model.encode_image, model.encode_text, int(text["vocab_size"])


MODELS = {"student-S": student, "altclip": altclip, "cn-clip-rn50": cn_clip}


def make(folder: Path, only: str) -> None:
    """Export every model in int8, fp32 on the way."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from dcclip_cli.exporters.graphs import write_graph
    from dcclip_cli.exporters.quantize import Int8Tower

    class Tower(nn.Module):
        def __init__(self, call: Any) -> None:
            super().__init__()
            self.call = call
            owner = call if isinstance(call, nn.Module) else getattr(call, "__self__", None)
            self.owner = owner or next(
                cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, nn.Module)
            )

        def forward(self, x: Any) -> Any:
            return F.normalize(self.call(x), dim=-1)

    batch = torch.export.Dim("batch")
    noise = [np.random.default_rng(seed).standard_normal((4, *PIXELS[1:]), np.float32) for seed in range(4)]
    for name, build in MODELS.items():
        if only and name not in only.split(","):
            continue
        begin, length = time.perf_counter(), LENGTHS[name]
        torch.manual_seed(0)
        image, text, vocabulary = build()
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        ids = torch.randint(5, vocabulary - 5, (2, length - 1))
        lengths = {0: batch, 1: torch.export.Dim("length", max=length)}
        with TemporaryDirectory() as temporary:
            files = [Path(temporary) / f"{tower}.onnx" for tower in ("image", "text")]
            write_graph(
                Tower(image).eval(), torch.zeros(2, *PIXELS[1:]), {0: batch}, files[0], "pixel_values", "image_embeds"
            )
            write_graph(Tower(text).eval(), ids, lengths, files[1], "input_ids", "text_embeds")
            del image, text
            for file, inputs in zip(files, (noise, [ids.numpy()]), strict=True):
                Int8Tower(file, inputs).write(out / file.name)
        print(f"{name}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB", end=", ")
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)


def timed(folder: Path) -> None:
    """Print each model's times and sizes, and the student's advantage."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    random = np.random.default_rng(0)
    calls: dict[tuple[str, str], Any] = {}
    names = [name for name in MODELS if (folder / name / "text.onnx").exists()]
    for name in names:
        image, text = (
            onnxruntime.InferenceSession(folder / name / f"{tower}.onnx", options, providers=["CPUExecutionProvider"])
            for tower in ("image", "text")
        )
        pixels = random.standard_normal(PIXELS, np.float32)
        ids = random.integers(5, 19_000, (1, LENGTHS[name]))
        calls[name, "image"] = lambda session=image, x=pixels: session.run(None, {"pixel_values": x})
        calls[name, "text"] = lambda session=text, x=ids: session.run(None, {"input_ids": x})
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in range(ROUNDS + 1):
        for key, call in calls.items():
            for _ in range(1 if key[0] == "altclip" else 5):
                begin = time.thread_time()
                call()
                if number:  # the first round warms up
                    times[key].append(1000 * (time.thread_time() - begin))
    median = {key: statistics.median(several) for key, several in times.items()}
    size = {name: sum(file.stat().st_size for file in (folder / name).iterdir()) / 1e6 for name in names}
    print("| model, int8 | image ms | text ms | together | MB | student is faster | smaller |")
    print("|---|---|---|---|---|---|---|")
    total = {name: median[name, "image"] + median[name, "text"] for name in names}
    for name in names:
        ratio = f"{total[name] / total['student-S']:.1f} x | {size[name] / size['student-S']:.1f} x"
        print(f"| {name} | {median[name, 'image']:.2f} | {median[name, 'text']:.2f} | {total[name]:.2f} ", end="")
        print(f"| {size[name]:.1f} | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "time"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cn-clip", default="", help="folder that cn-clip is installed in")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if given.cn_clip:
        sys.path.append(given.cn_clip)
    if given.what == "make":
        make(given.folder, given.only)
    else:
        timed(given.folder)


if __name__ == "__main__":
    main()
