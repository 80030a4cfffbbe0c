"""Labels, templates, texts and `--model`: what is no label, no place for it, and no model."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.damage import Change, fifo, nothing, short, write

_PICTURE = "pictures/red-circle.png"
_PARTS = ("bundle", _PICTURE, "labels.txt")
_BUNDLE = ("--model", "bundle")
_PREDICT = ("predict", _PICTURE, *_BUNDLE)
_EMPTY = ("", " ", ",", "，,，", "\t")
_TEXTS = (
    *(*_EMPTY, "\x1b[2J", "猫\n狗", "\udcff", "x" * 100_000, "猫" * 20_000, "\u200b", "a\rb", "\x85", "\u2028", "\x07"),
    *("\x9b31m", "\u202e", "\ufeff", *"{} {0} %s 😀 é مرحبا 𠮷 - -- =1+1 <s> </s> <pad> 猫,猫".split()),
    ",".join(f"label {n}" for n in range(3000)),
)


def labels(random: Random) -> Case:
    """`--labels` with hostile text, in each form of output."""
    text = random.choice(_TEXTS)
    form = random.choice(((), ("--json",), ("--csv",), ("--jsonl",), ("--multi-label",), ("--no-template",)))
    expect = Expect.REFUSED if text in _EMPTY else Expect.ANY
    return Case(f"labels {short(text)} {' '.join(form)}", [*_PREDICT, "--labels", text, *form], _PARTS, expect=expect)


def texts(random: Random) -> Case:
    """`embed --text` and `search` with hostile text."""
    text, expect = random.choice(_TEXTS), Expect.ANY
    if random.random() < 0.5:
        arguments = ["search", text, "pictures", *_BUNDLE, *random.choice(((), ("--json",), ("--html", "a.html")))]
        expect = Expect.REFUSED if not text.strip() else Expect.ANY
    else:
        arguments = ["embed", "--text", text, *_BUNDLE, "--out", random.choice(("e.npy", "e.parquet"))]
    return Case(f"{arguments[0]} {short(text)} {arguments[-1]}", arguments, _PARTS, expect=expect)


_REFUSED: dict[str, tuple[str, Change]] = {
    "none": ("none.txt", nothing),
    "a folder": (".", nothing),
    "empty": ("f", write("f", "\n \n")),
    "GBK": ("f", write("f", "猫\n狗".encode("gbk"))),
    "UTF-16": ("f", write("f", "猫\n狗".encode("utf-16"))),
    "UTF-16 without a mark": ("f", write("f", "cat\ndog".encode("utf-16-le"))),
    "NUL": ("f", write("f", b"cat\0dog")),
    "a picture": (_PICTURE, nothing),
    "a FIFO": ("fifo", fifo("fifo")),
    "a loop": ("loop", lambda here: (here / "loop").symlink_to("loop")),
    "below a file": ("labels.txt/a", nothing),
    "300 letters": ("x" * 300, nothing),
    "a line of 10 MB": ("f", write("f", b"x" * 10**7)),
    "100 MB": ("f", write("f", bytes(10**8))),
    "a million labels": ("f", write("f", "".join(f"cat {n}\n" for n in range(10**6)))),
    **{device: (device, nothing) for device in ("/dev/zero", "/dev/null", "/dev/urandom")},
}
_FINE: dict[str, tuple[str, Change]] = {
    "CRLF": ("f", write("f", "猫\r\ndog\r\n")),
    "a mark": ("f", write("f", b"\xef\xbb\xbfcat\ndog\n")),
    "escapes": ("f", write("f", "\x1b[2Jcat\n\x9b31m\n")),
}


def file_of(random: Random) -> Case:
    """`--labels-file` and `--texts-file` that contain none."""
    called = random.choice([*_REFUSED, *_FINE])
    given, change = (_REFUSED | _FINE)[called]
    is_predict = random.random() < 0.6 or called == "a million labels"  # as texts to embed they are work, no mistake
    arguments = [*_PREDICT, "--labels-file", given] if is_predict else ["embed", "--texts-file", given, *_BUNDLE]
    expect = Expect.REFUSED if called in _REFUSED else Expect.ANY
    return Case(f"{arguments[0]} file: {called}", arguments, _PARTS, change, expect, limit_s=20, limit_mb=800)


_TEMPLATES = (
    *("", "{ }", "x" * 99_999 + "{}", "\x1b{}", "{}\n", "\udcff{}", "{}" * 500),
    *"a { } {0} {label} {!r} {:>99999999} {0.__class__} %s {}} {{} {}{} 一张{}的图 {}。{}。 {{}} {}{ }{}".split(),
)


def template(random: Random) -> Case:
    """`--template` without one place for the label, or with too much around it."""
    given = random.choice(_TEMPLATES)
    expect = Expect.ANY if "{}" in given else Expect.REFUSED
    arguments = [*_PREDICT, "--labels", "猫,dog", "--template", given]
    return Case(f"template {short(given)}", arguments, _PARTS, expect=expect)


_MODELS = (
    *("", " ", _PICTURE, "x" * 300, "x/" * 2000, "\x1b[2J", "\udcff", "a\nb", "hf: "),
    *"none . .. / /dev/null hf: hf:../../etc hf:a/b/c hf:a hf:/ open_clip: open_clip:none/none".split(),
    *"open_clip:ViT-B-32 hf-hub: hf-hub:../x hf-hub:a/b starter/ STARTER http://example.org/m labels.txt".split(),
    *"bundle/image.onnx hf:猫/狗 local-dir:/etc hf:pictures loop fifo bundle/.. --model hf:x@y ~ open_clip:/".split(),
)
_USING = (
    *(("predict", _PICTURE, "--labels", "猫,dog"), ("embed", _PICTURE), ("search", "猫", "pictures")),
    *(("eval", "--dataset", "./train.parquet"), ("export", "--out", "out")),
)


def model(random: Random) -> Case:
    """`--model` that names none."""
    given, command = random.choice(_MODELS), random.choice(_USING)

    def change(here: Path) -> None:
        (here / "loop").symlink_to("loop")
        os.mkfifo(here / "fifo")

    expect = Expect.ANY if given in ("starter/", "bundle/..", ".", "") else Expect.REFUSED
    parts = (*_PARTS, "train.parquet")
    return Case(f"{command[0]} --model {short(given)}", [*command, "--model", given], parts, change, expect)


_NUMBERS = ("", *"0 -1 1 99999999999999999999 1e9 nan inf 3000 100000 x 0x10 １ 1.5".split())
_GOOD = {"--threads": ("1", "１"), "--top-k": ("1", "3000", "100000", "99999999999999999999", "１"), "--device": ()}


def number(random: Random) -> Case:
    """Options that are numbers."""
    command, given = (
        random.choice(([*_PREDICT, "--labels", "猫,dog"], ["search", "猫", "pictures"])),
        random.choice(_NUMBERS),
    )
    option = random.choice(("--threads", "--top-k", "--device", *(("--threshold",) if command[0] == "predict" else ())))
    expect = Expect.ANY if given in _GOOD.get(option, _NUMBERS) else Expect.REFUSED
    arguments = [*command, *(_BUNDLE if command[0] == "search" else ()), option, given]
    return Case(f"{command[0]} {option} {given}", arguments, _PARTS, expect=expect, limit_s=20)


RULES = (labels, labels, texts, file_of, template, model, model, number)
