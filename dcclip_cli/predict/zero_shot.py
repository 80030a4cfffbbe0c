"""Zero-shot classification: class embeddings from names, and probabilities of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.encoder import PLAIN_PROMPTS, Encoder

_HAN = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003134f"))


def language_of(text: str) -> str:
    """`zh` for a text with a Chinese character in it, else `en`."""
    return "zh" if any(low <= char <= high for char in text for low, high in _HAN) else "en"


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The templates with `{}` replaced by a name."""
    return [template.replace("{}", name) for template in templates]


def text_embeddings(
    model: Encoder, texts: Sequence[str], batch_size: int = 256, advance: Callable[[int], object] = lambda _: None
) -> np.ndarray:
    """(N, D), length 1, in the order of the texts; `advance` hears how many more are done."""
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding in each batch
    encoded = []
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        encoded.append(model.encode_texts([texts[index] for index in batch]))
        advance(len(batch))
    found = np.concatenate(encoded)
    embeddings = np.empty_like(found)
    embeddings[by_length] = found
    return embeddings


def class_embeddings(model: Encoder, texts: Sequence[Sequence[str]], batch_size: int = 256) -> np.ndarray:
    """(C, D), length 1: the mean of the embeddings of each class's texts, as CLIP's zero-shot classifier has it."""
    embeddings = text_embeddings(model, [text for several in texts for text in several], batch_size)
    return class_means(embeddings, [len(several) for several in texts])


def class_means(embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(C, D), length 1: the mean of each run of rows, of which class number c has `counts[c]`."""
    sums = np.zeros((len(counts), embeddings.shape[1]), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(counts)), counts), embeddings)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


# What a label is held against where several may be right and the model has no threshold of its own.
_ANYTHING = {"en": "something", "zh": "东西"}


class Labels:
    """Labels as vectors. Each is put into the templates of its own script, and the embeddings of these are averaged.

    `templates` are used instead of the model's own; an empty list means the bare labels. Those with a Chinese
    character are for Chinese labels, the others for the rest; if only one kind is given it is used for all.
    Labels compete with each other (softmax), or with `several` each is judged by itself (sigmoid).
    Raises DcclipError where there are no labels, and for a template without {}.
    """

    def __init__(
        self, model: Encoder, labels: Sequence[str], templates: Sequence[str] | None = None, several: bool = False
    ) -> None:
        if not labels or not all(label.strip() for label in labels):
            raise DcclipError("no labels given, or an empty one", "say what to look for, for example: --labels 猫,dog")
        prompts = _prompts(model, templates)
        self.names = tuple(labels)
        self._scale, self._bias = model.logit_scale, model.logit_bias
        self._vectors = class_embeddings(model, [fill(prompts[language_of(label)], label) for label in labels])
        self._several, self._anything = several, None
        if several and self._bias is None:
            neutral = [_ANYTHING[language_of(label)] for label in labels]
            texts = [fill(prompts[language_of(word)], word) for word in neutral]
            self._anything = class_embeddings(model, texts)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(B, C) for image embeddings (B, D) of length 1.

        With `several`, a model trained with a sigmoid uses its own bias. One trained with a softmax has none: there
        a label's probability is that of the label against "something", so 0.5 means no better than that.
        """
        if not self._several:
            return softmax(images, self._vectors, self._scale)
        logits = self._scale * (images @ self._vectors.T).astype(np.float64)
        if self._anything is None:
            return _sigmoid(logits + float(self._bias or 0))
        return _sigmoid(logits - self._scale * (images @ self._anything.T))


def softmax(images: np.ndarray, classes: np.ndarray, logit_scale: float) -> np.ndarray:
    """(B, C) softmax over the classes of scaled cosines between image (B, D) and class (C, D) embeddings of length 1.

    A sigmoid model's bias is the same for every class, so it drops out of the softmax.
    """
    logits = logit_scale * (images @ classes.T).astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))  # tanh neither overflows nor warns


def _prompts(model: Encoder, templates: Sequence[str] | None) -> dict[str, Sequence[str]]:
    if templates is None:
        return {**PLAIN_PROMPTS, **model.prompts}
    if not templates:
        return dict(PLAIN_PROMPTS)
    for template in templates:
        if "{}" not in template:
            raise DcclipError(
                f"the template '{template}' has no place for the label",
                "write it like this: --template 'a photo of a {}'",
            )
    own = {language: [one for one in templates if language_of(one) == language] for language in PLAIN_PROMPTS}
    return {language: several or templates for language, several in own.items()}
