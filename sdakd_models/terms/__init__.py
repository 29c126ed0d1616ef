"""The terms of the student's objective; importing this package registers them all."""

from sdakd_models.terms import crd, dcd, feature, imitation, omgd, output, supervised  # noqa: F401  they register their terms
from sdakd_models.terms.base import TERMS, Context, Term, register_term, term_options

__all__ = ['TERMS', 'Context', 'Term', 'register_term', 'term_options']
