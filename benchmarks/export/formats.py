"""Export a model to every format, some in an environment of their own, and print its difference from the model.

python benchmarks/export/formats.py --model runs/quickstart/align/model --recipe recipes/quickstart.yaml --work DIR

DIR/venvs holds the environments (about 5 GB; made once), DIR/FORMAT-PRECISION the exports. Each export is run by its
own runtime and compared with the model by `dcclip export`; CoreML is converted only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Format, precision, and what its environment needs in addition to dcclip[export]; "" runs in this one.
EXPORTS = (
    ("onnx", "fp32", ""),
    ("onnx", "fp16", ""),
    ("onnx", "int8", ""),
    ("immich", "int8", ""),
    ("open_clip", "fp16", ""),
    ("transformers", "fp32", ""),
    ("sentence-transformers", "fp32", "sentence-transformers"),
    ("openvino", "fp16", "openvino"),
    ("openvino", "int8", "openvino"),
    ("mnn", "fp32", "MNN"),
    ("executorch", "fp32", "executorch"),
    ("litert", "fp32", "litert-torch"),
    ("litert", "int8", "litert-torch"),
    ("coreml", "fp16", "coremltools"),
)


def environment(folder: Path, package: str) -> Path:
    """The Python of an environment with dcclip and a package in it."""
    if not package:
        return Path(sys.executable)
    python = folder / package / "bin" / "python"
    if not python.exists():
        venv.create(folder / package, with_pip=True)
        wanted = [package, "--editable", f"{ROOT}[export]"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="", help="formats, separated by commas")
    given = parser.parse_args()
    print("| format | precision | MB | image difference | text difference | same best text | top-1 en, zh |")
    print("|---|---|---|---|---|---|---|")
    for format, precision, package in EXPORTS:
        if given.only and format not in given.only.split(","):
            continue
        out = given.work / f"{format}-{precision}"
        command = [environment(given.work / "venvs", package), "-m", "dcclip_cli", "export", given.recipe]
        command += ["--model", given.model, "--format", format, "--precision", precision, "--out", out, "--fresh"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {format} | {precision} | {done.stderr.strip().splitlines()[-2:]} |", flush=True)
            continue
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
        parity = json.loads((out / "dcclip.json").read_text("utf-8"))["parity"]
        print(f"| {format} | {precision} | {size:.1f} | {row(parity)} |", flush=True)


def row(parity: dict | None) -> str:
    """The metrics of a parity report as table cells."""
    if parity is None:
        return "converted, not run | | |"
    tops = []
    for language in ("en", "zh"):
        several = [one for one in parity["accuracy"] if one["language"] == language]
        count = sum(one["images"] for one in several) or 1
        tops.append("{:.1%}".format(sum(one["after"] * one["images"] for one in several) / count))
    differences = f"{parity['image_max_difference']:.1g} | {parity['text_max_difference']:.1g}"
    return f"{differences} | {parity['agreement']:.1%} | {', '.join(tops)}"


if __name__ == "__main__":
    main()
