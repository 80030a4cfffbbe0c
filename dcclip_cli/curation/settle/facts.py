"""What must be known of a pair to tell it from, or find it among, all the others without reading it again?"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dcclip_cli.curation.candidate import Picture
from dcclip_cli.curation.settle.likeness import hashes_of, thumbnail
from dcclip_cli.curation.settle.wording import bands_of, text_hash
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.model.preprocess import flatten

if TYPE_CHECKING:
    import pyarrow as pa


def facts_schema() -> pa.Schema:
    """The columns of a file of facts; a row is what `facts_of` gives."""
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


def facts_of(pair: Pair, picture: Picture, source: str) -> dict[str, Any]:
    """One row of facts: hashes and a thumbnail of the picture as training sees it, on white; the captions' hashes."""
    image = flatten(picture.image)
    thumb = thumbnail(image)
    facts: dict[str, Any] = {
        "key": pair.key,
        "source": source,
        "file_hash": _short(pair.image),
        "pixel_hash": _short(f"{image.width} {image.height} ".encode() + image.tobytes()),
        "hashes": hashes_of(thumb),
        "thumb": thumb.tobytes(),
        "width": image.width,
        "height": image.height,
    }
    for language in LANGUAGES:
        captions = pair.captions(language)
        facts[language] = list(captions)
        facts[f"{language}_hashes"] = [text_hash(caption) for caption in captions]
        facts[f"{language}_bands"] = [bands_of(caption) for caption in captions]
    return facts


def _short(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]  # 128 bits: no chance meeting among 10**12 pictures
