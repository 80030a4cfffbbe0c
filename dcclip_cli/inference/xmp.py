"""Labels as tags in XMP sidecar files, which photo apps read: merged with other tags, and removed again exactly."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_file, check_target, refuse_special

NOT_IN_TAGS = re.compile("[/|\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # levels of a tag, and what XML excludes
# darktable and Lightroom read the first two; immich and digiKam the last that exists.
_TAGS = ("dc:subject", "lr:hierarchicalSubject", "digiKam:TagsList")
_NOTES = ("dcclip:dcTags", "dcclip:lrTags", "dcclip:digiKamTags")  # what dcclip added to each of these lists
_LABELS = "dcclip:labels"
_NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "digiKam": "http://www.digikam.org/ns/1.0/",
    "dcclip": "urn:dcclip:sidecar/",
}
_DECLARED = "".join(f" xmlns:{prefix}='{uri}'" for prefix, uri in _NAMESPACES.items())
_DESCRIPTION = f"<rdf:Description{_DECLARED} rdf:about=''>{{}}\n</rdf:Description>"
_EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{_NAMESPACES["rdf"]}">
 </rdf:RDF>
</x:xmpmeta>
""".encode()


def write_tags(photo: Path, labels: Sequence[str], replaced: Collection[str] | None = None) -> bool:
    """Let the photo's sidecar have `labels` as tags, next to what it has; returns whether a sidecar changed.

    Labels of earlier calls are removed if they are `replaced`, by default all: `write_tags(photo, [])` undoes all
    calls. The sidecar is photo.jpg.xmp, or photo.xmp if only that exists and no other file has its stem; labels in the
    latter from before are removed too. Raises DcclipError for a sidecar in a form that could not be restored, and
    OSError.
    """
    sidecar, by_stem, is_earlier_changed = photo.with_name(f"{photo.name}.xmp"), photo.with_suffix(".xmp"), False
    if by_stem != sidecar and by_stem.is_file():  # the same for a photo without a suffix
        is_sole = _files_by_stem(photo.parent)[photo.stem] == 1  # else it may be that of another photo
        if is_sole and not os.path.lexists(sidecar):
            sidecar = by_stem
        elif (is_sole or not (labels or replaced)) and _NAMESPACES["dcclip"].encode() in by_stem.read_bytes():
            is_earlier_changed = _edit(by_stem, photo, [], replaced)
    return _edit(sidecar, photo, labels, replaced) or is_earlier_changed


def _edit(sidecar: Path, photo: Path, labels: Sequence[str], replaced: Collection[str] | None) -> bool:
    sidecar = Path(os.path.realpath(sidecar))  # a link stays a link
    refuse_special(sidecar)
    exists = os.path.lexists(sidecar)
    before = sidecar.read_bytes() if exists else _EMPTY
    listed = _items(before, sidecar)
    content = restored = _without_tags(before, listed)
    earlier = [label for label in listed[_LABELS] if label not in (replaced or listed[_LABELS])]
    if tags := list(dict.fromkeys([*earlier, *labels])):
        content = _with_tags(restored, tags, sidecar, photo)
        written = _items(content, sidecar)
        lists = {name: set(written[name]) for name in _TAGS if written[name]}
        is_complete = all(
            items >= set(tags) and content.count(b"<%b" % name.encode()) == 1 for name, items in lists.items()
        )
        if not is_complete or _without_tags(content, written) != restored:
            raise _invalid(sidecar, ", ".join(_TAGS))
    if content == before:
        return False
    check_target(sidecar, folder=False)
    if content == _EMPTY:
        sidecar.unlink()
        return True
    with atomic_file(sidecar) as partial:
        partial.write_bytes(content)
        if exists:
            shutil.copymode(sidecar, partial)
    return True


@cache
def _files_by_stem(folder: Path) -> Counter[str]:
    return Counter(Path(name).stem for name in os.listdir(folder) if not name.lower().endswith(".xmp"))


def _invalid(file: Path, reason: object) -> DcclipError:
    return DcclipError("{} has content that dcclip cannot edit: {}", "repair or rename this file", file, reason)


def _items(content: bytes, file: Path) -> dict[str, list[str]]:
    """The items of each list in an XMP packet in UTF-8."""
    try:
        if "<!DOCTYPE" in content.decode():  # of entities, which may be without end
            raise _invalid(file, "DOCTYPE")
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: its encoding
        raise _invalid(file, error) from None
    paths = {name: f".//{name}/*/rdf:li" for name in (*_TAGS, *_NOTES, _LABELS)}
    return {name: [item.text or "" for item in root.iterfind(path, _NAMESPACES)] for name, path in paths.items()}


def _pattern(name: str) -> re.Pattern[str]:
    """A list in the form that all programs write: its begin, items and end."""
    return re.compile(rf"(<{name}>\s*<rdf:(Bag|Seq)>)(.*?)(</rdf:\2>\s*</{name}>)", re.DOTALL)


def _with_tags(packet: bytes, tags: Sequence[str], sidecar: Path, photo: Path) -> bytes:
    """The packet with the tags at the end of its lists, and with new lists and notes in a description of their own.

    A new list also contains the tags that it would hide: those of the photo itself, and of the list read before it.
    """
    listed, image, embedded = _items(packet, sidecar), photo.read_bytes(), dict[str, list[str]]()
    start, end = image.find(b"<x:xmpmeta"), image.find(b"</x:xmpmeta>")
    with suppress(DcclipError):  # of an image without, or with a damaged packet
        embedded = _items(image[start : end + len(b"</x:xmpmeta>")], photo)
    content, lists, keywords = packet.decode(), dict[str, list[str]](), list[str]()
    for name, note in zip(_TAGS, _NOTES, strict=True):
        items = listed[name] or embedded.get(name, [])
        if name == "digiKam:TagsList" and not items:
            continue
        keywords = items or keywords
        lists[note] = [tag for tag in dict.fromkeys([*keywords, *tags]) if tag not in listed[name]]
        if not listed[name]:
            lists[name] = lists[note]
        elif match := _pattern(name).search(content):
            content = content[: match.start(4)] + _xml_items(lists[note]) + content[match.start(4) :]
    lists[_LABELS] = list(tags)
    bags = (f"\n <{name}><rdf:Bag>{_xml_items(texts)}</rdf:Bag></{name}>" for name, texts in lists.items() if texts)
    before, end_tag, after = content.rpartition("</rdf:RDF>")
    return f"{before}{_DESCRIPTION.format(''.join(bags))}{end_tag}{after}".encode()


def _xml_items(texts: Sequence[str]) -> str:
    return "".join(f"<rdf:li>{escape(text)}</rdf:li>" for text in texts)


def _without_tags(packet: bytes, listed: Mapping[str, Sequence[str]]) -> bytes:
    """The packet without what dcclip wrote: exactly the one before, unless another program has written it since."""
    content = packet.decode()
    for name, note in zip(_TAGS, _NOTES, strict=True):
        for text in listed[note]:
            if match := _pattern(name).search(content):
                before, _, after = match[3].rpartition(_xml_items([text]))
                content = content[: match.start(3)] + before + after + content[match.end(3) :]
        if listed[note]:
            content = re.sub(rf"\s*<{name}>\s*<rdf:(Bag|Seq)>\s*</rdf:\1>\s*</{name}>", "", content)
    content = re.sub(r"\s*<dcclip:(\w+)>.*?</dcclip:\1>", "", content, flags=re.DOTALL)
    return content.replace(_DESCRIPTION.format(""), "").encode()
