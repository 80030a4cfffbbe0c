"""A dual encoder run by torch: model directories, transformers and open_clip models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.model.finite import finite
from dcclip_cli.model.precision import AS_ASKED, Choice, Precision, choose_precision
from dcclip_cli.model.preprocess import flatten
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.runtime import PLAIN_PROMPTS

if TYPE_CHECKING:
    from PIL import Image

    from dcclip_cli.model.towers import Towers


class TorchEncoder:
    """Towers as a DualEncoder; they are expected in evaluation mode and on `device`.

    In bf16 torch computes in bfloat16 where its autocast does, which is another model to those who keep its embeddings.
    """

    prompts: Mapping[str, Sequence[str]] = PLAIN_PROMPTS

    def __init__(self, towers: Towers, device: str = "cpu", choice: Choice = AS_ASKED) -> None:
        import torch

        own = towers.preprocessing
        # Convolutions take a third less time with the channels last.
        self.towers: Towers = towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device, self.choice, self.precision = device, choice, choice.precision
        self.name, self.fingerprint = towers.name, towers.fingerprint + ("-bf16" if choice.precision == "bf16" else "")
        self.preprocessing: Mapping[str, Any] = own.to_config() if own else {"as_in": towers.name}
        self.logit_scale, self.logit_bias = towers.logit_scale, towers.logit_bias
        self.parameters = towers.parameters_count()
        self.size_bytes = sum(weight.numel() * weight.element_size() for weight in towers.parameters())

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return self.towers.preprocess(flatten(image))

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        batch = torch.from_numpy(pixels).to(self._device, memory_format=torch.channels_last)
        with torch.inference_mode(), self._autocast():
            embedding = self.towers.image_features(batch).embedding
        return finite(_unit(embedding.float().cpu().numpy()), self.name, "images")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokens = self.towers.tokenize(list(texts)).to(self._device)
        with torch.inference_mode(), self._autocast():
            embedding = self.towers.text_features(tokens).embedding
        return finite(_unit(embedding.float().cpu().numpy()), self.name, "texts")

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(torch.device(self._device).type, torch.bfloat16, enabled=self.precision == "bf16")


def _unit(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # `finite` says what is wrong
        return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def load_torch(
    reference: ModelReference, device: str = "auto", precision: Precision = "fp32", threads: int | None = None
) -> TorchEncoder:
    """The model meant by a reference that is no bundle. Raises DcclipError where model or device is missing.

    `threads`, if given, holds for torch in the whole process.
    """
    import torch

    from dcclip_cli.model.device import torch_device

    device = torch_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if reference.kind == "folder":
        from dcclip_cli.model.folder import load_folder

        towers: Towers = load_folder(reference.path, device)
    else:
        from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher

        teacher = TransformersTeacher if reference.kind == "hf" else OpenClipTeacher
        towers = teacher(model=reference.target, precision="fp32").load(device)
    towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as they will be used
    return TorchEncoder(towers, device, choose_precision(precision, device, towers))
