"""Labels in XMP sidecars: what photo apps read, tags that were there before, and an exact undo."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.photos import xmp
from dcclip_cli.photos.xmp import write_tags

RDF = "xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'"
DC = "xmlns:dc='http://purl.org/dc/elements/1.1/'"
LR = "xmlns:lr='http://ns.adobe.com/lightroom/1.0/'"
DIGIKAM = "xmlns:digiKam='http://www.digikam.org/ns/1.0/'"
EXIFTOOL = f"""<?xpacket begin='\ufeff' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x='adobe:ns:meta/'>\r\n<rdf:RDF {RDF}>
 <rdf:Description rdf:about='' {DC}>
  <dc:subject>
   <rdf:Bag>
    <rdf:li>妈妈 &amp; 我</rdf:li>
    <rdf:li>dog</rdf:li>
   </rdf:Bag>
  </dc:subject>
 </rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end='w'?>"""
DARKTABLE = f"""\ufeff<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" {LR} {DIGIKAM} digiKam:PickLabel="0">
 <lr:hierarchicalSubject><rdf:Seq><rdf:li>人|妈妈</rdf:li></rdf:Seq></lr:hierarchicalSubject>
 <digiKam:TagsList><rdf:Seq><rdf:li>人/妈妈</rdf:li></rdf:Seq></digiKam:TagsList></rdf:Description></rdf:RDF></x:xmpmeta>
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "猫 1.jpg")
    return tmp_path / "猫 1.jpg"


def sidecar_of(photo: Path) -> Path:
    return photo.with_name(f"{photo.name}.xmp")


# What looks like dcclip's, and is not.
FOREIGN = f"""<rdf:RDF {RDF}><!-- <dcclip:labels>留下</dcclip:labels> <dc:subject> --><rdf:Description {DC}
 xmlns:dcclip='urn:other'> <dcclip:labels><rdf:Bag><rdf:li>keep</rdf:li></rdf:Bag></dcclip:labels> <dcclip:x/>
 <dc:title><![CDATA[ <dcclip:labels>a</dcclip:labels> </rdf:Description>]]></dc:title></rdf:Description></rdf:RDF>"""
BEFORE = {
    "none": None,
    "exiftool": EXIFTOOL,
    "darktable": DARKTABLE,
    "prefix": EXIFTOOL.replace("dc:", "ns1:").replace(":dc", ":ns1"),
    "foreign": FOREIGN,
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_tags_are_added_once_replaced_by_a_further_call_and_undone_byte_for_byte(
    photo: Path, before: str | None
) -> None:
    sidecar = sidecar_of(photo)
    image = photo.read_bytes()
    if before:
        sidecar.write_bytes(before.encode())
    assert write_tags(photo, ["猫", "dog", "a<b"]) and not write_tags(photo, ["猫", "dog", "a<b"])
    assert write_tags(photo, ["海"], ["猫", "海", "dog"])  # a<b is of another set of labels
    assert write_tags(photo, [], ["海", "山"]) and write_tags(photo, ["狗"], ["狗"])
    content = sidecar.read_text("utf-8")
    lists = 7 if before == DARKTABLE else 5  # two or three for apps, with notes
    assert [content.count(f"<rdf:li>{tag}</rdf:li>") for tag in ("狗", "a&lt;b", "猫", "海")] == [lists, lists, 0, 0]
    assert write_tags(photo, []) and not write_tags(photo, []) and photo.read_bytes() == image
    assert sidecar.read_bytes() == before.encode() if before else not sidecar.exists()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_the_tags_also_where_they_would_hide_those_in_the_photo(photo: Path) -> None:
    def exiftool(*arguments: object) -> bytes:
        return subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, check=True).stdout

    photos = [photo, *(photo.with_name(f"{name}.jpg") for name in "abc")]
    for path, before in zip(photos[1:], (None, EXIFTOOL, DARKTABLE), strict=True):
        shutil.copy(photo, path)
        if before:
            sidecar_of(path).write_bytes(before.encode())
    exiftool("-q", "-overwrite_original", "-XMP-dc:Subject=妈妈", "-XMP-dc:Subject=dad", photo)
    for path in photos:
        write_tags(path, ["猫", "dog"])
    names = ("Subject", "HierarchicalSubject", "TagsList")
    read = ["-j", *(f"-{name}" for name in names)]
    rows = json.loads(exiftool(*read, *map(sidecar_of, photos)))
    assert [[row.get(name) for name in names] for row in rows] == [
        [["妈妈", "dad", "猫", "dog"], ["妈妈", "dad", "猫", "dog"], None],
        [["猫", "dog"], ["猫", "dog"], None],
        [["妈妈 & 我", "dog", "猫"], ["妈妈 & 我", "dog", "猫"], None],
        [["猫", "dog"], ["人|妈妈", "猫", "dog"], ["人/妈妈", "猫", "dog"]],
    ]
    exiftool("-q", "-overwrite_original", "-XMP:Rating=5", sidecar_of(photos[2]))  # which writes all of it again
    write_tags(photos[2], [])
    [row] = json.loads(exiftool(*read, sidecar_of(photos[2])))
    assert row["Subject"] == ["妈妈 & 我", "dog"] and "HierarchicalSubject" not in row


def test_a_sidecar_is_that_of_the_stem_only_if_no_other_file_has_it_and_a_link_stays_one(photo: Path) -> None:
    by_stem = photo.with_suffix(".xmp")
    target = photo.with_name("elsewhere")
    target.write_text(EXIFTOOL, "utf-8")
    target.chmod(0o600)
    by_stem.symlink_to(target)
    assert write_tags(photo, ["猫"]) and by_stem.is_symlink() and "<rdf:li>猫<" in target.read_text("utf-8")
    raw = photo.with_suffix(".cr2")
    raw.touch()
    xmp._files_by_stem.cache_clear()
    # after which another photo would have a sidecar of its own
    sidecar_of(photo).write_text(DARKTABLE, "utf-8")  # as another program that begins to write such sidecars
    assert target.stat().st_mode & 0o777 == 0o600 and write_tags(photo, ["海"], ["海"]) and write_tags(photo, [])
    assert (target.read_bytes(), sidecar_of(photo).read_bytes()) == (EXIFTOOL.encode(), DARKTABLE.encode())
    assert write_tags(raw, ["猫"]) and sidecar_of(raw).exists()
    raw = photo.parent / "raw"
    raw.mkdir()
    for name in ("猫.jpg", "猫.CR2", "猫.xmp"):
        (raw / name).write_bytes(EXIFTOOL.encode())
    assert write_tags(raw / "猫.jpg", ["猫"]) and (raw / "猫.xmp").read_bytes() == EXIFTOOL.encode()
    assert sidecar_of(raw / "猫.jpg").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no XML", "syntax error"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "DOCTYPE"),
        (EXIFTOOL.encode("utf-16"), "utf-8"),
        (f"<?xml version='1.0' encoding='latin1'?>{EXIFTOOL}".encode(), "dc:subject"),
        (f"<rdf:RDF {RDF}><rdf:Description {DC}><dc:subject/></rdf:Description></rdf:RDF>".encode(), "dc:subject"),
        (b"<a/>", "junk after document element"),
    ],
)
def test_a_sidecar_that_could_not_be_restored_is_refused_and_stays(photo: Path, content: bytes, problem: str) -> None:
    sidecar_of(photo).write_bytes(content)
    with pytest.raises(DcclipError, match=f"猫 1.jpg.xmp has content that dcclip cannot edit: .*{problem}"):
        write_tags(photo, ["猫"])
    assert sidecar_of(photo).read_bytes() == content
    assert sorted(os.listdir(photo.parent)) == [photo.name, sidecar_of(photo).name]


def padded(inner: str) -> bytes:
    return EXIFTOOL.replace("<?xpacket end", f"{inner}<?xpacket end").encode()


@pytest.mark.parametrize(
    "content",
    [
        padded(" " * 4_000_000),
        padded("\r\n" * 500_000),
        EXIFTOOL.replace("  <dc:s", f"{' ' * 1_000_000}\n<![CDATA[{'<dcclip:a>' * 100_000}]]>  <dc:s").encode(),
        EXIFTOOL.replace(
            "</rdf:Bag>", "".join(f"<rdf:li>狗{number}</rdf:li>" for number in range(20_000)) + "</rdf:Bag>"
        ).encode(),
    ],
    ids=["blanks", "lines", "CDATA", "tags"],
)
def test_a_large_sidecar_takes_seconds_and_is_restored(photo: Path, content: bytes) -> None:
    sidecar_of(photo).write_bytes(content)
    begin_s = time.process_time()
    assert write_tags(photo, ["猫", "bird"]) and write_tags(photo, [])
    assert time.process_time() - begin_s < 10 and sidecar_of(photo).read_bytes() == content


def test_a_sidecar_beyond_a_limit_and_links_to_nothing_or_elsewhere_are_refused(photo: Path, tmp_path: Path) -> None:
    sidecar = sidecar_of(photo)
    folder = tmp_path / "相册"
    with sidecar.open("wb") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(DcclipError, match="cannot edit: more than 16 MB"):
        write_tags(photo, ["猫"])
    folder.mkdir()
    inside = folder / photo.name
    shutil.copy(photo, inside)
    (tmp_path / "elsewhere.xmp").write_text(EXIFTOOL, "utf-8")
    for target in (tmp_path / "elsewhere.xmp", tmp_path / "new.desktop", folder / "nothing"):
        sidecar_of(inside).symlink_to(target)
        with pytest.raises(DcclipError, match="is a link to nothing, or out of its folder"):
            write_tags(inside, ["dog"])
        sidecar_of(inside).unlink()
    assert (tmp_path / "elsewhere.xmp").read_bytes() == EXIFTOOL.encode()
    assert sorted(os.listdir(folder)) == [photo.name] and not (tmp_path / "new.desktop").exists()


def test_two_processes_lose_no_tag_of_each_other(photo: Path) -> None:
    code = """
import sys
from pathlib import Path
from dcclip_cli.photos.xmp import write_tags
for number in range(40):
    tag = f"{sys.argv[2]}{number}"
    write_tags(Path(sys.argv[1]), [tag], [tag])
"""
    programs = [subprocess.Popen([sys.executable, "-c", code, str(photo), name]) for name in ("猫", "dog")]
    assert [program.wait(60) for program in programs] == [0, 0]
    content = sidecar_of(photo).read_text("utf-8")
    tags = [f"{name}{number}" for name in ("猫", "dog") for number in range(40)]
    assert [tag for tag in tags if content.count(f"<rdf:li>{tag}</rdf:li>") != 5] == []
