"""Pictures, their names, and lists of them on stdin."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.corpus import encode
from benchmarks.dev.hostile.damage import Change, both, damaged_bytes, fifo, nothing, short, write

_GOOD = "pictures/red-circle.png"
_PARTS = ("bundle", _GOOD)
_LABELS = ("--labels", "猫,dog", "--model", "bundle")


def _picture(kind: str, size: tuple[int, int] = (48, 48), mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.new(mode, size), kind, **options)


def _png(width: int, height: int) -> bytes:
    """The beginning of a PNG file whose header declares this size."""
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + header + zlib.crc32(header).to_bytes(4) + bytes(12)


_KINDS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in ("PNG", "JPEG", "WEBP")},
    **{mode: {"kind": "PNG", "mode": mode} for mode in ("RGBA", "P", "1", "I;16")},
    **{mode: {"kind": "JPEG", "mode": mode} for mode in ("CMYK", "L")},
    "animated": {"kind": "WEBP", "save_all": True, "append_images": [Image.new("RGB", (48, 48), "red")]},
}
_OTHERS: dict[str, bytes] = {
    "empty": b"",
    "text": "这不是图片".encode(),
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "zeros": bytes(1000),
    "PNG's head": b"\x89PNG\r\n\x1a\n",
    "JPEG's head": b"\xff\xd8\xff\xe0",
    "WebP's head": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "GIF": _picture("GIF"),
    "BMP": _picture("BMP"),
    "TIFF": _picture("TIFF"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "ZIP": b"PK\x03\x04",
    "a pickle": b"\x80\x04N.",
    "no pixels": _png(0, 0),
    "a bomb": _png(60_000, 60_000),
    "100 megapixels": _png(10_000, 10_000),
    "500 x 1": _picture("PNG", (500, 1)),
    "1 x 500": _picture("PNG", (1, 500)),
    "negative size": _png(2**31 + 5, 10),
}
_ASKING: tuple[Callable[[Sequence[str]], Sequence[str]], ...] = (
    lambda names: ["predict", *names, *_LABELS],
    lambda names: ["predict", *names, *_LABELS, "--json"],
    lambda names: ["predict", *names, *_LABELS, "--csv"],
    lambda names: ["embed", *names, "--model", "bundle"],
    lambda names: ["embed", *names, "--model", "bundle", "--out", "e.parquet"],
    lambda names: ["search", "猫", "pictures", "--model", "bundle", "--json"],
)


def content(random: Random) -> Case:
    """A picture of any kind whose bytes are damaged, next to a whole one."""
    kind, seed = random.choice(list(_KINDS)), random.randrange(2**32)
    what, damaged = damaged_bytes(Random(seed), _picture(**_KINDS[kind]))
    arguments = random.choice(_ASKING)(["pictures/bad.png", _GOOD])
    case = f"{arguments[0]} {kind}: {what} ({seed:08x})"
    return Case(case, arguments, _PARTS, write("pictures/bad.png", damaged), check=_good_is_there(arguments))


def other(random: Random) -> Case:
    """A file that is no picture, next to one."""
    name = random.choice(list(_OTHERS))
    ending = random.choice((".png", ".jpg", ".webp", ".JPEG"))
    arguments = random.choice(_ASKING)([f"pictures/bad{ending}", _GOOD])
    expect = Expect.REFUSED if name not in ("GIF", "BMP", "TIFF") else Expect.ANY
    case = f"{arguments[0]} {name} as {ending}{' '.join(arguments[5:])}"
    change = write(f"pictures/bad{ending}", _OTHERS[name])
    return Case(case, arguments, _PARTS, change, expect, check=_good_is_there(arguments))


def _good_is_there(arguments: Sequence[str]) -> Callable[[Path, str], str]:
    """The whole picture next to a damaged one has its answer all the same."""

    def check(here: Path, stdout: str) -> str:
        if arguments[0] == "embed":
            names = here / "embeddings.txt"
            there = (names.exists() and _GOOD in names.read_text()) or (here / "e.parquet").exists()
            return "" if there else "the whole picture has no embedding"
        return "" if "red-circle.png" in stdout else "the whole picture has no answer"

    return check


_NAMES = (
    *("two\nlines.png", "\x1b[2Jclear.png", "a\tb.png", "a'b\"c.png", "\udcff\udcfe.png", "猫" * 80 + ".png", " .png"),
    *("x" * 251 + ".png", ". .png", "\u202egnp.exe.png", "\u200b.png", "a\r.png", "a\\b.png", "\x7f.png"),
    *"=1+1.png -rf.png --labels.png @x.png é.png *.png [a].png a?.png {}.png %s.png ‘’.png 𠮷.png .png ~.png".split(),
    *"$HOME.png a;b.png NUL.png +1.png a,b.png".split(),
)  # fmt: skip


def name(random: Random) -> Case:
    """A picture with a hostile name, named alone or found in its folder."""
    given = random.choice(_NAMES)
    alone = random.random() < 0.5
    arguments = random.choice(_ASKING)([f"pictures/{given}" if alone else "pictures"])
    alone = alone and arguments[0] != "search"

    def change(here: Path) -> None:
        os.rename(os.fsencode(here / _GOOD), os.fsencode(here / f"pictures/{given}"))

    at = "alone" if alone else "in a folder"
    return Case(f"{arguments[0]} {arguments[-1]} {short(given)} {at}", arguments, _PARTS, change)


_MISSING: dict[str, tuple[str, Change]] = {
    "none": ("none.png", nothing),
    "an empty name": ("", nothing),
    "an empty folder": ("empty", lambda here: (here / "empty").mkdir()),
    "no match": ("*.tif", nothing),
    "below a file": (f"{_GOOD}/a.png", nothing),
    "300 letters": ("x" * 300 + ".png", nothing),
    "a FIFO": ("fifo.png", fifo("fifo.png")),
    "a loop": ("loop.png", lambda here: (here / "loop.png").symlink_to("loop.png")),
    "a dangling link": ("link.png", lambda here: (here / "link.png").symlink_to("none.png")),
    "/dev/null": ("/dev/null", nothing),
    "/dev/zero": ("/dev/zero", nothing),
    "a folder named like a picture": ("folder.png", lambda here: (here / "folder.png").mkdir()),
    "a NUL in a glob": ("a[", nothing),
    "a socket's folder": ("/proc/self/fd", nothing),
    "an escape": ("\x1b[2J.png", nothing),
    "not UTF-8": ("\udcff.png", nothing),
    "**": ("**", nothing),
    "~nobody": ("~nobody/x.png", nothing),
    "a URL": ("https://example.org/cat.png", nothing),
}


def missing(random: Random) -> Case:
    """A path that leads to no picture."""
    called = random.choice(list(_MISSING))
    given, change = _MISSING[called]
    command = random.choice((*_ASKING[:-1], lambda names: ["search", "猫", *names, "--model", "bundle"]))
    arguments = command([given])
    expect = Expect.ANY if called in ("**", "a socket's folder") else Expect.REFUSED
    return Case(f"{arguments[0]} {called} {' '.join(arguments[6:])}", arguments, _PARTS, change, expect, limit_s=15)


_LISTS: dict[str, bytes] = {
    "empty": b"",
    "blank lines": b"\n \n\n",
    "a name that is missing": b"none.png\n",
    "a name twice": f"{_GOOD}\n{_GOOD}\n".encode(),
    "CRLF": f"{_GOOD}\r\n".encode(),
    "no last newline": _GOOD.encode(),
    "not UTF-8": b"\xff\xfe.png\n",
    "UTF-16": f"{_GOOD}\n".encode("utf-16"),
    "NUL": b"a\0b.png\n",
    "NULs between": f"{_GOOD}\0{_GOOD}".encode(),
    "a mark": b"\xef\xbb\xbf" + _GOOD.encode() + b"\n",
    "a FIFO": b"fifo.png\n",
    "a dash": b"-\n",
    "an escape": b"\x1b[2J.png\n",
    "one line of 1 MB": b"x" * 10**6,
    "a long list of missing names": b"none.png\n" * 3000,
    "a picture itself": _picture("PNG"),
    "a folder": b"pictures\n",
}


def stdin(random: Random) -> Case:
    """Names on stdin."""
    called, command = random.choice(list(_LISTS)), random.choice(_ASKING[:-1])
    arguments = command(["-"])
    fine = ("a name twice", "CRLF", "no last newline", "a mark", "a folder", "NULs between")
    case = f"{arguments[0]} - {called} {' '.join(arguments[6:])}"
    expect = Expect.ANY if called in fine else Expect.REFUSED
    return Case(case, arguments, _PARTS, fifo("fifo.png"), expect, stdin=_LISTS[called], limit_s=15)


def folder(random: Random) -> Case:
    """A folder with something odd in it, next to a picture."""
    odd: dict[str, Change] = {
        "a loop of folders": lambda here: (here / "pictures/again").symlink_to("."),
        "a dangling link": lambda here: (here / "pictures/link.png").symlink_to("none"),
        "a FIFO": fifo("pictures/fifo.png"),
        "a folder named like a picture": lambda here: (here / "pictures/b.png").mkdir(),
        "an empty picture": write("pictures/b.png", b""),
        "depth": lambda here: (here / "pictures" / "/".join("d" * 500)).mkdir(parents=True),
        "2,000 empty pictures": both(*(write(f"pictures/{n}.png", b"") for n in range(2000))),
        "hidden ones": write("pictures/.hidden/.b.png", b""),
    }
    called = random.choice(list(odd))
    arguments = random.choice(_ASKING)(["pictures"])
    case = f"{arguments[0]} a folder with {called} {' '.join(arguments[6:])}"
    return Case(case, arguments, _PARTS, odd[called], check=_good_is_there(arguments))


RULES = (content, content, other, name, name, missing, stdin, folder)
