"""How do published data sets lie on disk? One class per layout, and their union, which is the registry of layouts.

To add one: write the class in a file of its own, and add its name to the union.
"""

from dcclip_cli.eval.loaders.base import Captioned, Images, Labelled, Loader, Place
from dcclip_cli.eval.loaders.base64_lines import Base64Lines
from dcclip_cli.eval.loaders.captions import CaptionFiles, Xm3600, Xtd
from dcclip_cli.eval.loaders.cifar import CifarBinary
from dcclip_cli.eval.loaders.class_folders import ClassFolders
from dcclip_cli.eval.loaders.hub import HubDataset
from dcclip_cli.eval.loaders.tars import WebDatasetTars
from dcclip_cli.eval.loaders.torchvision_files import TorchvisionFiles

# Looked for in this order.
LOADERS: tuple[type[Loader], ...] = (
    WebDatasetTars, HubDataset, CifarBinary, ClassFolders, TorchvisionFiles, Base64Lines, CaptionFiles, Xm3600, Xtd,
)  # fmt: skip

__all__ = ["LOADERS", "Captioned", "HubDataset", "Images", "Labelled", "Loader", "Place"]
