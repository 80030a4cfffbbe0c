"""Teachers: one options class per library, which loads its towers. The union at the end is their registry."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializeAsAny

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import read_json
from dcclip_cli.model import Precision
from dcclip_cli.model.hub_models import (
    GEMMA,
    IMAGE_PROCESSOR,
    TRANSFORMERS_CONFIG,
    UFORM,
    check_directory,
    checked_json,
    library_errors,
    transformers_config,
)
from dcclip_cli.model.precision import choose_precision
from dcclip_cli.model.preprocess import MAX_SIDE
from dcclip_cli.model.reference import Library, downloaded, library_of
from dcclip_cli.model.tokenizer import check_tokenizer, tokenizer_errors
from dcclip_cli.model.weights import (
    TRANSFORMERS_WEIGHTS,
    as_safetensors,
    check_fit,
    find_file,
    find_weights,
    require_file,
    weights_digest,
)
from dcclip_cli.options import Options
from dcclip_cli.own import own_errors, own_options
from dcclip_cli.progress import Progress, Silent

if TYPE_CHECKING:
    from dcclip_cli.model.others.naflex import RemoteCode
    from dcclip_cli.model.towers import Towers, TransformersTowers

TREATMENT = "2"  # part of fingerprints; another one when dcclip treats the same files in another way
_NAME = "Name on the Hugging Face Hub, ms:ORG/NAME (ModelScope), or a model directory of any library"
_CHECK = Message("check the name and the network connection, or give the path of a directory")


class TeacherOptions(Options):
    """What all teachers share. An own one also has the fields `kind: str` and `model: str`, which names it."""

    precision: Precision = Field(
        "auto", description="Precision of the teacher (bf16: autocast); auto: bf16 where the processor has it"
    )

    def load(self, device: str = "cpu", progress: Progress | None = None) -> Towers:
        """The teacher's towers, frozen, in evaluation mode. Raises DcclipError if it cannot be loaded."""
        with own_errors(str(getattr(self, "kind", ""))):
            towers: Any = self.load_towers(progress or Silent())
        towers.requires_grad_(False).eval().to(device)
        towers.precision = choose_precision(self.precision, device)
        towers.fingerprint += f"-{towers.precision.precision}"
        return towers

    @abstractmethod
    def load_towers(self, progress: Progress) -> Towers:
        """The towers as their library loads them, by which `fingerprint` tells what they compute."""


class TransformersTeacher(TeacherOptions):
    """Of transformers: AltCLIP, ChineseCLIP (QA-CLIP), CLIP, EmbeddingGemma 2, MetaCLIP2, SigLIP, SigLIP2; UForm."""

    kind: Literal["transformers"] = "transformers"
    model: str = Field(description=_NAME)

    def load_towers(self, progress: Progress) -> Towers:
        return _load(self.model, "transformers", progress)


class AltClipTeacher(TransformersTeacher):
    """AltCLIP, the paper's teacher: ViT-L/14 and XLM-RoBERTa-large, 864 M parameters ("BAAI/AltCLIP")."""

    kind: Literal["altclip"] = "altclip"  # type: ignore[assignment]
    model: str = Field("BAAI/AltCLIP", description=_NAME)


class FgClip2Teacher(TransformersTeacher):
    """FG-CLIP2 (zh and en, Apache-2.0). Its repository's own code builds it, and runs only if you allow it."""

    kind: Literal["fgclip2"] = "fgclip2"  # type: ignore[assignment]
    model: str = Field("qihoo360/fg-clip2-base", description=_NAME)
    trust_remote_code: bool = Field(
        False, description="Run the Python files in the model's repository or directory; read them first"
    )
    walk_type: Literal["short", "long"] = Field(
        "short", description="How captions are read: `short`, 64 tokens; `long`, 196, for several sentences each"
    )
    max_num_patches: int | None = Field(
        None, ge=16, le=4_096, description="Patches of an image at most; default: 128 to 1,024 by the image's size"
    )

    def load_towers(self, progress: Progress) -> Towers:
        return _load(self.model, "transformers", progress, self)


class OpenClipTeacher(TeacherOptions):
    """An open_clip model: `ARCH/TAG`, `hf-hub:ORG/NAME`, or a model directory such as dcclip writes."""

    kind: Literal["open_clip"] = "open_clip"
    model: str = Field(description="ARCH/TAG, hf-hub:ORG/NAME, ms:ORG/NAME, or a model directory of any library")

    def load_towers(self, progress: Progress) -> Towers:
        return _load(self.model, "open_clip", progress)


def _load(model: str, library: Library, progress: Progress, options: FgClip2Teacher | None = None) -> Towers:
    """A model by its hub name in a library, or from its directory, whichever library wrote it.

    `options` are for FG-CLIP2, and ignored for other models.
    """
    from dcclip_cli.model.model_dir import PROVENANCE, download_model, load_model, load_named, read_provenance

    if (local_name := downloaded(model)) != model:
        towers = _load(local_name, library, progress, options)
        towers.name = model.rpartition("/")[2]
        return towers
    folder = Path(model)
    if folder.is_dir() or folder.is_absolute():
        library = library_of(folder, library)
        if library == "open_clip":
            return load_model(folder, progress=progress)
    if library == "transformers":
        exported = (folder / PROVENANCE).exists()  # by dcclip
        with read_provenance(folder).checking() if exported else nullcontext():
            return _load_transformers(model, progress, options)
    if model.startswith("hf-hub:"):
        with library_errors(Message("model {} cannot be loaded", model), _CHECK):
            directory = download_model(model.removeprefix("hf-hub:"))
        if directory and (directory / "image.onnx").is_file():
            raise DcclipError("{} is a bundle, which is not trained from", "name the model that it was made of", model)
        if directory:
            return load_model(directory, progress=progress)
    from dcclip_cli.model.towers import module_digest

    towers = load_named(model)
    towers.fingerprint = module_digest(towers.model, TREATMENT)
    return towers


def _load_transformers(model: str, progress: Progress, options: FgClip2Teacher | None) -> Towers:
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from PIL import Image

    transformers.utils.logging.disable_progress_bar()  # of "Loading weights"
    enable_progress_bars()  # of downloads, which the line above disables too
    message = Message("teacher {} cannot be loaded", model)
    with library_errors(message, _CHECK), tokenizer_errors(f"{message}: its tokenizer"):
        checked = checked_config(model)
        if checked.model_type == UFORM:
            from dcclip_cli.model.others.uform import load_uform

            return load_uform(model, TREATMENT, progress)
        if checked.code and not (options and options.trust_remote_code):
            checked.code.refuse()
        files = find_weights(model, TRANSFORMERS_WEIGHTS)
        digest, name = weights_digest(files), Path(model).name
        files = as_safetensors(files, name, digest, progress)
        towers, parts = _build(model, checked, files, options, progress)
        side = getattr(towers.model.config.vision_config, "image_size", None)  # timm's networks have none
        shape = towers.library_preprocess(Image.new("RGB", (30, 20))).shape
        expected = shape if side is None else (3, *([side] * 2 if isinstance(side, int) else side))
        if shape != expected:
            mismatch = Message(
                "teacher {} cannot be loaded: its image processor gives {}, its image tower takes {}",
                *(model, shape, expected),
            )
            raise DcclipError(mismatch, Message("copy the {} of the model again", IMAGE_PROCESSOR))
        where = f"teacher {model} cannot be loaded: its tokenizer"
        check_tokenizer(towers.tokenize, towers.tokenizer.vocab_size, towers.vocabulary_rows, where)
    backend = getattr(towers.tokenizer, "backend_tokenizer", None)
    vocab = backend.to_str() if backend else json.dumps(towers.tokenizer.get_vocab(), sort_keys=True)
    parts = [TREATMENT, digest, *parts]
    parts += [towers.model.config.to_json_string(), towers.image_processor.to_json_string(), vocab]
    towers.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return towers


def _build(
    model: str, checked: CheckedConfig, files: Sequence[Path], options: FgClip2Teacher | None, progress: Progress
) -> tuple[TransformersTowers, list[str]]:
    """The towers of a model, and what its outputs depend on besides its files."""
    import transformers

    from dcclip_cli.model.others.naflex import FgClip2Towers, NaflexTowers
    from dcclip_cli.model.towers import TransformersTowers

    name = Path(model).name
    if checked.code:
        assert options is not None
        code, sha256 = checked.code.describe()
        progress.say(Message("running code of {}", code))
        built, walk, patches = checked.code.build(files), options.walk_type, options.max_num_patches
        return FgClip2Towers(built, *processors(model), name, patches, walk), [sha256, walk, str(patches)]
    with _saying_nothing():  # its report of missing weights is replaced by the error below
        empty = without_weights(checked.file.parent)
        check_fit(empty, files, TRANSFORMERS_CONFIG, exact=False)
        loaded, loading_info = transformers.AutoModel.from_pretrained(
            files[0].parent, config=empty.config, use_safetensors=True, dtype="float32", output_loading_info=True
        )
    if missing := sorted(loading_info["missing_keys"]):
        message = Message(
            "teacher {} cannot be loaded: its weights lack {} ({} missing in all)", name, missing[0], len(missing)
        )
        raise DcclipError(message, "copy the whole model again, or check that config.json belongs to these weights")
    parts = (loaded, *processors(model), name)
    if checked.model_type == GEMMA:
        from dcclip_cli.model.others.gemma import EmbeddingGemma2Towers

        prompts = read_json(require_file(model, "config_sentence_transformers.json"), _CHECK)["prompts"]
        return EmbeddingGemma2Towers(*parts, prompts["query"]), [prompts["query"]]
    cut = ["52 tokens"] if checked.model_type == "chinese_clip" else []
    return (NaflexTowers if checked.model_type == "siglip2" else TransformersTowers)(*parts), cut


class CheckedConfig(NamedTuple):
    """The config.json of a dual encoder; `code` is what builds it where transformers has no class for it."""

    file: Path
    model_type: str
    code: RemoteCode | None

    @property
    def can_be_blank(self) -> bool:
        """Whether transformers builds it without memory for its weights, and it then takes a picture."""
        return self.model_type not in ("siglip2", "fgclip2", GEMMA, UFORM)


def checked_config(model: str) -> CheckedConfig:
    """The config.json of a model. Raises DcclipError unless that and the image processor's are of a dual encoder."""
    if Path(model).is_dir():
        check_directory(Path(model))
    file = require_file(model, TRANSFORMERS_CONFIG)
    config = transformers_config(file, f"teacher {model}")
    kind = config["model_type"]
    if kind != UFORM and (images := find_file(model, IMAGE_PROCESSOR)):
        checked_json(images, most=MAX_SIDE)
    if kind not in (UFORM, GEMMA) and (modules := find_file(model, "modules.json")):  # of sentence-transformers
        types = re.findall(r'"type":\s*"[\w.]*?(\w+)"', modules.read_text("utf-8", errors="replace"))
        if layers := [name for name in types if name not in ("Transformer", "Pooling", "Normalize")]:
            message = Message(
                "{} has a module {} after the towers, which only sentence-transformers runs", model, layers[0]
            )
            raise DcclipError(message, "use the model directory that it was exported from, or its export to onnx")
    if kind != "fgclip2":
        return CheckedConfig(file, kind, None)
    from dcclip_cli.model.others.naflex import remote_code

    return CheckedConfig(file, kind, remote_code(model, config, file))


def processors(model: str) -> tuple[Any, Any]:
    """The image processor and the tokenizer of a model of transformers. Raises DcclipError if a package is missing."""
    import transformers

    options: dict[str, Any] = {"trust_remote_code": False}
    if Path(model).is_dir():
        options["local_files_only"] = True
    try:
        with _saying_nothing():  # of a model type that it does not know
            images = transformers.AutoImageProcessor.from_pretrained(model, backend="pil", **options)
            return images, transformers.AutoTokenizer.from_pretrained(model, **options)
    except ImportError as error:  # of sentencepiece, which SigLIP's and MetaCLIP 2's mT5 tokenizer needs
        reason = " ".join(str(error).split()).partition(" but it was not found")[0]
        raise DcclipError(
            "teacher {} cannot be loaded: {}", "pip install sentencepiece protobuf", model, reason
        ) from None


def without_weights(folder: Path) -> Any:
    """transformers' model of the config.json in a folder on the meta device, without a tower for sound."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type == GEMMA:
        config.audio_config = None
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config, trust_remote_code=False)


@contextmanager
def _saying_nothing() -> Iterator[None]:
    """No warnings of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


Teacher = Annotated[
    SerializeAsAny[AltClipTeacher | TransformersTeacher | FgClip2Teacher | OpenClipTeacher],
    Field(discriminator="kind"),
    own_options(TeacherOptions),
]
