"""Kills trainings at random, resumes them, and compares their end with that of a run that nobody killed, bit by bit.

    python test_scripts/kill_trainings.py --kills 30

Real processes of BasicSR's loop, SIGKILL for all of them at once: while a checkpoint is written, in a validation, at
the change of a stage, or at any other time. Three runs: paired data with two processes that load images and a teacher
that learns along; pairs that are degraded while training; two training processes of torchrun. Prints a line for every
kill and ends with status 1 if anything differs. Takes about ten seconds a kill on one core.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests'))
import conftest  # noqa: E402  it makes BasicSR importable
import torch  # noqa: E402

STAGE = 60  # iterations of each of the three stages
MOMENTS = {
    'a save': 'Saving models',
    'a validation': 'Saving models',
    'a new stage': 'Stage [23] of',
    'any time': 'iter: ',
}


def options(world, name: str, degraded: bool, workers: int) -> dict:
    """A run of three stages with a checkpoint every 7 iterations and a validation every 14."""
    found = world.options() | {'name': name, 'num_threads': 1}
    for stage in found['train']['stages'].values():
        stage |= {'iters': STAGE, 'lr_g': 1e-3}
    found['logger'] |= {'save_checkpoint_freq': 7, 'print_freq': 1, 'keep_best': 'psnr'}
    found['val']['val_freq'] = 14
    found['datasets']['train']['num_worker_per_gpu'] = workers
    if not degraded:
        found['teacher']['cotrain'] = {'metric': 'psnr'}
        return found
    names = sorted(path.name for path in (world.root / 'HR').iterdir())
    (world.root / 'HR.txt').write_text(''.join(f'{each}\n' for each in names))
    data = {'type': 'RealESRGANDataset', 'dataroot_gt': str(world.root / 'HR'), 'meta_info': str(world.root / 'HR.txt')}
    found['datasets']['train'] = {
        **found['datasets']['train'], **world.kernels, **data, 'num_worker_per_gpu': workers,
    }  # fmt: skip
    for key in ('dataroot_lq', 'gt_size'):
        found['datasets']['train'].pop(key)
    return found | {'model_type': 'SDAKDRealESRGANModel', **world.degradation, 'queue_size': 8, 'gt_size': 64}


class Training:
    """A process, or two of torchrun, whose lines are watched."""

    def __init__(self, world, file: str, processes: int) -> None:
        train = [str(ROOT / 'sdakd/cli.py'), 'train', '-opt', file, '--auto_resume']
        torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
        command = [sys.executable, *train] if processes == 1 else [*torchrun, *train, '--launcher', 'pytorch']
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
        streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        self.process = subprocess.Popen(command, cwd=world.root, env=environment, start_new_session=True, **streams)
        self.lines: list[str] = []
        self.changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait_for(self, pattern: str, count: int) -> bool:
        """Waits for lines that match; False when the process has ended before."""
        with self.changed:
            while sum(bool(re.search(pattern, line)) for line in self.lines) < count:
                if self.process.poll() is not None:
                    return False
                self.changed.wait(0.05)
        return True

    def kill(self) -> None:
        """SIGKILL for all its processes; torchrun's are in sessions of their own."""
        own = descendants(self.process.pid)
        for pid in (self.process.pid, *own):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path('/proc').glob('[0-9]*/stat'):
        try:
            number, rest = int(entry.parent.name), entry.read_text().rpartition(')')[2].split()
        except (OSError, ValueError):
            continue
        children.setdefault(int(rest[1]), []).append(number)
    found, parents = [], [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found, parents = found + below, parents + below
    return found


def differences(one, other, where=''):
    """The places at which two nested contents differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f'{where}/{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, each in pairs for found in differences(*each, f'{where}/{n}')]
    tensors = torch.is_tensor(one) and torch.is_tensor(other)
    return [] if (torch.equal(one, other) if tensors else one == other) else [where]


def leaves(content) -> int:
    """How many tensors and plain values a nested content holds."""
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else None
    return 1 if inner is None else sum(map(leaves, inner))


def end_of(folder: Path) -> dict:
    """All that a run has left at its end, but for times."""
    files = [*folder.glob('models/net_*_latest.pth'), *folder.glob(f'training_states/{3 * STAGE}*.[ps]*')]
    found = {path.name: torch.load(path, weights_only=True) for path in files}
    found[f'{3 * STAGE}.state'].pop('clock')
    return found


def choose(rng: random.Random, iteration: int, pace: int) -> tuple[str, int, float]:
    """When to kill a run that goes on after an iteration: the kind, at which of its lines, seconds after that line."""
    kinds = ['a save', 'a validation', 'any time']
    if any(0 <= end - iteration < 2 * pace for end in (STAGE, 2 * STAGE)):
        kinds.append('a new stage')
    kind = rng.choice(kinds)
    if kind == 'any time':
        return kind, rng.randint(1, pace), 0.0
    seconds = {'a save': rng.uniform(0, 0.05), 'a validation': rng.uniform(0.03, 0.4), 'a new stage': 0.0}[kind]
    return kind, 1 if kind == 'a new stage' else rng.randint(1, max(1, pace // 7)), seconds


def kill_and_resume(rng: random.Random, name: str, kills: int, degraded: bool, workers: int, processes: int) -> bool:
    """Whether a run that was killed so often ends as one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        world = conftest.World(Path(folder), conftest.crops_of_photographs())
        runs = {}
        for each in ('whole', 'killed'):
            runs[each] = world.write(options(world, each, degraded, workers), f'{each}.yml')
        whole = Training(world, runs['whole'], processes)
        if whole.process.wait():
            raise SystemExit(''.join(whole.lines[-20:]))
        iteration, pace, landed = 0, max(2, 3 * STAGE // (kills + 1)), 0
        for number in range(kills):
            kind, count, seconds = choose(rng, iteration, pace)
            training = Training(world, runs['killed'], processes)
            alive = training.wait_for(MOMENTS[kind], count)
            time.sleep(seconds)
            training.kill()
            seen = [int(found[1]) for line in training.lines if (found := re.search(r'iter: *(\d+), lr', line))]
            iteration, landed = (seen or [iteration])[-1], landed + alive
            print(f'{name}: kill {number + 1} of {kills}, {kind}, after iteration {iteration}', flush=True)
        last = Training(world, runs['killed'], processes)
        if last.process.wait():
            raise SystemExit(''.join(last.lines[-20:]))
        ends = [end_of(world.root / 'experiments' / each) for each in runs]
        found = differences(*ends)
        entries = leaves(ends[0])
        print(f'{name}: {landed} of {kills} kills met a running training.')
        print(f'{name}: of {entries:,d} tensors and values at the end, {len(found)} differ.')
        sys.stdout.write(''.join(f'  {where}\n' for where in found[:10]))
        return not found and landed == kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--kills', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kinds = [('paired', False, 2, 1), ('degraded', True, 0, 1), ('two processes', False, 1, 2)]
    right = [
        kill_and_resume(rng, name, args.kills // 3 + (number < args.kills % 3), *kind)
        for number, (name, *kind) in enumerate(kinds)
    ]
    print(f'{sum(right)} of {len(kinds)} runs end in the same bits.')
    return int(not all(right))


if __name__ == '__main__':
    sys.exit(main())
