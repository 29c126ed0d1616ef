"""The terms of the student's objective: importing the package registers those of all its modules."""

import importlib
import pkgutil

from sdakd_models.context import Context
from sdakd_models.registry import TERMS, register_term, term_options
from sdakd_models.terms.base import FeatureTerm, Term

__all__ = ['TERMS', 'Context', 'FeatureTerm', 'Term', 'register_term', 'term_options']

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
