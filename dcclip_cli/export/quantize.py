"""The two ONNX graphs in int8 or fp16, as much of them as the model bears.

In int8 all weights are rounded, which is what makes the file small. Activations are as far as that keeps the embeddings
where they were: those that move them most, rounded alone, can stay fp32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dcclip_cli.export.onnx import LARGEST_FILE
from dcclip_cli.export.rounding import (
    after_last,
    bytes_of,
    rounded_activations,
    weighted_nodes,
    weights_of,
    with_rounded_input,
    with_rounded_tables,
    with_rounded_weights,
    without_rounding,
)

_DENSE = ("MatMul", "Gemm")
_WEIGHTED = ("Conv", *_DENSE)
_RANKED_BYTES = 600_000_000  # of the largest tower whose parts are tried one by one
_TRIED_ON = 16  # pictures or texts that the effect of rounding one activation is measured on
_SUMS = ("Softmax", "Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Div")
# Kinds of operators that stay fp32 in an fp16 graph, from the first to the last resort: sums overflow first.
# Layer norms always do: onnxruntime 1.32 crashes (SIGSEGV) when it optimises an fp16 graph that has them in fp16.
FP16_KEEPS: tuple[tuple[str, ...], ...] = (
    ("LayerNormalization",),
    ("LayerNormalization", *_SUMS),
    ("LayerNormalization", *_SUMS, *_DENSE),
)


@dataclass(frozen=True)
class Kept:
    """What stays fp32 in an int8 tower: a share of its activations, and weights up to a share of its size."""

    activations: float = 0.0
    weights: float = 0.0


# From the first to the last resort. Small weights cost no size and first convolutions are small: they come first.
LADDER = (
    Kept(),
    Kept(0.1, 0.02),
    Kept(0.25, 0.05),
    Kept(0.5, 0.08),
    Kept(1.0, 0.1),
    Kept(1.0, 0.5),
)


class Int8Tower:
    """One tower in fp32, ready to be written in int8, its most sensitive parts left in fp32.

    `batches` are input for it. A convolutional tower gets fixed ranges, found on these, with uint8 activations and
    int8 weights for each channel: the pair that VNNI processors have instructions for. Transformers get their ranges
    while they run: fixed ones cost them accuracy.
    """

    def __init__(self, file: Path, batches: Sequence[np.ndarray]) -> None:
        import onnx

        self._file, self._batches = file, batches
        kinds = [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
        self._fixed_ranges = kinds.count("Conv") > sum(kinds.count(kind) for kind in _DENSE)

    def write(self, out: Path, kept: Kept = LADDER[0]) -> None:
        """Write the tower in int8."""
        weights, activations = self._weights(kept.weights), self._activations(kept.activations)
        if self._fixed_ranges:
            names = {node.input[1] for node in self._nodes if node.name in weights}
            originals = {name: values for name, values in weights_of(self._model).items() if name in names}
            model = without_rounding(self._rounded, activations, originals)
        else:
            model = with_rounded_weights(self._dynamic({*activations, *weights}), set(activations) - set(weights))
        _save(model, out)

    def _activations(self, share: float) -> list[str]:
        return self._sensitive[: round(share * len(self._sensitive))] if share else []

    def _weights(self, share: float) -> list[str]:
        """The nodes whose weights move the embeddings most for each byte, up to a share of the int8 tower's size.

        Of a large tower the smallest weights.
        """
        if not share:
            return []
        if self._is_large:
            worth = dict.fromkeys((node.name for node in self._nodes), 1.0)
        else:
            worth = {
                node.name: self._moved(with_rounded_weights(self._model, [node.name]), self._still)
                for node in self._nodes
            }
        sizes = {name: values.size for name, values in weights_of(self._model).items()}
        size = {node.name: 3 * sizes[node.input[1]] for node in self._nodes}  # bytes that fp32 takes more than int8
        left, chosen = share * sum(sizes.values()), []
        for name in sorted(worth, key=lambda name: -worth[name] / size[name]):
            if size[name] <= left:
                left -= size[name]
                chosen.append(name)
        return chosen

    @cached_property
    def _model(self) -> Any:
        """The graph in fp32, batch norms folded into convolutions."""
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if not self._fixed_ranges:
            return onnx.load(self._file)
        with TemporaryDirectory() as temporary:
            prepared = Path(temporary) / "prepared.onnx"
            quant_pre_process(self._file, prepared, skip_symbolic_shape=True)
            return onnx.load(prepared)

    @property
    def _is_large(self) -> bool:
        """Whether trying each of the tower's parts would take hours."""
        return bytes_of(self._model) > _RANKED_BYTES

    @cached_property
    def _nodes(self) -> list[Any]:
        return weighted_nodes(self._model, _WEIGHTED if self._fixed_ranges else _DENSE)

    @cached_property
    def _sensitive(self) -> list[str]:
        """The activations, those first whose rounding alone moves the embeddings most.

        Tensors of a convolutional tower, the inputs of a transformer's dense layers (by the names of these). Those of a
        large tower come in the order of the graph.
        """
        names = rounded_activations(self._rounded) if self._fixed_ranges else [node.name for node in self._nodes]
        if self._is_large:
            return names
        if self._fixed_ranges:
            whole = without_rounding(self._rounded, names)
            graphs = ((name, without_rounding(self._rounded, set(names) - {name})) for name in names)
        else:
            whole = with_rounded_weights(self._model, names)
            graphs = ((name, with_rounded_input(whole, name)) for name in names)
        still = self._run(whole)
        moved = {name: self._moved(graph, still) for name, graph in graphs}
        return sorted(moved, key=lambda name: -moved[name])

    @cached_property
    def _still(self) -> np.ndarray:
        return self._run(self._model)

    def _moved(self, model: Any, still: np.ndarray) -> float:
        return float(np.square(self._run(model) - still).mean())

    def _run(self, model: Any) -> np.ndarray:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rows = [row for batch in self._batches for row in batch][:_TRIED_ON]
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: row[np.newaxis]})[0] for row in rows])

    @cached_property
    def _rounded(self) -> Any:
        """The whole graph in int8 with fixed ranges, but for the normalisation at its end."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        name, batches = self._model.graph.input[0].name, iter(self._batches)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(batches, None)
                return None if batch is None else {name: batch}

        with TemporaryDirectory() as temporary:
            prepared, quantized = (Path(temporary) / step for step in ("prepared.onnx", "quantized.onnx"))
            onnx.save(self._model, prepared)
            quantize_static(
                prepared,
                quantized,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,  # the default is QInt8, which this pair's instructions don't take
                weight_type=QuantType.QInt8,
                nodes_to_exclude=after_last(self._model, _WEIGHTED),
                extra_options={"QDQKeepRemovableActivations": True},  # else unrounded ones would lose their ReLU
            )
            return onnx.load(quantized)

    def _dynamic(self, keep: Collection[str]) -> Any:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with TemporaryDirectory() as temporary:
            prepared, quantized = (Path(temporary) / step for step in ("prepared.onnx", "quantized.onnx"))
            _save(with_rounded_tables(self._model), prepared)
            quantize_dynamic(
                prepared,
                quantized,
                op_types_to_quantize=list(_DENSE),
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(keep),
                use_external_data_format=bytes_of(self._model) > LARGEST_FILE,
            )
            return onnx.load(quantized)


def write_fp16(file: Path, out: Path, keep: Sequence[str] = FP16_KEEPS[0]) -> None:
    """Write a tower in fp16, operators of the kinds `keep` in fp32; it takes and gives fp32 as before."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *keep]
    _save(convert_float_to_float16(str(file), keep_io_types=True, op_block_list=blocked), out)


def _save(model: Any, out: Path) -> None:
    import onnx

    beside = out.with_name(f"{out.name}.data")
    beside.unlink(missing_ok=True)
    large = bytes_of(model) > LARGEST_FILE
    onnx.save(model, out, save_as_external_data=large, location=beside.name if large else None)
