"""Accuracy and agreement of an int8 bundle on CPUs with and without VNNI, compared with its model in fp32.

    python benchmarks/export/plain_cpu.py BUNDLE FP32 DATA [--limit N]

BUNDLE is an int8 bundle or `starter`; FP32 the model directory that it came from, or an fp32 bundle of it. DATA is a
folder of ImageNet photographs in folders by wnid, or a Parquet file as in recipes/quickstart. The CPU without VNNI is
emulated, fifty times slower than this one: apt-get install qemu-user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LANGUAGES = ("en", "zh")
QEMU = ("qemu-x86_64", "-cpu", "Haswell-noTSX")  # AVX2 and FMA, no AVX-512, no VNNI
AT_ONCE = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("fp32")
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="images, spread over the data")
    given = parser.parse_args()
    if shutil.which(QEMU[0]) is None:
        raise SystemExit(f"{QEMU[0]} is not installed: apt-get install qemu-user")
    import numpy as np

    from dcclip_cli.exporters.export import ExportOptions, export
    from dcclip_cli.model.reference import resolve

    bundle, model = Path(resolve(given.bundle).target), resolve(given.fp32)
    with TemporaryDirectory() as temporary:
        fp32 = Path(model.target)
        if model.kind != "bundle":
            fp32 = export(options=ExportOptions(), model=model, out=Path(temporary) / "fp32").folder
        questions = Path(temporary) / "questions.npz"
        labels = ask(bundle, given.data, given.limit, questions)
        answers = {
            "fp32": embeddings(fp32, questions, ()),
            "int8, this machine": embeddings(bundle, questions, ()),
            "int8, no VNNI": embeddings(bundle, questions, QEMU),
        }
    print(f"{bundle.name}: {len(labels['en'])} images of {given.data.name}")
    print("| | top-1 en, zh | same best label en, zh | cosine of image embeddings, mean, worst |")
    print("|---|---|---|---|")
    exact = answers["fp32"]
    for name, found in answers.items():
        best, before = ({key: (of["images"] @ of[key].T).argmax(1) for key in LANGUAGES} for of in (found, exact))
        right = ", ".join(f"{100 * np.mean(best[key] == labels[key]):.1f}" for key in LANGUAGES)
        same = ", ".join(f"{100 * np.mean(best[key] == before[key]):.1f}" for key in LANGUAGES)
        cosines = (found["images"] * exact["images"]).sum(axis=1)
        print(f"| {name} | {right} | {same} | {cosines.mean():.4f}, {cosines.min():.4f} |")


def ask(bundle: Path, data: Path, limit: int, out: Path) -> dict[str, np.ndarray]:
    """The images' labels by language; preprocessed images and token ids of the classes are written to `out`."""
    import numpy as np

    from dcclip_cli.data import prompts
    from dcclip_cli.data.class_folders import images_by_class
    from dcclip_cli.eval.dataset import Classes
    from dcclip_cli.eval.evaluate import EvalOptions, open_datasets
    from dcclip_cli.model.preprocess import decode
    from dcclip_cli.predict.onnx_encoder import OnnxEncoder

    model = OnnxEncoder(bundle, "cpu")
    if data.is_dir():
        imagenet = prompts.read("imagenet")
        files = [(file, folder) for folder, several in images_by_class(data).items() for file in several]
        labels = dict.fromkeys(LANGUAGES, np.asarray([imagenet.folders.index(folder) for _, folder in files]))
        names = {key: imagenet.names[key] for key in LANGUAGES}

        def load(index: int) -> np.ndarray:
            return model.preprocess(decode(files[index][0]))
    else:
        [opened] = open_datasets(EvalOptions(datasets=(str(data),), languages=LANGUAGES))
        truth = {key: of for key, of in opened.truth.items() if isinstance(of, Classes)}
        labels = {key: of.labels[np.arange(len(opened.images))] for key, of in truth.items()}
        names = {key: of.names for key, of in truth.items()}

        def load(index: int) -> np.ndarray:
            return model.preprocess(opened.images.load(index))

    count = len(labels["en"])
    chosen = np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))
    texts = {key: np.asarray([one.ids for one in model._tokenizer.encode_batch(names[key])]) for key in LANGUAGES}
    np.savez(out, images=np.stack([load(index) for index in chosen]), **texts)
    return {key: of[chosen] for key, of in labels.items()}


def embeddings(bundle: Path, questions: Path, under: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The embeddings of images, and of classes by language, from a process of its own."""
    import numpy as np

    out = questions.with_name("answers.npz")
    program = os.path.realpath(sys.executable) if under else sys.executable
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*under, program, __file__, "--answer", str(bundle), str(questions), str(out)]
    subprocess.run(command, check=True, env=environment)
    with np.load(out) as found:
        return dict(found)


def answer(bundle: Path, questions: Path, out: Path) -> None:
    """Needs onnxruntime and numpy alone, as an emulated process should."""
    import numpy as np
    import onnxruntime

    found = {}
    with np.load(questions) as asked:
        for name, items in asked.items():
            tower = "image" if name == "images" else "text"
            session = onnxruntime.InferenceSession(bundle / f"{tower}.onnx", providers=["CPUExecutionProvider"])
            takes = session.get_inputs()[0].name
            starts = range(0, len(items), AT_ONCE)
            found[name] = np.concatenate(
                [session.run(None, {takes: items[start : start + AT_ONCE]})[0] for start in starts]
            )
    np.savez(out, **found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*(Path(argument) for argument in sys.argv[2:5]))
    else:
        main()
