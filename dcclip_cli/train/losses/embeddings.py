"""Losses on embeddings: the student's against a teacher's, or the similarities of images and texts
in both models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dcclip_cli.data.batch import IMAGES, OTHER
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.train.losses.base import (
    BOTH,
    Loss,
    Needs,
    Outputs,
    TeacherLoss,
    Tower,
    Widths,
    mean_over_languages,
    per_process,
    take,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
MOST_SCALE = 10_000.0  # a temperature of 0.0001
Scale = Annotated[float, Field(gt=0, le=MOST_SCALE)]


class AdaptedLoss(TeacherLoss):
    """A loss on the student's embeddings at the teacher's width."""

    def adapters(self, student: Widths, teacher: Widths) -> dict[str, nn.Module]:
        from torch import nn

        if student.embedding == teacher.embedding:
            return {}
        shape = student.embedding, teacher.embedding
        return {
            "image_embedding": nn.Linear(*shape, bias=False),
            "text_embedding": nn.Linear(*shape, bias=False),
        }


class EmbeddingLoss(AdaptedLoss):
    """1 - cos(v_s, v_t) and 1 - cos(t_s, t_t), the mean of both towers: CLIP-KD's feature
    distillation (FD).

    For unit vectors the MSE summed over the width is 2 - 2 cos; FD's weight of 2000 on the mean
    over B x 512 elements corresponds to 15.6 here. A student narrower than the recipe's teacher
    learns the teacher's principal components; in all other cases of different widths, a linear
    adapter maps the student's embeddings to the teacher's.
    """

    kind: Literal["embedding"] = "embedding"
    languages: tuple[Language, ...] = Field(
        LANGUAGES,
        min_length=1,
        description="Languages of the texts that are compared; the teacher must support them",
    )
    compares: ClassVar[bool] = False
    needs: ClassVar[frozenset[Needs]] = frozenset({"images", "texts", "pairs"})

    @property
    def trained_towers(self) -> frozenset[Tower]:
        return self.reached_towers(()) if {*LANGUAGES} - {*self.languages} else BOTH

    def reached_towers(self, languages: Collection[Language]) -> frozenset[Tower]:
        return BOTH if {*languages} & {*self.languages} else frozenset({"image"})

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        (images, texts) = adapt_embeddings(student, adapters)
        weights = student.weights("texts")
        weights = {
            name: weight
            for name, weight in weights.items()
            if name.removesuffix(OTHER) in self.languages
        }

        def of_texts(name: str) -> Tensor:
            return 1 - F.cosine_similarity(texts[name], teacher.texts[name].embedding).mean()

        text_loss = mean_over_languages(weights, of_texts, images)
        if not len(images):
            return text_loss
        image_loss = 1 - F.cosine_similarity(images, teacher.image.embedding).mean()
        return (image_loss + text_loss) / 2 if weights else image_loss


class CrossLingualLoss(AdaptedLoss):
    """1 - cosine of the student's Chinese and the teacher's English embedding of the two captions
    of an image or line.

    AltCLIP (arXiv 2211.06679) and multilingual-CLIP learn a language from parallel text in this
    way. Other losses train the student's English.
    """

    kind: Literal["cross_lingual"] = "cross_lingual"
    compares: ClassVar[bool] = False
    needs: ClassVar[frozenset[Needs]] = frozenset({"texts", "pairs"})

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        _, adapted = adapt_embeddings(student, adapters)

        def of_parallel(zh: str) -> Tensor:
            en = "en" + zh.removeprefix("zh")
            zh_rows, en_rows = student.in_both(zh, en)
            target = take(teacher.texts[en].embedding, en_rows)
            return 1 - F.cosine_similarity(take(adapted[zh], zh_rows), target).mean()

        weights = {
            name: weight
            for name, weight in student.weights("parallel").items()
            if name.startswith("zh")
        }
        return mean_over_languages(weights, of_parallel, student.image.embedding)


class InteractiveLoss(AdaptedLoss):
    """1/2 [CE(v_s . t_t / tau) + CE(t_s . v_t / tau)]: the student against the teacher's other
    tower (CLIP-KD, ICL).

    Captions that occur twice in a batch are negatives of each other. The first half trains the
    image tower, the second the text tower; `learns` omits one of them and does not change the
    weight of the other.
    """

    kind: Literal["interactive"] = "interactive"
    scale: Scale = Field(20.0, description="1 / temperature of both halves, fixed")
    learns: Literal["both", "image", "text"] = Field(
        "both",
        description="Towers that this loss trains; with this loss, a small text tower tends to "
        "memorize names",
    )

    @property
    def trained_towers(self) -> frozenset[Tower]:
        return BOTH if self.learns == "both" else frozenset({self.learns})

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        import torch
        from torch.nn import functional as F

        student_images, student_texts = adapt_embeddings(student, adapters)
        image = F.normalize(teacher.image.embedding, dim=-1)

        def of_pairs(language: str) -> Tensor:
            paired = student.paired(language)
            local = student.local_rows(language, "paired")
            index = take(student.image_index[language], paired)
            labels = take(torch.arange(len(index), device=index.device), local)
            logits = []
            if self.learns != "text":
                text = F.normalize(take(teacher.texts[language].embedding, paired), dim=-1)
                logits.append(
                    self.scale * F.normalize(student_images[take(index, local)], dim=-1) @ text.T
                )
            if self.learns != "image":
                text = F.normalize(take(take(student_texts[language], paired), local), dim=-1)
                logits.append(self.scale * text @ image[index].T)
            rows = per_process(len(index), local)
            halves = [
                F.cross_entropy(of_tower, labels, reduction="sum") / rows for of_tower in logits
            ]
            return sum(halves[1:], halves[0]) / 2

        return mean_over_languages(student.weights("paired"), of_pairs, image)


class AnchorsLoss(AdaptedLoss):
    """1/2 [KL(p(v_t, t_t) || p(v_s, t_t)) + KL(p(t_t, v_t) || p(t_s, v_t))], p a softmax over the
    teacher's embeddings.

    p(v, t) is the distribution of an image over all texts of a language in the batch, p(t, v) that
    of a text over all images: SEED's loss (Fang et al., arXiv 2101.04731) with the teacher's other
    tower as anchors. Texts need not belong to images, so the loss also works with data.images and
    data.texts.
    """

    kind: Literal["anchors"] = "anchors"
    scale: Scale = Field(20.0, description="1 / temperature of all distributions, fixed")
    trains: ClassVar[frozenset[Tower]] = BOTH
    joint: ClassVar[bool] = True

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        student_images, student_texts = adapt_embeddings(student, adapters)
        image = teacher.image.embedding

        def divergence(entry: str, rows: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
            """KL of the student's from the teacher's distribution over the anchors, the mean over
            the rows.
            """
            local = student.local_rows(entry, "texts")
            anchors = F.normalize(anchors, dim=-1).T
            logits, target = (
                (self.scale * F.normalize(take(vectors, local), dim=-1) @ anchors).log_softmax(-1)
                for vectors in (rows, targets)
            )
            return F.kl_div(logits, target, reduction="sum", log_target=True) / per_process(
                len(rows), local
            )

        def of_language(language: str) -> Tensor:
            text = teacher.texts[language].embedding
            of_images = divergence(IMAGES, student_images, image, text)
            return (of_images + divergence(language, student_texts[language], text, image)) / 2

        return mean_over_languages(
            student.weights("texts") if len(image) else {}, of_language, student_images
        )


class SimilarityLoss(TeacherLoss):
    """1/2 [KL(T_i2t || S_i2t) + KL(T_t2i || S_t2i)] on similarities over tau: CLIP-KD's CRD,
    TinyCLIP's affinity.

    `similarity` and `affinity` differ only in their default scale. TinyCLIP (arXiv 2309.12314) and
    open_clip's DistillClipLoss use cross-entropy instead of KL. The two differ by the teacher's
    entropy, which has no gradient.
    """

    kind: Literal["similarity", "affinity"] = "similarity"
    scale: Scale | None = Field(
        None,
        description="1 / temperature of both models, fixed; default: 20 for similarity, 50 for affinity",
    )
    trains: ClassVar[frozenset[Tower]] = BOTH

    def __call__(
        self, student: Outputs, teacher: Outputs, adapters: Mapping[str, nn.Module]
    ) -> Tensor:
        from torch.nn import functional as F

        scale = self.scale or (20.0 if self.kind == "similarity" else 50.0)

        def of_pairs(language: str) -> Tensor:
            rows = per_process(
                int(student.text_counts[language].paired), student.local_rows(language, "paired")
            )
            logits, targets = (
                similarities(outputs, language, scale) for outputs in (student, teacher)
            )
            image_to_text, text_to_image = (
                F.kl_div(
                    of_student.log_softmax(-1),
                    target.log_softmax(-1),
                    reduction="sum",
                    log_target=True,
                )
                / rows
                for of_student, target in zip(logits, targets, strict=True)
            )
            return (image_to_text + text_to_image) / 2

        return mean_over_languages(student.weights("paired"), of_pairs, student.image.embedding)


class EnsembleLoss(Loss):
    """CE(mean over teachers k of softmax(tau_k T_k), S / tau), both directions: MobileCLIP (arXiv
    2311.17049).

    The teachers' distributions are averaged after the softmax, each at its own temperature.
    MobileCLIP uses it with weight 1 and no task loss.
    """

    kind: Literal["ensemble"] = "ensemble"
    scale: Scale | None = Field(
        None,
        description="Fixed 1 / temperature of the student; default: the student's learned value",
    )
    trains: ClassVar[frozenset[Tower]] = BOTH

    @property
    def uses_temperature(self) -> bool:
        return self.scale is None

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        import torch

        scale = self.scale if self.scale is not None else student.logit_scale

        def of_pairs(language: str) -> Tensor:
            rows = per_process(
                int(student.text_counts[language].paired), student.local_rows(language, "paired")
            )
            logits = similarities(student, language, scale)
            targets = zip(
                *(similarities(teacher, language, teacher.logit_scale) for teacher in teachers),
                strict=True,
            )
            image_to_text, text_to_image = (
                -(
                    torch.stack([target.softmax(-1) for target in of_teachers]).mean(0)
                    * of_student.log_softmax(-1)
                )
                .sum(-1)
                .sum()
                / rows
                for of_student, of_teachers in zip(logits, targets, strict=True)
            )
            return (image_to_text + text_to_image) / 2

        return {
            self.kind: mean_over_languages(
                student.weights("paired"), of_pairs, student.image.embedding
            )
        }


def adapt_embeddings(
    student: Outputs, adapters: Mapping[str, nn.Module]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The student's embeddings of images, and of texts by language, at the teacher's width."""
    from torch import nn

    adapt_image, adapt_text = (
        adapters.get(f"{tower}_embedding", nn.Identity()) for tower in ("image", "text")
    )
    texts = {
        language: adapt_text(features.embedding) for language, features in student.texts.items()
    }
    return adapt_image(student.image.embedding), texts


def similarities(
    outputs: Outputs, language: str, scale: Tensor | float | None
) -> tuple[Tensor, Tensor]:
    """Scaled cosines (n, N): of this process's images with a text in this language and all such
    texts, and back.
    """
    from torch.nn import functional as F

    assert scale is not None
    paired = outputs.paired(language)
    local = outputs.local_rows(language, "paired")
    image = F.normalize(
        outputs.image.embedding[take(outputs.image_index[language], paired)], dim=-1
    )
    text = F.normalize(take(outputs.texts[language].embedding, paired), dim=-1)
    image_to_text = scale * take(image, local) @ text.T
    return image_to_text, image_to_text.T if local is None else scale * text[local] @ image.T
