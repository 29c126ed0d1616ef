"""Start of a shallow SRVGGNetCompact: the first and the last convolutions of a deeper one of the same width.

    python test_scripts/shallower.py -m realesr-general-x4v3 --num_conv 16 -o experiments/start_64x16.pth

What comes out is no good as it is, and a far better start than random numbers: the layers at both ends know how to look
and how to draw. `path: pretrain_network_g` of an option file names it. Figures: docs/results.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, UserError, compat

if TYPE_CHECKING:
    import torch

LAYER = re.compile(r'body\.(\d+)\.(.+)')


def shallower(state: Mapping[str, torch.Tensor], num_conv: int) -> dict[str, torch.Tensor]:
    """The weights of the first ``num_conv // 2`` and the last ``num_conv - num_conv // 2`` inner convolutions.

    Args:
        state: Of a SRVGGNetCompact: a first convolution, inner ones, each with its activation behind, and a last one.
        num_conv: Of the shallow network.

    Raises:
        UserError: The network is not deeper.
    """
    last = max(int(LAYER.fullmatch(key)[1]) for key in state)
    deep = (last - 2) // 2  # layers 0 and 1 are the first convolution and its activation
    if not 1 <= num_conv < deep:
        raise UserError(f'--num_conv: the network has {deep} convolutions; write a number from 1 to {deep - 1}.')
    head = 2 + 2 * (num_conv // 2)  # layers at the beginning
    shift = 2 * (deep - num_conv)  # by which the others move up
    found = {}
    for key, value in state.items():
        number, name = LAYER.fullmatch(key).groups()
        if int(number) < head:
            found[key] = value
        elif int(number) >= head + shift:
            found[f'body.{int(number) - shift}.{name}'] = value
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-m', '--model', required=True, metavar='FILE', help='the deep network: a file, or a name')
    parser.add_argument('--num_conv', type=int, required=True, help='inner convolutions of the shallow one')
    parser.add_argument('-o', '--output', required=True, metavar='FILE', help='the shallow one, as BasicSR reads it')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.files.generators import open_network
    from sdakd.files.named import model_file
    from sdakd_arch.weights import save_whole

    opened = open_network(model_file(args.model, '-m'), '-m')
    kind = opened.network and opened.network['type']
    if kind != 'SRVGGNetCompact':
        raise UserError(f'-m: {args.model} holds {kind or "another network"}; only a SRVGGNetCompact can be cut.')
    state = shallower(opened.module.state_dict(), args.num_conv)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    save_whole({'params': state}, Path(args.output))
    sys.stdout.write(f'Written to {args.output}: {opened.name} with {args.num_conv} inner convolutions\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
