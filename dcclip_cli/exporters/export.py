"""From any model to something that a device runs, proven to say the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import Classes as SetClasses
from dcclip_cli.eval.evaluate import EvalOptions, open_datasets
from dcclip_cli.exporters import FormatName, Precision
from dcclip_cli.exporters.formats import FORMATS
from dcclip_cli.exporters.parity import DEFAULTS, Classes, HeldOutImages, Limits, Original, Parity, Thresholds
from dcclip_cli.exporters.quantize import OnnxGraphs
from dcclip_cli.exporters.samples import samples_from
from dcclip_cli.exporters.source import Source, load_source
from dcclip_cli.model.precision import NotFiniteError
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.model.tokenizer import copy_tokenizer
from dcclip_cli.options import Options
from dcclip_cli.predict.onnx_encoder import DESCRIPTION, FORMAT, TOKENIZER
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions

EXPORT_FORMAT = 3  # of the parity report and of what `made_from` compares


class ExportOptions(Options):
    """How a model leaves for the device."""

    format: FormatName = Field("onnx", description="What runs it: onnxruntime, or another runtime (docs/deploy.md)")
    precision: Precision = Field("fp32", description="int8: a quarter of the size, at some cost in accuracy")
    calibration: str | None = Field(
        None, description="Pairs or a folder of pictures that int8 takes its ranges from; default: the training pairs"
    )
    calibration_images: int = Field(128, ge=1, description="How many of these")
    prompts: dict[Language, tuple[str, ...]] | None = Field(
        None, description="Templates by language that predict puts labels into: {en: ['a photo of a {}.']}"
    )
    parity: Thresholds = Field(Thresholds(), description="How far the export may be from the model")

    @field_validator("prompts")
    @classmethod
    def _have_a_place_for_the_label(cls, prompts: Mapping[Language, Sequence[str]] | None) -> Any:
        for language, templates in (prompts or {}).items():
            if not templates or not all("{}" in template for template in templates):
                raise ValueError(f"each template for {language} needs {{}}, the place of the label")
        return prompts


@dataclass(frozen=True)
class ExportResult:
    """The export's folder, how far it is from the original (None where it can't be run here), and its size."""

    folder: Path
    parity: Parity | None
    size_bytes: int
    seconds: float


def export(
    *,
    options: ExportOptions,
    model: ModelReference,
    out: Path,
    data: DataOptions | None = None,
    evaluation: EvalOptions | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model in a format to `out`, whole or not at all; what was there before is replaced.

    It is checked on `data.validation`, else on `data.train`, else on the calibration pictures, else on made-up images;
    and on the test sets of `evaluation`.
    Raises DcclipError where the export differs too much from the model, and for models that can't be exported.
    """
    from dcclip_cli.files import atomic_folder

    progress, target = progress or Silent(), FORMATS[options.format]
    target.check(options.precision)
    pictures = options.calibration or ((data.train or data.validation) if data else None)
    calibration = Path(pictures) if pictures else None
    if options.precision == "int8" and calibration is None:
        raise DcclipError(
            "int8 needs images to calibrate on", "name a folder of pictures with --calibration, or a recipe with data"
        )
    begin = time.perf_counter()
    checked = (data.validation or data.train) if data else None
    checked_on = Path(checked) if checked else calibration
    samples, tests = samples_from(checked_on), _tests(evaluation)
    source = load_source(model)
    original = Original(source.encoder, samples, tests, options.parity.images, progress)
    limits = _limits(options)
    with TemporaryDirectory(prefix="dcclip-export-") as temporary, atomic_folder(out) as folder:
        graphs = OnnxGraphs(source, Path(temporary), options.precision, calibration, options.calibration_images)
        for attempt in _attempts(graphs, target.from_onnx):
            _clear(folder)
            target.write(source, attempt, folder, options.precision)
            _describe(source, folder, options, model)
            encoder = target.open(folder)
            if encoder is None:
                parity = None
                break
            try:
                parity = replace(original.compare(encoder), int8_largest_pair_sum=graphs.largest_pair_sum)
            except NotFiniteError as error:  # fp16 overflows
                parity, shortfalls, found = None, [error.what], error.what
            else:
                shortfalls = parity.shortfalls(limits)
                found = f"{parity.agreement:.1%} agree on {samples.source}{_languages(parity)}"
            progress.say(f"export: {graphs.said}{found}")
            if not shortfalls:
                break
            if (parity and parity.overflows) or not graphs.loosen(parity):
                raise DcclipError(
                    f"the {options.format} export in {options.precision} is too far from the model: "
                    + "; ".join(shortfalls),
                    _hint(options),
                )
        _add(folder / DESCRIPTION, {"parity": asdict(parity) if parity else None, **graphs.kept()})
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return ExportResult(out, parity, size, time.perf_counter() - begin)


def made_from(model: ModelReference, options: ExportOptions) -> str:
    """A hash that changes with the model, where it is a directory here, and with the options."""
    from dcclip_cli.model.model_dir import model_fingerprint

    identity = model_fingerprint(model.path) if model.kind == "folder" else f"{model.kind}:{model.target}"
    return hashlib.sha256(f"{EXPORT_FORMAT} {identity} {options.model_dump_json()}".encode()).hexdigest()


def _attempts(graphs: OnnxGraphs, needed: bool) -> Iterator[Path]:
    """The folder of the ONNX graphs, written anew as often as the caller asks."""
    while True:
        yield graphs.write() if needed else graphs.folder


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _limits(options: ExportOptions) -> Limits:
    given = {key: value for key, value in options.parity.model_dump(exclude={"images"}).items() if value is not None}
    return Limits(**(asdict(DEFAULTS[options.precision]) | given))


def _hint(options: ExportOptions) -> str:
    if options.precision == "fp32":
        return "this is a fault of the exporter for these towers; please report it with the recipe"
    better = "fp16 or fp32" if options.precision == "int8" else "fp32"
    return f"export with --precision {better}, train longer, or lower export.parity"


def _languages(parity: Parity) -> str:
    return "".join(
        f", {one.agreement:.1%} in {language} (top-1 {one.before:.1%} -> {one.after:.1%})"
        for language, one in parity.by_language().items()
    )


def _tests(evaluation: EvalOptions | None) -> list[HeldOutImages]:
    if evaluation is None:
        return []
    opened = open_datasets(evaluation.model_copy(update={"task": "zero-shot", "templates": "own"}))
    return [
        HeldOutImages(
            one.name,
            len(one.images),
            one.images.load,
            {
                language: Classes(of.names, of.templates, of.labels[np.arange(len(one.images))])
                for language, of in one.truth.items()
                if isinstance(of, SetClasses)
            },
        )
        for one in opened
        if one.metric in ("top1", "mean_per_class") and not one.is_retrieval  # one class to an image
    ]


def _describe(source: Source, folder: Path, options: ExportOptions, model: ModelReference) -> None:
    """Write dcclip.json, and the tokenizer where the format has not brought its own."""
    from dcclip_cli.model.model_dir import model_fingerprint

    prompts = dict(source.encoder.prompts) | dict(options.prompts or {})
    if not (folder / TOKENIZER).exists() and options.format not in ("open_clip", "transformers"):
        copy_tokenizer(source.tokenizer).save(str(folder / TOKENIZER))
        if source.folder is not None:
            shutil.copyfile(source.folder / TOKENIZER, folder / TOKENIZER)
    about: dict[str, Any] = {}
    if options.format != "open_clip":  # a model directory says all this in its own way
        files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        about |= {
            "format": FORMAT,
            "kind": "bundle" if options.format == "onnx" else options.format,
            "name": f"{source.towers.name}-{options.precision}",
            "precision": options.precision,
            "fingerprint": model_fingerprint(folder, sorted(files - {DESCRIPTION})),
            "parameters": source.towers.parameters_count(),
            "preprocessing": source.preprocessing.to_config(),
            "logit_scale": source.towers.logit_scale,
            "logit_bias": source.towers.logit_bias,
            "languages": list(prompts),
            "prompts": {language: list(templates) for language, templates in prompts.items()},
            "context_length": source.context_length,
            "padding_id": source.padding_id,
            "fixed_length": source.fixed,
            "tokenizer_sha256": hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest(),
            "versions": versions(),
        }
    _add(folder / DESCRIPTION, {**about, "made_from": made_from(model, options)})


def _add(description: Path, more: dict[str, Any]) -> None:
    """Say more in a description, which there may be already or not."""
    about = json.loads(description.read_text("utf-8")) if description.exists() else {}
    about |= more
    description.write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
