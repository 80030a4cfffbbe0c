"""Image and text towers of open_clip and transformers dual encoders, with pooled embeddings and
feature maps.

Shapes: B images, N texts, L tokens, D shared width, C channels of a map, h x w its grid, W width
of the text tower.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.model.known_words import KnownWords
from dcclip_cli.model.precision import AS_ASKED
from dcclip_cli.model.preprocess import Preprocessing, matching_preprocessing

TREATMENT = (
    "2"  # part of fingerprints; another one when dcclip treats the same files in another way
)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LAYERS = nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d
_ATTENTION = (
    nn.MultiheadAttention,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
)  # which projects its output
# parts that a batch of texts is split into at most; texts per part at least
_LENGTHS = 4
_TEXTS_OF_A_LENGTH = 16


@dataclass(frozen=True)
class Tokens:
    """`ids` (N, L) and `mask` (N, L), 1 for a real token and 0 for padding; both int64.

    `by_length` (N,), where it was computed, are the rows from the shortest text to the longest,
    with these `lengths`. `lengths` alone are those of the rows as they are.
    """

    ids: Tensor
    mask: Tensor
    by_length: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def sorted(self) -> Self:
        """The same with `by_length` and `lengths`. Reads from the device: call it before they are
        on a GPU.
        """
        if self.by_length is not None:
            return self
        lengths, order = self.mask.sum(1).sort(stable=True)
        return replace(self, by_length=order, lengths=tuple(lengths.tolist()))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed: moved to a device, pinned."""
        order = None if self.by_length is None else change(self.by_length)
        return replace(self, ids=change(self.ids), mask=change(self.mask), by_length=order)

    def to(self, device: torch.device | str) -> Self:
        return self.sorted().map(lambda tensor: tensor.to(device))


@dataclass(frozen=True)
class ImageFeatures:
    """`embedding` (B, D), not normalised, the last feature `map` (B, C, h, w), and `maps` of
    further layers.
    """

    embedding: Tensor
    map: Tensor
    maps: dict[int, Tensor] = field(default_factory=dict)

    def layer(self, number: int) -> Tensor:
        """The map of a layer; -1 is the last."""
        return self.map if number == -1 else self.maps[number]


Attention = Literal["bidirectional", "causal"]
# Which state a text tower projects: of <s>, of the end token, of the last position (padding, if
# any), or their mean.
Pooling = Literal["first", "end", "last", "mean"]


class TextLayout(NamedTuple):
    """What a position of a text tower sees, and which one is pooled."""

    attention: Attention = "causal"
    pooling: Pooling = "end"


@dataclass(frozen=True)
class TextFeatures:
    """`embedding` (N, D), not normalised, and the last layer's `tokens` (N, L, W) with their
    `mask` (N, L).
    """

    embedding: Tensor
    tokens: Tensor
    mask: Tensor
    pooling: Pooling = "end"

    @property
    def states(self) -> Tensor:
        """`tokens`, the pooled state in the place of the end token; if <s> is pooled, the end
        token's is in its place.

        Losses compare these: then a student's pooled token learns the teacher's, wherever each
        tower pools.
        """
        if self.pooling == "end":
            return self.tokens
        place = torch.arange(self.mask.shape[1], device=self.mask.device)
        is_end = (place == self.mask.sum(1, keepdim=True) - 1)[..., None]
        if self.pooling == "mean":
            mask = self.mask[..., None]
            pooled = (self.tokens * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(
                min=1
            )
            return torch.where(is_end, pooled, self.tokens)
        if self.pooling == "last":
            return torch.where(is_end, self.tokens[:, -1:], self.tokens)
        end = (self.tokens * is_end).sum(1, keepdim=True)
        states = torch.where(is_end, self.tokens[:, :1], self.tokens)
        return torch.where((place == 0)[:, None] & ~is_end, end, states)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode and computes no gradients while the block runs; then its modules
    have their modes.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:  # model.train() would set those of frozen modules as well
            module.training = True


class Towers(nn.Module, ABC):
    """An image tower and a text tower with a shared embedding space, and their preprocessing."""

    model: Any  # the library's own module
    name: str
    fingerprint: str  # changes whenever any output could change
    context_length: int  # tokens of the longest text; others are cut
    fp16: ClassVar[bool] = True  # whether it computes in fp16 without overflowing
    precision = AS_ASKED  # of the towers as a teacher
    _is_cast = False
    compilable: Collection[str] = (
        "image",
        "text",
    )  # not where hooks give features: a graph keeps the first hook
    compiled: Mapping[
        str, Callable[..., Any]
    ] = {}  # what training calls in place of features of "image" and "text"

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """A context without gradients, in the precision chosen in the teacher's options, to which
        weights are cast.
        """
        self.cast_weights()
        with torch.no_grad(), self.autocast(self.precision.precision):
            yield

    def cast_weights(self) -> None:
        """Cast weights, once, to what autocast casts them to at each use; every output stays the
        same, bit for bit.

        A student that inherits weights takes them before. Layers of other classes may use theirs
        in other ways.
        """
        # On a CPU torch has another kernel for attention, where inputs and weights are of one
        # type.
        on_cpu = next(self.parameters()).device.type == "cpu"
        if not self._is_cast and self.precision.precision in _HALF:
            for layer in self.modules():
                if type(layer) in (_LAYERS if on_cpu else _LAYERS + _ATTENTION):
                    # open_clip casts token embeddings to the type of a layer, or to this one.
                    layer.int8_original_dtype = torch.float32  # type: ignore[assignment]
                    for name, weight in [
                        *layer.named_parameters(recurse=False)
                    ]:  # a new one: embeddings may share it
                        cast = weight.to(_HALF[self.precision.precision])
                        setattr(layer, name, nn.Parameter(cast, requires_grad=False))
        self._is_cast = True

    def autocast(self, precision: str) -> torch.autocast:
        """A context in which torch computes in `precision`, where that is bf16 or fp16."""
        device = next(self.parameters()).device.type
        return torch.autocast(
            device, _HALF.get(precision, torch.bfloat16), enabled=precision in _HALF
        )

    def compile_towers(self, names: Collection[str]) -> None:
        """Compile towers for training: images of one size, texts of any number and length."""
        functions: dict[str, Callable[..., Any]] = {
            "image": torch.compile(self.image_features, dynamic=False)
        }
        texts = torch.compile(lambda ids, mask: self.text_features(Tokens(ids, mask)), dynamic=True)
        functions["text"] = lambda tokens: texts(
            tokens.ids, tokens.mask
        )  # `lengths` would be constants of a graph
        self.compiled = {name: functions[name] for name in names if name in self.compilable}

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """The image tower's input (3, H, W), float32, for an RGB image; of NaFlex models as
        `NaflexTowers` says.
        """
        return (
            self.library_preprocess(image)
            if self.preprocessing is None
            else self.preprocessing(image)
        )

    @abstractmethod
    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        """As `preprocess`, by the library's own code."""

    def match_preprocessing(self) -> Preprocessing:
        """The Preprocessing that gives the values of the library's own. Raises DcclipError if
        there is none.
        """
        raise DcclipError(
            "{}: the preprocessing is available only in the model's own library",
            "use a model from another library",
            self.name,
        )

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """What `preprocess` does, or None if it is of another kind, and done by the library's own
        code.
        """
        try:
            return self.match_preprocessing()
        except DcclipError:
            return None

    @property
    def preprocessing_record(self) -> dict[str, Any]:
        """What `preprocess` does, for results: in open_clip's terms, or whose model it is."""
        return (
            {"as_in": self.name} if self.preprocessing is None else self.preprocessing.to_config()
        )

    @abstractmethod
    def tokenize(self, texts: list[str]) -> Tokens:
        """The text tower's input, padded to the longest text if the tower allows it."""

    @abstractmethod
    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        """Features of preprocessed pixels (B, 3, H, W), with the maps of further `layers`.

        Layers are the image tower's stages (convolutional networks) or blocks: from 0, negative
        from the end. Raises DcclipError for a layer that does not exist.
        """

    @abstractmethod
    def text_features(self, tokens: Tokens) -> TextFeatures:
        """Features of tokenized texts."""

    def rows_by_size(self, pixels: Tensor) -> Sequence[Any]:
        """Groups of a batch's rows: computed alone, the images of a group have one size in every
        batch.
        """
        return [slice(None)]

    def image_embedding(self, pixels: Tensor) -> Tensor:
        """The embedding of `image_features` alone, as an export computes it."""
        return self.image_features(pixels).embedding

    def text_embedding(self, tokens: Tokens) -> Tensor:
        """The embedding of `text_features` alone, as an export computes it."""
        return self.text_features(tokens).embedding

    def make_traceable(self) -> None:
        """Let torch trace `image_embedding` for any number of images."""

    def text_features_by_length(self, tokens: Tokens, part_size: int | None = None) -> TextFeatures:
        """`text_features` in parts of similar length: less padding, other last bits; those of
        padding are 0.

        With `part_size`, each part is that many texts of one length, the last of them repeated
        where they are fewer: on a CPU, the features of a text then do not depend on the other
        texts.
        """
        texts, longest = tokens.ids.shape
        count = min(_LENGTHS, texts // _TEXTS_OF_A_LENGTH)
        text_features = self.compiled.get("text", self.text_features)
        if part_size is None and (count < 2 or not self.takes_any_length):
            return text_features(tokens)
        tokens = tokens.sorted()
        order = tokens.by_length
        outputs = list[TextFeatures]()
        end = 0
        assert order is not None
        texts_of_lengths = [*Counter(tokens.lengths).values()] if self.takes_any_length else [texts]
        if part_size is None:
            parts = [*order.tensor_split(count)]
        else:
            parts = [
                part for rows in order.split(texts_of_lengths) for part in rows.split(part_size)
            ]
        for rows in parts:
            size = len(rows)
            lengths = tokens.lengths[end : end + len(rows)]
            end = end + size
            columns = slice(lengths[-1] if self.takes_any_length else longest)
            repeats = (part_size or size) - size
            rows = torch.cat([rows, rows[-1:].expand(repeats)])
            lengths = lengths + lengths[-1:] * repeats
            part = text_features(
                Tokens(tokens.ids[rows, columns], tokens.mask[rows, columns], lengths=lengths)
            )
            outputs.append(
                TextFeatures(
                    part.embedding[:size], part.tokens[:size], part.mask[:size], part.pooling
                )
            )
        back = torch.argsort(order)
        hidden = outputs[0].tokens.new_zeros(texts, longest, outputs[0].tokens.shape[2])
        for rows, part in zip(
            parts, outputs, strict=True
        ):  # in place: 512 texts of AltCLIP take 161 MB
            hidden[rows, : part.tokens.shape[1]] = part.tokens
        embedding = torch.cat([part.embedding for part in outputs])[back]
        return TextFeatures(embedding, hidden, tokens.mask, outputs[0].pooling)

    @property
    def takes_any_length(self) -> bool:
        """Whether the features of a text do not depend on its padding."""
        return False

    @property
    def text_layout(self) -> TextLayout:
        """How the text tower attends and pools, which students follow."""
        return TextLayout()

    trained_dims: Sequence[
        int
    ] = ()  # numbers of first dimensions that were trained to be embeddings as well
    known: KnownWords | None = None  # how it says that it never learnt a text

    def image_fingerprint(self) -> str:
        """What changes whenever an embedding of an image could change."""
        return self.fingerprint

    @property
    @abstractmethod
    def _table(self) -> nn.Embedding:
        """The text tower's embedding of tokens."""

    @property
    def vocabulary_rows(self) -> int:
        return self._table.num_embeddings

    @abstractmethod
    def token_embedding(self) -> tuple[Tensor, dict[str, int]]:
        """The text tower's embedding table (V, W), and the row of each token of its vocabulary."""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosines before the softmax (1 / temperature); of models that publish none
        100, CLIP's most.
        """
        scale = getattr(self.model, "logit_scale", None)
        return 100.0 if scale is None else float(scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """The bias that a sigmoid loss adds to the logits; None for softmax models."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class OpenClipTowers(Towers):
    """An open_clip model: every student, and open_clip teachers.

    open_clip's own text transformer takes texts of any length here: the causal mask is cut to the
    batch, which open_clip 3.3 does not do. Other text towers (Hugging Face encoders) get
    full-length input.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tokens],
        preprocess: Preprocessing | Callable[[Image.Image], Tensor],
        name: str,
        fingerprint: str,
        vocab: dict[str, int] | None = None,
    ) -> None:
        """`vocab`: the row of each token, if the tokenizer has a vocabulary and does not know it
        itself.
        """
        super().__init__()
        self.model = model
        self.vocab = vocab or getattr(tokenizer, "vocab", None)
        self.library_tokenizer = getattr(
            tokenizer, "library", None
        )  # open_clip's, if that is the tokenizer
        self.context_length = int(self._text.context_length)
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self.name = name
        self.fingerprint = fingerprint
        self.compilable = ("image", "text") if self.takes_any_length else ("image",)

    def image_fingerprint(self) -> str:
        visual = self.model.visual
        record = json.dumps(self.preprocessing_record, sort_keys=True)
        return module_digest(visual, f"{visual!r} {record}")

    def library_preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._preprocess(image))

    def match_preprocessing(self) -> Preprocessing:
        if isinstance(self._preprocess, Preprocessing):
            return self._preprocess
        config = getattr(self.model.visual, "preprocess_cfg", None)
        return matching_preprocessing(self.name, self.library_preprocess, dict(config or {}))

    def tokenize(self, texts: list[str]) -> Tokens:
        return self._tokenizer(texts)

    def image_features(self, pixels: Tensor, layers: Sequence[int] = ()) -> ImageFeatures:
        count = 1
        if layers:
            visual = self.model.visual
            trunk = getattr(visual, "trunk", visual)
            count = len(
                trunk.feature_info
                if hasattr(trunk, "feature_info")
                else visual.transformer.resblocks
            )
        check_layers(self.name, layers, count)
        out = self.model.visual.forward_intermediates(
            pixels, indices=[*layers, -1], output_fmt="NCHW"
        )
        # open_clip returns them in the network's order, each once, whatever the order of `layers`.
        maps = out["image_intermediates"]
        map_of_layer = dict(
            zip(sorted({layer % count for layer in (*layers, -1)}), maps, strict=True)
        )
        return ImageFeatures(
            out["image_features"],
            maps[-1],
            {layer: map_of_layer[layer % count] for layer in layers},
        )

    @property
    def _text(self) -> Any:
        return getattr(
            self.model, "text", self.model
        )  # open_clip's CLIP class has the text layers in itself

    @property
    def _table(self) -> Any:
        return (
            getattr(self._text, "token_embedding", None)
            or self._text.transformer.get_input_embeddings()
        )

    def token_embedding(self) -> tuple[Tensor, dict[str, int]]:
        table = getattr(self._text, "token_embedding", None)
        if table is None or self.vocab is None:
            raise DcclipError(
                "the vocabulary of {} cannot be inherited", "remove student.text.inherit", self.name
            )
        return table.weight.detach(), self.vocab

    @property
    def takes_any_length(self) -> bool:
        text: Any = getattr(self.model, "text", None)
        # Causal, and pooled at a token that is found by its id, not at a class token after the
        # text.
        looks_back = getattr(text, "attn_mask", None) is not None and text.cls_emb is None
        return looks_back and text.pool_type in ("argmax", "eos", "first")

    @property
    def text_layout(self) -> TextLayout:
        text = self._text
        if hasattr(text, "pooler"):  # a Hugging Face encoder
            return TextLayout(
                "bidirectional", "first" if "Cls" in type(text.pooler).__name__ else "mean"
            )
        pooling = getattr(text, "text_pool_type", None) or text.pool_type
        if getattr(text, "cls_emb", None) is not None:
            pooling = "last"
        attention: Attention = "bidirectional" if text.attn_mask is None else "causal"
        return TextLayout(attention, pooling if pooling in ("first", "last") else "end")

    def image_embedding(self, pixels: Tensor) -> Tensor:
        return self.model.visual(pixels)

    def text_features(self, tokens: Tokens) -> TextFeatures:
        from open_clip.transformer import TextTransformer, text_global_pool

        text = self._text
        is_clip = self._text is self.model
        if not is_clip and (not isinstance(text, TextTransformer) or text.cls_emb is not None):
            transformer = getattr(text, "transformer", text)
            hook = transformer.register_forward_pre_hook(_without_blank_mask, with_kwargs=True)
            with hook, module_outputs([transformer]) as outputs:
                pooled = self.model.encode_text(tokens.ids)
            hidden = getattr(outputs()[0], "last_hidden_state", outputs()[0])
            if (
                extra := hidden.shape[1] - tokens.ids.shape[1]
            ):  # a class token after the text, which is pooled
                mask = nn.functional.pad(tokens.mask, (0, extra))
                states = TextFeatures(pooled, hidden, mask, self.text_layout.pooling).states
                return TextFeatures(pooled, states[:, : tokens.ids.shape[1]], tokens.mask)
            return TextFeatures(pooled, hidden, tokens.mask, self.text_layout.pooling)
        length = tokens.ids.shape[1]
        if is_clip:
            pool = text.text_pool_type
            end = text.text_eos_id
            mask = text.attn_mask
            hidden = text.token_embedding(tokens.ids) + text.positional_embedding[:length]
        else:
            pool = text.pool_type
            end = text.eos_id
            hidden, mask = text._embeds(tokens.ids)
        if mask is not None and mask.ndim == 2:
            mask = mask[:length, :length]
        hidden = text.ln_final(text.transformer(hidden, attn_mask=mask))
        pooled = text_global_pool(hidden, tokens.ids, pool_type=pool, eos_token_id=end)
        if isinstance(text.text_projection, nn.Linear):
            pooled = text.text_projection(pooled)
        elif text.text_projection is not None:
            pooled = pooled @ text.text_projection
        return TextFeatures(pooled, hidden, tokens.mask, self.text_layout.pooling)


def _without_blank_mask(
    _module: nn.Module, inputs: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Drop an attention mask on the meta device: transformers reads its values to find padding."""
    mask = options.get("attention_mask")
    return inputs, options if mask is None or not mask.is_meta else options | {
        "attention_mask": None
    }


def module_digest(module: nn.Module, about: str) -> str:
    """A sha256 of a module's weights in memory, which are not copied, and of `about`."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def on_grid(hidden: Tensor) -> Tensor:
    """Patch tokens (B, n, C) as a map (B, C, h, w); the map of a convolutional tower unchanged."""
    if hidden.ndim == 4:
        return hidden
    grid = int(hidden.shape[1] ** 0.5)  # a class token comes first, if there is one
    patches = hidden[:, hidden.shape[1] - grid * grid :]
    return patches.transpose(1, 2).unflatten(2, (grid, grid))


def check_layers(name: str, layers: Sequence[int], count: int) -> None:
    """Raise DcclipError unless an image tower of `count` layers has all these `layers`."""
    if not all(-count <= layer < count for layer in layers):
        numbers = ", ".join(map(str, layers))
        message = Message("the image tower of {} lacks some of the layers {}", name, numbers)
        raise DcclipError(
            message,
            Message("use layers 0 to {}, or -{} to -1 counted from the end", count - 1, count),
        )


@contextmanager
def module_outputs(modules: Sequence[nn.Module]) -> Iterator[Callable[[], list[Tensor]]]:
    """A function that returns what each of the modules returned last, in their order."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[module] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(keep) for module in dict.fromkeys(modules)]
    try:
        yield lambda: [outputs[module] for module in modules]
    finally:
        for handle in handles:
            handle.remove()
