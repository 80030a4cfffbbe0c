"""The two ONNX graphs in fp32, fp16 or int8, with as much of them rounded as the parity with the model allows.

In int8, all weights are rounded, which makes the file small. Activations are rounded as long as the embeddings hardly
change: those that change them most, when rounded alone, can stay fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dcclip_cli.data.pair import PairDataset
from dcclip_cli.exporters import Precision, Preprocess
from dcclip_cli.exporters.onnx_graph import OnnxGraph
from dcclip_cli.exporters.parity import Parity
from dcclip_cli.exporters.preprocess_graph import add_preprocessing
from dcclip_cli.exporters.qdq import Channels, quantized
from dcclip_cli.exporters.rounding import (
    largest_pair_sum,
    multiply_adds,
    output_axis,
    rounded,
    rounded_activations,
    rounded_only_for,
    safe_scales,
    with_rounded_tables,
    with_weights,
    without_rounding,
)
from dcclip_cli.exporters.samples import calibration_texts, images_and_captions
from dcclip_cli.exporters.source import Source, prepare
from dcclip_cli.predict.images import batched
from dcclip_cli.predict.onnx_encoder import IMAGE, TEXT

_DENSE = ("MatMul", "Gemm")
_RANKED_BYTES = 600_000_000  # size of the largest tower whose parts are measured one by one
_TRIED_ON = 16  # images or texts on which the effect of rounding one activation is measured
_FIRST = 0.1  # fraction of a convolutional tower's multiply-adds, in its first convolutions, that stay fp32
_SUMS = ("Softmax", "Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Div")
# What stays fp32, from the first to the last attempt. fp16: operators; sums overflow first. Layer norms always do:
# onnxruntime 1.32 crashes (SIGSEGV) when it optimises a graph with layer norms in fp16, and where a cast is between a
# transposition in fp16 and a product in fp32.
# int8: fractions of the activations, and of the size, in weights. Small weights cost no size, so they are first.
_LADDERS: dict[Precision, Sequence[Any]] = {
    "fp32": [None],
    "fp16": [
        ("LayerNormalization",),
        ("LayerNormalization", *_SUMS),
        ("LayerNormalization", *_SUMS, *_DENSE, "Transpose"),
    ],
    "int8": [(0, 0), (0.1, 0.02), (0.25, 0.05), (0.5, 0.08), (1, 0.1), (1, 0.5)],
}
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
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._batches, graph = batches, OnnxGraph.load(file)
        kinds = [node.op_type for node in graph.proto.graph.node]
        self._convolutional = kinds.count("Conv") > sum(kinds.count(kind) for kind in _DENSE)
        if self._convolutional:  # batch norms are folded into convolutions
            plain, folded = (file.with_name(f"{step}-{file.name}") for step in ("plain", "folded"))
            graph.save(plain)
            quant_pre_process(plain, folded, skip_symbolic_shape=True)
            self._graph = OnnxGraph.load(folded)
        else:
            self._graph = with_rounded_tables(graph)
        self._sizes = {weight.name: math.prod(weight.dims) for weight in self._graph.proto.graph.initializer}
        weighted = ("Conv", *_DENSE) if self._convolutional else _DENSE
        self._nodes = [
            node for node in self._graph.proto.graph.node if node.op_type in weighted and node.input[1] in self._sizes
        ]
        self._rounded = self._quantized()
        self._first, self._plain = self._fp32_parts()

    def write(self, out: Path, activations: float = 0.0, weights: float = 0.0) -> int:
        """Write the tower in int8 except for fractions of its activations, and of its size, in weights.

        Returns its largest sum of two int8 products (rounding.py).
        """
        sensitive = self._sensitive[: round(activations * len(self._sensitive))] if activations else []
        nodes = self._costly_weights(weights) if weights else []
        written = self._keeping({*self._plain, *sensitive}, {*self._first, *nodes})
        written.save(out)
        return largest_pair_sum(written)

    def _keeping(self, activations: Collection[str], nodes: Collection[str] = ()) -> OnnxGraph:
        """The tower in int8 except for these activations, and the weights and biases of these nodes."""
        names = {name for node in self._nodes if node.name in nodes for name in node.input[1:]}
        originals = [weight for weight in self._graph.proto.graph.initializer if weight.name in names]
        return without_rounding(self._rounded, activations, originals)

    @cached_property
    def _sensitive(self) -> list[str]:
        """The activations, in falling order of how much rounding each alone changes the embeddings."""
        names = rounded_activations(self._rounded)
        moved = self._effects(names, self._keeping, lambda: self._keeping(names))
        return sorted(moved, key=lambda name: -moved[name])

    @cached_property
    def _weight_effects(self) -> dict[str, float]:
        activations = rounded_activations(self._rounded)
        names = [node.name for node in self._nodes]
        return self._effects(names, lambda kept: self._keeping(activations, kept), lambda: self._graph)

    def _costly_weights(self, share: float) -> list[str]:
        """The nodes whose weights change the embeddings most per byte, up to a fraction of the int8 tower's size."""
        size = {node.name: 3 * self._sizes[node.input[1]] for node in self._nodes}  # extra bytes in fp32
        left, chosen = share * sum(self._sizes.values()), []
        for name in sorted(size, key=lambda name: (-self._weight_effects[name] / size[name], name)):
            if size[name] <= left:
                left -= size[name]
                chosen.append(name)
        return chosen

    def _effects(
        self, names: Sequence[str], keeping: Callable[[set[str]], OnnxGraph], exact: Callable[[], OnnxGraph]
    ) -> dict[str, float]:
        """Mean square change of the embeddings by rounding each name alone.

        All 1 for a large tower, where measuring would take hours.
        """
        if self._graph.size_bytes > _RANKED_BYTES:
            return dict.fromkeys(names, 1.0)
        expected = self._run(exact())
        return {name: float(np.square(self._run(keeping(set(names) - {name})) - expected).mean()) for name in names}

    def _run(self, graph: OnnxGraph) -> np.ndarray:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = graph.session(options)
        rows = [row for batch in self._batches for row in batch]
        name = session.get_inputs()[0].name
        tried = rows[:: -(-len(rows) // _TRIED_ON)]
        return np.concatenate([session.run(None, {name: row[np.newaxis]})[0] for row in tried])

    def _fp32_parts(self) -> tuple[list[str], set[str]]:
        """A convolutional tower's first convolutions, and the activations that are not rounded.

        These are between the first convolutions, and in the head, except the inputs of dense layers.
        """
        if not self._convolutional:
            return [], set()
        counts = multiply_adds(self._graph, self._nodes, self._batches[0][:1])
        shares = np.cumsum(list(counts.values())) / sum(counts.values())
        first = [name for name, share in zip(counts, shares, strict=True) if share <= _FIRST]
        nodes = list(self._graph.proto.graph.node)
        names = [node.name for node in nodes]
        begin = max((names.index(name) + 1 for name in first), default=0)
        last = max(index for index, node in enumerate(nodes) if node.op_type == "Conv")
        dense = [names.index(node.name) for node in self._nodes if names.index(node.name) > last]
        head = {name for node in nodes[min(dense, default=len(nodes)) :] for name in node.output}
        inputs = {name for node in nodes[:begin] for name in node.input}
        return first, inputs | head - {node.input[0] for node in self._nodes}

    def _quantized(self) -> OnnxGraph:
        """The whole tower in int8, except for the normalisation at its end."""
        names = [node.name for node in self._nodes]
        if self._convolutional:
            nodes = list(self._graph.proto.graph.node)  # in topological order, as ONNX requires
            last = max(index for index, node in enumerate(nodes) if node.op_type in ("Conv", *_DENSE))
            activations = None
            options: dict[str, Any] = {
                "nodes_to_exclude": [node.name for node in nodes[last + 1 :]],
                # Otherwise unrounded ones would lose their ReLU.
                "extra_options": {"QDQKeepRemovableActivations": True},
            }
        else:
            activations = {node.input[0] for node in self._nodes}
            options = {
                "op_types_to_quantize": list(_DENSE),
                "nodes_to_quantize": names,
                "extra_options": {"OpTypesToExcludeOutputQuantization": list(_DENSE)},
            }
        weights = self._graph.weights
        axes = {node.input[1]: output_axis(node, weights[node.input[1]].ndim) for node in self._nodes}
        channels = {name: Channels(axis, safe_scales(weights[name], axis)) for name, axis in axes.items()}
        coarse = ((name, rounded(weights[name], one.axis, one.scales)) for name, one in channels.items())
        with TemporaryDirectory(dir=self._graph.folder) as temporary:
            graph = with_weights(self._graph, coarse, self._batches, Path(temporary))
            graph = quantized(graph, channels, activations, self._batches, **options)
        # The quantiser passes rounded tensors to all their consumers: to residual sums, too.
        return graph if self._convolutional else rounded_only_for(graph, names)


class OnnxGraphs:
    """image.onnx and text.onnx in a precision. `write` writes both; `loosen` lets a tower keep more in fp32.

    `folder` is a temporary folder for these and for the fp32 graphs, which are written once, when first needed.
    Then the source's towers are freed. With `preprocess`, the preprocessing is in image.onnx.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        precision: Precision,
        calibration: PairDataset | None,
        images: int,
        preprocess: Preprocess = "outside",
    ) -> None:
        self.folder, self._exact = folder / "graphs", folder / "fp32"
        self.folder.mkdir()
        self._source, self._precision, self._calibration, self._images = source, precision, calibration, images
        self._preprocess = preprocess
        self._step = dict.fromkeys(_GRAPHS, 0)
        self._written: dict[str, int] = {}
        self._pair_sums: dict[str, int] = {}

    @property
    def attempt(self) -> str:
        """What is kept in fp32, for the user; empty for the first attempt."""
        return "".join(f"{tower} kept {kept}, " for tower, kept in self.kept()["kept_fp32"].items())

    @property
    def largest_pair_sum(self) -> int | None:
        """The larger one of both int8 graphs (rounding.py); None in other precisions, and before `write`."""
        return max(self._pair_sums.values(), default=None)

    def kept(self) -> dict[str, dict[str, str]]:
        """What is kept in fp32, for dcclip.json."""
        found = {}
        for tower, step in self._step.items():
            kept = _LADDERS[self._precision][step]
            if step and self._precision == "fp16":
                found[tower] = ", ".join(kept)
            elif step:
                found[tower] = f"{kept[0]:.0%} of its activations and {kept[1]:.0%} of its weights in fp32"
        return {"kept_fp32": found}

    def write(self) -> Path:
        """The folder with both graphs."""
        for tower, name in _GRAPHS.items():
            step, out = self._step[tower], self.folder / name
            if self._written.get(tower) == step:
                continue
            kept = _LADDERS[self._precision][step]
            if self._precision == "fp32":
                OnnxGraph.load(self._fp32 / name).save(out)
            elif self._precision == "fp16":
                from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

                OnnxGraph.load(self._fp32 / name).save(out)
                blocked = [*DEFAULT_OP_BLOCK_LIST, *kept]
                half = convert_float_to_float16(str(out), keep_io_types=True, op_block_list=blocked)
                OnnxGraph(half, out.parent).save(out)
            else:
                self._pair_sums[tower] = self._int8[tower].write(out, *kept)
            if tower == "image" and self._preprocess == "graph":
                add_preprocessing(out, out, self._source.preprocessing)
            self._written[tower] = step
        return self.folder

    def loosen(self, parity: Parity | None) -> list[str]:
        """Take the next step for the tower that loses more agreement, or for both if `parity` is None.

        Returns the towers that took it, none if no step is left.
        """
        left = [tower for tower in self._written if self._step[tower] + 1 < len(_LADDERS[self._precision])]
        if parity is not None:
            left = sorted(left, key=parity.closeness)[:1]
        for tower in left:
            self._step[tower] += 1
        return left

    @cached_property
    def _fp32(self) -> Path:
        from dcclip_cli.exporters.graphs import write_onnx

        self._exact.mkdir()
        write_onnx(self._source, self._exact)
        self._source.release()
        return self._exact

    @cached_property
    def _int8(self) -> dict[str, Int8Tower]:
        assert self._calibration is not None
        images, captions = images_and_captions(self._calibration, self._images)
        texts = [*calibration_texts(self._images), *(text for several in captions for text in several)]
        tokenizer, preprocess = prepare(self._source), self._source.preprocessing
        ids = [np.asarray([tokenizer.encode(text).ids], np.int64) for text in texts]  # one by one: no padding
        pixels = [
            np.stack([preprocess(images[place]) for place in places]) for places in batched(range(len(images)), 16)
        ]
        return {"image": Int8Tower(self._fp32 / IMAGE, pixels), "text": Int8Tower(self._fp32 / TEXT, ids)}
