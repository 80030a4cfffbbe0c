"""What every export format is asked to do."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.names import Precision

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.runtime import DualEncoder


class Format(ABC):
    """One format. `from_onnx` ones are made from image.onnx and text.onnx, in whatever precision these are."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]
    package: ClassVar[str] = "onnx"  # imported to write it
    install: ClassVar[str] = "pip install 'dcclip[export]'"
    from_onnx: ClassVar[bool] = False

    def check(self, precision: Precision) -> None:
        """Raises DcclipError where the precision is not to be had, or the package is not installed."""
        if precision not in self.precisions:
            raise DcclipError(
                f"--format {self.name} has no {precision}", f"say --precision {' or '.join(self.precisions)}"
            )
        if importlib.util.find_spec(self.package) is None:
            raise DcclipError(f"--format {self.name} needs {self.package}, which is not installed", self.install)

    @abstractmethod
    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        """Write the model's files into `folder`; `graphs` is where the ONNX files lie, if it is made from these."""

    @abstractmethod
    def open(self, folder: Path) -> DualEncoder | None:
        """What was written, run by the format's own runtime; None where that can't run here."""
