"""Data: collect's tars, tables, folders and Parquet files; eval's data sets; training data."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import yaml
from PIL import Image

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.corpus import RECIPE, encode, tar
from benchmarks.dev.hostile.damage import Change, both, damage_file, fifo, nothing, write


def _collecting(source: dict[str, Any], **more: Any) -> Change:
    content = {"name": "gathered", "collect": {"sources": [source], "filters": [], **more}}
    return write("c.yaml", yaml.safe_dump(content, allow_unicode=True))


_COLLECT = ("collect", "c.yaml", "--workers", "1", "-q")


def _png() -> bytes:
    return encode(Image.new("RGB", (48, 48), "red"))


def _tars() -> dict[str, bytes]:
    png, text = _png(), json.dumps({"en": ["a red square"], "zh": ["红方块"]}).encode()
    good = {"a.png": png, "a.json": text}
    sparse = ("GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.numblocks", "size", "mtime", "path")
    odd = {f"PAX {key}={new!r}": tar(good, {key: new}) for key in sparse for new in ("-100", "x", "9" * 30, "1,2,3")}
    return odd | {
        "zeros": bytes(10240),
        "empty": b"",
        "GZIP": b"\x1f\x8b" + bytes(100),
        "ZIP": b"PK\x03\x04" + bytes(100),
        "no captions": tar({"a.png": png}),
        "no pictures": tar({"a.json": text}),
        "a lone surrogate": tar({"a.png": png, "a.json": b'{"en": ["\\ud800 cat"], "zh": ["\\udfff"]}'}),
        "captions that are numbers": tar({"a.png": png, "a.json": b'{"en": [5], "zh": 7}'}),
        "captions that are null": tar({"a.png": png, "a.json": b"null"}),
        "captions that are deep": tar({"a.png": png, "a.json": b"[" * 100_000}),
        "captions not UTF-8": tar({"a.png": png, "a.txt": b"\xff\xfe\xff"}),
        "NUL in a caption": tar({"a.png": png, "a.txt": b"a\0cat"}),
        "a path out": tar({"../../a.png": png, "../../a.json": text}),
        "an absolute path": tar({"/etc/a.png": png, "/etc/a.json": text}),
        "a link": tar({"a.png": b"", "a.json": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a device": tar({"a.png": b"", "a.json": b""}, type=tarfile.CHRTYPE),
        "a name of bytes": tar({"\udcff.png": png, "\udcff.json": text}),
        "an escape in a name": tar({"\x1b[2J.png": png, "\x1b[2J.json": text}),
        "a name of 5,000": tar({"n" * 5000 + ".png": png, "n" * 5000 + ".json": text}),
        "the same twice": tar(good)[:-1024] + tar(good),
        "a member cut": tar(good)[:700],
        "a picture that is none": tar({"a.png": b"x", "a.json": text}),
        "a bomb's head": tar({"a.png": b"\x89PNG\r\n\x1a\n" + bytes(20), "a.json": text}),
    }


_READERS = ("collect", "eval", "index", "align", "distill --check", "eval --task")


def _reading(random: Random, file: str, kind: str, command: str) -> tuple[tuple[str, ...], tuple[str, ...], Change]:
    """A command that reads a data file, the parts it needs and the recipe it reads."""
    if command == "collect":
        return _COLLECT, (), _collecting({"kind": kind, "path": f"./{file}"})
    if command == "index":
        return ("index", file), (), nothing
    if command.startswith("eval"):
        more = ("--task", random.choice(("retrieval", "probe"))) if "task" in command else ()
        asked = ("eval", "--model", "bundle", "--dataset", f"./{file}", "--out", "results", "-q", *more)
        return asked, ("bundle",), nothing
    stage = command.split(" ")[0]
    recipe = RECIPE | {"data": {"train": f"./{file}"}}
    recipe["align"] = RECIPE["align"] | {"start": "scratch"}
    change = write("r.yaml", yaml.safe_dump(recipe, allow_unicode=True))
    return (stage, "r.yaml", *command.split(" ")[1:]), ("teacher", "train.parquet"), change


def tars(random: Random) -> Case:
    """A tar that tarfile or a reader of pairs may stumble over."""
    contents = _tars()
    name, command = random.choice(list(contents)), random.choice(_READERS)
    arguments, parts, recipe = _reading(random, "x.tar", "tars", command)
    change = both(write("x.tar", contents[name]), recipe)
    return Case(f"{' '.join(arguments[:1] + arguments[8:])} tar: {name}", arguments, parts, change, limit_s=60)


def _parquet(columns: dict[str, Any]) -> Change:
    def change(here: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), here / "x.parquet")

    return change


def _invalid_text(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array([b"\xff\xfe cat"], pa.binary()).view(pa.string())
    table = pa.table({"key": ["a"], "image": [_png()], "zh": text, "en": text})
    pq.write_table(table, here / "x.parquet")


def _tables() -> dict[str, Change]:
    png, one = _png(), {"key": ["a"], "zh": [["红方块"]], "en": [["a red square"]]}
    return {
        "no rows": _parquet({"key": [], "image": [], "zh": [], "en": []}),
        "no columns": _parquet({}),
        "other columns": _parquet({"a": [1], "b": ["x"]}),
        "a picture in words": _parquet(one | {"image": ["cat"]}),
        "a picture in numbers": _parquet(one | {"image": [5]}),
        "no picture": _parquet(one | {"image": [None]}),
        "a picture in an odd struct": _parquet(one | {"image": [{"data": png}]}),
        "captions in numbers": _parquet({"key": ["a"], "image": [png], "zh": [5], "en": [7.5]}),
        "no captions": _parquet({"key": ["a"], "image": [png], "zh": [None], "en": [None]}),
        "empty captions": _parquet({"key": ["a"], "image": [png], "zh": [[]], "en": [[""]]}),
        "keys in numbers": _parquet(one | {"key": [5], "image": [png]}),
        "no keys": _parquet(one | {"key": [None], "image": [png]}),
        "the same key twice": _parquet({"key": ["a"] * 2, "image": [png] * 2, "zh": [["红"]] * 2, "en": [["red"]] * 2}),
        "text that is not UTF-8": _invalid_text,
        "NUL in a caption": _parquet(one | {"image": [png], "en": [["a\0cat"]]}),
        "escapes in a caption": _parquet(one | {"image": [png], "en": [["\x1b[2Ja cat"]]}),
        "a caption of 1 MB": _parquet(one | {"image": [png], "en": [["cat " * 250_000]]}),
        "a thousand captions": _parquet(one | {"image": [png], "en": [[f"cat {n}" for n in range(1000)]]}),
        "a picture that is none": _parquet(one | {"image": [b"x"]}),
        "JSON": write("x.parquet", b"{}"),
        "empty": write("x.parquet", b""),
        "only magic": write("x.parquet", b"PAR1PAR1"),
        "a folder": lambda here: (here / "x.parquet").mkdir(),
        "a dangling link": lambda here: (here / "x.parquet").symlink_to("none"),
        "a FIFO": fifo("x.parquet"),
    }


def parquet(random: Random) -> Case:
    """A Parquet file with other columns, types or text than pairs have."""
    tables = _tables()
    name, command = random.choice(list(tables)), random.choice(_READERS)
    arguments, parts, recipe = _reading(random, "x.parquet", "table", command)
    change = both(tables[name], recipe)
    return Case(f"{' '.join(arguments[:1] + arguments[8:])} Parquet: {name}", arguments, parts, change, limit_s=60)


def damaged(random: Random) -> Case:
    """A damaged file of pairs, read by any command, or a damaged table or folder, read by collect."""
    file, kind = random.choice(
        (("train.parquet", "table"), ("pairs.tar", "tars"), ("table.FORMAT", ""), ("folder", ""))
    )
    if kind:
        arguments, parts, recipe = _reading(random, file, kind, random.choice(_READERS))
    else:
        file, kind = file.replace("FORMAT", random.choice(("tsv", "csv", "jsonl"))), file.partition(".")[0]
        arguments, parts, recipe = _COLLECT, ("folder",), _collecting({"kind": kind, "path": f"./{file}"})
    what, change = damage_file(random, f"{file}/*" if kind == "folder" else file)
    name = f"{' '.join(arguments[:1] + arguments[8:])} {what}"
    return Case(name, arguments, (*parts, file), both(change, recipe), limit_s=60)


_HEADER, _ROW = "image\tzh\ten\n", "folder/red-circle.png\t猫\tcat\n"
_LINES: dict[str, str | bytes] = {
    "empty": "",
    "only a header": _HEADER,
    "no header": _ROW,
    "a header twice": "image\timage\tzh\n",
    "too few cells": f"{_HEADER}folder/red-circle.png\n",
    "too many cells": _HEADER + "x\t" * 50 + "\n",
    "paths out": f"{_HEADER}../../etc/passwd\t猫\tcat\n/etc/passwd\t猫\tcat\n",
    "a URL": f"{_HEADER}http://127.0.0.1/x\t猫\tcat\n",
    "NUL": f"{_HEADER}a\0.png\t猫\tcat\n",
    **{code: (_HEADER + _ROW).encode(code) for code in ("gb18030", "utf-16", "utf-8-sig")},
    "an open quote": f'{_HEADER}"{_ROW}',
    "a cell of 1 MB": _HEADER + _ROW.replace("猫", "猫" * 400_000),
    "10,000 columns": "\t".join(f"c{n}" for n in range(10_000)) + "\n",
    "CR": (_HEADER + _ROW).replace("\n", "\r"),
    "escapes": f"{_HEADER}folder/\x1b[2J.png\t猫\tcat\n",
    "/dev/zero for a picture": f"{_HEADER}/dev/zero\t猫\tcat\n",
}


def table(random: Random) -> Case:
    """A table of text that is none."""
    name = random.choice(list(_LINES))
    source: dict[str, Any] = {"kind": "table", "path": "./x.tsv"}
    if random.random() < 0.3:
        more = ({"image": "nosuch"}, {"header": ["a", "a"]}, {"where": {"x": "1"}}, {"images": "./none"})
        source |= random.choice((*more, {"zh": ["a", "b"]}))
    keys = ",".join(list(source)[2:])
    change = both(write("x.tsv", _LINES[name]), _collecting(source))
    return Case(f"collect table: {name} {keys}", _COLLECT, ("folder",), change, limit_s=60)


_FOLDERS: dict[str, Change] = {
    "empty": lambda here: (here / "set").mkdir(),
    "one class": write("set/a/a.png", b"x"),
    "classes without pictures": both(*((lambda here, n=n: (here / f"set/{n}").mkdir(parents=True)) for n in range(3))),
    "a dangling link": lambda here: (here / "classes/circle/b.png").symlink_to("none"),
    "a loop": lambda here: (here / "classes/again").symlink_to("."),
    "a FIFO": fifo("classes/circle/b.png"),
    "a folder named like a picture": lambda here: (here / "classes/circle/b.png").mkdir(),
    "names not UTF-8": lambda here: os.mkdir(os.fsencode(here / "classes/\udcff")),
    "an escape in a name": lambda here: (here / "classes/\x1b[2J").mkdir(),
    "classes.yaml deep": write("classes/classes.yaml", "a: " + "[" * 3000),
    "classes.yaml a list": write("classes/classes.yaml", "- a\n"),
    "classes.yaml numbers": write("classes/classes.yaml", "circle: 5\nsquare: {zh: 7}\n"),
    "classes.yaml empty": write("classes/classes.yaml", ""),
    "classes.yaml binary": write("classes/classes.yaml", b"\xff\xfe\0"),
    "classes.yaml unknown": write("classes/classes.yaml", "nosuch: {zh: 猫}\n"),
    "classes.yaml tag": write("classes/classes.yaml", "circle: !!python/name:os.system\n"),
    "classes.json": write("classes/classes.json", "{"),
    "a picture that is none": write("classes/circle/b.png", b"x"),
    "a picture in no class": write("classes/b.png", b"x"),
}


def classes(random: Random) -> Case:
    """A folder of class folders that is none."""
    name = random.choice(list(_FOLDERS))
    folder = "./set" if name in ("empty", "one class", "classes without pictures") else "./classes"
    task = random.choice(((), ("--task", "probe"), ("--languages", "zh"), ("--limit", "1"), ("--templates", "name")))
    arguments = ("eval", "--model", "bundle", "--dataset", folder, "-q", *task)
    return Case(f"eval classes: {name} {' '.join(task)}", arguments, ("bundle", "classes"), _FOLDERS[name])


_SETS = (
    *("", "\x1b[2J", "\udcff", "x" * 300),
    *"imagenet nosuch . / /dev/null ./none hf:a/b ./fifo a,b".split(),
)
_OPTIONS = (
    *("--data-root none", "--data-root train.parquet", "--data-root /dev/null", "--limit 0", "--languages fr"),
    *("--shots x", "--shots 0", "--workers 0", "--workers 100000", "--precision int8", "--task probe", "--json"),
)


def named(random: Random) -> Case:
    """Data sets, roots and options of eval that are none."""
    given, more = random.choice(_SETS), random.choice(_OPTIONS)
    arguments = ("eval", "--model", "bundle", "--dataset", given, *more.split())
    parts = ("bundle", "train.parquet")
    return Case(f"eval {given[:20]!a} {more}", arguments, parts, fifo("fifo"), Expect.REFUSED, limit_s=30)


RULES = (damaged, damaged, damaged, tars, tars, parquet, parquet, table, classes, named)
