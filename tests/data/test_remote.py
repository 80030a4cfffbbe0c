"""Data at URLs: copied to a cache folder of bounded size, then read as from disk; errors; what they never show."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import cache_folder
from dcclip_cli.data import remote
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.indexed import remove_oldest
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.preview import preview_pairs
from dcclip_cli.data.remote import list_files, local_copies, shown
from tests.data.conftest import S3, forget_connections
from tests.static_site import Site, serve
from tests.tars import tar_of
from tests.train.jobs import Job, Watch, interrupt, refused, run, sha256

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.02))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "00000.tar").write_bytes(CONTENT)
    (tmp_path / "00001.tar").write_bytes(CONTENT[:500])
    forget_connections()
    with serve(tmp_path) as site:
        yield site


def copies() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "shards").rglob("*") if path.is_file() and path.suffix)


def test_a_url_is_shown_without_user_password_and_signature() -> None:
    assert shown("https://me:key@host:80/a/b.tar?X-Amz-Signature=abc#d") == "https://host:80/a/b.tar"
    assert shown("s3://bucket/猫.tar") == "s3://bucket/猫.tar"
    assert shown(Path("/data/a?b.tar")) == "/data/a?b.tar"


def test_files_in_a_bucket_are_listed_and_copied(s3: S3) -> None:
    for name in ("data/00001.tar", "data/00000.tar", "data/下/x.tar", "data/猫.tar"):
        s3.put("bucket", name, CONTENT)
    names = [f"s3://bucket/data/{name}.tar" for name in ("00000", "00001", "猫")]
    assert [str(file) for file in list_files("s3://bucket/data")] == names
    assert [file.name for file in list_files("s3://bucket/data/*1.tar")] == ["00001.tar"]
    both = list_files("s3://bucket/data/{00000..00001}.tar")
    assert [(file.name, file.size) for file in both] == [("00000.tar", 10_240), ("00001.tar", 10_240)]
    copied = local_copies(both)
    assert [Path(file.location).read_bytes() for file in copied] == [CONTENT] * 2
    with pytest.raises(DcclipError, match="s3://nowhere/data does not exist"):
        list_files("s3://nowhere/data")
    s3.stop()
    assert local_copies(both) == copied


def test_a_password_in_the_url_of_a_bucket_is_refused_and_not_shown() -> None:
    with pytest.raises(DcclipError, match="s3://bucket/d contains a user name or password") as caught:
        list_files("s3://KEY:hunter2@bucket/d")
    assert "hunter2" not in f"{caught.value.what}{caught.value.hint}"


def test_an_overloaded_server_is_asked_again_and_a_file_is_copied_whole_or_not_at_all(web: Site) -> None:
    files = list_files(f"{web.address}{{00000..00001}}.tar?key=secret")
    assert [(file.name, file.size) for file in files] == [("00000.tar", 10_240), ("00001.tar", 500)]
    web.failures = 2
    assert Path(local_copies(files[:1])[0].location).read_bytes() == CONTENT
    web.failures = 3
    with pytest.raises(DcclipError, match=r"00001.tar cannot be read: the server answers 503"):
        local_copies(files)
    web.more = b"more"
    with pytest.raises(DcclipError, match=r"00001.tar cannot be read: it has more than the 500 bytes") as caught:
        local_copies(files)
    assert "secret" not in caught.value.what
    assert copies() == ["00000.tar"]


def test_copies_over_the_bound_are_refused_before_any_is_made(web: Site) -> None:
    files = list_files(f"{web.address}{{00000..00001}}.tar")
    local_copies(files[1:])
    with pytest.raises(DcclipError, match=r"1.02e-05 GB in .*, which has 5e-07 GB and is limited to 1.05e-05 GB"):
        local_copies(files, 10_500)
    assert copies() == ["00001.tar"]
    assert len(local_copies(files, 10_740)) == 2


def test_a_missing_file_of_a_server_is_an_error_that_shows_no_signature(web: Site) -> None:
    url = web.address.replace("http://", "http://me:secret@")
    with pytest.raises(DcclipError, match=r"/猫.tar does not exist") as caught:
        list_files(f"{url}猫.tar?X-Amz-Signature=secret")
    assert "secret" not in caught.value.what + caught.value.hint


def test_another_protocol_is_an_error_and_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DcclipError, match="the protocol ftp:// is not supported"):
        list_files("ftp://host/data")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DcclipError, match="reading gs:// URLs needs the package gcsfs") as caught:
        list_files("gs://bucket/data")
    assert caught.value.hint == "pip install gcsfs"


def test_shards_of_a_web_server_are_the_pairs_on_disk_and_nothing_that_they_name_is_fetched(
    web: Site, pairs: list[Pair], tmp_path: Path
) -> None:
    naming = [Pair(pair.key, pair.image, pair.zh, pair.en, {"url": f"{web.address}{pair.key}.png"}) for pair in pairs]
    for number in range(2):
        (tmp_path / f"{number:05}.tar").write_bytes(tar_of(naming[number * 20 : number * 20 + 20]))
    url = f"{web.address}{{00000..00001}}.tar?signature=secret"
    assert preview_pairs(url).samples == 40
    assert copies() == ["00000.tar"]
    dataset = open_pairs(url)
    assert list(dataset) == naming
    names = {request.partition("?")[0] for request in web.requests}
    assert names == {"/00000.tar", "/00001.tar"}
    assert "secret" not in str(dataset.path)
    assert all(b"secret" not in file.read_bytes() for file in cache_folder().rglob("*") if file.is_file())


def test_another_version_of_a_shard_is_copied_again(s3: S3, pairs: list[Pair]) -> None:
    for order in (pairs, pairs[::-1]):
        s3.put("bucket", "all.tar", tar_of(order))
        forget_connections()
        assert open_pairs("s3://bucket/all.tar")[0] == order[0]


def test_images_of_a_parquet_file_are_unpacked_once_within_a_bound(pairs: list[Pair], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "all.parquet", pairs)
    pq.write_table(pq.read_table(tmp_path / "all.parquet"), tmp_path / "groups.parquet", row_group_size=16)
    dataset = open_pairs(tmp_path / "groups.parquet")
    assert dataset[39] == pairs[39]
    folder = cache_folder() / "images"
    [images] = folder.glob("*.images")
    assert images.read_bytes() == b"".join(pair.image for pair in pairs)
    assert list(dataset) == pairs
    images.write_bytes(images.read_bytes()[:-1])  # a damaged file is unpacked again
    assert list(open_pairs(tmp_path / "groups.parquet")) == pairs
    size = images.stat().st_size
    with pytest.raises(DcclipError, match="is limited to") as caught:
        open_pairs(tmp_path / "groups.parquet", cache_bytes=size - 1)
    assert "data.cache_gb" in caught.value.hint
    remove_oldest(folder, size)
    assert images.exists()
    reading = open_pairs(tmp_path / "groups.parquet")
    assert reading[0] == pairs[0]
    remove_oldest(folder, size - 1)
    assert not images.exists()
    forget_connections()
    assert reading[39] == pairs[39]  # another run made room: they are unpacked again


def test_training_from_a_store_resumes_without_it_and_gives_the_weights_of_training_from_disk(
    s3: S3, pairs: list[Pair], student_section: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(4):
        content = tar_of(pairs[number * 10 : number * 10 + 10])
        (tmp_path / "shards" / f"{number:05}.tar").write_bytes(content)
        s3.put("bucket", f"shards/{number:05}.tar", content)
    job: Job = {
        "root": str(tmp_path / "remote"),
        "stage": "align",
        "student": student_section,
        "data": {"train": "s3://bucket/shards"},
        "options": {"start": "scratch", "steps": 6, "batch_size": 4},
    }
    from_disk = run(job | {"root": str(tmp_path / "local"), "data": {"train": str(tmp_path / "shards")}})
    interrupt(job, "align", 3)
    progress = Watch()
    assert sha256(run(job, progress)) == sha256(from_disk)
    assert [line for line in progress.said if line.startswith("align: resuming from step")]
    s3.stop()
    forget_connections()
    with refused(r"s3://bucket/shards cannot be read", "run the same command again"):
        run(job | {"root": str(tmp_path / "again")})
