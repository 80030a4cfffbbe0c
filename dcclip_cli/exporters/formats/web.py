"""A web page with the model in it: a bundle that preprocesses, and what a browser needs to run it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.formats.onnx import Onnx
from dcclip_cli.exporters.npm import Package
from dcclip_cli.exporters.samples import TEXTS
from dcclip_cli.exporters.source import prepare
from dcclip_cli.predict.onnx_encoder import IMAGE, TEXT

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.progress import Progress

_RUNTIME = Package(
    "onnxruntime-web",
    "1.23.2",
    25_592_749,
    "T09JUtMn+CZLk3mFwqiH0lgQf+4S7+oYHHtk6uhaYAAJI95bTcKi5bOOZYwORXfS/RLZCjDDEXGWIuOCAFlEjg==",
)
_TOKENIZERS = Package(
    "@huggingface/tokenizers",
    "0.2.0",
    87_011,
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
)
# Modules end in .js: not every web server knows the type of .mjs.
FILES = {
    _RUNTIME: {
        "dist/ort.wasm.min.mjs": "onnxruntime.js",
        "dist/ort-wasm-simd-threaded.mjs": "onnxruntime-wasm.js",
        "dist/ort-wasm-simd-threaded.wasm": "onnxruntime.wasm",
    },
    _TOKENIZERS: {"dist/tokenizers.min.mjs": "tokenizers.js", "LICENSE": "LICENSE-tokenizers.txt"},
}
_LICENSES = {"LICENSE": "LICENSE-onnxruntime.txt", "ThirdPartyNotices.txt": "NOTICES-onnxruntime.txt"}
PAGE, LIBRARIES, CHECKS = "web", "libraries", "checks.json"
"""The page's own files in this package, the folder of libraries, and texts with their token ids."""


class Web(Onnx):
    """index.html with its scripts, the libraries that they use, and a bundle: `dcclip predict` reads it, too.

    Everything runs in the browser, in WebAssembly. npm's onnxruntime-web has no license file: those of the Python
    package are of the same source.
    """

    name = "web"
    preprocess = ("graph",)
    install = "pip install onnx, for a bundle; pip install 'dcclip[export]', for any model"

    def prepare(self, progress: Progress) -> None:
        for package in FILES:
            package.fetch(progress)

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import onnxruntime

        super().write(source, graphs, folder, precision)
        for name in (IMAGE, TEXT):
            if (folder / f"{name}.data").exists():
                raise DcclipError("the {} of this model is too large for a browser", "use --precision int8", name)
        for file in (files("dcclip_cli.exporters") / PAGE).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        libraries = folder / LIBRARIES
        libraries.mkdir()
        for package, names in FILES.items():
            for name, content in package.read(names).items():
                (libraries / name).write_bytes(content)
        for name, new in _LICENSES.items():
            (libraries / new).write_bytes((Path(onnxruntime.__file__).parent / name).read_bytes())
        tokenizer = prepare(source)
        ids = [[text, tokenizer.encode(" ".join(text.split())).ids] for text in TEXTS]
        (folder / CHECKS).write_text(json.dumps(ids, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
