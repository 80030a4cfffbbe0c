"""Pictures to collect, and a site to fetch them from."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.curation.fetch.fetcher import Fetcher
from tests.curation.fetch_site import Site, options
from tests.images import encode

MakeImage = Callable[..., bytes]


def make_picture(name: object = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG", **save: Any) -> bytes:
    """The bytes of an image file: soft blots of colour, different for each name."""
    seed = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:4], "little")
    blots = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return encode(Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC), kind, **save)


@pytest.fixture(scope="session")
def picture() -> MakeImage:
    return make_picture


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def fetcher(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetcher]:
    """Downloads from the site; a file may have 100,000 bytes."""
    monkeypatch.setattr("dcclip_cli.curation.fetch.fetcher.MAX_BYTES", 100_000)
    with Fetcher(options(site)) as fetcher:
        yield fetcher


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.fetch.fetcher._BACK_OFF_S", 0.01)
