"""Filters on single pairs and captions: to add one, write its class in a file here, and add it to
the union below.
"""

from typing import Annotated, get_args

from pydantic import Field

from dcclip_cli.curation.filters import text
from dcclip_cli.curation.filters.image import BlankFilter, Filter, ImageFilter
from dcclip_cli.curation.filters.language import LanguageFilter, ScriptFilter

__all__ = ["DEFAULT_FILTERS", "AnyFilter", "Filter"]

# All filters, in the default order. The first one that applies gives the drop reason, so the most
# specific ones come first: a file name is not English, but that is not what is wrong with it.
AnyFilter = Annotated[
    ImageFilter
    | BlankFilter
    | text.GarbledFilter
    | text.MarkupFilter
    | text.FilenameFilter
    | text.WordlessFilter
    | text.BoilerplateFilter
    | text.RepetitionFilter
    | text.LengthFilter
    | LanguageFilter
    | ScriptFilter,
    Field(discriminator="kind"),
]
DEFAULT_FILTERS: tuple[AnyFilter, ...] = tuple(kind() for kind in get_args(get_args(AnyFilter)[0]))
