"""The words of `--format` and `--precision`."""

from typing import Literal

FormatName = Literal["onnx", "immich", "open_clip", "transformers", "openvino", "executorch", "litert", "coreml"]
Precision = Literal["fp32", "fp16", "int8"]
