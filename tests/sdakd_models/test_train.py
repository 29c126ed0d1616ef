"""The training step: stages, resuming, averaging, distributed runs, degradation, validation."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from torch.utils.data import DataLoader

from sdakd.compat import UserError


def batches(count, size=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    gts = [torch.rand(size, 3, 32, 32, generator=generator) for _ in range(count)]
    return [{'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)} for gt in gts]


def run(model, data, first, last):
    logs = {}
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration)
        model.feed_data(data[iteration - 1])
        model.optimize_parameters(iteration)
        logs[iteration] = model.get_current_log()
    return logs


def state_of(model):
    """Everything that training changes, as one flat dictionary of copies."""
    state = {}
    for player in model.players:
        state |= {f'{player.name}.{k}': v.clone() for k, v in player.bare.state_dict().items()}
        for number, moments in player.optimizer.state_dict()['state'].items():
            state |= {f'{player.name}.optimizer.{number}.{k}': torch.as_tensor(v).clone() for k, v in moments.items()}
    return state | {f'ema.{k}': v.clone() for k, v in model.net_g_ema.state_dict().items()}


def differing(one, other):
    assert one.keys() == other.keys()
    return {key for key in one if not torch.equal(one[key], other[key])}


@pytest.fixture
def opt(world, parse):
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 6
    opt = parse(world.write(options), world.root)
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True, exist_ok=True)
    return opt


@pytest.mark.parametrize(('stop', 'share'), [*((stop, False) for stop in (3, 6, 9, 12, 15)), (9, True), (15, True)])
def test_a_resumed_run_equals_an_uninterrupted_one(opt, parse, world, stop, share):
    data = batches(18)
    if share:  # its weight is calibrated over all iterations of these stages
        options = yaml.safe_load((world.root / 'run.yml').read_text())
        options['train']['feature_opt'] = {'type': 'FeatureMapLoss', 'share': 0.3}
        opt = parse(world.write(options), world.root)
    torch.manual_seed(5)
    model = build_model(opt)
    run(model, data, 1, stop)
    model.save(0, stop)
    at_stop, teacher = state_of(model), copy.deepcopy(model.teachers['teacher'].state_dict())
    logs = run(model, data, stop + 1, 18)

    torch.manual_seed(99)  # nothing of the second run comes from its own initialisation
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    from sdakd_models.resuming import load_resume_state

    state = load_resume_state(again)
    assert state['iter'] == stop
    resumed = build_model(again)
    resumed.resume_training(state)
    assert not differing(state_of(resumed), at_stop)
    assert all(torch.equal(value, teacher[key]) for key, value in resumed.teachers['teacher'].state_dict().items())
    logs_again = run(resumed, data, stop + 1, 18)
    assert not differing(state_of(resumed), state_of(model))
    for iteration, log in logs_again.items():
        assert {k: v for k, v in log.items() if k != 'stage'} == {
            k: v for k, v in logs[iteration].items() if k != 'stage'
        }
    assert {f'share_{term}' for term in ('pixel', 'feature', 'gan')} <= set(logs[18])
    assert ('weight_feature' in logs[18]) == share


def test_only_the_players_of_a_stage_learn(opt):
    model = build_model(opt)
    data = batches(18)
    teacher = copy.deepcopy(model.teachers['teacher'].state_dict())
    calls = []
    model.teachers['teacher'].register_forward_pre_hook(lambda *_: calls.append(1))
    expected = {6: {'g'}, 12: {'g', 'adapter'}, 18: {'g', 'adapter', 'd'}}
    done = 0
    for end, learning in expected.items():
        before = state_of(model)
        teacher_calls = len(calls)
        logs = run(model, data, done + 1, end)
        moved = {key.split('.')[0] for key in differing_keys(before, state_of(model))} - {'ema'}
        assert moved == learning
        assert len(calls) - teacher_calls == (0 if end == 6 else 6)  # the teacher runs only where a term needs it
        names = set(logs[end])
        assert ('l_g_feature' in names) == (end > 6) and ('l_g_gan' in names) == (end == 18)
        done = end
    assert {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'} <= names
    assert all(torch.equal(value, teacher[key]) for key, value in model.teachers['teacher'].state_dict().items())
    assert all(taps._recorded == {} for taps in model.taps.values()) and set(model.taps) == {'student', 'teacher'}


def differing_keys(before, after):
    return {key for key in after if key not in before or not torch.equal(before[key], after[key])}


def test_first_step_is_adam_on_the_written_objective(opt):
    """One step of stage 2 against the formula, computed here with plain torch."""
    model = build_model(opt)
    data = batches(18)
    learned = next(player.bare for player in model.players if player.name == 'adapter')
    student, adapter = copy.deepcopy(model.bare_student), copy.deepcopy(learned)
    run(model, data, 7, 7)

    shots = {}

    def watch(net, store):
        names = dict(net.named_modules())
        for path in ('body.3', 'body.5', 'body.7', 'body.9'):
            names[path].register_forward_hook(lambda _m, _i, out, path=path: shots.setdefault((store, path), out))

    fresh = copy.deepcopy(model.teachers['teacher'])
    for net in (student, fresh):
        for module in net.modules():
            module._forward_hooks.clear()
    watch(student, 's'), watch(fresh, 't')
    lq, gt = data[6]['lq'], data[6]['gt']
    image = student(lq)
    with torch.no_grad():
        fresh(lq)
    loss = (image - gt).abs().mean()
    for path in ('body.3', 'body.5', 'body.7', 'body.9'):
        mlp = adapter.adapters[path.replace('.', '/')]
        hidden = (
            torch.einsum('oi,nihw->nohw', mlp[0].weight[..., 0, 0], shots['s', path][..., 2:-2, 2:-2])
            + mlp[0].bias[:, None, None]
        )
        mapped = (
            torch.einsum('oi,nihw->nohw', mlp[2].weight[..., 0, 0], hidden.clamp(min=0)) + mlp[2].bias[:, None, None]
        )
        target = shots['t', path][..., 2:-2, 2:-2]  # a quarter of the crop of 8 is border
        loss = loss + 0.1 * ((mapped - target) ** 2).mean() / target.var(unbiased=False) / 4
    loss.backward()
    optimizer = torch.optim.Adam([*student.parameters(), *adapter.parameters()], lr=1e-3 * 1 / 5, betas=(0.9, 0.99))
    optimizer.step()
    for mine, theirs in ((student, model.bare_student), (adapter, learned)):
        for key, value in mine.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[key], value, rtol=0, atol=2e-6, msg=key)


def test_average_follows_its_formula(opt):
    model = build_model(opt)
    average = {k: v.clone() for k, v in model.net_g_ema.named_parameters()}
    for iteration in range(1, 5):
        run(model, batches(4), iteration, iteration)
        decay = min(0.9, (1 + iteration) / (10 + iteration))
        for key, value in model.bare_student.named_parameters():
            average[key] = decay * average[key] + (1 - decay) * value.detach()
    for key, value in model.net_g_ema.named_parameters():
        torch.testing.assert_close(value, average[key])


def test_average_is_basicsrs_bit_for_bit_and_leaves_buffers(opt):
    model = build_model(opt)
    makers = (torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.PReLU(16))
    student, average = (torch.nn.Sequential(*copy.deepcopy(makers)).requires_grad_(learns) for learns in (True, False))
    for network in (student.to(memory_format=torch.channels_last), average):
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * 10 ** torch.randn(tensor.shape))
    buffers = {name: buffer.clone() for name, buffer in average.named_buffers()}
    model.net_g = model.bare_student = student
    reference = copy.copy(model)
    model.net_g_ema, reference.net_g_ema = average, copy.deepcopy(average)
    model.averaged = [list(average.parameters()), list(student.parameters())]
    for iteration, decay in enumerate((2 / 11, 0.5, 0.9, 0.999, 0.9999)):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape) * 10.0**-iteration)
        model.model_ema(decay)
        BaseModel.model_ema(reference, decay)
        wanted = reference.net_g_ema.state_dict()
        assert not [name for name, value in average.state_dict().items() if not torch.equal(value, wanted[name])]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in average.named_buffers())


def test_optimizers_start_afresh_in_every_stage_unless_told(opt):
    steps = []
    for reset in (True, False):
        for stage in opt['train']['stages'].values():
            stage['reset_optimizers'] = reset
        model = build_model(opt)
        run(model, batches(18), 1, 8)
        steps.append(
            {
                float(s['step'])
                for s in next(player for player in model.players if player.name == 'g').optimizer.state.values()
            }
        )
    assert steps == [{2.0}, {8.0}]


def test_starting_in_a_later_stage(opt, world, parse):
    model = build_model(opt)
    run(model, batches(18), 1, 6)
    model.save(0, 6)
    options = world.options()
    options['train']['start_stage'] = 'adversarial'
    file = world.write(options, 'later.yml')
    with pytest.raises(UserError, match='pretrain_network_g'):
        parse(file, world.root)
    options['path'] = {'pretrain_network_g': str(world.root / 'experiments/run/models/net_g_6.pth'),
                       'param_key_g': 'params_ema'}  # fmt: skip
    later = build_model(parse(world.write(options, 'later.yml'), world.root))
    assert later.plan.names == ['adversarial'] and later.plan.total_iter == 20
    for key, value in model.net_g_ema.state_dict().items():
        assert torch.equal(later.bare_student.state_dict()[key], value)
        assert torch.equal(later.net_g_ema.state_dict()[key], value)


@pytest.mark.parametrize('where', ['input', 'gradient'])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(opt, world, where):
    model = build_model(opt)
    data = batches(18)
    run(model, data, 1, 8)
    model.save(0, 8)
    files = {p: p.read_bytes() for p in world.root.rglob('*_8.pth')}
    assert files
    if where == 'input':
        data[8]['gt'][0, 0, 0, 0] = float('nan')
        with pytest.raises(UserError, match=r'l_g_pix became nan at iteration 9 \(stage distillation, step 3\)'):
            run(model, data, 9, 9)
    else:  # a finite loss whose gradient is not: the poisoned weights are not written
        next(model.bare_student.parameters()).register_hook(lambda grad: grad * float('inf'))
        run(model, data, 9, 9)
        with pytest.raises(UserError, match='not finite at iteration 9'):
            model.save(0, 9)
    assert not list(world.root.rglob('*_9.pth')) and not list(world.root.rglob('9.state'))
    assert all(p.read_bytes() == content for p, content in files.items())


def test_a_run_that_ends_early_fails(opt, world):
    model = build_model(opt)
    run(model, batches(18), 1, 17)
    with pytest.raises(UserError, match='ended at iteration 17 of 18'):
        model.save(-1, -1)
    run(model, batches(18), 18, 18)
    model.save(-1, -1)
    assert (world.root / 'experiments/run/models/net_g_latest.pth').exists()


def test_another_teacher_is_refused_on_resuming(opt, world, parse):
    from sdakd_models.resuming import load_resume_state

    model = build_model(opt)
    run(model, batches(18), 1, 3)
    model.save(0, 3)
    changed = {key: value + 0.1 for key, value in world.teacher.state_dict().items()}
    torch.save({'params': changed}, world.root / 'teacher.pth')
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    with pytest.raises(UserError, match='not the teacher'):
        state = load_resume_state(again)
        build_model(again).resume_training(state)


def test_checkpoint_holds_the_student_alone(opt, world):
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    model = build_model(opt)
    run(model, batches(18), 1, 13)
    model.save(0, 13)
    content = torch.load(world.root / 'experiments/run/models/net_g_13.pth', weights_only=True)
    assert set(content) == {'params', 'params_ema'}
    for state in content.values():
        SRVGGNetCompact(num_feat=4, num_conv=4).load_state_dict(state)
    saved = {p.name for p in (world.root / 'experiments/run/models').iterdir()}
    assert saved == {'net_g_13.pth', 'net_d_13.pth', 'net_adapter_13.pth'}


def test_validation_in_tiles_equals_validation_of_whole_images(opt):
    model = build_model(opt)
    image = torch.rand(1, 3, 40, 28)
    results = []
    for val in ({'tile': 0}, {'tile': 12, 'tile_pad': 8}):
        model.opt['val'].update(val)
        model.lq = image
        model.test()
        results.append(model.output)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('storage', ['folder', 'lmdb'])
def test_second_order_degradation_runs_on_the_cpu(world, parse, storage):
    import cv2
    from basicsr.data import build_dataset
    from basicsr.utils.lmdb_util import LmdbMaker

    options = world.options()
    root, names = world.root / 'HR', sorted(p.name for p in (world.root / 'HR').iterdir())
    data = {'name': 'gt', 'type': 'RealESRGANDataset', **world.kernels, 'use_hflip': True, 'use_rot': False,
            'gt_size': 64, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}  # fmt: skip
    if storage == 'folder':
        (world.root / 'meta.txt').write_text(''.join(f'{name}\n' for name in names))
        data |= {'dataroot_gt': str(root), 'meta_info': str(world.root / 'meta.txt'), 'io_backend': {'type': 'disk'}}
    else:
        maker = LmdbMaker(str(world.root / 'gt.lmdb'), map_size=2**24)
        for name in names:
            image = cv2.imread(str(root / name))
            maker.put(cv2.imencode('.png', image)[1].tobytes(), name.split('.')[0], image.shape)
        maker.close()
        data |= {'dataroot_gt': str(world.root / 'gt.lmdb'), 'io_backend': {'type': 'lmdb'}}
    options |= {'model_type': 'SDAKDRealESRGANModel', **world.degradation, 'l1_gt_usm': True, 'gan_gt_usm': False}
    options['datasets']['train'] = data
    opt = parse(world.write(options), world.root)
    model = build_model(opt)
    loader = DataLoader(build_dataset(opt['datasets']['train']), batch_size=2, drop_last=True)
    np.random.seed(0), random.seed(0), torch.manual_seed(0)
    seen = []
    for iteration, batch in enumerate(itertools.islice(loader, 3), start=1):
        model.update_learning_rate(40 + iteration)
        model.feed_data(batch)
        assert model.lq.shape == (2, 3, 16, 16) and model.gt.shape == (2, 3, 64, 64)
        assert 0 <= model.lq.min() and model.lq.max() <= 1
        levels = model.lq * 255
        assert (levels - levels.round()).abs().max() < 1e-3  # rounded to 8 bit
        seen.append(model.lq.clone())
        assert torch.equal(model.target('pixel'), model.gt_usm) and torch.equal(model.target('gan'), model.gt)
        assert not torch.equal(model.gt_usm, model.gt)
        model.optimize_parameters(40 + iteration)
    assert model.queue_lr.device == model.lq.device and model.queue_ptr == 4
    assert not torch.equal(seen[0], seen[1])
    sharp = model.gt_usm - model.gt  # unsharp masking adds what blurring takes away
    assert (sharp * (model.gt - torch.nn.functional.avg_pool2d(model.gt, 9, 1, 4, count_include_pad=False))).sum() > 0


@pytest.mark.parametrize('num_conv', [16, 32])
def test_a_student_from_nothing_learns_at_once(photographs, num_conv):
    """60 steps of L1 training bring a deep, narrow SRVGG closer; from torch's default weights they do not."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    from sdakd_arch.width import initialise

    gt = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in photographs.values()]).float() / 255
    lq = torch.nn.functional.avg_pool2d(gt, 4)
    gains = []
    for prepare in (initialise, lambda network: None):
        torch.manual_seed(0)
        network = SRVGGNetCompact(num_feat=8, num_conv=num_conv)
        prepare(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        losses = []
        for _ in range(60):
            loss = (network(lq) - gt).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        nearest = (torch.nn.functional.interpolate(lq, scale_factor=4) - gt).abs().mean().item()
        gains.append(nearest - min(losses[-5:]))
    assert gains[0] > 0.001 and gains[0] > 3 * gains[1]


def test_perceptual_term_with_a_vgg_file(world, parse, monkeypatch):
    """A random VGG19 beside the run's experiments is found from any folder, and the term is BasicSR's own loss."""
    from basicsr.archs import vgg_arch
    from basicsr.losses.basic_loss import PerceptualLoss
    from torchvision.models import vgg19

    relative = 'experiments/pretrained_models/vgg19-dcbb9e9d.pth'
    monkeypatch.setattr(vgg_arch, 'VGG_PRETRAIN_PATH', relative)
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in vgg19(weights=None).state_dict().items()}
    # the classifier is not used: a stride of 0 stores one number instead of 124 million
    state = {k: torch.randn(s) * 0.05 if k.startswith('f') else torch.zeros(()).expand(s) for k, s in shapes.items()}
    (world.root / relative).parent.mkdir(parents=True)
    torch.save(state, world.root / relative)
    options = world.options()
    values = {'layer_weights': {'conv1_2': 0.1, 'conv3_4': 1}, 'perceptual_weight': 0.5, 'criterion': 'l1'}
    options['train']['perceptual_opt'] = {'type': 'PerceptualLoss', **values}
    options['train']['stages']['supervised']['terms'] = ['pixel', 'perceptual']
    opt = parse(world.write(options), world.root)
    model = build_model(opt)
    before = copy.deepcopy(model.bare_student)
    data = batches(1)
    log = run(model, data, 1, 1)[1]
    expected, style = PerceptualLoss(**values)(before(data[0]['lq']), data[0]['gt'])
    assert style is None and 'l_g_style' not in log
    assert log['l_g_percep'] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('teacher_d', [False, True])
def test_bf16_steps_are_near_those_of_fp32(world, parse, teacher_d):
    """Same start, same batches: bfloat16 keeps 8 bits, losses agree to about a percent; what learns stays float32."""
    losses, seen = {}, {}
    for precision in ('fp32', 'bf16'):
        options = world.options()
        options['train']['precision'] = precision
        for stage in options['train']['stages'].values():
            stage['iters'] = 2
        if teacher_d:
            options['discriminators'] = {'teacher': {'network': options.pop('network_d'), 'fake': ['teacher']}}
            adversarial = options['train']['stages']['adversarial']
            adversarial['terms'] = ['pixel', 'dcd', 'gan:teacher']
            options['train']['teacher_margin'] = 0  # maps of 8x8 are the least that the discriminator takes
            options['train']['dcd_opt'] = {'type': 'DCDLoss', 'layers': ['body.3', 'body.9']}
        torch.manual_seed(0)
        model = build_model(parse(world.write(options), world.root))
        networks = [model.bare_student, *model.teachers.values(), *(a.bare for a in model.discriminators.values())]
        networks += [player.bare for player in model.players if player.name == 'adapter']
        assert len(networks) == 4
        kinds = seen[precision] = set()
        for network in networks:
            convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
            convolution.register_forward_hook(lambda _m, _i, output, kinds=kinds: kinds.add(output.dtype))
        losses[precision] = run(model, batches(6), 1, 6)
        assert {p.dtype for player in model.players for p in player.bare.parameters()} == {torch.float32}
        assert model.output.dtype == torch.float32
    assert seen == {'fp32': {torch.float32}, 'bf16': {torch.bfloat16}}
    for iteration, log in losses['fp32'].items():
        for name, value in log.items():
            if name != 'stage' and not name.startswith(('out_', 'share_')):
                assert losses['bf16'][iteration][name] == pytest.approx(value, rel=0.03), (iteration, name)
