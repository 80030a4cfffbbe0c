"""Bundles as sources of exports: their ONNX graphs in another format, without torch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.exporters import Precision, Preprocess
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.parity import Parity
from dcclip_cli.exporters.preprocess_graph import add_preprocessing, preprocesses
from dcclip_cli.exporters.source import Source
from dcclip_cli.files import read_json
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import load_tokenizer
from dcclip_cli.predict.onnx_encoder import DESCRIPTION, IMAGE, TEXT, OnnxEncoder, read_description

_MODEL = Message("export the model directory written by align or distill")


def load_bundle(folder: Path) -> Source:
    """A bundle as a source, on the CPU. Raises DcclipError if it is damaged."""
    about, record = read_description(folder)
    source = Source(
        OnnxEncoder(folder, "cpu"),
        load_tokenizer(folder),
        about.context_length,
        about.padding_id,
        about.fixed_length,
        Preprocessing.from_config(about.preprocessing),
        folder,
    )
    source.fingerprint = record.content.get("model_fingerprint") or source.fingerprint
    source.name = source.name.removesuffix(f"-{about.precision}")
    return source


def bundle_precision(folder: Path, target: Format, asked: Precision | None, preprocess: Preprocess) -> Precision:
    """A bundle's own precision. Raises DcclipError if another one was `asked` for, or the bundle cannot be exported."""
    about = read_description(folder).about
    if not target.from_onnx:
        raise DcclipError("{} is a bundle, from which --format {} cannot be made", _MODEL, folder, target.name)
    if asked not in (None, about.precision):
        what = Message("{} is a bundle in {}, not in {}", folder, about.precision, asked)
        raise DcclipError(what, Message("{}, or omit --precision", _MODEL))
    if about.preprocess == "graph" and preprocess == "outside":
        what = Message("{} is a bundle with its preprocessing in the graph", folder)
        raise DcclipError(what, Message("{}, or use --preprocess graph", _MODEL))
    return about.precision  # type: ignore[return-value]


class BundleGraphs:
    """The graphs of a bundle as they are, in `folder`, with the interface of OnnxGraphs.

    With `preprocess`, the preprocessing is in image.onnx, where it was not yet.
    """

    attempt = ""

    def __init__(self, source: Source, folder: Path, preprocess: Preprocess) -> None:
        assert source.folder is not None
        self.folder, self._bundle = folder, source.folder
        self._source, self._preprocess = source, preprocess
        self._about: Mapping[str, Any] = read_json(source.folder / DESCRIPTION, _MODEL)

    @property
    def largest_pair_sum(self) -> int | None:
        """That of the bundle's graphs; None in other precisions than int8, and if it was not bounded."""
        return (self._about.get("parity") or {}).get("int8_largest_pair_sum")

    def kept(self) -> dict[str, dict[str, str]]:
        """What is kept in fp32, for dcclip.json."""
        return {"kept_fp32": self._about.get("kept_fp32") or {}}

    def write(self) -> Path:
        """The folder with both graphs."""
        for name in (IMAGE, TEXT):
            for file in self._bundle.glob(f"{name}*"):
                shutil.copyfile(file, self.folder / file.name)
        if self._preprocess == "graph" and not preprocesses(self.folder / IMAGE):
            add_preprocessing(self.folder / IMAGE, self.folder / IMAGE, self._source.preprocessing)
        return self.folder

    def loosen(self, parity: Parity | None) -> list[str]:
        """Nothing: a bundle stays in its precision."""
        return []
