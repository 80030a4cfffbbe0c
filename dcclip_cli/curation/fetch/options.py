"""What may stand in a recipe about downloading?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, StringConstraints

from dcclip_cli import __version__
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES
from dcclip_cli.options import Options

Host = Annotated[str, StringConstraints(to_lower=True, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?$")]


class FetchOptions(Options):
    """How images are downloaded. Certificates are always checked; proxies named by the environment are not used."""

    timeout_s: float = Field(20, gt=0, le=600, description="Time for one try: name, connection, redirects and body")
    max_bytes: int = Field(20_000_000, ge=1, le=MAX_IMAGE_BYTES, description="Most that one image may have")
    max_redirects: int = Field(5, ge=0, le=20, description="Redirects followed")
    retries: int = Field(2, ge=0, le=10, description="More tries after what may pass: 429, 5xx, a broken connection")
    back_off_s: float = Field(1, ge=0, le=60, description="Wait before the first retry, doubled for each one after it")
    workers: int = Field(16, ge=1, le=512, description="Downloads at a time, in each of the run's processes")
    per_host: int = Field(4, ge=1, le=512, description="Downloads at a time from one host, in each process")
    robots: bool = Field(True, description="Keep to robots.txt")
    opt_outs: bool = Field(True, description="Keep to X-Robots-Tag: noai, noimageai, noindex, noimageindex, none")
    user_agent: str = Field(
        f"dcclip/{__version__}",
        pattern=r"^[A-Za-z_-]+[ -~]*$",
        max_length=200,
        description="What the servers are told; robots.txt knows it by the word before the /",
    )
    allow_hosts: tuple[Host, ...] = Field(
        (), description="Hosts that may have a private address: NAME or NAME:PORT, as in the URL; [::1]:80 for IPv6"
    )
    allow_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Private networks that any name may lead to, like 198.18.0.0/15 behind a fake-IP proxy"
    )
    authorities: Path | None = Field(None, description="PEM file of certificate authorities trusted besides the usual")
