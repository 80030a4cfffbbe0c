"""Pictures to collect, and a site to fetch them from."""

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.curation.fetch.fetcher import Fetcher
from tests.curation.fetch_site import Site, options

MakeImage = Callable[..., bytes]


@pytest.fixture(scope="session")
def picture() -> MakeImage:
    """A function that gives the bytes of an image file: soft blots of colour, different for each name."""

    def make(name: object = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
        seed = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "little")
        blots = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
        return stream.getvalue()

    return make


def png_header(width: int, height: int) -> bytes:
    """A PNG file whose header declares this size, with almost no pixel data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def fetcher(site: Site) -> Iterator[Fetcher]:
    with Fetcher(options(site)) as fetcher:
        yield fetcher


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.fetch.fetcher._BACK_OFF_S", 0.01)
