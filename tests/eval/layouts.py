"""Small data sets in the layouts of the published ones. Each image's colour encodes its label."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def colour(label: int) -> tuple[int, int, int]:
    return label % 256, label // 256, 7


def label_of(drawn: Image.Image) -> int:
    """The label encoded in an image."""
    if drawn.mode == "L":
        return int(drawn.getpixel((0, 0)))  # type: ignore[arg-type]
    pixel = drawn.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0]) + 256 * int(pixel[1])


def image(label: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), colour(label)).save(stream, kind)
    return stream.getvalue()


def write(file: Path, content: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def class_folders(folder: Path, names: Sequence[str], suffix: str = ".png") -> None:
    """One image in a folder for each class."""
    for label, name in enumerate(names):
        write(folder / name / f"{label}{suffix}", image(label))


def numbered(folder: Path, count: int, pattern: str = "{:05}.jpg", kind: str = "PNG") -> None:
    """An image for each label, with the label in its name."""
    for label in range(count):
        write(folder / pattern.format(label), image(label, kind))


def tar(file: Path, members: Mapping[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))


def wds(
    root: Path, split: str, truths: Sequence[bytes], suffix: str, names: Sequence[str] = (), shards: int = 2
) -> None:
    """As clip_benchmark_export_wds writes: classnames.txt, SPLIT/nshards.txt, SPLIT/0.tar, ..."""
    if names:
        write(root / "classnames.txt", "\n".join(names) + "\n")
    write(root / split / "nshards.txt", f"{shards}\n")
    numbers = np.array_split(np.arange(len(truths)), shards)
    for shard, several in enumerate(numbers):
        members = {}
        for number in several:
            members[f"s{number:07}.webp"] = image(int(number), "PNG")
            members[f"s{number:07}{suffix}"] = truths[number]
        tar(root / split / f"{shard}.tar", members)


def npy(vector: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, vector)
    return stream.getvalue()


# ---- torchvision's own folders


def country211(root: Path, names: Sequence[str]) -> None:
    class_folders(root / "country211/test", names, ".jpg")


def dtd(root: Path, names: Sequence[str]) -> None:
    lines = []
    for label, name in enumerate(names):
        write(root / f"dtd/dtd/images/{name}/{name}_{label}.jpg", image(label))
        lines.append(f"{name}/{name}_{label}.jpg")
    for split in ("test1", "train1"):
        write(root / f"dtd/dtd/labels/{split}.txt", "\n".join(lines) + "\n")


def fgvc_aircraft(root: Path, names: Sequence[str]) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "\n".join(names) + "\n")
    numbered(data / "images", len(names), "{:07}.jpg")
    write(data / "images_variant_test.txt", "".join(f"{label:07} {name}\n" for label, name in enumerate(names)))


def food101(root: Path, names: Sequence[str]) -> None:
    import json

    for label, name in enumerate(names):
        write(root / f"food-101/images/{name}/{label}.jpg", image(label))
    lists = {name: [f"{name}/{label}"] for label, name in enumerate(names)}
    write(root / "food-101/meta/test.json", json.dumps(lists))


def gtsrb(root: Path, names: Sequence[str]) -> None:
    folder = root / "gtsrb/GTSRB/Final_Test/Images"
    numbered(folder, len(names), "{:05}.ppm", "PPM")
    rows = "".join(f"{label:05}.ppm;{label}\n" for label in range(len(names)))
    write(root / "gtsrb/GT-final_test.csv", f"Filename;ClassId\n{rows}")


def mnist(root: Path, names: Sequence[str]) -> None:
    raw = root / "MNIST/raw"
    count = len(names)
    pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
    images = b"".join(number.to_bytes(4, "big") for number in (2051, count, 28, 28)) + pixels
    labels = b"".join(number.to_bytes(4, "big") for number in (2049, count)) + bytes(range(count))
    for name in ("t10k", "train"):
        write(raw / f"{name}-images-idx3-ubyte", images)
        write(raw / f"{name}-labels-idx1-ubyte", labels)


def flowers102(root: Path, names: Sequence[str]) -> None:
    from scipy.io import savemat

    folder = root / "flowers-102"
    every = np.arange(len(names)) + 1
    for number in every.tolist():
        write(folder / f"jpg/image_{number:05}.jpg", image(number - 1))
    savemat(folder / "imagelabels.mat", {"labels": every})
    savemat(folder / "setid.mat", {"tstid": every, "trnid": every, "valid": every})


def pets(root: Path, names: Sequence[str]) -> None:
    lines = []
    for label, name in enumerate(names):
        file = f"{name.replace(' ', '_')}_1"
        write(root / f"oxford-iiit-pet/images/{file}.jpg", image(label))
        lines.append(f"{file} {label + 1} 1 1")
    write(root / "oxford-iiit-pet/annotations/test.txt", "\n".join(lines) + "\n")


def pcam(root: Path, names: Sequence[str]) -> None:
    import h5py

    folder = root / "pcam"
    folder.mkdir(parents=True)
    pixels = np.stack([np.full((96, 96, 3), colour(label), np.uint8) for label in range(len(names))])
    with h5py.File(folder / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file["x"] = pixels
    with h5py.File(folder / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = np.arange(len(names)).reshape(-1, 1, 1, 1)


def rendered_sst2(root: Path, names: Sequence[str]) -> None:
    for split in ("train", "test", "valid"):
        class_folders(root / f"rendered-sst2/{split}", names)


def stanford_cars(root: Path, names: Sequence[str]) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    numbered(folder / "cars_test", len(names))
    rows = np.zeros(len(names), [("fname", object), ("class", object)])
    for label in range(len(names)):
        rows[label] = (f"{label:05}.jpg", label + 1)
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    (folder / "devkit").mkdir()
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.asarray(names, object)})


def voc2007(root: Path, names: Sequence[str]) -> None:
    """Image number i shows class i, and class 0 as well; class 1 is difficult to see in image 0."""
    folder = root / "VOCdevkit/VOC2007"
    keys = [f"{number:06}" for number in range(len(names))]
    for number, key in enumerate(keys):
        write(folder / f"JPEGImages/{key}.jpg", image(number))
        write(folder / f"Annotations/{key}.xml", "<annotation/>")
    write(folder / "ImageSets/Main/test.txt", "\n".join(keys) + "\n")
    for label, name in enumerate(names):
        shown = [
            " 1" if label in (0, number) else " 0" if (label, number) == (1, 0) else "-1" for number in range(len(keys))
        ]
        lines = [f"{key} {one}" for key, one in zip(keys, shown, strict=True)]
        write(folder / f"ImageSets/Main/{name}_test.txt", "\n".join(lines) + "\n")


TORCHVISION = {
    build.__name__: build
    for build in (
        country211, dtd, fgvc_aircraft, food101, gtsrb, mnist, flowers102, pets, pcam, rendered_sst2, stanford_cars,
        voc2007,
    )
}  # fmt: skip
