"""Checks of a run before anything is created: the run, its data, its caches, its faces."""
