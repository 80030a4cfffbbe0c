"""Where do raw pairs come from? One class per kind of source, and their union, which is the registry of sources.

To add one: write the class in a file of its own, and add its name to the union.
"""

from typing import Annotated

from pydantic import Field

from dcclip_cli.curation.sources.base import SourceOptions
from dcclip_cli.curation.sources.base64 import Base64Source
from dcclip_cli.curation.sources.captions import CaptionsSource
from dcclip_cli.curation.sources.folder import FolderSource
from dcclip_cli.curation.sources.hub import HubSource
from dcclip_cli.curation.sources.pairs import PairsSource
from dcclip_cli.curation.sources.table import TableSource
from dcclip_cli.curation.sources.tars import TarsSource

Source = Annotated[
    FolderSource | TableSource | TarsSource | PairsSource | HubSource | Base64Source | CaptionsSource,
    Field(discriminator="kind"),
]

__all__ = ["Source", "SourceOptions"]
