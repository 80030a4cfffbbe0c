"""Students without weights, on torch's meta device: their shapes, errors and operations at no
cost.
"""

import warnings
from typing import Any

import timm
import torch
from open_clip.model import CustomTextCLIP

from dcclip_cli.core.errors import Message
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.inherit import check_image_source, teacher_image_config
from dcclip_cli.model.students import (
    ImageTower,
    StudentOptions,
    init_image_tower,
    model_config,
    preprocessing_of,
)
from dcclip_cli.model.teachers import TeacherOptions
from dcclip_cli.model.tokenizer import BEGIN_ID, END_ID, UNKNOWN_ID
from dcclip_cli.model.towers import OpenClipTowers, TextLayout, Tokens, Towers


def blank_student(
    options: StudentOptions, embed_dim: int, layout: TextLayout | None = None
) -> OpenClipTowers:
    """A student without weights, its vocabulary of the largest size. Raises DcclipError for an
    impossible network.

    `layout` is that of the first teacher's text tower.
    """
    image = options.image
    assert isinstance(image, ImageTower)
    config = model_config(
        options, options.embed_dim or embed_dim, options.text.vocabulary.size, layout=layout
    )
    model = _built(config, Message("{} cannot be built", image.timm), _other_size(image.timm))
    towers = OpenClipTowers(model, _one_word, preprocessing_of(image), image.timm, "")
    check_size(towers, image.timm, image.size)
    return towers


def blank_text_student(
    options: StudentOptions, teacher: TeacherOptions, towers: Towers
) -> OpenClipTowers | None:
    """A student with the image tower of a `teacher`, whose `towers` are blank; None where its
    files are not here.
    """
    image_source = check_image_source(towers)
    source = teacher.source
    if source.folder() is None:
        return None
    images = teacher_image_config(source, image_source)
    tokens = options.text.vocabulary.size
    config = model_config(options, images["embed_dim"], tokens, images, towers.text_layout)
    model = _built(
        config, Message("the image tower of {} cannot be built", towers.name), COPY_AGAIN
    )
    return OpenClipTowers(model, _one_word, image_source.match_preprocessing(), towers.name, "")


def _built(config: dict[str, Any], problem: str, hint: str) -> Any:
    with library_errors(problem, hint), torch.device("meta"):
        return CustomTextCLIP(
            **{key: value for key, value in config.items() if key != "custom_text"}
        )


def check_image_weights(towers: OpenClipTowers, image: ImageTower) -> None:
    """Raise DcclipError unless the file `image.weights` fits; timm's own weights are not looked
    for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are not copied to the meta device
        if image.weights != "timm":
            init_image_tower(towers.model, image)


def check_size(towers: OpenClipTowers, network: str, size: int) -> None:
    """Raise DcclipError unless the image tower takes square images of this size."""
    device = next(towers.parameters()).device
    towers.eval()
    message = Message("{0} does not support images of {1} x {1} pixels", network, size)
    with library_errors(message, _other_size(network)), torch.no_grad():
        towers.image_features(torch.zeros(1, 3, size, size, device=device))


def _other_size(network: str) -> str:
    config = timm.get_pretrained_cfg(network, allow_unregistered=True)
    size = config.input_size[-1] if config else 224
    return Message(
        "set student.image.size: {}, the size of the network, or a multiple of its patch size", size
    )


def _one_word(texts: list[str]) -> Tokens:
    ids = torch.tensor([[BEGIN_ID, UNKNOWN_ID, END_ID]] * len(texts))
    return Tokens(ids, torch.ones_like(ids))
