"""A text tower in the space of an image tower that stays as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcclip_cli.inference.encoder import load_encoder
from dcclip_cli.inference.index import open_index
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.reference import resolve
from tests.train.jobs import Job, run, weights

TEXT = {"layers": 1, "width": 32, "context_length": 24, "vocabulary": {"from": "data", "size": 300}}
LOSSES = [{"kind": "embedding", "languages": ["en"]}, {"kind": "cross_lingual"}]


@pytest.fixture
def learning(model_folder: Path, tmp_path: Path) -> Job:
    """A job that trains a new text tower for the tiny student on parallel text, as if that knew English only."""
    lines = [
        f'{{"zh": "{zh}色的{thing}", "en": "{en} {name}"}}\n'
        for zh, en in (("白", "white"), ("黄", "yellow"), ("紫", "purple"), ("粉", "pink"))
        for thing, name in (("星星", "star"), ("小船", "boat"), ("大树", "tree"), ("小鱼", "fish"))
    ]
    (tmp_path / "平行.jsonl").write_text("".join(lines), "utf-8")
    return {
        "stage": "distill",
        "root": str(tmp_path / "runs" / "text-tower"),
        "data": {"texts": str(tmp_path / "平行.jsonl")},
        "teacher": {"kind": "open_clip", "model": str(model_folder)},
        "student": {"image": "teacher", "text": TEXT},
        "options": {"losses": LOSSES, "steps": 3, "augmentations": 1},
    }


def test_a_new_text_tower_searches_the_index_that_the_teacher_made(
    learning: Job, model_folder: Path, pictures: list[Path]
) -> None:
    made = run(learning).model
    donor, ours = (load_encoder(resolve(str(folder)), "cpu") for folder in (model_folder, made))
    assert ours.fingerprint != donor.fingerprint and ours.logit_scale == donor.logit_scale
    first, second = (open_index(model, pictures[0].parent) for model in (donor, ours))
    assert (first.embedded, second.embedded) == (5, 0)
    assert open_index(ours, pictures[0].parent, fresh=True).embedded == 5
    rows = [model.encode_pixels(np.zeros((2, 3, 64, 64), np.float32)) for model in (donor, ours)]
    np.testing.assert_array_equal(rows[0], rows[1])
    before, after = weights(model_folder), weights(made)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("visual."))
    assert not np.allclose(donor.encode_texts(["白色的大树"]), ours.encode_texts(["白色的大树"]), atol=0.01)


def test_chinese_learns_the_teachers_english_and_nothing_of_its_chinese(learning: Job) -> None:
    learning["options"] |= {"steps": 60, "batch_size": 16, "optimizer": {"lr": 3e-3}}
    ours = load_model(run(learning).model)
    donor = load_model(Path(learning["teacher"]["model"]))

    def embed(towers: Any, text: str) -> torch.Tensor:
        with torch.inference_mode():
            found = towers.text_features(towers.tokenize([text])).embedding[0]
        return torch.nn.functional.normalize(found, dim=0)

    english, chinese = embed(donor, "purple fish"), embed(donor, "紫色的小鱼")
    learnt = embed(ours, "紫色的小鱼")
    assert learnt @ english > max(0.9, float(learnt @ chinese))
    assert embed(ours, "purple fish") @ english > 0.9
