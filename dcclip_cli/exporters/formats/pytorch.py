"""Formats for open_clip, transformers and sentence-transformers: directories that these load
without dcclip.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json, write_json
from dcclip_cli.exporters import FormatName, Precision
from dcclip_cli.exporters.formats import Format
from dcclip_cli.exporters.formats.onnx import clip_image_processor
from dcclip_cli.exporters.source import Source
from dcclip_cli.inference.encoder import Encoder, TorchEncoder, load_encoder
from dcclip_cli.inference.onnx_encoder import Description, ExportedEncoder, read_description
from dcclip_cli.model.model_dir import WEIGHTS, load_model
from dcclip_cli.model.reference import ModelSource
from dcclip_cli.model.students import blank_network
from dcclip_cli.model.tokenizer import copy_tokenizer, renumbered

if TYPE_CHECKING:
    from torch import Tensor

_OTHER = Message("use --format onnx or --format open_clip")
_TWO_LAYERS = Message(
    "use --format sentence-transformers, onnx or open_clip: these support a projection "
    "with two layers"
)
_HIDDEN = "visual.head.mlp.fc1.weight"  # of a projection of images by an MLP


class OpenClip(Format):
    """A copy of the model directory, with weights in fp32 or fp16."""

    name = "open_clip"
    precisions = ("fp32", "fp16")
    has_graphs = False
    package = "open_clip"
    install = "pip install 'dcclip[train]'"

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        if source.folder is None:
            hint = Message("export the model with --format onnx or transformers")
            raise DcclipError("{} is not an open_clip model directory", hint, source.towers.name)
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        if precision == "fp16":
            weights = load_file(folder / WEIGHTS)
            half = {
                name: value.half() if value.dtype == torch.float32 else value
                for name, value in weights.items()
            }
            save_file(half, folder / WEIGHTS)

    def open(self, folder: Path) -> Encoder:
        return TorchEncoder(load_model(folder))


class Transformers(Format):
    """A student as a VisionTextDualEncoderModel; models of transformers unchanged."""

    name: ClassVar[FormatName] = "transformers"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")
    has_graphs = False
    package = "transformers"
    install = "pip install 'dcclip[train]'"
    crops_down = True
    mlps: ClassVar[bool] = False  # supports a projection of images with a hidden layer

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

        from dcclip_cli.model.families.base import TransformersTowers

        if isinstance(source.towers, TransformersTowers):
            model = source.towers.model
            tokenizer = source.towers.tokenizer
            processor = source.towers.image_processor
        else:
            # The student's tokenizer, with its end token the last of the pieces. A CLIPTextModel
            # whose end token has the id 2, as students' do, pools at the largest id instead:
            # transformers' rule for old checkpoints.
            state = json.loads(copy_tokenizer(source.tokenizer).to_str())
            if (kind := state["model"]["type"]) != "Unigram":
                raise DcclipError(
                    "a {} tokenizer cannot be exported to transformers yet", _OTHER, kind
                )
            vocab = state["model"]["vocab"]
            end = next(index for index, (token, _) in enumerate(vocab) if token == "</s>")
            last = len(vocab) - 1
            vocab[end], vocab[last] = vocab[last], vocab[end]
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=renumbered(state, {end: last, last: end}),
                model_max_length=source.context_length,
                bos_token="<s>",
                pad_token="<pad>",
                eos_token="</s>",
                unk_token="<unk>",
            )
            processor = CLIPImageProcessor(**clip_image_processor(source.preprocessing))
            model = _model(source, self.mlps, tokenizer.eos_token_id)
        if precision == "fp16":
            model = model.half()
        model.save_pretrained(folder)
        model.float()
        tokenizer.save_pretrained(folder)
        if getattr(source.towers, "lower_cases", False):  # though SigLIP2's files do not say so
            file = folder / "tokenizer_config.json"
            write_json(file, {**read_json(file, ""), "tokenizer_class": "Siglip2Tokenizer"})
        processor.save_pretrained(folder)

    def open(self, folder: Path) -> Encoder:
        return load_encoder(ModelSource("hf", str(folder.resolve()), ""), "cpu")


class SentenceTransformers(Transformers):
    """The files of `transformers`, with sentence-transformers' own modules around them.

    Its Transformer module finds both towers of the model, and its Normalize gives embeddings of
    length 1. Where images are projected by an MLP, both towers end in its hidden layer, and
    modules between these two have the rest.
    """

    name = "sentence-transformers"
    precisions = ("fp32",)
    package = "sentence_transformers"
    install = "pip install 'sentence-transformers>=5.4'"
    mlps = True

    def write(self, source: Source, graphs: Path, folder: Path, precision: Precision) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

        super().write(source, graphs, folder, precision)
        if source.fixed:  # such towers were trained on padding that no mask hides
            file = folder / "tokenizer_config.json"
            write_json(file, {**read_json(file, ""), "model_input_names": ["input_ids"]})
        padding: Any = {"text": {"padding": "max_length"}} if source.fixed else None
        modules: list[Any] = [Transformer(str(folder), processing_kwargs=padding)]
        if _HIDDEN in (weights := source.towers.model.state_dict()):
            from sentence_transformers.base.modules import Dense, Router

            names = (f"visual.head.mlp.{name}" for name in ("fc1.bias", "fc2.weight", "fc2.bias"))
            bias, second, last_bias = (weights[name] for name in names)
            width, hidden = second.shape
            images = [  # the second layer; of texts, their own numbers of the hidden layer
                Dense(hidden, hidden, True, torch.nn.GELU(), torch.eye(hidden), bias),
                Dense(hidden, width, True, None, second, last_bias),
            ]
            texts = [Dense(hidden, width, False, None, torch.eye(width, hidden))]
            modules.append(Router({"image": images, "text": texts}))
        modules.append(Normalize())
        model = SentenceTransformer(modules=modules, similarity_fn_name="cosine", device="cpu")
        model.save(str(folder), create_model_card=False)

    def open(self, folder: Path) -> _SentenceEncoder:
        description, _ = read_description(folder, self.name)
        return _SentenceEncoder(folder, description)


class _SentenceEncoder(ExportedEncoder):
    """A SentenceTransformer as an Encoder: it tokenizes texts and embeds texts and pixels by
    itself.

    Pillow resizes images as its configuration says; it would use torchvision, which rounds some
    pixels otherwise.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers import AutoImageProcessor

        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self._processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True
        )
        super().__init__(folder, description, (), self._embed_pixels, self._embed_texts)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._processor(image, return_tensors="np")["pixel_values"][0])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._checked(self._embed_texts(list(texts)), "texts")

    def _embed_texts(self, texts: Any) -> np.ndarray:
        return np.asarray(self._model.encode(texts, show_progress_bar=False))

    def _embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            output = self._model({"pixel_values": torch.from_numpy(pixels), "modality": "image"})
        return output["sentence_embedding"].numpy()


def _model(source: Source, mlps: bool, end: int) -> Any:
    from transformers import (
        CLIPTextConfig,
        TimmWrapperConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    if source.folder is None:
        raise DcclipError("{} is not a student's model directory", _OTHER, source.towers.name)
    config = json.loads((source.folder / "open_clip_config.json").read_text("utf-8"))["model_cfg"]
    image = config["vision_cfg"]
    text = config["text_cfg"]
    if text.get("no_causal_mask"):
        reason = Message("the text tower of {} is bidirectional", source.towers.name)
        raise DcclipError(
            "VisionTextDualEncoderModel does not support this model: {}", _OTHER, reason
        )
    weights: dict[str, Tensor] = dict(source.towers.model.state_dict())
    projection = _HIDDEN if mlps and _HIDDEN in weights else _projection(source, weights)
    width, features = weights[projection].shape
    text_config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=int(text["width"] * text.get("mlp_ratio", 4)),
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"],
        hidden_act="quick_gelu" if config.get("quick_gelu") else "gelu",
        pad_token_id=text["pad_id"],
        bos_token_id=0,
        eos_token_id=end,
        projection_dim=width,
    )
    side = source.preprocessing.size
    trunk = source.towers.model.visual.trunk
    pooling = dict[str, Any]()
    pool = getattr(trunk, "global_pool", None)
    if isinstance(pool, str) and pool != blank_network(image["timm_model_name"]).global_pool:
        # open_clip changed it afterwards. The norm is then before the pooling, as without these
        # arguments.
        norms = {"fc_norm", "use_fc_norm"} & inspect.signature(type(trunk)).parameters.keys()
        pooling = {"global_pool": pool, **dict.fromkeys(norms, False)}
    image_config = TimmWrapperConfig(
        architecture=image["timm_model_name"],
        model_args=pooling,
        pretrained_cfg={"input_size": [3, side, side]},
        num_labels=0,
        hidden_size=features,  # pooled
    )
    both = VisionTextDualEncoderConfig.from_vision_text_configs(
        image_config, text_config, projection_dim=width
    )
    if source.towers.logit_bias is not None:
        both.logit_bias = source.towers.logit_bias  # of which the model has no parameter
    model = VisionTextDualEncoderModel(both).eval()
    model.load_state_dict(_renamed(weights, projection, [int(text["eos_id"]), end]))
    return model


def _projection(source: Source, weights: dict[str, Tensor]) -> str:
    """The name of the image tower's projection: after the network, or in place of its classifier,
    with a bias of 0.
    """
    visual = source.towers.model.visual
    behind = "visual.head.proj.weight"
    inside = (
        f"visual.trunk.{visual.trunk.pretrained_cfg.get('classifier')}"
        if hasattr(visual, "trunk")
        else ""
    )
    if inside and "text.text_projection" in weights:
        if behind in weights:
            return behind
        if (
            not len(visual.head)
            and f"{inside}.weight" in weights
            and not weights[f"{inside}.bias"].any()
        ):
            return f"{inside}.weight"
    reason = Message(
        "the image projection of {} is not one matrix without a bias", source.towers.name
    )
    hint = _TWO_LAYERS if _HIDDEN in weights else _OTHER
    raise DcclipError("VisionTextDualEncoderModel does not support this model: {}", hint, reason)


def _renamed(weights: dict[str, Tensor], projection: str, ends: list[int]) -> dict[str, Tensor]:
    """open_clip's weights under transformers' names, rows of the `ends` exchanged; missing text
    width is zeros.
    """
    import torch

    layer_parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    images = weights[projection]
    texts = weights["text.text_projection"].T
    table = weights["text.token_embedding.weight"].clone()
    table[ends] = table[ends[::-1]]
    renamed_weights = {
        "logit_scale": weights["logit_scale"],
        "visual_projection.weight": images,
        "text_projection.weight": torch.cat(
            [texts, texts.new_zeros(len(images) - len(texts), texts.shape[1])]
        ),
        "text_model.embeddings.token_embedding.weight": table,
        "text_model.embeddings.position_embedding.weight": weights["text.positional_embedding"],
    }
    classifier = projection.removesuffix("weight")
    for name, value in weights.items():
        if name.startswith("visual.trunk.") and not name.startswith(classifier):
            renamed_weights[f"vision_model.timm_model.{name.removeprefix('visual.trunk.')}"] = value
        elif name.startswith("text.ln_final."):
            renamed_weights[f"text_model.final_layer_norm.{name.rpartition('.')[2]}"] = value
        elif name.startswith("text.transformer.resblocks."):
            number, _, part = name.removeprefix("text.transformer.resblocks.").partition(".")
            layer = f"text_model.encoder.layers.{number}"
            (part, _, kind) = part.rpartition(".")
            if part == "attn" and kind.startswith("in_proj_"):
                for which, rows in zip("qkv", torch.chunk(value, 3), strict=True):
                    renamed_weights[
                        f"{layer}.self_attn.{which}_proj.{kind.removeprefix('in_proj_')}"
                    ] = rows.clone()
            else:
                renamed_weights[f"{layer}.{layer_parts[part]}.{kind}"] = value
    return renamed_weights
