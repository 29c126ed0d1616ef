"""A batch in one process, in two with half of it each, and in parts: the same training, for every option file.

In double precision: what is not the same shows, however small it is beside the rounding of float32. STEPS in the
environment is the number of steps in every stage.
"""

import copy
import glob
import os

import pytest
import torch
from basicsr.models import build_model
from torch.nn import functional as F

from sdakd_arch.width import build
from sdakd_models.parts import mixes
from sdakd_models.reader import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STEPS = int(os.environ.get('STEPS', 2))  # of every stage
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


def shrunk(opt, root):
    """A run at small sizes, completed: its terms, its discriminators, its stages."""
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


PATHS = glob.glob(f'{ROOT}/options/**/*.yml', recursive=True)
PATHS = {os.path.relpath(path, f'{ROOT}/options'): path for path in sorted(PATHS) if '/compare/' not in path}


def kind_of(opt, stage):
    """What makes a difference to how a stage's batches are joined: model, terms and losses, who judges whom."""
    blocks = {term: opt['train'].get(f'{term.partition(":")[0]}_opt') for term in stage['terms']}
    judges = {f'gan:{name}': judge for name, judge in (opt.get('discriminators') or {}).items()}
    cotrained = bool((opt.get('teacher') or {}).get('cotrain'))
    return repr(
        [
            (opt['model_type'] == 'SDAKDGCFSRModel', 'lr_g' in stage, cotrained),
            sorted((term, *(block.get(key) for key in TOLD)) for term, block in blocks.items() if block),
            sorted((term, *(judges[term].get(key) for key in TOLD)) for term in stage['terms'] if term in judges),
        ]
    )


TOLD = ('type', 'mlp', 'hidden_ratio', 'teachers', 'real', 'fake', 'learns')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Small runs of the shipped option files, by name, with those of their stages that no other one has."""
    import torchvision

    root, found, known = tmp_path_factory.mktemp('runs'), {}, set()
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), root / 'squeezenet.pth')
    for name, path in PATHS.items():
        opt = read_run(path, ())
        stages = opt['train']['stages']
        for stage in list(stages):
            kind = kind_of(opt, stages[stage])
            if kind in known:
                del stages[stage]
            known.add(kind)
        if stages:
            (root / name).mkdir(parents=True)
            (root / name / 'squeezenet.pth').symlink_to(root / 'squeezenet.pth')
            found[name] = shrunk(opt, root / name)
    return found


@pytest.fixture(autouse=True, scope='module')
def double():
    """What is cast to float32 is cast to float64."""
    single, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    yield
    torch.Tensor.float = single
    torch.set_default_dtype(torch.float32)


def batch(opt, step, images):
    """The images of a step that a process gets."""
    gt = torch.rand(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    gt = F.interpolate(gt, scale_factor=4, mode='bilinear')
    data = {'gt': gt, 'lq': F.avg_pool2d(gt, opt.get('scale') or 4)}
    if opt['model_type'] == 'SDAKDGCFSRModel':
        data |= {'lq': F.interpolate(data['lq'], scale_factor=4), 'in_size': torch.full((BATCH, 1), 0.5)}
    return {key: value[images] for key, value in data.items()}


def train(opt, images=slice(0, BATCH), watch=lambda _model: None):
    """All that has been learned, and all that was logged, after the steps of all stages."""
    torch.manual_seed(5)
    model = build_model(copy.deepcopy(opt))
    watch(model)
    logs = {}
    for step in range(1, model.plan.total_iter + 1):
        model.update_learning_rate(step)
        model.feed_data(batch(opt, step, images))
        if hasattr(model, 'noise'):
            network = next(iter([*model.cast.teachers.values(), model.cast.student]))
            noise = network.make_noise(BATCH, torch.Generator().manual_seed(step))
            model.noise = [each[images] for each in noise]
        model.optimize_parameters(step)
        logs |= {f'{step} {key}': torch.tensor(float(value)) for key, value in model.get_current_log().items()}
    networks = {player.name: player.bare for player in model.players} | {'average': model.cast.average}
    state = {f'{name}.{key}': value for name, network in networks.items() if network is not None
             for key, value in network.state_dict().items()}  # fmt: skip
    return {key: value.clone() for key, value in (state | logs).items()}


def differing(found, wanted):
    """By name, the largest difference in units of the largest value, where it is more than rounding.

    The bias in front of a batch normalisation changes nothing: its gradient is rounding alone, which Adam enlarges.
    """
    assert found.keys() == wanted.keys()
    differences = {}
    for key, value in wanted.items():
        unit = value.double().abs().max().clamp(min=1e-3)
        difference = float((found[key].double() - value.double()).abs().max() / unit)
        if not difference < 1e-6:
            differences[key] = difference
    return differences


def _join(rank, folder, runs):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    found = {name: train(opt | {'dist': True, 'rank': rank, 'world_size': 2}, half) for name, opt in runs.items()}
    torch.save(found, folder / f'{rank}.pt')
    torch.distributed.destroy_process_group()


def on_two_processes(runs, folder):
    context = torch.multiprocessing.get_context('fork')
    processes = [context.Process(target=_join, args=(rank, folder, runs)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.fixture(scope='module')
def alone(runs):
    """What one process makes of the whole batch, by run."""
    return {name: train(opt) for name, opt in runs.items()}


def in_parts(opt, size):
    return opt | {'train': opt['train'] | {'micro_batch_size': size}}


HARD = {  # runs by file, and the images of a part
    'dcd_gcfsr_1024.yml': 2,  # R1, batch normalisation
    'methods/crd/crd_cotrained.yml': 1,  # a teacher that learns along
    'methods/dcd_always_updating.yml': 3,  # passes of a discriminator in both modes before the backward pass
    'methods/akdg.yml': 2,
    'methods/fakd.yml': 1,
    'methods/omgd_two_teachers.yml': 3,
    'zoo/trial_both.yml': 2,
}


def test_two_processes_with_half_of_the_batch_are_one_with_all_of_it(runs, alone, tmp_path):
    """DDP refuses a second step where a parameter got no gradient in the first one: none needs looking for them."""
    for rank, found in enumerate(on_two_processes(runs, tmp_path)):
        wrong = {name: differing(found[name], alone[name]) for name in runs}
        assert not any(wrong.values()), (rank, {name: each for name, each in wrong.items() if each})


def test_a_batch_in_parts_is_the_whole_batch(runs, alone):
    wrong = {}
    for name, size in HARD.items():
        largest = set()

        def watch(model, largest=largest):
            networks = [player.bare for player in model.players if 'g' in player.name or 'd' in player.name[:1]]
            for network in (*networks, *model.teachers.values()):
                if not mixes(network):
                    network.register_forward_hook(lambda _module, _inputs, image: largest.add(len(image)))

        wrong[name] = differing(train(in_parts(runs[name], size), watch=watch), alone[name])
        assert max(largest) == size, name
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize('size', [None, 3])
def test_activation_checkpointing_changes_no_bit(runs, alone, size):
    """With taps, R1, batch normalisation and a teacher that learns along; and within parts."""
    for name, inner in list(DEEP.items())[: None if size is None else 1]:
        calls = []

        def watch(model, inner=inner, calls=calls):
            model.bare_student.get_submodule(inner).register_forward_hook(lambda *_: calls.append(len(calls)))

        opt = in_parts(runs[name], size)
        wanted = alone[name] if size is None else train(opt)
        found = train(opt | {'train': opt['train'] | {'activation_checkpointing': True}}, watch=watch)
        assert [key for key, value in wanted.items() if not torch.equal(value, found[key])] == [], name
        assert len(calls) > opt['train']['stages'][next(iter(opt['train']['stages']))]['iters'] * 2, name


DEEP = {  # runs by file, and a module of the student inside of a block
    'methods/dcd.yml': 'body.4',
    'methods/crd/crd_cotrained.yml': 'body.0',
    'dcd_gcfsr_1024.yml': 'style_convs.1.activate',
    'zoo/sdakd_x4plus_rrdbnet_1_4.yml': 'body.2.rdb1.conv2',
}


def test_parts_on_two_processes(runs, alone, tmp_path):
    parts = {name: in_parts(runs[name], 1) for name in list(HARD)[:3]}
    found = on_two_processes(parts, tmp_path)[1]
    wrong = {name: differing(found[name], alone[name]) for name in parts}
    assert not any(wrong.values()), wrong
