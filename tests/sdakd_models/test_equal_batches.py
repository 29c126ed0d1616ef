"""A batch in one process, in two with half of it each, and in parts: the same training, for every option file.

In double precision, in which nothing but rounding of 1e-16 differs: what is not the same shows whatever its size.
"""

import contextlib
import copy
import glob
import os

import pytest
import torch
from basicsr.models import build_model

from sdakd_arch.width import build
from sdakd_models.reader import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STEPS = int(os.environ.get('STEPS', 4))  # of every stage
BATCH = 4
SIZES = {  # of small networks, by architecture
    'SRVGGNetCompact': {'num_feat': (8, 4), 'num_conv': (4, 4)},
    'RRDBNet': {'num_feat': (8, 4), 'num_grow_ch': (4, 4), 'num_block': (4, 4)},
    'GCFSR': {'out_size': (32, 32), 'num_style_feat': (16, 16), 'narrow': (1 / 32, 1 / 64)},
    'UNetDiscriminatorSN': {'num_feat': (4, 4)},
    'GCFSRDiscriminator': {'out_size': (32, 32), 'narrow': (1 / 64, 1 / 64)},
}


def small(network, teacher=False):
    """The options of a network with few channels: of a teacher, or of one that learns."""
    sizes = {key: pair[0 if teacher else 1] for key, pair in SIZES[network['type']].items()}
    return {**network, **sizes}


def shrunk(path, root):
    """An option file's run at small sizes, completed: its terms, its discriminators, its stages."""
    opt = copy.deepcopy(read_run(path, ()))
    faces = opt['model_type'] == 'SDAKDGCFSRModel'
    opt |= {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': 0, 'high_order_degradation': False}
    opt |= {'rehearsal': True}  # teachers' answers in context need images
    opt |= {'gt_size': 32, 'val': {}, 'manual_seed': 0}
    train = {'gt_size': 32, 'out_size': 32, 'batch_size_per_gpu': BATCH, 'factors': [2, 4]}
    opt['datasets'] = {'train': train if faces else {**train, 'use_hflip': False}}
    for key in ('network_g', 'network_d'):
        if opt.get(key):
            opt[key] = small(opt[key])
    for name, entry in {'teacher': opt.get('teacher'), **(opt.get('teachers') or {})}.items():
        if not entry:
            continue
        network = entry.get('network') or {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': opt['scale']}
        entry['network'] = small(network, teacher=True)
        entry.pop('cache', None)
        if entry.get('weights'):
            torch.manual_seed(len(name))
            entry |= {'weights': str(root / f'{name}.pth'), 'param_key': 'params'}
            torch.save({'params': build(entry['network'], name).state_dict()}, entry['weights'])
    for entry in (opt.get('discriminators') or {}).values():
        entry |= {'network': small(entry['network']), 'weights': None}
    opt['path'] = dict.fromkeys(('experiments_root', 'models', 'training_states', 'log'), str(root))
    opt['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 1000}
    steps = opt['train']
    steps |= {'teacher_margin': 0, 'pool_reuse': 1, 'net_d_reg_every': 2, 'share_freq': 2}
    for stage in steps['stages'].values():
        stage['iters'] = STEPS
    for key, block in steps.items():
        if not key.endswith('_opt') or not block:
            continue
        if isinstance(block.get('layers'), list):
            del block['layers']
        elif block.get('layers'):
            block['layers'] = {name: layers for name, layers in block['layers'].items() if not layers}
        weights = {'backbone': 'squeezenet', 'weights': str(root / 'squeezenet.pth'), 'shift': 0}
        if block['type'] == 'PerceptualLoss':  # a mean over images as well
            steps[key] = {'type': 'BackbonePerceptualLoss', **weights}
        elif 'backbone' in block:
            block |= weights
    return opt


PATHS = [*glob.glob(f'{ROOT}/options/*.yml'), *glob.glob(f'{ROOT}/options/**/*.yml', recursive=True)]
PATHS = {os.path.relpath(path, f'{ROOT}/options'): path for path in PATHS if '/compare/' not in path}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The completed options of every different small run, by the option file that it is first found in."""
    import torchvision

    root = tmp_path_factory.mktemp('runs')
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), root / 'squeezenet.pth')
    found, known = {}, set()
    for name, path in sorted(PATHS.items()):
        folder = root / name.replace('/', '_')
        folder.mkdir()
        (folder / 'squeezenet.pth').symlink_to(root / 'squeezenet.pth')
        opt = shrunk(path, folder)
        if (kind := kind_of(opt)) not in known:
            known.add(kind)
            found[name] = opt
    return found


def kind_of(opt):
    """What is the same for runs that differ in nothing that concerns batches: names, weights, files, lengths."""

    def keys(value):
        if isinstance(value, dict):
            return tuple(sorted((key, keys(each)) for key, each in value.items() if key not in IGNORED))
        if isinstance(value, list):
            return tuple(map(keys, value))
        return type(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    return keys({key: opt.get(key) for key in ('model_type', 'network_g', 'network_d', 'discriminators', 'train')})


IGNORED = {'weights', 'layers', 'scheduler', 'warmup_iter', 'share', 'loss_weight', 'param_key', 'reset_optimizers'}
IGNORED |= {'grad_clip', 'seconds', 'share_freq', 'start_stage'}


@contextlib.contextmanager
def double():
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(torch.float32)


def batch(opt, step, images):
    """The images of a step that a process gets."""
    generator = torch.Generator().manual_seed(step)
    gt = torch.rand(BATCH, 3, 32, 32, generator=generator)
    gt = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(gt, 4), scale_factor=4, mode='bilinear')
    gt = gt.clamp(0, 1)
    if opt['model_type'] == 'SDAKDGCFSRModel':
        lq = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(gt, 4), scale_factor=4)
        return {'gt': gt[images], 'lq': lq[images], 'in_size': torch.full((BATCH, 1), 0.5)[images]}
    return {'gt': gt[images], 'lq': torch.nn.functional.avg_pool2d(gt, opt['scale'])[images]}


def train(opt, images=slice(0, BATCH)):
    """All that changed and all that was logged, after the steps of all stages."""
    torch.manual_seed(5)
    model = build_model(opt)
    logs = {}
    for step in range(1, model.plan.total_iter + 1):
        torch.manual_seed(step)
        model.update_learning_rate(step)
        model.feed_data(batch(opt, step, images))
        if hasattr(model, 'noise'):
            generator = torch.Generator().manual_seed(step)
            generators = (getattr(model, 'bare_student', None), *model.teachers.values())
            network = next(each for each in generators if each is not None)
            model.noise = [each[images] for each in network.make_noise(BATCH, generator)]
        model.optimize_parameters(step)
        logs |= {f'{step} {key}': float(value) for key, value in model.get_current_log().items()}
    state = {}
    for player in model.players:
        state |= {f'{player.name}.{key}': value for key, value in player.bare.state_dict().items()}
    if model.cast.average is not None:
        state |= {f'ema.{key}': value for key, value in model.cast.average.state_dict().items()}
    return {key: value.detach().clone() for key, value in state.items()}, logs


def compare(found, wanted, tolerance):
    """What differs, by name: the largest difference relative to the largest value."""
    assert found[0].keys() == wanted[0].keys() and found[1].keys() == wanted[1].keys()
    wrong = {}
    for key, value in wanted[0].items():
        difference = (found[0][key].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-3)
        if not difference <= tolerance:
            wrong[key] = float(difference)
    for key, value in wanted[1].items():
        if not abs(found[1][key] - value) <= tolerance * max(abs(value), 1e-3):
            wrong[key] = found[1][key], value
    return wrong


def _join(rank, meeting, runs, results, ready):
    torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    for name, opt in runs.items():
        opt = copy.deepcopy(opt) | {'dist': True, 'rank': rank, 'world_size': 2}
        torch.save(train(opt, slice(2 * rank, 2 * rank + 2)), f'{results}/{rank}_{name.replace("/", "_")}')
    torch.distributed.destroy_process_group()


def on_two_processes(runs, folder):
    context = torch.multiprocessing.get_context('fork')
    processes = [context.Process(target=_join, args=(rank, folder / 'meeting', runs, folder, None)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return {
        name: [torch.load(folder / f'{rank}_{name.replace("/", "_")}', weights_only=False) for rank in (0, 1)]
        for name in runs
    }


def test_two_processes_with_two_images_are_one_with_four(runs, tmp_path):
    import time
    with double():
        begun = time.time()
        wanted = {}
        for name, opt in runs.items():
            try:
                wanted[name] = train(copy.deepcopy(opt))
            except Exception as e:
                import traceback; traceback.print_exc()
                print(name, 'FAILED', repr(e)[:300])
        print('one', time.time() - begun)
        begun = time.time()
        for name in wanted:
            f = tmp_path / name.replace('/', '_'); f.mkdir()
            try:
                found = on_two_processes({name: runs[name]}, f)[name]
            except BaseException as e:
                print(name, 'TWO FAILED', repr(e)[:300]); continue
            wrong = compare(found[0], wanted[name], 1e-9)
            wrong |= compare(found[1], wanted[name], 1e-9)
            print(name, len(wanted[name][1]), len(wrong), dict(list(wrong.items())[:6]))
        print('two', time.time() - begun)


def test_parts(runs, tmp_path):
    with double():
        for name, opt in runs.items():
            wanted = train(copy.deepcopy(opt))
            for size in (1, 2, 3):
                opt['train']['micro_batch_size'] = size
                try:
                    wrong = compare(train(copy.deepcopy(opt)), wanted, 1e-7)
                except Exception as e:
                    import traceback; traceback.print_exc(); wrong = repr(e)[:300]
                print(name, size, wrong if isinstance(wrong, str) else (len(wrong), dict(list(wrong.items())[:6])))
