"""Zero-shot classification: embeddings of class names, and the probabilities of labels for image
embeddings.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.text import check_unicode, language_by_script
from dcclip_cli.inference.encoder import PLAIN_PROMPTS, Encoder
from dcclip_cli.model.known_words import words_of
from dcclip_cli.model.precision import NotFiniteError

# The text that a label is compared with in multi-label prediction by a model without a bias of its
# own.
_ANYTHING = {"en": "something", "zh": "东西"}
_SAME = 0.95  # cosine of texts of one meaning
# of a text's unknown part by an ignored word: the lightest word gives more, rounding in int8 a
# third
_GAIN = 0.01


def fill(templates: Sequence[str], name: str) -> list[str]:
    return [template.replace("{}", name) for template in templates]


def text_embeddings(
    model: Encoder,
    texts: Sequence[str],
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """(N, D), length 1, in order; `advance` gets each batch's size. Raises DcclipError for half a
    character.
    """
    check_unicode(texts)
    by_length = sorted(
        range(len(texts)), key=lambda index: len(texts[index])
    )  # little padding in each batch
    encoded = []
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        encoded.append(model.encode_texts([texts[index] for index in batch]))
        advance(len(batch))
    sorted_embeddings = np.concatenate(encoded)
    embeddings = np.empty_like(sorted_embeddings)
    embeddings[by_length] = sorted_embeddings
    return embeddings


def vocabulary_words(model: Encoder, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The words of the texts that the model knows by themselves, in order, with their embeddings
    (D,).
    """
    words = dict[str, None]()
    for text in texts:
        words |= dict.fromkeys(words_of(text, model.tokenize))
    if model.known is None or not words:
        return {}
    vectors = zip(words, text_embeddings(model, list(words)), strict=True)
    return {
        word: vector
        for word, vector in vectors
        if vector[model.known.dimension] <= model.known.most
    }


def unknown_of(
    model: Encoder, texts: Sequence[str], embeddings: np.ndarray | None = None
) -> list[str]:
    """The texts without a word that the model knows, and the words that it ignores in others: red
    in "a red car".

    Empty for a model that cannot say. `embeddings` are those of the texts, if they are computed
    already. An ignored word is unknown by itself, and makes more of the text's known words
    unknown: words of grammar (的, the) do not.
    """
    known_words = model.known
    if known_words is None or not texts:
        return []

    def unknown_part(texts: Sequence[str]) -> np.ndarray:
        return text_embeddings(model, texts)[:, known_words.dimension]

    parts = unknown_part(texts) if embeddings is None else embeddings[:, known_words.dimension]
    is_unknown = dict(zip(texts, (parts > known_words.most).tolist(), strict=True))
    words_by_text = {text: words_of(text, model.tokenize) for text in is_unknown}
    sentences = {text: words for text, words in words_by_text.items() if words != [text]}
    in_vocabulary = vocabulary_words(model, list(sentences))
    known_by_text = dict[str, str]()
    probe_by_word = dict[str, tuple[str, str]]()
    for text, words in sentences.items():
        known_by_text[text] = " ".join(word for word in words if word in in_vocabulary)
        rest = known_by_text[text] or text
        probe_by_word |= {
            word: (rest, f"{word} {rest}") for word in words if word not in in_vocabulary
        }
    ignored = set[str]()
    if probe_by_word:
        rests, probes = zip(*probe_by_word.values(), strict=True)
        gains = unknown_part(probes) - unknown_part(rests)
        ignored = {word for word, gain in zip(probe_by_word, gains, strict=True) if gain > _GAIN}
    unknown: list[str] = []
    for text, words in words_by_text.items():
        if is_unknown[text] and not known_by_text.get(text):
            unknown.append(text)
            continue
        # Chinese characters next to each other, which are no word of the vocabulary, are one word.
        for (is_ignored, is_character), group in groupby(
            words,
            lambda word: (word in ignored, len(word) == 1 and language_by_script(word) == "zh"),
        ):
            if is_ignored and is_character:
                unknown.append("".join(group))
            elif is_ignored:
                unknown += group
    return list(dict.fromkeys(unknown))


def class_embeddings(
    model: Encoder,
    texts: Sequence[Sequence[str]],
    batch_size: int = 256,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """(C, D), length 1: the mean of the embeddings of each class's texts, as in CLIP's zero-shot
    classifier.
    """
    embeddings = text_embeddings(
        model, [text for class_texts in texts for text in class_texts], batch_size, advance
    )
    return class_means(embeddings, [len(class_texts) for class_texts in texts])


def class_means(embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """(C, D), length 1: means of `counts[c]` rows each. Raises NotFiniteError where rows add up to
    nothing.
    """
    sums = np.zeros((len(counts), embeddings.shape[1]), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(counts)), counts), embeddings)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not lengths.all():
        reason = Message(
            "the prompt embeddings of {} of {} classes add up to 0",
            int((lengths == 0).sum()),
            len(counts),
        )
        raise NotFiniteError(
            reason, "use other prompt templates, and check whether the model's weights are damaged"
        )
    return sums / lengths


def label_prompts(
    model: Encoder,
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
    multi_label: bool = False,
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """The texts of each label, and those that `multi_label` compares with. Raises DcclipError for
    none, and no {}.
    """
    if not labels or not all(label.strip() for label in labels):
        raise DcclipError(
            "no labels given, or an empty label", "give labels, for example: --labels 猫,dog"
        )
    prompts: dict[str, Sequence[str]] = (
        {**PLAIN_PROMPTS, **model.prompts} if templates is None else {**PLAIN_PROMPTS}
    )
    if templates:
        if (broken := next((text for text in templates if "{}" not in text), None)) is not None:
            hint = Message("for example: --template 'a photo of a {{}}'")
            raise DcclipError("the template '{}' has no {{}} for the label", hint, broken)
        for language in prompts:
            prompts[language] = [
                text for text in templates if language_by_script(text) == language
            ] or templates
    languages = [language_by_script(label) for label in labels]
    compared = languages if multi_label and model.logit_bias is None else []
    texts = [
        fill(prompts[language], label) for language, label in zip(languages, labels, strict=True)
    ]
    return texts, {language: fill(prompts[language], _ANYTHING[language]) for language in compared}


class Labels:
    """Labels as embeddings, each the mean over the prompt templates for the language of the
    label's script.

    `templates` replace the model's own; an empty list means the bare labels. Templates with a
    Chinese character are for Chinese labels, the others for the rest; if all are of one kind, they
    are used for every label. Labels compete with each other (softmax), or with `multi_label` each
    is judged by itself (sigmoid). `unknown` are those that the model says it never learnt, and
    words in them that it ignores. Raises DcclipError without labels, and for a template without
    {}.
    """

    def __init__(
        self,
        model: Encoder,
        labels: Sequence[str],
        templates: Sequence[str] | None = None,
        multi_label: bool = False,
        progress: Progress | None = None,
    ) -> None:
        texts, neutral_texts = label_prompts(model, labels, templates, multi_label)
        self.names = tuple(labels)
        self._scale = model.logit_scale
        self._bias = model.logit_bias
        with (progress or Silent()).task(Message("labels"), sum(map(len, texts))) as task:
            self._embeddings = class_embeddings(model, texts, advance=task.advance)
        self.unknown = unknown_of(model, labels, self._embeddings)
        self.multi_label = multi_label
        self._anything = None
        self._is_rest = np.zeros(len(labels), bool)
        self._fits = -1.0
        # A label that means the same as "something", such as 其他, is for the images that no other
        # fits.
        if (
            model.known
            and (self._embeddings @ text_embeddings(model, [_ANYTHING["en"]])[0]).max() < _SAME
        ):
            self._fits = model.known.fits
        if neutral_texts:
            by_language = dict(
                zip(
                    neutral_texts,
                    class_embeddings(model, list(neutral_texts.values())),
                    strict=True,
                )
            )
            self._anything = np.stack([by_language[language_by_script(label)] for label in labels])
            if model.known:  # in others, whose texts are all similar, a cosine says no such thing
                self._is_rest = np.sum(self._embeddings * self._anything, axis=1) > _SAME

    def fit(self, image: np.ndarray) -> bool:
        """Whether some label fits an image's embedding (D,); True with a label such as 其他, and if
        it is unknown.
        """
        return float((self._embeddings @ image).max()) >= self._fits

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """(B, C) for image embeddings (B, D) of length 1.

        With `multi_label`, a model trained with a sigmoid uses its own bias. One trained with a
        softmax has none: its probability is that of the label against "something", so 0.5 means no
        better than that. With the starter, a label whose embedding is that of "something", such as
        其他, has 1 minus the highest probability of the others.
        """
        if not self.multi_label:
            return softmax(images, self._embeddings, self._scale)
        logits = self._scale * (images @ self._embeddings.T).astype(np.float64)
        logits += (
            float(self._bias or 0)
            if self._anything is None
            else -self._scale * (images @ self._anything.T)
        )
        # tanh neither overflows nor warns, as exp would
        values = 0.5 * (1 + np.tanh(0.5 * logits))
        if self._is_rest.any():
            values[:, self._is_rest] = 1 - values[:, ~self._is_rest].max(
                axis=1, initial=0, keepdims=True
            )
        return np.asarray(values)


def softmax(images: np.ndarray, classes: np.ndarray, logit_scale: float) -> np.ndarray:
    """(B, C) of scaled cosines of embeddings of length 1; a sigmoid model's bias cancels."""
    return softmax_of(logit_scale * (images @ classes.T).astype(np.float64))


def softmax_of(logits: np.ndarray) -> np.ndarray:
    """The softmax of each row, in double precision."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
