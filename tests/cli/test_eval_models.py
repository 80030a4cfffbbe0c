"""`dcclip eval --model` on models of other makers, in the hub's layouts, against the makers' code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.data.pair import Pair
from dcclip_cli.eval.result import unpack
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import load_encoder
from tests.cli.conftest import dcclip

Embed = Callable[[list[Image.Image], list[str]], tuple[torch.Tensor, torch.Tensor]]


def by_transformers(folder: Path, length: int) -> Embed:
    """A model used as its card says: AutoModel, AutoImageProcessor, AutoTokenizer."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder).eval()
    processor, tokenizer = (
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        AutoTokenizer.from_pretrained(folder),
    )

    def embed(images: list[Image.Image], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        found = model.get_image_features(**processor(images=images, return_tensors="pt"))
        return found.pooler_output, model.get_text_features(**tokens).pooler_output

    return embed


def fg_clip2(folder: Path, length: int) -> Embed:
    """FG-CLIP2 used as its README says, one image at a time."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Siglip2ImageProcessorPil

    from tests.fgclip2.configuration_fgclip2 import Fgclip2Config
    from tests.fgclip2.modeling_fgclip2 import Fgclip2Model

    model = Fgclip2Model(Fgclip2Config(**json.loads((folder / "config.json").read_text("utf-8")))).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    processor, tokenizer = Siglip2ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def embed(images: list[Image.Image], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [text.lower() for text in texts]
        tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        inputs = [processor(images=image, max_num_patches=128, return_tensors="pt") for image in images]
        found = torch.cat([model.get_image_features(**one) for one in inputs])
        return found, model.get_text_features(**tokens, walk_type="short")

    return embed


MODELS: dict[str, tuple[str, Callable[[Path, int], Embed], int]] = {  # layout, the makers' use, tokens
    "QA-CLIP": ("chineseclip", by_transformers, 52),
    "MetaCLIP 2 with XLM-V": ("metaclip2", by_transformers, 77),
    "MetaCLIP 2 with mT5": ("metaclip2-mt5", by_transformers, 64),
    "FG-CLIP2": ("fgclip2", fg_clip2, 64),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_models_guesses_in_both_languages_are_those_of_its_makers_code(
    name: str, hub_teachers: Path, pairs_file: Path, pairs: list[Pair], own_modules: Path
) -> None:
    layout, of, length = MODELS[name]
    folder = hub_teachers / layout
    flag = ["--trust-remote-code"] if name == "FG-CLIP2" else []
    shown = dcclip("eval", "--model", f"hf:{folder}", "--dataset", str(pairs_file), "--json", "--device", "cpu",
                   "--precision", "fp32", *flag)  # fmt: skip
    results = {one["language"]: one for one in json.loads(shown.stdout)}
    assert ("running code of" in shown.stderr) == bool(flag)
    if name == "FG-CLIP2":
        budgets = {"as_in": "fgclip2", "max_num_patches": [128, 256, 576, 784, 1024]}
        assert results["zh"]["preprocessing"] == budgets
    encoder = load_encoder(replace(resolve(f"hf:{folder}"), trust_remote_code=bool(flag)), "cpu")
    embed, images = of(folder, length), [decode(pair.image) for pair in pairs]
    pixels = np.stack([encoder.preprocess(image) for image in images])
    for language in ("zh", "en"):
        found = results[language]
        names, templates = found["class_names"], found["templates"]
        texts = [template.format(one) for one in names for template in templates]
        image, text = (torch.nn.functional.normalize(one) for one in embed(images, texts))
        np.testing.assert_allclose(encoder.encode_pixels(pixels), image, rtol=0, atol=1e-5)
        np.testing.assert_allclose(encoder.encode_texts(texts), text, rtol=0, atol=1e-5)
        classes = torch.nn.functional.normalize(text.unflatten(0, (len(names), -1)).mean(1))
        cosines = image @ classes.T
        guesses = torch.as_tensor(unpack(found["details"]["predictions"], "").tolist())
        best = cosines.max(1).values - cosines[torch.arange(len(pairs)), guesses]
        np.testing.assert_allclose(best, 0, atol=1e-5)
