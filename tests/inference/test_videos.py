"""Frames of videos are chosen over their whole length, whatever the format, and searched like pictures."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor

from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError
from dcclip_cli.inference import videos
from dcclip_cli.inference.encoder import shortened
from dcclip_cli.inference.images import find_images, read
from dcclip_cli.inference.index import open_index, search_all
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.inference.videos import frame_name, frames, split_frame
from dcclip_cli.progress import Silent
from tests.videos import film

pytest.importorskip("av", reason="av is not installed")
COLOURS = ["red", "white", "blue", "lime"]


def colour(image: Image.Image) -> str:
    """Which of COLOURS an image has."""
    levels = np.asarray(image.convert("RGB"), int)[image.height // 2, image.width // 2]
    return min(COLOURS, key=lambda name: int(np.abs(ImageColor.getrgb(name) - levels).sum()))


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.mp4", "mpeg4", ""),  # a key frame every 1.2 s
        ("无.MOV", "libx264", "mov"),  # key frames where the picture changes
        ("a.webm", "libvpx-vp9", ""),  # one key frame
        ("b.webm", "libvpx-vp9", "stream"),  # nor a duration, as a browser records
        ("a.avi", "mpeg4", ""),
        ("a.mts", "libx264", "mpegts"),  # no index
    ],
)
def test_each_picture_of_a_video_is_among_its_frames_and_is_read_again_by_its_time(
    name: str, codec: str, kind: str, tmp_path: Path
) -> None:
    file, pictures = tmp_path / name, [Image.new("RGB", (64, 48), name) for name in COLOURS]
    if kind == "stream":
        with file.open("wb") as written:
            film(SimpleNamespace(write=written.write), pictures, codec, "webm")  # which cannot seek
    else:
        film(file, pictures, codec, kind)
    shown = [*frames(file)]
    assert [colour(image) for _, image in shown] == COLOURS  # of neighbours that are alike, one
    for number, (time_s, image) in enumerate(shown):
        assert 3 * number - 0.2 <= time_s <= 3 * number + 3.2
        frame = Path(frame_name(file, time_s))
        assert split_frame(frame) == (str(file), pytest.approx(time_s, abs=1e-3))
        assert np.array_equal(np.asarray(read(frame)), np.asarray(image))
    file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) // 3])
    if name[-3:] in ("avi", "ebm", "mts"):  # the index of the others is at their end
        assert [colour(image) for _, image in frames(file)][:2] == COLOURS[:2]


def test_a_phones_video_is_upright_and_what_is_no_video_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, file = Image.new("RGB", (64, 48), "lime"), tmp_path / "手机 a.mp4"
    picture.paste("red", (0, 0, 32, 48))
    film(file, [picture])
    start, header = file.read_bytes().split(b"tkhd")
    turn = b"".join(number.to_bytes(4, signed=True) for number in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    file.write_bytes(start + b"tkhd" + header[:40] + turn + header[76:])  # the camera was held upright
    [(_, image)] = frames(file)
    assert image.size == (48, 64) and image.getpixel((24, 4)) > (200, 0, 0) > image.getpixel((24, 60))  # type: ignore[operator]
    with pytest.raises(DcclipError, match="is a video") as raised:
        read(file)
    assert raised.value.hint == f"name a frame by its time in seconds, such as {file}#t=1.0"
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:3,\n{file}\n")  # would read other files
    monkeypatch.setattr(videos, "MAX_PIXELS", 3_000)
    for name, problem in {"手机 a": "Invalid argument", "list": "Invalid data", "没有": "does not exist"}.items():
        with pytest.raises(DcclipError, match=problem):
            [*frames(tmp_path / f"{name}.mp4")]


def test_videos_are_searched_with_pictures_by_their_best_frame_and_follow_their_files(
    bundle_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    model, pictures = OnnxEncoder(bundle_folder, "cpu"), [Image.open(io.BytesIO(pair.image)) for pair in pairs[:32:8]]
    video = tmp_path / "相册" / "下" / "假日 holiday.mp4"
    video.parent.mkdir(parents=True)
    film(video, pictures[:3], "libx264")
    film(video.with_name("b.mkv"), pictures[2:])
    pictures[0].save(tmp_path / "相册" / "a.png")
    (video.parent / "broken.mov").write_bytes(b"no video")
    index = open_index(model, tmp_path / "相册")
    assert (index.count, index.embedded, list(index.errors)) == (3, 3, [str(Path("下/broken.mov"))])
    query = model.encode_pixels(model.preprocess(read(Path(f"{video}#t=4")))[np.newaxis])[0]
    for found in (search_all([index, open_index(model, video.parent)], query, 3), index.search(query, 99)):
        assert len(found) == len({hit.image for hit in found}) == 3  # a video once, in two folders also
        assert (found[0].image, found[0].score) == (video, pytest.approx(1, abs=0.02))
        assert found[0].time_s and 2.8 <= found[0].time_s <= 6.2 and read(found[0].frame).size == (64, 48)
    again = open_index(model, tmp_path / "相册")
    assert (again.embedded, again.errors, again.unreadable, again.paths) == (0, {}, (*index.errors,), index.paths)
    np.testing.assert_allclose(again.embeddings, index.embeddings, atol=1e-3)
    for kind, encoder in (("int8", model), ("binary", shortened(model, 8, Silent()))):
        small = open_index(encoder, tmp_path / "相册", kind=kind)  # type: ignore[arg-type]
        assert small.paths == index.paths and len(small.embeddings) == len(index.paths)
    assert open_index(model, tmp_path / "相册", exclude=["*.MP4"]).count == 2
    assert find_images([str(tmp_path)]) == [tmp_path / "相册" / "a.png"]  # as of predict, embed, duplicates
    film(video, pictures[3:])
    os.utime(video, ns=(1, 1))
    video.with_name("b.mkv").unlink()
    changed = open_index(model, tmp_path / "相册")
    assert (changed.embedded, changed.count) == (1, 2)
    assert {split_frame(path)[0] for path in changed.paths} == {"a.png", str(Path("下/假日 holiday.mp4"))}
