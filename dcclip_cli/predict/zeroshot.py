"""How probable is each label, given a picture's embedding?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.classifier import class_embeddings, fill, language_of
from dcclip_cli.predict.runtime import PLAIN_PROMPTS, DualEncoder

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
        self, model: DualEncoder, labels: Sequence[str], templates: Sequence[str] | None = None, several: bool = False
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


def _prompts(model: DualEncoder, templates: Sequence[str] | None) -> dict[str, Sequence[str]]:
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
