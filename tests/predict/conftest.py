"""A bundle of the tiny student, exported once for all tests of prediction."""

from pathlib import Path

import pytest

from dcclip_cli.exporters.export import ExportOptions, export
from dcclip_cli.model.reference import resolve


@pytest.fixture(scope="session")
def bundle_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student as an fp32 bundle."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export(options=ExportOptions(), model=resolve(str(model_folder)), out=out).folder
