"""Image files named by a user, and their embeddings."""

import fnmatch
import glob
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import is_listed, refuse_special, several
from dcclip_cli.core.machine import cores
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.videos import (
    VIDEO_SUFFIXES,
    frame_name,
    is_video,
    read_frame,
    split_frame,
)
from dcclip_cli.model.preprocess import (
    DAMAGE,
    FORMATS,
    MAX_PIXELS,
    ImageError,
    TooManyPixelsError,
    decode,
)

Item = TypeVar("Item")
PathLike = str | os.PathLike[str]
Result = np.ndarray | DcclipError
BATCH_SIZE = 16
_AHEAD = 3  # batches of images that are read ahead at most

_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".avif",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
# By format: the extra of dcclip that reads it, its package, the suffixes of its files.
_EXTRAS = {
    "HEIF": ("heic", "pillow_heif", (".heic", ".heif", ".hif")),
    "JXL": ("jxl", "pillow_jxl", (".jxl",)),
    "RAW": ("raw", "rawpy", _RAW),
    "VIDEO": ("video", "av", (*VIDEO_SUFFIXES,)),
}
# Pictures and videos that are counted as skipped. Nobody searches for the other files of a photo
# library.
_MEDIA = {
    *(".psd", ".svg", ".jp2", ".ico", ".eps", ".flv"),
    *(suffix for _, _, suffixes in _EXTRAS.values() for suffix in suffixes),
}
LINKS = "links"  # counted as skipped: links that lead out of the folders that are served
_EXCLUDE_HINT = Message("use other patterns with --exclude")


def find_images(
    names: Iterable[str],
    listed: Iterable[str] = (),
    exclude: Sequence[str] = (),
    skipped: Counter[str] | None = None,
    videos: bool = False,
) -> list[Path]:
    """The files named by path, folder (searched recursively) or glob; `-` stands for the lines in
    `listed`.

    In a folder, hidden files and folders are left out, and the thumbnails and deleted files of NAS
    systems. Links to folders are followed, each folder once. `exclude` are globs, in any case, for
    the names of files and folders or the ends of their paths. `skipped` counts the pictures and
    videos in folders that are not read, by suffix; videos are read if `videos` says so.

    A named file need not exist or be an image, and a folder in a folder that may not be read is
    among the files: reading them reports that. Raises DcclipError for a folder without images, a
    glob without files, an empty name or list, and where `exclude` leaves nothing.
    """
    patterns = "|".join(fnmatch.translate(pattern.strip("/")) for pattern in exclude)
    excluded = re.compile(f"(?s:.*/)?(?:{patterns})", re.IGNORECASE) if exclude else None
    paths: list[Path] = []
    for name in names:
        if not name:
            raise DcclipError(
                "an image path is empty",
                "set the shell variable that it comes from, or give files or folders",
            )
        if name == "-":
            lines = [line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-")]
            if not lines:
                example = "find FOLDER -name '*.jpg' | dcclip predict - --labels 猫,dog"
                raise DcclipError(
                    "stdin contains no image paths",
                    "write paths to stdin, for example: {}",
                    example,
                )
            paths += find_images(lines, (), exclude, skipped, videos)
        elif os.path.isdir(name):
            paths += _images_below(
                name, excluded, Counter() if skipped is None else skipped, videos
            )
        else:
            files = [Path(name)]
            if glob.has_magic(name) and not os.path.exists(name):
                files = [
                    path
                    for path in map(Path, sorted(glob.glob(name, recursive=True)))
                    if path.is_file()
                ]
                if not files:
                    hint = Message("use files with one of these suffixes: {}", ", ".join(_SUFFIXES))
                    raise DcclipError("no file matches {}", hint, name)
            for path in files:
                if not (
                    excluded
                    and any(excluded.match(part.as_posix()) for part in (path, *path.parents))
                ):
                    paths.append(path)
    if exclude and not paths:
        raise DcclipError("--exclude leaves no image", _EXCLUDE_HINT)
    return paths


def image_files(images: PathLike | Iterable[PathLike]) -> Iterable[Path]:
    """The files; a Path is one, and is not looked for again, unless it is a folder."""
    for image in several(images):
        if isinstance(image, Path) and not image.is_dir():
            yield image
        else:
            yield from find_images([os.fspath(image)])


def _images_below(
    root: str, excluded: re.Pattern[str] | None, skipped: Counter[str], videos: bool
) -> list[Path]:
    """The images at any depth of a folder, and the folders there that may not be read, sorted."""
    readable = (form for form in _EXTRAS if videos or form != "VIDEO")
    installed = (_EXTRAS[form][2] for form in readable if find_spec(_EXTRAS[form][1]))
    suffixes = (*_SUFFIXES, *chain.from_iterable(installed))
    paths = list[Path]()
    counts = Counter[str]()
    tops = [root]
    visited = set(map(str, Path(root).resolve().parents))  # links to these are loops
    for top in tops:  # which grows: links are followed after all folders
        for parent, folders, names in os.walk(
            top, onerror=lambda error: paths.append(Path(error.filename))
        ):
            inside = Path(os.path.relpath(parent, root))
            place = os.path.realpath(parent)
            searched = {
                name
                for name in ((*folders, *names) if place not in visited else ())
                if is_listed(name) and not (excluded and excluded.match((inside / name).as_posix()))
            }
            visited.add(place)
            folders[:] = sorted(searched.intersection(folders))
            tops += [link for name in folders if os.path.islink(link := os.path.join(parent, name))]
            for path in map(Path(parent).joinpath, searched.difference(folders)):
                if (suffix := path.suffix.lower()) in suffixes:
                    if path.is_file():  # not a link to nothing
                        paths.append(path)
                elif suffix in _MEDIA:
                    counts[suffix] += 1
    if not paths:
        hint = (
            _EXCLUDE_HINT
            if excluded
            else Message("use files with one of these suffixes: {}", ", ".join(suffixes))
        )
        raise DcclipError("{} contains no images", _installation(counts, videos) or hint, root)
    skipped.update(counts)
    return sorted(paths)


def _installation(skipped: Mapping[str, int], videos: bool) -> Message | None:
    """The hint that names the extras by which skipped files can be read."""
    readable = (form for form in _EXTRAS if videos or form != "VIDEO")
    extras = [
        _EXTRAS[form][0] for form in readable if not skipped.keys().isdisjoint(_EXTRAS[form][2])
    ]
    return Message("pip install 'dcclip[{}]'", ",".join(extras)) if extras else None


def skipped_line(command: str, skipped: Counter[str], videos: bool = False) -> Message:
    """What a command says of the files that `find_images` skipped."""
    suffixes = sorted(skipped.keys() - {LINKS}, key=lambda suffix: (-skipped[suffix], suffix))
    line = Message(
        "{}: skipped {}", command, ", ".join(f"{skipped[suffix]:,} {suffix}" for suffix in suffixes)
    )
    if count := skipped[LINKS]:
        links = Message("{}: skipped {:,} links that lead out of the folders", command, count)
        line = Message("{}; {}", links, line) if suffixes else links
    hint = _installation(skipped, videos)
    return Message("{} (to read more formats: {})", line, hint) if hint else line


# By Pillow's name of a format: what its files begin with. RAW files begin like TIFF, or with
# something else.
_START = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<GIF>GIF8)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<AVIF>.{4}ftyp(?:avi|m[is]f1.{4,40}avi))|(?P<HEIF>.{4}ftyp(?:hei|hev|mif1|msf1))"
    rb"|(?P<JXL>\xff\x0a|\0{3}\x0cJXL \r\n\x87\n)",
    re.DOTALL,
)
# Importing these makes Pillow read a format.
_PLUGINS = {
    **{name: f"PIL.{name.title()}ImagePlugin" for name in ("GIF", "BMP", "TIFF", "AVIF")},
    "HEIF": "pillow_heif.HeifImagePlugin",
    "JXL": "pillow_jxl.JpegXLImagePlugin",
}


@contextmanager
def opened(file: Path) -> Iterator[Image.Image | None]:
    """An image file with its metadata, whose pixels are not decoded; None where there is none."""
    with ExitStack() as files:
        image = None
        with suppress(*DAMAGE, ImportError, DcclipError):
            refuse_special(file)
            stream = files.enter_context(file.open("rb"))
            form = _format(stream.read(64))
            if form in _PLUGINS and form != "JXL":  # whose plugin decodes
                import_module(_PLUGINS[form])
            if form != "JXL" and not is_video(file):
                image = files.enter_context(Image.open(stream, formats=(form,)))
        yield image


def readers() -> str:
    """What decides which files can be read: the version of Pillow, and the extras that are
    installed.
    """
    return " ".join(
        [pillow_version, *(extra for extra, package, _ in _EXTRAS.values() if find_spec(package))]
    )


def _format(content: bytes) -> str:
    """Pillow's name of an image file's format by its first 64 bytes, empty if `read` does not know
    it.
    """
    start = _START.match(content)
    return (start.lastgroup or "") if start else ""


def mime_type(content: bytes) -> str | None:
    """The MIME type of an image file by its first bytes, None for what is no image that `read`
    reads.
    """
    form = _format(content)
    return f"image/{'heic' if form == 'HEIF' else form.lower()}" if form else None


def read(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode` for users' pictures: more formats, whatever a file's suffix; of a RAW file the
    embedded preview.

    HEIC, JPEG XL and RAW need extras; the latter two are read from files only. FILE.mp4#t=83.2 is
    a frame of a video. Raises DcclipError.
    """
    if isinstance(source, Path) and (frame := split_frame(source))[1] is not None:
        return read_frame(Path(frame[0]), frame[1])
    form = _format(source) if isinstance(source, bytes) else ""
    if isinstance(source, Path):
        refuse_special(source)
        with suppress(OSError, ValueError), source.open("rb") as stream:  # decode reports these
            form = _format(start := stream.read(64))
            form = (
                "RAW" if start and form in ("", "TIFF") and source.suffix.lower() in _RAW else form
            )
    elif form == "JXL":  # its plugin has no limit of pixels
        form = ""
    if form in _EXTRAS and find_spec(_EXTRAS[form][1]) is None:
        name = source if isinstance(source, Path) else Message("image of {} bytes", len(source))
        extra, package, _ = _EXTRAS[form]
        raise ImageError(
            "{} needs the package {}",
            "pip install 'dcclip[{}]'",
            name,
            package.replace("_", "-"),
            extra,
        )
    if form in _PLUGINS:
        import_module(_PLUGINS[form])
    if not form and isinstance(source, Path) and is_video(source):
        example = frame_name(source, 1.0)
        raise ImageError(
            "{} is a video", "name a frame by its time in seconds, such as {}", source, example
        )
    if isinstance(source, Path) and form in ("RAW", "JXL"):
        return _preview(source, max_pixels) if form == "RAW" else _jxl(source, max_pixels)
    return decode(source, max_pixels, (form,) if form else FORMATS)


def _preview(file: Path, max_pixels: int) -> Image.Image:
    """The largest picture in a camera's RAW file."""
    import rawpy

    try:
        with (
            file.open("rb") as stream,
            rawpy.imread(str(file) if str(file).isprintable() else stream) as raw,
        ):
            preview = raw.extract_thumb()
            turn = {3: 180, 5: 90, 6: 270}.get(raw.sizes.flip, 0)
    except rawpy.LibRawError as error:
        raise ImageError(
            "{} has no readable preview: {}", "export it as JPEG", file, error.args[0].decode()
        ) from None
    if preview.format == rawpy.ThumbFormat.JPEG:
        return decode(
            bytes(preview.data), max_pixels
        )  # LibRaw writes the orientation into its header
    return Image.fromarray(preview.data).convert("RGB").rotate(turn, expand=True)


def _jxl(file: Path, max_pixels: int) -> Image.Image:
    """A JPEG XL image. Its plugin decodes as it opens, so its size is read before (ISO/IEC
    18181-1, -2: boxes).
    """
    # Another box may contain what looks like the beginning of an image: whichever is read, it must
    # not be too large.
    starts = re.findall(rb"(?:\A|jxlc|jxlp.{4})(?=\xff\x0a(.{12}))", file.read_bytes(), re.DOTALL)
    for width, height in map(_jxl_size, starts):
        if width * height > max_pixels:
            message = Message(
                "{} has {} x {} pixels, more than {:,}", file, width, height, max_pixels
            )
            raise TooManyPixelsError(message, "shrink the image first")
    return decode(file, max_pixels, ("JXL",))


def _jxl_size(header: bytes) -> tuple[int, int]:
    bits = int.from_bytes(header, "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits % 2**count
        bits >>= count
        return value

    def length() -> int:
        return 8 * (take(5) + 1) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    is_small = take(1)
    height = length()
    ratio = take(3)
    width = int(height * (0, 1, 1.2, 4 / 3, 1.5, 16 / 9, 1.25, 2)[ratio]) or length()
    return width, height


def embed(
    model: Encoder,
    items: Iterable[Item],
    read: Callable[[Item], Image.Image],
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[Item, Result]]:
    """Each item with its image's embedding (D,) of length 1, or the error of `read`, in order,
    batch by batch.
    """
    for batch in embed_batches(model, batched(items, batch_size), read):
        yield from batch


def embed_batches(
    model: Encoder,
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Image.Image],
    workers: int | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """The results of `embed`, as one list per batch; `workers` threads read images, by default one
    per core.
    """

    def prepare(item: Item) -> Result:
        try:
            return model.preprocess(read(item))
        except DcclipError as error:
            return error

    remaining = iter(batches)
    waiting: deque[list[tuple[Item, Future[Result]]]] = deque()
    with ThreadPoolExecutor(workers or cores()) as pool:
        try:
            while True:
                for items in islice(remaining, _AHEAD - len(waiting)):
                    waiting.append([(item, pool.submit(prepare, item)) for item in items])
                if not waiting:
                    return
                batch = [(item, future.result()) for item, future in waiting.popleft()]
                pixels = [result for _, result in batch if isinstance(result, np.ndarray)]
                vectors = iter(model.encode_pixels(np.stack(pixels)) if pixels else ())
                yield [
                    (item, next(vectors) if isinstance(result, np.ndarray) else result)
                    for item, result in batch
                ]
        finally:
            pool.shutdown(cancel_futures=True)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one with the rest."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def aligned(places: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Ascending places in batches, those between two multiples of `batch_size` together.

    The last bits of an embedding depend on what is computed with it: so they are the same whatever
    is missing, as long as whole batches are stored.
    """
    cuts = np.flatnonzero(np.diff(places // batch_size)) + 1
    return (batch.tolist() for batch in np.split(places, cuts) if len(batch))
