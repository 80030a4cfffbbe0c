"""The backward pass of a batch: at once, with gradient accumulation, or with gradient caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dcclip_cli.data.collator import Batch
from dcclip_cli.model.towers import TextFeatures
from dcclip_cli.train.distributed import average_gradients
from dcclip_cli.train.losses.base import Outputs
from dcclip_cli.train.task import TrainingTask

Terms = dict[str, Tensor]


def backward(wrapped: nn.Module, batch: Batch, parts: int, accelerator: Accelerator) -> Terms:
    """Add a batch's gradients to the parameters and return its loss terms, the mean over `parts`.

    Each part is a batch of its own: a contrastive loss does not see the captions of other parts.
    """
    if parts == 1:
        terms: Terms = wrapped(batch)
        accelerator.backward(sum(terms.values()))
        return {name: term.detach() for name, term in terms.items()}
    total: Terms = {}
    for number, part in enumerate(batch.parts(parts)):
        with nullcontext() if number == parts - 1 else accelerator.no_sync(wrapped):
            terms = wrapped(part)
            accelerator.backward(sum(terms.values()) / parts)
        for name, term in terms.items():
            total[name] = total.get(name, torch.zeros_like(term)).detach() + term.detach() / parts
    return total


def cached_backward(task: TrainingTask, batch: Batch, parts: int, accelerator: Accelerator) -> Terms:
    """The same for losses on embeddings, with the gradient of the whole batch: gradient caching (arXiv 2101.06983).

    The student processes the parts twice: without a graph, for the embeddings from which the losses of the whole batch
    and their gradients are computed; then with one, part by part, to carry those gradients on to the weights. Random
    numbers are replayed; batch norms use the statistics of each part, so that in training mode the gradient is not
    exactly that of the whole batch.
    """
    pieces = batch.parts(parts)
    states, outputs = [], []
    with torch.no_grad(), accelerator.autocast(), _untouched_statistics(task):
        for piece in pieces:
            states.append((torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None))
            outputs.append(task.outputs(piece))
    whole = _joined(batch, outputs, parts)
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
                rows = batch.rows_of_parts(name, parts)[number]
                grad = whole.texts[name].embedding.grad
                pulls.append((part.texts[name].embedding, None if grad is None else grad[rows]))
            surrogate = sum((embedding * grad).sum() for embedding, grad in pulls if grad is not None)
        if isinstance(surrogate, Tensor):
            surrogate.backward()
    average_gradients(task.parameters())
    return {name: term.detach() for name, term in terms.items()}


def _joined(batch: Batch, parts: list[Outputs], count: int) -> Outputs:
    """The outputs of parts as those of the whole batch; its embeddings are leaves that receive gradients."""
    image = torch.cat([part.image.embedding for part in parts]).requires_grad_()
    texts = {}
    for name in batch.texts:
        features = [part.texts[name] for part in parts]
        order = torch.cat(batch.rows_of_parts(name, count))
        embedding = torch.cat([one.embedding for one in features])[order.argsort()].requires_grad_()
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
