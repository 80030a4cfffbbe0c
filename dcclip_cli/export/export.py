"""From a model directory to a bundle that runs without torch, proven to say the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dcclip_cli.data.batches import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.export.parity import Parity, compare
from dcclip_cli.export.samples import calibration_batches, from_pairs, made_up
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.options import Options
from dcclip_cli.predict.bundle import DESCRIPTION, FORMAT, TOKENIZER, Bundle
from dcclip_cli.predict.runtime import PLAIN_PROMPTS
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions

if TYPE_CHECKING:
    from dcclip_cli.model.towers import OpenClipTowers

Precision = Literal["fp32", "int8"]
MAX_DIFFERENCE = 1e-4  # of fp32 graphs; measured: below 1e-5 over 26 image and 9 text towers
MIN_AGREEMENT: dict[Precision, float] = {"fp32": 0.99, "int8": 0.9}


class ExportOptions(Options):
    """How a model leaves for the device."""

    format: Literal["onnx"] = Field("onnx", description="onnx: a graph for each tower, run by onnxruntime")
    precision: Precision = Field("fp32", description="int8: a quarter of the size, at some cost in accuracy")
    calibration_images: int = Field(128, ge=1, description="Training images that int8 takes its ranges from")
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="Share of images whose best text must stay; default 0.99 for fp32, 0.9 for int8"
    )


@dataclass(frozen=True)
class ExportResult:
    """The bundle's folder, how far it is from the original, and its size."""

    folder: Path
    parity: Parity
    size_bytes: int
    seconds: float


def export(
    *,
    options: ExportOptions,
    model: ModelReference,
    out: Path,
    data: DataOptions | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model's bundle to `out`, whole or not at all; what was there before is replaced.

    It is checked on `data.validation`, else on `data.train`, else on made-up images.
    Raises DcclipError where the bundle differs too much from the model, and for models that can't be exported.
    """
    from dcclip_cli.model.folder import load_folder, written_whole
    from dcclip_cli.predict.torch_runtime import TorchEncoder

    progress = progress or Silent()
    if model.kind != "folder":
        raise DcclipError(
            f"{model.target} is no model directory", "export the model directory that align or distill left"
        )
    pairs = (data.train or data.validation) if data else None
    if options.precision == "int8" and pairs is None:
        raise DcclipError("int8 needs images to calibrate on", "export with a recipe that has data, or say fp32")
    begin = time.perf_counter()
    checked_on = (data.validation or data.train) if data else None
    samples = from_pairs(Path(checked_on)) if checked_on else made_up()
    towers = load_folder(model.path)
    with written_whole(out) as folder, progress.task(f"export {towers.name}", 3) as task:
        _write_graphs(towers, folder, options, pairs)
        task.advance()
        shutil.copyfile(model.path / TOKENIZER, folder / TOKENIZER)
        about = _description(towers, folder, options.precision)
        _write_description(folder, about)
        bundle = Bundle(folder, "cpu")
        task.advance()
        parity = compare(TorchEncoder(towers), bundle, samples)
        _hold(parity, options)
        _write_description(folder, about | {"parity": asdict(parity)})
        task.advance()
    return ExportResult(out, parity, bundle.size_bytes, time.perf_counter() - begin)


def _write_graphs(towers: OpenClipTowers, folder: Path, options: ExportOptions, pairs: str | None) -> None:
    from dcclip_cli.export.onnx import write_onnx
    from dcclip_cli.export.quantize import quantize

    write_onnx(towers, folder)
    if options.precision == "int8":
        assert pairs is not None and towers.preprocessing is not None
        quantize(folder, calibration_batches(Path(pairs), towers.preprocessing, options.calibration_images))


def _description(towers: OpenClipTowers, folder: Path, precision: Precision) -> dict[str, Any]:
    from dcclip_cli.model.tokenizer import load_tokenizer

    assert towers.preprocessing is not None
    return {
        "format": FORMAT,
        "kind": "bundle",
        "name": f"{towers.name}-{precision}",
        "precision": precision,
        "fingerprint": f"{towers.fingerprint}-{precision}",
        "parameters": towers.parameters_count(),
        "preprocessing": towers.preprocessing.to_config(),
        "logit_scale": towers.logit_scale,
        "logit_bias": towers.logit_bias,
        "languages": list(PLAIN_PROMPTS),
        "prompts": {language: list(templates) for language, templates in PLAIN_PROMPTS.items()},
        "context_length": towers.model.text.context_length,
        "padding_id": load_tokenizer(folder).token_to_id("<pad>"),
        "tokenizer_sha256": hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest(),
        "versions": versions(),
    }


def _write_description(folder: Path, about: dict[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _hold(parity: Parity, options: ExportOptions) -> None:
    """Raises DcclipError where the export is too far from the original."""
    wanted = options.min_agreement if options.min_agreement is not None else MIN_AGREEMENT[options.precision]
    difference = max(parity.image_max_difference, parity.text_max_difference)
    if options.precision == "fp32" and not difference <= MAX_DIFFERENCE:
        raise DcclipError(
            f"the exported graphs differ from the model by {difference:.2g}, more than {MAX_DIFFERENCE}",
            "this is a fault of the exporter for these towers; please report it with the recipe",
        )
    if not parity.agreement >= wanted:
        raise DcclipError(
            f"the {options.precision} bundle agrees with the model on {parity.agreement:.1%} of {parity.images} images "
            f"({parity.source}), less than {wanted:.1%}",
            "export with --precision fp32, train longer, or lower export.min_agreement",
        )
