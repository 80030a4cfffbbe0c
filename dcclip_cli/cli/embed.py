"""`dcclip embed IMAGE... --out FILE`: embeddings of images or texts, for other programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Exit, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    import numpy as np

    from dcclip_cli.predict.encoder import Encoder
    from dcclip_cli.progress import Progress

SUFFIXES = (".npy", ".parquet")


def embed(
    images: Annotated[list[str] | None, flags.IMAGES] = None,
    texts: Annotated[
        list[str] | None, Option("--text", metavar="TEXT", help="Text to embed instead of images. Repeatable.")
    ] = None,
    texts_file: Annotated[
        Path | None,
        Option("--texts-file", metavar="FILE", help="File with more texts, one per line.", show_default=False),
    ] = None,
    out: Annotated[
        Path,
        Option("--out", metavar="FILE", help="FILE.npy (with names in FILE.txt) or FILE.parquet.", show_default=False),
    ] = Path("embeddings.npy"),
    model: flags.Model = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Write the embeddings of images or texts to a file.

    Embeddings have length 1, so dot products are cosines. FILE.npy has one row per input, and FILE.txt one name per
    row; FILE.parquet has the columns name and embedding. Texts are embedded without templates.
    Exit code 1 if an image cannot be read; it has no row. Prints the path of the file.
    """
    if out.suffix not in SUFFIXES:
        raise BadParameter(f"--out must end in {' or '.join(SUFFIXES)}")
    wanted = [*(texts or ()), *flags.lines_of(texts_file, "text")]
    if bool(images) == bool(wanted):
        raise BadParameter("give images, or texts with --text or --texts-file")
    talk = console.talk(quiet, verbose)

    from dcclip_cli.model.reference import resolve
    from dcclip_cli.predict.encoder import load_encoder

    reference = resolve(model)
    paths = _paths(images or ())
    talk.say(reference.description)
    encoder = load_encoder(reference, device, threads=threads)
    named = _of_texts(encoder, wanted) if wanted else _of_images(encoder, paths, talk)
    names, vectors, unread = [], [], 0
    for name, vector in named:
        if isinstance(vector, DcclipError):
            console.error_line(vector.what)
            unread += 1
        else:
            names.append(name)
            vectors.append(vector)
    if not vectors:
        raise DcclipError("none of the images could be read", "use JPEG, PNG or WebP files")
    _write(out, names, vectors)
    console.show(str(out))
    if unread:
        raise Exit(1)


def _paths(images: Sequence[str]) -> list[Path]:
    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.predict.images import find_images

    keep_freed_memory()
    return list(find_images(images, sys.stdin))


def _of_texts(encoder: Encoder, texts: Sequence[str]) -> Iterator[tuple[str, np.ndarray | DcclipError]]:
    from dcclip_cli.predict.zero_shot import text_embeddings

    yield from zip(texts, text_embeddings(encoder, texts), strict=True)


def _of_images(
    encoder: Encoder, paths: Sequence[Path], talk: Progress
) -> Iterator[tuple[str, np.ndarray | DcclipError]]:
    from dcclip_cli.model.preprocess import decode
    from dcclip_cli.predict.images import embed

    for path, found in console.counted(talk, "embed", embed(encoder, paths, decode), len(paths)):
        yield str(path), found


def _write(out: Path, names: Sequence[str], vectors: Sequence[np.ndarray]) -> None:
    """Write the embeddings and their names."""
    import numpy as np

    from dcclip_cli.files import atomic_file, atomic_write

    rows = np.stack(vectors).astype(np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as partial:
        if out.suffix == ".npy":
            with partial.open("wb") as stream:
                np.save(stream, rows)
            atomic_write(out.with_suffix(".txt"), "".join(f"{' '.join(name.split())}\n" for name in names))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(rows.reshape(-1), pa.float32())
        table = pa.table({"name": names, "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])})
        pq.write_table(table, partial)
