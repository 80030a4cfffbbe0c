"""Export a model to every format, some in an environment of their own, and print its difference
from the model.

python benchmarks/export/formats.py --model runs/quickstart/align/model --recipe
recipes/quickstart.yaml --work DIR

In place of the recipe, `--calibration recipes/starter/photos.parquet` names images for int8.
DIR/venvs holds the environments (about 5 GB; made once), DIR/FORMAT-PRECISION the exports. Each
export is run by its own runtime and compared with the model by `dcclip export`. The code of
docs/how-to/runtimes.md runs, too: on the exports, with the starter's 60 photographs and their 12
labels, where its lowest cosine to the model and the share of photographs with the model's best
label in English and Chinese are printed; and on embeddings of the starter, for the vector stores
(`--only faiss`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dcclip_cli import embed, load
from dcclip_cli.exporters.parity import best_texts

ROOT = Path(__file__).parent.parent.parent
# Format, precision, and what its environment needs in addition to dcclip[export]; "" runs in this
# one.
EXPORTS = (
    ("onnx", "fp32", ""),
    ("onnx", "fp16", ""),
    ("onnx", "int8", ""),
    ("transformers.js", "int8", ""),
    ("immich", "int8", ""),
    ("open_clip", "fp16", ""),
    ("transformers", "fp32", ""),
    ("sentence-transformers", "fp32", "sentence-transformers"),
    ("openvino", "fp32", "openvino"),
    ("openvino", "fp16", "openvino"),
    ("openvino", "int8", "openvino"),
    ("mnn", "fp32", "MNN"),
    ("mnn", "int8", "MNN"),
    ("executorch", "fp32", "executorch"),
    ("litert", "fp32", "litert-torch"),
    ("litert", "int8", "litert-torch"),
)
# The documented code by its title: of formats, and of stores with what pip installs.
RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "mnn": "MNN",
    "executorch": "executorch",
    "litert": "litert",
}
STORES = {
    "faiss": "faiss-cpu",
    "qdrant_client": "qdrant-client",
    "lancedb": "lancedb",
    "duckdb": "duckdb",
    "sqlite_vec": "sqlite-vec apsw",
}
PAGE = (ROOT / "docs/how-to/runtimes.md").read_text("utf-8")
SNIPPETS = dict(re.findall(r'^```python title="(\w+)"\n(.*?)^```$', PAGE, re.M | re.S))
PHOTOS = ROOT / "recipes/starter/photos"


def environment(folder: Path, package: str) -> Path:
    """The Python of an environment with dcclip and a package in it."""
    if not package:
        return Path(sys.executable)
    python = folder / package / "bin" / "python"
    if not python.exists():
        venv.create(folder / package, with_pip=True)
        requirements = [*package.split(), "--editable", f"{ROOT}[export]"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe")
    parser.add_argument("--calibration")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="formats, separated by commas")
    parsed = parser.parse_args()
    print(
        "| format | precision | MB | image difference | text difference | same best text "
        "| top-1 en, zh ",
        end="",
    )
    print(
        "| cosine of the code | its same best label en, zh |\n|---|---|---|---|---|---|---|---|---|"
    )
    for format, precision, package in EXPORTS:
        if parsed.only and format not in parsed.only.split(","):
            continue
        out = parsed.work / f"{format}-{precision}"
        python = environment(parsed.work / "venvs", package)
        command = [
            python,
            "-m",
            "dcclip_cli",
            "export",
            *([parsed.recipe] if parsed.recipe else []),
        ]
        command += ["--calibration", parsed.calibration] if parsed.calibration else []
        command += [
            "--model",
            parsed.model,
            "--format",
            format,
            "--precision",
            precision,
            "--out",
            out,
            "--fresh",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(
                f"| {format} | {precision} | {done.stderr.strip().splitlines()[-2:]} |", flush=True
            )
            continue
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
        parity = json.loads((out / "dcclip.json").read_text("utf-8"))["parity"]
        code = documented(format, python, out, parsed.model) if format in RUNTIMES else " | "
        print(f"| {format} | {precision} | {size:.1f} | {row(parity)} | {code} |", flush=True)
    for title, package in STORES.items():
        if not parsed.only or title in parsed.only.split(","):
            print(
                f"{title}: "
                f"{nearest(title, environment(parsed.work / 'venvs', package), parsed.work)}",
                flush=True,
            )


def documented(format: str, python: Path, out: Path, model: str) -> str:
    """The lowest cosine of embeddings by the documented code to the model's, and how often its
    best label is the same.

    Of the code, the photograph and the labels are replaced by the starter's.
    """
    folder = out.with_name(f"{out.name}.code")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "bundle").symlink_to(out.resolve())
    pairs = pq.read_table(PHOTOS.with_suffix(".parquet")).to_pylist()
    photos = [folder / f"{pair['key']}.jpg" for pair in pairs]
    for photo, pair in zip(photos, pairs, strict=True):
        photo.write_bytes(pair["image"])
    english, chinese = (sorted({pair[language][0] for pair in pairs}) for language in ("en", "zh"))
    labels = (*english, *chinese)
    code = SNIPPETS[RUNTIMES[format]].replace('("猫", "dog")', repr(labels))
    code = re.sub(
        r"^image = (.*)$", r"image = np.concatenate([\1 for photo in photos])", code, flags=re.M
    )
    code = f"photos = {[photo.name for photo in photos]}\n" + code.replace('"cat.jpg"', "photo")
    code = SNIPPETS["input"] + code + "np.savez('found.npz', image=image, texts=texts)"
    subprocess.run(
        [python.absolute(), "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    outputs, expected = np.load(folder / "found.npz"), load(model)
    images, texts = (
        expected.embed_images([str(photo) for photo in photos]),
        expected.embed_texts(labels),
    )
    lowest = min((outputs["image"] * images).sum(1).min(), (outputs["texts"] * texts).sum(1).min())
    shares = (
        (
            best_texts(outputs["image"], outputs["texts"][place])
            == best_texts(images, texts[place])
        ).mean()
        for place in (slice(len(english)), slice(len(english), None))
    )
    return f"{lowest:.6f} | {', '.join(f'{share:.1%}' for share in shares)}"


def nearest(title: str, python: Path, work: Path) -> str:
    """The names of the nearest images that the documented code of a store prints."""
    folder = work / f"{title}.code"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("photos.npy", "photos.parquet"):
        embed(PHOTOS, out=folder / name, model="starter")
    embed(texts=["猫"], out=folder / "query.npy", model="starter")
    code = SNIPPETS["rows"] + SNIPPETS[title] + "print(best)"
    done = subprocess.run(
        [python.absolute(), "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def row(parity: dict | None) -> str:
    """The metrics of a parity report as table cells."""
    if parity is None:
        return "converted, not run | | |"
    tops = []
    for language in ("en", "zh"):
        accuracies = [
            accuracy for accuracy in parity["accuracy"] if accuracy["language"] == language
        ]
        count = sum(accuracy["images"] for accuracy in accuracies) or 1
        tops.append(
            "{:.1%}".format(
                sum(accuracy["after"] * accuracy["images"] for accuracy in accuracies) / count
            )
        )
    differences = f"{parity['image_max_difference']:.1g} | {parity['text_max_difference']:.1g}"
    return f"{differences} | {parity['agreement']:.1%} | {', '.join(tops)}"


if __name__ == "__main__":
    main()
