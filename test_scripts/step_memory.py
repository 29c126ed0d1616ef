r"""Memory that a step takes beyond networks and optimizers, at real network sizes, for ways to lower it.

    python test_scripts/step_memory.py -opt options/sdakd_realesrgan_x4.yml --batch 4 --crop 128
    python test_scripts/step_memory.py -opt options/sdakd_gcfsr_1024.yml --batch 1 --crop 1024 --sizes

The last stage of an option file in this process, with random weights and noise as images: the largest sum of the
tensors that live at a time, as PyTorch's profiler counts them, and the processor's seconds. One row without, one for
each of --sizes (train:micro_batch_size), then train:activation_checkpointing, alone and with the smallest size.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'test_scripts')]


def completed(opt: dict, crop: int, batch: int, folder: Path) -> dict:
    """The options of the last stage alone, as a model takes them; images are given, not loaded."""
    opt = copy.deepcopy(opt) | {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': 0}
    opt |= {'rehearsal': True, 'high_order_degradation': False, 'gt_size': crop, 'val': {}, 'manual_seed': 0}
    train = {'gt_size': crop, 'out_size': crop, 'batch_size_per_gpu': batch, 'factors': [4], 'use_hflip': False}
    opt |= {'datasets': {'train': train}, 'logger': {'print_freq': 1000, 'save_checkpoint_freq': 1000}}
    opt['path'] = dict.fromkeys(('experiments_root', 'models', 'training_states', 'log'), str(folder))
    opt['teacher'] |= {'weights': str(folder / 'teacher.pth'), 'param_key': 'params_ema'}
    name, stage = list(opt['train']['stages'].items())[-1]
    opt['train'] |= {'stages': {name: stage | {'iters': 10}}, 'pool_reuse': 1}
    opt['train'] |= {'share_freq': 1000, 'net_d_reg_every': 1000}
    return opt


def step_of(opt: dict, batch: int) -> tuple[float, float]:
    """GiB and processor seconds of a step."""
    import torch
    from basicsr.models import build_model
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    model = build_model(copy.deepcopy(opt))
    data = model.noise_batch(model.scenario, batch)

    def step(iteration: int) -> float:
        begun = time.process_time()
        model.update_learning_rate(iteration)
        model.feed_data(data)
        model.optimize_parameters(iteration)
        return time.process_time() - begun

    step(1)
    seconds = step(2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(3)
    now = peak = 0
    events = [each for each in found.profiler.kineto_results.events() if each.name() == '[memory]']
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**30, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--crop', type=int, default=128)
    parser.add_argument('--sizes', type=int, nargs='*', default=[2, 1])
    parser.add_argument('--force_yml', nargs='+', default=[], help='further changes, as sdakd train takes them')
    args = parser.parse_args()
    from sdakd import compat

    compat.import_basicsr()
    from benchmark_step import make_world, weighted

    from sdakd_models.reader import read_run

    opt = weighted(read_run(args.opt, args.force_yml))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_world(folder, opt)
        os.chdir(folder)
        plain = completed(opt, args.crop, args.batch, folder)
        again = {'activation_checkpointing': True}
        ways = [{}, *({'micro_batch_size': size} for size in args.sizes), again]
        ways += [again | {'micro_batch_size': min(args.sizes)}] if args.sizes else []
        sys.stdout.write('| train | GiB | CPU s |\n|---|--:|--:|\n')
        for way in ways:
            memory, seconds = step_of(plain | {'train': plain['train'] | way}, args.batch)
            words = ', '.join(f'{key}: {str(value).lower()}' for key, value in way.items())
            sys.stdout.write(f'| {words} | {memory:.2f} | {seconds:.1f} |\n')
            sys.stdout.flush()
        os.chdir(ROOT)
    return 0


if __name__ == '__main__':
    sys.exit(main())
