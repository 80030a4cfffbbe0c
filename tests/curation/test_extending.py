"""The example of a new source in docs/how-to/extend.md works as shown."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from dcclip_cli.curation import sources
from dcclip_cli.curation.sources import SourceOptions
from dcclip_cli.errors import DcclipError
from tests.curation.reading import read
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs/how-to/extend.md"


def test_a_class_and_a_name_in_the_union_add_a_source(tmp_path: Path) -> None:
    scope = dict(vars(sources))
    for beginning in ("import sqlite3", "Source = Annotated"):
        [block] = [block for block in blocks(PAGE, "python") if block.startswith(beginning)]
        exec(compile(block, PAGE, "exec"), scope)
    adapter: TypeAdapter[SourceOptions] = TypeAdapter(scope["Source"])
    source = adapter.validate_python({"kind": "sqlite", "path": tmp_path / "pairs.db"})
    with pytest.raises(DcclipError, match="does not exist"):
        source.slices(2)
    with closing(sqlite3.connect(tmp_path / "pairs.db")) as connection, connection:
        connection.execute("CREATE TABLE pairs (image BLOB, caption TEXT)")
        rows = [(b"1", "一只猫"), (b"2", "a dog"), (None, "a fox")]
        connection.executemany("INSERT INTO pairs VALUES (?, ?)", rows)
    cat, dog, fox = read(source, size=2)
    assert (cat.pair.key, cat.pair.image, cat.pair.zh, dog.pair.en) == ("1", b"1", ("一只猫",), ("a dog",))
    assert [one.fault and one.fault.reason for one in (cat, dog, fox)] == [None, None, "image-missing"]
