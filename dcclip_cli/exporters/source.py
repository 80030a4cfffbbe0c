"""Source of an export: a model's towers, with its tokenizer and preprocessing in a form that needs no torch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.exporters.samples import TEXTS
from dcclip_cli.exporters.tokenizer_json import for_all_clients
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.model.tokenizer import copy_tokenizer, load_tokenizer
from dcclip_cli.predict.encoder import TorchEncoder, load_torch_encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dcclip_cli.model.towers import Towers
    from dcclip_cli.predict.encoder import Encoder


@dataclass
class Source:
    """A loaded model. Texts are padded with `padding_id` to the longest of them, or to `context_length` if `fixed`.

    `folder` is the model directory or the bundle, if it was loaded from one. The graphs cut embeddings to `dims`
    numbers.
    """

    loaded: Encoder | None  # None after `release`
    tokenizer: Tokenizer
    context_length: int
    padding_id: int
    fixed: bool
    preprocessing: Preprocessing
    folder: Path | None = None
    dims: int | None = None

    def __post_init__(self) -> None:
        encoder, self.tokenizer = self.encoder, for_all_clients(self.tokenizer)
        self.name, self.parameters, self.fingerprint = encoder.name, encoder.parameters, encoder.fingerprint
        self.prompts = encoder.prompts
        self.logit_scale, self.logit_bias = encoder.logit_scale, encoder.logit_bias
        self.trained_dims = encoder.trained_dims

    @property
    def encoder(self) -> Encoder:
        """The model to compare exports with."""
        assert self.loaded is not None, "the model was released"
        return self.loaded

    @property
    def towers(self) -> Towers:
        """The towers of a model in torch, not of a bundle."""
        assert isinstance(self.loaded, TorchEncoder), "the model was released, or is a bundle"
        return self.loaded.towers

    def release(self) -> None:
        """Free the model's memory, whatever still refers to its weights: torch's ONNX exporter does."""
        for weight in (*self.towers.parameters(), *self.towers.buffers()):
            weight.data = weight.data.new_empty(0)
        self.loaded = None
        gc.collect()


def load_source(reference: ModelReference) -> Source:
    """The model meant by a reference, no bundle, on the CPU. Raises DcclipError for models that cannot leave torch."""
    encoder = load_torch_encoder(reference, "cpu")
    towers: Any = encoder.towers
    preprocessing = towers.preprocessing or towers.match_preprocessing()
    if reference.kind == "hf":
        tokenizer = copy_tokenizer(_backend(towers, towers.tokenizer))
        padding = int(towers.tokenizer.pad_token_id)
        source = Source(encoder, tokenizer, towers.context_length, padding, towers.fixed_length, preprocessing)
    elif reference.kind == "folder" and towers.library_tokenizer is None:
        tokenizer, length = load_tokenizer(reference.path), towers.context_length
        padding = tokenizer.token_to_id("<pad>") or 0
        source = Source(encoder, tokenizer, length, padding, _is_fixed(towers), preprocessing, reference.path)
    else:
        source = _of_open_clip(encoder, preprocessing)
    _check_tokens(source)
    return source


def _of_open_clip(encoder: TorchEncoder, preprocessing: Preprocessing) -> Source:
    import open_clip

    towers: Any = encoder.towers
    own = towers.library_tokenizer
    if isinstance(own, open_clip.tokenizer.SimpleTokenizer):
        tokenizer, padding = _byte_pairs(own), 0
    else:
        inner = getattr(own, "tokenizer", own)
        tokenizer, padding = _with_cleaning(copy_tokenizer(_backend(towers, inner)), own.clean_fn), inner.pad_token_id
    return Source(encoder, tokenizer, int(own.context_length), int(padding or 0), _is_fixed(towers), preprocessing)


def _backend(towers: Towers, tokenizer: Any) -> Tokenizer:
    """The tokenizer of the tokenizers library inside one of transformers."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        what = Message("{} has a {}, which has no tokenizer.json", towers.name, type(tokenizer).__name__)
        raise DcclipError(what, "save it as a fast tokenizer with transformers, or export another model")
    return backend


def _byte_pairs(own: Any) -> Tokenizer:
    """open_clip's own tokenizer (the original CLIP's) as a tokenizer of the tokenizers library."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    tokenizer = Tokenizer(models.BPE(own.encoder, merges, end_of_word_suffix="</w>", fuse_unk=False))
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    begin, end = "<start_of_text>", "<end_of_text>"
    tokenizer.add_special_tokens([begin, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, own.sot_token_id), (end, own.eot_token_id)]
    )
    return _with_cleaning(tokenizer, own.clean_fn)


def _with_cleaning(tokenizer: Tokenizer, clean: Callable[[str], str]) -> Tokenizer:
    """The tokenizer with open_clip's cleaning of texts as its first steps.

    That includes ftfy's changes to valid texts (full-width letters and punctuation become narrow, curly quotes
    straight), but not its repair of wrongly decoded ones.
    """
    from tokenizers import Regex, normalizers

    narrow = {0x3000: " "} | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    straight = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
    steps: list[Any] = [normalizers.Replace(chr(code), char) for code, char in (narrow | straight).items()]
    steps.append(normalizers.NFC())
    if clean("A_B.") == "a b":  # "canonicalize", of SigLIP's tokenizers
        punctuation = Regex(r"[!-/:-@\[-^`{-~]")
        steps += [normalizers.Replace("_", " "), normalizers.Replace(punctuation, ""), normalizers.Lowercase()]
    elif clean("A") == "a":
        steps.append(normalizers.Lowercase())
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _check_tokens(source: Source) -> None:
    """Raises DcclipError if the tokenizer gives other ids than the model's own."""
    expected = source.towers.tokenize(list(TEXTS)).ids.numpy()
    found = np.asarray([one.ids for one in prepare(source).encode_batch(list(TEXTS))])
    width = min(found.shape[1], expected.shape[1])  # open_clip pads to the full length, which changes nothing
    for text, ids, own in zip(TEXTS, found, expected, strict=True):
        if list(ids[:width]) != list(own[:width]) or set(own[width:]) - {source.padding_id}:
            library = type(source.towers.model).__module__.split(".")[0]
            raise DcclipError(
                "{}: its tokenizer is not available without {}: '{}' would be tokenized differently",
                "export another model, or report this one",
                source.towers.name,
                library,
                text[:30],
            )


def prepare(source: Source) -> Tokenizer:
    """The source's tokenizer, set to truncate texts and to pad the shorter texts of a batch."""
    tokenizer, length = source.tokenizer, source.context_length
    tokenizer.enable_truncation(length)
    token = tokenizer.id_to_token(source.padding_id) or ""
    tokenizer.enable_padding(pad_id=source.padding_id, pad_token=token, length=length if source.fixed else None)
    return tokenizer


def _is_fixed(towers: Any) -> bool:
    """Whether padding changes the features of an open_clip text tower: it does unless a causal mask hides it."""
    from open_clip.transformer import TextTransformer

    text = getattr(towers.model, "text", None)
    if text is None:  # open_clip's CLIP class has the text layers in the model itself
        return towers.model.text_pool_type not in ("argmax", "eos") or towers.model.attn_mask is None
    causal = isinstance(text, TextTransformer) and text.cls_emb is None and text.attn_mask is not None
    return not causal or text.pool_type not in ("argmax", "eos")
