"""Search of the best student for a budget: candidates are measured and trained briefly, the best
one in full.

docs/how-to/fit.md states the rule. OUT/fit.json records each decision when it is taken, so that a
search that was stopped resumes with the same ones.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median_low
from typing import Any, Literal

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_write, cache_folder, read_json, write_json
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.run_dir import STAGES, RunDir, has_product
from dcclip_cli.core.text import language_by_script
from dcclip_cli.data import prompts
from dcclip_cli.data.class_folders import class_names, images_by_class
from dcclip_cli.data.dataset import recipe_pairs, write_parquet
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset, Rows
from dcclip_cli.data.unpaired import recipe_images
from dcclip_cli.eval.compare import compare_results
from dcclip_cli.eval.dataset import Classes, DataSet, Images, ImageTransform
from dcclip_cli.eval.datasets import data_set
from dcclip_cli.eval.embedding import Embedder, FeatureCache
from dcclip_cli.eval.evaluate import EvalOptions, evaluate
from dcclip_cli.eval.report import save_report
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.fitting.candidates import (
    Budget,
    Candidate,
    Cost,
    cost_of,
    cost_of_random,
    list_candidates,
    promising,
)
from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.tokenizer import trim_tokenizer
from dcclip_cli.model.weights import require_file
from dcclip_cli.photos.calibrate import THRESHOLDS, write_thresholds
from dcclip_cli.recipe.load import VERBATIM, load
from dcclip_cli.recipe.new import (
    DataKind,
    NewRecipe,
    StudentChoice,
    choose_data,
    choose_teacher,
    recipe_text,
)
from dcclip_cli.recipe.run import RecipeRun, teacher_reference

STATE = "fit.json"
HELD_OUT = "held-out"  # the folder with the report on the held-out samples
_TEXTS = "texts.txt"
# the largest networks that fit, and image sizes of each
_NETWORKS = 4
_SIDES = 3
_PROMOTED = 3  # one of so many candidates enters the next round
_WORDS = (
    1_000  # that the student learns besides the labels: those next to them in the teacher's space
)
# one of so many samples is not trained on
_HELD_OUT = 10
_MOST_HELD_OUT = 1_000
_FEW = 10  # photographs of a class
_LEAST_STEPS = 40  # of a training that says anything
# Fractions of --time: to measure candidates, to measure and train them, and of the rest for the
# teacher's crops.
_MEASURING = 0.15
_SEARCHING = 0.3
_ENCODING = 0.2
_INTERVAL = 3.92  # standard errors in a 95 % interval
_MARGIN = 1.03  # of the latency with random weights: that of the trained student varies
_CALIBRATED = 16  # images that exports with random weights are calibrated on


@dataclass(frozen=True)
class FitOptions:
    """What `fit` looks for. `time_s` bounds all of it, in seconds; without it, the number of steps
    follows the data.
    """

    data: str
    teacher: str = "starter"
    labels: tuple[str, ...] = ()
    max_mb: float | None = None
    max_ms: float | None = None
    time_s: float | None = None
    threads: int = 1
    kind: DataKind | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class FitResult:
    """The best student in its run directory, with recipe.yaml, the bundle and fit.html, and the
    cost of its bundle.

    `quality`, 0..1, is that of the bundle on the held-out samples, the mean of `metric` over the
    languages. Each of the `candidates` has its name, its cost, and steps and quality of its
    training runs; `missed` exceeded the budget then. With class folders, `other_words`, 0..1, is
    how often the bundle and the teacher choose the same of the words that name no class.
    """

    folder: Path
    name: str
    metric: str
    quality: float
    cost: Cost
    budget: Budget
    steps: int
    search_s: float
    training_s: float
    candidates: list[dict[str, Any]] = field(default_factory=list)
    missed: dict[str, str] = field(default_factory=dict)
    other_words: float | None = None


class Fit:
    """A search in the folder `out`; raises DcclipError for options that it cannot begin or resume
    with.
    """

    def __init__(
        self, options: FitOptions, out: Path, device: str = "auto", progress: Progress | None = None
    ) -> None:
        self.options = options
        self.out = out
        self.device = device
        self.progress = progress or Silent()
        self.budget = Budget(options.max_mb, options.max_ms, options.threads)
        self._began = time.monotonic()
        if options.max_mb is None and options.max_ms is None:
            raise DcclipError(
                "no budget given",
                "give a maximum export size with --max-mb, or a maximum latency with --max-ms",
            )
        self.teacher = choose_teacher(options.teacher)
        data = choose_data(options.data, options.kind)
        if data.kind == "classes" and options.kind is None and len(options.labels) > 1:
            data = choose_data(options.data, "photos")  # the folders are albums
        if data.kind == "table":
            hint = Message(
                "convert it to pairs with dcclip collect (source {{kind: table}}), and "
                "give the folder of pairs"
            )
            raise DcclipError("{} is a table of images, which fit cannot read", hint, options.data)
        if data.kind == "photos" and len(options.labels) < 2:
            hint = Message(
                "give the labels that the model must distinguish, for example: --labels 猫,dog"
            )
            raise DcclipError("photographs without captions need two labels or more", hint)
        if data.kind == "pairs" and options.labels:
            raise DcclipError("--labels has no effect on image-caption pairs", "remove --labels")
        self.kind = data.kind
        self.learns_labels = data.kind == "classes"
        self.data = replace(data, kind="pairs" if data.kind == "pairs" else "photos")
        identity = asdict(options) | {"labels": list(options.labels), "samples": data.count}
        del identity["trust_remote_code"]  # which decides nothing
        self.state: dict[str, Any] = {
            "options": identity,
            "seconds": 0.0,
            "costs": {},
            "step_s": {},
            "rounds": [],
        }
        if (out / STATE).is_file():
            self.state = read_json(out / STATE, Message("choose another folder with --out"))
            before = self.state.get("options", {})
            if changed := [name for name in identity if identity[name] != before.get(name)]:
                option = "--" + changed[0].removesuffix("_s").replace("_", "-")
                subject = Message("the number of samples") if changed[0] == "samples" else option
                values = out, subject, before.get(changed[0]), identity[changed[0]]
                problem = Message(
                    "{} was started with different options: {} was {} and is now {}", *values
                )
                raise DcclipError(
                    problem, "choose another folder with --out, or give the same options to resume"
                )
        elif out.is_dir() and any(not file.name.startswith(".") for file in out.iterdir()):
            raise DcclipError(
                "{} is not empty and contains no search to resume",
                "choose a new folder with --out",
                out,
            )
        if self.kind == "classes" and options.kind is None and "result" not in self.state:
            classes = self._class_folders
            named = len(classes), ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
            self.progress.say(
                Message(
                    "fit: {:,} classes, one per folder: {}; for albums, give at least two --labels",
                    *named,
                )
            )
            self._warn_of_small_classes()

    def _warn_of_small_classes(self) -> None:
        images = images_by_class(Path(self.options.data))
        small = [
            f"{folder} ({len(files)})" for folder, files in images.items() if len(files) < _FEW
        ]
        if small:
            self.progress.say(
                Message(
                    "warning: fit: {:,} classes have fewer than {} photographs: {}",
                    len(small),
                    _FEW,
                    ", ".join(small[:8]) + (", ..." if len(small) > 8 else ""),
                )
            )

    def run(self) -> FitResult:
        """Search, train and export the best student, or resume where it was stopped; a finished
        result is returned.
        """
        with RunDir(self.out).claimed():
            if not has_product(self.out, "export"):  # somebody removed it
                self.state.pop("result", None)
            if "result" not in self.state:
                self._save()
                try:
                    recipe = self._job(StudentChoice(), self.out / "measured").loaded.recipe
                    assert (
                        recipe.teacher and recipe.data and recipe.distill and recipe.distill.steps
                    )
                    self.teacher_options = recipe.teacher
                    self.data_options = recipe.data
                    self.steps = recipe.distill.steps
                    if "plan" not in self.state:
                        self._write_texts()
                        self._plan(self._measure())
                    self._finish(self._halve())
                    shutil.rmtree(self.out / "measured", ignore_errors=True)
                except KeyboardInterrupt:
                    self._say_best()
                    raise
                except DcclipError:
                    if not self.state[
                        "costs"
                    ]:  # nothing was decided: the same folder can be used again
                        for file in (STATE, _TEXTS):
                            (self.out / file).unlink(missing_ok=True)
                        shutil.rmtree(self.out / "measured")
                    raise
        rows: list[dict[str, Any]] = []
        for name, cost in self.state["costs"].items():
            trained = [entries[name] for entries in self.state["rounds"] if name in entries]
            measured = {key: [entry[key] for entry in trained] for key in ("steps", "quality")}
            rows.append({"name": name, "cost": Cost(**cost)} | measured)
        result = self.state["result"] | {"cost": Cost(**self.state["result"]["cost"])}
        return FitResult(
            self.out, budget=self.budget, candidates=rows, missed=self.state["missed"], **result
        )

    def _elapsed(self) -> float:
        """Seconds since the search began, without those between two commands."""
        now = time.monotonic()
        self.state["seconds"] = self.state["seconds"] + now - self._began
        self._began = now
        return float(self.state["seconds"])

    def _save(self) -> None:
        self._elapsed()
        write_json(self.out / STATE, self.state)

    # ---- recipes, texts and held-out samples

    def _job(self, student: StudentChoice, folder: Path, steps: int | None = None) -> RecipeRun:
        """The run of a student's recipe, which is written into its folder."""
        plan = self.state.get("plan", {})
        hold_out = min(_MOST_HELD_OUT, max(2, self.data.count // _HELD_OUT))
        choices: dict[str, Any] = {"hold_out": hold_out, "steps": steps, "student": student}
        choices |= {name: plan.get(name) for name in ("augmentations", "threads")}
        choices |= {"texts": self.out / _TEXTS, "trust_remote_code": self.options.trust_remote_code}
        choices["labelled"] = self.learns_labels
        file = folder / VERBATIM
        atomic_write(file, recipe_text(NewRecipe(file, self.teacher, self.data, **choices)))
        return RecipeRun(load(file), RunDir(folder), self.device, progress=self.progress)

    @cached_property
    def _class_folders(self) -> list[str]:
        return list(images_by_class(Path(self.options.data)))

    @cached_property
    def _embedder(self) -> Embedder:
        encoder = load_encoder(
            teacher_reference(self.teacher_options), self.device, progress=self.progress
        )
        return Embedder(encoder, FeatureCache(cache_folder(), self.progress.say), self.progress)

    def _write_texts(self) -> None:
        """Write what the text tower learns where there are no captions: labels, and the words next
        to them.
        """
        if self.kind == "pairs" or (self.out / _TEXTS).is_file():
            return
        path = Path(self.options.data)
        labels = list(self.options.labels)
        if self.kind == "classes":
            labels += [
                name for names in class_names(path, self._class_folders).values() for name in names
            ]
        names_of_sets = [prompts.read(name).names for name in prompts.all_names()]
        words = [
            word
            for names in names_of_sets
            for language in LANGUAGES
            for word in names.get(language, ())
        ]
        words = list(dict.fromkeys(words))
        embed = self._embedder.texts
        nearest = np.argsort(-(embed(words) @ embed(labels).T).max(1), kind="stable")[:_WORDS]
        texts = dict.fromkeys([*labels, *(words[place] for place in np.sort(nearest))])
        atomic_write(self.out / _TEXTS, "".join(f"{text}\n" for text in texts))
        del self._embedder  # training loads the teacher again

    def _samples(self, part: Literal["train", "validation"]) -> PairDataset:
        samples = (recipe_pairs if self.kind == "pairs" else recipe_images)(self.data_options, part)
        assert samples is not None
        return samples

    @cached_property
    def _held_out(self) -> DataSet:
        """The samples that no training sees, with captions, class names, or the labels that the
        teacher gives them.
        """
        samples = self._samples("validation")
        truth = dict[Language, Classes]()
        if self.kind == "pairs":
            return data_set(samples)
        # all that have photographs, and not those next to their folders
        if self.kind == "classes":
            folders = self._class_folders
            parents = [Path(key).parts[0] for key in list(samples.keys())]
            samples = Rows(samples, np.flatnonzero(np.isin(parents, folders)))
            numbers = np.array([folders.index(parent) for parent in parents if parent in folders])
            for language, names in class_names(Path(self.options.data), folders).items():
                truth[language] = Classes(tuple(names), numbers, ("{}",))
        images = Images(list(samples.keys()), samples.image, samples.fingerprint)
        if self.kind == "classes":
            return DataSet("held-out", images, truth, "mean_per_class")
        return self._answered("held-out", images, self.options.labels)

    def _answered(self, name: str, images: Images, texts: Sequence[str]) -> DataSet:
        """The images, each with the text that the teacher chooses as its class.

        The texts in a language compete, or all of them where a language has a single one.
        """
        embedded = self._embedder.images(images, ImageTransform(), "held-out", None)
        by_language: dict[Language, list[str]] = {}
        for text in texts:
            by_language.setdefault(language_by_script(text), []).append(text)
        if any(len(of_language) == 1 for of_language in by_language.values()):
            by_language = {"en": list(texts)}
        truth = dict[Language, Classes]()
        for language, of_language in by_language.items():
            similarities = embedded.vectors @ self._embedder.texts(of_language).T
            answers = np.zeros(len(images), np.int64)
            answers[embedded.indices] = similarities.argmax(1)
            truth[language] = Classes(tuple(of_language), answers, ("{}",))
        del self._embedder
        return DataSet(name, images, truth)

    def _evaluate(
        self, model: Path, dataset: DataSet | None = None
    ) -> tuple[float, list[EvalResult]]:
        """The quality of a model on the held-out samples: the mean over the languages."""
        dataset = dataset or self._held_out
        options = EvalOptions(datasets=(dataset.name,), templates="name")
        results = evaluate([resolve(str(model))], [dataset], options, device=self.device)
        return float(np.mean([result.value for result in results])), results

    def _agreement_on_other_words(self) -> float:
        """How often the bundle and the teacher choose the same of the words that name no class."""
        names = class_names(Path(self.options.data), self._class_folders)
        of_classes = {name for of_language in names.values() for name in of_language}
        texts = (self.out / _TEXTS).read_text("utf-8").splitlines()
        others = [text for text in texts if text not in of_classes]
        agreement, _ = self._evaluate(
            self.out / "export", self._answered("other-words", self._held_out.images, others)
        )
        return agreement

    def _calibrate(self) -> None:
        """Write the bundle's thresholds for class names, from the held-out photographs, by which
        `predict --multi-label` finds those that show none.
        """
        bundle = self.out / "export"
        encoder = load_encoder(resolve(str(bundle)), "cpu", threads=self.budget.threads)
        cache = FeatureCache(cache_folder(), self.progress.say)
        dataset = self._held_out
        embedded = Embedder(encoder, cache, self.progress).images(
            dataset.images, ImageTransform(), dataset.name, None
        )
        right: dict[str, np.ndarray] = {}
        for classes in dataset.truth.values():
            assert isinstance(classes, Classes)
            labels = classes.labels[embedded.indices]
            for number, name in enumerate(classes.names):
                right[name] = right.get(name, False) | (labels == number)
        some = {name: shown for name, shown in right.items() if shown.any() and not shown.all()}
        if some:
            write_thresholds(bundle / THRESHOLDS, encoder, embedded.vectors, some, self.progress)

    # ---- what candidates cost

    @cached_property
    def _grid(self) -> dict[str, list[Candidate]]:
        from dcclip_cli.train.estimate import open_blank

        needed = None if self.kind == "pairs" else 1_000
        if needed and self.teacher.text_width:  # its own vocabulary is trimmed
            texts = (self.out / _TEXTS).read_text("utf-8").splitlines()
            tokenizer = require_file(
                self.teacher_options.source.location, "tokenizer.json"
            )  # or the hub's
            needed = trim_tokenizer(tokenizer.parent, texts, StudentChoice.tokens).get_vocab_size()
        return list_candidates(self.teacher, open_blank(self.teacher_options), needed)

    @cached_property
    def _candidates(self) -> dict[str, Candidate]:
        return {
            candidate.student.name: candidate
            for of_network in self._grid.values()
            for candidate in of_network
        }

    def _measure(self) -> list[str]:
        """Measure the largest networks that may fit the budget, at up to three image sizes each;
        those that fit it.
        """
        shutil.rmtree(
            self.out / "measured/traced", ignore_errors=True
        )  # of a search that was stopped
        samples = self._samples("train")
        rows = np.unique(np.linspace(0, len(samples) - 1, _CALIBRATED).astype(int)).tolist()
        damaged = dict[int, str]()
        for row in rows:
            samples.decoded(row, unreadable=damaged)
        shown = [
            replace(samples[row], zh=("猫", "狗"), en=("cat", "dog"))
            for row in rows
            if row not in damaged
        ]
        write_parquet(self.out / "measured/images.parquet", shown)
        least = min(
            self._candidates.values(), key=lambda candidate: (candidate.parameters, candidate.macs)
        )
        costs = {least: self._cost(least)}
        if not self.budget.fits(costs[least]):
            name = least.student.name
            mb = costs[least].mb
            ms = costs[least].ms
            problem = Message(
                "no candidate fits: the smallest, {}, takes {:.2f} MB and {:.2f} ms", name, mb, ms
            )
            limits = {
                f"--max-mb {1.01 * mb:.2f}": self.budget.max_mb,
                f"--max-ms {1.1 * ms:.2f}": self.budget.max_ms,
            }
            hint = Message(
                "increase the budget to {} or more",
                " ".join(limit for limit in limits if limits[limit]),
            )
            self.state["costs"].clear()
            raise DcclipError(problem, hint)
        limit = (self.options.time_s or float("inf")) * _MEASURING
        networks = list[str]()
        # Half of the dimensions cost more than a smaller network does: they are for the smallest
        # budgets.
        smallest = promising(self._grid[least.student.network], self.budget, costs)
        dims = max(
            entry.student.embed_dim
            for entry in (least, *(smallest if self.kind != "pairs" else ()))
        )
        # Labels decide more than the network does: all of the time is for the first one that fits.
        most_networks = 1 if self.learns_labels else _NETWORKS
        for number in range(1 if self.learns_labels else _SIDES):
            for network, of_network in self._grid.items():
                if network not in networks and (number or len(networks) == most_networks):
                    continue
                wide = [
                    candidate for candidate in of_network if candidate.student.embed_dim >= dims
                ]
                for candidate in promising(wide, self.budget, costs):
                    is_known = candidate.student.name in self.state["costs"]
                    takes_s = (
                        1 if number else 2
                    ) * self._export_s  # with the steps of a new network
                    if networks and not is_known and self._elapsed() + takes_s > limit:
                        break
                    costs[candidate] = self._cost(candidate)
                    if self.budget.fits(costs[candidate], _MARGIN):
                        self._measure_step(candidate)
                        networks.append(network)
                        break
        del costs[least]  # which is only measured first
        fitting = [
            candidate for candidate, cost in costs.items() if self.budget.fits(cost, _MARGIN)
        ] or [least]
        self._measure_step(fitting[0])
        shutil.rmtree(self.out / "measured")
        return [candidate.student.name for candidate in fitting]

    def _cost(self, candidate: Candidate) -> Cost:
        """The cost of a candidate's export, measured once."""
        state = self.state
        name = candidate.student.name
        if name not in state["costs"]:
            measured = self.out / "measured"
            began = time.monotonic()
            shutil.rmtree(measured / name, ignore_errors=True)  # of a search that was stopped
            job = self._job(candidate.student, measured / name)
            cost = cost_of_random(
                job, measured / "images.parquet", self.budget, measured / "traced"
            )
            shutil.rmtree(measured / name)
            state.setdefault("export_s", {}).setdefault(
                candidate.student.network, time.monotonic() - began
            )
            self.progress.say(Message("fit: {}: {:.2f} MB, {:.2f} ms", name, cost.mb, cost.ms))
            state["costs"][name] = asdict(cost)
            self._save()
        return Cost(**state["costs"][name])

    @property
    def _export_s(self) -> float:
        """Seconds of an export that traces an image network: the median, as some wait for other
        programs.
        """
        return median_low(self.state["export_s"].values())

    def _measure_step(self, candidate: Candidate) -> None:
        """Measure the seconds of a training step with a candidate's image network, once for all
        image sizes.
        """
        state = self.state
        network = candidate.student.network
        if network not in state["step_s"]:
            from dcclip_cli.train.estimate import measure

            job = self._job(candidate.student, self.out / "measured" / network)
            times = measure(job.preflight(["distill"])[0], with_teachers="image_s" not in state)
            shutil.rmtree(job.dir.root)
            state["step_s"][network] = candidate.macs, times.step_s or 1.0
            state.setdefault(
                "image_s", next((pace.image_s for pace in times.teachers if pace), 0.0)
            )
            self._save()

    def _step_s(self, name: str) -> float:
        """Seconds of a candidate's training step, in proportion to the multiply-adds of its
        network's measurement.

        As noise only adds, it takes no longer than one of another network that was measured with
        more of them.
        """
        candidate = self._candidates[name]
        times = list[float]()
        for network, (macs, step_s) in self.state["step_s"].items():
            ratio = candidate.macs / macs
            networks = {network, candidate.student.network}
            if (
                len(networks) == 1 or self.teacher.network not in networks
            ):  # the teacher's own is not trained
                times.append(step_s * (ratio if len(networks) == 1 else max(1.0, ratio)))
        return min(times)

    def _plan(self, names: Sequence[str]) -> None:
        """Decide how many candidates are trained in each round; without --time also the steps of a
        full training.
        """
        import torch

        state = self.state
        time_s = self.options.time_s
        left_s = 0.0
        search_s = 0.0
        plan: dict[str, Any] = {"threads": torch.get_num_threads(), "augmentations": None}
        if time_s:
            left_s = self._left_s()
            encode_s = self.data.count * state["image_s"]
            affordable = (
                number
                for number in (1, 2, 3, 6)
                if number == 1 or number * encode_s <= _ENCODING * left_s
            )
            plan["augmentations"] = max(affordable)
            left_s -= min(plan["augmentations"] * encode_s, left_s / 2)
            search_s = min(left_s, _SEARCHING * time_s - self._elapsed())
        else:
            keeping = {
                name
                for name in names
                if self._candidates[name].student.network == self.teacher.network
                and not self.learns_labels
            }
            plan["steps"] = {name: self.steps // (4 if name in keeping else 1) for name in names}
        for count in range(len(names), 0, -1):
            rounds = [count]
            step_s = sorted(map(self._step_s, names[:count]))
            while rounds[-1] >= 2 * _PROMOTED:
                rounds.append(rounds[-1] // _PROMOTED)
            if time_s:  # opening and evaluating a student takes about half of an export
                plan["round_s"] = max(0.0, search_s - sum(rounds) * self._export_s / 2) / len(
                    rounds
                )
                least_steps = min(plan["round_s"] / sum(step_s[-size:]) for size in rounds)
            else:
                least_steps = min(plan["steps"][name] for name in names[:count]) / (
                    len(rounds) * count
                )
            if least_steps >= _LEAST_STEPS:
                break
        state["plan"] = plan | {"names": list(names[:count]), "rounds": rounds if count > 1 else []}
        self._save()

    def _left_s(self) -> float:
        """Seconds of the time that are left for training, without the last export and its
        evaluation.
        """
        return max(1.0, (self.options.time_s or 0.0) - self._elapsed() - 2 * self._export_s)

    # ---- training runs

    def _halve(self) -> list[str]:
        """Train candidates for a few steps, a third of them for three times as many; all of the
        last, the best first.

        Of candidates whose quality differs from the best by no more than the standard error, the
        smallest comes first.
        """
        state = self.state
        rounds = self.state["plan"]["rounds"]
        names = list(self.state["plan"]["names"])
        for number, size in enumerate(rounds):
            if number == len(state["rounds"]):
                state["rounds"].append({})
            trained = state["rounds"][number]
            names = names[:size]
            round_s = state["plan"].get("round_s")
            step_s = sum(map(self._step_s, names))
            for name in (name for name in names if name not in trained):
                # In equal times, a slow network takes too few steps to be compared with a fast
                # one.
                affordable = (
                    state["plan"]["steps"][name] / len(rounds) / size
                    if round_s is None
                    else round_s / step_s
                )
                steps = max(_LEAST_STEPS, int(affordable))
                job = self._job(
                    self._candidates[name].student, self.out / f"round-{number + 1}" / name, steps
                )
                job.begin("distill")
                result = job.train("distill")
                quality, results = self._evaluate(result.model)
                shutil.rmtree(job.dir.stage("distill") / "state", ignore_errors=True)
                measured = {"steps": steps, "seconds": result.seconds, "quality": quality}
                trained[name] = measured | {"results": [asdict(entry) for entry in results]}
                self.progress.say(Message("fit: {}: {:.1%} after {} steps", name, quality, steps))
                self._save()
            names.sort(key=lambda name: -trained[name]["quality"])
        if not rounds:
            return names
        results_of = {
            name: [EvalResult(**entry) for entry in trained[name]["results"]] for name in names
        }
        mb = dict[str, float]()  # of the best and of those that tie with it
        for name in names:
            pairs = compare_results(results_of[name], results_of[names[0]], force=True)
            if np.mean([pair.value - (pair.high - pair.low) / _INTERVAL for pair in pairs]) <= 0:
                mb[name] = state["costs"][name]["mb"]
        return sorted(names, key=lambda name: mb.get(name, float("inf")))

    def _finish(self, names: Sequence[str]) -> None:
        """Train the first of the candidates in full and export it; the next one where its export
        misses the budget.
        """
        state = self.state
        missed = self.state.setdefault("missed", {})
        for name in (name for name in names if name not in missed):
            if missed and self.options.time_s:
                break  # the first one has taken all of the time
            if state.get("final", {}).get("name") != name:
                for stage in STAGES:  # of the candidate before
                    shutil.rmtree(self.out / stage.name, ignore_errors=True)
                state["final"] = {
                    "name": name,
                    "steps": self._final_steps(name),
                    "search_s": self._elapsed(),
                }
                self._save()
            final = state["final"]
            self.progress.say(Message("fit: {} is trained for {:,} steps", name, final["steps"]))
            if self.options.time_s and final["steps"] == _LEAST_STEPS:
                self.progress.say(
                    Message(
                        "warning: fit: {} steps are too few for a usable student: increase --time",
                        _LEAST_STEPS,
                    )
                )
            job = self._job(self._candidates[name].student, self.out, final["steps"])
            job.begin(*job.loaded.recipe.stages)
            for stage_name in job.loaded.recipe.stages[:-1]:
                job.train(stage_name)
            cost = self._export(name, final["steps"])
            if self.budget.fits(cost):
                quality, results = self._evaluate(self.out / "export")
                measured = {"cost": asdict(cost), "quality": quality, "metric": results[0].metric}
                save_report(results, [self._held_out], self.out / HELD_OUT, self.progress)
                if self.learns_labels:
                    measured["other_words"] = self._agreement_on_other_words()
                    self._calibrate()
                state["result"] = (
                    final | measured | {"training_s": self._elapsed() - final["search_s"]}
                )
                return self._save()
            missed[name] = f"{cost.mb:.2f} MB, {cost.ms:.2f} ms"
            self.progress.say(
                Message(
                    "warning: fit: {} exceeds the budget after training: {}", name, missed[name]
                )
            )
            self._save()
        problem = Message(
            "trained students exceed the budget: {}", "; ".join(map(": ".join, missed.items()))
        )
        raise DcclipError(problem, "increase the budget by 10 %, and use a new folder")

    def _export(self, name: str, steps: int) -> Cost:
        """Export the candidate that is trained in full, all in int8; returns its cost, in which
        noise counts less.
        """
        job = self._job(self._candidates[name].student, self.out, steps)
        assert job.loaded.recipe.export is not None
        return cost_of(
            job.export(job.loaded.recipe.export, job.trained_model(), self.out / "export"),
            self.budget,
            9,
        )

    def _final_steps(self, name: str) -> int:
        """As many steps as the rest of the time allows at the last round's median pace; else those
        of the plan.
        """
        state = self.state
        step_s = self._step_s(name)
        if self.options.time_s is None:
            return int(state["plan"]["steps"][name])
        paces = [1.1]  # what was measured is the fastest of a few steps
        if state["rounds"]:  # the first of a round waits for the teacher
            trained = state["rounds"][-1].items()
            paces = [
                entry["seconds"] / entry["steps"] / self._step_s(key) for key, entry in trained
            ]
        step_s *= max(1.0, median_low(paces))
        step_s *= 1.2 if self.kind == "pairs" else 1.0  # stage 2 has a fifth of the steps
        left_s = self._left_s()
        job = self._job(
            self._candidates[name].student, self.out, max(_LEAST_STEPS, int(left_s / step_s))
        )
        left_s -= state["image_s"] * job.preflight(["distill"])[0].remaining_rows(0).images
        return max(_LEAST_STEPS, int(left_s / step_s))

    def _say_best(self) -> None:
        """Save the state, and say where the best student of the last round is."""
        self._save()
        if rounds := [trained for trained in self.state["rounds"] if trained]:
            best = max(rounds[-1], key=lambda name: rounds[-1][name]["quality"])
            model = RunDir(self.out / f"round-{len(rounds)}" / best).model("distill")
            self.progress.say(
                Message("fit: the best student so far: dcclip export --model {}", model)
            )
