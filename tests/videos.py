"""Video files for tests."""

from collections.abc import Sequence
from typing import Any

from PIL import Image


def film(file: Any, pictures: Sequence[Image.Image], codec: str = "mpeg4", kind: str = "") -> None:
    """Write a video that shows each picture, 64 x 48 pixels, for three seconds; `kind` is FFmpeg's name of a format."""
    import av

    with av.open(file, "w", format=kind or None) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        for number in range(30 * len(pictures)):
            frame = av.VideoFrame.from_image(pictures[number // 30].convert("RGB").resize((64, 48)))
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
