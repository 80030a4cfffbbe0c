"""A dcclip model directory, bundle or any model that dcclip loads, as a model of mteb."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import Licenses

from dcclip_cli.eval.dataset import ImageTransform
from dcclip_cli.eval.leaderboards import mteb
from dcclip_cli.files import json_object
from dcclip_cli.inference.encoder import Encoder, load_encoder
from dcclip_cli.inference.zero_shot import text_embeddings
from dcclip_cli.model import Precision
from dcclip_cli.model.preprocess import first_frame
from dcclip_cli.model.reference import ModelReference, resolve
from dcclip_cli.run_dir import RECORD

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from PIL.Image import Image
    from torch.utils.data import DataLoader

_WHOLE = ImageTransform()
_FRAMEWORKS = {
    "folder": ["PyTorch", "safetensors"],
    "open_clip": ["PyTorch"],
    "hf": ["PyTorch", "Transformers"],
    "bundle": ["ONNX"],
}
_ISO = {"zh": "zho-Hans", "en": "eng-Latn"}
_EMBEDDINGS = ("token_embedding.weight", "word_embeddings.weight", "embed_tokens.weight")
_LONG = "猫 " * 4_096  # more tokens than any text tower takes


class DcclipEncoder(AbsEncoder):
    """Embeddings (N, D), float32, length 1, of images or of texts, computed as in `dcclip eval`."""

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        model: str = "",
        precision: Precision = "fp32",
        trust_remote_code: bool = False,
        **_: Any,
    ) -> None:
        """`model` is what `dcclip --model` takes, `model_name` what mteb calls it."""
        reference = replace(resolve(model or model_name), trust_remote_code=trust_remote_code)
        self.encoder = load_encoder(reference, device or "auto", precision)
        self.mteb_model_meta = None

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        transform: ImageTransform = _WHOLE,
        **kwargs: Any,
    ) -> np.ndarray:
        """`transform` is what a data set requires before the model's own preprocessing."""
        columns = inputs.dataset.column_names  # type: ignore[attr-defined]  # one of Hugging Face
        if "image" not in columns:
            texts = [text for batch in inputs for text in batch["text"]]
            place = {text: number for number, text in enumerate(dict.fromkeys(texts))}  # equal texts, equal embeddings
            return text_embeddings(self.encoder, list(place))[[place[text] for text in texts]]
        preprocessing = dict(self.encoder.preprocessing)

        def pixels(image: Image) -> np.ndarray:
            return self.encoder.preprocess(transform(first_frame(image), preprocessing))

        batches = (np.stack([pixels(image) for image in batch["image"]]) for batch in inputs)
        return np.concatenate([self.encoder.encode_pixels(batch) for batch in batches])


def model_meta(
    model: str | os.PathLike[str] | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    **known: Any,
) -> ModelMeta:
    """mteb's ModelMeta of a model that `dcclip --model` takes; mteb loads the model with DcclipEncoder.

    Facts are from the model's files, and None where these say nothing. Of a model that you publish you know more:
    its `name` on the hub, and other fields of ModelMeta in `known`, such as `open_weights`.
    `trust_remote_code`: code in the model's repository (FG-CLIP2) may run.
    """
    found = resolve(None if model is None else os.fspath(model))
    reference = replace(found, trust_remote_code=trust_remote_code)
    facts = _facts(load_encoder(reference, "cpu", "fp32"), reference)
    if facts["license"] not in get_args(Licenses) and not str(facts["license"]).startswith("https://"):
        facts["license"] = None
    given: dict[str, Any] = {"model": _argument(reference.kind, reference.target)}
    given |= {"trust_remote_code": True} if trust_remote_code else {}
    known |= {"loader": DcclipEncoder, "loader_kwargs": given} | ({"name": name} if name else {})
    return ModelMeta(**facts | known)


def _argument(kind: str, target: str) -> str:
    """What `resolve` finds the model by."""
    if kind == "hf" or (kind == "open_clip" and not target.startswith("hf-hub:")):
        return f"{kind}:{target}"
    return target


def _facts(model: Encoder, reference: ModelReference) -> dict[str, Any]:
    """The fields of ModelMeta for a loaded model, None for all that its files do not say."""
    folder = reference.path if reference.kind != "open_clip" and reference.path.is_dir() else None
    found = mteb.model_meta(model.name, model.fingerprint) | {
        "languages": _languages(folder),
        "n_parameters": model.parameters,
        "n_embedding_parameters": _embedding_parameters(folder),
        "memory_usage_mb": round(model.size_bytes / 2**20, 1),
        "max_tokens": model.tokenize([_LONG]).shape[1],
        "embed_dim": model.encode_texts(["猫"]).shape[1],
        "license": _license(folder),
        "framework": _FRAMEWORKS[reference.kind],
    }
    return found | ({"name": name} if (name := mteb.hub_name(reference)) else {})


def _languages(folder: Path | None) -> list[str] | None:
    """Of a model or bundle that dcclip made; a bundle lists them, and every model that it trains knows both."""
    if folder is None or not (folder / RECORD).is_file():
        return None
    record = folder / RECORD
    return [_ISO[one] for one in json_object(record.read_text("utf-8"), str(record), "").get("languages", _ISO)]


def _embedding_parameters(folder: Path | None) -> int | None:
    from safetensors import safe_open

    sizes = []
    for file in folder.glob("*.safetensors") if folder else ():
        with safe_open(file, "np") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys() if name.endswith(_EMBEDDINGS)]  # noqa: SIM118
        sizes += [rows * width for rows, width in shapes]
    return sum(sizes) or None


def _license(folder: Path | None) -> str | None:
    """That of the model card's head."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return None
    head = re.match(r"---\n(.*?)\n---\n", card.read_text("utf-8", "replace"), re.S)
    found = re.search(r"^license: *([\w.-]+) *$", head[1], re.M) if head else None
    return found[1].lower() if found else None
