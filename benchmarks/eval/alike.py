"""Classes that a tokenizer cannot tell apart, before and after alternates replace their names.

    pip download --no-deps cn-clip  # its cn_clip/clip/vocab.txt is the vocabulary of Chinese-CLIP
    python benchmarks/eval/alike.py vocab.txt

The tokenizer is transformers' for BERT with that vocabulary; Chinese-CLIP reads 52 tokens.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from transformers import BertTokenizer

from dcclip_cli.data import prompts
from dcclip_cli.eval.class_texts import class_texts
from dcclip_cli.predict.encoder import Encoder

LENGTH = 52


class Tokenizer:
    def __init__(self, vocabulary: str) -> None:
        self.bert: Any = BertTokenizer(vocabulary)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        ids = self.bert(list(texts), padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
        return np.asarray(ids)


def main(vocabulary: str) -> None:
    tokenizer = Tokenizer(vocabulary)
    print("| set | language | classes of the same tokens | after alternates | replaced | left |")
    print("|---|---|--:|--:|---|---|")
    for file in sorted(prompts.FOLDER.glob("*.json")):
        if file.stem == "compact":
            continue
        found = prompts.read(file.stem)
        for language, names in found.names.items():
            templates = found.templates[language]
            rows = tokenizer.tokenize([templates[0].replace("{}", name) for name in names])
            before = Counter(row.tobytes() for row in rows)
            alike = sum(count for count in before.values() if count > 1)
            if not alike:
                continue
            asked = class_texts(cast(Encoder, tokenizer), names, found.alternates[language], templates)
            left = [" = ".join(names[one] for one in group) for group in asked.alike]
            replaced = ", ".join(f"{name}: {other}" for name, other in asked.replaced.items())
            after = sum(map(len, asked.alike))
            print(f"| {file.stem} | {language} | {alike} | {after} | {replaced} | {', '.join(left)} |")


if __name__ == "__main__":
    main(sys.argv[1])
