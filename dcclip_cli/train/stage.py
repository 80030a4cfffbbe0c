"""What distill and align share: opening data, the student with its tokenizer, and leaving a model directory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tokenizers import Tokenizer

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.options import COLLECTED
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_write, read_json
from dcclip_cli.machine import busy_cores, cores, keep_freed_memory
from dcclip_cli.model.init_from_teacher import init_text_tower
from dcclip_cli.model.model_dir import load_model, save_model
from dcclip_cli.model.precision import Choice, choose_precision, newton_schulz_precision
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.students import (
    StudentOptions,
    build_model,
    init_image_tower,
    model_config,
    preprocessing_of,
    projection_bias,
)
from dcclip_cli.model.tokenizer import load_tokenizer, tokenize_with, train_tokenizer, trim_tokenizer
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.progress import Progress
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.options import LoopOptions
from dcclip_cli.versions import versions

DEFAULT_EMBED_DIM = 256
COMPUTED_IN = "computed_in.json"
L = TypeVar("L", bound=LoopOptions)
T = TypeVar("T")


@dataclass(frozen=True)
class Student:
    """A student in training with all that its model directory needs."""

    towers: OpenClipTowers
    config: dict[str, Any]
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    name: str
    parent: str | None = None  # fingerprint of the model it started from

    @property
    def vocabulary(self) -> str:
        """A sha256 over the pieces and their numbers, which are the rows of the text tower's embedding."""
        return hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
        save_model(
            folder,
            self.towers.model,
            self.config,
            self.preprocessing,
            self.tokenizer,
            {"name": self.name, "parent": self.parent, "versions": versions(), **provenance},
            half,
        )


def open_training_pairs(train: str, run: RunDir) -> PairDataset:
    """The pairs that `data.train` names. Raises DcclipError where they are not there."""
    if train != COLLECTED:
        return open_pairs(train)
    if not run.stage("collect").is_dir():
        raise DcclipError("data.train is 'collect', but nothing has been collected", "run: dcclip collect RECIPE")
    return open_pairs(run.stage("collect"))


def new_student(
    options: StudentOptions,
    embed_dim: int,
    table: PairDataset,
    teacher: str | None,
    name: str,
    seed: int,
    teaching: Towers | None = None,
) -> Student:
    """A student with random weights (or those that it takes over), its tokenizer made from the captions.

    `teacher` is the teacher's directory or hub name, for `vocabulary: {from: teacher}`; `teaching` the teacher itself,
    for `text.inherit`.
    """
    captions = [caption for language in LANGUAGES for several in table.captions(language) for caption in several]
    if not captions:
        raise DcclipError(
            "the data has no text to make the student's vocabulary from", "give data.texts, or pairs with captions"
        )
    vocabulary = options.text.vocabulary
    if vocabulary.source == "teacher":
        tokenizer = trim_tokenizer(_teacher_folder(teacher), captions, vocabulary.size, vocabulary.characters)
    else:
        tokenizer = train_tokenizer(captions, vocabulary.size)
    config = model_config(options, options.embed_dim or embed_dim, tokenizer.get_vocab_size())
    _take_special_ids(config, tokenizer)
    model = build_model(config, seed)
    init_image_tower(model, options.image)
    if options.text.inherit != "nothing":
        if teaching is None:
            raise DcclipError(
                "student.text.inherit takes weights from a teacher, but this stage has none", "leave it out"
            )
        init_text_tower(model.text, tokenizer, teaching, layers=options.text.inherit == "layers")
    return _student(model, config, preprocessing_of(options.image), tokenizer, name, None)


def student_from(folder: Path, name: str) -> Student:
    """The student that lies in a model directory, to be trained on."""
    towers = load_model(folder)
    assert towers.preprocessing is not None
    config = read_json(folder / "open_clip_config.json", "")["model_cfg"]
    return _student(towers.model, config, towers.preprocessing, load_tokenizer(folder), name, towers.fingerprint)


def _student(
    model: Any,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    name: str,
    parent: str | None,
) -> Student:
    tokenize = tokenize_with(tokenizer, config["text_cfg"]["context_length"])
    model.visual.to(memory_format=torch.channels_last)
    if (bias := projection_bias(model)) is not None:
        bias.requires_grad_(False)
    towers = OpenClipTowers(model, tokenize, preprocessing, name, "in training")
    return Student(towers, config, preprocessing, tokenizer, name, parent)


def _teacher_folder(teacher: str | None) -> Path:
    if teacher is None:
        raise DcclipError(
            "student.text.vocabulary is taken from the teacher, but the recipe has none",
            "name a teacher, or write vocabulary: {from: data, size: ...}",
        )
    if Path(teacher).is_absolute():
        return Path(teacher)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(teacher.removeprefix("hf-hub:"), "tokenizer.json")).parent


def _take_special_ids(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """A teacher's tokenizer may number its special tokens in another way than ours."""
    for key, token in (("pad_id", "<pad>"), ("eos_id", "</s>")):
        number = tokenizer.token_to_id(token)
        if number is None:
            raise DcclipError(
                f"the teacher's tokenizer has no {token} token", "write vocabulary: {from: data, size: ...}"
            )
        config["text_cfg"][key] = number


def sha256_of(parts: Any) -> str:
    """A sha256 over everything that decides a stage's result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def use_process(options: LoopOptions, folder: Path, progress: Progress) -> None:
    """Set torch's threads (other counts sum in another order), and keep freed memory.

    By default a thread for each core that neither other work nor a loading process needs; loading is lighter, so it
    leaves more than half of the cores. Where OMP_NUM_THREADS is set, as torchrun does, what that says.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            _decided(folder, "threads", lambda: _free_threads(options.workers, folder.name, progress))
        )
    keep_freed_memory()


def _free_threads(workers: int, name: str, progress: Progress) -> int:
    there, busy = cores(), busy_cores()
    most = max(there - workers, there // 2 + 1)
    threads = min(most, max(1, round(there - busy)))
    if threads < most:
        progress.say(f"{name}: {threads} of {most} threads, since other work keeps {busy:.1f} of {there} cores busy")
    return threads


def _decided(folder: Path, name: str, decide: Callable[[], T]) -> T:
    """What this machine decided when the stage under `folder` began: a run that is resumed computes as before."""
    file = folder / COMPUTED_IN
    decisions = read_json(file, "start over with --fresh") if file.is_file() else {}
    if name not in decisions:
        [value] = broadcast_object_list([decide()])  # of the first process
        decisions[name] = value
        if PartialState().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(decisions).encode())
    return cast(T, decisions[name])


def settle_precision(
    options: L, learner: Student, device: str, folder: Path, image: bool, progress: Progress
) -> tuple[L, Choice]:
    """The options with nothing left to `auto`, and why. Without `image` the text tower alone is trained."""
    asked, rule = options.precision, options.optimizer.newton_schulz
    if asked == "auto":

        def probe() -> dict[str, Any]:
            return choose_precision("auto", device, learner.towers, training=True, image=image).to_dict()

        choice = Choice(**_decided(folder, "precision", probe))
    else:
        choice = choose_precision(asked, device, learner.towers, training=True, image=image)
    if rule == "auto":
        rule = _decided(folder, "newton_schulz", lambda: newton_schulz_precision(device))
    for line in choice.lines(folder.name):
        progress.say(line)
    optimizer = options.optimizer.model_copy(update={"newton_schulz": rule})
    return options.model_copy(update={"precision": choice.precision, "optimizer": optimizer}), choice


def computed_in(options: LoopOptions, choice: Choice, teachers: Sequence[Towers]) -> dict[str, Any]:
    """What a stage computed in, for the record."""
    return {
        **choice.to_dict(),
        "newton_schulz": options.optimizer.newton_schulz if options.optimizer.kind == "muon" else None,
        "threads": torch.get_num_threads(),
        "teachers": [teacher.precision.to_dict() for teacher in teachers],
    }


def join_processes(device: str) -> None:
    """Let the processes that torchrun started know of each other; a single one stays alone."""
    PartialState(cpu=device == "cpu")


def with_bias(student: Student) -> Student:
    """The student made ready for a sigmoid loss: a bias, and the temperature that goes with it (SigLIP, 2303.15343)."""
    model = student.towers.model
    if model.logit_bias is not None:
        return student
    model.logit_bias = torch.nn.Parameter(torch.full_like(model.logit_scale.detach(), -10.0))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
    return replace(student, config={**student.config, "init_logit_bias": -10.0})


def minutes(seconds: float) -> str:
    """A duration as a person would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def start_over(folder: Path) -> None:
    """Remove what a stage left, finished or not."""
    shutil.rmtree(folder, ignore_errors=True)


def reader_for(learner: Student, table: PairDataset, options: LoopOptions, seed: int) -> Collator:
    """What reads this table for this student."""
    return Collator(table, seed, options.augment, options.captions, learner.towers.preprocess, learner.towers.tokenize)
