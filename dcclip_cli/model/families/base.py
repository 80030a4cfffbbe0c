"""What families of dual encoders share, and the towers that transformers builds. Shapes: as in
towers.py.
"""

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import normalizers
from torch import Tensor, nn
from transformers.utils import logging

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.progress import Progress
from dcclip_cli.model.hub_models import (
    IMAGE_PROCESSOR,
    SENTENCEPIECE,
    TRANSFORMERS_CONFIG,
    checked_json,
)
from dcclip_cli.model.preprocess import MAX_SIDE, Preprocessing, matching_preprocessing
from dcclip_cli.model.tokenizer import check_tokenizer
from dcclip_cli.model.towers import (
    TREATMENT,
    Attention,
    ImageFeatures,
    Pooling,
    TextFeatures,
    TextLayout,
    Tokens,
    Towers,
    check_layers,
    on_grid,
)
from dcclip_cli.model.weights import (
    TRANSFORMERS_WEIGHTS,
    as_safetensors,
    check_fit,
    find_file,
    find_weights,
    weights_digest,
)


class Family(Towers):
    """A family of dual encoders: which files its models need, how they are checked, and how they
    are built.
    """

    label: ClassVar[str]  # in errors
    weights: ClassVar[Sequence[str]]  # names of the file, of which the first that exists is read
    required_files: ClassVar[Sequence[Sequence[str]]]  # one file of each group

    @classmethod
    @abstractmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this family."""

    @classmethod
    def check_config(cls, config: Mapping[str, Any], file: Path) -> None:
        """Raise DcclipError for what runs code or leads elsewhere in a config.json, read from
        `file`.
        """

    @classmethod
    def check_files(
        cls, model: str, config: Mapping[str, Any], file: Path, trust_remote_code: bool
    ) -> None:
        """Raise DcclipError if another file of the model is unsupported, or needs permission to
        run.
        """

    @classmethod
    @abstractmethod
    def load(cls, model: str, folder: Path, progress: Progress) -> Self:
        """The towers of a directory or repository with its config.json in `folder`."""

    @classmethod
    def blank(cls, folder: Path) -> Self | None:
        """The towers of a directory without weights; None if they cannot be built so, or then take
        no image.
        """
        return None


class TransformersTowers(Family):
    """A dual encoder of transformers; its image map is the patch tokens on their grid, text tokens
    the last states.
    """

    model_types: ClassVar[Collection[str]] = ()
    allowed_modules: ClassVar[Collection[str]] = (
        "Transformer",
        "Pooling",
        "Normalize",
    )  # of sentence-transformers
    text_length: ClassVar[int] = 77  # tokens of the texts that it was trained on, at most
    fixed_length: ClassVar[bool] = False  # whether it was trained on texts that are padded to that
    attention: ClassVar[Attention | None] = None  # of the text tower, where all have the same
    pooling: ClassVar[Pooling] = "end"  # of the text tower
    identity: Sequence[str] = ()  # what its outputs depend on besides its files
    weights = TRANSFORMERS_WEIGHTS
    required_files = (
        (TRANSFORMERS_CONFIG,),
        TRANSFORMERS_WEIGHTS,
        ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE),
        (IMAGE_PROCESSOR, "processor_config.json"),
    )

    def __init__(self, model: Any, image_processor: Any, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.fingerprint = ""
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        limit = getattr(model.config.text_config, "max_position_embeddings", 77)
        for path, module in getattr(model, "text_model", model).named_modules():
            if path.endswith(("position_embeddings", "position_embedding")) and isinstance(
                module, nn.Embedding
            ):
                if (
                    module.padding_idx is not None
                ):  # RoBERTa's positions count from the row after the padding id, 1
                    limit -= module.padding_idx + 1
                break
        self.context_length = min(limit, self.text_length, tokenizer.model_max_length)
        # SigLIP2 and FG-CLIP2 were trained on lower case. transformers' Siglip2Tokenizer does it;
        # their checkpoints name Gemma's own tokenizer, which does not
        # (huggingface/transformers#43054). Its class differs by version.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        is_gemma = type(getattr(backend, "model", None)).__name__ == "BPE"
        self.lower_cases = (
            self.fixed_length and is_gemma and type(tokenizer).__name__ != "Siglip2Tokenizer"
        )
        if backend and self.lower_cases:
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])

    @classmethod
    def recognizes(cls, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in cls.model_types

    @classmethod
    def check_config(cls, config: Mapping[str, Any], file: Path) -> None:
        sections = [config, *(value for value in config.values() if isinstance(value, dict))]
        for key in ("quantization_config", "attn_implementation", "_attn_implementation"):
            # Other implementations import packages, or download.
            if any(section.get(key) not in (None, "eager", "sdpa") for section in sections):
                raise DcclipError("{}: {} is not supported", "remove it", file, key)

    @classmethod
    def check_files(
        cls, model: str, config: Mapping[str, Any], file: Path, trust_remote_code: bool
    ) -> None:
        if images := find_file(model, IMAGE_PROCESSOR):
            checked_json(images, limit=MAX_SIDE)
        if cls.allowed_modules and (modules := find_file(model, "modules.json")):
            types = re.findall(
                r'"type":\s*"[\w.]*?(\w+)"', modules.read_text("utf-8", errors="replace")
            )
            if further := [name for name in types if name not in cls.allowed_modules]:
                message = Message(
                    "{} has a module {} after the towers, which only sentence-transformers can run",
                    model,
                    further[0],
                )
                raise DcclipError(
                    message, "use the model directory that it was exported from, or its ONNX export"
                )

    @classmethod
    def load(cls, model: str, folder: Path, progress: Progress) -> Self:
        files = find_weights(model, cls.weights)
        digest = weights_digest(files)
        name = Path(model).name
        files = as_safetensors(files, name, digest, progress)
        towers = cls.build(model, folder, files, progress)
        side = getattr(
            towers.model.config.vision_config, "image_size", None
        )  # timm's networks have none
        shape = towers.library_preprocess(Image.new("RGB", (30, 20))).shape
        expected = shape if side is None else (3, *([side] * 2 if isinstance(side, int) else side))
        if shape != expected:
            mismatch = Message(
                "teacher {} cannot be loaded: its image processor returns {}, but its "
                "image tower expects {}",
                *(model, shape, expected),
            )
            raise DcclipError(mismatch, Message("copy the {} of the model again", IMAGE_PROCESSOR))
        where = Message("teacher {} cannot be loaded: its tokenizer", model)
        check_tokenizer(towers.tokenize, towers.tokenizer.vocab_size, towers.vocabulary_rows, where)
        backend = getattr(towers.tokenizer, "backend_tokenizer", None)
        vocab = (
            backend.to_str()
            if backend
            else json.dumps(towers.tokenizer.get_vocab(), sort_keys=True)
        )
        parts = [TREATMENT, digest, *towers.identity]
        parts += [
            towers.model.config.to_json_string(),
            towers.image_processor.to_json_string(),
            vocab,
        ]
        towers.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return towers

    @classmethod
    def build(cls, model: str, folder: Path, files: Sequence[Path], progress: Progress) -> Self:
        with _silent():  # its report of missing weights is replaced by the error below
            empty = cls.without_weights(folder)
            check_fit(empty, files, TRANSFORMERS_CONFIG, exact=False)
            network, loading_info = transformers.AutoModel.from_pretrained(
                files[0].parent,
                config=empty.config,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
            )
        if missing := sorted(loading_info["missing_keys"]):
            message = Message(
                "teacher {} cannot be loaded: its weights lack {} ({} missing in all)",
                *(Path(model).name, missing[0], len(missing)),
            )
            raise DcclipError(
                message,
                "copy the whole model again, or check that config.json belongs to these weights",
            )
        return cls.from_network(network, model)

    @classmethod
    def from_network(cls, network: Any, model: str, *options: Any) -> Self:
        """The towers of transformers' model with its processors. Raises DcclipError if a package
        is missing.
        """
        local: dict[str, Any] = {"local_files_only": True} if Path(model).is_dir() else {}
        try:
            with _silent():  # of a model type that it does not know
                images = transformers.AutoImageProcessor.from_pretrained(
                    model, backend="pil", trust_remote_code=False, **local
                )
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    model, trust_remote_code=False, **local
                )
        except (
            ImportError
        ) as error:  # of sentencepiece, which SigLIP's and MetaCLIP 2's mT5 tokenizer needs
            reason = " ".join(str(error).split()).partition(" but it was not found")[0]
            raise DcclipError(
                "teacher {} cannot be loaded: {}",
                "pip install sentencepiece protobuf",
                model,
                reason,
            ) from None
        return cls(network, images, tokenizer, Path(model).name, *options)

    @classmethod
    def blank(cls, folder: Path) -> Self | None:
        return cls.from_network(cls.without_weights(folder), str(folder))

    @classmethod
    def without_weights(cls, folder: Path) -> Any:
        """transformers' model of a folder's config.json on the meta device."""
        with torch.device("meta"):
            return transformers.AutoModel.from_config(
                cls.library_config(folder), trust_remote_code=False
            )

    @classmethod
    def library_config(cls, folder: Path) -> Any:
        """transformers' configuration of the parts that are used."""
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    def match_preprocessing(self) -> Preprocessing:
        return matching_preprocessing(self.name, self.library_preprocess, self.image_processor)

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(
            self.image_processor(images=image, return_tensors="np")["pixel_values"][0], np.float32
        )

    def tokenize(self, texts: list[str]) -> Tokens:
        encoded = self.tokenizer(
            texts,
            padding="max_length" if self.fixed_length else True,
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])

    @property
    def _table(self) -> Any:
        return getattr(self.model, "text_model", self.model).get_input_embeddings()

    def token_embedding(self) -> tuple[Tensor, dict[str, int]]:
        return self._table.weight.detach(), self.tokenizer.get_vocab()

    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        options = {"output_hidden_states": True} if layers else {}
        out = self.model.get_image_features(pixel_values=pixels, return_dict=True, **options)
        blocks = (
            out.hidden_states[1:] if layers else ()
        )  # the first is the input of the first block
        check_layers(self.name, layers, len(blocks))
        maps = {layer: on_grid(blocks[layer]) for layer in layers}
        return ImageFeatures(out.pooler_output, on_grid(out.last_hidden_state), maps)

    @property
    def takes_any_length(self) -> bool:
        return not self.fixed_length

    @property
    def text_layout(self) -> TextLayout:
        return TextLayout(self.attention or "causal", self.pooling)

    def text_features(self, tokens: Tokens) -> TextFeatures:
        # transformers looks into a mask (N, L) for padding: a GPU would be waited for, and meta
        # tensors have no values.
        mask = tokens.mask
        length = tokens.ids.shape[1]
        padded = (
            not self.fixed_length
            and not mask.is_meta
            and (not tokens.lengths or min(tokens.lengths) < length)
        )
        if (
            padded
            and self.attention
            and self.model.config.text_config._attn_implementation == "sdpa"
        ):
            mask = mask.bool()[:, None, None].expand(
                -1, 1, length, -1
            )  # (N, 1, L, L), as transformers makes it
            mask = mask.tril() if self.attention == "causal" else mask
        masks = {"attention_mask": mask} if padded else {}
        out = self.model.get_text_features(input_ids=tokens.ids, return_dict=True, **masks)
        return TextFeatures(
            out.pooler_output, out.last_hidden_state, tokens.mask, self.text_layout.pooling
        )


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
