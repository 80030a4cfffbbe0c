"""Tell foreign words from unclear images in a trained starter, and give neutral words a token of their own.

    python recipes/starter/separate.py runs/starter/align/model

The text tower sends words that it never learnt along space.UNKNOWN, to where unclear images are, and so they score high
on these. The column of the text projection that makes UNKNOWN becomes, GAIN times as large, that of space.FOREIGN, a
dimension in which no image has any part: a word that is half foreign scores lower for it on every image.

Words such as "something" and 其他, which shall fit unclear images, take the same way through the tower as foreign ones.
So each becomes a token, all with one embedding, which is optimised with the tower locked, and UNKNOWN has a column by
which ridge regression tells their features from all others.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pyarrow.parquet as pq
import space
import torch
import word_tokens
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dcclip_cli.model.model_dir import WEIGHTS, load_model
from dcclip_cli.model.towers import Towers

HERE = Path(__file__).parent
GAIN = 5.0
NEUTRAL = (
    "something", "something else", "anything", "nothing", "other", "others", "none of these", "unknown",
    "东西", "别的东西", "任何东西", "什么都没有", "其他", "其它", "以上都不是", "未知",
)  # fmt: skip
CAPTIONS = 2000  # at most, of each language, of known rows and of unknown ones
ROUNDS, STEPS, RATE = 2, 80, 0.02  # of the optimisation, with the regression after each round
LENGTH = 160.0  # of neutral words along UNKNOWN, before they are normalised: known ones are 83 long along their place
SHARE, RIDGE = 0.005, 1e-4  # of neutral words in the regression, against one half each for known and for unknown ones


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    towers = load_model(arguments.model)
    text = towers.model.text.requires_grad_(False)
    moments = second_moments(towers)
    projection = text.text_projection.data.clone()
    projection[:, space.FOREIGN] = GAIN * projection[:, space.UNKNOWN]
    # Where features vary least, but for the direction that layer normalisation leaves none of.
    projection[:, space.UNKNOWN] = 10 * torch.linalg.eigh(moments)[1][:, 1].float()
    embedding = text.token_embedding.weight.data[towers.tokenize([NEUTRAL[0]]).ids[0, 1]].clone()
    for _ in range(ROUNDS):
        text.text_projection.data = projection
        embedding = optimised(towers, embedding)
        projection[:, space.UNKNOWN] = column(moments, neutral_feature(towers, embedding))
    weights = load_file(arguments.model / WEIGHTS)
    weights["text.text_projection"] = projection.to(weights["text.text_projection"].dtype)
    save_file(weights, arguments.model / WEIGHTS)
    word_tokens.append(arguments.model, dict.fromkeys(NEUTRAL, True), embedding.expand(len(NEUTRAL), -1))


def features(towers: Towers, texts: list[str]) -> Tensor:
    """(N, 320) what the text projection sees."""
    text = towers.model.text
    kept, width = text.text_projection.data, len(text.text_projection)
    text.text_projection.data = torch.eye(width)
    with torch.no_grad():
        batches = [texts[start : start + 100] for start in range(0, len(texts), 100)]
        found = torch.cat([towers.text_features(towers.tokenize(batch)).embedding for batch in batches])
    text.text_projection.data = kept
    return found.double()


def second_moments(towers: Towers) -> Tensor:
    """(320, 320) of features of known and of unknown training captions, half each."""
    table = pq.read_table(HERE / "prototypes.parquet").to_pydict()
    unknown = [bool(place[space.UNKNOWN] > 0.99) for place in table["embedding"]]
    total = torch.zeros(1)
    for language in ("en", "zh"):
        for wanted in (False, True):
            rows = [row for row, kind in zip(table[language], unknown, strict=True) if kind is wanted]
            captions = [caption for row in rows for caption in row]
            captions = random.Random(0).sample(captions, min(CAPTIONS, len(captions)))
            found = features(towers, sorted(captions, key=len))
            total = total + found.T @ found / len(found) / 4
    return total


def neutral_text(towers: Towers, embedding: word_tokens.WithMore) -> Tensor:
    """(1, 512) the text tower's output for a neutral word."""
    return word_tokens.encoded(
        towers, embedding, word_tokens.ids_around(towers, ["{}"], [towers.model.text.vocab_size])
    )


def optimised(towers: Towers, start: Tensor) -> Tensor:
    """(320,) the token embedding whose text is nearest to UNKNOWN."""
    module = word_tokens.with_more(towers, start[None])
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = 1 - cosine_similarity(neutral_text(towers, module), space.unknown()[None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"cosine of neutral words with images that are unknown: {1 - loss.item():.3f}")
    return module.weight.data[0]


def neutral_feature(towers: Towers, embedding: Tensor) -> Tensor:
    text = towers.model.text
    kept = text.text_projection.data
    text.text_projection.data = torch.eye(len(kept))
    with torch.no_grad():
        found = neutral_text(towers, word_tokens.with_more(towers, embedding[None]))[0].double()
    text.text_projection.data = kept
    return found


def column(moments: Tensor, neutral: Tensor) -> Tensor:
    """(320,) what gives LENGTH for the neutral feature and as little as can be for others, by ridge regression."""
    total = moments + SHARE * neutral[:, None] * neutral
    total += RIDGE * total.trace() / len(total) * torch.eye(len(total))
    return torch.linalg.solve(total, SHARE * LENGTH * neutral).float()


if __name__ == "__main__":
    main()
