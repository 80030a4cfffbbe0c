"""Labels as tags in XMP sidecar files, which photo apps read: merged with other tags, and removed
again exactly.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat
from xml.sax.saxutils import escape

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import (
    atomic_file,
    cache_folder,
    check_target,
    lock,
    read_bytes,
    refuse_special,
)

NOT_IN_TAGS = re.compile(
    "[/|\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
)  # levels of a tag, and what XML excludes
# darktable and Lightroom read the first two; immich and digiKam the last that exists.
_TAGS = ("dc:subject", "lr:hierarchicalSubject", "digiKam:TagsList")
_NOTES = (
    "dcclip:dcTags",
    "dcclip:lrTags",
    "dcclip:digiKamTags",
)  # what dcclip added to each of these lists
_LABELS = "dcclip:labels"
_NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "digiKam": "http://www.digikam.org/ns/1.0/",
    "dcclip": "urn:dcclip:sidecar/",
}
_DECLARED = "".join(f" xmlns:{prefix}='{uri}'" for prefix, uri in _NAMESPACES.items())
_BEGIN = f"<rdf:Description{_DECLARED} rdf:about=''>"
_END = "</rdf:Description>"
_RDF_END = "</rdf:RDF>"
_EMPTIED = re.compile(rf"{re.escape(_BEGIN)}\s*{_END}{_RDF_END}".encode())
_EMPTY = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{_NAMESPACES["rdf"]}">
 {_RDF_END}
</x:xmpmeta>
""".encode()
_MAX_BYTES = 16 << 20  # of a sidecar


def write_tags(photo: Path, labels: Sequence[str], replaced: Collection[str] | None = None) -> bool:
    """Let the photo's sidecar have `labels` as tags, next to what it has; returns whether a
    sidecar changed.

    Labels of earlier calls are removed if they are `replaced`, by default all: `write_tags(photo,
    [])` undoes all calls. The sidecar is photo.jpg.xmp, or photo.xmp if only that exists and no
    other file has its stem; labels in the latter from before are removed too. Raises DcclipError
    for a sidecar in a form that could not be restored, and for a link to nothing or out of the
    photo's folder, and OSError.
    """
    sidecar = photo.with_name(f"{photo.name}.xmp")
    by_stem = photo.with_suffix(".xmp")
    is_earlier_changed = False
    with lock(cache_folder() / "sidecars.lock"):  # processes that add tags to one sidecar
        if by_stem != sidecar and by_stem.is_file():  # the same for a photo without a suffix
            is_sole = (
                _files_by_stem(photo.parent)[photo.stem] == 1
            )  # else it may be that of another photo
            if is_sole and not os.path.lexists(sidecar):
                sidecar = by_stem
            elif (is_sole or not (labels or replaced)) and _NAMESPACES[
                "dcclip"
            ].encode() in _content(by_stem):
                is_earlier_changed = _edit(by_stem, photo, [], replaced)
        return _edit(sidecar, photo, labels, replaced) or is_earlier_changed


@cache
def _files_by_stem(folder: Path) -> Counter[str]:
    return Counter(
        Path(name).stem for name in os.listdir(folder) if not name.lower().endswith(".xmp")
    )


def _content(sidecar: Path) -> bytes:
    refuse_special(sidecar)
    content = read_bytes(sidecar, _MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise _invalid(sidecar, Message("more than {} MB", _MAX_BYTES >> 20))
    return content


def _edit(
    sidecar: Path, photo: Path, labels: Sequence[str], replaced: Collection[str] | None
) -> bool:
    target = Path(os.path.realpath(sidecar))  # a link stays a link
    exists = target.exists()
    is_outside = not target.is_relative_to(os.path.realpath(photo.parent))
    if sidecar.is_symlink() and (is_outside or not exists):
        raise DcclipError(
            "{} is a link to nothing, or out of its folder", "replace it with a file", sidecar
        )

    before = _content(target) if exists else _EMPTY
    root = _parse(before, target)
    labelled = _texts(root, _LABELS)
    outdated = set(replaced or labelled)
    earlier = [label for label in labelled if label not in outdated]
    content = restored = _without_tags(before, root)

    if tags := list(dict.fromkeys([*earlier, *labels])):
        content = _with_tags(restored, tags, target, photo)
        written = _parse(content, target)
        lists = [set(_texts(written, name)) for name in _TAGS]
        is_complete = all(texts.issuperset(tags) for texts in lists if texts)
        has_doubles = any(len(_lists(written, name)) > 1 for name in _TAGS)
        if not is_complete or has_doubles or _without_tags(content, written) != restored:
            raise _invalid(target, ", ".join(_TAGS))

    if content == before:
        return False
    check_target(target, folder=False)
    if content == _EMPTY:
        target.unlink()
        return True
    with atomic_file(target) as partial:
        partial.write_bytes(content)
        if exists:
            shutil.copymode(target, partial)
    return True


def _invalid(file: Path, reason: object) -> DcclipError:
    return DcclipError(
        "{} has content that dcclip cannot edit: {}", "repair or rename this file", file, reason
    )


def _parse(content: bytes, file: Path) -> Element:
    """An XMP packet in UTF-8; attributes of elements are their places in bytes: `start`, `end_tag`
    and `end`.
    """
    builder: Any = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def start(name: str, _: object) -> None:
        builder.start("{" * ("}" in name) + name, {"start": parser.CurrentByteIndex})

    def end(name: str) -> None:
        end_tag = parser.CurrentByteIndex
        element = builder.end(name)
        has_end_tag = len(element) or element.text or content[end_tag - 2 : end_tag] != b"/>"
        end = content.index(b">", end_tag) + 1 if has_end_tag else end_tag
        element.attrib.update(end_tag=end_tag, end=end)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        if "<!DOCTYPE" in content.decode():  # of entities, which may be without end
            raise _invalid(file, "DOCTYPE")
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: its encoding
        raise _invalid(file, error) from None
    root: Element = builder.close()
    return root


def _lists(root: Element, name: str) -> list[Any]:
    return root.findall(f".//rdf:Description/{name}", _NAMESPACES)


def _texts(root: Element, name: str) -> list[str]:
    return [
        item.text or ""
        for element in _lists(root, name)
        for item in element.iterfind("*/rdf:li", _NAMESPACES)
    ]


def _with_tags(packet: bytes, tags: Sequence[str], sidecar: Path, photo: Path) -> bytes:
    """The packet with the tags at the end of its lists, and with new lists and notes in their own
    description.

    A new list also contains the tags that it would hide: those of the photo itself, and of the
    list read before it.
    """
    root = _parse(packet, sidecar)
    image = photo.read_bytes()
    start = image.find(b"<x:xmpmeta")
    end = image.find(b"</x:xmpmeta>")
    embedded = Element("none")
    with suppress(DcclipError):  # of an image without, or with a damaged packet
        embedded = _parse(image[start : end + len(b"</x:xmpmeta>")], photo)

    keywords = list[str]()
    lists = dict[str, list[str]]()
    insertions = dict[int, str]()
    for name, note in zip(_TAGS, _NOTES, strict=True):
        listed = set(_texts(root, name))
        items = _texts(root, name) or _texts(embedded, name)
        if name == "digiKam:TagsList" and not items:
            continue
        keywords = items or keywords
        lists[note] = [tag for tag in dict.fromkeys([*keywords, *tags]) if tag not in listed]
        if not listed:
            lists[name] = lists[note]
        else:
            insertions[_lists(root, name)[0][0].attrib["end_tag"]] = _xml_items(lists[note])
    lists[_LABELS] = list(tags)

    content = packet
    for place in sorted(insertions, reverse=True):
        content = content[:place] + insertions[place].encode() + content[place:]
    bags = (
        f"\n <{name}><rdf:Bag>{_xml_items(texts)}</rdf:Bag></{name}>"
        for name, texts in lists.items()
        if texts
    )
    before, rdf_end, after = content.rpartition(_RDF_END.encode())
    return before + f"{_BEGIN}{''.join(bags)}\n{_END}".encode() + rdf_end + after


def _xml_items(texts: Sequence[str]) -> str:
    return "".join(f"<rdf:li>{escape(text)}</rdf:li>" for text in texts)


def _without_tags(packet: bytes, root: Element) -> bytes:
    """The packet without what dcclip wrote: exactly the one before, unless another program has
    written it since.
    """
    removed = [element for name in (*_NOTES, _LABELS) for element in _lists(root, name)]
    for name, note in zip(_TAGS, _NOTES, strict=True):
        added = set(_texts(root, note))
        for element in _lists(root, name)[:1]:
            items = element.findall("*/rdf:li", _NAMESPACES)
            last = {item.text: item for item in items if item.text in added}
            removed += [element] if last and len(last) == len(items) else last.values()

    parts = list[bytes]()
    position = 0
    for element in sorted(removed, key=lambda element: element.attrib["start"]):
        parts.append(packet[position : element.attrib["start"]])
        position = max(position, element.attrib["end"])
    return _EMPTIED.sub(_RDF_END.encode(), b"".join([*parts, packet[position:]]))
