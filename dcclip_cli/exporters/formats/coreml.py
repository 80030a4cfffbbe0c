"""CoreML packages, for iOS and macOS. They can be made on Linux, but run on Apple's systems alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.exporters.formats.base import Format
from dcclip_cli.exporters.names import Precision

if TYPE_CHECKING:
    from dcclip_cli.exporters.source import Source


class CoreMl(Format):
    """image.mlpackage takes one picture, text.mlpackage one text padded to the full length (int32)."""

    name = "coreml"
    precisions = ("fp32", "fp16")
    package = "coremltools"
    install = "pip install coremltools 'numpy<2.4'"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import coremltools
        import torch

        from dcclip_cli.exporters.graphs import example_inputs

        compute = coremltools.precision.FLOAT16 if precision == "fp16" else coremltools.precision.FLOAT32
        for tower, (graph, example) in zip(("image", "text"), example_inputs(source, batch=1), strict=True):
            example = example.int() if tower == "text" else example
            with torch.no_grad():
                program = torch.export.export(graph, (example,)).run_decompositions({})
            _without_aliases(program.graph_module)
            model = coremltools.convert(
                program, minimum_deployment_target=coremltools.target.iOS17, compute_precision=compute
            )
            model.save(str(folder / f"{tower}.mlpackage"))

    def open(self, folder: Path) -> None:
        return None


def _without_aliases(module: Any) -> None:
    """Take out nodes that only give a tensor another name: torch 2.13 writes them, coremltools 9 doesn't know them."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.alias.default":
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
