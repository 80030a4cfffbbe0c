"""What a student is pulled towards: one class per loss, options and formula together. This union is the registry."""

from typing import Annotated

from pydantic import Field

from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.embeddings import CrossLingualLoss, EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.losses.similarities import AffinityLoss, EnsembleLoss, InteractiveLoss, SimilarityLoss

DistillLoss = Annotated[
    FeatureMapLoss
    | TokenFeaturesLoss
    | EmbeddingLoss
    | CrossLingualLoss
    | InteractiveLoss
    | SimilarityLoss
    | AffinityLoss
    | EnsembleLoss
    | TaskLoss,
    Field(discriminator="kind"),
]
