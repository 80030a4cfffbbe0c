"""What leaves for the device: any model's towers, with its tokenizer and preprocessing in terms that need no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.model.tokenizer import copy_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dcclip_cli.model.towers import Towers
    from dcclip_cli.predict.encoder import TorchEncoder

# Pictures that show how a library resizes and crops: wide, high, square, and just too small.
_SIZES = ((301, 200), (97, 333), (256, 256), (63, 64))


@dataclass(frozen=True)
class Source:
    """A loaded model. Texts are padded with `padding_id` to the longest of them, or to `context_length` if `fixed`.

    `folder` is the model directory, where it came from one; `encoder` is the model as it was, to compare with.
    """

    towers: Towers
    encoder: TorchEncoder
    tokenizer: Tokenizer
    context_length: int
    padding_id: int
    fixed: bool
    preprocessing: Preprocessing
    folder: Path | None = None


def load_source(reference: ModelReference) -> Source:
    """The model meant by a reference, on the CPU. Raises DcclipError for bundles, and for what needs torch."""
    from dcclip_cli.predict.encoder import load_torch_encoder

    if reference.kind == "bundle":
        raise DcclipError(
            f"{reference.target} is a bundle already", "export the model directory that align or distill left"
        )
    encoder = load_torch_encoder(reference, "cpu")
    towers = encoder.towers
    if reference.kind == "hf":
        tokenizer, length, padding, fixed = _of_transformers(towers)
    elif reference.kind == "open_clip":
        tokenizer, length, padding, fixed = _of_open_clip(towers)
    else:
        tokenizer, length = load_tokenizer(reference.path), _open_clip_context_length(towers)
        padding, fixed = tokenizer.token_to_id("<pad>") or 0, _is_fixed(towers)
    preprocessing = towers.preprocessing or _preprocessing(towers)
    _check_tokens(tokenizer, towers, length, padding, fixed)
    folder = reference.path if reference.kind == "folder" else None
    return Source(towers, encoder, tokenizer, length, padding, fixed, preprocessing, folder)


# ---- tokenizers


def _of_transformers(towers: Any) -> tuple[Tokenizer, int, int, bool]:
    tokenizer = towers.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DcclipError(
            f"{towers.name} has a {type(tokenizer).__name__}, which has no tokenizer.json",
            "save it as a fast tokenizer with transformers, and export that directory",
        )
    return copy_tokenizer(backend), towers.context_length, int(tokenizer.pad_token_id), towers.fixed_length


def _of_open_clip(towers: Any) -> tuple[Tokenizer, int, int, bool]:
    import open_clip

    own: Any = open_clip.get_tokenizer(towers.name if towers.name.startswith("hf-hub:") else towers.name.split("/")[0])
    length = int(own.context_length)
    if isinstance(own, open_clip.tokenizer.SimpleTokenizer):
        return _byte_pairs(own), length, 0, _is_fixed(towers)
    backend = getattr(getattr(own, "tokenizer", None), "backend_tokenizer", None)
    if backend is None:
        raise DcclipError(
            f"{towers.name} has a {type(own).__name__}, which has no tokenizer.json", "export another model"
        )
    return (
        _with_cleaning(copy_tokenizer(backend), own.clean_fn),
        length,
        int(own.tokenizer.pad_token_id or 0),
        _is_fixed(towers),
    )


def _byte_pairs(own: Any) -> Tokenizer:
    """open_clip's own tokenizer (the original CLIP's), as one of the tokenizers library."""
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
    """The tokenizer, first doing to a text what open_clip does before it tokenises.

    That includes what ftfy does to whole texts (full-width letters and punctuation made narrow, curled quotes
    straight), not its mending of garbled ones.
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


def _check_tokens(tokenizer: Tokenizer, towers: Towers, length: int, padding: int, fixed: bool) -> None:
    """Raises DcclipError where the tokenizer gives other ids than the model's own."""
    from dcclip_cli.exporters.samples import TEXTS

    prepare(tokenizer, length, padding, fixed)
    own = towers.tokenize(list(TEXTS))
    found = np.asarray([encoding.ids for encoding in tokenizer.encode_batch(list(TEXTS))])
    expected = own.ids.numpy()
    width = min(found.shape[1], expected.shape[1])  # open_clip pads to the full length, which changes nothing
    for text, mine, theirs in zip(TEXTS, found, expected, strict=True):
        if list(mine[:width]) != list(theirs[:width]) or set(theirs[width:]) - {padding}:
            raise DcclipError(
                f"{towers.name}: its tokenizer can't be had without {type(towers.model).__module__.split('.')[0]}: "
                f"'{text[:30]}' would be cut differently",
                "export another model, or report this one",
            )


def prepare(tokenizer: Tokenizer, context_length: int, padding_id: int, fixed: bool) -> Tokenizer:
    """The tokenizer, made to cut texts at `context_length` and to pad the shorter ones of a batch."""
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=padding_id, length=context_length if fixed else None)
    return tokenizer


# ---- open_clip's text towers


def _open_clip_context_length(towers: Any) -> int:
    return int(getattr(towers.model, "text", towers.model).context_length)


def _is_fixed(towers: Any) -> bool:
    """Whether padding changes what an open_clip text tower says: it does unless a mask hides what comes later."""
    from open_clip.transformer import TextTransformer

    text = getattr(towers.model, "text", None)
    if text is None:
        return bool(towers.model.text_pool_type not in ("argmax", "eos") or towers.model.attn_mask is None)
    if not isinstance(text, TextTransformer):
        return True
    return bool(text.cls_emb is not None or text.pool_type not in ("argmax", "eos") or text.attn_mask is None)


# ---- preprocessing


def _preprocessing(towers: Any) -> Preprocessing:
    """What the library does to a picture, as a Preprocessing, tried. Raises DcclipError where it can't be said so."""
    config = _transformers_config(towers.image_processor) if hasattr(towers, "image_processor") else None
    try:
        found = Preprocessing.from_config(config or dict(towers.model.visual.preprocess_cfg))
    except (ValueError, TypeError, AttributeError) as error:
        raise DcclipError(f"{towers.name}: its preprocessing can't be exported: {error}", _OTHER) from None
    for picture in _pictures():
        theirs, mine = towers.preprocess(picture), found(picture)
        if theirs.shape != mine.shape or not np.abs(theirs - mine).max() < 1e-3:
            raise DcclipError(f"{towers.name}: its preprocessing is none of those that a bundle can do", _OTHER)
    return found


_OTHER = "export a model whose pictures are resized to a square, or by the shorter side and cropped to its middle"


def _transformers_config(processor: Any) -> dict[str, Any]:
    side = _sides(processor.size)
    crops = bool(getattr(processor, "do_center_crop", False))
    if crops and (cropped := _sides(processor.crop_size)) != side:
        raise ValueError(f"it crops {side} to {cropped}")
    names = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
    return {
        "size": side,
        "mean": tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        "std": tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        "interpolation": names.get(int(processor.resample), str(processor.resample)),
        "resize_mode": "shortest" if crops else "squash",
    }


def _sides(size: Mapping[str, int] | int) -> int:
    values = {int(value) for value in dict(size).values() if value} if not isinstance(size, int) else {size}
    if len(values) != 1:
        raise ValueError(f"its pictures are no squares: {size}")
    return values.pop()


def _pictures() -> Sequence[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _SIZES]
