"""How are images downloaded that a source knows by URL only, safely and politely?"""

from dcclip_cli.curation.fetch.fetcher import Fetcher
from dcclip_cli.curation.fetch.options import FetchOptions

__all__ = ["FetchOptions", "Fetcher"]
