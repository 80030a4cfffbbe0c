"""Full-size teachers in dcclip against their own libraries: embeddings, features, evaluation, cost of loading.

python benchmarks/teachers/make.py TEACHERS --charsmap FILE      (once; 8 GB on disk)
python benchmarks/teachers/check.py load TEACHERS [KIND ...]     (seconds and memory of loading, a process each)
python benchmarks/teachers/check.py equal TEACHERS [KIND ...]    (1e-5 of the library's own; AltCLIP needs 8 GB)
python benchmarks/teachers/check.py eval TEACHERS [KIND ...]     (`dcclip eval`, from files to result)

Exits with 1 if a difference is over 1e-5. Images have odd sizes; texts are Chinese, English, mixed, full-width, quoted,
empty of known pieces, and too long. Embeddings are compared at length 1, image maps and tokens by largest difference
over their largest value. Times are CPU seconds, memory is the peak of resident pages: the library's own code loads the
same files in another process. "anonymous" is what is not a page of a file: several processes share the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image

KINDS = ("altclip", "chineseclip", "siglip2", "metaclip2", "openclip-xlmr")
SIZES = ((227, 224), (224, 227), (301, 201), (97, 333), (63, 64), (641, 479))
TEXTS = (
    "猫",
    "一张狗的照片",
    "a photo of a cat",
    "Two Horses, running THROUGH the snow!",
    "T恤 and 牛仔裤",
    "ＦＵＬＬ－ｗｉｄｔｈ　Ｔ恤，！",
    "“quoted” ‘texts’ &amp; more…",
    "  spaces \t and\nlines  ",
    "😀",
    "a photo of " + "very " * 100 + "old trees",
    "一张" + "很" * 200 + "旧的照片",
)
LAYER = 1  # of the image tower, besides the last
LIMIT = 1e-5


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8) for width, height in SIZES]
    return [
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC) for small, size in zip(noise, SIZES, strict=True)
    ]


# ---- the libraries' own


@contextmanager
def known_text_tower(folder: Path) -> Iterator[None]:
    """open_clip asks the hub for the sizes of XLM-R-base, which are known."""
    import transformers
    from open_clip import hf_model

    from dcclip_cli.model.open_clip_models import _text_tower

    class Known:
        @staticmethod
        def from_pretrained(name: str) -> Any:
            sizes = dict(_text_tower(folder, name))
            return transformers.AutoConfig.for_model(sizes.pop("model_type"), **sizes)

    before, hf_model.AutoConfig = hf_model.AutoConfig, Known
    try:
        yield
    finally:
        hf_model.AutoConfig = before


def own_model(folder: Path) -> Any:
    if (folder / "open_clip_config.json").is_file():
        import open_clip

        with known_text_tower(folder):
            return open_clip.create_model(f"local-dir:{folder}").eval()
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype="float32").eval()


def own_features(folder: Path) -> dict[str, np.ndarray]:
    """What the library computes by itself, without dcclip."""
    import torch

    model = own_model(folder)
    with torch.no_grad():
        if (folder / "open_clip_config.json").is_file():
            import open_clip
            from open_clip.transform import PreprocessCfg, image_transform_v2

            transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
            pixels = torch.stack([transform(image) for image in images()])
            ids = open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS))
            hidden = model.text.transformer(ids, attention_mask=(ids != 1).long()).last_hidden_state
            layer = model.visual.forward_intermediates(pixels, indices=[LAYER], output_fmt="NCHW")[
                "image_intermediates"
            ][0]
            found = {"image": model.encode_image(pixels), "layer": layer, "text": model.encode_text(ids)}
            return {name: value.numpy() for name, value in (found | {"tokens": hidden, "mask": ids != 1}).items()}
        return {name: value.numpy() for name, value in _of_transformers(model, folder).items()}


def _of_transformers(model: Any, folder: Path) -> dict[str, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer, Siglip2Tokenizer

    siglip = model.config.model_type == "siglip"
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images(), return_tensors="pt")
    tokenizer = (Siglip2Tokenizer if siglip else AutoTokenizer).from_pretrained(folder)
    length = {"padding": "max_length", "max_length": 64} if siglip else {"padding": True, "max_length": 77}
    tokens = tokenizer(list(TEXTS), truncation=True, return_tensors="pt", return_attention_mask=True, **length)
    mask = tokens["attention_mask"].bool()
    inputs = {"input_ids": tokens["input_ids"]} | ({} if siglip else {"attention_mask": tokens["attention_mask"]})
    image = model.get_image_features(**pixels, output_hidden_states=True)
    text = model.get_text_features(**inputs)
    patches = image.hidden_states[LAYER + 1]
    side = int(patches.shape[1] ** 0.5)
    layer = patches[:, patches.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))
    if siglip:
        mask = mask | True  # all 64 places are part of its input
    return {
        "image": image.pooler_output,
        "layer": layer,
        "text": text.pooler_output,
        "tokens": text.last_hidden_state,
        "mask": mask,
    }


# ---- dcclip's


def teacher_features(folder: Path) -> dict[str, np.ndarray]:
    """As a teacher in training, from its directory."""
    import torch

    from dcclip_cli.model.teachers import TransformersTeacher

    towers: Any = TransformersTeacher(model=str(folder), precision="fp32").load()
    with towers.as_teacher():
        pixels = torch.from_numpy(np.stack([towers.preprocess(image) for image in images()]))
        image, tokens = towers.image_features(pixels, layers=(LAYER,)), towers.tokenize(list(TEXTS))
        text = towers.text_features(tokens)
    found = {"image": image.embedding, "layer": image.layer(LAYER), "text": text.embedding, "tokens": text.tokens}
    return {name: value.numpy() for name, value in found.items()}


def encoder_embeddings(folder: Path) -> dict[str, np.ndarray]:
    """As `dcclip eval` and `predict` compute them for `--model DIR`."""
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.encoder import load_encoder

    encoder = load_encoder(resolve(str(folder)), "cpu")
    pixels = np.stack([encoder.preprocess(image) for image in images()])
    return {"image": encoder.encode_pixels(pixels), "text": encoder.encode_texts(list(TEXTS))}


def saved(compute: Callable[[Path], dict[str, np.ndarray]], folder: Path, file: Path) -> dict[str, np.ndarray]:
    """The result of a function here, computed in a process of its own so that no two models are in memory."""
    code = (
        f"import sys, numpy; from pathlib import Path; from benchmarks.teachers.check import {compute.__name__} as f; "
    )
    code += "numpy.savez(sys.argv[2], **f(Path(sys.argv[1])))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder), str(file)], check=True)
    with np.load(file) as arrays:
        return dict(arrays)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def compare(folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        own, ours, encoded = (
            saved(one, folder, Path(temporary) / f"{one.__name__}.npz")
            for one in (own_features, teacher_features, encoder_embeddings)
        )
    differences = {name: float(np.abs(unit(ours[name]) - unit(own[name])).max()) for name in ("image", "text")}
    differences |= {f"eval {name}": float(np.abs(encoded[name] - unit(own[name])).max()) for name in ("image", "text")}
    real = own["mask"].astype(bool)
    layer, tokens = own["layer"], own["tokens"][real]
    differences["layer"] = float(np.abs(ours["layer"] - layer).max() / np.abs(layer).max())
    differences["tokens"] = float(np.abs(ours["tokens"][real] - tokens).max() / np.abs(tokens).max())
    return differences


# ---- loading


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def loading(folder: Path, how: str) -> None:
    """Print what loading costs, as JSON: CPU seconds without imports, peak and anonymous memory in MB."""
    import open_clip  # noqa: F401
    import torch
    import transformers
    from transformers import AltCLIPModel, AutoModel  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    from dcclip_cli.model.teachers import TransformersTeacher

    torch.set_num_threads(1)
    before, begin = anonymous_mb(), time.process_time()
    kept = own_model(folder) if how == "own" else TransformersTeacher(model=str(folder), precision="fp32").load()
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        json.dumps({"cpu_s": seconds, "peak_mb": peak, "anonymous_mb": anonymous_mb() - before, "ok": kept is not None})
    )


def loading_costs(folder: Path) -> None:
    for how in ("own", "dcclip", "dcclip again"):
        code = "import sys; from pathlib import Path; from benchmarks.teachers.check import loading; "
        code += "loading(Path(sys.argv[1]), sys.argv[2])"
        command = [sys.executable, "-W", "ignore", "-c", code, str(folder), how]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        cost = json.loads(line)
        numbers = (
            f"{cost['cpu_s']:6.1f} CPU s  peak {cost['peak_mb']:6,.0f} MB  anonymous {cost['anonymous_mb']:6,.0f} MB"
        )
        print(f"{folder.name:14} {how:13} {numbers}", flush=True)


# ---- eval


def evaluate(folder: Path, out: Path) -> None:
    """`dcclip eval --model DIR` on six made-up images in four classes, Chinese and English."""
    from dcclip_cli.data.dataset import write_parquet
    from dcclip_cli.data.pair import Pair
    from tests.images import encode

    names = {"猫": "a cat", "狗": "a dog", "马": "a horse", "树": "an old tree"}
    pairs = [
        Pair(key=str(number), image=encode(image, "JPEG"), zh=(zh,), en=(en,), meta={})
        for number, (image, (zh, en)) in enumerate(zip(images(), [*names.items()] * 2, strict=False))
    ]
    write_parquet(out / "six.parquet", pairs)
    command = [sys.executable, "-m", "dcclip_cli", "eval", "--model", str(folder), "--no-cache"]
    begin = time.perf_counter()
    data = ["--dataset", str(out / "six.parquet"), "--languages", "en,zh"]
    subprocess.run([*command, *data, "--out", str(out / "results")], check=True)
    print(f"{folder.name}: dcclip eval took {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "equal", "eval"))
    parser.add_argument("teachers", type=Path)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    arguments = parser.parse_args()
    worst = 0.0
    for kind in arguments.kinds:
        directory = (arguments.teachers / kind).resolve()
        if arguments.what == "load":
            loading_costs(directory)
        elif arguments.what == "eval":
            with tempfile.TemporaryDirectory() as temporary:
                evaluate(directory, Path(temporary))
        else:
            differences = compare(directory)
            worst = max(worst, *differences.values())
            print(f"{kind:14}", *(f"{name} {value:.1e}" for name, value in differences.items()), sep="  ", flush=True)
    sys.exit(worst > LIMIT)
