"""`sdakd prepare`: cuts, downscales, lists and packs images for BasicSR's datasets, synthesises pairs, crops faces.

A job is a module with `add_to(jobs)`, which adds its flags, and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool

import lmdb

from sdakd.commands.prepare import database, faces, meta, multiscale, pairs, subimages
from sdakd.compat import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the jobs and their flags."""
    jobs = parser.add_subparsers(dest='name', metavar='job', required=True)
    for job in (subimages, multiscale, meta, database, pairs, faces):
        job.add_to(jobs)


def run(args: argparse.Namespace) -> int:
    """Runs the job.

    Returns:
        0, or 130 when it was interrupted.

    Raises:
        UserError: A mistake on the command line, an unusable image, a full disk, or too little memory.
    """
    args.output = os.path.normpath(args.output)  # a shell's completion leaves a slash, also after NAME.lmdb
    try:
        return args.run(args)
    except (OSError, lmdb.Error) as error:
        where, what = getattr(error, 'filename', None) or args.output, getattr(error, 'strerror', None) or error
        raise UserError(where, f'{what}; mend that and give the same command again to go on.') from None
    except BrokenProcessPool:
        raise UserError(
            f'a worker process was killed, most likely for want of memory: try --workers {max(1, args.workers // 2)}.'
        ) from None
    except KeyboardInterrupt:
        sys.stderr.write('\nInterrupted; give the same command again to go on.\n')
        return 130
