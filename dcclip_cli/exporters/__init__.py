"""Export of models to formats that devices run, with a check that the export gives the same
results.
"""

from typing import Literal

FormatName = Literal[
    "onnx", "web", "transformers.js", "immich", "open_clip", "transformers", "sentence-transformers", "openvino",
    "mnn", "executorch", "litert",
]  # fmt: skip
Precision = Literal["fp32", "fp16", "int8"]
Preprocess = Literal["outside", "graph"]
