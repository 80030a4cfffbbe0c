"""The formats that a model can leave in: a class each, and their union, which is the registry."""

from collections.abc import Mapping

from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.formats.coreml import CoreMl
from dcclip_cli.exporters.formats.executorch import ExecuTorch
from dcclip_cli.exporters.formats.immich import Immich
from dcclip_cli.exporters.formats.litert import LiteRt
from dcclip_cli.exporters.formats.onnx import Onnx
from dcclip_cli.exporters.formats.open_clip import OpenClip
from dcclip_cli.exporters.formats.openvino import OpenVino
from dcclip_cli.exporters.formats.transformers import Transformers
from dcclip_cli.exporters.names import FormatName

FORMATS: Mapping[FormatName, Format] = {
    "onnx": Onnx(),
    "immich": Immich(),
    "open_clip": OpenClip(),
    "transformers": Transformers(),
    "openvino": OpenVino(),
    "executorch": ExecuTorch(),
    "litert": LiteRt(),
    "coreml": CoreMl(),
}

__all__ = ["FORMATS", "Format"]
