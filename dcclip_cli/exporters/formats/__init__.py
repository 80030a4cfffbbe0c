"""The registry of export formats. A new format is a class in this folder and a name in `FormatName`."""

from collections.abc import Mapping

from dcclip_cli.exporters import FormatName
from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.formats.devices import CoreMl, ExecuTorch, LiteRt, OpenVino
from dcclip_cli.exporters.formats.onnx import Immich, Onnx
from dcclip_cli.exporters.formats.pytorch import OpenClip, Transformers

FORMATS: Mapping[FormatName, Format] = {
    one.name: one
    for one in (Onnx(), Immich(), OpenClip(), Transformers(), OpenVino(), ExecuTorch(), LiteRt(), CoreMl())
}

__all__ = ["FORMATS", "Format"]
