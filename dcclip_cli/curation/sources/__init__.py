"""Sources of raw pairs. The union at the foot is their registry: to add a source, write its class
and add its name.
"""

from typing import Annotated

from pydantic import Field

from dcclip_cli.curation.sources.base import SourceOptions
from dcclip_cli.curation.sources.captions import Base64Source, CaptionsSource, ClassFoldersSource
from dcclip_cli.curation.sources.sidecar import FolderSource, TarsSource
from dcclip_cli.curation.sources.tables import HubSource, TableSource

Source = Annotated[
    FolderSource
    | ClassFoldersSource
    | TableSource
    | TarsSource
    | HubSource
    | Base64Source
    | CaptionsSource,
    Field(discriminator="kind"),
]

__all__ = ["Source", "SourceOptions"]
