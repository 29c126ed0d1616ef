"""FAKD: the affinity of an image's positions in the student's feature maps against that in the teacher's."""

from sdakd_models.registry import register_term
from sdakd_models.terms.base import FeatureTerm


@register_term('fakd')
class FAKDTerm(FeatureTerm):
    """Which positions have similar features, in the student's maps against the teacher's: FAKD."""

    adapter = 'none'
