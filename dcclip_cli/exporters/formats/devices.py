"""Formats for device runtimes: OpenVINO, ExecuTorch, LiteRT and MNN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.exporters import Precision
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.onnx_graph import OnnxGraph
from dcclip_cli.exporters.rounding import with_rounded_tables
from dcclip_cli.exporters.source import Source
from dcclip_cli.inference.onnx_encoder import IMAGE, TEXT, Run


class OpenVino(Format):
    """image.xml and text.xml for Intel's CPUs, GPUs and NPUs, of any batch size and text length;
    checked on the CPU.
    """

    name = "openvino"
    precisions = ("fp32", "fp16", "int8")
    package = "openvino"
    install = "pip install openvino"
    from_onnx = True
    takes_patches = True
    files = ("image.xml", "text.xml", "image.bin", "text.bin")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import openvino

        for graph, file in zip((IMAGE, TEXT), self.files, strict=False):
            openvino.save_model(
                openvino.convert_model(graphs / graph),
                folder / file,
                compress_to_fp16=precision == "fp16",
            )

    def runner(self, file: Path) -> Run:
        import openvino

        exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(file, "CPU", exact)
        return lambda items: np.array(compiled([items])[0])


class ExecuTorch(Format):
    """image.pte and text.pte for phones: PyTorch's own runtime on Android and iOS, here with
    XNNPACK kernels.
    """

    name = "executorch"
    precisions = ("fp32",)
    package = "executorch"
    install = Message("pip install executorch, in a separate environment (1.6 GB)")
    files = ("image.pte", "text.pte")
    is_single = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from dcclip_cli.exporters.graphs import single_examples

        for file, (graph, example) in zip(self.files, single_examples(source), strict=True):
            with torch.no_grad():
                program = torch.export.export(graph, (example,))
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
            (folder / file).write_bytes(lowered.buffer)

    def runner(self, file: Path) -> Run:
        import torch
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(str(file))
        method = program.load_method("forward")

        def run(
            item: np.ndarray, _program: Any = program
        ) -> np.ndarray:  # the program has to outlive its method
            return method.execute([torch.from_numpy(item.copy())])[0].clone().numpy()

        return run


class LiteRt(Format):
    """image.tflite and text.tflite for LiteRT (TensorFlow Lite), on Android and microcomputers.

    In int8 all weights are rounded, the embedding table too, and activations in ranges computed at
    run time. Fixed ranges include the normalisation at the end: the quick start's student lost
    0.007 of cosine for 0.03 ms.
    """

    name = "litert"
    precisions = ("fp32", "int8")
    package = "litert_torch"
    install = Message("pip install litert-torch, in a separate environment (2.1 GB)")
    files = ("image.tflite", "text.tflite")
    is_single = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import litert_torch

        from dcclip_cli.exporters.graphs import single_examples

        for file, (graph, example) in zip(self.files, single_examples(source), strict=True):
            litert_torch.convert(graph, (example,)).export(str(folder / file))
            if precision == "int8":
                from ai_edge_quantizer import quantizer, recipe

                rounding = quantizer.Quantizer(str(folder / file))
                rounding.load_quantization_recipe(recipe.dynamic_wi8_afp32())
                rounding.quantize().export_model(str(folder / file), overwrite=True)

    def runner(self, file: Path) -> Run:
        from ai_edge_litert.interpreter import Interpreter

        run = Interpreter(str(file)).get_signature_runner()
        [(name, detail)] = run.get_input_details().items()
        return lambda item: np.array(
            next(iter(run(**{name: item.astype(detail["dtype"])}).values()))
        )


class Mnn(Format):
    """image.mnn and text.mnn for MNN on phones and small boards, converted from the ONNX graphs.

    Any batch size and text length. In int8, MNN rounds the weights of the image tower itself; of
    the text tower only the embedding tables are rounded, before: with rounded dense layers the
    starter's fails its parity check. The better rounding of MNN, --hqq, takes minutes on busy
    cores: its threads wait in a loop.
    """

    name = "mnn"
    precisions = ("fp32", "int8")
    rounds = True
    package = "MNN"
    install = "pip install MNN"
    from_onnx = True
    files = ("image.mnn", "text.mnn")

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        from onnx import helper

        # In a process of its own, since it prints on stdout. The program mnnconvert would also
        # install a package that reports its use to the maker; the function does not.
        convert = "import sys, _tools; _tools.mnnconvert(sys.argv)"
        for name, file in zip((IMAGE, TEXT), self.files, strict=True):
            graph = OnnxGraph.load(graphs / name)
            prepared = graphs / f"mnn-{name}"
            if precision == "int8" and name == TEXT:
                graph = with_rounded_tables(graph)
            for node in (
                graph.proto.graph.node
            ):  # MNN 3.6 ignores axes as opset 18 has them: it takes a batch's norm
                if node.op_type == "ReduceL2":
                    axes = graph.weights[node.input.pop()].tolist()
                    node.attribute.append(helper.make_attribute("axes", axes))
            graph.save(prepared)
            arguments = [
                "-f",
                "ONNX",
                "--modelFile",
                str(prepared),
                "--MNNModel",
                str(folder / file),
            ]
            if precision == "int8" and name == IMAGE:
                arguments += ["--weightQuantBits", "8"]
            command = [sys.executable, "-P", "-c", convert, *arguments, "--bizCode", "dcclip"]
            done = subprocess.run(command, capture_output=True, text=True)
            if not (folder / file).is_file():
                lines = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
                reason = [line for line in lines if "Not Support" in line] or lines[
                    -1:
                ]  # which operator
                hint = Message("use --format onnx or litert")
                if "executable stack" in reason[0]:  # which glibc 2.43 refuses
                    hint = Message(
                        "set GLIBC_TUNABLES=glibc.rtld.execstack=2 and run the same command again"
                    )
                raise DcclipError("MNN cannot convert {}: {}", hint, name, reason[0][:200])

    def runner(self, file: Path) -> Run:
        with _stdout_to_stderr():
            from MNN import expr, nn

        # Threads of MNN wait in a loop for each other: four on two busy cores take ten times as
        # long as one.
        runtime = nn.create_runtime_manager(
            ({"backend": "CPU", "precision": "high", "numThread": 1},)
        )
        module = nn.load_module_from_file(str(file), [], [], runtime_manager=runtime)

        def run(item: np.ndarray) -> np.ndarray:
            is_text = item.dtype != np.float32
            item = np.ascontiguousarray(item, np.int32 if is_text else np.float32)
            tensor = expr.const(
                item, list(item.shape), expr.NCHW, expr.int if is_text else expr.float
            )
            return np.array(module.forward([tensor])[0].read())

        return run


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """While the block runs, what libraries print on stdout is on stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
