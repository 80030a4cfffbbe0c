"""Export formats: the interface, and one module per family of runtimes. Their registry is in
export.py.
"""

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.progress import Progress
from dcclip_cli.exporters import FormatName, Precision, Preprocess
from dcclip_cli.exporters.source import Source
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.onnx_encoder import (
    ExportedEncoder,
    Run,
    one_at_a_time,
    read_description,
    runner,
)


class Format(ABC):
    """One format. Those `from_onnx` are converted from image.onnx and text.onnx, in the precision
    of these.
    """

    name: ClassVar[FormatName]
    precisions: ClassVar[tuple[Precision, ...]]
    package: ClassVar[str] = "onnx"  # imported to write it
    install: ClassVar[str] = "pip install 'dcclip[export]'"
    from_onnx: ClassVar[bool] = False
    rounds: ClassVar[bool] = False  # makes int8 itself, from graphs in fp32
    files: ClassVar[
        tuple[str, ...]
    ] = ()  # the image and the text tower for `runner`, and further files with weights
    is_single: ClassVar[bool] = False  # takes one image, or one text padded to the full length
    crops_down: ClassVar[bool] = (
        False  # its library cuts the middle square at most one pixel further left or up
    )
    preprocess: ClassVar[tuple[Preprocess, ...]] = ("outside",)
    reads_tokens_itself: ClassVar[bool] = (
        False  # by tokenizer.json, in other languages than Python as well
    )
    takes_patches: ClassVar[bool] = False  # of images that keep their proportions
    has_graphs: ClassVar[bool] = True  # which can end with a cut of the embeddings

    def check(
        self, precision: Precision, preprocess: Preprocess = "outside", dims: int | None = None
    ) -> None:
        """Raises DcclipError if the format does not support these options, or its package is not
        installed.
        """
        if dims is not None and not self.has_graphs:
            raise DcclipError(
                "--format {} does not support --dims",
                "use --format onnx, or remove --dims",
                self.name,
            )
        choices = (
            ("precision", precision, self.precisions),
            ("preprocess", preprocess, self.preprocess),
        )
        for option, value, supported in choices:
            if value not in supported:
                reason = Message("--format {} does not support {}: {}", self.name, option, value)
                raise DcclipError(reason, "use --{} {}", option, joined(" or ", supported))
        if importlib.util.find_spec(self.package) is None:
            raise DcclipError(
                "--format {} needs {}, which is not installed",
                self.install,
                self.name,
                self.package,
            )

    def prepare(self, progress: Progress) -> None:  # noqa: B027
        """Download what `write` needs, before the work that comes first."""

    @abstractmethod
    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        """Write the model's files into `folder`; `graphs` contains the ONNX files for formats made
        from them.
        """

    def open(self, folder: Path) -> Encoder | None:
        """The export, run by the format's own runtime; None if that cannot run here."""
        description, _ = read_description(folder, self.name)
        image, text = (self.runner(folder / name) for name in self.files[:2])
        if self.is_single:
            description = replace(description, fixed_length=True)
            image = one_at_a_time(image)
            text = one_at_a_time(text)
        return ExportedEncoder(folder, description, self.files, image, text)

    def runner(self, file: Path) -> Run:
        """A function that computes a tower with the format's runtime, by default onnxruntime."""
        return runner(file)
