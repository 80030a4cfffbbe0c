"""Per-pair signatures for deduplication: image hashes, a thumbnail, caption hashes and MinHash bands."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.decode_image import DecodedImage
from dcclip_cli.curation.dedup.image_similarity import perceptual_hashes, thumbnail
from dcclip_cli.curation.dedup.minhash import bands_of, text_hash
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.model.preprocess import flatten

if TYPE_CHECKING:
    import pyarrow as pa


def signature_schema() -> pa.Schema:
    """The columns of a signature file; `signatures_of` gives one row."""
    import pyarrow as pa

    whole = pa.uint64()
    fields = {
        "key": pa.string(),
        "source": pa.string(),
        "file_hash": pa.binary(),
        "pixel_hash": pa.binary(),
        "hashes": pa.list_(whole),
        "thumb": pa.binary(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    for language in LANGUAGES:
        fields[language] = pa.list_(pa.string())
        fields[f"{language}_hashes"] = pa.list_(whole)
        fields[f"{language}_bands"] = pa.list_(pa.list_(whole))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def signatures_of(pair: Pair, decoded: DecodedImage, source: str) -> dict[str, Any]:
    """One row: hashes and a thumbnail of the image as training sees it, on white, and hashes of the captions."""
    image = flatten(decoded.image)
    thumb = thumbnail(image)
    row: dict[str, Any] = {
        "key": pair.key,
        "source": source,
        "file_hash": _short(pair.image),
        "pixel_hash": _short(f"{image.width} {image.height} ".encode() + image.tobytes()),
        "hashes": perceptual_hashes(thumb),
        "thumb": thumb.tobytes(),
        "width": image.width,
        "height": image.height,
    }
    for language in LANGUAGES:
        captions = pair.captions(language)
        row[language] = list(captions)
        row[f"{language}_hashes"] = [text_hash(caption) for caption in captions]
        row[f"{language}_bands"] = [bands_of(caption) for caption in captions]
    return row


def _short(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]  # 128 bits: no collision expected among 10**12 images
