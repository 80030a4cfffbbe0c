"""ONNX graphs whose large weights stay in files, so that copies and edits of a graph take next to
no memory.
"""

import math
import os
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np

# bytes; a protobuf is limited to 2 GiB, weights of larger graphs are in a file next to it
LARGEST_FILE = 1_800_000_000
_LARGE = 1 << 20  # bytes; weights of this size are in files, smaller ones in the graph
_ALIGNMENT = 4096  # of weights in a file, so that onnxruntime can map them


class OnnxGraph:
    """An ONNX model, `proto`, whose large weights are in files under `folder` and are mapped when
    they are read.
    """

    def __init__(self, proto: Any, folder: Path) -> None:
        self.proto = proto
        self.folder = folder

    @classmethod
    def load(cls, file: Path) -> Self:
        """The graph in a file. Large weights stay in a file next to it, or are moved to one."""
        import onnx

        graph = cls(onnx.load(file, load_external_data=False), file.parent)
        for weight in graph.proto.graph.initializer:
            if (_bytes_of(weight) >= _LARGE) != (weight.data_location == weight.EXTERNAL):
                weight.CopyFrom(graph.stored(weight.name, graph._values(weight)))
        return graph

    def copy(self) -> Self:
        """A graph that can be edited, with the same files."""
        return type(self)(deepcopy(self.proto), self.folder)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights by name, the large ones mapped."""
        return {weight.name: self._values(weight) for weight in self.proto.graph.initializer}

    def _values(self, weight: Any) -> np.ndarray:
        from onnx import helper, numpy_helper

        if weight.data_location != weight.EXTERNAL:
            return np.asarray(numpy_helper.to_array(weight))
        place = {entry.key: entry.value for entry in weight.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(weight.data_type)
        file = self.folder / place["location"]
        offset = int(place.get("offset", 0))
        return np.memmap(file, dtype, "r", offset, tuple(weight.dims))

    def stored(self, name: str, values: np.ndarray, folder: Path | None = None) -> Any:
        """The values as a TensorProto; large ones are written to a new file in `folder`, by
        default the graph's own.
        """
        from onnx import TensorProto, helper, numpy_helper

        if values.nbytes < _LARGE:
            return numpy_helper.from_array(np.asarray(values), name)
        with tempfile.NamedTemporaryFile(
            dir=folder or self.folder, suffix=".bin", delete=False
        ) as file:
            values.tofile(file)
        weight = TensorProto(
            name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype)
        )
        _place(weight, os.path.relpath(file.name, self.folder), 0)
        return weight

    def add(self, name: str, values: np.ndarray, folder: Path | None = None) -> None:
        self.proto.graph.initializer.append(self.stored(name, values, folder))

    @property
    def size_bytes(self) -> int:
        return sum(map(_bytes_of, self.proto.graph.initializer))

    def session(self, options: Any = None) -> Any:
        import onnxruntime

        options = options or onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.folder)
        )
        return onnxruntime.InferenceSession(
            self.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def save(self, out: Path) -> None:
        """Write the graph as one file, or its large weights to a file next to it if it is larger
        than LARGEST_FILE.
        """
        proto = deepcopy(self.proto)
        data = out.with_name(f"{out.name}.data")
        for file in (out, data):
            file.unlink(missing_ok=True)  # the earlier ones may have other links
        outside = [
            weight for weight in proto.graph.initializer if weight.data_location == weight.EXTERNAL
        ]
        if self.size_bytes <= LARGEST_FILE:
            for weight in outside:
                weight.raw_data = self._values(weight).tobytes()
                del weight.external_data[:]
                weight.ClearField("data_location")
        else:
            with data.open("wb") as stream:
                for weight in outside:
                    values = self._values(weight)
                    stream.seek(-stream.tell() % _ALIGNMENT, os.SEEK_CUR)
                    _place(weight, data.name, stream.tell())
                    values.tofile(stream)
        out.write_bytes(proto.SerializeToString())


def _bytes_of(weight: Any) -> int:
    from onnx import helper

    return math.prod(weight.dims) * int(helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize)


def _place(weight: Any, location: str, offset: int) -> None:
    """Let a weight be read from a place in a file, whose path is relative to the graph's folder."""
    weight.data_location = weight.EXTERNAL
    del weight.external_data[:]
    for key, value in {"location": location, "offset": offset, "length": _bytes_of(weight)}.items():
        weight.external_data.add(key=key, value=str(value))
