"""The training task: the student with its losses and adapters, and the backward pass of a batch,
whole or in parts.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.extensions import extension_errors
from dcclip_cli.data import prompts
from dcclip_cli.data.batch import ENTRIES, IMAGES, Batch, TextCounts, copy_to
from dcclip_cli.data.labels import Labels
from dcclip_cli.data.pair import Language
from dcclip_cli.data.pixels import normalized
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures, Tokens
from dcclip_cli.train.distributed import (
    average_gradients,
    gather,
    gather_numbers,
    process_count,
    process_index,
)
from dcclip_cli.train.losses.base import (
    ClassOutputs,
    Loss,
    Outputs,
    TeacherLoss,
    Tower,
    student_layers,
)
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.teacher import TeacherFeatures, no_images, no_texts, widths


class TrainingTask(nn.Module):
    """Forward: a batch -> weighted loss terms by name, of the whole batch of all processes."""

    def __init__(
        self,
        student: OpenClipTowers,
        losses: Sequence[Loss],
        teachers: Sequence[TeacherFeatures] = (),
        seed: int = 0,
        lock: Tower | None = None,
        freeze_batch_norms: bool = False,
        dims: Sequence[int] = (),
        labels: Labels | None = None,
    ) -> None:
        """`lock`: a tower that is not trained, its batch norms included. Adapters get random
        weights from `seed`. `labels` are of the samples that batches are made of.

        Losses on embeddings are also computed on the first numbers of these, as many as `dims`
        says, with adapters of their own: as if each was a student of that width (Kusupati et al.
        2022, arXiv 2205.13147, all weights 1).
        """
        super().__init__()
        self.student = student
        self.chance: dict[str, float] = {}  # terms of the last batch at chance level, where known
        self._teachers = list(teachers)
        self._losses = list(losses)
        self.layers = student_layers(losses)
        self._widths = widths(student, self.layers)
        self._dims = shorter_dims(dims, self._widths.embedding)
        self.adapters = nn.ModuleList(nn.ModuleDict() for _ in teachers)
        with torch.random.fork_rng(devices=[]):
            for loss in losses:
                torch.manual_seed(seed)  # for each: their order changes no adapter
                if not isinstance(loss, TeacherLoss) or loss.teacher >= len(teachers):
                    continue
                for width in self._dims_of(loss):
                    shared = (
                        self._widths if width is None else replace(self._widths, embedding=width)
                    )
                    adapters = self._adapters_for(loss, width)
                    for name, adapter in loss.adapters(
                        shared, teachers[loss.teacher].widths
                    ).items():
                        if name not in adapters:
                            adapters[name] = adapter
        self.max_logit_scale = 100.0  # CLIP's
        self._locked = {"image": student.model.visual, "text": student.model.text, None: None}[lock]
        self._freeze_batch_norms = freeze_batch_norms
        self.progress = 0.0  # the fraction of the run that is over: scheduled weights depend on it
        self.step = 0  # the steps that are over: the wording of class names depends on it
        self._labels = labels
        self._class_tokens: dict[tuple[Language, str], Tokens] = {}  # by language and template
        if isinstance(self._locked, nn.Module):
            self._locked.requires_grad_(False)
        student.model.logit_scale.requires_grad_(any(loss.uses_temperature for loss in losses))
        if student.model.logit_bias is not None:
            student.model.logit_bias.requires_grad_(any(loss.uses_bias for loss in losses))

    @property
    def model(self) -> nn.Module:
        """The model that training is for: what is saved, averaged and validated."""
        model: nn.Module = self.student.model
        return model

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if isinstance(self._locked, nn.Module):
            self._locked.eval()  # its batch norms keep their statistics
        if self._freeze_batch_norms:
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def frozen_digest(self) -> str:
        """A SHA-256 over what training leaves unchanged: frozen parameters, and buffers of modules
        in eval mode.
        """
        parameters = (parameter for parameter in self.parameters() if not parameter.requires_grad)
        buffers = (
            buffer
            for module in self.modules()
            if not module.training
            for buffer in module.buffers(False)
        )
        digest = hashlib.sha256()
        for tensor in chain(parameters, buffers):
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
        return digest.hexdigest()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep a trained logit scale in [1, max_logit_scale], as open_clip does after each
        optimizer step.

        A clamp in the forward pass would have no gradient above the bound: the scale could never
        fall again.
        """
        if self.student.model.logit_scale.requires_grad:
            self.student.model.logit_scale.clamp_(0, math.log(self.max_logit_scale))

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on the device, with pixels as the image tower takes them: the only place that
        converts pixels.
        """
        if device.type != "cpu":
            batch = batch.to(device)
        if batch.pixels.ndim != 4 or not len(batch.pixels):  # embeddings, or texts only
            return batch
        pixels = normalized(batch.pixels, self.student.preprocessing)
        return replace(batch, pixels=pixels.contiguous(memory_format=torch.channels_last))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        teachers = self.teacher_outputs(
            batch
        )  # first: the student's activations then have the memory
        return self.terms(batch, self.outputs(batch), teachers)

    def teacher_outputs(self, batch: Batch) -> list[Outputs]:
        return [teacher.features(batch) for teacher in self._teachers]

    def outputs(self, batch: Batch) -> Outputs:
        texts = {
            name: self.student.text_features_by_length(texts.tokens)
            for name, texts in batch.texts.items()
        }
        if batch.pixels.ndim == 2:  # embeddings already
            image = ImageFeatures(batch.pixels, batch.pixels[:, :, None, None])
        elif len(batch.pixels):
            try:
                image = self.student.compiled.get("image", self.student.image_features)(
                    batch.pixels, self.layers
                )
            except ValueError as error:
                if len(batch.pixels) > 1 or "more than 1 value per channel" not in str(error):
                    raise
                hint = Message(
                    "use more images per step or fewer parts, or set freeze_batch_norms: true"
                )
                raise DcclipError(
                    "a batch or part of a batch has only one image; batch normalization "
                    "needs at least two",
                    hint,
                ) from None
        else:
            image = no_images(self._widths, self.layers, batch.pixels.device)
        return Outputs(
            image, texts, {name: texts.image_index for name, texts in batch.texts.items()}
        )

    def check_teachers(self) -> None:
        """Raise NotFiniteError if a teacher's last embeddings are not finite."""
        for teacher in self._teachers:
            teacher.check()

    def terms(
        self, batch: Batch, student: Outputs, teacher_outputs: Sequence[Outputs]
    ) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, given the outputs of the student and of the
        teachers.
        """
        shares = _shares(batch)
        device = batch.pixels.device
        teachers = [
            _of_all_processes(outputs, batch, shares, partial(no_texts, teacher.widths, device))
            for teacher, outputs in zip(self._teachers, teacher_outputs, strict=True)
        ]
        student = _of_all_processes(student, batch, shares, self._no_texts)
        model = self.student.model
        masks = {name: _false_negatives(name, shares[name], batch) for name in student.counts}
        student = replace(
            student,
            logit_scale=model.logit_scale.exp(),
            logit_bias=model.logit_bias,
            false_negatives={name: mask for name, mask in masks.items() if mask is not None},
            classes=self._classes(batch) if self._labels else None,
        )
        # Losses are not in bf16, whose numbers near a logit of 100 are 0.5 apart. Meta tensors
        # have no autocast.
        in_fp32 = torch.autocast(device.type.replace("meta", "cpu"), enabled=False)
        inside = not all(loss.embeddings_only for loss in self._losses)
        student = student.in_fp32(inside)
        teachers = [teacher.in_fp32(inside) for teacher in teachers]
        terms: dict[str, Tensor] = {}
        self.chance = {}
        for loss in self._losses:
            weight = loss.weight_at(self.progress)
            for dims in self._dims_of(loss):
                outputs = student if dims is None else student.cut(dims)
                chance = loss.chance(outputs)
                adapters = (
                    dict(self._adapters_for(loss, dims).items())
                    if isinstance(loss, TeacherLoss)
                    else {}
                )
                with extension_errors(loss.kind), in_fp32:
                    loss_terms = loss.terms(outputs, teachers, adapters)
                for name, term in loss_terms.items():
                    first_name = name if dims is None else f"{name}_{dims}d"
                    names = [
                        first_name,
                        *(f"{first_name}-{number}" for number in range(2, len(terms) + 2)),
                    ]
                    unused = next(unused for unused in names if unused not in terms)
                    terms[unused] = weight * term
                    if name in chance:
                        self.chance[unused] = weight * chance[name]
        return terms

    def _classes(self, batch: Batch) -> ClassOutputs:
        """The classes of all processes' images, and the student's embeddings of their names."""
        assert self._labels is not None
        device = batch.pixels.device
        names = {}
        for language in self._labels.names:
            templates = ("{}", *prompts.compact(language))
            turn = (self.step + 1) // 2 % len(templates)
            template = templates[turn] if self.step % 2 else "{}"
            tokens = self._tokens_of_classes(language, template).to(device)
            names[language] = self.student.text_features_by_length(tokens).embedding.float()
        labels = torch.from_numpy(self._labels.of_samples)[batch.sample_index.cpu()]
        everyone = gather(labels.to(device), [len(labels)] * process_count())
        return ClassOutputs(names, everyone, torch.from_numpy(self._labels.counts).to(device))

    def _tokens_of_classes(self, language: Language, template: str) -> Tokens:
        """The tokens of all class names in a template."""
        assert self._labels is not None
        key = (language, template)
        if key not in self._class_tokens:
            texts = [template.format(name) for name in self._labels.names[language]]
            self._class_tokens[key] = self.student.tokenize(texts)
        return self._class_tokens[key]

    def metrics(self) -> dict[str, float]:
        """1 / temperature and the sigmoid loss's bias, for the log, where a loss trains them."""
        if not any(isinstance(loss, TaskLoss) for loss in self._losses):
            return {}
        metrics = {"logit_scale": self.student.logit_scale}
        bias = self.student.logit_bias
        return metrics if bias is None else metrics | {"logit_bias": bias}

    def _dims_of(self, loss: Loss) -> tuple[int | None, ...]:
        """The numbers of the embeddings that a loss is computed on, None for all."""
        return (None, *self._dims) if loss.embeddings_only else (None,)

    def _adapters_for(self, loss: TeacherLoss, dims: int | None) -> nn.ModuleDict:
        """A loss's adapters by name: those for the first `dims` numbers of the embeddings, None
        for all of them.
        """
        by_width = self.adapters[loss.teacher]
        assert isinstance(by_width, nn.ModuleDict)
        width = "whole" if dims is None else f"{dims}d"
        if width not in by_width:
            by_width[width] = nn.ModuleDict()
        adapters = by_width[width]
        assert isinstance(adapters, nn.ModuleDict)
        return adapters

    def _no_texts(self) -> TextFeatures:
        """The features of no text, by a pass through the text tower: DDP expects its gradient in
        every process.
        """
        features = self.student.text_features(
            self.student.tokenize(["猫"]).to(self.student.model.logit_scale.device)
        )
        return TextFeatures(
            features.embedding[:0], features.tokens[:0], features.mask[:0], features.pooling
        )


def shorter_dims(dims: Sequence[int], width: int) -> list[int]:
    """The numbers in `dims` that are less than an embedding's `width`. Raises DcclipError for any
    that is more.
    """
    if any(dim > width for dim in dims):
        raise DcclipError(
            "dims contains {}, but embeddings have only {} dimensions",
            "remove it",
            max(dims),
            width,
        )
    return sorted({*dims} - {width})


@dataclass(frozen=True)
class _Share:
    """The texts in a language: counts by process, of all and of the mean part, most captions of an
    image.
    """

    by_process: list[TextCounts]
    counts: TextCounts
    mean_counts: TextCounts
    most_captions: int


def _shares(batch: Batch) -> dict[str, _Share]:
    """The texts of all processes, in the same languages in every process."""
    means = batch.mean_counts or batch.counts
    nothing = TextCounts(0, 0, 0, 0)
    numbers = list[float]()
    names = [*means] if process_count() == 1 else ENTRIES
    for name in names:
        ids = batch.texts[name].image_caption_ids if name in batch.texts else None
        numbers += [
            *batch.counts.get(name, nothing),
            *means.get(name, nothing),
            0 if ids is None else ids.shape[1],
        ]
    columns = zip(*gather_numbers(numbers), strict=True)  # of each number by process
    fields = len(TextCounts._fields)
    shares = {}
    for name in names:
        counts = list(islice(columns, fields))
        mean_counts = list(islice(columns, fields))
        sums = TextCounts(*map(sum, counts))
        mean_sums = TextCounts(*map(sum, mean_counts))
        by_process = [TextCounts(*of_process) for of_process in zip(*counts, strict=True)]
        shares[name] = _Share(by_process, sums, mean_sums, int(max(next(columns))))
    return shares


def _of_all_processes(
    outputs: Outputs,
    batch: Batch,
    shares: Mapping[str, _Share],
    no_texts: Callable[[], TextFeatures],
) -> Outputs:
    """Outputs with the embeddings of all processes: first the images of all are counted, then
    their other texts.
    """
    counts = {name: share.counts for name, share in shares.items() if share.counts.texts}
    means = {name: share.mean_counts for name, share in shares.items() if share.mean_counts.texts}
    by_process = {name: shares[name].by_process for name in counts}
    outputs = replace(outputs, counts=counts, mean_counts=means, process_counts=by_process)
    images = len(batch.pixels)
    processes = process_count()
    process = process_index()
    if processes == 1:
        return outputs
    texts = {}
    index = {}
    for name, of_processes in by_process.items():
        sizes = [int(of_process.texts) for of_process in of_processes]
        features = outputs.texts[name] if name in outputs.texts else no_texts()
        image_index = outputs.image_index.get(
            name, torch.zeros(0, dtype=torch.int64, device=features.mask.device)
        )
        lines_before = (processes - 1) * images + process * batch.num_unpaired_texts
        offset = torch.where(image_index < images, process * images, lines_before)
        index[name] = gather(image_index + offset, sizes)
        texts[name] = replace(features, embedding=gather(features.embedding.float(), sizes))
    image = replace(
        outputs.image, embedding=gather(outputs.image.embedding.float(), [images] * processes)
    )
    return replace(outputs, image=image, texts=texts, image_index=index)


def _false_negatives(name: str, share: _Share, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Captions that images of other pairs have as well, as in Outputs."""
    if not share.most_captions:
        return None
    of_images = torch.zeros(0, share.most_captions, dtype=torch.int64, device=batch.pixels.device)
    caption_ids = of_images[:, 0]
    texts = batch.texts.get(name)
    if texts and texts.caption_ids is not None and texts.image_caption_ids is not None:
        caption_ids = texts.caption_ids
        of_images = texts.image_caption_ids
    sizes = [int(of_process.texts) for of_process in share.by_process]
    first = sum(sizes[: process_index()])
    local = slice(first, first + len(caption_ids))
    caption_ids = gather(caption_ids, sizes)
    # Padded with each row's first entry, which changes nothing.
    padding = of_images[:, :1].expand(-1, share.most_captions - of_images.shape[1])
    columns = gather(torch.cat([of_images, padding], dim=1), sizes).unbind(1)
    forth, back = (torch.zeros_like(caption_ids[local, None] == caption_ids) for _ in range(2))
    for column in columns:
        forth |= column[local, None] == caption_ids
        back |= caption_ids[local, None] == column
    for mask in (forth, back):
        mask.diagonal(first).fill_(False)  # [i, first + i]: a caption and its own image
    return forth, back


def backward(
    wrapped: nn.Module, batch: Batch, parts: int, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Add a batch's gradients to the parameters and return its loss terms, the mean over `parts`.

    Each part is a batch of its own: a contrastive loss does not see the captions of other parts.
    """
    total: dict[str, Tensor] = {}
    for part in batch.parts(parts) if parts > 1 else [batch]:
        with accelerator.no_sync(wrapped) if parts > 1 else nullcontext():
            terms: dict[str, Tensor] = wrapped(part)
            if any(
                term.requires_grad for term in terms.values()
            ):  # not where a part has no text for any loss
                accelerator.backward(sum(terms.values()) / parts)
        for name, term in terms.items():
            total[name] = total.get(name, torch.zeros_like(term)) + term.detach() / parts
    if parts > 1:  # DDP would average in the backward pass of the last part, which may have none
        average_gradients(wrapped.parameters())
    return total


def cached_backward(
    task: TrainingTask, batch: Batch, parts: int, accelerator: Accelerator
) -> dict[str, Tensor]:
    """The same for losses on embeddings, with the gradient of the whole batch: gradient caching
    (arXiv 2101.06983).

    The student processes the parts twice: without a graph, for the embeddings from which the
    losses of the whole batch and their gradients are computed; then with one, part by part, to
    carry those gradients on to the weights. Random numbers are replayed; batch norms use the
    statistics of each part, so that in training mode the gradient is not exactly that of the whole
    batch.
    """
    pieces = batch.parts(parts)
    device = batch.pixels.device
    on_device: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch.random)
    states = []
    outputs = []
    with torch.no_grad(), accelerator.autocast(), _untouched_statistics(task):
        for piece in pieces:
            states.append((torch.get_rng_state(), on_device.get_rng_state()))
            outputs.append(task.outputs(piece))
    joined = _joined(batch, pieces, outputs, task.student.model)
    with accelerator.autocast():
        terms = task.terms(batch, joined, task.teacher_outputs(batch))
    if any(term.requires_grad for term in terms.values()):
        accelerator.backward(sum(terms.values()))
    for piece, (cpu_state, device_state) in zip(pieces, states, strict=True):
        torch.set_rng_state(cpu_state)
        on_device.set_rng_state(device_state)
        with accelerator.autocast():
            part = task.outputs(piece)
            surrogate = torch.zeros((), device=batch.pixels.device)
            embeddings = part.embeddings
            for name, rows in piece.rows.items():
                if (grad := joined.embeddings[name].grad) is not None:
                    surrogate = (
                        surrogate + (embeddings[name] * grad[copy_to(rows, grad.device)]).sum()
                    )
        if surrogate.requires_grad:
            surrogate.backward()
    average_gradients(task.parameters())
    return {name: term.detach() for name, term in terms.items()}


def _joined(
    batch: Batch, pieces: Sequence[Batch], parts: Sequence[Outputs], model: nn.Module
) -> Outputs:
    """The outputs of parts as those of the whole batch; its embeddings are leaves, with gradients
    if a tower learns.
    """
    leaves = {}
    device = batch.pixels.device
    for name in (IMAGES, *batch.texts):
        tower = model.get_submodule("visual" if name == IMAGES else "text")
        order = torch.cat([piece.rows[name] for piece in pieces if name in piece.rows]).argsort()
        joined = torch.cat([part.embeddings[name] for part in parts if name in part.embeddings])
        leaves[name] = joined[copy_to(order, device)]
        leaves[name].requires_grad_(
            any(parameter.requires_grad for parameter in tower.parameters())
        )
    features = {name: entry for part in parts for name, entry in part.texts.items()}
    texts = {name: replace(features[name], embedding=leaves[name]) for name in batch.texts}
    image_index = {name: entry.image_index for name, entry in batch.texts.items()}
    return replace(
        parts[0],
        image=replace(parts[0].image, embedding=leaves[IMAGES]),
        texts=texts,
        image_index=image_index,
    )


@contextmanager
def _untouched_statistics(task: nn.Module) -> Iterator[None]:
    """Batch norms' running statistics do not change while the block runs: the second pass updates
    them once.
    """
    norms = [
        module for module in task.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
