"""Export of a model to a format for deployment, checked against the model before it is moved into
place.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from dcclip_cli.core.checksums import read_record, write_record
from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.extensions import extension_errors, extension_name, import_class
from dcclip_cli.core.files import atomic_folder, file_sha256, partial, read_json
from dcclip_cli.core.options import Dims, Options
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.versions import versions
from dcclip_cli.data.dataset import find_dataset
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.unpaired import open_images
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.evaluate import EvalOptions, open_datasets
from dcclip_cli.exporters import FormatName, Precision, Preprocess
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.formats.devices import ExecuTorch, LiteRt, Mnn, OpenVino
from dcclip_cli.exporters.formats.onnx import Immich, Onnx, TransformersJs
from dcclip_cli.exporters.formats.pytorch import OpenClip, SentenceTransformers, Transformers
from dcclip_cli.exporters.formats.web import Web
from dcclip_cli.exporters.parity import TOWERS, Parity, ParityTest, Thresholds, TowerEmbeddings
from dcclip_cli.exporters.quantize import BundleGraphs, OnnxGraphs
from dcclip_cli.exporters.samples import recipe_samples, samples_from
from dcclip_cli.exporters.source import Source, check_alike, load_source, prepare
from dcclip_cli.inference.encoder import PLAIN_PROMPTS, Encoder, shortened
from dcclip_cli.inference.onnx_encoder import DESCRIPTION, TOKENIZER, read_description
from dcclip_cli.model.model_dir import model_fingerprint
from dcclip_cli.model.precision import NotFiniteError
from dcclip_cli.model.preprocess import Patches
from dcclip_cli.model.reference import ModelSource, furthest_stage

# A new format is a class in formats/, a name in `FormatName`, and a line here.
FORMATS: Mapping[FormatName, Format] = {
    target.name: target
    for target in (
        *(
            Onnx(),
            Web(),
            TransformersJs(),
            Immich(),
            OpenClip(),
            Transformers(),
            SentenceTransformers(),
        ),
        *(OpenVino(), Mnn(), ExecuTorch(), LiteRt()),
    )
}


def format_of(name: FormatName) -> Format:
    """The format of that name, dcclip's or an extension's."""
    target: Format = FORMATS[name] if name in FORMATS else import_class(name, Format)()
    return target


EXPORT_FORMAT = 1  # version of the parity report and of the inputs of `made_from`
_MODEL_BATCH = 32  # of the model that exports are compared with: bounds its memory


class ExportOptions(Options):
    """Format and precision of an export, and the checks that it must pass."""

    format: Annotated[FormatName, *extension_name(Format)] = Field(
        "onnx", description="Export format, named after its runtime (docs/how-to/deploy.md)"
    )
    precision: Precision = Field(
        "fp32",
        description="Precision; int8 is a quarter of the size and less accurate. Bundles keep "
        "their precision",
    )
    preprocess: Preprocess = Field(
        "outside",
        description="Where images are resized, cropped and normalized; graph: image.onnx takes "
        "uint8 RGB of any size",
    )
    calibration: str | None = Field(
        None,
        description="Pairs or images to calibrate int8 activation ranges; default: the recipe's data",
    )
    calibration_images: int = Field(
        128, ge=1, le=1_000_000, description="Maximum calibration images"
    )
    prompts: dict[Language, tuple[str, ...]] | None = Field(
        None,
        description="Prompt templates by language for predict; {} is the label: {en: ['a photo "
        "of a {}.']}",
    )
    dims: Dims | None = Field(
        None,
        description="Number of leading dimensions that the exported graphs return, for models "
        "trained with `dims`; "
        "null: all",
    )
    parity: Thresholds = Field(
        Thresholds(), description="How far the export may differ from the model"
    )

    @field_validator("prompts")
    @classmethod
    def _have_a_place_for_the_label(cls, prompts: Mapping[Language, Sequence[str]] | None) -> Any:
        for language, templates in (prompts or {}).items():
            if not templates or not all("{}" in template for template in templates):
                raise ValueError(
                    Message("every template for {} needs {{}} in place of the label", language)
                )
        return prompts


@dataclass(frozen=True)
class ExportResult:
    """An export. `parity` with the model is None if the format cannot be run here, and for one
    that already existed.
    """

    folder: Path
    format: FormatName
    parity: Parity | None
    size_bytes: int
    seconds: float
    already_finished: bool = False


def export(
    *,
    options: ExportOptions,
    model: ModelSource,
    out: Path,
    data: DataOptions | None = None,
    evaluation: EvalOptions | None = None,
    fresh: bool = True,
    progress: Progress | None = None,
    fp32_graphs: Path | None = None,
) -> ExportResult:
    """Write a model in a format to `out`, atomically.

    An export in `out` is replaced; without `fresh` it is kept if it was made from this model with
    these options. It is checked on `data.validation`, else on `data.train`, else on `data.images`
    with texts of `data.texts`, else on the calibration images, else on made-up images; and on the
    test sets of `evaluation`. Graphs in the folder `fp32_graphs` are in place of those that torch
    would trace; it gets the ones that it lacks. Raises DcclipError if the export differs too much
    from the model, and for models that cannot be exported.
    """
    progress = progress or Silent()
    target = format_of(options.format)
    options = _resolved(options, model, target)
    made_from = _made_from(model, options)
    if _is_made(out, made_from, fresh):
        return ExportResult(out, options.format, None, _size_bytes(out), 0.0, already_finished=True)
    target.check(options.precision, options.preprocess, options.dims)
    calibration = _calibration(
        options, data, needed=options.precision == "int8" and model.kind != "bundle"
    )
    begin = time.perf_counter()
    target.prepare(progress)
    samples = samples_from(recipe_samples(data, "validation", "train") or calibration)
    samples = samples.squares() if target.crops_down else samples
    comparison = ParityTest(
        samples, _classification_sets(evaluation), options.parity.images, progress
    )
    source = load_source(model)
    _check_takes(target, source, options)
    source.dims = options.dims
    with (
        atomic_folder(out) as folder,
        partial(out.with_name(f"{out.name}.graphs"), folder=True) as temporary,
    ):
        graphs: BundleGraphs | OnnxGraphs
        if model.kind == "bundle":
            graphs = BundleGraphs(source, temporary, options.preprocess)
        else:
            images = options.calibration_images
            precision = "fp32" if target.rounds else options.precision
            graphs = OnnxGraphs(
                source, temporary, precision, calibration, images, options.preprocess, fp32_graphs
            )

        def write() -> Encoder | None:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            written = graphs.write() if target.from_onnx else temporary
            with extension_errors(options.format):
                target.write(source, written, folder, options.precision)
            _add(folder, {**_description(source, folder, options), "made_from": made_from})
            return target.open(folder)

        short = shortened(source.encoder, options.dims, progress)
        before = {tower: comparison.embed(short, tower, (_MODEL_BATCH,)) for tower in TOWERS}
        parity = _loosen_until_close(write, graphs, comparison, before, options, progress)
        _add(folder, {"parity": asdict(parity) if parity else None, "kept_fp32": graphs.kept})
        if not (card := folder / "README.md").exists():
            card.write_text(
                _card(read_json(folder / DESCRIPTION, ""), options.format, parity), encoding="utf-8"
            )
    return ExportResult(out, options.format, parity, _size_bytes(out), time.perf_counter() - begin)


def _classification_sets(evaluation: EvalOptions | None) -> list[DataSet]:
    """The test sets of `evaluation` with one class per image."""
    if evaluation is None or evaluation.task == "twins":
        return []
    opened = open_datasets(
        evaluation.model_copy(update={"task": "zero-shot", "templates": "own", "shots": ()})
    )
    return [
        test
        for test in opened
        if test.metric in ("top1", "mean_per_class") and not test.is_retrieval
    ]


def _loosen_until_close(
    write: Callable[[], Encoder | None],
    graphs: BundleGraphs | OnnxGraphs,
    comparison: ParityTest,
    before: Mapping[str, TowerEmbeddings],
    options: ExportOptions,
    progress: Progress,
) -> Parity | None:
    """Write the export, with more of it in fp32 each time, until it is close enough; None if it
    cannot run here.
    """
    changed: Collection[str] = TOWERS
    after: dict[str, TowerEmbeddings] = {}
    while (encoder := write()) is not None:
        parity: Parity | None = None
        after = {tower: embeddings for tower, embeddings in after.items() if tower not in changed}
        try:
            after |= {
                tower: comparison.embed(encoder, tower) for tower in TOWERS if tower not in after
            }
        except NotFiniteError as error:  # fp16 overflows
            summary = error.what
            shortfalls = [error.what]
        else:
            parity = replace(
                comparison.parity(before, after), int8_largest_pair_sum=graphs.largest_pair_sum
            )
            shortfalls = parity.shortfalls(
                options.parity.limits(options.precision, options.preprocess)
            )
            tests = (
                Message(
                    ", {:.1%} in {} (top-1 {:.1%} -> {:.1%})",
                    test.agreement,
                    language,
                    test.before,
                    test.after,
                )
                for language, test in parity.by_language().items()
            )
            summary = Message(
                "{:.1%} agree on {}{}", parity.agreement, parity.source, joined("", tests)
            )
        attempt = joined(
            "", (Message("{} kept {}, ", tower, parts) for tower, parts in graphs.kept.items())
        )
        progress.say(Message("export: {}{}", attempt, summary))
        if not shortfalls:
            return parity
        del encoder  # its memory is needed for the next one
        if not (changed := graphs.loosen(parity)):
            hint = Message("use a higher --precision, train longer, or reduce export.parity")
            if options.precision == "fp32":
                hint = Message("report this exporter bug, with the recipe")
            raise DcclipError(
                "the {} export in {} differs too much from the model: {}",
                hint,
                options.format,
                options.precision,
                joined("; ", shortfalls),
            )
    return None


def _resolved(options: ExportOptions, model: ModelSource, target: Format) -> ExportOptions:
    """The options with what the format and the model decide. Raises DcclipError where these
    exclude each other.
    """
    options_set = options.model_fields_set
    if "preprocess" not in options_set:
        options = options.model_copy(update={"preprocess": target.preprocess[0]})
    if model.kind != "bundle":
        return options
    description = read_description(model.path)[0]
    if not target.from_onnx or (target.rounds and description.precision == "int8"):
        reason = Message(
            "{} is a bundle and cannot be exported with --format {}", model.target, target.name
        )
    elif "precision" in options_set and options.precision != description.precision:
        reason = Message(
            "{} is a bundle in {} and cannot be converted to {}",
            model.target,
            description.precision,
            options.precision,
        )
    elif "preprocess" in options_set and options.preprocess == "outside" != description.preprocess:
        reason = Message(
            "{} is a bundle whose preprocessing cannot be moved out of the graph", model.target
        )
    elif options.dims is not None:
        reason = Message(
            "{} is an exported bundle: --dims cannot shorten its embeddings", model.target
        )
    else:
        preprocess = "graph" if description.preprocess == "graph" else options.preprocess
        return options.model_copy(
            update={"precision": description.precision, "preprocess": preprocess}
        )
    hint = Message("export the model directory written by align or distill, or remove the option")
    if (trained := furthest_stage(model.path.parent, trained=True)) not in (None, model.path):
        hint = Message("use --model {}, or remove the option", trained)
    raise DcclipError(reason, hint)


def _is_made(out: Path, made_from: str, fresh: bool) -> bool:
    """Whether `out` has the export `made_from` this, kept unless `fresh`. Raises DcclipError for
    anything else.
    """
    hint = Message("choose a new folder with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / DESCRIPTION).is_file():
        raise DcclipError("{} is not empty and is not an export", hint, out)
    content = read_json(out / DESCRIPTION, hint)
    if "made_from" not in content and content.get("kind") != "bundle":
        raise DcclipError("{} contains a model, not an export", hint, out)
    if is_kept := not fresh and content.get("made_from") == made_from:
        read_record(out / DESCRIPTION, Message("create it again with --fresh")).check()
    return is_kept


def _check_takes(target: Format, source: Source, options: ExportOptions) -> None:
    """Raise DcclipError if the format cannot have the source's images, or its tokenizer."""
    if isinstance(source.preprocessing, Patches) and not (
        target.takes_patches and options.preprocess == "outside"
    ):
        reason = Message(
            "{} keeps the aspect ratio of images (NaFlex); this format does not support it",
            source.encoder.name,
        )
        raise DcclipError(reason, "use --format onnx or openvino, without --preprocess graph")
    if target.reads_tokens_itself:
        check_alike(source.tokenizer, source.encoder.name)


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _calibration(
    options: ExportOptions, data: DataOptions | None, needed: bool
) -> PairDataset | None:
    """The images to calibrate on that are named, or if they are `needed` those of the recipe's
    data, else None.
    """
    if options.calibration:
        return find_dataset(Path(options.calibration)) or open_images(Path(options.calibration))
    samples = recipe_samples(data, "train", "validation") if needed else None
    if needed and samples is None:
        raise DcclipError(
            "int8 needs calibration images",
            "give a folder of images with --calibration, or a recipe with data",
        )
    return samples


def _made_from(model: ModelSource, options: ExportOptions) -> str:
    """A hash of the model's files, if it is a local directory, or its name, and of the options."""
    identity = f"{model.kind}:{model.target}"
    if model.kind == "folder":
        identity = model_fingerprint(model.path)
    elif model.path.is_dir():  # of another library
        identity = model_fingerprint(model.path, sorted(file.name for file in model.path.iterdir()))
    return hashlib.sha256(
        f"{EXPORT_FORMAT} {identity} {options.model_dump_json()}".encode()
    ).hexdigest()


def _description(source: Source, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """The content of dcclip.json; nothing for a model directory, which has its own. Adds a missing
    tokenizer.json.
    """
    if options.format == "open_clip":
        return {}
    if not (folder / TOKENIZER).exists():
        prepare(source).save(str(folder / TOKENIZER), pretty=False)
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    recipe_prompts: Mapping[Any, Sequence[str]] = options.prompts or {}
    model = source.encoder
    name = format_of(options.format).name
    prompts = {**PLAIN_PROMPTS, **model.prompts, **recipe_prompts}
    known_words = model.known and model.known.within(options.dims)
    return {
        "kind": "bundle" if name in ("onnx", "web") else name,
        "name": f"{model.name}-{options.precision}",
        "precision": options.precision,
        "fingerprint": model_fingerprint(folder, sorted(files - {DESCRIPTION})),
        "model_fingerprint": model.fingerprint,
        "parameters": model.parameters,
        "preprocessing": source.preprocessing.to_config(),
        "preprocess": options.preprocess,
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "known": asdict(known_words) if known_words else None,
        "languages": list(prompts),
        "prompts": {language: list(templates) for language, templates in prompts.items()},
        "context_length": source.context_length,
        "padding_id": source.padding_id,
        "fixed_length": source.fixed,
        "tokenizer_sha256": file_sha256(folder / TOKENIZER),
        **({"dims": options.dims} if options.dims else {}),
        "trained_dims": [dims for dims in model.trained_dims if dims <= (options.dims or dims)],
        "versions": versions(),
    }


def _card(content: Mapping[str, Any], name: FormatName, parity: Parity | None) -> str:
    same = "have the same best text as with the model."
    agreement = f"Of {parity.images} images, {parity.agreement:.1%} {same}\n" if parity else ""
    return f"""---
library_name: {"onnx" if name in ("immich", "web") else name}
language: [zh, en]
pipeline_tag: zero-shot-image-classification
---
# {content["name"]}

A Chinese-English CLIP for {name} in {content["precision"]}, exported by dcclip, {content["parameters"]:,} parameters.
{agreement}The full record is in `dcclip.json`.
"""


def _add(folder: Path, entries: dict[str, Any]) -> None:
    """Add to an export's dcclip.json, new or that of a copied model directory, and list the files
    in it.
    """
    file = folder / DESCRIPTION
    content = json.loads(file.read_text("utf-8")) if file.exists() else {}
    write_record(file, {**content, **entries})
