"""Retrieval of images by Chinese texts and of texts by images, as tasks of mteb."""

from __future__ import annotations

from typing import Any

from datasets import Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

from dcclip_cli.eval.dataset import Captions, DataSet
from dcclip_mteb.data import DcclipData, image_rows, text_rows


class RetrievalZh(DcclipData, AbsTaskRetrieval):
    """Captions: `hit_rate_at_k` is what papers on CLIP call recall at k, that any right answer is
    among the first k.

    mteb's `recall_at_k` is the fraction of the right answers that is: the same only where there is
    one.
    """

    def load_data(self, num_proc: int | None = None, **more: Any) -> None:
        if self.data_loaded:
            return
        found = self.open()
        self.dataset = {
            "default": {found.split: split_data(found, self.metadata.category == "t2i")}
        }
        self.data_loaded = True

    def task_specific_scores(
        self, scores: dict[str, dict[str, float]], *_: Any, **__: Any
    ) -> dict[str, float]:
        """Hit rates and MRR at 1, 5 and 10 from mteb's ranking, which mteb itself rounds to five
        decimals.
        """
        rows = list(scores.values())
        return {
            f"hit_rate_at_{k}": sum(row[f"success_{k}"] for row in rows) / len(rows)
            for k in self.k_values
        }


def split_data(found: DataSet, by_text: bool) -> RetrievalSplitData:
    """Queries, corpus and right answers; images without a text are only searched among.

    Numbers count down, so that mteb, which takes the last name first, decides equal scores as
    dcclip does: first come.
    """
    [truth] = found.truth.values()
    assert isinstance(truth, Captions)
    texts = [f"text-{len(truth.texts) - number:09}" for number in range(len(truth.texts))]
    images = [f"image-{len(found.images) - number:09}" for number in range(len(found.images))]
    right: dict[str, dict[str, int]] = {}
    for text, numbers in zip(texts, truth.images, strict=True):
        for image in numbers:
            query, answer = (text, images[image]) if by_text else (images[image], text)
            right.setdefault(query, {})[answer] = 1
    queried = (
        range(len(images))
        if by_text
        else [number for number, name in enumerate(images) if name in right]
    )
    names = [images[number] for number in queried]
    described, written = (
        image_rows(found.images, queried, id=(names, Value("string"))),
        text_rows(texts, truth.texts),
    )
    queries, corpus = (written, described) if by_text else (described, written)
    return RetrievalSplitData(corpus=corpus, queries=queries, relevant_docs=right, top_ranked=None)
