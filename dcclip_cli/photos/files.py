"""`predict`, `search` and `embed` of the Python API: for image files, with a model that is named."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_file, atomic_write, several
from dcclip_cli.core.progress import ProgressChoice, progress_for
from dcclip_cli.core.text import printable, split_excluded
from dcclip_cli.inference import model as predictions
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import PathLike, image_files
from dcclip_cli.inference.model import Prediction, open_encoder
from dcclip_cli.inference.zero_shot import Labels, text_embeddings, unknown_of, vocabulary_words
from dcclip_cli.photos.index import (
    Hit,
    ImageIndex,
    direction,
    distinct,
    embedded_images,
    embedded_texts,
    open_index,
    say_missing,
    search_all,
)

# benchmarks/everyday.tsv, first half: 30 % of useless searches do not fit, no useful one does not.
_FIRST = 8
_IMAGES_PER_FIT = 500


@dataclass(frozen=True)
class SearchResult:
    """The images that fit a search best, the best first, and by path the errors of those that
    cannot be read.

    An image that failed in an earlier search and has not changed is not tried again, and not among
    the errors.

    `unknown` are the texts without a word that the model knows, and the words that it ignores in
    others. `fits` is False if the images most likely show something else: see `query_fits`. Models
    that cannot tell say neither.
    """

    hits: list[Hit]
    errors: dict[str, DcclipError]
    unknown: list[str]
    fits: bool


@dataclass(frozen=True)
class Embeddings:
    """A file of embeddings, its rows' names, errors of images without a row by path, and what
    `unknown` names.
    """

    file: Path
    names: list[str]
    errors: dict[str, DcclipError]
    unknown: list[str]


def predict(
    images: PathLike | Iterable[PathLike],
    labels: Sequence[str],
    *,
    model: PathLike | predictions.Model | None = None,
    templates: Sequence[str] | None = None,
    multi_label: bool = False,
    top_k: int | None = 5,
    threshold: float = 0.0,
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressChoice = False,
) -> list[Prediction]:
    """Classify image files zero-shot; returns the best labels of each with their probabilities, or
    its error.

    `images` are files, folders or globs, `model` what `load` takes or returns. `templates` replace
    the model's own; an empty list means the bare labels. To classify images in memory, or one
    after the other, use `load(...).predict`.
    """
    talk = progress_for(progress)
    paths = list(image_files(images))
    encoder = open_encoder(model, device, threads, talk)
    ready = Labels(encoder, list(dict.fromkeys(labels)), templates, multi_label, talk)
    results = []
    with talk.task(Message("predict"), len(paths)) as task:
        for prediction in predictions.predict(encoder, ready, paths, top_k, threshold):
            results.append(prediction)
            task.advance()
    return results


def search(
    text: str | Sequence[str],
    folder: PathLike | Iterable[PathLike],
    *,
    images: Sequence[PathLike] = (),
    without: Sequence[str] = (),
    model: PathLike | predictions.Model | None = None,
    top_k: int = 12,
    dims: int | None = None,
    fresh: bool = False,
    exclude: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressChoice = False,
) -> SearchResult:
    """Find the images and videos in folders that match texts and `images` best; returns them with
    their cosines.

    The embeddings of texts and images are added, those of the texts `without`, and of words after
    a minus, subtracted: `dog -beach` is `dog` without `beach`. Each image of a folder is embedded
    once, as by the command: the index is in the cache folder. `fresh` embeds all again. `exclude`
    are globs for files and folders to leave out.
    """
    talk = progress_for(progress)
    texts, without = split_excluded([text] if isinstance(text, str) else text, without)
    folders = [Path(path) for path in several(folder)]
    if not all(text.strip() for text in (*texts, *without)) or not (texts or images):
        raise DcclipError(
            "the text is empty", 'give a query, for example: dcclip search "一只狗" FOLDER'
        )
    encoder = open_encoder(model, device, threads, talk, dims)
    embedder = predictions.Model(encoder)
    queries = [*texts, *without]
    vectors = embedder.embed_texts(queries) if queries else np.zeros((0, 1), np.float32)
    unknown = unknown_of(encoder, queries, vectors)
    added = np.concatenate([*filter(len, (vectors[: len(texts)], embedder.embed_images(images)))])
    query = direction(added, vectors[len(texts) :])
    indexes = [open_index(encoder, folder, fresh, talk, exclude) for folder in distinct(folders)]
    count = sum(len(index.images) for index in indexes)
    new = sum(index.embedded for index in indexes)
    talk.say(Message("search: {} images, {} of them newly embedded", count, new))
    say_missing("search", indexes, talk)
    errors = {
        str(index.folder / name): error for index in indexes for name, error in index.errors.items()
    }
    hits = search_all(indexes, query, top_k)
    return SearchResult(hits, errors, unknown, bool(images) or query_fits(encoder, indexes, texts))


def query_fits(encoder: Encoder, indexes: Sequence[ImageIndex], texts: Sequence[str]) -> bool:
    """Whether some image fits the words of `texts` that the model knows together, and enough
    images each of them.

    The more images there are, the more of them are near a word that none shows. So an image fits
    from a cosine of `known.fits` on among 500 images, of half of it if it is the only one, and a
    word needs one of 500 images, at most eight. True for a model that cannot tell, False without a
    word that it knows.
    """
    lexicon = encoder.known
    count = sum(len(index.images) for index in indexes)
    if lexicon is None:
        return True
    vector_by_word = vocabulary_words(encoder, texts)
    if not vector_by_word:
        return False
    [sentence] = text_embeddings(encoder, [" ".join(vector_by_word)])
    least = lexicon.fits * (1 + min(1.0, math.log(max(1, count)) / math.log(_IMAGES_PER_FIT))) / 2
    needed = max(1, min(_FIRST, count // _IMAGES_PER_FIT))
    best = [search_all(indexes, sentence, 1)]
    best += [search_all(indexes, vector, needed) for vector in vector_by_word.values()]
    return all(hits and hits[-1].score >= least for hits in best)


def embed(
    images: PathLike | Iterable[PathLike] = (),
    *,
    texts: Sequence[str] = (),
    out: PathLike = "embeddings.npy",
    model: PathLike | None = None,
    dims: int | None = None,
    dtype: Literal["fp32", "fp16"] = "fp32",
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressChoice = False,
) -> Embeddings:
    """Write the embeddings of image files, or of `texts`, to FILE.npy or FILE.parquet; returns it
    with its names.

    For embeddings in memory use `load(...).embed_images` and `embed_texts`.
    """
    talk = progress_for(progress)
    out = Path(out)
    if out.suffix == ".parquet":
        import pyarrow  # noqa: F401  # if it is missing, before the images are embedded
    paths = list(image_files(images))
    encoder = open_encoder(model, device, threads, talk, dims)
    if texts:
        with embedded_texts(encoder, texts, out, talk) as vectors:
            _write(out, texts, vectors, dtype)
            unknown = unknown_of(encoder, texts, vectors)
        return Embeddings(out, list(texts), {}, unknown)
    with embedded_images(encoder, paths, out, talk) as embedded:
        errors = {str(paths[place]): error for place, error in embedded.errors.items()}
        if not embedded.has_vector.any():
            why = "\n".join(error.what for error in errors.values())
            raise DcclipError(
                "{}no image could be read", "fix or replace these files", why and f"{why}\n"
            )
        names = [str(path) for path in compress(paths, embedded.has_vector)]
        _write(out, names, embedded.vectors, dtype)
    return Embeddings(out, names, errors, [])


def _write(out: Path, names: Sequence[str], vectors: np.ndarray, dtype: str) -> None:
    rows = vectors.astype(np.float16 if dtype == "fp16" else np.float32)
    names = [printable(name) for name in names]
    with atomic_file(out) as partial:
        if out.suffix == ".npy":
            with partial.open("wb") as stream:
                np.save(stream, rows)
            atomic_write(out.with_suffix(".txt"), "".join(f"{name}\n" for name in names))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(rows.reshape(-1))
        table = pa.table(
            {"name": names, "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])}
        )
        pq.write_table(table, partial)
