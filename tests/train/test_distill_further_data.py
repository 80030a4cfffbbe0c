"""Stage 1 on more than pairs: pictures without captions, lines without pictures, phrases made of these."""

from pathlib import Path

import pytest

from dcclip_cli.data.pair import Pair
from dcclip_cli.model.tokenizer import load_tokenizer
from tests.train.jobs import Job, elsewhere, refused, run, sha256, weights


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    """Sixteen lines of parallel text, none of them a caption of the drawn pairs."""
    colours, things = (
        zip("白黄紫粉", ("white", "yellow", "purple", "pink"), strict=True),
        ("star 星星", "boat 小船", "tree 大树", "fish 小鱼"),
    )
    texts = [(f"{zh}色的{thing.split()[1]}", f"{en} {thing.split()[0]}") for zh, en in colours for thing in things]
    (tmp_path / "lines.tsv").write_text("".join(f"{zh}\t{en}\n" for zh, en in texts), "utf-8")
    return tmp_path / "lines.tsv"


@pytest.mark.parametrize("cache", [True, False])
def test_parallel_text_alone_teaches_the_text_tower_and_leaves_the_image_tower_as_it_was(
    distilling: Job, lines_file: Path, cache: bool
) -> None:
    losses = [{"kind": "embedding"}, {"kind": "cross_lingual"}, {"kind": "token_features"}]
    distilling |= {"data": {"texts": str(lines_file)}}
    distilling["options"] = {"teacher_cache": cache, "losses": losses, "steps": 3, "optimizer": {"weight_decay": 0}}
    before = weights(run(elsewhere(distilling, "started", {"steps": 1, "warmup_steps": 10**6})))
    result = run(distilling)
    after = weights(result)
    changed = {name.partition(".")[0] for name, value in after.items() if (value - before[name]).abs().max() > 1e-5}
    assert changed == {"text"}
    assert set(result.metrics) >= {"embedding", "cross_lingual", "token_features"}


def test_pairs_images_and_texts_together_train_their_towers(
    distilling: Job, lines_file: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for pair in pairs[:9]:
        (tmp_path / "pictures" / f"{pair.key}.png").write_bytes(pair.image)
    distilling["data"] = {"train": distilling["data"], "images": str(tmp_path / "pictures"), "texts": str(lines_file)}
    losses = [{"kind": kind} for kind in ("feature_map", "embedding", "interactive", "affinity", "cross_lingual")]
    distilling["options"] |= {"losses": losses, "images_per_step": 4, "texts_per_step": 8, "steps": 3}
    result = run(distilling)
    assert set(result.metrics) >= {loss["kind"] for loss in losses}
    tokenizer = load_tokenizer(result.model)
    assert "<unk>" not in tokenizer.encode("紫色的小鱼 purple fish").tokens  # the lines' texts are in the vocabulary


def test_none_of_the_lines_a_step_is_a_run_without_them(distilling: Job, lines_file: Path) -> None:
    distilling["options"] |= {"steps": 2}
    alone = sha256(run(distilling))
    distilling["data"] = {"train": distilling["data"], "texts": str(lines_file)}
    none, some = (sha256(run(elsewhere(distilling, f"{lines}", {"texts_per_step": lines}))) for lines in (0, 8))
    assert none == alone != some


def test_phrases_made_of_the_texts_are_trained_on_too(distilling: Job, lines_file: Path) -> None:
    distilling |= {"data": {"texts": str(lines_file)}}
    distilling["options"] = {"losses": [{"kind": "embedding"}], "steps": 3, "batch_size": 8}
    phrased = {"texts": str(lines_file), "phrases": 100}
    without, some, again = (
        sha256(run(elsewhere(distilling, name, data=data)))
        for name, data in (("without", distilling["data"]), ("some", phrased), ("again", phrased))
    )
    assert without != some == again


@pytest.mark.parametrize(
    ("loss", "options", "what", "hint"),
    [
        ("embedding", {"texts_per_step": 0}, "a step has no pairs, no images and no texts", "texts_per_step: 0"),
        ("interactive", {}, "the data has nothing for loss interactive", "set data.train, or remove the loss"),
    ],
)
def test_a_step_of_nothing_and_a_loss_that_finds_nothing_to_learn_from_are_refused(
    distilling: Job, lines_file: Path, loss: str, options: Job, what: str, hint: str
) -> None:
    distilling |= {"data": {"texts": str(lines_file)}}
    with refused(what, hint):
        run(elsewhere(distilling, "other", {"losses": [{"kind": loss}], **options}))
