"""Each pair of export's options: the export is valid and gives what its model gives, or is refused with a reason."""

import random
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.exporters import FormatName, Precision
from dcclip_cli.exporters.export import FORMATS
from dcclip_cli.inference.encoder import Encoder, ShortEncoder, load_encoder
from dcclip_cli.model.reference import resolve
from tests.exporters.conftest import Exporting, student

OPTIONS: dict[str, Any] = {
    "format": get_args(FormatName),
    "model": ("test_resnet", "test_vit", "mobilenetv4_conv_small_050", "chinese_clip", "siglip", "bundle"),
    "precision": get_args(Precision),
    "projection": ("linear", "mlp"),
    "text": ("data", "teacher", "first"),  # the vocabulary; or bidirectional, pooled at <s>
    "preprocess": (None, "outside", "graph"),
    "dims": (None, 8),
    "samples": ("pairs", "images", None),
}
LARGEST = {"fp32": 1e-4, "fp16": 0.02, "int8": 2}  # difference of an embedding of length 1
LIMITS = {"min_agreement": 0, "min_centred_cosine": -1}  # of random towers, for which all images and texts look alike


def refusals(values: tuple[Any, ...]) -> list[str]:
    """What the error says about each set of options that exclude each other."""
    row = dict(zip(OPTIONS, values, strict=True))
    target = FORMATS[row["format"]]
    model = row["model"]
    is_mlp = row["projection"] == "mlp"
    is_bundle = model == "bundle"
    is_int8 = row["precision"] == "int8"
    excluded = {
        "does not support precision": row["precision"] not in target.precisions,
        "does not support preprocess": row["preprocess"] not in (None, *target.preprocess),
        "does not support --dims": row["dims"] and not target.has_graphs,
        "int8 needs calibration images": is_int8 and row["samples"] is None and not is_bundle,
        "is not an open_clip model": target.name == "open_clip" and model in ("chinese_clip", "siglip"),
        "is not one matrix without a bias": target.name == "transformers" and model.startswith("test_") and is_mlp,
        "is bidirectional": row["text"] == "first"
        and target.name in ("transformers", "sentence-transformers")
        and model.startswith(("test_", "mobilenet")),
        "uses its classifier layer": model.startswith("mobilenet") and is_mlp,
        "is a bundle and cannot|is a bundle in .* and cannot|is an exported bundle: --dims": is_bundle
        and (not target.from_onnx or row["dims"] or (target.rounds and is_int8)),
    }
    return [reason for reason, is_excluded in excluded.items() if is_excluded]


def covering(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Few of the rows that have each pair of values of all; allpairspy with a filter leaves some pairs out."""
    pairs = {row: {*combinations(enumerate(row), 2)} for row in rows}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        pair = min(missing, key=str)
        chosen.append(max([row for row in rows if pair in pairs[row]][:30], key=lambda row: len(missing & pairs[row])))
        missing -= pairs[chosen[-1]]
    return chosen


ROWS = [*product(*OPTIONS.values())]
random.Random(0).shuffle(ROWS)
ACCEPTED = covering([row for row in ROWS if not refusals(row)])
REFUSED = [*{(row[0], *refusals(row)): row for row in ROWS if len(refusals(row)) == 1}.values()]
SLOW = [row for row in ACCEPTED if FORMATS[row[0]].from_onnx and row[1] != "bundle"]  # traced


def embeddings(encoder: Encoder) -> np.ndarray:
    """Of two square images, and of three texts, together and alone."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    images = [Image.fromarray(levels).resize((side, side)) for levels, side in zip(noise, (90, 40), strict=True)]
    texts = ["红色的圆", "a blue moon", "一张很长的图片 of a green triangle"]
    pixels = np.stack([encoder.preprocess(image) for image in images])
    return np.concatenate([encoder.encode_pixels(pixels), encoder.encode_texts(texts), encoder.encode_texts(texts[:1])])


def check_files(folder: Path, precision: str, is_graph: bool) -> None:
    """Graphs are valid ONNX and take what `preprocess` says; weights are in the precision."""
    for file in folder.rglob("*.onnx"):
        onnx.checker.check_model(file, full_check=True)
        graph = onnx.load(file).graph
        types = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in graph.initializer}
        assert ("FLOAT16" in types, "INT8" in types) == (precision == "fp16", precision == "int8")
        assert file.name != "image.onnx" or (graph.input[0].name == "rgb_image") == is_graph
    for file in folder.glob("*.safetensors"):
        assert (torch.float16 in {weight.dtype for weight in load_file(file).values()}) == (precision == "fp16")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(row, id="-".join(map(str, row)), marks=[pytest.mark.slow] * (row in SLOW))
        for row in ACCEPTED + REFUSED
    ],
)
def test_an_export_gives_what_its_model_gives_or_is_refused(
    values: tuple[Any, ...], export_model: Exporting, pictures: list[Path], request: Any, tmp_path: Path
) -> None:
    row = dict(zip(OPTIONS, values, strict=True))
    fixture = request.getfixturevalue
    target = FORMATS[row["format"]]
    options = dict[str, Any](parity=LIMITS)
    options |= {name: row[name] for name in ("format", "precision", "preprocess", "dims") if row[name]}
    options["data"] = fixture("pairs_file") if row["samples"] == "pairs" else None
    options["calibration"] = str(pictures[0].parent) if row["samples"] == "images" else None

    def model() -> str | Path:
        if row["model"] == "bundle":
            return export_model(out="bundle", precision=options.pop("precision"), parity=LIMITS).folder
        if row["model"] in ("chinese_clip", "siglip"):
            return f"hf:{fixture(row['model'] + '_folder')}"
        teacher = fixture("altclip_folder") if row["text"] == "teacher" else None
        pooling = "first" if row["text"] == "first" else None
        return student(tmp_path / "student", row["model"], teacher, pooling=pooling, projection=row["projection"])

    reasons = refusals(values)
    if target.name == "mnn" and row["model"] in ("chinese_clip", "siglip"):  # whose attention is masked
        reasons.append("MNN cannot convert text.onnx: .*IsNaN")
    if reasons:
        with pytest.raises(DcclipError, match=f"{reasons[0]}|is not installed"):
            export_model(model(), **options)
        assert not (tmp_path / "out").exists()
        return
    pytest.importorskip(target.package, exc_type=ImportError)
    if target.name == "web":
        fixture("packages")
    original = model()
    is_graph = (row["preprocess"] or target.preprocess[0]) == "graph"
    folder = export_model(original, **options).folder
    check_files(folder, row["precision"], is_graph)
    encoder = load_encoder(resolve(str(original)), "cpu")
    expected = embeddings(ShortEncoder(encoder, row["dims"]) if row["dims"] else encoder)
    exports = [exported] if (exported := target.open(folder)) else []
    if target.name == "sentence-transformers" and row["model"].startswith("test_") and row["projection"] == "mlp":
        with pytest.raises(DcclipError, match="has a module Router after the towers"):
            load_encoder(resolve(str(folder)), "cpu")
    elif target.name in ("onnx", "web", "open_clip", "transformers", "sentence-transformers"):
        exports.append(load_encoder(resolve(str(folder)), "cpu"))
    for encoder in exports:
        vectors = embeddings(encoder)
        assert np.abs(vectors - expected).max() < LARGEST[row["precision"]] + 0.01 * is_graph
        assert (vectors * expected).sum(axis=1).min() > 0.9
