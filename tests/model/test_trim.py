"""Models trimmed to Chinese and English: the same embeddings with fewer tokens."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.teachers import OpenClipTeacher, TransformersTeacher
from dcclip_cli.model.tokenizer import keep_tokens
from dcclip_cli.model.trim import Language, TrimResult, ids_to_keep, trim, trimmable
from tests.model.test_preprocess import noise

BOTH: tuple[Language, ...] = ("zh", "en")
ZH: tuple[Language, ...] = ("zh",)
EN: tuple[Language, ...] = ("en",)
KINDS = ["altclip", "metaclip2", "openclip-xlmr"]
TEXTS = ["一张狗的照片", "a photo of a cat", "两只 dog，在中国！", "Two horses (1995)", "１２ 国 🐕 \u4dbf", "", "ü é"]
OTHERS = ["a photo of ж", "ひ 的照片"]  # pieces of all these vocabularies
FOREIGN = re.compile("[\u0400-\u04ff\u0600-\u06ff\u3040-\u30ff\uac00-\ud7af]")


def load(folder: Path) -> Any:
    kind = OpenClipTeacher if (folder / "open_clip_config.json").exists() else TransformersTeacher
    return kind(model=str(folder), precision="fp32").load()


def embed(towers: Any, texts: list[str]) -> torch.Tensor:
    embedding: torch.Tensor = towers.text_features(towers.tokenize(texts)).embedding
    return embedding


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def vocab_of(towers: Any) -> dict[str, int]:
    return dict(towers.vocab if hasattr(towers, "vocab") else towers.tokenizer.get_vocab())


def scrambled(count: int) -> list[str]:
    """Texts of random characters of both languages, that no vocabulary was made for."""
    chosen = random.Random(0)
    characters = "abcdegnorstuABTP   的一是在不了有和人这中大，。！1-é"
    return ["".join(chosen.choices(characters, k=chosen.randrange(1, 25))) for _ in range(count)]


@pytest.fixture(scope="module")
def trimmed(hub_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrimResult]:
    out = tmp_path_factory.mktemp("trimmed")
    sample = [*TEXTS, *OTHERS, *scrambled(80)]
    return {kind: trim(hub_teachers / kind, out / kind, BOTH, sample) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_other_scripts_are_gone_and_embeddings_in_both_languages_are_those_of_before(
    hub_teachers: Path, trimmed: dict[str, TrimResult], kind: str
) -> None:
    result = trimmed[kind]
    before = load(hub_teachers / kind)
    after = load(result.folder)
    same(embed(after, TEXTS), embed(before, TEXTS))
    pixels = torch.from_numpy(before.preprocess(noise(40, 50)))[None]
    same(after.image_features(pixels).embedding, before.image_features(pixels).embedding)
    assert result.difference <= 1e-6 and result.compared >= 60
    assert after.vocabulary_rows == result.pieces < result.pieces_before
    assert result.parameters == after.parameters_count()
    assert result.parameters_before - result.parameters == 32 * (result.pieces_before - result.pieces)
    old = vocab_of(before)
    new = vocab_of(after)
    assert any(map(FOREIGN.search, old)) and not any(map(FOREIGN.search, new))
    assert set(result.split) == set(OTHERS)
    assert [new[piece] for piece in sorted(new, key=old.__getitem__)] == list(range(len(new)))


@pytest.mark.parametrize("kind", ["altclip", "metaclip2"])
def test_transformers_itself_loads_it_and_gives_the_same_embeddings(
    hub_teachers: Path, trimmed: dict[str, TrimResult], kind: str
) -> None:
    from transformers import AutoModel, AutoTokenizer

    problems = []
    for folder in (hub_teachers / kind, trimmed[kind].folder):
        model: Any = AutoModel.from_pretrained(folder).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            problems.append(model.get_text_features(input_ids=tokens["input_ids"]).pooler_output)
        config = model.config.text_config
        assert config.vocab_size == len(tokenizer)
    same(*problems)


def test_open_clip_itself_loads_it_with_a_text_tower_of_transformers(
    hub_teachers: Path, trimmed: dict[str, TrimResult]
) -> None:
    import open_clip

    folder = trimmed["openclip-xlmr"].folder
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), embed(load(hub_teachers / "openclip-xlmr"), TEXTS))
    # Moved, it is still read by dcclip.
    moved = shutil.copytree(folder, folder.parent / "moved")
    same(embed(load(moved), TEXTS), embed(load(folder), TEXTS))


def test_with_texts_only_their_pieces_are_kept_and_no_text_in_the_two_scripts_becomes_unknown(
    hub_teachers: Path, trimmed: dict[str, TrimResult], tmp_path: Path
) -> None:
    mine = ["一张 cat 的照片", "two horses", *scrambled(40)]
    result = trim(hub_teachers / "altclip", tmp_path / "small", BOTH, TEXTS, mine)
    assert result.pieces < trimmed["altclip"].pieces and result.split == () and result.difference <= 1e-6
    before = load(hub_teachers / "altclip")
    after = load(result.folder)
    same(embed(after, mine), embed(before, mine))
    other_texts = ["red dog 中国照片 猫不在"]
    unknown = before.tokenizer.unk_token
    tokens = [towers.tokenizer.convert_ids_to_tokens(towers.tokenize(other_texts).ids[0]) for towers in (before, after)]
    assert unknown not in tokens[0] + tokens[1]


def test_weights_in_several_files_become_one_in_their_precision_and_other_files_are_copied(
    hub_teachers: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(hub_teachers / "altclip", tmp_path / "shards")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"model-{part + 1:05}-of-00002.safetensors": names[part::2] for part in range(2)}
    for shard, part in shards.items():
        save_file({name: weights[name].half() for name in part}, folder / shard, {"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: shard for shard, part in shards.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "LICENSE").write_text("许可证", "utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# 模型\n", "utf-8")
    result = trim(folder, tmp_path / "out", BOTH, TEXTS)
    same(embed(load(result.folder), TEXTS), embed(load(folder), TEXTS))
    assert {value.dtype for value in load_file(result.folder / "model.safetensors").values()} == {torch.float16}
    assert (result.folder / "LICENSE").read_text("utf-8") == "许可证"
    card = (result.folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: mit\n---\n# 模型\n") and f"has {result.pieces:,} of 400 tokens" in card


def test_a_directory_of_dcclip_stays_one(model_folder: Path, tmp_path: Path) -> None:
    result = trim(model_folder, tmp_path / "student", EN, ["red circle", "红色的圆"], ["red circle"])
    record = json.loads((result.folder / "dcclip.json").read_text("utf-8"))
    assert record["trimmed_from"] == "model" and record["parameters"] == result.parameters
    same(embed(load(result.folder), ["red circle"]), embed(load(model_folder), ["red circle"]))


def words_kept(words: list[str], languages: tuple[Language, ...]) -> list[str]:
    """Which of the words stay, of two characters or more each."""
    state = {"model": {"unk_id": 0, "vocab": [["<unk>", 0.0], *([word, -1.0] for word in words)]}, "added_tokens": []}
    return [words[number - 1] for number in sorted(ids_to_keep(state, languages) - {0})]


@pytest.mark.parametrize(
    ("pieces", "of_zh", "of_en"),
    [
        ("小狗 照片 ㎡， ▁ＡＢ", True, False),
        ("dog ▁d0g!", False, True),
        ("21 ... 2€ 🐕🐕", True, True),
        ("ねこ кот 고양 ﾈﾈ café", False, False),
    ],
)
def test_a_language_is_spelled_in_its_script_with_digits_punctuation_and_emoji(
    pieces: str, of_zh: bool, of_en: bool
) -> None:
    for chosen, spelled in ((ZH, of_zh), (EN, of_en), (BOTH, of_zh or of_en)):
        assert words_kept(pieces.split(), chosen) == (pieces.split() if spelled else [])
    assert words_kept(["T恤"], BOTH) and not words_kept(["T恤"], ZH)


def test_a_model_that_cannot_be_trimmed_is_refused_and_nothing_is_written(hub_teachers: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DcclipError, match="full exists and is not empty"):
        trim(hub_teachers / "altclip", tmp_path / "full", BOTH, TEXTS)
    with pytest.raises(DcclipError, match="is an export") as raised:
        trimmable(resolve("starter"))
    assert "for example: dcclip trim hf:BAAI/AltCLIP" in raised.value.hint
    for kind, reason in (("chineseclip", "has no tokenizer.json"), ("siglip2", "is a BPE tokenizer")):
        with pytest.raises(DcclipError, match=reason):
            trim(hub_teachers / kind, tmp_path / kind, BOTH, TEXTS)
    with pytest.raises(DcclipError, match="open_clip:ViT-B-32/openai is not a repository on the hub"):
        trimmable(resolve("open_clip:ViT-B-32/openai"))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_copy_that_splits_a_text_otherwise_is_not_kept(
    hub_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_token(state: dict[str, Any], ids: list[int]) -> Tokenizer:
        text = keep_tokens(state, ids).to_str()
        return Tokenizer.from_str(text.replace('"▁photo"', '"▁phono"'))

    monkeypatch.setattr("dcclip_cli.model.trim.keep_tokens", without_a_token)
    with pytest.raises(DcclipError, match="splits 'a photo of a cat' differently"):
        trim(hub_teachers / "altclip", tmp_path / "out", BOTH, TEXTS)
    assert list(tmp_path.iterdir()) == []
