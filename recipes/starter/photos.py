"""Six openly licensed photographs, and crops of them, for int8 calibration and parity checks of
the starter.

    pip install scikit-image scikit-learn
    python recipes/starter/photos.py

writes the folder photos and photos.parquet beside itself. Who took them: SOURCES.md.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair

HERE = Path(__file__).parent
SIDE = 288  # pixels of the shorter side: what the tower's 224 are cut from, with a little to spare
PHOTOS = {  # file in its package, names in English and Chinese
    "skimage/data/chelsea.png": ("cat", "猫"),
    "skimage/data/coffee.png": ("coffee", "咖啡"),
    "skimage/data/rocket.jpg": ("rocket", "火箭"),
    "skimage/data/astronaut.png": ("astronaut", "宇航员"),
    "sklearn/datasets/images/flower.jpg": ("flower", "花"),
    "sklearn/datasets/images/china.jpg": ("temple", "寺庙"),
}


def main() -> None:
    pairs = []
    (HERE / "photos").mkdir(exist_ok=True)
    for file, (en, zh) in PHOTOS.items():
        photo = Image.open(_find(file)).convert("RGB")
        photo.save(HERE / "photos" / f"{en}.jpg", quality=88, optimize=True)
        for number, crop in enumerate(_crops(photo)):
            pairs.append(Pair(f"{en}-{number}", _jpeg(crop), (zh,), (en,), {"source": file}))
    write_parquet(HERE / "photos.parquet", pairs)
    print(f"{len(pairs)} pictures")


def _find(file: str) -> Path:
    package = find_spec(file.partition("/")[0])
    assert package is not None and package.submodule_search_locations, (
        "pip install scikit-image scikit-learn"
    )
    return Path(package.submodule_search_locations[0]).parent / file


def _crops(photo: Image.Image) -> Iterator[Image.Image]:
    """The whole picture and four that leave a third of each side out, plain and mirrored."""
    width, height = photo.size
    corners = [(0, 0), (width // 3, 0), (0, height // 3), (width // 3, height // 3)]
    boxes = [
        (0, 0, width, height),
        *((left, top, left + width * 2 // 3, top + height * 2 // 3) for left, top in corners),
    ]
    for box in boxes:
        part = photo.crop(box)
        longest = max(part.size) * SIDE // min(part.size)
        part.thumbnail((longest, longest))
        yield part
        yield ImageOps.mirror(part)


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main()
