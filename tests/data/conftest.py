"""Pictures to collect."""

import io
from collections.abc import Callable

import pytest
from PIL import Image

Picture = Callable[..., bytes]


@pytest.fixture
def picture() -> Picture:
    """A function that gives the bytes of a one-coloured image file; a colour of its own makes it no duplicate."""

    def make(colour: str = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, colour).save(stream, kind)
        return stream.getvalue()

    return make
