"""A model directory is read without any connection, and nothing outside it is opened, whatever its files name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# Loads model directories, with everything imported before, and prints for each what that says, and what was opened or
# connected to outside the directory and the allowed folders.
WATCHED = """
import sys, json, os
from pathlib import Path
folders, allowed = json.loads(sys.argv[1])
allowed, found = [Path(one).resolve() for one in allowed], []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        found.append(event)
    elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        if not any(path.is_relative_to(one) for one in (here, *allowed)):
            found.append(str(path))

import numpy, open_clip, timm, torch, transformers
from PIL import Image
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.reference import resolve
from dcclip_cli.inference.encoder import load_encoder
here = Path.cwd()
sys.addaudithook(watch)
for folder in folders:
    here = Path(folder).resolve()
    found.clear()
    try:
        encoder = load_encoder(resolve(folder), "cpu")
        encoder.encode_pixels(encoder.preprocess(Image.new("RGB", (40, 30)))[None])
        encoder.encode_texts(["一张猫的照片", "a photo of a cat"])
        said = "loaded"
    except DcclipError as error:
        said = f"{error.what} | {error.hint}"
    print(json.dumps([said, sorted(set(found))]))
"""


SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/etc", "/lib")


def watched(folders: list[Path], tmp_path: Path) -> list[str]:
    """What loading each directory says. Fails for connections, and for files opened outside, with an open network."""
    dirs = [tmp_path / "dcclip", tmp_path / "temporary"]
    dirs[1].mkdir()
    environment = os.environ | {"DCCLIP_CACHE": str(dirs[0]), "TMPDIR": str(dirs[1]), "HF_HOME": str(tmp_path / "hub")}
    del environment["HF_HUB_OFFLINE"]
    system = [sys.prefix, sys.base_prefix, Path(__file__).parents[2], *SYSTEM, *sys.path]
    arguments = json.dumps([list(map(str, folders)), list(map(str, (*dirs, *system)))])
    answer = subprocess.run(
        [sys.executable, "-c", WATCHED, arguments], capture_output=True, text=True, env=environment, timeout=500
    )
    assert answer.returncode == 0, answer.stderr
    results = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [changes for _, changes in results] == [[]] * len(folders)
    return [ending for ending, _ in results]


Change = tuple[str, str, str, dict[str, Any]]  # kind of the directory, file, keys in it, values


def edited(hub_teachers: Path, copy: Path, change: Change) -> Path:
    """A copy of a directory with a change."""
    kind, name, keys, values = change
    shutil.copytree(hub_teachers / kind, copy)
    content = json.loads((copy / name).read_text()) if (copy / name).exists() else {}
    inner = content
    for key in filter(None, keys.split(".")):
        inner = inner[key]
    inner.update(values)
    (copy / name).write_text(json.dumps(content))
    return copy


OPEN_CLIP = "open_clip_config.json"
VISION = "model_cfg.vision_cfg"
TEXT = "model_cfg.text_cfg"
TOKENIZER = "tokenizer_config.json"
MAP = "auto_map"
FILES = {"vocab_file": "/nowhere/a.txt", "tokenizer_file": "/nowhere/b.json", "special_tokens_map_file": "/nowhere/c"}
IGNORED: list[Change] = [  # they name other places, and are loaded as if they did not
    ("openclip-xlmr", OPEN_CLIP, TEXT, {"hf_model_name": "nobody/xlm-roberta"}),
    ("openclip-xlmr", OPEN_CLIP, TEXT, {"hf_tokenizer_name": "nobody/tokenizer"}),
    ("openclip-xlmr", "config.json", "", {"_name_or_path": "nobody/model"}),
    ("altclip", "config.json", "", {"_name_or_path": "nobody/model", MAP: {"AutoModel": "nobody/code--model.Model"}}),
    ("altclip", "config.json", "vision_config", {"backbone": "resnet50", "use_pretrained_backbone": True}),
    ("metaclip2", TOKENIZER, "", {"name_or_path": "nobody/model", **FILES}),
    ("metaclip2", TOKENIZER, "", {MAP: {"AutoTokenizer": ["nobody/code--tokenizer.Tokenizer", None]}}),
    ("siglip2", "preprocessor_config.json", "", {MAP: {"AutoImageProcessor": "nobody/code--images.Images"}}),
    ("chineseclip", "generation_config.json", "", {"_name_or_path": "nobody/model"}),
]


NETWORK = f"{VISION}.timm_model_name: "
CODE = "is not allowed: it could run code or read other files"
DUAL = "vision-text-dual-encoder"
TIMM = {"model_type": "timm_wrapper"}
ELSEWHERE = "refers to a hub or another directory"
OF_OPEN_CLIP: list[tuple[str, dict[str, Any], str]] = [
    (VISION, {"timm_model_name": "hf-hub:nobody/network"}, f"{NETWORK}hf-hub:nobody/network {ELSEWHERE}"),
    (VISION, {"timm_model_name": "local-dir:/elsewhere"}, f"{NETWORK}local-dir:/elsewhere {ELSEWHERE}"),
    (TEXT, {"tokenizer_kwargs": {"trust_remote_code": True}}, f"tokenizer_kwargs: trust_remote_code {CODE}"),
    (TEXT, {"hf_tokenizer_name": None, "tokenizer_kwargs": {"bpe_path": "/nowhere"}}, f"kwargs: bpe_path {CODE}"),
]
OF_TRANSFORMERS: list[tuple[str, dict[str, Any], str]] = [
    ("", TIMM, "is a model of type timm_wrapper instead of an image-text dual encoder"),
    ("", {"model_type": DUAL, "vision_config": TIMM | {"architecture": "hf-hub:no/net"}}, f"hf-hub:no/net {ELSEWHERE}"),
    (
        "",
        {"model_type": DUAL, "vision_config": TIMM | {"backbone": "microsoft/resnet-50"}},
        "config.json: vision_config.backbone refers to a network outside the directory",
    ),
    ("", {"attn_implementation": "nobody/kernels"}, "config.json: attn_implementation is not supported"),
    ("vision_config", {"_attn_implementation": "nobody/kernels"}, "config.json: _attn_implementation is not supported"),
]
REFUSED: list[tuple[Change, str]] = [
    *((("openclip-xlmr", OPEN_CLIP, where, values), ending) for where, values, ending in OF_OPEN_CLIP),
    *((("altclip", "config.json", where, values), ending) for where, values, ending in OF_TRANSFORMERS),
    (
        ("altclip", "adapter_config.json", "", {"base_model_name_or_path": "nobody/model"}),
        "is an adapter for another model (adapter_config.json)",
    ),
]


def test_directories_are_loaded_from_themselves_alone_and_what_leads_out_is_refused_before_it_is_read(
    hub_teachers: Path, model_folder: Path, tmp_path: Path
) -> None:
    kinds = [hub_teachers / kind for kind in ("altclip", "chineseclip", "siglip2", "metaclip2", "openclip-xlmr")]
    folders = [Path(shutil.copytree(kind, tmp_path / "模型" / kind.name)) for kind in (*kinds, model_folder)]
    for number, change in enumerate((*IGNORED, *(change for change, _ in REFUSED))):
        folders.append(edited(hub_teachers, tmp_path / "changed" / str(number), change))
    sentences = ["loaded"] * (len(kinds) + 1 + len(IGNORED)) + [ending for _, ending in REFUSED]
    for kind, name in (("altclip", "config.json"), ("chineseclip", "vocab.txt"), ("openclip-xlmr", "tokenizer.json")):
        folders.append(Path(shutil.copytree(hub_teachers / kind, tmp_path / "linked" / kind)))
        (folders[-1] / name).rename(tmp_path / name)
        (folders[-1] / name).symlink_to(tmp_path / name)
        sentences.append(f"{folders[-1] / name} is a link to {tmp_path / name}, which is outside the model directory")
    folders.append(Path(shutil.copytree(hub_teachers / "metaclip2", tmp_path / "shards")))
    (folders[-1] / "model.safetensors").rename(folders[-1] / "model-1.safetensors")
    index = {"weight_map": {"logit_scale": "../../secret.safetensors"}}
    (folders[-1] / "model.safetensors.index.json").write_text(json.dumps(index))
    sentences.append("weight_map: '../../secret.safetensors' is not the name of a file in the same folder")
    folders.append(Path(shutil.copytree(hub_teachers / "openclip-xlmr", tmp_path / "without")))
    (folders[-1] / "config.json").unlink()
    sentences.append("has no config.json that gives the size of its text tower made-up/tiny-xlm-roberta")
    for actual, folder, sentence in zip(watched(folders, tmp_path), folders, sentences, strict=True):
        assert sentence in actual and (actual == "loaded" or str(folder) in actual)
