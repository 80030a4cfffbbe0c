"""Errors of the operating system, and of libraries that pass them on, name the file and say what to do."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from dcclip_cli.cli.system_errors import explained
from dcclip_cli.core.errors import DcclipError, writing
from dcclip_cli.core.files import atomic_file, cache_folder
from dcclip_cli.core.store import FeatureStore
from tests.cli.conftest import dcclip
from tests.records import rewrite


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def told(error: BaseException) -> DcclipError:
    result = explained(error)
    assert result is not None
    return result


def full_device() -> BinaryIO:
    """A stream that cannot be written. Libraries must not get the path of a device: some replace what they write."""
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")


def numpy_file_of_a_strided_array() -> None:
    with full_device() as stream:
        np.zeros((100_000, 2))[:, 0].tofile(stream)


def parquet_file() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with full_device() as stream:
        pq.write_table(pa.table({"猫": range(100_000)}), stream)


def plain_file() -> None:
    with full_device() as stream:
        stream.write(bytes(100_000))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("write", [numpy_file_of_a_strided_array, parquet_file, plain_file])
def test_a_full_disk_names_the_file_whatever_wrote_it(write: Callable[[], None], tmp_path: Path) -> None:
    def save() -> None:
        with writing(tmp_path / "猫 cat"):
            write()

    assert told(raised(save)).what == f"{tmp_path}/猫 cat: the disk is full"


def test_files_in_place_of_folders_and_the_reverse_are_told_apart(tmp_path: Path) -> None:
    def partial_file() -> None:
        with atomic_file(tmp_path / ("长" * 84)) as temporary:
            temporary.write_text("{}")

    file = tmp_path / "文件 file"
    loop = tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    cases: dict[str, Callable[[], object]] = {
        f"{file}/x: Not a directory": lambda: (file / "x").mkdir(),
        f"{file}: File exists": file.mkdir,
        f"{tmp_path}: Is a directory": lambda: tmp_path.open("w"),
        f"{tmp_path}/{'长' * 90}: File name too long": lambda: (tmp_path / ("长" * 90)).open("w"),
        f"{loop}: Too many levels of symbolic links": loop.open,
        f"{tmp_path}/none does not exist": (tmp_path / "none").open,
        f"{tmp_path}/{'长' * 84}: File name too long": partial_file,  # by its final name
    }
    for name, call in cases.items():
        assert told(raised(call)).what == name


def test_limits_of_the_process_are_explained() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        error = raised(lambda: [open(os.devnull) for _ in range(100)])  # noqa: SIM115
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told(error).hint == "raise the limit with: ulimit -n 4096"
    assert "the limit of processes" in told(RuntimeError("can't start new thread")).what
    assert "the limit of processes" in told(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")).what
    assert told(raised(lambda: np.zeros(2**55))).what.startswith("not enough memory")
    assert told(RuntimeError("duckdb: Cannot open file: Too many open files")).what == "too many files are open"
    assert "not enough memory" in told(ImportError("onnxruntime.so: failed to map segment from shared object")).what


@pytest.mark.parametrize(
    "error", [ValueError("errno 28"), OSError(5, "io"), OSError("x"), KeyError(1), RuntimeError("shape"), EOFError()]
)
def test_our_own_errors_are_not_explained_away(error: Exception) -> None:
    assert explained(error) is None


# ---- a model that gives NaN is one error and one hint in every command, and nothing is written


def refused(*arguments: object) -> str:
    """What a command's one error line says."""
    result = dcclip(*arguments, expect=1)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint:  ")]
    assert len(errors) == len(hints) == 1 and "fp32" in hints[0]
    return errors[0]


def damaged(folder: Path, out: Path, tower: str) -> Path:
    """A copy of a model directory, the weights of a tower NaN."""
    shutil.copytree(folder, out)
    [file] = out.glob("*.safetensors")
    weights = load_file(file)
    for name, value in weights.items():
        if value.is_floating_point() and name.startswith("visual") == (tower == "image") and "logit" not in name:
            value.fill_(float("nan"))
    save_file(weights, file, {"format": "pt"})
    rewrite(out)
    return out


def test_a_model_of_nan_weights_is_refused_and_nothing_is_written(
    model_folder: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = {tower: damaged(model_folder, Path(f"坏 {tower}"), tower) for tower in ("image", "text")}
    commands: list[tuple[str, list[Any]]] = [
        ("text", ["predict", pictures[0], "--labels", "猫,dog"]),
        ("image", ["embed", *pictures]),
        ("image", ["export", "--out", "bundle"]),
    ]
    for tower, command in commands:
        text = refused(*command, "--model", broken[tower])
        assert "returned embeddings that are not finite (NaN or infinite) for " in text and text.endswith(f" {tower}s")
    assert not list(tmp_path.glob("embeddings*")) and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("value", [np.nan, 1000.0])
def test_a_model_directory_whose_logit_scale_is_not_finite_is_refused(
    value: float, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    [file] = model.glob("*.safetensors")
    weights = load_file(file)
    weights["logit_scale"].fill_(value)  # of 1000, the exponential is infinite
    save_file(weights, file, {"format": "pt"})
    rewrite(model)
    assert "the logit scale (" in refused("predict", pictures[0], "--labels", "猫,dog", "--model", model)


def test_a_teacher_of_nan_weights_is_refused_and_not_kept(
    altclip_folder: Path, whole_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(altclip_folder, "老师 teacher")
    [file] = (tmp_path / "老师 teacher").glob("*.safetensors")
    weights = load_file(file)
    weights["text_projection.weight"].fill_(float("nan"))
    save_file(weights, file, {"format": "pt"})
    teacher = {"kind": "altclip", "model": str(tmp_path / "老师 teacher")}
    recipe = whole_recipe | {"teacher": teacher, "distill": whole_recipe["distill"] | {"teacher_cache": True}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    text = refused("distill", "recipe.yaml")
    assert "老师 teacher returned embeddings that are not finite" in text and text.endswith(" texts")
    stored = [FeatureStore(folder) for folder in (cache_folder() / "teacher-cache").glob("*/*") if folder.is_dir()]
    assert sum(store.rows for store in stored) > 0  # of images, which come first
