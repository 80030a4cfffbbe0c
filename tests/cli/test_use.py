"""Using a model from the command line: predict, search, embed, trim, export of what is no run."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.conftest import dcclip
from tests.videos import film


@pytest.fixture(autouse=True)
def _model(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCCLIP_MODEL", str(bundle_folder))


def test_a_broken_picture_is_a_line_of_json_too(pictures: list[Path]) -> None:
    pictures[1].write_bytes(b"broken")
    lines = dcclip("predict", *pictures[:3], "--labels", "红,green", "--jsonl", "-q", expect=1).stdout.splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in pictures[:3]]
    assert "is not a readable image" in predictions[1]["error"] and "labels" not in predictions[1]
    assert len(predictions[0]["labels"]) == 2
    json_list = json.loads(dcclip("predict", *pictures[:3], "--labels", "红,green", "--json", "-q", expect=1).stdout)
    assert json_list == predictions


def test_a_threshold_leaves_out_what_is_less_probable(pictures: list[Path]) -> None:
    top = json.loads(dcclip("predict", pictures[0], "--labels", "红,green,moon", "--json", "-q").stdout)[0]["labels"]
    least = top[1]["probability"] - 1e-5
    above = dcclip("predict", pictures[0], "--labels", "红,green,moon", "--threshold", least, "--json", "-q").stdout
    assert json.loads(above)[0]["labels"] == top[:2]
    assert dcclip("predict", pictures[0], "--labels", "红,green", "--threshold", 1, "-q").stdout.endswith("   -\n")


def test_templates_change_the_answer_and_can_be_left_out(pictures: list[Path]) -> None:
    ask = ("predict", pictures[0], "--labels", "红,green", "--json", "-q")
    plain = dcclip(*ask).stdout  # this bundle's own templates are {}
    assert dcclip(*ask, "--no-template").stdout == plain
    assert dcclip(*ask, "--template", "一张{}的图片").stdout != plain
    dcclip(*ask, "--template", "{}", "--no-template", expect=2)


def test_labels_become_tags_in_sidecars_of_all_folders_and_undo_removes_them(pictures: list[Path]) -> None:
    folders = [pictures[0].parent, pictures[0].parent / "照片 2"]
    folders[1].mkdir()
    (folders[1] / "猫.jpg").write_bytes(pictures[0].read_bytes())
    before = sorted(folders[0].rglob("*"))
    ask = ("predict", *pictures, folders[1], "--labels", "红,green,moon", "--xmp", "-q")
    dcclip(*ask, "--undo", expect=2)
    (video := pictures[0].with_name("视频.mp4")).touch()
    (table := pictures[0].with_name("保留.csv")).write_text("old")
    refusals = {"cannot contain / or |": ("红,a/b", pictures[0]), "is a frame of a video": ("红,b", f"{video}#t=1.0")}
    for problem, (names, image) in refusals.items():
        ask_badly = ("predict", image, "--labels", names, "--xmp", "--csv", "--out", table)
        assert problem in dcclip(*ask_badly, expect=1).stderr and table.read_text() == "old"
    video.unlink()
    table.unlink()
    for options in (["--threshold", 0.34], ["--multi-label", "--top-k", 1], [], ["--threshold", 1]):
        rows = json.loads(dcclip(*ask, *options, "--json").stdout)
        for row in rows:
            sidecar = Path(f"{row['image']}.xmp")
            labels = [label["label"] for label in row["labels"]]
            written = sidecar.read_text("utf-8") if sidecar.exists() else ""
            assert all(written.count(f"<rdf:li>{label}</rdf:li>") == 5 * (label in labels) for label in ("红", "green"))
            assert options or all(label["probability"] >= 0.5 for label in row["labels"])
    assert sorted(folders[0].rglob("*")) == before  # no label reaches 1, and there is no file without
    cat = folders[1] / "猫.jpg"
    cat.write_bytes((Path(__file__).parents[2] / "recipes/starter/photos/cat.jpg").read_bytes())
    dcclip("predict", cat, "--labels", "cat,红色的猫", "--multi-label", "--model", "starter", "--xmp", "-q")
    assert "红色" not in (written := Path(f"{cat}.xmp").read_text("utf-8")) and "cat" in written  # it ignores 红色的
    broken = Path(f"{pictures[1]}.xmp")
    broken.write_text("no XML", "utf-8")
    rows = json.loads(dcclip(*ask, "--threshold", 0.1, "--json", expect=1).stdout)
    assert ["error" in row for row in rows] == [path == pictures[1] for path in (*pictures, folders[1])]
    refused = dcclip("predict", *folders, "--xmp", "--undo", expect=1).stderr
    assert f"error: {broken} has content that dcclip cannot edit: " in refused and "5 sidecar files changed" in refused
    broken.unlink()
    assert sorted(folders[0].rglob("*")) == before


def test_search_shows_the_nearest_in_a_table_json_and_a_page(pictures: list[Path], tmp_path: Path) -> None:
    folder = pictures[0].parent
    page = tmp_path / "page.html"
    table = dcclip("search", "红色的圆", folder, "--top-k", 3, "--html", page)
    assert "5 images, 5 of them newly embedded" in table.stderr
    hits = json.loads(dcclip("search", "红色的圆", folder, "--top-k", 3, "--json", "-q").stdout)
    assert len(hits) == 3 and hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert (
        "5 images, 0 of them newly embedded" in dcclip("search", "moon", folder, "--html", tmp_path / "en.html").stderr
    )
    written = page.read_text("utf-8")
    assert written.count("data:image/jpeg;base64,") == 3 and "<h1>红色的圆</h1>" in written
    assert '<html lang="zh">' in written and '<html lang="en">' in (tmp_path / "en.html").read_text("utf-8")
    assert "<script" not in written and "http:" not in written and "https:" not in written
    assert "then a folder of images" in dcclip("search", "moon", expect=2).output
    for text in ("红色的圆 -moon", "红色的圆　－moon"):
        minus = dcclip("search", text, folder, "--json", "-q").stdout
        assert minus == dcclip("search", "--text", "红色的圆", "--not", "moon", folder, "--json", "-q").stdout
        assert minus != dcclip("search", "红色的圆 moon", folder, "--json", "-q").stdout
    assert "cancel out" in dcclip("search", folder, "--text", "红", "--not", "红", expect=1).stderr


def test_a_search_tells_of_a_broken_picture_once_and_excludes_what_it_should(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures[0].parent
    pictures[1].write_bytes(b"broken")
    *_, warning = dcclip("search", "moon", folder).stderr.splitlines()
    [count, reasons] = warning.split("; reasons: ")
    assert count == "warning: 1 images cannot be read"
    assert Path(reasons).read_text("utf-8").startswith(f"{pictures[1]} is not a readable image")
    again = dcclip("search", "月亮", folder, "--dims", 8)
    assert "error:" not in again.stderr and "skipped 1 images that are still unreadable" in again.stderr
    exclude = ("--exclude", pictures[1].name, "--exclude", pictures[0].stem.upper() + "*")
    hits = dcclip("search", "moon", folder, *exclude, "--json")
    assert len(json.loads(hits.stdout)) == 3 and "unreadable" not in hits.stderr
    labels = ("--labels", "红,green")
    assert len(dcclip("predict", folder, *exclude, *labels, "-q").stdout.splitlines()) == 3
    some = dcclip("predict", folder, *labels, "-q")
    assert len(some.stdout.splitlines()) == 4 and some.stderr == warning + "\n"
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    assert "1 张图片无法读取，原因见 " in dcclip("embed", folder, "--out", folder.parent / "b.npy").stderr
    monkeypatch.setenv("DCCLIP_LANG", "en")
    (folder.parent / "损坏").mkdir()
    (folder.parent / "损坏/a.jpg").write_bytes(b"broken")
    failures: dict[tuple[Path, ...], str] = {
        (pictures[1],): "is not a readable image",
        (folder, pictures[1]): "is not a readable image",
        (folder.parent / "损坏",): "no image could be read",
    }
    for arguments, reason in failures.items():
        failed = dcclip("predict", *arguments, *labels, expect=1).stderr
        assert f"error: {reason}" in failed.replace(f"{pictures[1]} ", "") and "\nhint:  " in failed


def test_a_video_is_shown_with_its_time_and_an_extra_is_named_where_it_cannot_be_read(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="av is not installed")
    folder = pictures[0].parent
    page = tmp_path / "page.html"
    video = pictures[0].with_name("假日 #1.mp4")
    film(str(video), [Image.open(path) for path in pictures[2:]])
    query = ("search", "--image", f"{video}#t=4.5", folder)
    labels = ("--labels", "红,green")
    table = dcclip(*query, "--html", page, "--dims", 8)
    assert "6 images, 6 of them newly embedded" in table.stderr and " @ 0:0" in table.stdout
    [hit] = json.loads(dcclip(*query, "--json", "--top-k", 1, "-q").stdout)
    assert (hit["image"], hit["score"] > 0.95, 2.8 < hit["time_s"] < 6.2) == (str(video), True, True)
    written = page.read_text("utf-8")
    assert "/%E5%81%87%E6%97%A5%20%231.mp4#t=" in written and "假日 #1.mp4 @ 0:0" in written
    assert f"{video}#t=4.5 " in dcclip("predict", f"{video}#t=4.5", *labels).stdout
    assert f"such as {video}#t=1.0" in dcclip("predict", video, *labels, expect=1).stderr
    skipped = dcclip("predict", folder, *labels).stderr
    assert "predict: skipped 1 .mp4" in skipped and "pip install" not in skipped
    monkeypatch.setitem(sys.modules, "av", None)
    assert "search: skipped 1 .mp4 (to read more formats: pip install" in dcclip("search", "moon", folder).stderr


def test_duplicates_are_copies_and_bursts_across_folders_and_a_second_look_embeds_nothing(tmp_path: Path) -> None:
    photos = pq.read_table(Path(__file__).parents[2] / "recipes/starter/photos.parquet")["image"].to_pylist()[:12]
    folders = tmp_path / "相册", tmp_path / "手机"

    def save(photo: Image.Image, name: str, time: str = "", fraction: str = "") -> None:
        exif = Image.Exif()
        if time:
            exif[0x0110] = "camera"  # without which Pillow writes none into PNG
            exif.get_ifd(0x8769).update({0x9003: f"2026:05:01 {time}", 0x9291: fraction})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name, exif=exif, quality=60)

    for number, image in enumerate(photos):
        photo = Image.open(io.BytesIO(image)).convert("RGB")
        width, height = photo.size
        save(photo, f"相册/{number}.png", f"12:00:{2 * number:02}")  # each taken within seconds of the others
        if number < 3:
            cropped = photo.crop((width // 40, height // 40, width - width // 40, height - height // 40))
            save(photo.resize((width // 2, height // 2)), f"手机/小{number}.jpg", f"12:00:{2 * number:02}")
            save(cropped, f"手机/c{number}.jpg")
        if number == 3:
            for shot in range(1, 4):  # the camera moves, or stands still
                moved = photo.crop((width // 9, 0, width, height - height // 9)) if shot < 3 else photo
                save(moved, f"手机/连拍{shot}.jpg", "12:00:06", f"{3 * shot}0")
            save(moved.resize((width // 2, height // 2)), "手机/连拍 small.jpg", "12:00:06", "90")
    (folders[0] / "坏.jpg").write_bytes(b"broken")
    page = tmp_path / "page.html"
    command = ("search", "--duplicates", *folders, "--model", "starter")
    ran = dcclip(*command, "--json", "--html", page)
    groups = [[Path(photo["image"]).stem for photo in group] for group in json.loads(ran.stdout)["copies"]]
    assert groups == [["连拍3", "连拍 small"], *(["0", "c0", "小0"], ["1", "c1", "小1"], ["2", "c2", "小2"])]
    assert [[Path(photo["image"]).stem for photo in group] for group in json.loads(ran.stdout)["bursts"]] == [
        ["3", "连拍1", "连拍2", "连拍3"]
    ]
    assert (
        "warning: 1 images cannot be read" in ran.stderr
        and page.read_text("utf-8").count("data:image/jpeg;base64,") == 15
    )
    table = dcclip(*command, "--exclude", "c*", "--exclude", "坏*", "--exclude", "1.png", "--exclude", "连拍*")
    assert "2 copies in 2 groups, 0 bursts" in " ".join(table.stdout.split()) and "compare" not in table.stderr
    for ignored in ("--not 红", "--top-k 3", "--dims 8", "--fresh"):
        assert "takes no query" in dcclip("search", "--duplicates", folders[0], *ignored.split(), expect=2).output


def test_embed_writes_rows_and_their_names(pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "新" / "图.npy"
    dcclip("embed", tmp_path / "none.png", "--out", out, expect=1)
    assert not out.parent.exists()
    pictures[1].write_bytes(b"broken")
    assert dcclip("embed", *pictures, "--out", out, "-q", expect=1).stdout == f"{out}\n"
    rows = np.load(out)
    names = (tmp_path / "新" / "图.txt").read_text("utf-8").splitlines()
    assert rows.shape == (4, 16) and rows.dtype == np.float32
    assert names == [str(path) for path in pictures if path != pictures[1]]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_embed_takes_texts_and_writes_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "texts.txt").write_text("蓝色\n\ngreen moon\n", "utf-8")
    dcclip("embed", "--text", "红，圆", "--texts-file", tmp_path / "texts.txt", "--out", tmp_path / "t.parquet", "-q")
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["name"].to_pylist() == ["红，圆", "蓝色", "green moon"]
    for dtype, difference in (("fp32", 1e-6), ("fp16", 1e-3)):
        dcclip("embed", "--text", "蓝色", "--dtype", dtype, "--out", tmp_path / "one.npy", "-q")
        rows = np.load(tmp_path / "one.npy")
        assert rows.dtype == {"fp32": np.float32, "fp16": np.float16}[dtype]
        np.testing.assert_allclose(table["embedding"][1].as_py(), rows[0], atol=difference)


def test_bench_measures_models_next_to_each_other(pictures: list[Path], bundle_folder: Path) -> None:
    folder = pictures[0].parent
    labels = "猫,dog,汽车"
    done = dcclip("bench", "starter", bundle_folder, "--images", folder, "--labels", labels, "--json")
    starter, small = json.loads(done.stdout)
    assert starter["parameters"] > 10e6 > small["parameters"] > 0
    assert starter["size_bytes"] > 5e6 > small["size_bytes"]
    assert starter["agreement"] == 1
    runs = [
        dcclip("predict", folder, "--labels", labels, "--model", name, "--json") for name in ("starter", bundle_folder)
    ]
    best = [[prediction["labels"][0]["label"] for prediction in json.loads(run.stdout)] for run in runs]
    assert small["agreement"] == sum(map(str.__eq__, *best)) / len(best[0])
    assert all(row[key] > 0 for row in (starter, small) for key in ("load_s", "image_ms", "text_ms", "images_per_s"))
    failed = dcclip("bench", "starter", "--labels", labels, expect=1)
    assert "--images" in failed.stderr


def test_bench_refuses_what_it_cannot_read_and_leaves_broken_images_out(
    pictures: list[Path], bundle_folder: Path
) -> None:
    pictures[0].write_bytes(b"no image")
    done = dcclip("bench", bundle_folder, "--images", pictures[0].parent)
    assert "warning: 1 unreadable images are ignored: " in done.stderr and pictures[0].name in done.stderr
    failed = dcclip("bench", bundle_folder, "--images", pictures[0], expect=1).stderr
    assert "is not a readable image" in failed
    pipe = pictures[0].with_name("管.jpg")
    os.mkfifo(pipe)
    assert "管.jpg is a pipe, not a file" in dcclip("bench", bundle_folder, "--images", pipe, expect=1).stderr


def test_export_takes_a_model_and_a_format(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = dcclip("export", "--model", model_folder, "--format", "immich", "--out", out)
    assert exported.stdout.splitlines()[0] == str(out)
    again = dcclip("export", "--model", model_folder, "--format", "immich", "--out", out)
    assert "export: already done" in again.stderr
    refused = dcclip("export", "--model", model_folder, "--out", model_folder, expect=1)
    assert f"error: {model_folder} contains a model, not an export" in refused.stderr
    moved = dcclip("export", "--model", model_folder, "--out", out)
    assert "export: done in" in moved.stderr and (out / "image.onnx").exists() and not (out / "visual").exists()


def test_trim_prints_sizes_and_path_names_texts_that_lose_a_piece_and_the_result_predicts(
    altclip_folder: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("文本.txt").write_text("红色的圆\n\nred circle\n一张 picture of a cat\n", "utf-8")
    done = dcclip("trim", altclip_folder, "--texts", "文本.txt")
    assert done.stdout.splitlines()[-1] == "altclip-zh-en"
    assert "before" in done.stdout and "parameters" in done.stdout
    assert "0.0 % are tokenized differently than before; largest difference of 64 embeddings: " in done.stderr
    parsed = ["predict", *pictures, "--labels", "红色的圆,red circle", "--csv"]
    assert dcclip(*parsed, "--model", "altclip-zh-en").stdout == dcclip(*parsed, "--model", altclip_folder).stdout
    assert "hint:  trim a model with XLM-R's kind of vocabulary" in dcclip("trim", "starter", expect=1).stderr
    again = dcclip("trim", altclip_folder, expect=1)
    assert "error: altclip-zh-en exists and is not empty" in again.stderr and "--out" in again.stderr
