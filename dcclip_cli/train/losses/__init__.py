"""Losses, each one class with its options and its formula. The union is the registry: a new loss
is added to it.
"""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from dcclip_cli.core.extensions import extension_options
from dcclip_cli.train.losses import embeddings
from dcclip_cli.train.losses.base import Loss
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.losses.labels import LabelsLoss

DistillLoss = Annotated[
    SerializeAsAny[
        FeatureMapLoss
        | TokenFeaturesLoss
        | embeddings.EmbeddingLoss
        | embeddings.CrossLingualLoss
        | embeddings.InteractiveLoss
        | embeddings.AnchorsLoss
        | embeddings.SimilarityLoss
        | embeddings.EnsembleLoss
        | LabelsLoss
        | TaskLoss
    ],
    Field(discriminator="kind"),
    extension_options(Loss),
]
