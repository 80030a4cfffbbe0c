"""A dcclip model directory, bundle or any model that dcclip loads, as a model of mteb."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.types import Licenses

from dcclip_cli.eval.dataset import ImageTransform
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.zero_shot import text_embeddings
from dcclip_cli.model import Precision
from dcclip_cli.model.preprocess import first_frame
from dcclip_cli.model.reference import resolve
from dcclip_mteb.results import model_meta_of

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from PIL.Image import Image
    from torch.utils.data import DataLoader

_WHOLE = ImageTransform()


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
            place = {
                text: number for number, text in enumerate(dict.fromkeys(texts))
            }  # equal texts, equal embeddings
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
    """mteb's ModelMeta of a model that `dcclip --model` takes; mteb loads the model with
    DcclipEncoder.

    Facts are from the model's files, and None where these say nothing. Of a model that you publish
    you know more: its `name` on the hub, and other fields of ModelMeta in `known`, such as
    `open_weights`. `trust_remote_code`: code in the model's repository (FG-CLIP2) may run.
    """
    found = resolve(None if model is None else os.fspath(model))
    reference = replace(found, trust_remote_code=trust_remote_code)
    facts = model_meta_of(load_encoder(reference, "cpu", "fp32"), reference)
    if facts["license"] not in get_args(Licenses) and not str(facts["license"]).startswith(
        "https://"
    ):
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
