"""Training on shards in an S3 store: the weights of training from disk, also when the store is stopped meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from dcclip_cli.data import remote
from dcclip_cli.data.pair import Pair
from dcclip_cli.files import cache_folder
from tests.data.servers import S3
from tests.tars import tar_of
from tests.train.jobs import Job, Watch, refused, run, sha256

SHARDS = 8


@pytest.fixture
def job(s3: S3, pairs: list[Pair], student_section: dict[str, Any], tmp_path: Path) -> Job:
    """`align` in windows of eight pairs, from a store with eight shards of five pairs."""
    (tmp_path / "shards").mkdir()
    for number in range(SHARDS):
        content = tar_of(pairs[number * 5 : number * 5 + 5])
        (tmp_path / "shards" / f"{number:05}.tar").write_bytes(content)
        s3.put("bucket", f"shards/{number:05}.tar", content)
    return {
        "root": str(tmp_path / "remote"),
        "stage": "align",
        "student": student_section,
        "data": {"train": "s3://bucket/shards", "shuffle_window": 8, "cache_gb": 5e-5},
        "options": {"start": "scratch", "steps": 12, "batch_size": 4, "workers": 1},
    }


@pytest.fixture
def from_disk(job: Job, tmp_path: Path) -> Job:
    data = job["data"] | {"train": str(tmp_path / "shards")}
    return job | {"root": str(tmp_path / "local"), "data": data}


def test_training_from_a_store_gives_the_weights_of_training_from_disk(job: Job, from_disk: Job) -> None:
    assert sha256(run(job)) == sha256(run(from_disk))
    cached = sum(file.stat().st_size for file in (cache_folder() / "blocks").glob("*.block"))
    assert 10_000 < cached <= 50_000


def test_a_store_that_stops_is_an_error_and_the_run_resumes_when_it_is_back(
    job: Job, from_disk: Job, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.01,))
    job["options"]["workers"] = 0  # one that loads ahead has all of so few images before the store stops
    with refused(r"s3://bucket/shards/0000\d.tar cannot be read: Could not connect", "run the same command again"):
        run(job, Watch("align", 4, s3.stop))
    s3.start()
    progress = Watch()
    result = run(job, progress)
    assert [line for line in progress.said if line.startswith("align: resuming from step")]
    assert sha256(result) == sha256(run(from_disk))
