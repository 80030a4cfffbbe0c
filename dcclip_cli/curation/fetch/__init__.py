"""Safe and polite downloads of images that a source knows by URL only."""

from dcclip_cli.curation.fetch.fetcher import Fetcher
from dcclip_cli.curation.fetch.request import FetchOptions

__all__ = ["FetchOptions", "Fetcher"]
