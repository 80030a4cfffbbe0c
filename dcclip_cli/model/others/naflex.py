"""Towers whose images keep their proportions (NaFlex): SigLIP2's, and FG-CLIP2, whose code is its repository's.

That code runs where the user has allowed it, and nothing but that. Shapes: B images, N texts, P patches at most, D
values of a patch, h x w the patches of an image, C channels.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json
from dcclip_cli.model.hub_models import COPY_AGAIN, TRANSFORMERS_CONFIG
from dcclip_cli.model.preprocess import RESAMPLING, Patches, Preprocessing, matching_preprocessing
from dcclip_cli.model.towers import (
    ImageFeatures,
    TextFeatures,
    Tokens,
    TransformersTowers,
    check_layers,
    lower_case,
    module_outputs,
)
from dcclip_cli.model.weights import check_fit, require_file

# FG-CLIP2's budgets of patches (`determine_max_value` in 360CVGroup/FG-CLIP: README.md, fgclip2/eval).
_BUDGETS = (128, 256, 576, 784, 1024)


class NaflexTowers(TransformersTowers):
    """A SigLIP2 NaFlex model: images are resized to at most P patches, by default the image processor's number.

    An image gets the first of the `budgets` that is as large as itself, else the last, P. It is (1, 1 + P, D): a row
    that begins with h and w, its h w patches, zeros. A batch is computed with as many patches as its largest image has.
    Maps are resized to the square grid that the position table was made for.
    """

    def __init__(
        self, model: Any, image_processor: Any, tokenizer: Any, name: str, budgets: Sequence[int] = ()
    ) -> None:
        super().__init__(model, image_processor, tokenizer, name)
        names = {int(number): name for name, number in RESAMPLING.items()}
        self._patches = Patches(
            mean=tuple(image_processor.image_mean),
            std=tuple(image_processor.image_std),
            interpolation=names[int(image_processor.resample)],
            patch_size=image_processor.patch_size,
            max_num_patches=tuple(budgets) or (image_processor.max_num_patches,),
        )

    def match_preprocessing(self) -> Preprocessing:
        message = Message("{}: its images keep their proportions (NaFlex)", self.name)
        raise DcclipError(message, "use a model whose images are squares of one size")

    def match_patches(self) -> Preprocessing:
        """What `preprocess` does, without transformers. Raises DcclipError if its image processor does otherwise."""
        return matching_preprocessing(self.name, self.library_preprocess, self._patches.to_config())

    @property
    def preprocessing_record(self) -> dict[str, Any]:
        budgets = [*self._patches.max_num_patches]
        return {"as_in": self.name, "max_num_patches": budgets if len(budgets) > 1 else budgets[0]}

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        budget = self._patches.budget(image)
        inputs = self.image_processor(images=image, max_num_patches=budget, return_tensors="np")
        height, width = map(int, inputs["spatial_shapes"][0])
        return self._patches.packed(inputs["pixel_values"][0][: height * width], height, width)

    _image_modules = attrgetter("vision_model.encoder.layers", "vision_model.post_layernorm")  # the last gives the map

    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        blocks, end = self._image_modules(self.model)
        check_layers(self.name, layers, len(blocks))
        shapes = pixels[:, 0, 0, :2].long()  # (B, 2)
        with module_outputs([end, *(blocks[layer] for layer in layers)]) as outputs:
            embedding = self.image_embedding(self._patches.shortened(pixels))
        last, *maps = (self._maps(hidden, shapes) for hidden in outputs())
        return ImageFeatures(embedding, last, dict(zip(layers, maps, strict=True)))

    def image_embedding(self, pixels: Tensor) -> Tensor:
        """(B, D) of images (B, 1, 1 + P, D)."""
        shapes, patches = pixels[:, 0, 0, :2].long(), pixels[:, 0, 1:]
        mask = torch.arange(patches.shape[1], device=pixels.device) < shapes.prod(1)[:, None]
        inputs = {"pixel_values": patches, "pixel_attention_mask": mask.int(), "spatial_shapes": shapes}
        return _pooled(self.model.get_image_features(**inputs))

    def make_traceable(self) -> None:
        """Let torch trace the image tower for any number of images of any shapes."""
        vision = self.model.vision_model
        vision.embeddings.resize_positional_embeddings = _resized_positions
        vision.head.forward = partial(_pool, vision.head)

    def _maps(self, hidden: Tensor, shapes: Tensor, side: int = 0) -> Tensor:
        """(B, C, s, s) of patch tokens (B, P, C); the side s is by default that of the position table."""
        side, maps = side or int(self.model.config.vision_config.num_patches**0.5), []
        for tokens, (height, width) in zip(hidden.float(), shapes.tolist(), strict=True):
            grid = tokens[: height * width].T.unflatten(1, (height, width))[None]
            maps.append(nn.functional.interpolate(grid, (side, side), mode="bilinear", antialias=True))
        return torch.cat(maps)


class FgClip2Towers(NaflexTowers):
    """FG-CLIP2 (2510.10921), used as its README says: lower-cased texts, padded to the length of the walk.

    `walk_type` "short" reads 64 tokens, "long" 196 with positions and a head of its own, for captions of several
    sentences. Images get one of five budgets, or `max_patches`.
    """

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        name: str,
        max_patches: int | None = None,
        walk_type: Literal["short", "long"] = "short",
    ) -> None:
        super().__init__(model, image_processor, tokenizer, name, [max_patches] if max_patches else _BUDGETS)
        self.walk_type = walk_type
        self.fixed_length = True  # the last token is pooled, padding or not
        lower_case(tokenizer)
        text = model.config.text_config
        self.context_length = text.max_position_embeddings if walk_type == "short" else text.longtext_len

    @property
    def _table(self) -> Any:
        return self.model.text_model.embeddings.token_embedding

    def text_features(self, tokens: Tokens) -> TextFeatures:
        # What the README passes on is what the tokenizer returns by itself: SigLIP's give no mask.
        mask = {"attention_mask": tokens.mask} if "attention_mask" in self.tokenizer.model_input_names else {}
        with module_outputs([self.model.text_model.final_layer_norm]) as outputs:
            embedding = _pooled(self.model.get_text_features(input_ids=tokens.ids, walk_type=self.walk_type, **mask))
        return TextFeatures(embedding, outputs()[0], tokens.mask)

    def text_embedding(self, tokens: Tokens) -> Tensor:
        """(N, D), as `text_features`, without the repository's loop over texts, which no graph has."""
        text, hidden = self.model.text_model, list[Tensor]()

        def first(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            hidden.append(output)
            return output[:1]  # for the loop

        handle = text.final_layer_norm.register_forward_hook(first)
        self.text_features(tokens)
        handle.remove()
        return (text.head if self.walk_type == "short" else self.model.longtext_head)(hidden[0][:, -1])


# ---- what their own code does by loops over images, or with checks, of which torch makes no graph


def _pool(head: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, C) of patch tokens (B, P, C) by an attention pooling head."""
    probe = head.probe.repeat(hidden.shape[0], 1, 1)
    pooled = head.attention(probe, hidden, hidden, key_padding_mask=mask == 0)[0]
    return (pooled + head.mlp(head.layernorm(pooled)))[:, 0]


def _resized_positions(table: Tensor, shapes: Tensor, max_length: int) -> Tensor:
    """(B, P, C) of a square table (s, s, C), resized bilinearly with antialiasing to each of `shapes` (B, 2)."""
    sizes = shapes[:, None].float()
    places = torch.arange(max_length, device=shapes.device)[:, None]
    rows = (places / sizes[..., 1:]).floor()
    places = torch.cat([rows, places - rows * sizes[..., 1:]], -1).minimum(sizes - 1)  # (B, P, 2)
    scale = table.shape[0] / sizes
    centres = (places + 0.5) * scale - 0.5
    distances = (torch.arange(table.shape[0], device=shapes.device) - centres[..., None]).abs()  # (B, P, 2, s)
    weights = (1 - distances / scale.clamp(min=1)[..., None]).clamp(min=0)
    rows, columns = (weights / weights.sum(-1, keepdim=True)).unbind(2)
    return (rows[..., None] * columns[..., None, :]).flatten(-2) @ table.flatten(0, 1)


def _pooled(found: Any) -> Tensor:
    """What `get_image_features` and `get_text_features` return: a tensor until transformers 4."""
    return found if isinstance(found, Tensor) else found.pooler_output


# ---- the code of FG-CLIP2's repository

_CLASS = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)  # MODULE.CLASS; `ORG/NAME--` before it: elsewhere
_CONFIG, _MODEL = "AutoConfig", ("AutoModel", "AutoModelForCausalLM")  # keys of auto_map; FG-CLIP2 has the last


@dataclass(frozen=True)
class RemoteCode:
    """The code that builds a model, next to its config.json in `folder`; it runs in `build` alone.

    `config` and `model` are its classes, each MODULE.CLASS.
    """

    name: str  # of the repository, or its directory
    folder: Path
    config: str
    model: str

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(path.partition(".")[0] for path in (self.config, self.model)))

    def refuse(self) -> None:
        """Raise DcclipError, which says what would run and how to allow it."""
        files = ", ".join(f"{module}.py" for module in self.modules)
        message = Message("{} is built by its own code ({}), which is not run unless you allow it", self.name, files)
        raise DcclipError(
            message,
            "read these files; then add --trust-remote-code, which dcclip eval, export and trim have, "
            "or teacher: {{kind: fgclip2, trust_remote_code: true}} in a recipe",
        )

    def files(self) -> Iterator[Path]:
        """The files of the code and of what they import from files next to them; they are downloaded, not run."""
        from transformers.dynamic_module_utils import get_relative_imports

        modules, listed = self.modules, set[str]()
        while modules:
            module = modules.pop(0)
            if module in listed:
                continue
            listed.add(module)
            file = require_file(self.name, f"{module}.py")
            if file.parent != self.folder:
                raise DcclipError("{} was changed while it was loaded", "run the command again", self.name)
            yield file
            modules += get_relative_imports(file)

    def describe(self) -> tuple[str, str]:
        """What runs, with its version, for the user; and a hash over the names and the contents of all files."""
        files = list(self.files())
        parts = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in sorted(files)]
        sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        is_revision = self.folder.parent.name == "snapshots"  # in the hub's cache
        version = f"revision {self.folder.name}" if is_revision else f"sha256 {sha256[:16]}"
        return f"{self.name} ({version}): {', '.join(file.name for file in files)}", sha256

    def build(self, weights: Sequence[Path]) -> Any:
        """The model with the `weights` in files, by the code, which runs here.

        Not by `from_pretrained`: transformers 5 builds a model without memory first, where the code's mask of
        positions, no buffer, would stay, and initializes weights by rules that the code, written for 4.57, does not
        know.
        """
        from safetensors.torch import load_file
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        from transformers.initialization import no_init_weights

        # FG-CLIP2's code imports one function of a module that transformers 5.20 has and 5.24 does not.
        masks = "transformers.modeling_attn_mask_utils"
        if masks not in sys.modules and find_spec(masks) is None:
            module = ModuleType(masks)
            module._prepare_4d_attention_mask = _prepare_4d_attention_mask  # type: ignore[attr-defined]
            sys.modules[masks] = module
        try:
            model_class = get_class_from_dynamic_module(self.model, str(self.folder), local_files_only=True)
        except (ImportError, SyntaxError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            hint = Message(
                "install the packages that it names, or use the revision of the model that fits your transformers"
            )
            raise DcclipError("the code of {} cannot be run: {}", hint, self.name, reason) from None
        # transformers copies the configuration's code once for itself and once for the model: the class of the latter.
        config = model_class.config_class.from_dict(read_json(self.folder / TRANSFORMERS_CONFIG, COPY_AGAIN))
        with no_init_weights(), torch.random.fork_rng(devices=[]):  # 7 s for 377 M weights that are replaced
            model = model_class(config)
        check_fit(model, weights, TRANSFORMERS_CONFIG)
        state = {name: value.float() for file in weights for name, value in load_file(file).items()}
        model.load_state_dict(state, assign=True)
        return model


def remote_code(model: str, config: Mapping[str, Any], file: Path) -> RemoteCode:
    """The code that the config.json in `file` names in its `auto_map`.

    Raises DcclipError if there is none, or it is in another repository.
    """
    named = config.get("auto_map")
    named = named if isinstance(named, dict) else {}
    model_key = next((key for key in _MODEL if key in named), _MODEL[0])
    for key in (_CONFIG, model_key):
        if key not in named:
            message = Message("{}: auto_map names no {}, and transformers has none", file, key)
            raise DcclipError("{} for model_type {}", COPY_AGAIN, message, config.get("model_type"))
        if not isinstance(named[key], str) or not _CLASS.fullmatch(named[key]):
            message = Message(
                "{}: auto_map: {}: {!r:.100} is not MODULE.CLASS of a file next to it", file, key, named[key]
            )
            raise DcclipError(message, "use a model whose code is in its own repository")
    return RemoteCode(model, file.parent, named[_CONFIG], named[model_key])


def _prepare_4d_attention_mask(mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None) -> Tensor:
    """(B, 1, T, S) of a mask (B, S): 0 where it is 1, else the least number; as transformers 5.20 has it."""
    dropped = (mask == 0)[:, None, None].expand(-1, 1, tgt_len or mask.shape[1], -1)
    return torch.zeros_like(dropped, dtype=dtype).masked_fill(dropped, torch.finfo(dtype).min)
