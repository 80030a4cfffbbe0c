"""`dcclip predict`, `search`, `embed` and `bench`: labels, searches and embeddings of images, and
what models take.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.cli.console import as_json
from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.core.files import atomic_file
from dcclip_cli.core.machine import busy_machine
from dcclip_cli.core.text import language_by_script, printable, size_in_words, split

if TYPE_CHECKING:
    from dcclip_cli.core.progress import Progress
    from dcclip_cli.inference.bench import Bench
    from dcclip_cli.inference.encoder import Encoder
    from dcclip_cli.inference.model import Prediction
    from dcclip_cli.inference.zero_shot import Labels
    from dcclip_cli.photos.files import SearchResult

_MOST_LABELS = 100_000
_MOST_LABELS_BYTES = 10_000_000
_Form = Literal["json", "jsonl", "csv"]
_MIN_UNFIT = 0.5  # of the images that fit no label, for a hint
_MOST_TEXTS = 1_000_000
_MOST_TEXTS_BYTES = 100_000_000
LABELS = Option(
    "--labels",
    metavar="猫,dog",
    help="Labels in Chinese, English or both, separated by , ， or 、.",
)
LABELS_FILE = Option("--labels-file", metavar="FILE", help="File with more labels, one per line.")
_TEMPLATE = Option(
    "--template",
    metavar="TEXT",
    callback=flags.texts,
    help="Prompt template, used for labels in the same script; {} is the label. Repeatable.",
)
_NO_TEMPLATE = Option("--no-template", help="Use the labels without a prompt template.")
_MULTI_LABEL = Option(
    "--multi-label", help="Score each label independently: none, one or several may fit."
)
_THRESHOLD = Option(
    "--threshold", min=0, max=1, help="Show only labels with at least this probability."
)
_THRESHOLDS = Option(
    "--thresholds",
    metavar="FILE",
    help="Thresholds from dcclip calibrate, for --multi-label. Default: from the model directory.",
)
_JSON_LINES = Option("--jsonl", help="Print one JSON object per line, as each image is classified.")
_AS_CSV = Option(
    "--csv",
    help="Print CSV: image, label, probability. Cells that look like a formula are "
    "prefixed with an apostrophe.",
)
_CSV_FILE = Option(
    "--out",
    metavar="FILE",
    help="With --csv: write to FILE, with a byte order mark, so that Excel reads Chinese.",
)

_XMP = Option(
    "--xmp",
    help="Also write the labels as tags into XMP sidecar files, for photo apps: those "
    "with a probability of at least "
    "--threshold, by default 0.5.",
)
_UNDO = Option("--undo", help="With --xmp, without labels: remove the tags that --xmp wrote.")

_BENCH_IMAGES = Option(
    "--images",
    metavar="PATH",
    help="File, folder or glob of images for the throughput measurement. Repeatable.",
)
_BENCH_THREADS = Option(
    "--threads",
    min=1,
    callback=flags.at_a_time,
    help="CPU threads for the throughput measurement. Default: all cores.",
)


def predict(
    images: Annotated[list[str], flags.IMAGES],
    labels: Annotated[str, LABELS] = "",
    labels_file: Annotated[Path | None, LABELS_FILE] = None,
    model: flags.Model = None,
    template: Annotated[list[str] | None, _TEMPLATE] = None,
    no_template: Annotated[bool, _NO_TEMPLATE] = False,
    multi_label: Annotated[bool, _MULTI_LABEL] = False,
    top_k: Annotated[int, Option("--top-k", min=1, help="Number of labels to show per image.")] = 5,
    threshold: Annotated[float, _THRESHOLD] = 0.0,
    thresholds: Annotated[Path | None, _THRESHOLDS] = None,
    as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False,
    as_jsonl: Annotated[bool, _JSON_LINES] = False,
    as_csv: Annotated[bool, _AS_CSV] = False,
    out: Annotated[Path | None, _CSV_FILE] = None,
    xmp: Annotated[bool, _XMP] = False,
    undo: Annotated[bool, _UNDO] = False,
    exclude: flags.Exclude = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Classify images zero-shot: probabilities of the given labels.

    The probabilities of an image sum to 1, except with --multi-label. An export bundle needs no
    torch. --xmp never changes an image: the tags are in IMAGE.jpg.xmp, or in IMAGE.xmp if that
    exists, next to other tags. Exit code 1 if a named image, or every image, cannot be read, or a
    sidecar file cannot be written; the others are still shown. Unreadable images in folders are
    counted, and listed in a file.
    """
    talk = console.talk(quiet, verbose)
    is_calibrated = multi_label and not (template or no_template or threshold)
    form = _output_form(as_json, as_jsonl, as_csv, out)
    flags.refuse({
        Message("--undo needs --xmp, no labels, and no --json, --jsonl, --csv or --out"):
            undo and (not xmp or labels or labels_file or form or out),
        Message("--template and --no-template cannot be combined"): template and no_template,
        Message("--thresholds needs --multi-label, no templates and no --threshold"): thresholds and not is_calibrated,
    })  # fmt: skip
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # idle threads cost a cold start a fifth
    if undo:
        return _remove_tags(_find_images("predict", images, exclude, talk), talk)
    names = _class_names(labels, labels_file, talk)
    paths = _find_images("predict", images, exclude, talk)
    if xmp:
        _check_tags(names, paths)

    from dcclip_cli.inference import model as inference
    from dcclip_cli.inference.zero_shot import Labels

    encoder = inference.open_encoder(model, device, threads, talk)
    ready = Labels(encoder, names, [] if no_template else template or None, multi_label, talk)
    floor = threshold or (0.5 if xmp else 0.0)
    least = _thresholds(thresholds, model, encoder, names, floor, talk) if is_calibrated else floor
    predictions = inference.predict(encoder, ready, paths, top_k, least)
    if xmp:
        predictions = _tagged(predictions, names, _unknown_names(encoder, ready), talk)
    named_images = () if xmp else images  # all errors of sidecars are the user's
    _show(predictions, len(paths), ready, form, out, named_images, talk)


def _output_form(as_json: bool, as_jsonl: bool, as_csv: bool, out: Path | None) -> _Form | None:
    """The format that the options choose. Raises BadParameter for two, and for a file of another
    than CSV.
    """
    flags.refuse({
        Message("--json, --jsonl and --csv cannot be combined"): as_json + as_jsonl + as_csv > 1,
        Message("--out needs --csv"): out and not as_csv,
    })  # fmt: skip
    flags.out(out, folder=False)
    if as_json:
        return "json"
    if as_jsonl:
        return "jsonl"
    return "csv" if as_csv else None


def _class_names(labels: str, file: Path | None, talk: Progress) -> list[str]:
    """The labels to choose from, each once. Raises DcclipError for none."""
    repeated = read_labels(labels, file)
    names = list(dict.fromkeys(repeated))
    if not names:
        raise DcclipError("no labels given", "give labels, for example: --labels 猫,dog")
    if len(names) < len(repeated):
        talk.say(
            Message(
                "predict: {:,} labels; {:,} duplicates are ignored",
                len(names),
                len(repeated) - len(names),
            )
        )
    return names


def _find_images(
    command: str, images: Sequence[str], exclude: Sequence[str] | None, talk: Progress
) -> list[Path]:
    """The image files that the arguments mean; the command says which other pictures and videos it
    skips.
    """
    from dcclip_cli.inference.images import find_images, skipped_line

    skipped = Counter[str]()
    paths = find_images(images, sys.stdin, exclude or (), skipped)
    if skipped:
        talk.say(skipped_line(command, skipped))
    return paths


def _check_tags(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Refuse labels that cannot be tags, and images that cannot have a sidecar."""
    from dcclip_cli.inference.videos import split_frame
    from dcclip_cli.photos.xmp import NOT_IN_TAGS

    if unwritable := next(filter(NOT_IN_TAGS.search, names), None):
        raise DcclipError(
            "a tag cannot contain / or |, but the label is {!r}", "rename this label", unwritable
        )
    if frame := next((path for path in paths if split_frame(path)[1] is not None), None):
        raise DcclipError("{} is a frame of a video; --xmp needs photographs", "omit --xmp", frame)


def _tagged(
    predictions: Iterable[Prediction],
    replaced: Sequence[str] | None,
    untagged: Collection[str],
    talk: Progress,
) -> Iterator[Prediction]:
    """The predictions, once their labels are tags in sidecar files, or with the error of writing
    these.
    """
    from dcclip_cli.cli.system_errors import explained
    from dcclip_cli.photos.xmp import write_tags

    changed = 0
    for prediction in predictions:
        try:
            if prediction.error is None:
                tags = [label for label, _ in prediction.labels if label not in untagged]
                changed += write_tags(prediction.image, tags, replaced)
        except (DcclipError, OSError) as error:
            problem = error if isinstance(error, DcclipError) else explained(error)
            if problem is None:
                raise
            prediction = replace(prediction, error=problem)
        yield prediction
    talk.say(Message("predict: {:,} sidecar files changed", changed))


def _unknown_names(encoder: Encoder, labels: Labels) -> set[str]:
    """The labels without a word that the model knows."""
    from dcclip_cli.inference.zero_shot import unknown_of

    doubtful = [name for name in labels.names if any(word in name for word in labels.unknown)]
    return {name for name in doubtful if unknown_of(encoder, [name])}


def _remove_tags(paths: Sequence[Path], talk: Progress) -> None:
    """Remove the tags that `predict --xmp` wrote, and show the errors of sidecar files."""
    from dcclip_cli.inference.model import Prediction

    photos = list(_tagged(map(Prediction, paths), None, (), talk))
    _show_errors({str(photo.image): photo.error for photo in photos if photo.error}, ())


def _thresholds(
    file: Path | None,
    model: str | None,
    encoder: Encoder,
    labels: Sequence[str],
    default: float,
    talk: Progress,
) -> float | list[float]:
    """The threshold of each label that `dcclip calibrate` found; `default` for others, and without
    such a file.
    """
    from dcclip_cli.model.reference import resolve
    from dcclip_cli.photos.calibrate import THRESHOLDS, read_thresholds

    path = file or resolve(model).path / THRESHOLDS
    if file is None and not path.is_file():
        return default
    calibrated = read_thresholds(path, encoder)
    count = sum(label in calibrated for label in labels)
    talk.say(Message("predict: {} has thresholds for {} of {} labels", path, count, len(labels)))
    return [calibrated.get(label) or default for label in labels]


def read_labels(labels: str, file: Path | None) -> list[str]:
    lines = flags.lines_of(file, Message("label"), _MOST_LABELS, _MOST_LABELS_BYTES)
    return [*split(flags.text(labels, "--labels")), *lines]


def _say_unknown(talk: Progress, command: str, texts: Sequence[str]) -> None:
    if texts:
        talk.say(
            Message("warning: {}: ignored, not in the vocabulary: {}", command, ", ".join(texts))
        )


def _show(
    predictions: Iterable[Prediction],
    count: int,
    labels: Labels,
    form: _Form | None,
    out: Path | None,
    named_images: Sequence[str],
    talk: Progress,
) -> None:
    """Print predictions: JSON at the end, others as they are computed, CSV to `out` if given; end
    with the errors.
    """
    unread = console.ErrorLines(named_images)
    listed = list[dict[str, object]]()
    unfit_count = 0
    _say_unknown(talk, "predict", labels.unknown)
    with ExitStack() as stack:
        stream: IO[str] = sys.stdout
        if out:
            partial = stack.enter_context(atomic_file(out))
            stream = stack.enter_context(
                partial.open("w", encoding="utf-8-sig", newline="", errors="replace")
            )
        table = csv.writer(stream, lineterminator="\n")
        if form == "csv":
            table.writerow(["image", "label", "probability"])
        for prediction in console.counted(
            talk, "predict", predictions, count, at_once=form != "json"
        ):
            image = printable(str(prediction.image))
            unfit_count += not prediction.fits
            if prediction.error is not None:
                unread.add(str(prediction.image), prediction.error)
            if form == "csv":
                rows = [
                    (csv_cell(image), csv_cell(name), f"{value:.6f}")
                    for name, value in prediction.labels
                ]
                with nullcontext() if out else console.printing():
                    table.writerows(rows)
            elif form == "json":
                listed.append(_plain(prediction, labels.unknown))
            elif form == "jsonl":
                console.show_now(as_json(_plain(prediction, labels.unknown)))
            elif prediction.error is None:
                scores = "   ".join(f"{label} {value:.1%}" for label, value in prediction.labels)
                console.show(f"{image}   {scores or '-'}")
    if form == "json":
        console.show_json(listed)
    if not labels.multi_label and unfit_count >= max(1, _MIN_UNFIT * count):
        talk.say(
            Message(
                "hint: predict: {} of {} images fit no label well; add the label 其他 or other",
                unfit_count,
                count,
            )
        )
    unread.end(count)


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: with an apostrophe in front if it begins
    like one.
    """
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _plain(prediction: Prediction, unknown: Sequence[str]) -> dict[str, object]:
    if prediction.error is not None:
        return {
            "image": str(prediction.image),
            "error": prediction.error.what,
            "hint": prediction.error.hint,
        }
    labels = [
        {"label": label, "probability": round(value, 6)}
        | ({"unknown": True} if label in unknown else {})
        for label, value in prediction.labels
    ]
    return {"image": str(prediction.image), "labels": labels}


_THUMBNAIL_PX = 480
_SEARCHED = (
    "Text to search for, in Chinese or English, and folders of images, searched "
    "recursively. With --text or --image: "
    "folders only."
)
_LIKE_IMAGE = Option(
    "--image", metavar="FILE", help="Image to search for. Repeatable: embeddings are summed."
)
_LIKE_TEXT = Option(
    "--text",
    metavar="TEXT",
    callback=flags.texts,
    help="Text to search for. Repeatable: embeddings are summed.",
)
_NOT = Option(
    "--not",
    metavar="TEXT",
    callback=flags.texts,
    help="Text whose embedding is subtracted, like a word after a minus in 'dog -beach'. "
    "Repeatable.",
)
_PAGE = Option("--html", metavar="FILE", help="Also write an HTML page with thumbnails.")
_EMBED_AGAIN = Option("--fresh", help="Embed all images again, and try unreadable ones again.")
_DUPLICATES = Option(
    "--duplicates", help="Find copies and bursts among the images in the folders instead."
)


def search(
    arguments: Annotated[list[str], Argument(metavar="[TEXT] FOLDER...", help=_SEARCHED)],
    image: Annotated[list[Path] | None, _LIKE_IMAGE] = None,
    texts: Annotated[list[str] | None, _LIKE_TEXT] = None,
    without: Annotated[list[str] | None, _NOT] = None,
    model: flags.Model = None,
    top_k: Annotated[int, Option("--top-k", min=1, help="Number of images to show.")] = 12,
    as_json: Annotated[bool, Option("--json", help="Print a JSON list.")] = False,
    page: Annotated[Path | None, _PAGE] = None,
    duplicates: Annotated[bool, _DUPLICATES] = False,
    dims: flags.Dims = None,
    fresh: Annotated[bool, _EMBED_AGAIN] = False,
    exclude: flags.Exclude = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Find the images in folders, and videos by their frames, that best match a text or an image.

    Each image is embedded once. The index is in the cache folder and is updated when files change.
    There is one index per folder, image tower and --dims; models with the same image tower share
    it. Scores are cosines: use them to rank images, not as probabilities. --duplicates shows
    groups of copies: resized, compressed again, slightly cropped or watermarked; the largest
    first. It also shows bursts: similar images that were taken within 3 seconds of each other,
    according to EXIF. --duplicates --json prints an object with the lists copies and bursts.
    Unreadable images are counted, and listed in a file. They are not tried again until they
    change.
    """
    flags.out(page, folder=False)
    talk = console.talk(quiet, verbose)
    options: dict[str, Any] = {
        "exclude": exclude or (),
        "model": model,
        "device": device,
        "threads": threads,
        "progress": talk,
    }
    if duplicates:
        ignored = texts, image, without, dims, fresh, top_k != 12
        flags.refuse(
            {Message("--duplicates takes no query, --dims, --fresh or --top-k"): any(ignored)}
        )
        return _show_duplicates(arguments, options, page, as_json, talk)
    if not texts and not image:
        texts = [flags.text(arguments[0], Message("the text"))]
        arguments = arguments[1:]
    flags.refuse({Message("give a text, then a folder of images"): not arguments})

    from dcclip_cli.photos import files

    options |= {"dims": dims, "fresh": fresh, "top_k": top_k}
    result = files.search(
        texts or (), arguments, images=image or (), without=without or (), **options
    )
    query = " + ".join([*(texts or ()), *map(str, image or ())])
    query += "".join(f" - {text}" for text in without or ())
    _show_hits(result, query, arguments, page, as_json, talk)


def _show_hits(
    result: SearchResult,
    query: str,
    folders: Sequence[str],
    page: Path | None,
    as_json: bool,
    talk: Progress,
) -> None:
    _say_unknown(talk, "search", result.unknown)
    if not result.fits:
        talk.say(Message("warning: search: no good match for {}", query))
    if as_json:
        listed = []
        for hit in result.hits:
            row = {"image": str(hit.image), "score": round(hit.score, 6)}
            listed.append(row if hit.time_s is None else row | {"time_s": hit.time_s})
        console.show_json(listed)
    else:
        rows = [(hit.title, f"{hit.score:.3f}") for hit in result.hits]
        title = Message("{}, in {}", query, ", ".join(folders))
        console.show_table(title, (Message("image"), Message("score")), rows)
    if page:
        notes = []
        if result.unknown:
            notes.append(Message("ignored, not in the vocabulary: {}", ", ".join(result.unknown)))
        if not result.fits:
            notes.append(Message("no good match for {}", query))
        captions = [(hit.frame, f"{hit.score:.3f} · {Path(hit.title).name}") for hit in result.hits]
        _write_page(page, query, notes, captions, talk)
    _show_errors(result.errors, folders)


def _show_duplicates(
    folders: Sequence[str],
    options: Mapping[str, Any],
    page: Path | None,
    as_json: bool,
    talk: Progress,
) -> None:
    from dcclip_cli.photos.duplicates import duplicates

    result = duplicates(folders, **options)
    labelled = [
        (Message("copies {}", number), group) for number, group in enumerate(result.copies, 1)
    ]
    labelled += [
        (Message("burst {}", number), group) for number, group in enumerate(result.bursts, 1)
    ]
    rows = [
        (label, photo, f"{photo.width} x {photo.height}")
        for label, group in labelled
        for photo in group
    ]
    if as_json:
        groups_by_kind = {"copies": result.copies, "bursts": result.bursts}
        console.show_json({
            kind: [[{**vars(photo), "image": str(photo.image)} for photo in group] for group in groups]
            for kind, groups in groups_by_kind.items()
        })  # fmt: skip
    else:
        counts = (
            sum(map(len, result.copies)) - len(result.copies),
            len(result.copies),
            len(result.bursts),
        )
        headings = Message("group"), Message("image"), Message("pixels")
        title = Message("{:,} copies in {:,} groups, {:,} bursts", *counts)
        console.show_table(
            title, headings, [(label, str(photo.image), size) for label, photo, size in rows]
        )
    if page:
        captions = [
            (photo.image, f"{translated(label)} · {size} · {photo.image.name}")
            for label, photo, size in rows
        ]
        _write_page(page, translated(Message("Duplicates")), [], captions, talk)
    _show_errors(result.errors, folders)


def _write_page(
    page: Path,
    title: str,
    notes: Sequence[Message],
    captions: Sequence[tuple[Path, str]],
    talk: Progress,
) -> None:
    """Write images with captions, some twice, as one HTML file without scripts or external
    resources.
    """
    from dcclip_cli.core.html import jpeg_thumbnail, write_page
    from dcclip_cli.inference.images import read
    from dcclip_cli.inference.videos import frame_name, split_frame

    images = [*dict(captions)]
    thumbnails = {image: jpeg_thumbnail(read(image), _THUMBNAIL_PX) for image in images}
    links = [
        frame_name(Path(file).resolve().as_uri(), time_s)
        for file, time_s in map(split_frame, images)
    ]
    texts = [(image, printable(caption)) for image, caption in captions]
    shown = {
        "captions": texts,
        "thumbnails": thumbnails,
        "links": dict(zip(images, links, strict=True)),
    }
    lang = language_by_script(title)
    write_page(
        page, "dcclip_cli.cli", "search.html.j2", text=title, notes=notes, lang=lang, **shown
    )
    talk.say(Message("search: {}", page))


_TEXTS = Option(
    "--text",
    metavar="TEXT",
    callback=flags.texts,
    help="Text to embed instead of images. Repeatable.",
)
_TEXTS_FILE = Option("--texts-file", metavar="FILE", help="File with more texts, one per line.")
_OUT = Option(
    "--out",
    metavar="FILE",
    help="FILE.npy (with names in FILE.txt) or FILE.parquet.",
    show_default=False,
)
_EMBED_DTYPE = Option("--dtype", help="Type of the embeddings in the file.")


def embed(
    images: Annotated[list[str] | None, flags.IMAGES] = None,
    texts: Annotated[list[str] | None, _TEXTS] = None,
    texts_file: Annotated[Path | None, _TEXTS_FILE] = None,
    out: Annotated[Path, _OUT] = Path("embeddings.npy"),
    model: flags.Model = None,
    dims: flags.Dims = None,
    dtype: Annotated[Literal["fp32", "fp16"], _EMBED_DTYPE] = "fp32",
    as_json: Annotated[
        bool,
        Option(
            "--json",
            help="Print a JSON object with the output path and the words that the model "
            "does not know.",
        ),
    ] = False,
    exclude: flags.Exclude = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Write the embeddings of images or texts to a file.

    Embeddings have length 1, so dot products are cosines. FILE.npy has one row per input, and
    FILE.txt the name of each row; FILE.parquet has the columns name and embedding. Texts are
    embedded without templates. Exit code 1 if a named image cannot be read; it gets no row. Those
    in folders are counted, and listed in a file. Prints the path of the embeddings.
    """
    inputs = [
        *(texts or ()),
        *flags.lines_of(texts_file, Message("text"), _MOST_TEXTS, _MOST_TEXTS_BYTES),
    ]
    flags.refuse({
        Message("--out must end in .npy or .parquet"): out.suffix not in (".npy", ".parquet"),
        Message("give images, or texts with --text or --texts-file"): bool(images) == bool(inputs),
    })  # fmt: skip
    flags.out(out, folder=False)
    talk = console.talk(quiet, verbose)

    from dcclip_cli.photos import files

    options: dict[str, Any] = {
        "dims": dims,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "progress": talk,
    }
    paths = _find_images("embed", images, exclude, talk) if images else []
    result = files.embed(paths, texts=inputs, out=out, model=model, **options)
    _say_unknown(talk, "embed", result.unknown)
    if as_json:
        console.show_json({"file": str(result.file), "unknown": result.unknown})
    else:
        console.show(str(result.file))
    _show_errors(result.errors, images or ())


def _show_errors(errors: Mapping[str, DcclipError], arguments: Sequence[str]) -> None:
    """Print the errors of images, if there are any, and exit with 1 if the user's arguments name
    one.
    """
    unread = console.ErrorLines(arguments)
    for name, error in errors.items():
        unread.add(name, error)
    unread.end()


def bench(
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL", help="Model; accepts the same values as --model of dcclip predict."
        ),
    ],
    images: Annotated[list[str] | None, _BENCH_IMAGES] = None,
    labels: Annotated[str, LABELS] = "",
    labels_file: Annotated[Path | None, LABELS_FILE] = None,
    threads: Annotated[int | None, _BENCH_THREADS] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print a JSON list; sizes are in bytes.")
    ] = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Measure models on this machine: size, loading time, memory, latency, throughput, agreement.

    Each model is measured on the CPU in its own process. Loading time includes imports. Latency is
    the median for one decoded image or one short text, on one thread. Memory is the peak before
    the throughput measurement. Throughput includes reading files, on all cores. Agreement is the
    share of images with the same best label as the first model.
    """
    talk = console.talk(quiet, verbose)
    names = read_labels(labels, labels_file)

    from dcclip_cli.inference.bench import bench

    if busy := busy_machine():
        talk.say(Message("warning: {}", busy))
    timings = bench(models, images or (), names, threads=threads, progress=talk)
    if as_json:
        return console.show_json([vars(row) for row in timings])
    columns = {heading: cells for heading, cells in _bench_columns(timings).items() if any(cells)}
    console.show_table("", list(columns), list(zip(*columns.values(), strict=True)))


def _bench_columns(timings: Sequence[Bench]) -> dict[Message, list[str]]:
    """The cells of the table by their heading; empty for what was not measured."""
    rates = ["" if row.images_per_s is None else f"{row.images_per_s:,.1f}" for row in timings]
    shares = ["" if row.agreement is None else f"{row.agreement:.1%}" for row in timings]
    return {
        Message("model"): [row.model for row in timings],
        Message("parameters"): [f"{row.parameters / 1e6:.2f} M" for row in timings],
        Message("size"): [size_in_words(row.size_bytes) for row in timings],
        Message("loading"): [f"{row.load_s:.2f} s" for row in timings],
        Message("memory"): [size_in_words(row.memory_bytes) for row in timings],
        Message("image"): [f"{row.image_ms:.2f} ms" for row in timings],
        Message("text"): [f"{row.text_ms:.2f} ms" for row in timings],
        Message("images/s"): rates,
        Message("agreement"): shares,
    }
