"""The two ONNX graphs in fp32, fp16 or int8, with as much of them rounded as the parity with the model allows.

In int8, all weights are rounded, which makes the file small. Activations are rounded as long as the embeddings hardly
change: those that change them most, when rounded alone, can stay fp32.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.parity import Parity
from dcclip_cli.exporters.rounding import (
    LARGEST_FILE,
    after_last,
    bytes_of,
    largest_pair_sum,
    multiply_adds,
    output_axis,
    rounded,
    rounded_activations,
    rounded_only_for,
    safe_scales,
    weighted_nodes,
    weights_of,
    with_rounded_tables,
    with_weights,
    without_rounding,
)
from dcclip_cli.exporters.samples import batches, calibration_images, calibration_texts
from dcclip_cli.exporters.source import Source, prepare
from dcclip_cli.predict.onnx_encoder import IMAGE, TEXT

_DENSE = ("MatMul", "Gemm")
_WEIGHTED = ("Conv", *_DENSE)
_RANKED_BYTES = 600_000_000  # size of the largest tower whose parts are measured one by one
_TRIED_ON = 16  # images or texts on which the effect of rounding one activation is measured
_FIRST = 0.1  # fraction of a convolutional tower's multiply-adds, in its first convolutions, that stay fp32
_SUMS = ("Softmax", "Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Div")
# Operators that stay fp32 in an fp16 graph, from the first to the last attempt: sums overflow first.
# Layer norms always do: onnxruntime 1.32 crashes (SIGSEGV) when it optimises a graph with layer norms in fp16.
FP16_KEEPS: tuple[tuple[str, ...], ...] = (
    ("LayerNormalization",),
    ("LayerNormalization", *_SUMS),
    ("LayerNormalization", *_SUMS, *_DENSE),
)


@dataclass(frozen=True)
class Kept:
    """The fractions of an int8 tower that stay fp32: of its activations, and of its size, in weights."""

    activations: float = 0.0
    weights: float = 0.0


# From the first to the last attempt. Small weights cost no size and first convolutions are small, so they are first.
LADDER = (
    Kept(),
    Kept(0.1, 0.02),
    Kept(0.25, 0.05),
    Kept(0.5, 0.08),
    Kept(1.0, 0.1),
    Kept(1.0, 0.5),
)


_GRAPHS = {"image": IMAGE, "text": TEXT}


class Int8Tower:
    """One tower in fp32, ready to be written in int8 with its most sensitive parts in fp32.

    Activations are uint8 with fixed ranges, found on `batches`, so that the rest of a batch changes nothing. Weights
    are int8 with a scale per channel: the pair that VNNI instructions multiply, and small enough not to overflow on
    CPUs without VNNI (rounding.py). A transformer rounds the inputs of its dense layers, and so does the head of a
    convolutional tower; before the head, everything is rounded except the first convolutions. Rounding harms these
    most, they have few weights, and in one block they are no slower in fp32.
    """

    def __init__(self, file: Path, batches: Sequence[np.ndarray]) -> None:
        import onnx

        self._file, self._batches = file, batches
        kinds = [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
        self._convolutional = kinds.count("Conv") > sum(kinds.count(kind) for kind in _DENSE)

    def write(self, out: Path, kept: Kept = LADDER[0]) -> None:
        """Write the tower in int8."""
        first, plain = self._first, self._plain
        activations, nodes = self._activations(kept.activations), self._weights(kept.weights)
        _save(self._keeping({*plain, *activations}, {*first, *nodes}), out)

    def _keeping(self, activations: Collection[str], nodes: Collection[str]) -> Any:
        """The tower in int8 except for these activations, and the weights and biases of these nodes."""
        names = {name for node in self._nodes if node.name in nodes for name in node.input[1:]}
        originals = {name: values for name, values in weights_of(self._model).items() if name in names}
        return without_rounding(self._rounded, activations, originals)

    def _activations(self, share: float) -> list[str]:
        return self._sensitive[: round(share * len(self._sensitive))] if share else []

    def _weights(self, share: float) -> list[str]:
        """The nodes whose weights change the embeddings most per byte, up to a fraction of the int8 tower's size.

        For a large tower, the nodes with the smallest weights.
        """
        if not share:
            return []
        names = {node.name for node in self._nodes}
        if self._is_large:
            worth = dict.fromkeys(names, 1.0)
        else:
            activations = rounded_activations(self._rounded)
            worth = {name: self._moved(self._keeping(activations, names - {name}), self._still) for name in names}
        sizes = {name: values.size for name, values in weights_of(self._model).items()}
        size = {node.name: 3 * sizes[node.input[1]] for node in self._nodes}  # extra bytes in fp32
        left, chosen = share * sum(sizes.values()), []
        for name in sorted(worth, key=lambda name: (-worth[name] / size[name], name)):
            if size[name] <= left:
                left -= size[name]
                chosen.append(name)
        return chosen

    @cached_property
    def _model(self) -> Any:
        """The graph in fp32, batch norms folded into convolutions, embedding tables in int8."""
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if not self._convolutional:
            return with_rounded_tables(onnx.load(self._file))
        with TemporaryDirectory() as temporary:
            prepared = Path(temporary) / "prepared.onnx"
            quant_pre_process(self._file, prepared, skip_symbolic_shape=True)
            return onnx.load(prepared)

    @property
    def _is_large(self) -> bool:
        """Whether measuring each of the tower's parts would take hours."""
        return bytes_of(self._model) > _RANKED_BYTES

    @cached_property
    def _nodes(self) -> list[Any]:
        return weighted_nodes(self._model, _WEIGHTED if self._convolutional else _DENSE)

    @cached_property
    def _first(self) -> list[str]:
        """A convolutional tower's first convolutions."""
        if not self._convolutional:
            return []
        counts = multiply_adds(self._model, self._nodes, self._batches[0][:1])
        shares = np.cumsum(list(counts.values())) / sum(counts.values())
        return [name for name, share in zip(counts, shares, strict=True) if share <= _FIRST]

    @cached_property
    def _plain(self) -> set[str]:
        """The activations between a convolutional tower's first convolutions, and of its head except dense inputs."""
        if not self._convolutional:
            return set()
        nodes = list(self._model.graph.node)
        names = [node.name for node in nodes]
        begin = max((names.index(name) + 1 for name in self._first), default=0)
        last = max(index for index, node in enumerate(nodes) if node.op_type == "Conv")
        dense = [names.index(node.name) for node in self._nodes if names.index(node.name) > last]
        head = {name for node in nodes[min(dense, default=len(nodes)) :] for name in node.output}
        first = {name for node in nodes[:begin] for name in node.input}
        return first | head - {node.input[0] for node in self._nodes}

    @cached_property
    def _sensitive(self) -> list[str]:
        """The activations, in falling order of how much rounding each alone changes the embeddings.

        For a large tower, in the order of the graph.
        """
        names = rounded_activations(self._rounded)
        if self._is_large:
            return names
        still = self._run(without_rounding(self._rounded, names))
        moved = {name: self._moved(without_rounding(self._rounded, set(names) - {name}), still) for name in names}
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
        rows = [row for batch in self._batches for row in batch]
        name = session.get_inputs()[0].name
        tried = rows[:: -(-len(rows) // _TRIED_ON)]
        return np.concatenate([session.run(None, {name: row[np.newaxis]})[0] for row in tried])

    @cached_property
    def _rounded(self) -> Any:
        """The whole tower in int8, except for the normalisation at its end."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        input_name, batches = self._model.graph.input[0].name, iter(self._batches)

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(batches, None)
                return None if batch is None else {input_name: batch}

        originals, codes, weights = weights_of(self._model), {}, {}
        for node in self._nodes:
            values = originals[node.input[1]]
            axis = output_axis(node, values.ndim)
            scales = safe_scales(values, axis)
            weights[node.input[1]] = rounded(values, axis, scales)
            codes[node.input[1]] = [
                {"axis": axis, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(0)}
                for scale in scales
            ]
        model = with_weights(self._model, weights, self._batches)
        options: dict[str, Any] = {"TensorQuantOverrides": codes}
        if self._convolutional:
            options["QDQKeepRemovableActivations"] = True  # otherwise unrounded ones would lose their ReLU
        else:
            options["OpTypesToExcludeOutputQuantization"] = list(_DENSE)
        with TemporaryDirectory() as temporary:
            prepared, quantized = (Path(temporary) / step for step in ("prepared.onnx", "quantized.onnx"))
            _save(model, prepared)
            quantize_static(
                prepared,
                quantized,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,  # the default is QInt8, which VNNI instructions do not take
                weight_type=QuantType.QInt8,
                op_types_to_quantize=None if self._convolutional else list(_DENSE),
                nodes_to_quantize=None if self._convolutional else [node.name for node in self._nodes],
                nodes_to_exclude=after_last(self._model, _WEIGHTED) if self._convolutional else None,
                use_external_data_format=bytes_of(model) > LARGEST_FILE,
                extra_options=options,
            )
            model = onnx.load(quantized)
        # The quantiser passes rounded tensors to all their consumers: to residual sums, too.
        return model if self._convolutional else rounded_only_for(model, {node.name for node in self._nodes})


def write_fp16(file: Path, out: Path, keep: Sequence[str] = FP16_KEEPS[0]) -> None:
    """Write a tower in fp16 with the operators `keep` in fp32; inputs and outputs stay fp32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *keep]
    _save(convert_float_to_float16(str(file), keep_io_types=True, op_block_list=blocked), out)


def _save(model: Any, out: Path) -> None:
    import onnx

    beside = out.with_name(f"{out.name}.data")
    beside.unlink(missing_ok=True)
    large = bytes_of(model) > LARGEST_FILE
    onnx.save(model, out, save_as_external_data=large, location=beside.name if large else None)


class OnnxGraphs:
    """image.onnx and text.onnx in a precision. `write` writes both; `loosen` lets a tower keep more in fp32.

    `folder` is a temporary folder for these and for the fp32 graphs, which are written once, when first needed.
    """

    def __init__(
        self, source: Source, folder: Path, precision: Precision, calibration: Path | None, images: int
    ) -> None:
        self.folder = folder / "graphs"
        self.folder.mkdir()
        self._source, self._precision, self._calibration, self._images = source, precision, calibration, images
        self._exact = folder / "fp32"
        self._steps: Sequence[Any] = {"fp32": (None,), "fp16": FP16_KEEPS, "int8": LADDER}[precision]
        self._step = dict.fromkeys(_GRAPHS, 0)
        self._written: dict[str, int] = {}
        self._pair_sums = dict.fromkeys(_GRAPHS, 0)

    @property
    def attempt(self) -> str:
        """What is kept in fp32, for the user; empty for the first attempt."""
        return "".join(f"{tower} kept {kept}, " for tower, kept in self.kept()["kept_fp32"].items())

    @property
    def largest_pair_sum(self) -> int | None:
        """The larger one of both int8 graphs (rounding.py); None in other precisions, and before `write`."""
        return max(self._pair_sums.values()) if self._precision == "int8" and self._written else None

    def kept(self) -> dict[str, Any]:
        """What is kept in fp32, for dcclip.json."""
        return {"kept_fp32": {tower: self._kept(tower) for tower in _GRAPHS if self._step[tower]}}

    def write(self) -> Path:
        """The folder with both graphs."""
        for tower, name in _GRAPHS.items():
            if self._written.get(tower) == self._step[tower]:
                continue
            if self._precision == "fp32":
                for file in self._fp32.glob(f"{name}*"):
                    shutil.copyfile(file, self.folder / file.name)
            elif self._precision == "fp16":
                write_fp16(self._fp32 / name, self.folder / name, FP16_KEEPS[self._step[tower]])
            else:
                self._int8[tower].write(self.folder / name, LADDER[self._step[tower]])
                self._pair_sums[tower] = largest_pair_sum(self.folder / name)
            self._written[tower] = self._step[tower]
        return self.folder

    def loosen(self, parity: Parity | None) -> bool:
        """Take the next step for the tower that loses more agreement, or for both if `parity` is None.

        False if no step is left.
        """
        left = [tower for tower in _GRAPHS if self._step[tower] + 1 < len(self._steps)] if self._written else []
        if parity is not None:
            left.sort(key=lambda tower: _losses(parity, tower), reverse=True)
            left = left[:1]
        for tower in left:
            self._step[tower] += 1
        return bool(left)

    def _kept(self, tower: str) -> str:
        if self._precision == "fp16":
            return ", ".join(FP16_KEEPS[self._step[tower]])
        step = LADDER[self._step[tower]]
        return f"{step.activations:.0%} of its activations and {step.weights:.0%} of its weights in fp32"

    @cached_property
    def _fp32(self) -> Path:
        from dcclip_cli.exporters.graphs import write_onnx

        self._exact.mkdir()
        write_onnx(self._source, self._exact)
        return self._exact

    @cached_property
    def _int8(self) -> dict[str, Int8Tower]:
        assert self._calibration is not None
        source = self._source
        images = calibration_images(self._calibration, self._images)
        texts = calibration_texts(self._calibration, self._images)
        tokenizer = prepare(source)
        ids = [np.asarray([tokenizer.encode(text).ids], np.int64) for text in texts]  # one by one: no padding
        return {
            "image": Int8Tower(self._fp32 / IMAGE, batches(images, source.preprocessing)),
            "text": Int8Tower(self._fp32 / TEXT, ids),
        }


def _losses(parity: Parity, tower: str) -> tuple[float, float]:
    agreement, cosine = (getattr(parity, f"{tower}_{metric}") for metric in ("agreement", "centred_cosine"))
    return 1 - agreement, 1 - cosine
