"""Hostile input of all kinds in one run: each item is dropped with its reason, and nothing fails."""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from dcclip_cli.curation.collect import collect
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair
from tests.curation.conftest import MakeImage
from tests.curation.fetch_site import Site, floods, leads_to
from tests.curation.reading import tar
from tests.images import png_header

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def test_a_hostile_set_is_dropped_thing_by_thing(tmp_path: Path, picture: MakeImage, site: Site) -> None:
    expected: dict[str, str] = {}
    good = picture("good")

    # A folder: broken pictures, and captions that are none.
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(picture("secret"))
    pictures = {
        "bomb.png": (png_header(60_000, 60_000), "image-bomb"),
        "small-bomb.png": (png_header(14_000, 14_000), "image-bomb"),
        "truncated.png": (good[: len(good) // 2], "image-unreadable"),
        "truncated.jpg": (picture("good", (160, 160), "JPEG")[:900], "image-unreadable"),
        "header-only.png": (good[:33], "image-unreadable"),
        "svg.svg": (SVG, "image-format"),
        "svg-called.jpg": (SVG, "image-format"),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "image-format"),
        "empty.jpg": (b"", "image-bytes"),
    }
    for name, (content, reason) in pictures.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("一只猫", "utf-8")
        expected[f"folder:{name}"] = reason
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "link.txt").write_text("一只猫", "utf-8")
    expected["folder:link.png"] = "image-outside"
    captions = {
        "huge": (b"cat " * 12_500_000, "captions-bytes"),  # 50 MB
        "nul": ("一只\0猫".encode(), "caption-control"),
        "deep-json": (b"", "captions-unreadable"),
    }
    for number, (name, (text, reason)) in enumerate(captions.items()):
        (folder / f"{name}.png").write_bytes(picture(f"caption {number}"))
        (folder / f"{name}.txt").write_bytes(text)
        expected[f"folder:{name}.png"] = reason
    (folder / "deep-json.json").write_bytes(b"[" * 200_000)
    # PNG bytes under the name of a JPEG are no fault: the format is detected from the bytes.
    (folder / "wrong-name.jpg").write_bytes(picture("wrong name"))
    (folder / "wrong-name.txt").write_text("一幅抽象画", "utf-8")

    # A tar: paths and links that lead out of it, and one that is not a tar.
    (tmp_path / "tars").mkdir()
    outside = ("../../escape", "/etc/escape")
    members = [
        (f"{name}.{suffix}", content) for name in outside for suffix, content in (("png", good), ("txt", b"cat"))
    ]
    tar(tmp_path / "tars/evil.tar", members)
    tar(tmp_path / "tars/link.tar", [("link.png", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    expected |= {f"tars:evil.tar:{name}": "image-outside" for name in outside}
    expected["tars:link.tar:link"] = "image-outside"
    (tmp_path / "tars/noise.tar").write_bytes(bytes(range(256)) * 100)

    # A table: addresses that must not be asked.
    addresses = {
        "http://10.0.0.1/cat.jpg": "url-private",
        "http://[::ffff:127.0.0.1]/cat.jpg": "url-private",
        "http://2130706433/cat.jpg": "url-private",  # 127.0.0.1 as one number
        "file:///etc/passwd": "url-scheme",
        site.url("/redirect"): "url-private",
        site.url("/endless"): "url-bytes",
        site.url("/loop"): "url-redirects",
    }
    site.pages |= {
        "/redirect": leads_to("http://169.254.169.254/latest/meta-data/"),
        "/endless": floods(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)),
        "/loop": leads_to("/loop"),
    }
    rows = [json.dumps({"url": url, "en": "a cat"}) for url in addresses]
    (tmp_path / "urls.jsonl").write_text("\n".join(rows), "utf-8")
    expected |= {f"urls:{number}": reason for number, reason in enumerate(addresses.values(), start=1)}

    # Pairs: text that would break whoever shows it.
    write_parquet(tmp_path / "pairs.parquet", [Pair("nul", picture("pair 1"), en=("a\0cat",))])
    expected["pairs:nul"] = "caption-control"

    sources = [
        {"kind": "folder", "path": str(folder), "name": "folder"},
        {"kind": "tars", "path": str(tmp_path / "tars"), "name": "tars"},
        {"kind": "table", "path": str(tmp_path / "urls.jsonl"), "name": "urls"},
        {"kind": "table", "path": str(tmp_path / "pairs.parquet"), "name": "pairs"},
    ]
    fetch = {"allow_hosts": [site.host], "max_bytes": 1_000_000, "retries": 0}
    options = CollectOptions.model_validate({"sources": sources, "fetch": fetch})
    result = collect(options, tmp_path / "run")

    found: dict[str, set[str]] = {}
    for row in pq.read_table(tmp_path / "run/dropped.parquet").to_pylist():
        found.setdefault(row["origin"], set()).add(row["reason"])
    assert {origin: reason for origin, reason in expected.items() if reason not in found.get(origin, ())} == {}
    assert [reasons for origin, reasons in found.items() if "noise.tar" in origin] == [{"tar-unreadable"}]
    assert [pair.meta["origin"] for pair in open_pairs(tmp_path / "run")] == ["wrong-name.jpg"]
    assert result.pairs.kept == 1
    assert not list(tmp_path.rglob("escape*"))
