r"""Operators of a training step and the values that it reads, by what they are for.

    OMP_NUM_THREADS=1 python test_scripts/count_operators.py -opt options/sdakd_realesrgan_x4.yml

Options, images and weights are those of `sdakd bench train`, which measures times. The crops are small, as an operator
is one whatever its size. Operators are those that reach PyTorch's dispatcher below autograd, the backward pass's
included: an operator over a list of tensors is one. Those that give views (slices, transposes, detached tensors)
compute nothing and are counted apart. Values read are those that Python asks for, which make a GPU wait. The
degradation takes other ways by chance: figures are means over steps, whose random numbers are always the same.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd import compat  # noqa: E402

compat.import_basicsr()

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from sdakd.commands.bench_train import rows, stand_ins  # noqa: E402
from sdakd.commands.bench_train.ledger import Ledger  # noqa: E402
from sdakd.commands.bench_train.steps import Stepper, load, quietly  # noqa: E402
from sdakd.shipped import option_file  # noqa: E402

READS = ('aten::_local_scalar_dense', 'aten::_unique2', 'aten::nonzero')


class Counts(TorchDispatchMode):
    """Counts operators by the part of a ledger that is at work."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.operators, self.views, self.reads = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        part = self.ledger.parts[-1]
        (self.views if func.is_view else self.operators)[part] += 1
        self.reads[part] += func._schema.name in READS
        return func(*args, **(kwargs or {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True)
    parser.add_argument('--stage', default='adversarial')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--gt_size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--force_yml', nargs='+', default=[], help='further changes, as sdakd train takes them')
    args = parser.parse_args()
    file = option_file(args.opt)
    opt = rows.read(file, args.force_yml, None)
    rows.check_stages(opt, [args.stage])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows.settle(opt, 'cpu', args.batch, args.gt_size, True)
        stand_ins.random_weights(opt, folder)
        reuse, precision = opt['train'].get('pool_reuse', 1), opt['train'].get('precision', 'fp32')
        stand_ins.images(opt, folder, None, rows.largest_crop(opt, [reuse]))
        crop = rows.crop_of(opt)
        plan = rows.Plan(opt, folder, file, 'cpu', crop, [args.stage], [precision], [reuse], False, False)
        done = plan.complete(opt, precision, reuse)
        with quietly(False):
            stepper = Stepper(done, args.stage, False, load(done, 4)[0])
            stepper.fill()
            with stepper.watched() as ledger, Counts(ledger) as counts:
                for _ in range(args.steps):
                    stepper.step()
    print('| part of a step | operators | views | values read |\n|---|--:|--:|--:|')
    for part in [*sorted(counts.operators, key=counts.operators.get, reverse=True), 'all']:
        found = [
            (each.total() if part == 'all' else each[part]) / args.steps
            for each in (counts.operators, counts.views, counts.reads)
        ]
        print(f'| {part} | {found[0]:,.0f} | {found[1]:,.0f} | {found[2]:.1f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
