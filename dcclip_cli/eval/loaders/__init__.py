"""Loaders of published data set layouts, one class each, and LOADERS, which is the registry."""

from dcclip_cli.eval.dataset import Loader
from dcclip_cli.eval.loaders.captions import Base64Lines, CaptionFiles
from dcclip_cli.eval.loaders.files import ClassFolders, HubDataset, WebDatasetTars

# Tried in this order.
LOADERS: tuple[type[Loader], ...] = (
    WebDatasetTars,
    HubDataset,
    ClassFolders,
    Base64Lines,
    CaptionFiles,
)
