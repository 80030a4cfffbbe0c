"""Test sets of dcclip as data sets of Hugging Face, with images as they are published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Image, Value

from dcclip_cli.core.files import cache_folder
from dcclip_cli.eval.datasets import open_dataset
from dcclip_mteb.results import NO_REVISION

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

    from dcclip_cli.eval.dataset import DataSet, Images


class DcclipData:
    """Mixin: the task on dcclip's data set `dataset_name`, from DATA_ROOT/NAME/ or from the hub."""

    dataset_name: str
    metadata: TaskMetadata
    data_loaded: bool

    def __init__(self, data_root: Path | str | None = None, **more: Any) -> None:
        super().__init__(**more)
        self.data_root = None if data_root is None else Path(data_root)

    def open(self) -> DataSet:
        """The data set. Raises DcclipError for a missing or incomplete one."""
        found = open_dataset(self.dataset_name, data_root=self.data_root)
        if self.data_root:  # nobody knows its revision; mteb drops this copy with the data
            dataset = {**self.metadata.dataset, "revision": NO_REVISION}
            self.metadata = self.metadata.model_copy(update={"dataset": dataset})
        return found


def image_rows(
    images: Images, indices: Sequence[int], **columns: tuple[Sequence[Any], Any]
) -> Dataset:
    """The images at these indices in a column `image`, and for each other column its values and
    their feature.

    The rows are written to the cache once, in the order of the indices.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for row, index in enumerate(indices):
            source = images.source_of(index)
            image = source if not isinstance(source, bytes | Path) else _cell(source)
            yield {"image": image, **{name: values[row] for name, (values, _) in columns.items()}}

    about = [
        images.fingerprint,
        list(indices),
        {name: list(values) for name, (values, _) in columns.items()},
    ]
    return Dataset.from_generator(
        rows,
        features=Features(
            image=Image(), **{name: feature for name, (_, feature) in columns.items()}
        ),
        cache_dir=str(cache_folder() / "mteb"),
        fingerprint=hashlib.sha256(repr(about).encode()).hexdigest()[:32],
    )


def text_rows(ids: Sequence[str], texts: Sequence[str]) -> Dataset:
    return Dataset.from_dict(
        {"id": list(ids), "text": list(texts)},
        features=Features(id=Value("string"), text=Value("string")),
    )


def _cell(source: bytes | Path) -> dict[str, Any]:
    return (
        {"bytes": source, "path": None}
        if isinstance(source, bytes)
        else {"bytes": None, "path": str(source)}
    )
