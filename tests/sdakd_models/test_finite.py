"""A loss that is no number is laid to whom it comes from, and networks with such values are neither read nor saved."""

import os
import re

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model

from sdakd.compat import UserError
from sdakd_models.resuming import load_resume_state

NAN, INF = float('nan'), float('inf')
CONTINUE = r', and continue from the last checkpoint in .*models with --auto_resume\.$'


def build(world, parse, options=None, *flags):
    """A model in a run of three stages of two iterations."""
    options = options or world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 2
    opt = parse(world.write(options), world.root, *flags)
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True, exist_ok=True)
    return build_model(opt)


def batch(seed, **paths):
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return {'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4), **paths}


def step(model, iteration, data=None):
    model.update_learning_rate(iteration)
    model.feed_data(data or batch(iteration))
    model.optimize_parameters(iteration)


def blamed(model, iteration, culprit, data=None):
    with pytest.raises(UserError) as caught:
        step(model, iteration, data)
    text = str(caught.value)
    assert '\n' not in text and re.search(
        f'^the loss .* became .* at iteration {iteration} .*: {culprit}{CONTINUE}', text
    ), text


def poison(network, value, name=''):
    """Sets one number of a network's weights or buffers; returns the tensor's name."""
    key, tensor = next((k, v) for k, v in network.state_dict().items() if name in k and v.is_floating_point())
    tensor[(0,) * tensor.dim()] = value
    return key


# ----------------------------------------------------- in training ---------------------------------------------------


@pytest.mark.parametrize('value', [NAN, INF])
@pytest.mark.parametrize(('side', 'what'), [('gt', 'ground truth'), ('lq', 'input')])
def test_the_image_of_a_batch(world, parse, side, what, value):
    model = build(world, parse)
    step(model, 1)
    data = batch(2, gt_path=['/d/good.png', '/d/bad.png'], lq_path=['/d/x.png', '/d/y.png'])
    data[side][1, 0, 3, 3] = value
    blamed(model, 2, f'the {what} of /d/bad.png is not finite; correct the data set, or take the image away', data)


def test_an_image_that_is_none(world, parse):
    """Its values are numbers, and their squares are not."""
    options = world.options()
    options['train']['pixel_opt']['type'] = 'MSELoss'
    model, data = build(world, parse, options), batch(1, gt_path=['/d/good.png', '/d/bad.png'])
    data['gt'][1] = 1e20
    which = r'the ground truth of /d/bad.png is up to 1e\+20, where images are in \[0, 1\]'
    blamed(model, 1, f'{which}; correct the data set, or take the image away', data)


def test_an_image_without_a_name(world, parse):
    model, data = build(world, parse), batch(1)
    data['lq'][0, 0, 0, 0] = NAN
    blamed(model, 1, 'the input of an image is not finite; correct the data set, or take the image away', data)


def test_a_degradation(world, parse):
    """Which image it made so is not known: it may have waited in the pool."""
    names = sorted(os.listdir(world.root / 'HR'))
    (world.root / 'meta.txt').write_text(''.join(f'{name}\n' for name in names))
    options = world.options()
    options |= {'model_type': 'SDAKDRealESRGANModel', **world.degradation}
    data = {key: options['datasets']['train'][key] for key in ('num_worker_per_gpu', 'batch_size_per_gpu', 'use_hflip')}
    data |= {'name': 'x', 'type': 'RealESRGANDataset', 'dataroot_gt': str(world.root / 'HR'), 'gt_size': 64}
    data |= {
        'meta_info': str(world.root / 'meta.txt'),
        'io_backend': {'type': 'disk'},
        'use_rot': False,
        **world.kernels,
    }
    options['datasets']['train'] = data
    model = build(world, parse, options)
    images = build_dataset(model.opt['datasets']['train'])
    items = torch.utils.data.default_collate([images[0], images[1]])
    feed = model.feed_data
    model.feed_data = lambda data: (feed(data), model.lq[1, 0, 3].fill_(NAN))
    blamed(model, 1, 'the input of an image is not finite; correct the options of the degradation', items)


def test_a_teacher_that_overflows(world, parse):
    """On some images only: a rehearsal cannot know."""
    model = build(world, parse)
    step(model, 1)
    with torch.no_grad():
        for parameter in model.teachers['teacher'].parameters():
            parameter.mul_(1e30)
    step(model, 2)  # a stage that does not ask the teacher
    blamed(model, 3, 'what the teacher makes of good images is not finite; take another file for teacher:weights')


def test_a_teacher_that_half_precision_does_not_hold(world, parse):
    """3.4e38 is a number in float32, and infinity in bfloat16; what comes of it is multiplied by 0 in both."""
    state = world.teacher.state_dict()
    state['body.2.bias'][0] = 3.4e38
    state['body.3.weight'][0] = 1.0
    state['body.4.weight'][:, 0] = 0.0
    torch.save({'params': state}, world.root / 'teacher.pth')
    options = world.options()
    options['train']['precision'] = 'bf16'
    options['train']['output_opt'] = {'type': 'L1Loss'}
    options['train']['stages'] = {'distillation': {'iters': 2, 'lr_g': 1e-3, 'terms': ['output']}}
    with pytest.raises(UserError) as caught:
        build(world, parse, options)
    assert re.search(
        r'train:stages:distillation: the loss l_g_output is nan in a rehearsal of the first step: what the teacher '
        r'makes of good images is not finite in bf16, and good in float32; write teacher:precision: fp32\.$',
        str(caught.value),
    )
    options['train']['precision'] = 'fp32'
    step(build(world, parse, options), 1)


def test_an_answer_in_a_cache(world, parse):
    options = world.options()
    options['teacher']['cache'] = str(world.root / 'cache')
    options['train']['output_opt'] = {'type': 'L1Loss'}
    options['train']['stages'] = {'distillation': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel', 'output']}}
    model = build(world, parse, options)
    for path in (world.root / 'cache/images').iterdir():
        np.save(path, np.full_like(np.load(path), NAN))
    data = build_dataset(model.opt['datasets']['train'])
    items = torch.utils.data.default_collate([data[0], data[1]])
    culprit = (
        f'what the teacher makes of good images is not finite in the folder {world.root}/cache; delete that folder'
    )
    blamed(model, 1, f'{culprit} to have it made again', items)


def test_a_student_that_diverges(world, parse):
    options = world.options()
    options['train']['stages']['supervised']['lr_g'] = 1e9
    model = build(world, parse, options)
    step(model, 1)
    rate = 'lower train:stages:supervised:lr_g or set grad_clip there'
    blamed(model, 2, f'what the student makes of good images is not finite, as its weights have diverged; {rate}')


@pytest.mark.parametrize('learns', [True, False])
def test_a_discriminator(world, parse, learns):
    """The student's own GAN loss is the first that shows it."""
    options = world.options()
    del options['train']['stages']['distillation']
    options['discriminators'] = {'other': {'network': options['network_d'], 'learns': learns}}
    if not learns:
        from basicsr.archs import build_network

        torch.save({'params': build_network(dict(options['network_d'])).state_dict()}, world.root / 'other.pth')
        options['discriminators']['other']['weights'] = str(world.root / 'other.pth')
    options['train']['stages']['adversarial']['terms'] = ['pixel', 'gan', 'gan:other']
    model = build(world, parse, options)
    step(model, 3)
    poison(model.discriminators['other'].bare, NAN)
    what = 'the discriminator other gives values that are not finite for good images'
    if learns:
        what += ', as its weights have diverged; lower train:stages:adversarial:lr_d or set grad_clip there'
    else:
        what += '; take another file for discriminators:other:weights'
    blamed(model, 4, what)


@pytest.mark.parametrize('shown', [True, False])
def test_a_teacher_that_learns_along(world, parse, shown):
    options = world.options()
    del options['network_d']
    judge = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    options['discriminators'] = {'teacher': {'network': judge, 'real': 'gt', 'fake': ['teacher']}}
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    terms = ['pixel', 'feature', 'gan:teacher']
    options['train']['stages'] = {'adversarial': {'iters': 2, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': terms}}
    model = build(world, parse, options)
    step(model, 1)
    whose = 'what teacher, which learns along,'
    if shown:
        whose = 'what the teacher'
        poison(model.teachers['teacher'], NAN)
    else:
        poison(model.cotrained[0].player.bare, NAN)
    culprit = f'{whose} makes of good images is not finite, as its weights have diverged'
    blamed(model, 2, f'{culprit}; lower train:stages:adversarial:lr_g or set grad_clip there')


def test_a_loss_that_overflows_by_itself(world, parse):
    options = world.options()
    options['train']['pixel_opt']['loss_weight'] = 3e38
    model, data = build(world, parse, options), batch(1)
    data['gt'] += 10.0  # the rehearsal's are below 1
    blamed(model, 1, 'all images are good, and the loss itself overflows; lower train:stages:supervised:lr_g .*', data)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system starts every process afresh')
def test_the_process_that_knows_tells_all(world, parse, tmp_path):
    """Two processes of a distributed training: one has a bad image, the other one says so."""
    model, data = build(world, parse), batch(1, gt_path=['/d/a.png', '/d/b.png'])
    child = os.fork()
    rank = int(child == 0)
    data['gt'][0, 0, 0, 0] = NAN if rank else 0.5
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=rank, world_size=2)
    model.opt.update(dist=True, rank=rank, world_size=2)
    try:
        blamed(
            model, 1, 'the ground truth of /d/a.png is not finite; correct the data set, or take the image away', data
        )
        status = 0
    except BaseException:
        if child:
            raise
        status = 1
    finally:
        torch.distributed.destroy_process_group()
        if not child:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# ------------------------------------------------- read late, as on a GPU --------------------------------------------


def spoiled(model):
    """A batch whose second ground truth is none, in iteration 2 after a good one; returns the sentence about it."""
    step(model, 1)
    data = batch(2, gt_path=['/d/good.png', '/d/bad.png'])
    data['gt'][1, 0, 3, 3] = NAN
    step(model, 2, data)
    return (
        '^the loss l_g_pix became nan at iteration 2 .*: the ground truth of /d/bad.png is not finite; correct '
        f'the data set, or take the image away{CONTINUE}'
    )


@pytest.mark.parametrize('ends', ['the next batch', 'a validation', 'the log', 'a checkpoint', 'the end of the run'])
def test_a_loss_that_is_read_late_is_laid_to_its_own_step(world, parse, ends):
    model = build(world, parse)
    model.reads_late = True
    sentence = spoiled(model)
    images = torch.utils.data.DataLoader(build_dataset({**model.opt['datasets']['val'], 'phase': 'val', 'scale': 4}))
    before = set(world.root.rglob('*'))
    with pytest.raises(UserError, match=sentence):
        {
            'the next batch': lambda: model.feed_data(batch(3)),
            'a validation': lambda: model.validation(images, 2, None),
            'the log': lambda: model.get_current_log(),
            'a checkpoint': lambda: model.save(0, 2),
            'the end of the run': lambda: model.save(-1, -1),
        }[ends]()
    assert set(world.root.rglob('*')) == before


def test_a_step_whose_values_are_read_late_waits_for_none(world, parse, monkeypatch):
    model, reads = build(world, parse), []
    for name in ('tolist', 'item', '__float__', '__bool__', 'cpu', 'numpy'):
        inner = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args, inner=inner, name=name: (reads.append(name), inner(*args))[1]
        )
    step(model, 2)
    assert reads.count('tolist') == 1  # on a CPU, at once
    model.reads_late, model.shares.every = True, 1000
    step(model, 4)
    reads.clear()
    model.optimize_parameters(6)
    assert reads == []
    model.get_current_log()
    model.get_current_log()
    assert reads == ['tolist']


def test_values_that_are_read_late_are_the_same(world, parse):
    logs = []
    for late in (False, True):
        torch.manual_seed(0)
        model = build(world, parse)
        model.reads_late = late
        found = []
        for iteration in range(1, 7):
            step(model, iteration)
            found.append({name: value for name, value in model.get_current_log().items() if name != 'stage'})
        logs.append(found)
    assert logs[0] == logs[1] and len(logs[0][5]) > 5


# -------------------------------------------------------- on disk ----------------------------------------------------


@pytest.mark.parametrize('place', ['average', 'buffer', 'discriminator', 'adapter'])
def test_nothing_is_saved_with_values_that_are_no_numbers(world, parse, place):
    model = build(world, parse)
    step(model, 1)
    players = {player.name: player.bare for player in model.players}
    name, what = {
        'average': lambda: (poison(model.net_g_ema, INF), r"the student's average \(params_ema\)"),
        'buffer': lambda: (poison(players['d'], NAN, 'weight_u'), 'the network d'),
        'discriminator': lambda: (poison(players['d'], -INF, 'weight_orig'), 'the network d'),
        'adapter': lambda: (poison(players['adapter'], NAN), 'the network adapter'),
    }[place]()
    with pytest.raises(
        UserError, match=rf'^{name} of {what} is not finite at iteration 1 \(stage supervised\): lower its'
    ):
        model.save(0, 1)
    assert not list((world.root / 'experiments').rglob('*_1.pth')) and not list(world.root.rglob('*.state'))


@pytest.mark.parametrize(('label', 'section'), [('g', 'params'), ('g', 'params_ema'), ('d', 'params')])
def test_a_checkpoint_that_is_resumed(world, parse, label, section):
    model = build(world, parse)
    step(model, 1)
    model.save(0, 1)
    path = world.root / f'experiments/run/models/net_{label}_1.pth'
    content = torch.load(path)
    name = next(iter(content[section]))
    content[section][name].view(-1)[0] = NAN
    torch.save(content, path)
    (world.root / 'experiments/run/training_states/1.json').unlink()  # as of a version without manifests
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    with pytest.raises(
        UserError, match=rf'^path:resume_state: .*net_{label}_1.pth is damaged .* tensor {section}:{name} is not'
    ):
        build_model(again).resume_training(load_resume_state(again))


@pytest.mark.parametrize('place', ['teacher:weights', 'path:pretrain_network_g', 'discriminators:other:weights'])
def test_files_that_a_run_starts_from(world, parse, place):
    from basicsr.archs import build_network

    options = world.options()
    options['discriminators'] = {'other': {'network': options['network_d'], 'weights': str(world.root / 'other.pth')}}
    options['train']['stages']['adversarial']['terms'].append('gan:other')
    options['path']['pretrain_network_g'] = str(world.root / 'start.pth')
    networks = {
        'teacher:weights': ('teacher.pth', world.teacher),
        'path:pretrain_network_g': ('start.pth', build_network(dict(options['network_g']))),
        'discriminators:other:weights': ('other.pth', build_network(dict(options['network_d']))),
    }
    for key, (file, network) in networks.items():
        state = network.state_dict()
        if key == place:
            poison(network, NAN)
        torch.save({'params': state}, world.root / file)
    with pytest.raises(
        UserError, match=rf'run.yml: {place}: .*{networks[place][0]} is damaged .* is not finite'
    ) as caught:
        parse(world.write(options), world.root / 'root')
    assert len(caught.value.mistakes) == 1 and not (world.root / 'root').exists()
