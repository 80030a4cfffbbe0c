"""`dcclip fit`: the grid, the budget, the rounds, searches that go on after a kill, and errors."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter

import dcclip_cli
from dcclip_cli.cli.make import seconds
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.progress import Lines
from dcclip_cli.data.pair import Pair
from dcclip_cli.exporters import graphs
from dcclip_cli.fitting import candidates, search
from dcclip_cli.fitting.candidates import Budget, Candidate, Cost, cost_of_random, list_candidates, promising
from dcclip_cli.fitting.search import Fit, FitOptions, FitResult
from dcclip_cli.model.teachers import FgClip2Teacher, OpenClipTeacher
from dcclip_cli.recipe import new
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.new import StudentChoice, choose_teacher
from dcclip_cli.recipe.run import RecipeRun
from dcclip_cli.train import estimate
from tests.cli.conftest import dcclip


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny networks, and trainings of some steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(candidates, "NETWORKS", ("test_efficientnet", "test_resnet"))
    for name, value in (("_LEAST_STEPS", 2), ("_SIDES", 1), ("_WORDS", 300)):
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(new, "_FEWEST_STEPS", 12)
    monkeypatch.setattr(new, "_PASSES", 1)
    monkeypatch.setattr(estimate, "_ENOUGH_S", 0.0)


@pytest.fixture
def classes(pairs: list[Pair], tmp_path: Path) -> Path:
    """Class folders of the drawn pictures, with names in both languages."""
    folder = tmp_path / "形状 shapes"
    names = dict[str, str]()
    for pair in pairs:
        shape = pair.key.split("-")[1]
        names[shape] = pair.zh[2]
        (folder / shape).mkdir(parents=True, exist_ok=True)
        (folder / shape / f"{pair.key}.png").write_bytes(pair.image)
    lines = (f"{shape}: {{en: {shape}, zh: {zh}}}\n" for shape, zh in names.items())
    (folder / "classes.yaml").write_text("".join(lines), "utf-8")
    return folder


def fit(options: FitOptions, out: str = "runs/fit") -> FitResult:
    return Fit(options, Path(out), "cpu").run()


def digests(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dcclip.json").read_text("utf-8"))["files"])


def test_only_networks_that_the_teachers_weights_fit_are_candidates_at_sides_up_to_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "NETWORKS", ("mnasnet_050", "efficientnet_lite0", "test_resnet"))
    teacher = choose_teacher("starter")
    towers = estimate.open_blank(OpenClipTeacher(model="starter"))
    grid = list_candidates(teacher, towers, needed_tokens=737)
    assert list(grid) == ["efficientnet_lite0", "mnasnet_050"]
    assert [entry.student.pixels for entry in grid["mnasnet_050"]][:3] == [128, 160, 192]
    assert [entry.student.pixels for entry in grid["efficientnet_lite0"]][:3] == [192, 224, 160]
    texts = [(entry.student.tokens, entry.student.embed_dim) for entry in grid["mnasnet_050"]]
    assert list(dict.fromkeys(texts)) == [(2_400, 128), (1_200, 128), (737, 128), (737, 64)]
    assert grid["mnasnet_050"][-1].parameters == 1_125_737  # as of its own blank student
    [of_many_words, *_] = list_candidates(teacher, towers, needed_tokens=2_400).values()
    assert {entry.student.tokens for entry in of_many_words} == {2_400}
    monkeypatch.setattr(candidates, "NETWORKS", ("test_resnet",))
    [of_network] = list_candidates(teacher, towers, needed_tokens=None).values()
    assert not of_network[0].student.inherits


def test_a_measured_size_is_that_of_other_image_sizes_and_almost_that_of_other_text_towers() -> None:
    def candidate(pixels: int, tokens: int, network: str = "mnasnet_050") -> Candidate:
        parameters = 1_000_000 + 64 * (tokens - 1_200)
        return Candidate(StudentChoice(network, pixels, tokens=tokens), parameters, pixels * pixels)

    large = candidate(128, 2_400)
    wide = candidate(96, 2_400)
    small = candidate(96, 1_200)
    budget = Budget(2, 1)
    of_network = [large, wide, small]
    assert list(promising(of_network, budget, {large: Cost(2.1, 0.9, 1)})) == [small]  # 2.1 - 1200 * 93e-6
    assert list(promising(of_network, budget, {large: Cost(2.12, 0.9, 1)})) == []
    assert list(promising(of_network, budget, {large: Cost(1.9, 1.1, 1)})) == [wide, small]
    assert list(promising(of_network, budget, {wide: Cost(1.9, 0.9, 1)})) == [large]
    assert list(promising(of_network, Budget(1.9, None), {small: Cost(1.8, 0.9, 1)})) == []
    # A small image takes more time per multiply-add: nine times as many take four times as long.
    of_another = {candidate(64, 2_400, "mobilenetv2_035"): Cost(0.9, 0.22)}
    assert list(promising([candidate(192, 1_200)], Budget(2, 0.6), of_another))
    assert not list(promising([candidate(192, 1_200)], Budget(2, 0.5), of_another))


@pytest.mark.parametrize(
    ("count", "time_s", "step_s", "rounds"),
    [(12, None, 1.0, [12, 4]), (5, None, 1.0, [5]), (1, None, 1.0, []), (12, 900.0, 4.0, [6, 2])],
)
def test_rounds_take_a_full_training_together_and_with_little_time_fewer_candidates(
    classes: Path, monkeypatch: pytest.MonkeyPatch, count: int, time_s: float | None, step_s: float, rounds: list[int]
) -> None:
    monkeypatch.setattr(search, "_LEAST_STEPS", 5)
    planned = Fit(FitOptions(str(classes), max_mb=3, time_s=time_s), Path("out"))
    names = list(map(str, range(count)))
    vars(planned).update(_candidates={name: Candidate(StudentChoice(name), 1, 1) for name in names}, steps=1_000)
    planned.state |= {"export_s": {"a": 9.0, "b": 1.0}, "image_s": 0.01, "step_s": dict.fromkeys(names, (1, step_s))}
    planned.state["costs"] = {name: {"mb": 1.0, "ms": 1.0} for name in names}
    planned.out.mkdir()
    planned._plan(names)
    plan = planned.state["plan"]
    assert plan["rounds"] == rounds and len(plan["names"]) == (rounds or [1])[0]
    if time_s is None:
        assert plan["steps"]["0"] == 1_000
    else:
        assert plan["round_s"] == pytest.approx((0.3 * time_s - sum(rounds) / 2) / len(rounds), rel=0.05)


def test_steps_take_time_by_multiply_adds_and_no_longer_than_those_of_a_larger_network(classes: Path) -> None:
    search_of_steps = Fit(FitOptions(str(classes), max_mb=3), Path("out"))
    sizes = {"small": 20, "slow": 10, "large": 40, "efficientnet_lite0": 60}
    search_of_steps.state["step_s"] = {"small": (10, 0.5), "slow": (10, 9.0), "large": (40, 1.5)} | {
        "efficientnet_lite0": (60, 0.2)  # the teacher's own network, which is not trained
    }
    vars(search_of_steps)["_candidates"] = {
        name: Candidate(StudentChoice(name), 1, macs) for name, macs in sizes.items()
    }
    assert [search_of_steps._step_s(name) for name in sizes] == [1.0, 0.5, 1.5, 0.2]


def test_a_traced_graph_serves_other_image_sizes(
    classes: Path, altclip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is as large as that of a graph traced at that size, and its embeddings have the same shape."""
    job_of = Fit(FitOptions(str(classes), str(altclip_folder), max_mb=3), Path("out"))
    traced = list[str]()
    write_graph = graphs.write_graph

    def counted(graph: Any, example: Any, dynamic: Any, file: Path, *names: str) -> None:
        traced.append(f"{file.stem} {example.shape[-1]}")
        write_graph(graph, example, dynamic, file, *names)

    monkeypatch.setattr(graphs, "write_graph", counted)
    Path("out").mkdir()
    Path("out/texts.txt").write_text(new.own_texts(), "utf-8")
    costs = []
    for pixels, folder in ((64, "shared"), (96, "shared"), (96, "alone")):
        name = f"{folder}-2.{pixels}"
        job = job_of._job(StudentChoice("test_efficientnet", pixels, inherits=False), Path("out", name))
        assert job.loaded.recipe.name == name
        costs.append(cost_of_random(job, classes, job_of.budget, Path("out", folder)))
    assert [entry.split()[0] for entry in traced] == ["image", "text"] * 2
    assert costs[1].mb == pytest.approx(costs[2].mb, abs=2e-4) and costs[1].ms > costs[0].ms


def test_class_folders_are_learned_and_albums_are_not(classes: Path, altclip_folder: Path) -> None:
    options = FitOptions(str(classes), str(altclip_folder), max_mb=3)
    student = StudentChoice("mnasnet_050", inherits=True)
    learned = Fit(options, Path("classes"))._job(student, Path("classes")).loaded.recipe.distill
    assert learned and [loss.kind for loss in learned.losses] == ["embedding", "anchors", "labels"]
    assert learned.optimizer.kind == "adamw" and learned.optimizer.image_lr_scale == 1
    albums = Fit(replace(options, labels=("圆", "circle")), Path("albums"))._job(student, Path("albums"))
    copied = albums.loaded.recipe.distill
    assert copied and [loss.kind for loss in copied.losses] == ["embedding", "anchors"]


def test_classes_with_few_photographs_are_named(classes: Path, altclip_folder: Path) -> None:
    [first, *others] = sorted(folder for folder in classes.iterdir() if folder.is_dir())
    for photograph in sorted(first.iterdir())[3:]:
        photograph.unlink()
    for folder in others:
        picture = next(folder.iterdir())
        for number in range(10):
            shutil.copy(picture, folder / f"{number} 图.png")
    lines = list[str]()
    Fit(FitOptions(str(classes), str(altclip_folder), max_mb=3), Path("out"), progress=Lines(lines.append))
    assert lines[-1] == f"warning: fit: 1 classes have fewer than 10 photographs: {first.name} (3)"


@pytest.mark.slow
def test_a_search_over_class_folders_trains_one_candidate(classes: Path, altclip_folder: Path) -> None:
    result = dcclip_cli.fit(classes, teacher=str(altclip_folder), max_mb=3, device="cpu")
    assert [row["name"] for row in result.candidates if row["quality"]] == []
    assert result.metric == "mean_per_class" and 0 <= result.quality <= 1
    assert result.other_words is not None and 0 <= result.other_words <= 1
    page = Path("runs/fit/fit.html").read_text("utf-8")
    assert f"{result.other_words:.1%}" in page and 'href="held-out/report.html"' in page
    assert "三角形" in Path("runs/fit/held-out/report.html").read_text("utf-8")
    record = json.loads(Path("runs/fit/distill/model/dcclip.json").read_text("utf-8"))
    assert record["files"]
    assert "labels" in Path("runs/fit/distill/metrics.jsonl").read_text("utf-8")
    thresholds = json.loads(Path("runs/fit/export/thresholds.json").read_text("utf-8"))["labels"]
    assert {"circle", "三角形"} < thresholds.keys() and thresholds["circle"]["pictures"] == 1
    assert {"circle", "三角形"} < set(Path("runs/fit/texts.txt").read_text("utf-8").splitlines())


@pytest.mark.slow
def test_a_killed_search_resumes_with_the_same_choice_and_bytes(
    classes: Path, altclip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):  # the first of all, some of which are held out
        (classes / f"bar/{number} 坏.png").write_bytes(b"broken")
    labels = ("红色的圆", "三角形", "circle", "triangle")
    options = FitOptions(str(classes), str(altclip_folder), labels, max_mb=3, max_ms=1_000)
    chosen: dict[str, Any] = {"teacher": str(altclip_folder), "labels": labels, "max_mb": 3.0, "max_ms": 1_000.0}
    result = dcclip_cli.fit(classes, device="cpu", **chosen)
    assert (
        result.name in Path("runs/fit/fit.html").read_text("utf-8")
        and load("runs/fit/recipe.yaml").recipe.name == "fit"
    )
    command = ["fit", "--data", classes, "--teacher", altclip_folder, "--labels", ",".join(labels), "--max-mb", "3"]
    printed = dcclip(*command, "--max-ms", "1000", "--json")
    assert json.loads(printed.stdout)["name"] == result.name and not printed.stderr
    assert result.budget.fits(result.cost) and result.metric == "top1" and 0 <= result.quality <= 1
    assert [len(row["quality"]) for row in result.candidates] == [0, 1, 1] and result.steps == 12
    assert {*labels} < set(Path("runs/fit/texts.txt").read_text("utf-8").splitlines())
    state = json.loads(Path("runs/fit/fit.json").read_text("utf-8"))
    Path("again").mkdir()
    shutil.copy("runs/fit/texts.txt", "again/texts.txt")
    measured = {name: value for name, value in state.items() if name not in ("final", "missed", "result")}
    Path("again/fit.json").write_text(json.dumps(measured | {"rounds": []}), "utf-8")
    train = RecipeRun.train

    def stop(options: FitOptions, out: str, limits: Sequence[int]) -> None:
        def train_and_stop(job: RecipeRun, stage: Any) -> Any:
            trained.append(train(job, stage))
            if len(trained) == limit:
                raise KeyboardInterrupt
            return trained[-1]

        for limit in limits:
            trained = list[Any]()
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(RecipeRun, "train", train_and_stop)
                fit(options, out)
            assert len(trained) == limit

    # At the end of the first training, of the second, and of the full one; what is finished counts again.
    stop(options, "again", (1, 2, 2))
    again = fit(options, "again")
    assert (again.name, again.quality) == (result.name, result.quality)
    assert digests(Path("again/distill/model")) == digests(Path("runs/fit/distill/model"))
    assert digests(Path("again/export")) == digests(Path("runs/fit/export"))
    with pytest.raises(DcclipError, match=r"again was started with different options: --max-mb was 3\.0 and is now 2"):
        fit(replace(options, max_mb=2), "again")
    expected = digests(Path("again/export"))
    shutil.rmtree("again/export")
    assert fit(options, "again").quality == result.quality and digests(Path("again/export")) == expected
    assert not Path("again/measured").exists()
    # With --time, the candidates of a round have equal steps, also those that are trained after a stop.
    plan = {name: value for name, value in measured["plan"].items() if name != "steps"} | {"round_s": 1.0}
    timed = {"options": measured["options"] | {"time_s": 60.0}, "plan": plan, "rounds": [], "seconds": 60.0}
    rounds = []
    for out, limits in (("timed", (3,)), ("stopped", (1, 2, 2))):
        Path(out).mkdir()
        shutil.copy("runs/fit/texts.txt", out)
        Path(out, "fit.json").write_text(json.dumps(measured | timed), "utf-8")
        stop(replace(options, time_s=60.0), out, limits)
        [of_round] = json.loads(Path(out, "fit.json").read_text("utf-8"))["rounds"]
        rounds.append({name: (entry["steps"], entry["quality"]) for name, entry in of_round.items()})
    assert rounds[0] == rounds[1] and len({steps for steps, _ in rounds[0].values()}) == 1


@pytest.mark.slow
def test_code_of_a_teacher_of_the_hub_runs_only_with_permission_and_the_folder_serves_for_other_options(
    classes: Path, hub_teachers: Path, own_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = (hub := own_modules.with_name("hub")) / "models--qihoo360--fg-clip2-base"
    shutil.copytree(hub_teachers / "fgclip2", cached / "snapshots/430fbc8")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("430fbc8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    for name, folder in (("HF_HUB_CACHE", hub), ("HF_MODULES_CACHE", own_modules)):  # of the processes that measure
        monkeypatch.setenv(name, str(folder))
    command = ["fit", "--data", classes, "--max-mb", "3", "--device", "cpu", "-q"]
    refused = dcclip(*command, "--teacher", "fgclip2", expect=1)
    assert "requires custom code" in refused.stderr and "dcclip eval, export or fit" in refused.stderr
    dcclip(*command, "--teacher", "hf:qihoo360/fg-clip2-base", "--trust-remote-code")
    teacher = load("runs/fit/recipe.yaml").recipe.teacher
    assert isinstance(teacher, FgClip2Teacher) and teacher.trust_remote_code
    assert choose_teacher(str(hub_teachers / "fgclip2")).kind == "fgclip2"


def test_folders_are_albums_where_labels_are_given_and_pairs_take_no_labels(
    classes: Path, pairs_file: Path, altclip_folder: Path
) -> None:
    options = FitOptions(str(classes), str(altclip_folder), ("红色的圆", "circle"), max_mb=3)
    assert Fit(options, Path("runs/fit")).kind == "photos"
    lines: list[str] = []
    assert Fit(replace(options, labels=()), Path("runs/fit"), progress=Lines(lines.append)).kind == "classes"
    assert lines[-2].startswith("fit: 8 classes, one per folder: bar, circle, cross, ") and "moon" in lines[-2]
    assert Fit(replace(options, kind="classes"), Path("runs/fit")).kind == "classes"
    with pytest.raises(DcclipError, match="--labels has no effect on image-caption pairs"):
        Fit(replace(options, data=str(pairs_file)), Path("runs/fit"))


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        ([], "no budget given", "give a maximum export size with --max-mb"),
        (["--max-mb", "3"], "photographs without captions need two labels or more", "--labels 猫,dog"),
        (["--max-mb", "3", "--labels", "猫、dog", "--out", "photos"], "photos is not empty", "choose a new folder"),
        (["--max-mb", "3", "--data", "表.tsv"], "表.tsv is a table of images", "convert it to pairs with"),
        (["--max-mb", "0.01", "--labels", "猫，狗"], "no candidate fits: the smallest, test", "to --max-mb 0."),
    ],
)  # fmt: skip
def test_a_search_that_cannot_begin_or_find_anything_says_why(
    pairs: list[Pair], altclip_folder: Path, more: list[str], what: str, hint: str
) -> None:
    Path("photos").mkdir()
    Path("表.tsv").write_text("image\tzh\n", "utf-8")
    for pair in pairs[:16]:
        Path("photos", f"{pair.key}.png").write_bytes(pair.image)
    refused = dcclip("fit", "--data", "photos", "--teacher", altclip_folder, *more, "-q", expect=1)
    assert f"error: {what}" in refused.stderr and hint in refused.stderr
    assert not Path("runs/fit/fit.json").exists()  # the same folder serves for what is asked next


@pytest.mark.parametrize("time_s", [None, 60.0])
def test_a_trained_student_that_misses_the_budget_is_reported_and_no_other_gets_the_rest_of_the_time(
    classes: Path, monkeypatch: pytest.MonkeyPatch, time_s: float | None
) -> None:
    lines = list[str]()
    trained = list[str]()
    names = ["test_resnet", "test_efficientnet"]
    finishing = Fit(FitOptions(str(classes), max_mb=3, time_s=time_s), Path("out"), progress=Lines(lines.append))
    choices = {name: StudentChoice(name, inherits=False) for name in names}
    vars(finishing)["_candidates"] = {name: Candidate(choice, 1, 1) for name, choice in choices.items()}
    Path("out").mkdir()
    Path("out/texts.txt").write_text(new.own_texts(), "utf-8")
    monkeypatch.setattr(Fit, "_final_steps", lambda *_: 10)
    monkeypatch.setattr(Fit, "_export", lambda *_: Cost(9, 9))
    monkeypatch.setattr(RecipeRun, "begin", lambda *_: None)
    monkeypatch.setattr(RecipeRun, "train", lambda job, _: trained.append(job.loaded.recipe.student.image.timm))
    for _ in range(2):  # when it is started again, too
        with pytest.raises(DcclipError, match=r"trained students exceed the budget: test_resnet: 9\.00 MB, 9\.00 ms"):
            finishing._finish(names)
    assert trained == (names if time_s is None else names[:1])
    warnings = [line for line in lines if "exceeds the budget" in line]
    assert warnings == [f"warning: fit: {name} exceeds the budget after training: 9.00 MB, 9.00 ms" for name in trained]
    assert [*json.loads(Path("out/fit.json").read_text("utf-8"))["missed"]] == trained


def test_a_stopped_search_names_the_best_student_of_its_last_round(classes: Path) -> None:
    lines = list[str]()
    stopped = Fit(FitOptions(str(classes), max_mb=3), Path("out"), progress=Lines(lines.append))
    stopped.out.mkdir()
    stopped.state["rounds"] = [{"a": {"quality": 0.5}, "b": {"quality": 0.4}}, {"a": {"quality": 0.5}}, {}]
    stopped._say_best()
    assert lines[-1] == "fit: the best student so far: dcclip export --model out/round-2/a/distill/model"


def test_a_deleted_export_is_created_again_and_nothing_else_is_left(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"steps": 10, "search_s": 1.0, "training_s": 1.0, "quality": 0.5, "metric": "top1"}
    result = figures | {"name": "a", "cost": {"mb": 1.0, "ms": 1.0}}

    def finish(finished: Fit, names: Sequence[str]) -> None:
        exported.append(list(names))
        finished.state |= {"result": result, "missed": {}}
        (finished.out / "export").mkdir()
        (finished.out / "export/dcclip.json").touch()

    exported = list[list[str]]()
    monkeypatch.setattr(Fit, "_halve", lambda _: ["a"])
    monkeypatch.setattr(Fit, "_finish", finish)
    finished = Fit(FitOptions(str(classes), max_mb=3), Path("out"), "cpu")
    finished.state["plan"] = {}
    for runs in (1, 1, 2):
        if runs == 2:
            shutil.rmtree("out/export")
        assert finished.run().name == "a" and len(exported) == runs
        assert not Path("out/measured").exists()


def test_labels_in_python_are_a_list_or_a_text_with_commas(pairs: list[Pair], altclip_folder: Path) -> None:
    Path("photos").mkdir()
    for pair in pairs[:4]:
        Path("photos", f"{pair.key}.png").write_bytes(pair.image)
    for labels in ("cat", "红色的圆，", [" cat ", "cat"]):
        with pytest.raises(DcclipError, match="need two labels or more"):
            dcclip_cli.fit("photos", teacher=str(altclip_folder), labels=labels, max_mb=3)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("5m", 300), ("1h30m", 5_400)])
def test_a_time_is_in_hours_minutes_and_seconds(text: str, expected: float) -> None:
    assert seconds(text) == expected
    for wrong in ("", "5", "m5", "1d", "0s", "0h0m"):
        with pytest.raises(BadParameter):
            seconds(wrong)
