"""Formats for device runtimes: OpenVINO, ExecuTorch, LiteRT and CoreML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.predict.onnx_encoder import IMAGE, TEXT, ExportedEncoder, one_at_a_time, read_description

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dcclip_cli.exporters.source import Source
    from dcclip_cli.predict.encoder import Encoder

TOWERS = ("image", "text")


class OpenVino(Format):
    """image.xml and text.xml with their weights, converted from the ONNX graphs, for Intel's CPUs, GPUs and NPUs.

    Any batch size and text length. They are checked on the CPU, on one thread.
    """

    name = "openvino"
    precisions = ("fp32", "fp16", "int8")
    package = "openvino"
    install = "pip install openvino"
    from_onnx = True
    files = ("image.xml", "image.bin", "text.xml", "text.bin")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import openvino

        for name in (IMAGE, TEXT):
            model = openvino.convert_model(graphs / name)
            openvino.save_model(model, folder / f"{Path(name).stem}.xml", compress_to_fp16=precision == "fp16")

    def open(self, folder: Path) -> Encoder:
        import openvino

        about = read_description(folder, self.name, self.files)
        core = openvino.Core()
        exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        image, text = (core.compile_model(folder / f"{tower}.xml", "CPU", exact) for tower in TOWERS)
        return ExportedEncoder(
            folder, about, self.files, lambda pixels: np.array(image([pixels])[0]), lambda ids: np.array(text([ids])[0])
        )


class _OneInput(Format):
    """A format converted from torch modules: one image at a time, one text padded to the full length (int64)."""

    def open(self, folder: Path) -> Encoder | None:
        about = read_description(folder, self.name, self.files) | {"fixed_length": True}
        image, text = (self._runner(folder / file) for file in self.files)
        return ExportedEncoder(folder, about, self.files, one_at_a_time(image), one_at_a_time(text))

    def _runner(self, file: Path) -> Any:
        """A function from a batch of one to its embedding (1, D), computed by the format's runtime."""
        raise NotImplementedError


class ExecuTorch(_OneInput):
    """image.pte and text.pte for phones: PyTorch's own runtime on Android and iOS, here with XNNPACK kernels."""

    name = "executorch"
    precisions = ("fp32",)
    package = "executorch"
    install = "pip install executorch (in an environment of its own: 1.6 GB)"
    files = ("image.pte", "text.pte")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        for file, (graph, example) in zip(self.files, _single_examples(source), strict=True):
            program = _traced(graph, example)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            (folder / file).write_bytes(lowered.buffer)

    def _runner(self, file: Path) -> Any:
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(str(file))
        method = program.load_method("forward")

        def run(item: np.ndarray, _program: Any = program) -> np.ndarray:  # the program has to outlive its method
            return method.execute([torch.from_numpy(item.copy())])[0].clone().numpy()

        return run


class LiteRt(_OneInput):
    """image.tflite and text.tflite for LiteRT (TensorFlow Lite), on Android and microcomputers.

    In int8 all weights are rounded, the embedding table too, and activations in ranges computed at run time. Fixed
    ranges include the normalisation at the end: the quick start's student lost 0.007 of cosine for 0.03 ms.
    """

    name = "litert"
    precisions = ("fp32", "int8")
    package = "litert_torch"
    install = "pip install litert-torch (in an environment of its own: 2.1 GB)"
    files = ("image.tflite", "text.tflite")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import litert_torch

        for file, (graph, example) in zip(self.files, _single_examples(source), strict=True):
            litert_torch.convert(graph, (example,)).export(str(folder / file))
            if precision == "int8":
                from ai_edge_quantizer import quantizer, recipe

                rounding = quantizer.Quantizer(str(folder / file))
                rounding.load_quantization_recipe(recipe.dynamic_wi8_afp32())
                rounding.quantize().export_model(str(folder / file), overwrite=True)

    def _runner(self, file: Path) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(file)).get_signature_runner()
        [(name, detail)] = runner.get_input_details().items()

        def run(item: np.ndarray) -> np.ndarray:
            [row] = runner(**{name: item.astype(detail["dtype"])}).values()
            return np.array(row)

        return run


class CoreMl(Format):
    """image.mlpackage and text.mlpackage for iOS and macOS: one image, one text padded to the full length (int32).

    They can be written on Linux but run only on Apple's systems, so that they are not checked here.
    """

    name = "coreml"
    precisions = ("fp32", "fp16")
    package = "coremltools"
    install = "pip install coremltools 'numpy<2.4'"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import coremltools

        compute = coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32
        for tower, (graph, example) in zip(TOWERS, _single_examples(source), strict=True):
            program = _traced(graph, example.int() if tower == "text" else example).run_decompositions({})
            _remove_aliases(program.graph_module)
            model = coremltools.convert(
                program, minimum_deployment_target=coremltools.target.iOS17, compute_precision=compute
            )
            model.save(str(folder / f"{tower}.mlpackage"))

    def open(self, folder: Path) -> None:
        return None


def _single_examples(source: Source) -> Iterator[tuple[nn.Module, Tensor]]:
    from dcclip_cli.exporters.graphs import example_inputs

    yield from example_inputs(source, batch=1)


def _traced(graph: nn.Module, example: Tensor) -> Any:
    import torch

    with torch.no_grad():
        return torch.export.export(graph, (example,))


def _remove_aliases(module: Any) -> None:
    """Remove nodes that only rename a tensor: torch 2.13 writes them, coremltools 9 does not know them."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.alias.default":
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
