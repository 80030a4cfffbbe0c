"""How reliably `collect` drops faulty pairs and keeps clean ones, on pairs that none of its filters was tuned on.

    (cd ARCHIVES && apt-get download tuxpaint-stamps-default gimp-help-en gimp-help-zh-cn wesnoth-1.18-data \
        openclipart-png && npm pack @icon-park/svg@1.4.2 @iconify-json/icon-park@1.2.4)
    pip install resvg-py==0.5.0
    python benchmarks/collect/unseen.py ARCHIVES WORK --half 1 [--each 60] [--seed 0] [--show 5]

The pairs, in both languages: the stamps of Tux Paint with their descriptions, the pictures of GIMP's manual with their
alt texts, the units of The Battle for Wesnoth with their names, and the icons of IconPark with their names. Faults are
planted in these captions and in the drawings of Open Clip Art. Half 0 may be looked at to improve the filters; half 1
is for reporting only: `--show` refuses it.
"""

import argparse
import gettext
import hashlib
import html
import io
import json
import re
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pictures import Pool, Real, distinct
from PIL import Image
from planted import add_options, measure

Files = dict[str, bytes]  # of an archive, by path
SIDE = 128  # of the icons, in pixels
LARGE = 200  # pixels of the shorter side from which an image is cropped, resized and marked
SMALL, HUGE, NARROW = 32, 1500, 3.0  # spare images are within these: their only fault is to be the planted one


def files(archives: Path, name: str, wanted: str) -> Files:
    """The files of a Debian or npm package whose path matches."""
    (path,) = archives.glob(f"{name}[_-][0-9]*")
    content = path.read_bytes()
    if path.suffix == ".deb":
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, stdout=subprocess.PIPE).stdout
    found: Files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isfile() and re.search(wanted, member.name):
                found[member.name] = archive.extractfile(member).read()
    return dict(sorted(found.items()))


def _sides(image: bytes) -> list[int]:
    """The shorter and the longer side, in pixels."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        try:
            return sorted(Image.open(io.BytesIO(image)).size)
        except Image.DecompressionBombError:
            return [0, 0]


def pair(image: bytes, zh: str | None = None, en: str | None = None) -> Real:
    """A Chinese text without a Han character is left out: it was not translated."""
    zh = zh if zh and re.search("[\u4e00-\u9fff]", zh) else None
    texts = ((" ".join(text.split()),) if text else () for text in (zh, en))
    return Real(image, *texts, photo=_sides(image)[0] >= LARGE)


def within_limits(image: bytes) -> bool:
    """Whether `collect` promises to keep an image of this size, shape and number of frames."""
    short, long = _sides(image)
    return (
        short >= SMALL
        and long <= min(NARROW * short, HUGE)
        and getattr(Image.open(io.BytesIO(image)), "n_frames", 1) == 1
    )


def stamps(archives: Path) -> Iterator[tuple[str, Real]]:
    """Tux Paint's: NAME.txt has the English description, then a line LANGUAGE.utf8=DESCRIPTION for each language."""
    found = files(archives, "tuxpaint-stamps-default", r"/stamps/.*\.(png|txt)$")
    for name, image in found.items():
        if name.endswith(".png") and (text := found.get(name.removesuffix("png") + "txt")):
            first, *others = text.decode().splitlines()
            said = dict(line.split(".utf8=", 1) for line in others if ".utf8=" in line)
            yield name, pair(image, said.get("zh_CN") or said.get("zh_TW"), first)


def manual(archives: Path) -> Iterator[tuple[str, Real]]:
    """GIMP's, in two packages with the same images; those of one photograph under a hundred filters are left out."""
    en, zh = (files(archives, f"gimp-help-{language}", r"\.(html|png|jpg)$") for language in ("en", "zh-cn"))
    english, chinese = (_alts(side) for side in (en, zh))
    for name, text in english.items():
        image = next((content for path, content in en.items() if path.endswith(f"/{name}")), None)
        if image and not text.startswith("[") and "examples/" not in name:
            yield name, pair(image, chinese.get(name), text)


def _alts(manual: Files) -> dict[str, str]:
    alts: dict[str, str] = {}
    for page in (content.decode() for path, content in manual.items() if path.endswith(".html")):
        for tag in re.findall(r"<img [^>]*>", page):
            source, alt = (re.search(rf'{name}="([^"]+)"', tag) for name in ("src", "alt"))
            if source and alt and not source[1].startswith("images/prev"):
                alts.setdefault(source[1], html.unescape(alt[1]))
    return alts


def units(archives: Path) -> Iterator[tuple[str, Real]]:
    """Wesnoth's: the figure on the map and the portrait of every unit."""
    found = files(
        archives, "wesnoth-1.18-data", r"/data/core/(units/.*\.cfg|images/.*\.(png|webp))$|zh_CN.*-units\.mo$"
    )
    (translations,) = (content for path, content in found.items() if path.endswith(".mo"))
    chinese = gettext.GNUTranslations(io.BytesIO(translations)).gettext
    root = "./usr/share/games/wesnoth/1.18/data/core/images/"
    for path, content in found.items():
        text = content.decode() if path.endswith(".cfg") else ""
        said = re.search(r'^ *name= *_ *"([^"]+)"', text, re.MULTILINE)
        for key in ("image", "profile") if said else ():
            shown = re.search(rf'^ *{key}="([^"~]+)"', text, re.MULTILINE)
            if shown and (image := found.get(root + shown[1])):
                yield shown[1], pair(image, chinese(said[1]), said[1].split("^")[-1])


def icons(archives: Path) -> Iterator[tuple[str, Real]]:
    """IconPark's: drawings from one package, Chinese titles from the other; English names are file names."""
    import resvg_py

    (drawn,) = files(archives, "iconify-json-icon-park", r"/icons\.json$").values()
    (named,) = files(archives, "icon-park-svg", r"/icons\.json$").values()
    titles = {one["name"]: one["title"] for one in json.loads(named)}
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48" width="{SIDE}" height="{SIDE}">'
    for name, icon in json.loads(drawn)["icons"].items():
        image = bytes(resvg_py.svg_to_bytes(svg_string=f"{head}{icon['body']}</svg>"))
        yield name, pair(image, titles[name], name.replace("-", " "))


def drawings(archives: Path) -> Iterator[tuple[str, Real]]:
    """Those of Open Clip Art, without captions; themes of icons, which repeat each other, are left out."""
    for name, image in files(archives, "openclipart-png", r"^(?!.*(computer/icons|/duplicates/)).*\.png$").items():
        yield name, pair(image)


SOURCES: tuple[Callable[[Path], Iterator[tuple[str, Real]]], ...] = (stamps, manual, units, icons, drawings)


def unseen(archives: Path, half: int | None) -> tuple[Pool, list[Real]]:
    """The pairs of one half, or all, and large drawings without captions; images outside of the limits are left out."""
    candidates, large = [], []
    for source in SOURCES:
        named = ((f"{source.__name__}/{name}", real) for name, real in source(archives))
        some = [real for name, real in named if half in (None, _half(name)) and within_limits(real.image)]
        if source is drawings:
            large = [real for real in some if real.photo][::4]
            some = [real for real in some if real not in large]
        print(f"{source.__name__}: {len(some):,}", end=", ", flush=True)
        candidates += some
    return distinct(candidates), large


def _half(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path)
    add_options(parser)
    parser.add_argument("--half", type=int, choices=(0, 1), help="use only this half of the images")
    options = parser.parse_args()
    if options.show and options.half != 0:
        parser.error("only half 0 may be looked at")
    pool, large = unseen(options.archives, options.half)
    print(f"{len(pool.clean):,} clean, {len(pool.spare):,} spare, {len(large):,} large")
    measure(pool, large, options)


if __name__ == "__main__":
    main()
