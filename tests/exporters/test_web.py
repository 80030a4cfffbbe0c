"""The web page of a model: whole, equal to Python in tokens and numbers; the npm packages that it needs."""

import base64
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import read_json
from dcclip_cli.core.progress import Silent
from dcclip_cli.core.text import language_by_script, split
from dcclip_cli.exporters.formats.web import FILES, LIBRARIES, Package
from dcclip_cli.exporters.samples import TEXTS
from dcclip_cli.inference.model import load
from dcclip_cli.inference.onnx_encoder import OnnxEncoder
from dcclip_cli.inference.zero_shot import class_means, fill, softmax
from dcclip_cli.model.known_words import words_of
from dcclip_cli.model.tokenizer import load_tokenizer
from tests.static_site import serve

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "recipes/starter/photos").glob("*.jpg"))


def test_the_page_is_whole_small_and_refers_to_nothing_else(page_folder: Path) -> None:
    names = {file.relative_to(page_folder).as_posix() for file in page_folder.rglob("*") if file.is_file()}
    page_files = [name for name in names if re.search(r"^[^/]*\.(html|js|css)$", name)]
    used = set()
    for name in page_files:
        text = (page_folder / name).read_text("utf-8")
        assert not re.search(r"https?://(?!localhost)", text), name
        used |= set(re.findall(r'"(?:\./)?((?:libraries/)?[\w-]+\.(?:js|json|onnx|wasm|css|svg))"', text))
    assert used <= names and len(used) > 10
    assert {f"{LIBRARIES}/{name}" for files in FILES.values() for name in files.values()} <= names
    assert {f"{LIBRARIES}/{name}-onnxruntime.txt" for name in ("LICENSE", "NOTICES")} <= names
    model = {"image.onnx", "text.onnx", "tokenizer.json"}
    sizes = read_json(page_folder / "checks.json", "")["sizes"]
    for name in re.findall(r'"([^"]+)"', re.findall("LARGE = (.*)", (page_folder / "engine.js").read_text("utf-8"))[0]):
        assert sizes[name] == (page_folder / name).stat().st_size
    assert sum((page_folder / name).stat().st_size for name in names - model) < 15e6


def test_predict_reads_the_page_as_a_bundle(page_folder: Path) -> None:
    labels = ["宇航员", "猫", "coffee", "花", "rocket", "寺庙"]  # the first is a word that the starter never learnt
    predictions = load(page_folder).predict(list(PHOTOS), labels)
    assert [next(iter(prediction)) for prediction in predictions][1:] == labels[1:]


POOLS = [(0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x52F), (0x2010, 0x205E), (0x2190, 0x27BF), (0x3000, 0x30FF)]
POOLS += [(0x3400, 0x34FF), (0x4E00, 0x9FFF), (0xF900, 0xFAD9), (0xFF01, 0xFFEE), (0x1F300, 0x1F64F)]
POOLS += [(0x20000, 0x200FF)]
WRITTEN = [*TEXTS, "ＦＵＬＬ　ｗｉｄｔｈ　１２３！？（）", "猫😺dog 👩‍👩‍👧‍👦 🇨🇳", "①② ㎏ ﬁne", "café e\u0301 Å"]
WRITTEN += ["İ ẞ ΣΑΣ", "한국어", "日本語ｶﾀｶﾅ", "привет", "𠮷野家", "a\u200bb\ufeffc", "tab\tnew\nline  \u00a0\u3000"]
# Words that are tokens, and others that contain them.
WRITTEN += [
    "emu, Emus! (emu) 一张雷龙的照片 something else",
    "whale another balloon emuemu 其他人 something elsewhere é-emu_",
]
WRITTEN += ["🐶 狗", "⚽", "😀", "a 🐶 on grass", "☀️ ©2026 a dog®"]
WRITTEN += ["“quotes” ‘a’—b…", "___ -- ++ ~~ 〜～", "", " ", "</s>猫<s>", "very " * 60]


def texts() -> list[str]:
    """Chinese, English, full-width, emoji, combining and odd ones; and some at random."""
    choose = random.Random(0)
    requests = []
    for _ in range(400):
        pools = [choose.choice(POOLS) for _ in range(choose.randint(1, 12))]
        requests.append("".join(chr(choose.randint(*pool)) + choose.choice(["", "", " "]) for pool in pools))
    return WRITTEN + requests


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the page's modules")
def test_tokens_and_probabilities_are_those_of_python(page_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(page_folder, tmp_path / "page")
    (copy / "package.json").write_text('{"type": "module"}')
    rng = np.random.default_rng(0)
    image, *classes = (row / np.linalg.norm(row) for row in rng.normal(size=(4, 8)))
    templates = {"zh": ["一张{}的照片", "{}"], "en": ["a photo of a {}"]}
    labels = "猫, dog，汽车、 \n猫,, 𠮷"
    inputs = {"texts": texts(), "labels": labels, "image": image.tolist(), "templates": templates}
    inputs["classes"] = [row.tolist() for row in classes]
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("tokens_of.mjs")), str(copy)],
        input=json.dumps(inputs), capture_output=True, text=True, check=True,
    )  # fmt: skip
    outputs = json.loads(done.stdout)
    encoder = OnnxEncoder(page_folder, "cpu")
    tokenizer = load_tokenizer(page_folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(read_json(page_folder / "dcclip.json", "")["context_length"])
    for text, ids in zip(texts(), outputs["ids"], strict=True):
        assert ids == tokenizer.encode(" ".join(text.split())).ids, repr(text)
    assert outputs["together"] == encoder.tokenize(texts()[:20]).tolist()
    for text, words in zip(texts(), outputs["words"], strict=True):
        assert words == words_of(text, encoder.tokenize), repr(text)
    names = split(labels.replace("\n", ","))
    assert outputs["labels"] == names == ["猫", "dog", "汽车", "𠮷"]
    assert outputs["texts"] == [fill(templates[language_by_script(name)], name) for name in names]
    assert outputs["anything"][1] == ["a photo of a something"] and outputs["anything"][0][1] == "东西"
    rows = np.array(classes, np.float32)
    np.testing.assert_allclose(outputs["mean"], class_means(rows, [3])[0], atol=1e-6)
    cosines = np.array(classes) @ image
    scale = encoder.logit_scale
    np.testing.assert_allclose(outputs["softmax"], softmax(image[None], np.array(classes), scale)[0], atol=1e-6)
    np.testing.assert_allclose(outputs["sigmoid"], 1 / (1 + np.exp(3 - scale * cosines)), atol=1e-6)
    against = 1 / (1 + np.exp(scale * (cosines[::-1] - cosines)))
    against[1] = 1 - max(against[0], against[2])  # it is compared with itself, and so means the rest
    np.testing.assert_allclose(outputs["against"], against, atol=1e-6)


# ---- packages of an npm registry: pinned, bounded, kept in the cache folder


def tarball(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


BODY = tarball(readme=b"hello", other=b"not asked for")
REGISTRY = "npm_config_registry"
PACKAGE = Package("@org/small", "1.2.3", len(BODY), base64.b64encode(hashlib.sha512(BODY).digest()).decode())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a registry on this machine sends; the cache folder is empty."""
    file = tmp_path / "registry/@org/small/-/small-1.2.3.tgz"
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path / "registry") as site:
        monkeypatch.setenv(REGISTRY, site.address)
        yield file


@pytest.mark.parametrize("body", [tarball(readme=b"other"), BODY[:-1], BODY + b"more" * 10_000_000, None])
def test_what_is_not_the_archive_is_refused_and_not_kept_and_the_hint_says_what_to_copy(
    served: Path, tmp_path: Path, body: bytes | None
) -> None:
    served.write_bytes(body) if body else served.unlink()
    with pytest.raises(DcclipError, match=r"small-1.2.3.tgz cannot be downloaded: ") as caught:
        PACKAGE.fetch(Silent())
    assert not (tmp_path / "cache").exists()
    assert caught.value.hint == (
        "on a machine with network access, run npm pack @org/small@1.2.3; then copy org-small-1.2.3.tgz to "
        f"{tmp_path / 'cache/npm'}"
    )
