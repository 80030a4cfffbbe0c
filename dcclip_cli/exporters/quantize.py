"""The two ONNX graphs in fp32, fp16 or int8, with as much of them rounded as the parity with the
model allows.
"""

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dcclip_cli.core.errors import Message
from dcclip_cli.core.files import read_json
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.exporters import Precision, Preprocess, rounding
from dcclip_cli.exporters.formats.onnx import add_preprocessing
from dcclip_cli.exporters.onnx_graph import OnnxGraph
from dcclip_cli.exporters.parity import Parity
from dcclip_cli.exporters.samples import calibration_texts, images_and_captions
from dcclip_cli.exporters.source import Source, prepare
from dcclip_cli.inference.images import batched
from dcclip_cli.inference.onnx_encoder import DESCRIPTION, IMAGE, TEXT

_DENSE = ("MatMul", "Gemm")
_RANKED_BYTES = 600_000_000  # size of the largest tower whose parts are measured one by one
_TRIED_ON = 16  # images or texts on which the effect of rounding one activation is measured
# fraction of a convolutional tower's multiply-adds, in its first convolutions, that stay fp32
_FIRST = 0.1
_SUMS = ("Softmax", "Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Div")
# What stays fp32, from the first to the last attempt. fp16: operators; sums overflow first. Layer
# norms always do: onnxruntime 1.32 crashes (SIGSEGV) when it optimises a graph with layer norms in
# fp16, and where a cast is between a transposition in fp16 and a product in fp32. int8: fractions
# of the activations, and of the size, in weights. Small weights cost no size, so they are first.
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

    Sensitive are the parts that, when rounded alone, change the embeddings most. Activations are
    uint8 with fixed ranges, found on `batches`, so that the rest of a batch changes nothing.
    Weights are int8 with a scale per channel: the pair that VNNI instructions multiply, and small
    enough not to overflow on CPUs without VNNI (rounding.py). A transformer rounds the inputs of
    its dense layers, and so does the head of a convolutional tower; before the head, everything is
    rounded except the first convolutions. Rounding harms these most, they have few weights, and in
    one block they are no slower in fp32.
    """

    def __init__(self, file: Path, batches: Sequence[np.ndarray]) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._batches = batches
        graph = OnnxGraph.load(file)
        kinds = [node.op_type for node in graph.proto.graph.node]
        self._convolutional = kinds.count("Conv") > sum(kinds.count(kind) for kind in _DENSE)
        if self._convolutional:  # batch norms are folded into convolutions
            plain, folded = (file.with_name(f"{step}-{file.name}") for step in ("plain", "folded"))
            graph.save(plain)
            quant_pre_process(plain, folded, skip_symbolic_shape=True)
            self._graph = rounding.with_unshared_biases(OnnxGraph.load(folded))
        else:
            self._graph = rounding.with_unshared_biases(rounding.with_rounded_tables(graph))
        weights = self._graph.proto.graph.initializer
        self._sizes = {weight.name: math.prod(weight.dims) for weight in weights}
        unshared = (
            weights if self._convolutional else graph.proto.graph.initializer
        )  # equal rows not yet shared
        self._size = sum(math.prod(weight.dims) for weight in unshared)
        weighted = ("Conv", *_DENSE) if self._convolutional else _DENSE
        nodes = self._graph.proto.graph.node
        self._nodes = [
            node for node in nodes if node.op_type in weighted and node.input[1] in self._sizes
        ]
        self._rounded = self._quantized()
        self._first, self._plain = self._fp32_parts()

    def write(self, out: Path, activations: float = 0.0, weights: float = 0.0) -> int:
        """Write the tower in int8 but for fractions of its activations and weights; returns its
        largest pair sum.
        """
        sensitive = (
            self._sensitive[: round(activations * len(self._sensitive))] if activations else []
        )
        nodes = []
        if weights:  # those whose weights change the embeddings most per byte
            extra = {
                node.name: 3 * self._sizes[node.input[1]] for node in self._nodes
            }  # bytes in fp32
            remaining = weights * self._size
            for name in sorted(
                extra, key=lambda name: (-self._weight_effects[name] / extra[name], name)
            ):
                if extra[name] <= remaining:
                    remaining -= extra[name]
                    nodes.append(name)
        written = self._keeping({*self._plain, *sensitive}, {*self._first, *nodes})
        written.save(out)
        return rounding.largest_pair_sum(written)

    def _keeping(self, activations: Collection[str], nodes: Collection[str] = ()) -> OnnxGraph:
        """The tower in int8 except for these activations, and the weights and biases of these
        nodes.
        """
        names = {name for node in self._nodes if node.name in nodes for name in node.input[1:]}
        originals = [
            weight for weight in self._graph.proto.graph.initializer if weight.name in names
        ]
        return rounding.without_rounding(self._rounded, activations, originals)

    @cached_property
    def _sensitive(self) -> list[str]:
        """The activations, in falling order of how much rounding each alone changes the
        embeddings.
        """
        names = rounding.rounded_activations(self._rounded)
        moved = self._effects(names, self._keeping, lambda: self._keeping(names))
        return sorted(moved, key=lambda name: -moved[name])

    @cached_property
    def _weight_effects(self) -> dict[str, float]:
        activations = rounding.rounded_activations(self._rounded)
        names = [node.name for node in self._nodes]
        return self._effects(
            names, lambda nodes: self._keeping(activations, nodes), lambda: self._graph
        )

    def _effects(
        self,
        names: Sequence[str],
        keeping: Callable[[set[str]], OnnxGraph],
        exact: Callable[[], OnnxGraph],
    ) -> dict[str, float]:
        """Mean square change of the embeddings by rounding each name alone; 1 for a large tower,
        to save hours.
        """
        if self._graph.size_bytes > _RANKED_BYTES:
            return dict.fromkeys(names, 1.0)
        expected = self._run(exact())
        return {
            name: float(np.square(self._run(keeping(set(names) - {name})) - expected).mean())
            for name in names
        }

    def _run(self, graph: OnnxGraph) -> np.ndarray:
        """The embeddings of some of the inputs."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = graph.session(options)
        rows = [row for batch in self._batches for row in batch]
        name = session.get_inputs()[0].name
        return np.concatenate(
            [
                session.run(None, {name: row[np.newaxis]})[0]
                for row in rows[:: -(-len(rows) // _TRIED_ON)]
            ]
        )

    def _fp32_parts(self) -> tuple[list[str], set[str]]:
        """The first convolutions, and activations between them and in the head that are not
        rounded.
        """
        if not self._convolutional:
            return [], set()
        counts = rounding.multiply_adds(self._graph, self._nodes, self._batches[0][:1])
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
        activations = None
        options = dict[str, Any]()
        extra = dict[str, Any]()
        if self._convolutional:
            nodes = list(self._graph.proto.graph.node)  # in topological order, as ONNX requires
            last = max(
                index for index, node in enumerate(nodes) if node.op_type in ("Conv", *_DENSE)
            )
            options["nodes_to_exclude"] = [node.name for node in nodes[last + 1 :]]
            extra["QDQKeepRemovableActivations"] = (
                True  # otherwise unrounded ones would lose their ReLU
            )
        else:
            activations = {node.input[0] for node in self._nodes}
            options |= {"op_types_to_quantize": list(_DENSE), "nodes_to_quantize": names}
            extra["OpTypesToExcludeOutputQuantization"] = list(_DENSE)
        weights = self._graph.weights
        axes = {
            node.input[1]: rounding.output_axis(node, weights[node.input[1]].ndim)
            for node in self._nodes
        }
        channels = {
            name: rounding.Channels(axis, rounding.safe_scales(weights[name], axis))
            for name, axis in axes.items()
        }
        coarse = (
            (name, rounding.rounded(weights[name], channel.axis, channel.scales))
            for name, channel in channels.items()
        )
        with TemporaryDirectory(dir=self._graph.folder) as temporary:
            graph = rounding.with_weights(self._graph, coarse, self._batches, Path(temporary))
            graph = rounding.quantized(
                graph, channels, activations, self._batches, extra, **options
            )
        # The quantiser passes rounded tensors to all their consumers: to residual sums, too.
        return graph if self._convolutional else rounding.rounded_only_for(graph, names)


class OnnxGraphs:
    """image.onnx and text.onnx in a precision. `write` writes both; `loosen` lets a tower keep
    more in fp32.

    `folder` is a temporary folder for these and for the fp32 graphs, which are written once, when
    first needed. Then the source's towers are freed. With `preprocess`, the preprocessing is in
    image.onnx. The folder `fp32` for the fp32 graphs may already have some.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        precision: Precision,
        calibration: PairDataset | None,
        images: int,
        preprocess: Preprocess = "outside",
        fp32: Path | None = None,
    ) -> None:
        self._fp32_folder = fp32 or folder / "fp32"
        self._folder = folder
        self._source = source
        self._preprocess = preprocess
        self._precision = precision
        self._calibration = calibration
        self._images = images
        self._ladder = _LADDERS[precision]
        self._step = dict.fromkeys(_GRAPHS, 0)
        self._written: dict[str, int] = {}
        self._pair_sums: dict[str, int] = {}

    @property
    def largest_pair_sum(self) -> int | None:
        """The larger one of both int8 graphs (rounding.py); None in other precisions, and before
        `write`.
        """
        return max(self._pair_sums.values(), default=None)

    @property
    def kept(self) -> dict[str, str]:
        """What a tower keeps in fp32, for dcclip.json; only towers that keep more than in the
        first attempt.
        """
        steps = {tower: self._ladder[step] for tower, step in self._step.items() if step}
        if self._precision == "fp16":
            return {tower: ", ".join(operators) for tower, operators in steps.items()}
        return {
            tower: Message("{:.0%} of its activations and {:.0%} of its weights in fp32", *shares)
            for tower, shares in steps.items()
        }

    def write(self) -> Path:
        """The folder with both graphs."""
        for tower, name in _GRAPHS.items():
            step = self._step[tower]
            out = self._folder / name
            if self._written.get(tower) == step:
                continue
            keeping = self._ladder[step]
            if self._precision == "int8":
                self._pair_sums[tower] = self._int8[tower].write(out, *keeping)
            else:
                OnnxGraph.load(self._fp32 / name).save(out)
            if self._precision == "fp16":
                from onnxruntime.transformers.float16 import (
                    DEFAULT_OP_BLOCK_LIST,
                    convert_float_to_float16,
                )
                from onnxruntime.transformers.onnx_model import OnnxModel

                blocked = [*DEFAULT_OP_BLOCK_LIST, *keeping]
                half = OnnxModel(
                    convert_float_to_float16(str(out), keep_io_types=True, op_block_list=blocked)
                )
                half.topological_sort(is_deterministic=True)  # its casts are the last nodes
                # It calls all weights fp16. The shapes of other tensors stay: without them
                # onnxruntime 1.32 crashes.
                shapes = half.model.graph.value_info
                weights = {weight.name for weight in half.model.graph.initializer}
                for shape in [shape for shape in shapes if shape.name in weights]:
                    shapes.remove(shape)
                OnnxGraph(half.model, out.parent).save(out)
            if tower == "image" and self._preprocess == "graph":
                add_preprocessing(out, self._source.preprocessing)
            self._written[tower] = step
        return self._folder

    def loosen(self, parity: Parity | None) -> list[str]:
        """Take the next step for the tower that loses more agreement, or for both; returns those
        that took it.
        """
        towers = [tower for tower in self._written if self._step[tower] + 1 < len(self._ladder)]
        if parity is not None:
            towers = sorted(towers, key=parity.closeness)[:1]
        for tower in towers:
            self._step[tower] += 1
        return towers

    @cached_property
    def _fp32(self) -> Path:
        from dcclip_cli.exporters.graphs import write_onnx

        self._fp32_folder.mkdir(exist_ok=True)
        write_onnx(self._source, self._fp32_folder)
        self._source.release()
        return self._fp32_folder

    @cached_property
    def _int8(self) -> dict[str, Int8Tower]:
        assert self._calibration is not None
        images, captions = images_and_captions(self._calibration, self._images)
        texts = [*calibration_texts(self._images), *chain(*captions)]
        tokenizer = prepare(self._source)
        preprocess = self._source.preprocessing
        ids = [
            np.asarray([tokenizer.encode(text).ids], np.int64) for text in texts
        ]  # one by one: no padding
        pixels = [
            np.stack([preprocess(images[place]) for place in places])
            for places in batched(range(len(images)), 16)
        ]
        return {
            "image": Int8Tower(self._fp32 / IMAGE, pixels),
            "text": Int8Tower(self._fp32 / TEXT, ids),
        }


class BundleGraphs:
    """The graphs of a bundle, which stays in its precision, with the interface of OnnxGraphs."""

    def __init__(self, source: Source, folder: Path, preprocess: Preprocess) -> None:
        assert source.folder is not None
        self._source = source
        self._bundle = source.folder
        self._folder = folder
        description = read_json(source.folder / DESCRIPTION, "")
        self._adds_preprocessing = preprocess == "graph" != description["preprocess"]
        self.kept: dict[str, str] = description.get("kept_fp32") or {}
        self.largest_pair_sum: int | None = (description.get("parity") or {}).get(
            "int8_largest_pair_sum"
        )

    def write(self) -> Path:
        for file in (file for name in (IMAGE, TEXT) for file in self._bundle.glob(f"{name}*")):
            shutil.copyfile(file, self._folder / file.name)
        if self._adds_preprocessing:
            add_preprocessing(self._folder / IMAGE, self._source.preprocessing)
        return self._folder

    def loosen(self, parity: Parity | None) -> list[str]:
        return []
