"""What many tests share: a drawn bilingual data set, tiny random teachers in the hub's own format, a tiny student."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# Before any library is imported: no test may go to the network, other thread counts sum in another order, and messages
# are in English whatever the locale.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DCCLIP_LANG": "en"}

import hypothesis
import pytest
import typer.rich_utils  # noqa: F401  before a test in Chinese, whose words it would keep
from filelock import FileLock
from PIL import Image, ImageDraw

from dcclip_cli import curation
from dcclip_cli.core import processes
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import LANGUAGES, Pair
from tests.images import encode
from tests.teachers import KINDS, make, seeded, tower

# Whoever starts the tests may ignore these, as nohup does, and what they start would too. Windows has no SIGHUP.
for _name, _handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    if (_number := getattr(signal, _name, None)) and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# The same examples in each run, however busy the machine is.
hypothesis.settings.register_profile("dcclip", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dcclip")

COLOURS = {"red": "红", "green": "绿", "blue": "蓝", "black": "黑", "orange": "橙"}
SHAPES = {
    "circle": "圆",
    "square": "方块",
    "triangle": "三角形",
    "cross": "十字",
    "ring": "圆环",
    "bar": "横条",
    "post": "竖条",
    "moon": "月亮",
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def downloaded_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with Python files that no process of dcclip may execute."""
    folder = tmp_path / "下载"
    folder.mkdir()
    for name in ("_tools", "dcclip_cli", "numpy", "selectors"):
        (folder / f"{name}.py").write_text(f"open({str(folder / f'{name} was executed')!r}, 'w')", "utf-8")
    monkeypatch.chdir(folder)
    yield folder
    assert not list(folder.glob("* was executed"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Session fixtures, and processes that they start, leave the user's cache folder as it is, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _auto_means_fp32() -> Iterator[None]:
    """The same numbers on every processor."""
    from dcclip_cli.model import precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "torch_has_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _imported_once() -> Iterator[None]:
    """The process that workers are forked from imports what any test needs, whichever test starts it."""
    preload = processes.preload
    models = ("open_clip", "transformers.models.altclip.modeling_altclip")
    imports = ("dcclip_cli.train.estimate", *models, *curation.IMPORTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "preload", lambda _: preload(imports))
        yield


@pytest.fixture(autouse=True, scope="session")
def _runs_end_with_costs_of_forked_processes() -> Iterator[None]:
    """A run measures its models in a process that imports 5 s of libraries; tests of `dcclip bench` have such ones."""
    from dcclip_cli.inference import bench
    from dcclip_cli.recipe import run

    def forked(*arguments: Any, **options: Any) -> list[bench.Bench]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "process_pool", lambda number, fresh: processes.process_pool(number))
            return bench.bench(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "bench", forked)
        yield


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No model or embeddings; the language of a Chinese test, which dcclip tells gettext, ends with it."""
    monkeypatch.setenv("LANGUAGE", "")
    monkeypatch.delenv("DCCLIP_MODEL", raising=False)
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


Build = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function that returns the folder of a name, which the first process that asks fills for all workers.

    Tests only read it.
    """
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    root.mkdir(exist_ok=True)

    def build(name: str, fill: Callable[[Path], object]) -> Path:
        folder = root / name
        complete = root / f"{name} is complete"
        with FileLock(root / f"{name}.lock"):
            if not complete.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                complete.touch()
        return folder

    return build


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; skips the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        started = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield started
        started.close()


def opened(browser: Any, address: str, locale: str = "zh-CN", width: int = 1280) -> Any:
    """The page, in a context of its own; what goes wrong in its scripts fails the test."""
    context = browser.new_context(locale=locale, viewport={"width": width, "height": 800})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(address)
    return page


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    """40 pictures, 48 px, eight shapes in five colours, three Chinese and three English captions each."""
    return [
        Pair(
            key=f"{colour}-{shape}",
            image=encode(_draw(shape, colour)),
            zh=(f"{zh_colour}色的{zh_shape}", f"一张{zh_shape}的图片", zh_shape),
            en=(f"{colour} {shape}", f"a picture of a {shape}", shape),
            meta={"source": "drawn"},
        )
        for shape, zh_shape in SHAPES.items()
        for colour, zh_colour in COLOURS.items()
    ]


@pytest.fixture(scope="session")
def captions(pairs: list[Pair]) -> list[str]:
    return [caption for pair in pairs for language in LANGUAGES for caption in pair.captions(language)]


@pytest.fixture(scope="session")
def pairs_file(pairs: list[Pair], build_once: Build) -> Path:
    """The drawn pairs as a Parquet file."""
    return build_once("pairs", lambda folder: write_parquet(folder / "train.parquet", pairs)) / "train.parquet"


def _draw(shape: str, colour: str) -> Image.Image:
    image = Image.new("RGB", (48, 48), "white")
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "moon"):
        draw.ellipse((8, 8, 40, 40), fill=colour)
    if shape == "moon":
        draw.ellipse((18, 4, 44, 36), fill="white")
    if shape == "triangle":
        draw.polygon([(24, 6), (42, 40), (6, 40)], fill=colour)
    if shape == "cross":
        draw.line((8, 8, 40, 40), fill=colour, width=6)
        draw.line((40, 8, 8, 40), fill=colour, width=6)
    if shape == "ring":
        draw.ellipse((8, 8, 40, 40), outline=colour, width=6)
    if box := {"square": (10, 10, 38, 38), "bar": (4, 20, 44, 28), "post": (20, 4, 28, 44)}.get(shape):
        draw.rectangle(box, fill=colour)
    return image


@pytest.fixture
def pictures(pairs: list[Pair], tmp_path: Path) -> list[Path]:
    """Five of the drawn pictures as files."""
    folder = tmp_path / "图片 pictures"
    folder.mkdir()
    for pair in pairs[::8]:
        (folder / f"{pair.key}.png").write_bytes(pair.image)
    return sorted(folder.iterdir())


# A Unigram vocabulary as XLM-RoBERTa has it: words begin with ▁, specials first, <mask> last.
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz" + "".join(dict.fromkeys("".join(COLOURS.values()) + "".join(SHAPES.values())))
WORDS = ["▁", *(f"▁{word}" for word in (*COLOURS, *SHAPES, "picture", "of", "a")), "色的", "一张", "的图片", "▁一张"]
UNUSED = ["▁dog", "▁cat", "▁bicycle", "小猫", "自行车", "猫", "狗", "hound"]


small = partial(tower, intermediate_size=64)


@pytest.fixture(scope="session")
def altclip_folder(build_once: Build) -> Path:
    """A tiny random AltCLIP, 16-wide shared space, 32 px in 8 px patches, as `save_pretrained` writes it."""
    return build_once("altclip", _save_altclip)


def _save_altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizer

    vocabulary = [(piece, 0.0) for piece in SPECIALS]
    vocabulary += [(piece, -3.0 - index / 100) for index, piece in enumerate(WORDS + UNUSED)]
    vocabulary += [(piece, -8.0) for piece in dict.fromkeys(CHARACTERS) if piece not in UNUSED]
    vocabulary += [("<mask>", 0.0)]
    config = AltCLIPConfig(
        text_config=small(vocab_size=len(vocabulary))
        | {"max_position_embeddings": 40, "type_vocab_size": 1, "project_dim": 16}
        | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        vision_config=small(image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu"),
        projection_dim=16,
    )
    seeded(AltCLIPModel, config).save_pretrained(folder)
    XLMRobertaTokenizer(vocab=vocabulary, model_max_length=38).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)


@pytest.fixture(scope="session")
def chinese_clip_folder(build_once: Build) -> Path:
    """A tiny random ChineseCLIP with a BERT tokenizer that knows Chinese characters and English letters."""
    return build_once("chinese-clip", _save_chinese_clip)


def _save_chinese_clip(folder: Path) -> None:
    from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*COLOURS, *SHAPES, "picture", "of"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    pieces += list(dict.fromkeys("".join(COLOURS.values()) + "".join(SHAPES.values()) + "色的一张图片猫"))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    config = ChineseCLIPConfig(
        text_config=small(vocab_size=len(pieces), max_position_embeddings=40, type_vocab_size=2),
        vision_config=small(image_size=32, patch_size=8),
        projection_dim=16,
    )
    seeded(ChineseCLIPModel, config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=38).save_pretrained(folder)
    ChineseCLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)


@pytest.fixture(scope="session")
def hub_teachers(build_once: Build) -> Path:
    """Tiny random teachers in the layouts of their hub repositories, a directory each if transformers has the model."""
    import transformers

    kinds = KINDS.keys() - (set() if hasattr(transformers, "EmbeddingGemma2Model") else {"embeddinggemma2"})
    return build_once("hub-teachers", lambda folder: [make(kind, folder / kind) for kind in sorted(kinds)])


@pytest.fixture(scope="session")
def siglip_folder(hub_teachers: Path) -> Path:
    """A tiny random SigLIP2, whose text tower was made for padded input of one length, in lower case."""
    return hub_teachers / "siglip2"


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which transformers copies a model's code before it runs; not the user's."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "modules"


STUDENT: dict[str, Any] = {
    "image": {"timm": "test_efficientnet.r160_in1k", "size": 64},
    "text": {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 300}},
    "embed_dim": 16,
}


@pytest.fixture
def student_section() -> dict[str, Any]:
    """The recipe's student section for a student of about 0.1 M parameters, free to be changed."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in STUDENT.items()}


@pytest.fixture(scope="session")
def whole_recipe(altclip_folder: Path, pairs_file: Path) -> dict[str, Any]:
    """A recipe of three steps of distill, two of align, eval and export."""
    stage = {"batch_size": 8, "warmup_steps": 1, "workers": 0, "threads": 1}
    return {
        "name": "一生",
        "teacher": {"kind": "altclip", "model": str(altclip_folder)},
        "student": STUDENT,
        "data": {"train": str(pairs_file)},
        "distill": {**stage, "steps": 3, "augmentations": 1},
        "align": {**stage, "steps": 2},
        "eval": {"datasets": [str(pairs_file)]},
        "export": {},
    }


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings in place of images: eight words of each language, a translation in the same place, 16 wide."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    zh = [[word, f"一张{word}的照片"] for word in SHAPES.values()]
    en = [[word, f"a photo of a {word}"] for word in SHAPES]
    table = pa.table({"key": list(SHAPES), "embedding": np.eye(8, 16).tolist(), "zh": zh, "en": en})
    file = tmp_path_factory.mktemp("points") / "points.parquet"
    pq.write_table(table, file)
    return file


@pytest.fixture(scope="session")
def model_folder(pairs_file: Path, build_once: Build) -> Path:
    """The model directory of a tiny student, aligned from scratch for two steps."""
    from dcclip_cli.core.run_dir import RunDir
    from dcclip_cli.data.options import DataOptions
    from dcclip_cli.model.students import StudentOptions
    from dcclip_cli.train.options import AlignOptions
    from dcclip_cli.train.stage import Stage
    from dcclip_cli.train.trainer import train_stage

    def train(folder: Path) -> None:
        data = DataOptions(train=str(pairs_file))
        student = StudentOptions.model_validate(STUDENT)
        options = AlignOptions(start="scratch", steps=2, batch_size=8, warmup_steps=0, workers=0)
        train_stage(Stage(options, RunDir(folder / "tiny"), data, student_options=student))

    return build_once("runs", train) / "tiny/align/model"


@pytest.fixture(autouse=True, scope="session")
def _traced_once(build_once: Build) -> Iterator[None]:
    """Exports of a model copy the graphs that the first of them traced, which takes 10 s."""
    from dcclip_cli.exporters import graphs

    write_onnx = graphs.write_onnx

    def write(source: Any, folder: Path) -> None:
        if any(folder.iterdir()):  # it has graphs of another model
            return write_onnx(source, folder)
        name = f"graphs-{source.encoder.fingerprint}-{source.dims}"
        shutil.copytree(build_once(name, lambda traced: write_onnx(source, traced)), folder, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "write_onnx", write)
        yield


@pytest.fixture(scope="session")
def bundle_folder(model_folder: Path, build_once: Build) -> Path:
    """The tiny student as an fp32 bundle."""
    from dcclip_cli.exporters.export import ExportOptions, export
    from dcclip_cli.model.reference import resolve

    model = resolve(str(model_folder))
    options = ExportOptions()
    return build_once("bundles", lambda folder: export(options=options, model=model, out=folder / "tiny")) / "tiny"
