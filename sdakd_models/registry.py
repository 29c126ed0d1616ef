"""The terms by name: what option files may switch on. A term registers itself when its module is imported."""

from __future__ import annotations

TERMS: dict[str, type] = {}  # subclasses of sdakd_models.terms.base.Term


def register_term(name: str):
    """Makes a term known under the name that stages use; its options stand under ``train:<name>_opt``."""

    def register(cls: type) -> type:
        if name in TERMS:
            raise ValueError(f'the term {name!r} is registered twice, by {TERMS[name].__name__} and {cls.__name__}')
        cls.name, cls.option = name, f'{name}_opt'
        TERMS[name] = cls
        return cls

    return register


def term_options() -> dict[str, str]:
    """Known blocks of terms' options under ``train:``, to the term's name."""
    return {cls.option: name for name, cls in TERMS.items()} | {'gan_opt': 'gan'}
