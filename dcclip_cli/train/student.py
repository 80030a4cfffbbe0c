"""The student of a training stage: a new one with its tokenizer, or one that is trained further."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import read_json
from dcclip_cli.core.versions import versions
from dcclip_cli.data import prompts
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.model import inherit, students
from dcclip_cli.model.model_dir import load_model, save_model
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.reference import ModelSource
from dcclip_cli.model.tokenizer import (
    load_tokenizer,
    tokenize_with,
    train_tokenizer,
    trim_tokenizer,
)
from dcclip_cli.model.towers import OpenClipTowers, TextLayout, Towers
from dcclip_cli.model.weights import CONFIG, require_file
from dcclip_cli.train.teacher import SPACE, NarrowSpace

_LOOKED_AT = 1_000  # pairs by which the number of captions of all is estimated


@dataclass(frozen=True)
class Student:
    """A student in training with everything that its model directory needs."""

    towers: OpenClipTowers
    config: dict[str, Any]
    tokenizer: Tokenizer
    parent: str | None = None  # fingerprint of the model that it was trained from
    space: NarrowSpace | None = None  # of the teacher's, if it is narrower

    def with_bias(self) -> Self:
        """The student prepared for a sigmoid loss: with a bias and SigLIP's initial temperature
        (2303.15343).
        """
        model = self.towers.model
        if model.logit_bias is not None:
            return self
        model.logit_bias = torch.nn.Parameter(torch.full_like(model.logit_scale.detach(), -10.0))
        with torch.no_grad():
            model.logit_scale.fill_(math.log(10))
        return replace(self, config={**self.config, "init_logit_bias": -10.0})

    def save(self, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
        towers = self.towers
        files = {SPACE: self.space.to_bytes()} if self.space else {}
        assert towers.preprocessing is not None
        provenance = {
            "name": towers.name,
            "parent": self.parent,
            "versions": versions(),
            **provenance,
        }
        save_model(
            folder,
            towers.model,
            self.config,
            towers.preprocessing,
            self.tokenizer,
            provenance,
            half,
            files,
        )


def checkpoint_gradients(model: Any, network: str) -> None:
    """Make both towers recompute activations. Raises DcclipError if the image tower, timm's
    `network`, cannot.
    """
    model.text.set_grad_checkpointing(True)
    if not any(weight.requires_grad for weight in model.visual.parameters()):
        return
    try:
        model.visual.trunk.set_grad_checkpointing(True)
    except AssertionError:
        problem = Message("{} does not support gradient checkpointing", network)
        raise DcclipError(
            problem, "remove gradient_checkpointing, or use another network"
        ) from None


def new_student(
    options: students.StudentOptions,
    embed_dim: int,
    dataset: PairDataset,
    name: str,
    seed: int,
    teacher: ModelSource | None = None,
    teacher_towers: Towers | None = None,
    layout: TextLayout | None = None,
) -> Student:
    """A student with random or inherited weights; its tokenizer is made from the captions, or
    dcclip's class names.

    `teacher` is where the teacher's files are, for `vocabulary: {from: teacher}`; `teacher_towers`
    the teacher itself, for `text.inherit`, `image.inherit` and `image: teacher`; the options were
    checked to have what they need. `layout` is that of the first teacher's text tower.
    """
    vocabulary = options.text.vocabulary
    captions = sample_captions(dataset, vocabulary.captions, seed)
    if vocabulary.source == "teacher":
        assert teacher is not None
        texts = captions or [text for language in LANGUAGES for text in prompts.texts(language)]
        folder = require_file(teacher.location, "tokenizer.json").parent
        tokenizer = trim_tokenizer(folder, texts, vocabulary.size, vocabulary.characters)
    elif captions:
        tokenizer = train_tokenizer(captions, vocabulary.size)
    else:
        raise students.no_vocabulary()
    image = options.image
    image_config = None
    if isinstance(image, students.ImageTower):
        inherited = teacher_towers if image.inherit == "teacher" else None
        preprocessing = students.preprocessing_of(
            image, inherited.preprocessing if inherited else None
        )
    else:
        assert teacher is not None and teacher_towers is not None
        source = inherit.check_image_source(teacher_towers)
        image_config = inherit.teacher_image_config(teacher, source)
        preprocessing = source.match_preprocessing()
    tokens = tokenizer.get_vocab_size()
    config = students.model_config(
        options, options.embed_dim or embed_dim, tokens, image_config, layout
    )
    for key, token in (
        ("pad_id", "<pad>"),
        ("eos_id", "</s>"),
    ):  # a teacher's tokenizer may number them differently
        number = tokenizer.token_to_id(token)
        if number is None:
            problem = Message("the teacher's tokenizer has no {} token", token)
            raise DcclipError(problem, "set vocabulary: {{from: data, size: ...}}")
        config["text_cfg"][key] = number
    model = students.build_model(config, seed)
    if not isinstance(image, students.ImageTower):
        inherit.copy_image_tower(model, source)
    elif inherited:
        inherit.inherit_image_tower(model.visual, inherited)
    else:
        students.init_image_tower(model, image)
    if options.text.inherit != "nothing":
        assert teacher_towers is not None
        inherit.init_text_tower(
            model.text, tokenizer, teacher_towers, layers=options.text.inherit == "layers"
        )
    return _student(model, config, preprocessing, tokenizer, name)


def sample_captions(dataset: PairDataset, count: int, seed: int) -> list[str]:
    """All captions in order where there are at most `count`, else those of a random sample of the
    pairs, about `count`.

    Chinese ones come first, then English ones.
    """
    pairs = len(dataset)
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 0x70CAB], np.uint64)))
    looked_at = random.choice(pairs, min(pairs, _LOOKED_AT), replace=False)
    columns = [dataset.captions(language) for language in LANGUAGES]
    captions_seen = sum(len(column[index]) for column in columns for index in looked_at.tolist())
    sampled_pairs = count * len(looked_at) // max(1, captions_seen)
    if sampled_pairs >= pairs:
        captions = [
            caption
            for column in columns
            for captions_of_pair in column
            for caption in captions_of_pair
        ]
        if len(captions) <= count:
            return captions
    chosen = np.sort(random.choice(pairs, min(sampled_pairs, pairs - 1), replace=False)).tolist()
    return [caption for column in columns for index in chosen for caption in column[index]]


def student_from(folder: Path, name: str) -> Student:
    """The student in a model directory, to be trained further."""
    towers = load_model(folder)
    assert towers.preprocessing is not None
    config = read_json(folder / CONFIG, "")["model_cfg"]
    student = _student(towers.model, config, towers.preprocessing, load_tokenizer(folder), name)
    return replace(student, parent=towers.fingerprint, space=NarrowSpace.read(folder))


def _student(
    model: Any,
    config: dict[str, Any],
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    name: str,
) -> Student:
    tokenize = tokenize_with(tokenizer, config["text_cfg"])
    model.visual.to(memory_format=torch.channels_last)
    if (bias := students.projection_bias(model)) is not None:
        bias.requires_grad_(False)
    towers = OpenClipTowers(model, tokenize, preprocessing, name, "in training")
    return Student(towers, config, tokenizer)
