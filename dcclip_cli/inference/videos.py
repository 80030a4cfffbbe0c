"""Frames of video files, spread over their length, decoded by PyAV."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import refuse_special
from dcclip_cli.model.preprocess import MAX_ASPECT, MAX_PIXELS, ImageError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".3gp",
    ".mts",
    ".m2ts",
    ".mpg",
    ".mpeg",
    ".wmv",
)
_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,asf"  # FFmpeg's names; no playlists, which name other files
)
# What files of these formats begin with; the names of boxes are those of MOV and MP4.
_START = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF.{4}AVI "
    rb"|G|.{4}G|\x00\x00\x01[\xb3\xba]|0&\xb2u",
    re.DOTALL,
)
_TIME = re.compile(r"\d{1,9}(\.\d+)?")
# between two frames at least, and frames of a video at most
_STEP_S = 2.0
_MAX_FRAMES = 120
_DECODE_S = 60.0  # of decoding, at most
_FRAME_PX = 512  # the shorter side of a frame at most
_SAME_LEVELS = 10  # of 255, by which no cell of 16 x 16 differs in near-identical frames
_SAME_S = 0.0005  # by which a frame's time differs from that in its name
# FFmpeg's numbers of transfer functions and of a color space
_PQ = 16
_HLG = 18
_BT2020 = 9
# of white paper in an HDR picture (BT.2408), and of HLG's display
_WHITE_NITS = 203
_HLG_PEAK_NITS = 1000
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_KNEE = 0.8  # of white, from which highlights are compressed
_REPLACE = Message("replace it, or convert it to MP4")


def is_video(name: str | Path) -> bool:
    return str(name).lower().endswith(VIDEO_SUFFIXES)


def is_video_start(content: bytes) -> bool:
    """Whether a file's first bytes are those of a video."""
    return _START.match(content) is not None


def frame_name(file: str | Path, time_s: float | None) -> str:
    """The name of a frame, holiday.mp4#t=83.2, as in a URL that opens a video at a time; without
    time, the file's.
    """
    return str(file) if time_s is None else f"{file}#t={round(time_s, 3)}"


def split_frame(name: str | Path) -> tuple[str, float | None]:
    """The file and the time of a frame by its name; another name and None."""
    file, _, time_s = str(name).rpartition("#t=")
    return (
        (file, float(time_s))
        if is_video(file) and re.fullmatch(_TIME, time_s)
        else (str(name), None)
    )


def frames(file: Path) -> Iterator[tuple[float, Image.Image]]:
    """At most _MAX_FRAMES frames of a video with their times in seconds, without near-identical
    neighbours.

    These are key frames; where they are rarer, others, for which all before them are decoded.
    Raises ImageError if there is no frame.
    """
    last_s = -math.inf
    by_key = True
    cells = np.full((16, 16, 3), math.inf)
    try:
        with _opened(file) as video:
            count = math.ceil(min(_MAX_FRAMES, max(1, video.duration_s / _STEP_S)))
            for slot_s in ((place + 0.5) * video.duration_s / count for place in range(count)):
                by_key = by_key and video.seek(slot_s) > last_s
                while not by_key and video.position_s < slot_s:
                    video.decode()
                last_s = video.position_s
                image = video.image()
                before = cells
                now = np.asarray(image.resize((16, 16), Image.Resampling.BOX), float)
                if np.abs(now - before).max() > _SAME_LEVELS:
                    cells = now
                    yield max(0.0, last_s), image
    except ImageError:  # a file that is cut off, or takes too long, has its first frames
        if last_s == -math.inf:
            raise


def read_frame(file: Path, time_s: float) -> Image.Image:
    """The first frame of a video from a time on. Raises ImageError, and DcclipError for a disk."""
    with _opened(file) as video:
        video.seek(time_s)
        while video.position_s < time_s - _SAME_S:
            video.decode()
        return video.image()


@contextmanager
def _opened(file: Path) -> Iterator[_Video]:
    """A video that can be decoded; no other file is read. Raises ImageError, and DcclipError for a
    disk.
    """
    if find_spec("av") is None:
        raise ImageError("{} needs the package {}", "pip install 'dcclip[{}]'", file, "av", "video")
    import av

    refuse_special(file)
    options = {
        "format_whitelist": _FORMATS,
        "protocol_whitelist": "",
        "max_pixels": str(MAX_PIXELS),
    }
    try:
        with (
            file.open("rb") as stream,
            av.open(stream, "r", options=options, timeout=_DECODE_S) as container,
        ):
            yield _Video(file, container)
    except FileNotFoundError:
        raise DcclipError("{} does not exist", "check the path", file) from None
    except OverflowError as error:  # a time that the file's header gives
        raise ImageError("{} is not a readable video: {}", _REPLACE, file, error) from None
    except (av.FFmpegError, OSError) as error:  # a disk may be read later
        kind = ImageError if isinstance(error, av.FFmpegError) else DcclipError
        raise kind(
            Message("{} is not a readable video: {}", file, error.strerror), _REPLACE
        ) from None


class _Video:
    """The decoder of a video file; times are in seconds from its start."""

    def __init__(self, file: Path, container: InputContainer) -> None:
        from av import FFmpegError, VideoStream

        self._container = container
        self._used_s = 0.0
        self._error = ImageError("{} has no readable frame", _REPLACE, file)
        stream = container.streams.best("video")
        if (
            not isinstance(stream, VideoStream) or not stream.codec_context
        ):  # sound only, or an unknown codec
            raise self._error
        stream.codec_context.skip_frame = "NONREF"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self._stream = stream
        self._start = stream.start_time or 0
        self._tick_s = stream.time_base or 1
        self.duration_s = (container.duration or 0) / 1e6
        with suppress(FFmpegError):  # where the file is cut off
            for packet in (
                () if self.duration_s else container.demux(stream)
            ):  # of what a browser recorded
                self.duration_s = max(self.duration_s, self._time_s(packet))

    def _time_s(self, timed: Packet | VideoFrame) -> float:
        stamp = timed.dts if timed.pts is None else timed.pts
        return -math.inf if stamp is None else float((stamp - self._start) * self._tick_s)

    def seek(self, time_s: float) -> float:
        """Decode the key frame at a time or before it, if there is one, and return its time."""
        for back_s in (
            0,
            0.5,
            1,
            4,
            16,
            1e6,
        ):  # without an index, as in MPEG streams, a seek may go too far
            offset = self._start + math.floor((time_s + _SAME_S - back_s) / self._tick_s)
            self._container.seek(offset, stream=self._stream)
            self._frames = self._decoded()
            self.position_s = -math.inf
            with suppress(ImageError):
                if self.decode() <= time_s + _SAME_S:
                    break
        return self.position_s

    def decode(self) -> float:
        """Decode another frame and return its time. Raises ImageError at the end of the video and
        after _DECODE_S.
        """
        begin_s = time.thread_time()
        frame = next(self._frames, None)
        self._used_s += time.thread_time() - begin_s
        if frame is None or self._used_s > _DECODE_S:
            raise self._error
        self._frame = frame
        self.position_s = self._time_s(frame)
        return self.position_s

    def _decoded(self) -> Iterator[VideoFrame]:
        from av.error import InvalidDataError

        for packet in self._container.demux(self._stream):
            with suppress(InvalidDataError):  # of a damaged part
                yield from self._stream.decode(packet)

    def image(self) -> Image.Image:
        """The frame that was decoded last, upright, not larger than _FRAME_PX."""
        width = self._frame.width * float(self._stream.sample_aspect_ratio or 1)
        height = self._frame.height
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise self._error
        scale = min(1.0, _FRAME_PX / min(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image: Image.Image
        if (transfer := getattr(self._frame, "color_trc", 0)) in (
            _PQ,
            _HLG,
        ):  # PyAV before 17 does not tell it
            signal = self._frame.reformat(
                *size, "rgb48le", src_colorspace=_BT2020, interpolation="AREA"
            )
            image = _from_hdr(signal.to_ndarray(), transfer)
        else:
            image = self._frame.to_image(width=size[0], height=size[1], interpolation="AREA")
        return image.rotate(self._frame.rotation, expand=True) if self._frame.rotation else image


@lru_cache
def _light_of_signal(transfer: int) -> np.ndarray:
    """The light of each 16-bit level: of the display in nits for PQ, of the scene for HLG
    (BT.2100).
    """
    signal = np.linspace(0, 1, 65536)
    if transfer == _HLG:
        high = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.where(signal <= 0.5, signal**2 / 3, high).astype(np.float32)
    power = signal ** (1 / 78.84375)
    ratio = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return (10_000 * ratio ** (1 / 0.1593017578125)).astype(np.float32)


def _from_hdr(signal: np.ndarray, transfer: int) -> Image.Image:
    """The sRGB image of an HDR picture, 16-bit levels (H, W, 3) of PQ or HLG in BT.2020."""
    nits = _light_of_signal(transfer)[signal]
    if transfer == _HLG:
        luminance = nits @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        nits *= _HLG_PEAK_NITS * luminance[..., None] ** 0.2
    light = np.maximum(nits / _WHITE_NITS @ _TO_BT709.T, 0)
    brightest = np.maximum(light.max(-1, keepdims=True), _KNEE)
    light *= (
        1 - (1 - _KNEE) * np.exp((_KNEE - brightest) / (1 - _KNEE))
    ) / brightest  # 1 up to the knee
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((255 * levels).round().astype(np.uint8))
