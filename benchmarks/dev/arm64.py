"""The starter on ARM64, emulated by qemu, compared with x86-64: its labels of photographs, and the
commands.

    apt-get install debootstrap qemu-user-static
    python benchmarks/dev/arm64.py WORK PHOTOS [--photos 200] [--cpus cortex-a53 cortex-a76 max,sme=off]

PHOTOS has ImageNet photographs in folders by wnid, as for benchmarks/starter.py. WORK gets a
Debian for arm64, which is unpacked without root, dcclip's packages for it, the fp32 bundle, and
the embeddings. A second call reads these if the bundle and the paths of the photographs are the
same. Among 1,000 class names in each language, a row gives top-1 on x86-64 and on ARM64, and the
share of photographs with the same label. cortex-a53 has no dot products of int8, cortex-a76 has;
max has all that qemu emulates. SME is off, because numpy 2.5's OpenBLAS 0.3.34 multiplies matrices
wrongly with it in qemu 10 (`a @ b.T` of float32 is off by up to 1e37). Speed says nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")
DEBIAN, MIRROR = "trixie", "http://deb.debian.org/debian"
SYSTEM_PACKAGES = "python3,libpython3-stdlib,libstdc++6,libgomp1,zlib1g"
PYTHON = "3.13"  # Debian's
PACKAGES = (
    "numpy",
    "onnxruntime",
    "pillow",
    "pydantic",
    "pyyaml",
    "rich",
    "tokenizers",
    "typer",
    "jinja2",
    "filelock",
)
SERVER_PACKAGES = ("fastapi", "h11", "prometheus-client", "python-multipart", "uvicorn")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--photos", type=int, default=200, dest="number")
    parser.add_argument("--cpus", nargs="+", default=["cortex-a53", "cortex-a76", "max,sme=off"])
    parser.add_argument("--precisions", nargs="+", default=["int8", "fp32"])
    parser.add_argument(
        "--commands",
        action="store_true",
        help="only run predict, search, embed, eval and serve, on all of PHOTOS",
    )
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    install(work)
    if arguments.commands:
        return run_commands(work, arguments.cpus[-1], arguments.photos)
    model = ROOT / "dcclip_cli/starter/model"
    bundles = {"int8": ROOT / "dcclip_cli/starter", "fp32": work / f"fp32-{digest(model)}"}
    if "fp32" in arguments.precisions and not bundles["fp32"].is_dir():
        run(
            sys.executable, "-m", "dcclip_cli", "export", "--model", model, "--out", bundles["fp32"]
        )
    folders = json.loads((ROOT / "dcclip_cli/data/prompts/imagenet.json").read_text("utf-8"))[
        "folders"
    ]
    by_class = {folder: sorted((arguments.photos / folder).glob("*")) for folder in folders}
    shown = [(file, number) for number, folder in enumerate(folders) for file in by_class[folder]]
    chosen = [
        shown[place]
        for place in np.linspace(0, len(shown) - 1, min(arguments.number, len(shown))).astype(int)
    ]
    files, truth = [str(file) for file, _ in chosen], np.asarray([number for _, number in chosen])
    print(
        "precision  processor    language  top-1 x86-64  top-1 ARM64  same label  lowest "
        "cosine of images, texts"
    )
    for precision in arguments.precisions:
        bundle, suffix = bundles[precision], f"{digest(bundles[precision], *files)}.npz"
        reference = embeddings(work / f"{precision}-x86-{suffix}", bundle, files, [sys.executable])
        for cpu in arguments.cpus:
            emulated = embeddings(
                work / f"{precision}-{cpu}-{suffix}", bundle, files, emulator(work, cpu)
            )
            cosines = [
                float((reference[name] * emulated[name]).sum(1).min())
                for name in ("images", *LANGUAGES)
            ]
            for language, cosine in zip(LANGUAGES, cosines[1:], strict=True):
                labels = [
                    (part["images"] @ part[language].T).argmax(1) for part in (reference, emulated)
                ]
                top1 = "".join(f"{100 * (answers == truth).mean():12.1f} %" for answers in labels)
                same = 100 * (labels[0] == labels[1]).mean()
                print(
                    f"{precision:9}  {cpu:11}  {language:8}{top1}{same:10.1f} %  "
                    f"{cosines[0]:.4f}, {cosine:.6f}",
                    flush=True,
                )


def run(*command: object, **settings: str) -> None:
    subprocess.run([str(part) for part in command], check=True, env=os.environ | settings)


def digest(folder: Path, *texts: str) -> str:
    """The start of a hash of these texts and of the files of a folder."""
    sha256 = hashlib.sha256("\n".join(texts).encode())
    for file in sorted(file for file in folder.glob("*") if file.is_file()):
        sha256.update(file.read_bytes())
    return sha256.hexdigest()[:8]


def install(work: Path) -> None:
    """Unpack Debian's Python for arm64 into `root` and dcclip's packages for it into `site`,
    unless they are there.
    """
    root, site = work / "root", work / "site"
    if not (root / "usr/bin/python3").exists():
        options = ("--foreign", "--arch=arm64", "--variant=minbase", f"--include={SYSTEM_PACKAGES}")
        run("debootstrap", *options, DEBIAN, root, MIRROR)
        for package in sorted(root.glob("var/cache/apt/archives/*.deb")):
            run("dpkg-deb", "--extract", package, root)
    if not (site / "onnxruntime").exists():
        platforms = [f"--platform=manylinux_2_{version}_aarch64" for version in (28, 27, 17)]
        options = (
            "--target",
            str(site),
            *platforms,
            f"--python-version={PYTHON}",
            "--only-binary=:all:",
        )
        run(sys.executable, "-m", "pip", "install", "-q", *options, *PACKAGES, *SERVER_PACKAGES)


def emulator(work: Path, cpu: str) -> list[str]:
    """The command that starts the emulated Python."""
    return [
        "qemu-aarch64-static",
        "-cpu",
        cpu,
        "-L",
        str(work / "root"),
        str(work / "root/usr/bin/python3"),
    ]


def environment(work: Path, python: list[str]) -> dict[str, str]:
    emulated = len(python) > 1
    path = f"{work / 'site'}{os.pathsep}{ROOT}" if emulated else str(ROOT)
    cache = work / (
        "cache" if emulated else "cache-x86"
    )  # an index of photographs is read by any processor
    return os.environ | {
        "PYTHONPATH": path,
        "DCCLIP_CACHE": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def embeddings(
    out: Path, bundle: Path, files: list[str], python: list[str]
) -> dict[str, np.ndarray]:
    """The embeddings of photographs, and of the class names by language, that a Python computes;
    read if in `out`.
    """
    if not out.is_file():
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=out.parent) as job:
            json.dump([str(bundle), str(out), files], job)
            job.flush()
            run(*python, __file__, "--encode", job.name, **environment(out.parent, python))
    with np.load(out) as arrays:
        return dict(arrays)


def encode(job: str) -> None:
    """Write the embeddings of a job, in the emulated process."""
    import dcclip_cli

    bundle, out, files = json.loads(Path(job).read_text("utf-8"))
    prompts = json.loads((ROOT / "dcclip_cli/data/prompts/imagenet.json").read_text("utf-8"))
    model = dcclip_cli.load(bundle, device="cpu", threads=1)
    images = np.concatenate(
        [model.embed_images(files[place : place + 8]) for place in range(0, len(files), 8)]
    )
    np.savez(
        out,
        images=images,
        **{name: model.embed_texts(prompts[name]["names"]) for name in LANGUAGES},
    )


def run_commands(work: Path, cpu: str, photos: Path) -> None:
    """Run the commands that need no torch on the photographs with both Pythons, and compare their
    outputs.
    """
    reference, emulated = (
        command_outputs(work, python, photos) for python in ([sys.executable], emulator(work, cpu))
    )
    labels, results, rows, top1, vector = zip(reference, emulated, strict=True)
    same = [first == second for first, second in zip(*labels, strict=True)]
    print(f"predict: same label for {sum(same)} of {len(same)}")
    print(
        f"search:  {len(set(results[0]) & set(results[1]))} of the first "
        f"{len(results[0])} results in common"
    )
    print(f"embed:   lowest cosine {(rows[0] * rows[1]).sum(1).min():.4f}")
    print(
        "eval:    "
        + "; ".join(
            f"{name} {value:.1%} and {top1[1][name]:.1%}" for name, value in top1[0].items()
        )
    )
    print(f"serve:   cosine of a text {vector[0] @ vector[1]:.6f}")


def command_outputs(work: Path, python: list[str], photos: Path) -> tuple[Any, ...]:
    """What predict, search, embed, eval and serve of a Python say about the photographs."""
    dcclip, settings = [*python, "-m", "dcclip_cli"], environment(work, python)
    model = ["--model", "starter", "--quiet"]

    def answer(*arguments: object) -> Any:
        command = [*dcclip, *map(str, arguments), *model, "--json"]
        return json.loads(
            subprocess.run(command, env=settings, check=True, stdout=subprocess.PIPE).stdout
        )

    predictions = answer(
        "predict", photos, "--labels", "狗,bird,鱼,snake,昆虫,vehicle,乐器,furniture,食物,clothes"
    )
    labels = [prediction["labels"][0]["label"] for prediction in predictions]
    results = [row["image"] for row in answer("search", "一条鱼", photos)]
    rows = work / f"rows-{len(python)}.npy"
    answer("embed", photos, "--out", rows)
    top1 = {
        row["language"]: row["value"]
        for row in answer("eval", "--dataset", photos, "--templates", "name")
    }
    command = [*dcclip, "serve", *model, "--port", "0"]
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url, body = (
            f"{server.stdout.readline().strip()}v1/embeddings",
            json.dumps({"input": "一只猫"}).encode(),
        )
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        vector = np.asarray(json.load(urllib.request.urlopen(request))["data"][0]["embedding"])
        server.terminate()
    return labels, results, np.load(rows), top1, vector


if __name__ == "__main__":
    encode(sys.argv[2]) if sys.argv[1:2] == ["--encode"] else main()
