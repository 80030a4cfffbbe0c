"""FG-CLIP2, whose code, its repository's, runs where the user allows it. Shapes: as in naflex.py."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json
from dcclip_cli.core.progress import Progress
from dcclip_cli.model.families.naflex import NaflexTowers, pooled
from dcclip_cli.model.hub_models import COPY_AGAIN, TRANSFORMERS_CONFIG
from dcclip_cli.model.towers import TextFeatures, Tokens, module_outputs
from dcclip_cli.model.weights import check_fit, require_file

# Budgets of patches (`determine_max_value` in 360CVGroup/FG-CLIP: README.md, fgclip2/eval).
_BUDGETS = (128, 256, 576, 784, 1024)


class FgClip2Towers(NaflexTowers):
    """FG-CLIP2 (2510.10921), used as its README says for short texts: lower-cased, padded to 64
    tokens.

    Images get one of five budgets of patches.
    """

    label = "FG-CLIP2"
    model_types = ("fgclip2",)
    attention = "bidirectional"
    pooling = "last"
    fixed_length = True  # the last token is pooled, padding or not

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str) -> None:
        super().__init__(model, image_processor, tokenizer, name, _BUDGETS)
        self.context_length = model.config.text_config.max_position_embeddings

    @classmethod
    def check_files(
        cls, model: str, config: Mapping[str, Any], file: Path, trust_remote_code: bool
    ) -> None:
        super().check_files(model, config, file, trust_remote_code)
        code = remote_code(model, config, file)
        if not trust_remote_code:
            files = ", ".join(f"{module}.py" for module in code.modules)
            message = Message(
                "{} requires custom code ({}), which dcclip does not run without permission",
                model,
                files,
            )
            raise DcclipError(
                message,
                "read these files; then add --trust-remote-code to dcclip eval, export "
                "or fit, or write teacher: "
                "{{kind: fgclip2, trust_remote_code: true}} in the recipe",
            )

    @classmethod
    def build(cls, model: str, folder: Path, files: Sequence[Path], progress: Progress) -> Self:
        file = folder / TRANSFORMERS_CONFIG
        code = remote_code(model, read_json(file, COPY_AGAIN), file)
        modules = list(code.files())
        parts = [
            f"{module.name} {hashlib.sha256(module.read_bytes()).hexdigest()}"
            for module in sorted(modules)
        ]
        sha256 = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        is_revision = folder.parent.name == "snapshots"  # in the hub's cache
        version = f"revision {folder.name}" if is_revision else f"sha256 {sha256[:16]}"
        code_files = f"{model} ({version}): {', '.join(module.name for module in modules)}"
        progress.say(Message("running code of {}", code_files))
        towers = cls.from_network(code.build(files), model)
        towers.identity = (
            sha256,
            "short",
            "None",
        )  # with options that there were, so that caches stay valid
        return towers

    @property
    def _table(self) -> Any:
        return self.model.text_model.embeddings.token_embedding

    def text_features(self, tokens: Tokens) -> TextFeatures:
        # What the README passes on is what the tokenizer returns by itself: SigLIP's give no mask.
        mask = (
            {"attention_mask": tokens.mask}
            if "attention_mask" in self.tokenizer.model_input_names
            else {}
        )
        with module_outputs([self.model.text_model.final_layer_norm]) as outputs:
            embedding = pooled(self.model.get_text_features(input_ids=tokens.ids, **mask))
        return TextFeatures(embedding, outputs()[0], tokens.mask, self.pooling)

    def text_embedding(self, tokens: Tokens) -> Tensor:
        """(N, D), as `text_features`, without the repository's loop over texts, which no graph
        has.
        """
        text = self.model.text_model
        hidden = list[Tensor]()

        def first(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            hidden.append(output)
            return output[:1]  # for the loop

        handle = text.final_layer_norm.register_forward_hook(first)
        self.text_features(tokens)
        handle.remove()
        return text.head(hidden[0][:, -1])


_CLASS = re.compile(
    r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII
)  # MODULE.CLASS; `ORG/NAME--` before it: elsewhere
# keys of auto_map; FG-CLIP2 has the last
_CONFIG = "AutoConfig"
_MODEL = ("AutoModel", "AutoModelForCausalLM")


@dataclass(frozen=True)
class RemoteCode:
    """The code next to a config.json in `folder`, which runs in `build` alone; its classes are
    MODULE.CLASS.
    """

    name: str  # of the repository, or its directory
    folder: Path
    config: str
    model: str

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(path.partition(".")[0] for path in (self.config, self.model)))

    def files(self) -> Iterator[Path]:
        """The files of the code and of what they import from files next to them; they are
        downloaded, not run.
        """
        from transformers.dynamic_module_utils import get_relative_imports

        modules = self.modules
        listed = set[str]()
        while modules:
            module = modules.pop(0)
            if module in listed:
                continue
            listed.add(module)
            file = require_file(self.name, f"{module}.py")
            if file.parent != self.folder:
                raise DcclipError(
                    "{} changed while it was being loaded", "run the command again", self.name
                )
            yield file
            modules += get_relative_imports(file)

    def build(self, weights: Sequence[Path]) -> Any:
        """The model with the `weights` in files, by the code, which runs here.

        Not by `from_pretrained`: transformers 5 builds a model without memory first, where the
        code's mask of positions, no buffer, would stay, and initializes weights by rules that the
        code, written for 4.57, does not know.
        """
        from safetensors.torch import load_file
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        from transformers.initialization import no_init_weights

        # FG-CLIP2's code imports one function of a module that transformers 5.20 has and 5.24 does
        # not.
        masks = "transformers.modeling_attn_mask_utils"
        if masks not in sys.modules and find_spec(masks) is None:
            module = ModuleType(masks)
            module._prepare_4d_attention_mask = _prepare_4d_attention_mask  # type: ignore[attr-defined]
            sys.modules[masks] = module
        try:
            model_class = get_class_from_dynamic_module(
                self.model, str(self.folder), local_files_only=True
            )
        except (ImportError, SyntaxError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            hint = Message(
                "install the packages that the message names, or use the model revision "
                "for your transformers version"
            )
            raise DcclipError("the code of {} failed: {}", hint, self.name, reason) from None
        # transformers copies the configuration's code once for itself and once for the model: the
        # class of the latter.
        config = model_class.config_class.from_dict(
            read_json(self.folder / TRANSFORMERS_CONFIG, COPY_AGAIN)
        )
        with (
            no_init_weights(),
            torch.random.fork_rng(devices=[]),
        ):  # 7 s for 377 M weights that are replaced
            model = model_class(config)
        check_fit(model, weights, TRANSFORMERS_CONFIG)
        state = {name: value.float() for file in weights for name, value in load_file(file).items()}
        model.load_state_dict(state, assign=True)
        return model


def remote_code(model: str, config: Mapping[str, Any], file: Path) -> RemoteCode:
    """The code in `auto_map` of a config.json. Raises DcclipError if there is none, or it is in
    another repository.
    """
    named = config.get("auto_map")
    named = named if isinstance(named, dict) else {}
    model_key = next((key for key in _MODEL if key in named), _MODEL[0])
    for key in (_CONFIG, model_key):
        if key not in named:
            raise DcclipError(
                "{}: auto_map contains no {}, and transformers has none for model_type {}",
                COPY_AGAIN,
                *(file, key, config.get("model_type")),
            )
        if not isinstance(named[key], str) or not _CLASS.fullmatch(named[key]):
            message = Message(
                "{}: auto_map: {}: {!r:.100} is not MODULE.CLASS of a file in the same folder",
                file,
                key,
                named[key],
            )
            raise DcclipError(message, "use a model whose code is in its own repository")
    return RemoteCode(model, file.parent, named[_CONFIG], named[model_key])


def _prepare_4d_attention_mask(
    mask: Tensor, dtype: torch.dtype, tgt_len: int | None = None
) -> Tensor:
    """(B, 1, T, S) of a mask (B, S): 0 where it is 1, else the least number; as transformers 5.20
    has it.
    """
    dropped = (mask == 0)[:, None, None].expand(-1, 1, tgt_len or mask.shape[1], -1)
    return torch.zeros_like(dropped, dtype=dtype).masked_fill(dropped, torch.finfo(dtype).min)
