"""Tokenizers of bundles: the model's own tokens, in Python and in JavaScript, or a refusal."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data import prompts
from dcclip_cli.exporters.formats.web import _TOKENIZERS
from dcclip_cli.exporters.source import check_alike, for_all_clients
from dcclip_cli.model.tokenizer import load_tokenizer, train_tokenizer, trim_tokenizer
from tests.exporters.test_web import texts
from tests.teachers import gemma_tokenizer

STARTER = Path(__file__).parents[2] / "recipes/starter"
STARTER_MODEL = Path(__file__).parents[2] / "dcclip_cli/starter/model"
JAVASCRIPT = """
const { Tokenizer } = await import("./tokenizers.mjs");
const { readFileSync } = await import("node:fs");
const [definition, texts] = JSON.parse(readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(definition, {});
console.log(JSON.stringify(texts.map((text) => tokenizer.encode(text).ids)));
"""


def names_and_words() -> list[str]:
    """Each of them once: names, alternates and folders of classes, templates, and words as the starter learnt them."""
    words = [text for file in sorted(prompts.FOLDER.glob("*.json")) for text in _texts(json.loads(file.read_text()))]
    for file in sorted([*STARTER.glob("*.tsv"), *STARTER.glob("*.txt")]):
        words += file.read_text("utf-8").replace("\t", ";").replace("\n", ";").split(";")
    return list(dict.fromkeys(filter(str.strip, words)))


def _texts(content: Any) -> Iterator[str]:
    """All texts in JSON, keys included."""
    if isinstance(content, str):
        yield content
    else:
        for inner in [*content, *content.values()] if isinstance(content, dict) else content:
            yield from _texts(inner)


def ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def ids_in_javascript(tokenizer: Tokenizer, texts: Sequence[str], folder: Path) -> list[list[int]]:
    for name, content in _TOKENIZERS.read({"dist/tokenizers.min.mjs": "tokenizers.mjs"}).items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", JAVASCRIPT], cwd=folder,
        input=json.dumps([json.loads(tokenizer.to_str()), texts]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    ids_by_text: list[list[int]] = json.loads(done.stdout)
    return ids_by_text


def unigram(pre_tokenizer: pre_tokenizers.PreTokenizer, **words: bool) -> Tokenizer:
    """A vocabulary of ASCII letters, and words that are tokens, each with whether it stands alone."""
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *letters], unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_tokens([AddedToken(word, single_word=alone, normalized=True) for word, alone in words.items()])
    return tokenizer


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run tokenizers.js")
@pytest.mark.parametrize(
    "kind", ["starter", "student of the starter", "trained", "words in capitals", "phrases", "gemma"]
)
def test_all_names_and_words_have_the_models_tokens_in_python_and_javascript(
    kind: str, packages: Path, tmp_path: Path
) -> None:
    words = (STARTER / "words.txt").read_text("utf-8").splitlines()
    gemma_tokenizer(tmp_path, 700)
    own_tokens = {
        "gemma": lambda: load_tokenizer(tmp_path),
        "starter": lambda: load_tokenizer(STARTER_MODEL),
        "student of the starter": lambda: trim_tokenizer(STARTER_MODEL, [*words[::3], "emu", "an emu"], 2500, True),
        "trained": lambda: train_tokenizer(words[::3], 3000),
        "words in capitals": lambda: unigram(pre_tokenizers.WhitespaceSplit(), Ale=True, House=True, OA=False),
        "phrases": lambda: unigram(pre_tokenizers.BertPreTokenizer(), **{"pale ale": True, "pale": True}),
    }[kind]()
    alike = for_all_clients(own_tokens)
    check_alike(alike, "it")
    queries = [*names_and_words(), *texts(), "pale ale", "a pale whale", "Ale-house", "pale ales", "ale pale"]
    queries += [text.replace(" ", "  ") + "©" for text in queries[::50]]
    expected = ids(own_tokens, queries)
    for token_ids in (ids(alike, queries), ids_in_javascript(alike, queries, tmp_path)):
        assert [text for text, now, then in zip(queries, token_ids, expected, strict=True) if now != then] == []
    assert for_all_clients(alike).to_str() == alike.to_str()


def test_the_shipped_bundle_has_the_tokenizer_of_its_model() -> None:
    folder = Path(__file__).parents[2] / "dcclip_cli/starter"
    expected = json.loads(for_all_clients(load_tokenizer(STARTER_MODEL)).to_str())
    assert json.loads((folder / "tokenizer.json").read_text("utf-8")) == expected


@pytest.mark.parametrize(
    ("pre_tokenizer", "part"),
    [
        (pre_tokenizers.Digits(), "Digits"),
        (pre_tokenizers.Whitespace(), "Whitespace"),
        (pre_tokenizers.Punctuation("removed"), "Punctuation"),
        (pre_tokenizers.Split(Regex("-"), "merged_with_next"), "MergedWithNext"),
        (pre_tokenizers.UnicodeScripts(), "UnicodeScripts"),
    ],
)
def test_a_tokenizer_that_javascript_reads_otherwise_is_refused(
    pre_tokenizer: pre_tokenizers.PreTokenizer, part: str
) -> None:
    with pytest.raises(DcclipError, match=f"the tokenizer of mine has {part}, which behaves differently in JavaScript"):
        check_alike(for_all_clients(unigram(pre_tokenizer)), "mine")
