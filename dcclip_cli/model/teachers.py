"""Teachers: one options class per library, which loads its towers. The union at the end is their
registry.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from dcclip_cli.core.errors import Message
from dcclip_cli.core.extensions import extension_errors, extension_options
from dcclip_cli.core.options import Options
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.model import Precision
from dcclip_cli.model.precision import choose_precision
from dcclip_cli.model.reference import STARTER, Library, ModelSource, parse, resolve_teacher

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

_NAME = "Name on the Hugging Face Hub, ms:ORG/NAME (ModelScope), or a model directory"


class TeacherOptions(Options):
    """What all teachers share. An extension also has the fields `kind: str` and `model: str`,
    which names it.
    """

    precision: Precision = Field(
        "auto",
        description="Precision of the teacher (autocast). fp16 requires a GPU. auto: bf16 where "
        "the processor supports "
        "it, fp16 on older GPUs",
    )

    library: ClassVar[Library] = "transformers"
    if TYPE_CHECKING:
        model: str

    @property
    def source(self) -> ModelSource:
        """Its model. Raises DcclipError if `model` names none."""
        return resolve_teacher(self.model, self.library)

    def load(self, device: str = "cpu", progress: Progress | None = None) -> Towers:
        """The teacher's towers, frozen, in evaluation mode. Raises DcclipError if it cannot be
        loaded.
        """
        with extension_errors(str(getattr(self, "kind", ""))):
            towers: Any = self.load_towers(progress or Silent())
        towers.requires_grad_(False).eval().to(device)
        towers.precision = choose_precision(self.precision, device, None, towers.fp16)
        towers.fingerprint += f"-{towers.precision.precision}"
        return towers

    @abstractmethod
    def load_towers(self, progress: Progress) -> Towers:
        """The towers as their library loads them, by which `fingerprint` tells what they compute."""


class LibraryTeacher(TeacherOptions):
    """A teacher whose `model` is a reference, or else a name in its library or a directory of any
    library.
    """

    def load_towers(self, progress: Progress) -> Towers:
        return self.source.load(progress)


class TransformersTeacher(LibraryTeacher):
    """AltCLIP, ChineseCLIP (QA-CLIP), CLIP, EmbeddingGemma 2, MetaCLIP2, SigLIP, or SigLIP2 of
    transformers.
    """

    kind: Literal["transformers"] = "transformers"
    model: str = Field(description=_NAME)


class AltClipTeacher(TransformersTeacher):
    """AltCLIP, the paper's teacher: ViT-L/14 and XLM-RoBERTa-large, 864 M parameters
    ("BAAI/AltCLIP").
    """

    kind: Literal["altclip"] = "altclip"  # type: ignore[assignment]
    model: str = Field("BAAI/AltCLIP", description=_NAME)


class FgClip2Teacher(TransformersTeacher):
    """FG-CLIP2 (zh and en, Apache-2.0). It needs the code in its repository; dcclip runs this only
    if you allow it.
    """

    kind: Literal["fgclip2"] = "fgclip2"  # type: ignore[assignment]
    model: str = Field("qihoo360/fg-clip2-base", description=_NAME)
    trust_remote_code: bool = Field(
        False,
        description="Run the Python files in the model's repository or directory; read them first",
    )

    @property
    def source(self) -> ModelSource:
        return replace(super().source, trust_remote_code=self.trust_remote_code)


class OpenClipTeacher(LibraryTeacher):
    """An open_clip model: `ARCH/TAG`, `hf-hub:ORG/NAME`, or a model directory, for example one
    that dcclip wrote.
    """

    kind: Literal["open_clip"] = "open_clip"
    library = "open_clip"
    model: str = Field(
        description="ARCH/TAG, hf-hub:ORG/NAME, ms:ORG/NAME, starter, or a model directory"
    )


def _as_section(teacher: Any) -> Any:
    """The section of a teacher, which may also be a reference alone, or have one as `model` in
    place of a kind.
    """
    section = {"model": teacher} if isinstance(teacher, str) else teacher
    if (
        not isinstance(section, dict)
        or "kind" in section
        or not isinstance(section.get("model"), str)
    ):
        return section
    scheme, name = parse(section["model"])
    if not scheme and name != STARTER and not Path(name).is_absolute():
        if section is teacher:
            return section  # which needs a kind
        hint = Message(
            "write hf:ORG/NAME, open_clip:ARCH/TAG, hf-hub:ORG/NAME, ms:ORG/NAME, starter or ./DIR"
        )
        raise ValueError(Message("{} is not a model reference: {}", name, hint))
    kind = "transformers" if scheme in ("hf", "ms") else "open_clip"
    return {
        **section,
        "kind": kind,
        "model": name if scheme in ("hf", "open_clip") else section["model"],
    }


_Options = AltClipTeacher | TransformersTeacher | FgClip2Teacher | OpenClipTeacher
Teacher = Annotated[
    SerializeAsAny[_Options],
    Field(discriminator="kind"),
    extension_options(TeacherOptions),
    BeforeValidator(
        _as_section, json_schema_input_type=str | Annotated[_Options, Field(discriminator="kind")]
    ),
]
