"""The training task: the student with its losses and adapters, and the backward pass of a batch, whole or in parts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dcclip_cli.data.collator import Batch, Texts
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.pixels import normalized
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures
from dcclip_cli.own import own_errors
from dcclip_cli.train.distributed import average_gradients, gather, gather_numbers, process_count, process_index
from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Tower, Widths, student_layers
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.speed import training_flops
from dcclip_cli.train.teacher import TeacherFeatures, no_images, widths


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
    ) -> None:
        """`lock`: a tower that is not trained, its batch norms included. Adapters get random weights from `seed`.

        Losses on embeddings are also computed on the first numbers of these, as many as `dims` says, with adapters of
        their own: as if each was a student of that width (Kusupati et al. 2022, arXiv 2205.13147, all weights 1).
        """
        super().__init__()
        self.student = student
        self.chance: dict[str, Tensor] = {}  # terms of the last batch at chance level, where known
        self._teachers, self._losses = list(teachers), list(losses)
        self.layers = student_layers(losses)
        self._image_features = student.image_features
        self._widths = widths(student, self.layers)
        self._dims = dims
        self.adapters = nn.ModuleList(nn.ModuleDict() for _ in teachers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for loss in losses:
                if isinstance(loss, TeacherLoss) and loss.teacher < len(teachers):
                    self._add_adapters(loss, teachers[loss.teacher].widths)
        self.max_logit_scale = 100.0  # CLIP's
        self._locked = {"image": student.model.visual, "text": student.model.text, None: None}[lock]
        self._freeze_batch_norms = freeze_batch_norms
        self._progress = 0.0
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
        """A SHA-256 over what training leaves unchanged: frozen parameters, and buffers of modules in eval mode."""
        parameters = (parameter for parameter in self.parameters() if not parameter.requires_grad)
        buffers = (buffer for module in self.modules() if not module.training for buffer in module.buffers(False))
        digest = hashlib.sha256()
        for tensor in chain(parameters, buffers):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep a trained logit scale in [1, max_logit_scale], as open_clip does after each optimizer step.

        A clamp in the forward pass would have no gradient above the bound: the scale could never fall again.
        """
        if self.student.model.logit_scale.requires_grad:
            self.student.model.logit_scale.clamp_(0, math.log(self.max_logit_scale))

    def begin_step(self, progress: float) -> None:
        """Set the fraction of the run, in 0..1, that is over: scheduled weights depend on it."""
        self._progress = progress

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on the device, with pixels as the image tower takes them: the only place that converts pixels."""
        if device.type != "cpu":
            batch = batch.to(device)
        if batch.pixels.ndim != 4 or not len(batch.pixels):  # embeddings, or texts only
            return batch
        pixels = normalized(batch.pixels, self.student.preprocessing)
        return replace(batch, pixels=pixels.contiguous(memory_format=torch.channels_last))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms(batch, self.outputs(batch))

    def outputs(self, batch: Batch) -> Outputs:
        """The student's outputs for this process's batch."""
        texts = {name: self.student.text_features_by_length(texts.tokens) for name, texts in batch.texts.items()}
        if batch.pixels.ndim == 2:  # embeddings already
            image = ImageFeatures(batch.pixels, batch.pixels[:, :, None, None])
        elif len(batch.pixels):
            image = self._image_features(batch.pixels, self.layers)
        else:
            image = no_images(self._widths, self.layers, batch.pixels.device)
        return Outputs(image, texts, {name: texts.image_index for name, texts in batch.texts.items()})

    def compile_images(self) -> None:
        """Compile the student's image tower from here on, for batches of one size."""
        self._image_features = torch.compile(self.student.image_features, dynamic=False)

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a step on the batch: those of the student, and of teachers that run in it."""
        texts = [one.tokens for one in batch.texts.values()]
        return training_flops(self.student, batch.pixels, texts) + sum(one.flops(batch) for one in self._teachers)

    def check_teachers(self) -> None:
        """Raise NotFiniteError if a teacher's last embeddings are not finite."""
        for teacher in self._teachers:
            teacher.check()

    def terms(self, batch: Batch, student: Outputs) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, given the student's outputs."""
        shares = _shares(batch)
        teachers = [_of_all_processes(teacher.features(batch), batch, shares) for teacher in self._teachers]
        student = self._with_contrast(_of_all_processes(student, batch, shares), batch, shares)
        terms: dict[str, Tensor] = {}
        self.chance = {}
        for loss in self._losses:
            weight = loss.weight_at(self._progress)
            for dims in self._dims_of(loss):
                own = student if dims is None else student.cut(dims)
                chance = loss.chance(own)
                adapters = dict(self._adapters_for(loss, dims).items()) if isinstance(loss, TeacherLoss) else {}
                with own_errors(loss.kind):
                    found = loss.terms(own, teachers, adapters)
                for name, term in found.items():
                    unused = _unused(name + _suffix(dims), terms)
                    terms[unused] = weight * term
                    if name in chance:
                        self.chance[unused] = weight * chance[name]
        return terms

    def metrics(self) -> dict[str, float]:
        """1 / temperature and the sigmoid loss's bias, for the log, where a loss trains them."""
        if not any(isinstance(loss, TaskLoss) for loss in self._losses):
            return {}
        metrics = {"logit_scale": self.student.logit_scale}
        bias = self.student.logit_bias
        return metrics if bias is None else metrics | {"logit_bias": bias}

    def _add_adapters(self, loss: TeacherLoss, teacher: Widths) -> None:
        for dims in self._dims_of(loss):
            student = self._widths if dims is None else replace(self._widths, embedding=dims)
            adapters = self._adapters_for(loss, dims)
            for name, adapter in loss.adapters(student, teacher).items():
                if name not in adapters:
                    adapters[name] = adapter

    def _dims_of(self, loss: Loss) -> tuple[int | None, ...]:
        """The numbers of the embeddings that a loss is computed on, None for all."""
        return (None, *self._dims) if loss.embeddings_only else (None,)

    def _adapters_for(self, loss: TeacherLoss, dims: int | None) -> nn.ModuleDict:
        """A loss's adapters by name: those for the first `dims` numbers of the embeddings, None for all of them."""
        by_width = self.adapters[loss.teacher]
        assert isinstance(by_width, nn.ModuleDict)
        width = "whole" if dims is None else f"{dims}d"
        if width not in by_width:
            by_width[width] = nn.ModuleDict()
        adapters = by_width[width]
        assert isinstance(adapters, nn.ModuleDict)
        return adapters

    def _with_contrast(self, student: Outputs, batch: Batch, shares: Mapping[str, _Share]) -> Outputs:
        """The student's outputs with what a contrastive loss needs."""
        model = self.student.model
        found = {name: _false_negatives(one, shares[name]) for name, one in batch.texts.items()}
        return replace(
            student,
            logit_scale=model.logit_scale.exp(),
            logit_bias=model.logit_bias,
            false_negatives={name: value for name, value in found.items() if value is not None},
        )


def shorter_dims(dims: Sequence[int], width: int) -> list[int]:
    """The numbers in `dims` that are less than an embedding's `width`. Raises DcclipError for any that is more."""
    if any(one > width for one in dims):
        raise DcclipError("dims has {}, and embeddings have {} numbers", "remove it", max(dims), width)
    return sorted({*dims} - {width})


def learns_everything(losses: Sequence[Loss], lock: Tower | None, kinds: Collection[str], dataset: PairDataset) -> bool:
    """Whether each step on these kinds of data gives every trained parameter, adapters included, a gradient."""
    if dataset.has_uncaptioned_images and "texts" not in kinds:
        return False  # a batch, or one process's share, may have no caption
    towers = {"image", "text"} - {lock}
    there = {"image": {"pairs", "images"} & set(kinds), "text": {"pairs", "texts"} & set(kinds)}
    reached = {tower for loss in losses for tower in loss.trained_towers if there[tower]}
    # A loss on one tower's embedding has an adapter for the other one's.
    whole = all(loss.trained_towers != {tower} for loss in losses for tower in ("image", "text"))
    return towers <= reached and whole and not any(loss.kind == "cross_lingual" for loss in losses)


def _suffix(dims: int | None) -> str:
    return "" if dims is None else f"_{dims}d"


def _unused(name: str, taken: Mapping[str, Tensor]) -> str:
    """The name, with a number if a loss of the same kind uses it already."""
    names = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(one for one in names if one not in taken)


@dataclass(frozen=True)
class _Share:
    """The numbers of texts of each process, in one language, and the most captions that an image of any has."""

    counts: list[int]
    most_captions: int


def _shares(batch: Batch) -> dict[str, _Share]:
    """The texts of all processes by language."""
    own = [
        (len(texts.image_index), 0 if texts.image_caption_ids is None else texts.image_caption_ids.shape[1])
        for texts in batch.texts.values()
    ]
    each = gather_numbers([number for several in own for number in several])
    columns = list(zip(*each, strict=True))
    return {
        name: _Share(list(columns[2 * number]), max(columns[2 * number + 1])) for number, name in enumerate(batch.texts)
    }


def _of_all_processes(outputs: Outputs, batch: Batch, shares: Mapping[str, _Share]) -> Outputs:
    """Outputs with the embeddings of all processes: first the images of all are counted, then their other texts."""
    all_paired = batch.num_unpaired_texts == 0  # on every process: all have equal shares
    images, processes, process = len(batch.pixels), process_count(), process_index()
    if processes == 1:
        return replace(outputs, all_paired=all_paired)
    texts, index, local = {}, {}, {}
    for name, features in outputs.texts.items():
        own, counts = outputs.image_index[name], shares[name].counts
        moved = torch.where(
            own < images, own + process * images, own - images + processes * images + process * batch.num_unpaired_texts
        )
        first = sum(counts[:process])
        index[name] = gather(moved, counts)
        local[name] = torch.zeros(sum(counts), dtype=torch.bool, device=own.device)
        local[name][first : first + len(own)] = True
        texts[name] = TextFeatures(gather(features.embedding.float(), counts), features.tokens, features.mask)
    image = replace(outputs.image, embedding=gather(outputs.image.embedding.float(), [images] * processes))
    return replace(outputs, image=image, texts=texts, image_index=index, local_mask=local, all_paired=all_paired)


def _false_negatives(texts: Texts, share: _Share) -> Tensor | None:
    """(N, N) true at [i, j] if caption j belongs to another pair and image i has it as well, over all processes."""
    if texts.caption_ids is None or texts.image_caption_ids is None:
        return None
    caption_ids, own = gather(texts.caption_ids, share.counts), texts.image_caption_ids
    # Padded with each row's first entry, which changes nothing.
    padding = own[:, :1].expand(-1, share.most_captions - own.shape[1])
    image_caption_ids = gather(torch.cat([own, padding], dim=1), share.counts)
    shared = torch.zeros(len(caption_ids), len(caption_ids), dtype=torch.bool, device=caption_ids.device)
    for column in image_caption_ids.unbind(1):
        shared |= column[:, None] == caption_ids[None]
    return shared.fill_diagonal_(False)


# ---- the backward pass


def backward(wrapped: nn.Module, batch: Batch, parts: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """Add a batch's gradients to the parameters and return its loss terms, the mean over `parts`.

    Each part is a batch of its own: a contrastive loss does not see the captions of other parts.
    """
    if parts == 1:
        terms: dict[str, Tensor] = wrapped(batch)
        accelerator.backward(sum(terms.values()))
        return {name: term.detach() for name, term in terms.items()}
    total: dict[str, Tensor] = {}
    for number, part in enumerate(batch.parts(parts)):
        with nullcontext() if number == parts - 1 else accelerator.no_sync(wrapped):
            terms = wrapped(part)
            accelerator.backward(sum(terms.values()) / parts)
        for name, term in terms.items():
            total[name] = total.get(name, torch.zeros_like(term)).detach() + term.detach() / parts
    return total


def cached_backward(task: TrainingTask, batch: Batch, parts: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """The same for losses on embeddings, with the gradient of the whole batch: gradient caching (arXiv 2101.06983).

    The student processes the parts twice: without a graph, for the embeddings from which the losses of the whole batch
    and their gradients are computed; then with one, part by part, to carry those gradients on to the weights. Random
    numbers are replayed; batch norms use the statistics of each part, so that in training mode the gradient is not
    exactly that of the whole batch.
    """
    pieces = batch.parts(parts)
    rows_of = {name: batch.rows_of_parts(name, parts) for name in batch.texts}
    states, outputs = [], []
    with torch.no_grad(), accelerator.autocast(), _untouched_statistics(task):
        for piece in pieces:
            states.append((torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None))
            outputs.append(task.outputs(piece))
    whole = _joined(batch, outputs, rows_of)
    with accelerator.autocast():
        terms = task.terms(batch, whole)
    accelerator.backward(sum(terms.values()))
    for number, (piece, (on_cpu, on_gpu)) in enumerate(zip(pieces, states, strict=True)):
        torch.set_rng_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
        with accelerator.autocast():
            part = task.outputs(piece)
            pulls = [(part.image.embedding, whole.image.embedding.grad)] if len(piece.pixels) else []
            pulls = [(one, None if grad is None else grad.chunk(parts)[number]) for one, grad in pulls]
            for name in batch.texts:
                rows = rows_of[name][number].to(batch.pixels.device, non_blocking=True)
                grad = whole.texts[name].embedding.grad
                pulls.append((part.texts[name].embedding, None if grad is None else grad[rows]))
            surrogate = sum((embedding * grad).sum() for embedding, grad in pulls if grad is not None)
        if isinstance(surrogate, Tensor):
            surrogate.backward()
    average_gradients(task.parameters())
    return {name: term.detach() for name, term in terms.items()}


def _joined(batch: Batch, parts: list[Outputs], rows_of: Mapping[str, list[Tensor]]) -> Outputs:
    """The outputs of parts as those of the whole batch; its embeddings are leaves that receive gradients.

    `rows_of` are the rows of each part's texts in the whole batch.
    """
    image = torch.cat([part.image.embedding for part in parts]).requires_grad_()
    texts = {}
    for name in batch.texts:
        features = [part.texts[name] for part in parts]
        order = torch.cat(rows_of[name]).argsort().to(image.device, non_blocking=True)
        embedding = torch.cat([one.embedding for one in features])[order].requires_grad_()
        texts[name] = TextFeatures(embedding, features[0].tokens, features[0].mask)
    image_index = {name: given.image_index for name, given in batch.texts.items()}
    return replace(parts[0], image=replace(parts[0].image, embedding=image), texts=texts, image_index=image_index)


@contextmanager
def _untouched_statistics(task: nn.Module) -> Iterator[None]:
    """Batch norms' running statistics do not change while the block runs: the second pass updates them once."""
    norms = [module for module in task.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
