"""`dcclip index`: indexes of training data."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError

_DATA = Argument(metavar="PATH", help="Tar and Parquet files, folders or globs of them, or their URLs.")
_VERIFY = Option("--verify", help="Read all data, and compare it with the indexes that there are.")
_FRESH = Option("--fresh", help="Index files again that have an index.")
_KEY = Option("--key", metavar="NAME", help="Column of the keys, as data.columns.key in a recipe; so are the others.")
_IMAGE = Option("--image", metavar="NAME", help="Column of the images: bytes, or a struct with a field bytes.")
_ZH = Option("--zh", metavar="NAME", help="Column of Chinese captions.")
_EN = Option("--en", metavar="NAME", help="Column of English captions.")
_CAPTION = Option("--caption", metavar="NAME", help="Column of captions in either language.")


def index(
    data: Annotated[list[str], _DATA],
    verify: Annotated[bool, _VERIFY] = False,
    fresh: Annotated[bool, _FRESH] = False,
    key: Annotated[str | None, _KEY] = None,
    image: Annotated[str | None, _IMAGE] = None,
    zh: Annotated[str | None, _ZH] = None,
    en: Annotated[str | None, _EN] = None,
    caption: Annotated[str | None, _CAPTION] = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Index training data written by others, so that training on it starts at once.

    Writes FILE.index.arrow next to each tar or Parquet file. Files with an index that is newer are skipped. Training
    does the same at its first start, in the cache folder; collect has done it for its shards. Prints the counts.
    """
    from dcclip_cli.data.dataset import shards_at
    from dcclip_cli.data.index import find_indexes, own_place, verify_files
    from dcclip_cli.data.shards import Columns

    columns, talk = Columns(key=key, image=image, zh=zh, en=en, caption=caption), console.talk(quiet, verbose)
    files = [file for source in data for file in shards_at(source)]
    if not files:
        raise DcclipError("{} has no tar and no Parquet file", "name files, folders or globs of them", " ".join(data))
    find = verify_files if verify else partial(find_indexes, fresh=fresh, place=own_place)
    found = find(files, columns, talk)
    images = sum(sum(one.about.rows) for one in found)
    pairs = sum(sum(one.about.captioned) for one in found)
    alone = f", {images - pairs:,} images without captions" if images > pairs else ""
    console.show(f"{pairs:,} pairs in {len(found):,} {'file' if len(found) == 1 else 'files'}{alone}")
