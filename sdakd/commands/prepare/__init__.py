"""`sdakd prepare`: cuts, downscales, lists and packs images for BasicSR's datasets, synthesises pairs, crops faces.

A job is a module with a function of the job's name and ``add_to(jobs)``, which adds its flags.
"""

from __future__ import annotations

import argparse

from sdakd.commands.prepare import database, faces, meta, multiscale, pairs, subimages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the jobs and their flags."""
    jobs = parser.add_subparsers(metavar='job', required=True)
    for job in (subimages, multiscale, meta, database, pairs, faces):
        job.add_to(jobs)
