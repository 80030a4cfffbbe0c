"""What can a small text tower take over from a large one: rows of its vocabulary, and whole layers?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from dcclip_cli.model.towers import Towers


def init_text_tower(text: Any, tokenizer: Tokenizer, teacher: Towers, layers: bool) -> None:
    """Start open_clip's text tower `text` from the teacher's: the rows of its pieces, and with `layers` its layers too.

    Rows of another width are projected to the tower's by PCA and scaled to the spread that it starts with; rows of
    pieces that the teacher lacks stay random. Layers are taken evenly, the first included (TinyCLIP, arXiv 2309.12314),
    with the positions, last norm and projection that fit. Raises DcclipError where the teacher has nothing that fits.
    """
    rows, pieces = teacher.token_embedding()
    known = [(number, pieces[piece]) for piece, number in tokenizer.get_vocab().items() if piece in pieces]
    if not known:
        raise DcclipError(
            "the teacher has none of the student's pieces", "write vocabulary: {from: teacher, size: ...}"
        )
    own, theirs = (torch.tensor(numbers) for numbers in zip(*sorted(known), strict=True))
    table = text.token_embedding.weight
    with torch.no_grad():
        taken = rows[theirs].float()
        if rows.shape[1] != table.shape[1]:
            taken = principal_components(taken, table.shape[1])
            taken *= table.std() / taken.std()
        table[own] = taken.to(table)
        if layers:
            _take_layers(text, teacher)


def principal_components(rows: Tensor, width: int) -> Tensor:
    """(V, width) centred rows (V, W) along the `width` directions in which they differ most: their distances stay as
    near to the old ones as that many numbers allow. Raises DcclipError where there are fewer directions than that.
    """
    if width > min(rows.shape):
        raise DcclipError(
            f"{rows.shape[0]} rows of width {rows.shape[1]} can't be widened to {width}",
            "make student.text.width smaller, or leave student.text.inherit out",
        )
    centred = (rows - rows.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)  # the largest come last
    chosen = directions[:, -width:].flip(1)
    # A direction's sign is arbitrary: make its largest entry positive, so that every machine gives the same rows.
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return (centred @ (chosen * signs)).float()


def _take_layers(text: Any, teacher: Towers) -> None:
    source = teacher.text_tower()
    blocks: Any = getattr(getattr(source, "transformer", None), "resblocks", [])
    own = text.transformer.resblocks
    fits = len(blocks) >= len(own) and _shapes(blocks[0]) == _shapes(own[0])
    if not fits:
        raise DcclipError(
            f"no layers of {teacher.name} fit the student's text tower",
            "layers wants an open_clip teacher of the same width, with as many layers; write inherit: embeddings",
        )
    # The first, which read the rows: half of a two-layer tower says nothing without it (docs/lab-notes.md).
    for number, block in enumerate(own):
        block.load_state_dict(blocks[number * len(blocks) // len(own)].state_dict())
    text.ln_final.load_state_dict(source.ln_final.state_dict())
    places = min(len(text.positional_embedding), len(source.positional_embedding))
    text.positional_embedding[:places] = source.positional_embedding[:places]
    mine, theirs = text.text_projection, source.text_projection
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.shape == theirs.shape:
        mine.copy_(theirs)


def _shapes(block: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in block.state_dict().items()}
