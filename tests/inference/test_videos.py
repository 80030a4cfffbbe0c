"""Frames of videos are chosen over their whole length, whatever the format, and searched like pictures."""

import io
import os
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Silent
from dcclip_cli.data.pair import Pair
from dcclip_cli.inference import videos
from dcclip_cli.inference.encoder import load_encoder, shortened
from dcclip_cli.inference.images import find_images, read
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.inference.videos import frame_name, frames, split_frame
from dcclip_cli.model.reference import resolve
from dcclip_cli.photos.index import open_index, search_all
from tests.videos import film

pytest.importorskip("av", reason="av is not installed")
COLOURS = ["red", "white", "blue", "lime"]
FORMATS = {
    "a.mp4": ("mpeg4", ""),  # a key frame every 1.2 s
    "无.MOV": ("libx264", "mov"),  # key frames where the picture changes
    "a.webm": ("libvpx-vp9", "webm"),  # one key frame, and no duration, as a browser records
    "a.avi": ("mpeg4", ""),
    "a.mts": ("libx264", "mpegts"),  # no index
    "av1.mkv": ("libsvtav1", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_picture_of_a_video_is_among_its_frames_and_is_read_again_by_its_time(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    pictures = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    with file.open("wb") as stream:
        film(SimpleNamespace(write=stream.write) if name == "a.webm" else str(file), pictures, *FORMATS[name])

    def shown() -> list[str]:
        """The colours, and that a frame is read again by its name."""
        colours = []
        for time_s, image in frames(file):
            levels = np.asarray(image, int)[24, 32]
            colours.append(min(COLOURS, key=lambda colour: int(np.abs(ImageColor.getrgb(colour) - levels).sum())))
            again = Path(frame_name(file, time_s))
            assert split_frame(again) == (str(file), pytest.approx(time_s, abs=1e-3)) and read(again) == image
            assert -0.2 <= time_s - 3 * COLOURS.index(colours[-1]) <= 3.2
            assert np.abs(ImageColor.getrgb(colours[-1]) - levels).max() < 24
        return colours

    assert shown() == COLOURS  # of neighbours that are alike, one
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    if name[-3:] in ("ebm", "avi", "mts"):  # the index of the others is at their end
        assert shown() == COLOURS[: len(shown())] and shown()[1]


def test_a_phones_video_is_upright_and_what_is_no_video_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.new("RGB", (64, 48), "lime")
    file = tmp_path / "手机 a.mp4"
    picture.paste("red", (0, 0, 32, 48))
    film(str(file), [picture])
    start, header = file.read_bytes().split(b"tkhd")
    turn = b"".join(number.to_bytes(4, signed=True) for number in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    file.write_bytes(start + b"tkhd" + header[:40] + turn + header[76:])  # the camera was held upright
    [(_, image)] = frames(file)
    assert image.size == (48, 64) and str(image.getpixel((24, 4))) > "(200" > str(image.getpixel((24, 60)))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:3,\n{file}\n")  # would read other files
    monkeypatch.setattr(videos, "MAX_PIXELS", 3_000)
    for name, problem in {"手机 a": "Invalid argument", "list": "Invalid data", "没有": "does not exist"}.items():
        with pytest.raises(DcclipError, match=problem):
            [*frames(tmp_path / f"{name}.mp4")]


def test_videos_are_searched_with_pictures_by_their_best_frame_and_follow_their_files(
    bundle_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    model = OnnxEncoder(bundle_folder, "cpu")
    pictures = [Image.open(io.BytesIO(pair.image)) for pair in pairs[:32:8]]
    folder = tmp_path / "相册"
    video = tmp_path / "相册" / "下" / "假日 holiday.mp4"
    video.parent.mkdir(parents=True)
    film(str(video), pictures[:3], "libx264")
    film(str(video.with_name("b.mkv")), pictures[2:])
    pictures[0].save(folder / "a.png")
    (video.parent / "broken.mov").write_bytes(b"no video")
    index = open_index(model, folder)
    assert (len(index.images), index.embedded, list(index.errors)) == (3, 3, [str(Path("下/broken.mov"))])
    query = model.encode_pixels(model.preprocess(read(Path(f"{video}#t=4")))[np.newaxis])[0]
    below = open_index(model, video.parent)
    assert below.embedded == 0  # the index above has these frames
    for hits in (search_all([index, below], query, 3), index.search(query, 99)):
        assert len(hits) == len({hit.image for hit in hits}) == 3  # a video once, in two folders also
        assert (hits[0].image, hits[0].score) == (video, pytest.approx(1, abs=0.02))
        assert hits[0].time_s and 2.8 <= hits[0].time_s <= 6.2
    again = open_index(model, folder)
    assert (again.embedded, again.errors, again.unreadable, again.paths) == (0, {}, (*index.errors,), index.paths)
    np.testing.assert_allclose(again.embeddings, index.embeddings, atol=1e-3)
    small = open_index(shortened(model, 8, Silent()), folder)
    assert (small.embedded, small.paths, len(small.embeddings)) == (0, index.paths, len(index.paths))
    assert len(open_index(model, folder, exclude=["*.MP4"]).images) == 2
    assert find_images([str(tmp_path)]) == [folder / "a.png"]  # as of predict, embed, duplicates
    film(str(video), pictures[3:])
    os.utime(video, ns=(1, 1))
    video.with_name("b.mkv").unlink()
    changed = open_index(model, folder)
    assert (changed.embedded, {*changed.images}) == (1, {"a.png", str(Path("下/假日 holiday.mp4"))})


def test_an_interrupted_index_of_videos_has_those_before_and_goes_on(tmp_path: Path) -> None:
    class Interrupted(Silent):
        videos = 0

        def advance(self, steps: int = 1, **metrics: float) -> None:
            self.videos += steps
            if self.videos == 2:
                raise CancelledError

    for number, colour in enumerate(COLOURS):
        film(str(tmp_path / f"片 {number}.mp4"), [Image.new("RGB", (64, 48), colour)])
    model = load_encoder(resolve("starter"), "cpu")
    with pytest.raises(CancelledError):
        open_index(model, tmp_path, progress=Interrupted())
    index = open_index(model, tmp_path)
    assert (index.embedded, len(index.images)) == (2, 4)


@pytest.mark.parametrize(
    ("transfer", "white", "gray", "red"),
    [  # signals in % of 203 and 26 nits by Report ITU-R BT.2408, and of the red of BT.709 with 203 nits of each channel
        pytest.param(16, [58] * 3, [38] * 3, [53.25, 32.70, 22.01], id="PQ"),
        pytest.param(18, [75] * 3, [38] * 3, [70.85, 26.66, 12.99], id="HLG"),
    ],
)
def test_hdr_videos_of_phones_get_the_colours_of_ordinary_ones(
    transfer: int, white: list[float], gray: list[float], red: list[float], tmp_path: Path
) -> None:
    import av

    file = tmp_path / "手机.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p10le"
        codec = stream.codec_context
        codec.color_trc = transfer
        codec.color_primaries = 9
        codec.colorspace = 9
        codec.color_range = 1
        for number, signal in enumerate(np.repeat([white, gray, red], 3, axis=0)):
            picture = np.full((48, 64, 3), signal / 100 * 65535).astype(np.uint16)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, src_color_range=2, dst_color_range=1)
            frame.pts = number
            frame.color_trc = transfer
            frame.color_primaries = 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    levels = [np.asarray(image, float).mean((0, 1)) for _, image in frames(file)]
    # White is compressed, for highlights may be brighter; 12.8 % of its light is sRGB's level 101.
    for shown, expected in zip(levels, [[246] * 3, [101] * 3, [246, 0, 0]], strict=True):
        assert np.abs(shown - expected).max() < 6
