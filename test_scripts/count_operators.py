r"""Operators and processor time of a training step, by what they are for.

    OMP_NUM_THREADS=1 python test_scripts/count_operators.py -opt options/sdakd_realesrgan_x4.yml

Real network sizes, random weights, noise images; the crops are small, as an operator is one whatever its size.
Operators are those that reach PyTorch's dispatcher below autograd, the backward pass's included: an operator over a
list of tensors is one. Those that give views (slices, transposes, detached tensors) compute nothing and are counted
apart. Values read are those that Python asks for, which make a GPU wait. The degradation takes other ways by chance:
figures are means over steps, whose random numbers are always the same. Steps that measure shares are left out.
Processor time is that of the process, measured in steps of their own, without counting.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd import compat  # noqa: E402

compat.import_basicsr()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from basicsr.data import build_dataset  # noqa: E402
from basicsr.models import build_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import sdakd_models  # noqa: E402, F401  it registers models
from sdakd_models import launch, players  # noqa: E402
from sdakd_models.reader import read_run  # noqa: E402
from test_scripts.benchmark_step import make_world, weighted  # noqa: E402

READS = ('aten::_local_scalar_dense', 'aten::_unique2', 'aten::nonzero')
REST = 'losses and all else'


class Ledger(TorchDispatchMode):
    """Counts operators by the innermost of the parts that are at work."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.since = [REST], time.process_time()
        self.operators, self.views, self.reads, self.seconds = Counter(), Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        (self.views if func.is_view else self.operators)[self.parts[-1]] += 1
        self.reads[self.parts[-1]] += func._schema.name in READS
        return func(*args, **(kwargs or {}))

    def forget(self) -> None:
        """Begins anew."""
        self.since = time.process_time()
        for counter in (self.operators, self.views, self.reads, self.seconds):
            counter.clear()

    def settle(self) -> None:
        """Books the time since the last change of parts."""
        now = time.process_time()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    def watch(self, owner: object, method: str, part: Callable[..., str]) -> None:
        """Books what a method does as the part that ``part`` names, given its arguments."""
        inner = getattr(owner, method)

        def outer(*args, **kwargs):
            self.settle()
            self.parts.append(part(*args))
            try:
                return inner(*args, **kwargs)
            finally:
                self.settle()
                self.parts.pop()

        setattr(owner, method, outer)


def options(args: argparse.Namespace, folder: Path) -> dict:
    """The option file with random networks, small crops and one stage that lasts."""
    opt = read_run(args.opt, args.force_yml)
    make_world(folder, opt)
    opt = weighted(opt)
    stage = {**opt['train']['stages'][args.stage], 'iters': 10**6}
    opt['train']['stages'] = {args.stage: stage}
    opt['teacher']['weights'] = str(folder / 'teacher.pth')
    data = opt['datasets']['train']
    data |= {'dataroot_gt': str(folder / 'images'), 'meta_info': str(folder / 'meta.txt'), 'num_worker_per_gpu': 0}
    data |= {'gt_size': args.gt_size, 'batch_size_per_gpu': args.batch}
    opt |= {'gt_size': args.gt_size, 'queue_size': 2 * args.batch}
    opt.pop('val', None)
    return yaml.safe_load(yaml.safe_dump(opt))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True)
    parser.add_argument('--stage', default='adversarial')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--gt_size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--force_yml', nargs='+', default=[], help='further changes, as sdakd train takes them')
    args = parser.parse_args()
    args.opt = str(Path(args.opt).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        opt = options(args, Path(temporary))
        launch.check_options(opt, temporary, 'run.yml')
        measure(args, build_model(opt), build_dataset(opt['datasets']['train']))
        os.chdir(ROOT)
    return 0


def measure(args: argparse.Namespace, model, dataset) -> None:
    """Prints the table."""
    rows = [dataset[number] for number in range(args.batch)]
    data = {key: torch.stack([row[key] for row in rows]) for key, value in rows[0].items() if torch.is_tensor(value)}
    ledger = Ledger()
    ledger.watch(model, 'feed_data', lambda *_: 'degradation')
    ledger.watch(model, 'generate', lambda net: 'student, forward' if net is model.net_g else 'teacher')
    ledger.watch(model, 'model_ema', lambda *_: 'EMA')
    ledger.watch(model, '_report', lambda *_: 'logging')
    ledger.watch(players.Player, 'step', lambda *_: 'optimizers')
    for method in ('student_loss', 'learn', 'diagnose'):
        ledger.watch(players.Discriminator, method, lambda *_: 'discriminators')
    ledger.watch(
        torch.Tensor,
        'backward',
        lambda *_: 'discriminators' if ledger.parts[-1] == 'discriminators' else 'backward of the generator',
    )

    def steps(numbers: range) -> None:
        for number in numbers:
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            model.update_learning_rate(number)
            model.feed_data(data)
            model.optimize_parameters(number)

    steps(range(1, 4))  # the pool fills, and the first step measures shares
    numbers = range(101, 101 + args.steps)
    ledger.forget()
    with ledger:
        steps(numbers)
    counted = [Counter(each) for each in (ledger.operators, ledger.views, ledger.reads)]
    ledger.forget()
    steps(numbers)
    ledger.settle()
    print('| part of a step | operators | views | values read | CPU ms |\n|---|--:|--:|--:|--:|')
    for part in [*sorted(counted[0], key=counted[0].get, reverse=True), 'all']:
        *counts, seconds = (
            (each.total() if part == 'all' else each[part]) / args.steps for each in (*counted, ledger.seconds)
        )
        print(f'| {part} | {counts[0]:,.0f} | {counts[1]:,.0f} | {counts[2]:.1f} | {1000 * seconds:,.0f} |')


if __name__ == '__main__':
    sys.exit(main())
