"""Initialisation of a student's text tower from the teacher's: rows of its vocabulary, and whole layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcclip_cli.errors import DcclipError, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dcclip_cli.model.towers import Towers


def init_text_tower(text: Any, tokenizer: Tokenizer, teacher: Towers, layers: bool) -> None:
    """Copy the rows of shared tokens, and with `layers` whole layers, from the teacher to open_clip's tower `text`.

    Rows of another width are projected to the student's by PCA and scaled to the standard deviation of its random
    initialisation; rows of tokens that the teacher lacks stay random. Layers are taken at even distances, the first
    included (TinyCLIP, arXiv 2309.12314), with the positions, last norm and projection that fit. Raises DcclipError if
    the teacher has nothing that fits.
    """
    rows, vocab = teacher.token_embedding()
    shared = [(index, vocab[token]) for token, index in tokenizer.get_vocab().items() if token in vocab]
    if not shared:
        raise DcclipError(
            "the teacher has none of the student's tokens", "write vocabulary: {{from: teacher, size: ...}}"
        )
    student_ids, teacher_ids = (torch.tensor(indices) for indices in zip(*sorted(shared), strict=True))
    table = text.token_embedding.weight
    with torch.no_grad():
        taken = rows[teacher_ids].float()
        if rows.shape[1] != table.shape[1]:
            taken = principal_components(taken, table.shape[1])
            taken *= table.std() / taken.std()
        table[student_ids] = taken.to(table)
        if layers:
            _copy_layers(text, teacher)


def principal_components(rows: Tensor, width: int) -> Tensor:
    """(V, width) centred rows (V, W) along the `width` directions of largest variance.

    This preserves their distances as well as that many numbers can. Raises DcclipError if there are fewer directions.
    """
    if width > min(rows.shape):
        raise _too_wide(rows, width)
    centred = (rows - rows.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # the largest come last
    chosen = directions[:, -width:].flip(1)
    # A direction's sign is arbitrary: make its largest entry positive, so that every machine gives the same rows.
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return (centred @ (chosen * signs)).float()


def check_inherits(student: Any, teacher: Towers, layers: bool) -> None:
    """Raise DcclipError unless open_clip's text tower `student` can take rows, and with `layers` layers, by shape."""
    rows, _ = teacher.token_embedding()
    width = student.token_embedding.weight.shape[1]
    if width > rows.shape[1]:
        raise _too_wide(rows, width)
    if layers:
        _fitting_blocks(student, teacher)


def _too_wide(rows: Tensor, width: int) -> DcclipError:
    return DcclipError(
        "{0} embeddings of width {1} have {2} principal components, fewer than student.text.width {3}",
        "set student.text.width to at most {2}, or omit student.text.inherit",
        rows.shape[0],
        rows.shape[1],
        min(rows.shape),
        width,
    )


def _text_source(teacher: Towers) -> Any:
    return getattr(teacher.model, "text", teacher.model)  # open_clip's CLIP class has the layers in the model itself


def _fitting_blocks(student: Any, teacher: Towers) -> Any:
    """The teacher's layers. Raises DcclipError if they are too few or have other shapes than the student's."""
    blocks: Any = getattr(getattr(_text_source(teacher), "transformer", None), "resblocks", [])
    own = student.transformer.resblocks
    if len(blocks) < len(own) or shapes(blocks[0]) != shapes(own[0]):
        hint = Message(
            "inherit: layers needs an open_clip teacher of the same width, with as many layers; "
            "write inherit: embeddings"
        )
        raise DcclipError("no layers of {} fit the student's text tower", hint, teacher.name)
    return blocks


def _copy_layers(student: Any, teacher: Towers) -> None:
    source, blocks, own = _text_source(teacher), _fitting_blocks(student, teacher), student.transformer.resblocks
    # The first layer reads the rows: half of a two-layer tower is useless without it (docs/lab-notes.md).
    for index, block in enumerate(own):
        block.load_state_dict(blocks[index * len(blocks) // len(own)].state_dict())
    student.ln_final.load_state_dict(source.ln_final.state_dict())
    positions = min(len(student.positional_embedding), len(source.positional_embedding))
    student.positional_embedding[:positions] = source.positional_embedding[:positions]
    new, old = student.text_projection, source.text_projection
    if isinstance(new, Tensor) and isinstance(old, Tensor) and new.shape == old.shape:
        new.copy_(old)


def shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's parameters and buffers, by name."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
