"""Image files are found by names, folders, globs and lists, read ahead, and embedded in their order."""

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.inference.images import embed, find_images, mime_type, skipped_line
from dcclip_cli.inference.images import read as read_image
from dcclip_cli.model.preprocess import TooManyPixelsError
from tests.images import encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.txt", "下/猫.JPG", "下/更下/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_globs_and_listed_lines_mean_their_files(folder: Path) -> None:
    paths = [path.relative_to(folder).as_posix() for path in find_images([str(folder)])]
    assert paths == ["a.png", "下/更下/c.webp", "下/猫.JPG"]
    assert [path.name for path in find_images([f"{folder}/**/猫*"])] == ["猫.JPG"]
    listed = [f"{folder}/a.png\n", "\n", f"{folder}/下\r\n", "-\n"]
    assert [path.name for path in find_images(["-"], listed)] == ["a.png", "c.webp", "猫.JPG"]


def test_a_name_is_taken_as_it_is_even_if_it_looks_like_a_glob(folder: Path) -> None:
    (folder / "[1].png").touch()
    assert [path.name for path in find_images([f"{folder}/[1].png", f"{folder}/no.png"])] == ["[1].png", "no.png"]


def test_a_folder_without_images_and_a_glob_without_files_are_refused(folder: Path) -> None:
    (folder / "空").mkdir()
    with pytest.raises(DcclipError, match="空 contains no images"):
        list(find_images([str(folder / "空")]))
    with pytest.raises(DcclipError, match=r"no file matches .*狗"):
        list(find_images([f"{folder}/狗*.png"]))


# The folder of a NAS, and whether each file is found.
NAS = {
    "2024/IMG_1.JPG": True,
    "2024/IMG_2.jfif": True,
    "2024/._IMG_1.JPG": False,
    "2024/@eaDir/IMG_1.JPG/SYNOFILE_THUMB_M.jpg": False,
    "2024/film.MOV": False,
    "2024/film2.mov": False,
    "2024/注释.txt": False,
    "家/动画.gif": True,
    "家/扫描.TIFF": True,
    "家/截图/屏.bmp": True,
    "家/\udcff.png": True,
    "#recycle/deleted.jpg": False,
    ".Trash-1000/files/deleted.jpg": False,
    ".hidden.jpg": False,
}


def test_a_nas_is_searched_without_its_thumbnails_and_deleted_files_and_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "nas"
    outside = tmp_path / "旧"
    for name in [*NAS, "../旧/b.webp"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for link, target in {
        "链接": outside,
        "again": outside,
        "家/loop": root,
        "up": tmp_path,
        "IMG.png": root / "x",
    }.items():
        (root / link).symlink_to(target)
    (outside / "back").symlink_to(root / "家")
    skipped = Counter[str]()
    expected = {name for name, is_found in NAS.items() if is_found}
    assert {str(path.relative_to(root)) for path in find_images([str(root)], (), (), skipped)} == expected | {
        "again/b.webp"
    }
    assert skipped_line("search", skipped) == "search: skipped 2 .mov"
    paths = find_images([str(root)], exclude=["截图", "*.GIF", "2024/*_2.*", "b.*"])
    assert [path.name for path in paths] == ["IMG_1.JPG", "扫描.TIFF", "\udcff.png"]
    assert [path.name for path in find_images([f"{root}/家/*/*.bmp", f"{root}/a.gif"], exclude=["*.gif"])] == ["屏.bmp"]
    for name in ("家/截图/屏.bmp", "家/截图"):
        with pytest.raises(DcclipError, match="no image") as raised:
            find_images([str(root / name)], exclude=["屏*"])
        assert raised.value.hint == "use other patterns with --exclude"


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "AVIF", "HEIF", "JXL"])
def test_an_image_is_read_upright_whatever_its_format_and_suffix(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
    if package := packages.get(kind):
        pytest.importorskip({"JXL": "pillow_jxl.JpegXLImagePlugin"}.get(kind, package))
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    image = Image.new("RGB", (64, 32), "black")
    exif = Image.Exif()
    image.paste("white", (0, 0, 32, 32))
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    if kind == "JXL":  # as made of a camera's JPEG, without loss
        (tmp_path / "a.jpg").write_bytes(encode(image, "JPEG", exif=exif))
        image = Image.open(tmp_path / "a.jpg")
    turns = kind not in ("GIF", "BMP")
    content = encode(image, kind, **({"exif": exif.tobytes()} if turns and kind != "JXL" else {}))
    file = tmp_path / "照片.jpg"
    file.write_bytes(content)
    upright = read_image(file)
    assert kind == "JXL" or np.array_equal(np.asarray(read_image(content)), np.asarray(upright))  # as an upload
    assert upright.size == ((32, 64) if turns else (64, 32)) and mime_type(content) is not None
    assert np.asarray(upright.convert("L"))[2, 2] > 200 > 50 > np.asarray(upright.convert("L"))[-2, -2]
    for damaged in (content[: len(content) // 2], content[:20]):
        file.write_bytes(damaged)
        with pytest.raises(DcclipError, match=r"照片\.jpg is not a readable image"):
            read_image(file)
    if package:
        file.write_bytes(content)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DcclipError, match="needs the package pillow-") as raised:
            read_image(file)
        assert raised.value.hint in ("pip install 'dcclip[heic]'", "pip install 'dcclip[jxl]'")


def raw_photo(preview: bytes, orientation: int) -> bytes:
    """A DNG as small as LibRaw reads it: a sensor of 32 x 32 pixels, and a JPEG."""
    kinds: dict[type, int] = {bytes: 1, str: 2, tuple: 3, int: 4}
    sensor: dict[int, Any] = {256: 32, 257: 32, 258: 16, 259: 1, 262: 32803, 273: 0, 277: 1, 279: 2048}
    sensor |= {33421: (2, 2), 33422: b"\0\1\1\2"}
    shown: dict[int, Any] = {254: 1, 256: 160, 257: 120, 258: (8, 8, 8), 259: 7, 262: 6, 271: "dcclip", 273: 0}
    shown |= {274: orientation, 277: 3, 279: len(preview), 330: 8, 50706: b"\1\4\0\0"}
    content = b"II*\0" + bytes(4)
    for tags, pixels in ((sensor, bytes(2048)), (shown, preview)):
        directory = ImageFileDirectory_v2()
        start = len(content)
        for tag, value in tags.items():
            directory.tagtype[tag] = kinds[type(value)]
            directory[tag] = value
        content += directory.tobytes(start) + pixels  # tobytes adds its end to tag 273: there are the pixels
    return content[:4] + start.to_bytes(4, "little") + content[8:]


def test_a_raw_file_is_read_by_its_preview_upright_and_in_folders(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    image = Image.new("RGB", (160, 120), "black")
    file = tmp_path / "照片 1.DNG"
    image.paste("white", (0, 0, 80, 60))
    file.write_bytes(raw_photo(encode(image, "JPEG"), 6))
    upright = read_image(file)
    assert find_images([str(tmp_path)]) == [file] and upright.size == (120, 160)
    pixels = np.asarray(upright.convert("L"))
    assert pixels[2, -3] > 200 > 50 > pixels[2, 2]
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(DcclipError, match=r"照片 1\.DNG has no readable preview: [^b]"):
        read_image(file)


def test_a_jpeg_xl_file_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    bits = 0 | 2 << 1 | 99_999 << 3 | 1 << 21  # not small, 18 bits of height - 1, ratio 1:1
    large, small = (b"\xff\x0a" + number.to_bytes(12, "little") for number in (bits, 1 | 1 << 6))
    container = bytes.fromhex("0000000c4a584c200d0a870a")
    metadata = b"\0\0\0\x1axml jxlc" + small  # a small image, which no decoder reads
    for content in (large, container + metadata[:-4] + b"\0\0\0\x16jxlc" + large):
        (tmp_path / "a.jxl").write_bytes(content)
        with pytest.raises(TooManyPixelsError, match="has 100000 x 100000 pixels"):
            read_image(tmp_path / "a.jxl")


def test_files_of_a_missing_extra_are_counted_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.nef", "b.CR2", "c.jxl", "d.heic"):
        (tmp_path / name).touch()
    for package in ("rawpy", "pillow_jxl", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DcclipError, match="contains no images") as raised:
        find_images([str(tmp_path)])
    assert raised.value.hint == "pip install 'dcclip[heic,jxl,raw]'"
    (tmp_path / "e.jpg").touch()
    (tmp_path / "d.heic").unlink()
    skipped = Counter[str]()
    find_images([str(tmp_path)], skipped=skipped)
    line = "search: skipped 1 .cr2, 1 .jxl, 1 .nef (to read more formats: pip install 'dcclip[jxl,raw]')"
    assert skipped_line("search", skipped) == line


class Brightness:
    """A model whose embedding is an image's first pixel; `batches` are the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32)[:1, 0, :1]

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return pixels[:, 0]


def read(number: int) -> Image.Image:
    if number % 5 == 3:
        raise DcclipError(f"{number} is broken", "fix it")
    return Image.new("RGB", (1, 1), (number, 0, 0))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_results_keep_their_order_with_errors_among_them(batch_size: int) -> None:
    model: Any = Brightness()
    embeddings = dict(embed(model, range(12), read, batch_size))
    assert list(embeddings) == list(range(12))
    for number, result in embeddings.items():
        if number % 5 == 3:
            assert isinstance(result, DcclipError) and result.what == f"{number} is broken"
        else:
            assert not isinstance(result, DcclipError) and result.tolist() == [number]
    assert sum(model.batches) == 10


def test_no_more_than_three_batches_are_read_ahead() -> None:
    begun = 0
    lock = threading.Lock()

    def count(number: int) -> Image.Image:
        nonlocal begun
        with lock:
            begun += 1
        return read(0)

    model: Any = Brightness()
    results = embed(model, iter(range(1000)), count, 4)
    next(results)
    assert begun <= 12
    results.close()  # type: ignore[attr-defined]
