"""Checks of a run before anything is created, a module per subject; :mod:`sdakd_models.checks.run` makes them all."""
