"""SDAKD's feature-map distillation: the student's activations, adapted by channel MLPs, against the teacher's."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sdakd_models.registry import register_term
from sdakd_models.terms.base import FeatureTerm


@register_term('feature')
class FeatureMapTerm(FeatureTerm):
    """The student's feature maps, adapted by channel MLPs, against the teacher's: SDAKD's stages 2 and 3."""

    class Options(FeatureTerm.Options):
        """What the block holds besides the arguments of its loss."""

        hidden_ratio: Annotated[
            float, Meta(ge=0, description="Hidden width of the MLPs over the teacher's channels; 0: linear adapters.")
        ] = 1.0

    label = 'adapter'
