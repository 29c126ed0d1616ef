"""`sdakd prepare pairs`: LQ/GT pairs, degraded once."""

from __future__ import annotations

import argparse
import functools
import json
import os
from typing import Any

from sdakd import compat
from sdakd.commands.prepare.jobs import add_job, apart, claim, whole
from sdakd.files.images import Pass, by_stem, list_images


def run(args: argparse.Namespace) -> int:
    apart(args.input, args.output)
    names = by_stem(list_images(args.input), args.input).values()
    compat.import_basicsr()
    from sdakd.commands.prepare import synthesis as pairs

    settings = pairs.read_settings(args.degradation, args.scale, args.opt, args.seed, args.per_image)
    claim(args.output, {'job': 'pairs', 'input': os.path.realpath(args.input), **settings})
    images = Pass(args, args.input)
    work = functools.partial(pairs.make_pair, source=args.input, output=args.output, settings=json.dumps(settings))
    images.run(work, names)
    roots = (os.path.join(args.output, part) for part in ('gt', 'lq'))
    use = 'scale: {}, dataroot_gt: {}, dataroot_lq: {}'.format(settings['scale'], *roots)
    if any('/' in name for name in names):
        use += "\nBasicSR's PairedImageDataset does not look into sub-folders: give it LMDB databases of both folders."
    return images.finish(args.output, use)


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    command = add_job(jobs, 'pairs', run, 'synthesise LQ/GT pairs once', 'folder of gt/ and lq/')
    command.add_argument('--degradation', choices=('bicubic', 'realesrgan'), required=True, help='how LQ is made')
    command.add_argument('--scale', type=whole('--scale', 1), help="GT over LQ (default: the option file's, or 4)")
    command.add_argument('-opt', help="training option file whose Real-ESRGAN degradation replaces the published one's")
    command.add_argument(
        '--per_image',
        '--per-image',
        type=whole('--per_image', 1),
        default=1,
        metavar='N',
        help='degradations of every image, NAME_1 to NAME_N (default: 1, called NAME)',
    )
    command.add_argument('--seed', type=whole('--seed', 0), default=0, help='of the degradation (default: 0)')
