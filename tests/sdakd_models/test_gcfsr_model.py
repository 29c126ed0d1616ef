"""GCFSR's training: degradation, conditioning, shared noise, the order of a step, R1, stages, bad input."""

import copy
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.models import build_model
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.width import build, student_of
from sdakd_data.face_dataset import FaceDataset, degrade
from sdakd_models.players import r1_penalty
from sdakd_models.reader import force, read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZE = 32
WIDE = {'type': 'GCFSR', 'out_size': SIZE, 'num_style_feat': 16, 'narrow': 1 / 32}
SMALL = student_of(WIDE, 0.5)
JUDGE = {'type': 'GCFSRDiscriminator', 'out_size': SIZE, 'narrow': 1 / 64}


class Faces:
    """Eight images of 32x32, a teacher with 16 channels, options of three short stages."""

    def __init__(self, root, photographs):
        self.root = root
        (root / 'faces').mkdir()
        for name, image in photographs.items():
            for number in range(4):
                cv2.imwrite(str(root / f'faces/{name}{number}.png'), image[:SIZE, SIZE * number : SIZE * number + SIZE])
        torch.manual_seed(1)
        torch.save({'params_ema': build(WIDE, '').state_dict()}, root / 'teacher.pth')

    def options(self):
        student, judge = dict(SMALL), dict(JUDGE)
        data = {'type': 'FaceDataset', 'dataroot_gt': str(self.root / 'faces'), 'io_backend': {'type': 'disk'}}
        data |= {'out_size': SIZE}
        loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'use_hflip': True}
        return {
            'name': 'run',
            'model_type': 'SDAKDGCFSRModel',
            'num_gpu': 'auto',
            'manual_seed': 0,
            'datasets': {
                'train': {'name': 'faces', **data, **loader, 'factors': [2, 4, 8]},
                'val': {'name': 'x4', **data, 'factors': [4]},
                'val_2': {'name': 'x8', **data, 'factors': [8]},
            },
            'network_g': student,
            'network_d': judge,
            'teacher': {'weights': str(self.root / 'teacher.pth')},
            'path': {},
            'train': {
                'ema_decay': 0.9,
                'optim_g': {'type': 'Adam', 'betas': [0, 0.992]},
                'optim_d': {'type': 'Adam', 'betas': [0, 0.9906]},
                'stages': {
                    'supervised': {'iters': 2, 'lr_g': 2e-3, 'terms': ['pixel']},
                    'distillation': {'iters': 2, 'lr_g': 2e-3, 'terms': ['pixel', 'feature']},
                    'adversarial': {'iters': 4, 'lr_g': 2e-3, 'lr_d': 2e-3, 'terms': ['pixel', 'feature', 'gan']},
                },
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 2.0, 'reduction': 'mean'},
                'feature_opt': {'type': 'FeatureMapLoss', 'loss_weight': 0.1},
                'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 1e-2},
                'r1_reg_weight': 10,
                'net_d_reg_every': 2,
            },
            'val': {
                'val_freq': 8,
                'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
            },
            'logger': {'print_freq': 1, 'save_checkpoint_freq': 100, 'use_tb_logger': False},
        }

    def write(self, options):
        path = self.root / 'run.yml'
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return str(path)


@pytest.fixture
def faces(tmp_path, photographs):
    return Faces(tmp_path, photographs)


def model_of(faces, parse, options):
    opt = parse(faces.write(options), faces.root)
    for key in ('models', 'training_states'):
        os.makedirs(opt['path'][key], exist_ok=True)
    return build_model(opt)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    gt, lq = torch.rand(2, 2, 3, SIZE, SIZE, generator=generator)
    return {'gt': gt, 'lq': lq, 'in_size': torch.tensor([[1.0], [2.0]])}


def step(model, iteration):
    torch.manual_seed(iteration)  # of the noise
    model.update_learning_rate(iteration)
    model.feed_data(batch(iteration))
    model.optimize_parameters(iteration)
    return model.get_current_log()


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(before, network):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


# -------------------------------------------------------------------------------------------------------- degradation


def cubic(x):
    """Keys' kernel with a = -1/2, which MATLAB calls bicubic."""
    x = abs(x)
    return (1.5 * x**3 - 2.5 * x**2 + 1) if x <= 1 else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) if x < 2 else 0.0


def resized(line, length):
    """Along the first axis, from the definition: a kernel as wide as the shrinking, mirrored borders, in float64."""
    scale = length / len(line)
    stretch = min(scale, 1)
    result = np.zeros((length, *line.shape[1:]))
    for position in range(length):
        centre, total = (position + 0.5) / scale - 0.5, 0.0
        reach = int(np.ceil(2 / stretch)) + 1
        for source in range(int(np.floor(centre)) - reach, int(np.ceil(centre)) + reach + 1):
            weight = cubic((centre - source) * stretch)
            mirrored = source % (2 * len(line))
            mirrored = mirrored if mirrored < len(line) else 2 * len(line) - 1 - mirrored
            result[position] += weight * line[mirrored]
            total += weight
        result[position] /= total
    return result


def square(image, size):
    return resized(resized(image.astype(np.float64), size).swapaxes(0, 1), size).swapaxes(0, 1)


def assert_rounded(found, exact):
    """To 8 bits; a tie may round either way."""
    wanted = np.round(exact.clip(0, 1) * 255) / 255
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1 / 255 + 1e-6
    assert np.mean(np.abs(found - wanted) > 1e-6) < 0.01


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_degradation_by_its_definition(photographs, factor):
    """Validation rounds both images to 8 bits, training the large one only, and clips no small one."""
    image = next(iter(photographs.values()))[:SIZE, :SIZE].astype(np.float32) / 255
    image[:, ::8] = 1 - image[:, ::8].round()  # stripes of black and white, beside which a cubic kernel overshoots
    small, large = degrade(image, factor)
    exact = square(image, SIZE // factor)
    assert_rounded(small, exact)
    assert_rounded(large, square(small, SIZE))
    small, large = degrade(image, factor, train=True)
    np.testing.assert_allclose(small, exact, atol=1e-6)
    assert factor > 2 or small.min() < 0 or small.max() > 1
    assert_rounded(large, square(exact, SIZE))


def test_items_of_the_data_set(faces):
    options = {**faces.options()['datasets']['train'], 'phase': 'train'}
    data = FaceDataset(options)
    files = [cv2.imread(path)[..., ::-1].astype(np.float32) / 255 for path in data.paths]
    seen, mirrored = set(), 0
    for number in range(40):
        item = data[number % 8]
        image = item['gt'].permute(1, 2, 0).numpy()
        flipped = not np.allclose(image, files[number % 8])
        assert np.allclose(image[:, ::-1] if flipped else image, files[number % 8])
        factor = round(item['in_size'].item() * SIZE / 16)
        seen.add(factor)
        mirrored += flipped
        large = degrade(image[..., ::-1], factor, train=True)[1]
        assert torch.equal(item['lq'], torch.from_numpy(large[..., ::-1].copy()).permute(2, 0, 1))
    assert seen == {2, 4, 8} and 5 < mirrored < 35
    held_out = FaceDataset({**faces.options()['datasets']['val_2'], 'phase': 'val'})
    assert {held_out[number]['in_size'].item() for number in range(8)} == {16 * 8 / SIZE}
    assert np.allclose(held_out[3]['gt'].permute(1, 2, 0).numpy(), files[3])
    large = degrade(files[3][..., ::-1], 8)[1]
    assert torch.equal(held_out[3]['lq'], torch.from_numpy(large[..., ::-1].copy()).permute(2, 0, 1))


def test_lmdb_gives_what_the_folder_gives(faces):
    command = [sys.executable, '-m', 'sdakd.cli', 'prepare', 'lmdb', '-i', 'faces', '-o', 'faces.lmdb']
    subprocess.run(command, cwd=faces.root, check=True, capture_output=True)
    options = {**faces.options()['datasets']['val'], 'phase': 'val'}
    folder = FaceDataset(options)
    packed = FaceDataset({**options, 'dataroot_gt': str(faces.root / 'faces.lmdb'), 'io_backend': {'type': 'lmdb'}})
    assert len(packed) == len(folder) == 16
    for one, two in zip((folder[i] for i in range(16)), (packed[i] for i in range(16)), strict=True):
        assert torch.equal(one['gt'], two['gt']) and torch.equal(one['lq'], two['lq'])


# --------------------------------------------------------------------------------------------------------------- steps


def test_who_learns_in_which_stage_and_what_they_are_given(faces, parse):
    model = model_of(faces, parse, faces.options())
    given = {}

    def note(who):
        return lambda _module, inputs: given.setdefault(who, []).append(inputs)

    model.bare_student.register_forward_pre_hook(note('student'))
    model.teachers['teacher'].register_forward_pre_hook(note('teacher'))
    model.discriminators['student'].bare.register_forward_pre_hook(note('d'))
    expected = [{'g'}] * 2 + [{'g', 'adapter'}] * 2 + [{'g', 'adapter', 'd'}] * 4
    teacher = state(model.teachers['teacher'])
    for iteration, learning in enumerate(expected, 1):
        before = {player.name: state(player.bare) for player in model.players}
        given.clear()
        log = step(model, iteration)
        assert {player.name for player in model.players if moved(before[player.name], player.bare)} == learning
        ((image, in_size, noise),) = given['student']  # one pass
        data = batch(iteration)
        assert torch.equal(image, 2 * data['lq'] - 1) and torch.equal(in_size, data['in_size'])
        assert [tuple(tensor.shape) for tensor in noise] == [(2, 1, 16, 16), (2, 1, 32, 32), (2, 1, 32, 32)]
        if iteration > 2:
            ((image, in_size, its),) = given['teacher']
            assert all(a is b for a, b in zip(its, noise, strict=True))
        if iteration > 4:
            assert torch.equal(given['d'][0][0], 2 * data['gt'] - 1)
            assert ('l_d_r1' in log) == (iteration % 2 == 0)
    assert not moved(teacher, model.teachers['teacher'])


@pytest.mark.parametrize('iteration', [5, 6])
def test_an_adversarial_step_by_its_formulas(faces, parse, iteration):
    """The discriminator first: logistic loss and, in even iterations, 2 x 10 / 2 x R1; then the student against it."""
    options = faces.options()
    options['train']['stages']['adversarial']['terms'] = ['pixel', 'gan']
    model = model_of(faces, parse, options)
    judge, student = (copy.deepcopy(net) for net in (model.discriminators['student'].bare, model.bare_student))
    judge.requires_grad_(True).train()
    data = batch(iteration)
    torch.manual_seed(iteration)
    noise = student.make_noise(2)
    real = (2 * data['gt'] - 1).requires_grad_()
    image = student(2 * data['lq'] - 1, data['in_size'], noise)
    loss = F.softplus(-judge(real)).mean() + F.softplus(judge(image.detach())).mean()
    penalty = torch.zeros(())
    if iteration % 2 == 0:
        (gradient,) = torch.autograd.grad(judge(real).sum(), real, create_graph=True)
        penalty = 2 * 10 / 2 * gradient.pow(2).reshape(2, -1).sum(1).mean()
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.0, 0.9906))
    (loss + penalty).backward()
    optimizer.step()
    objective = (image - data['gt'] * 2 + 1).abs().mean() + 1e-2 * F.softplus(-judge(image)).mean()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3, betas=(0.0, 0.992))
    objective.backward()
    optimizer.step()

    log = step(model, iteration)
    assert log['l_d_real'] + log['l_d_fake'] == pytest.approx(loss.item(), rel=1e-5)
    assert log.get('l_d_r1', 0) == pytest.approx(penalty.item(), rel=1e-4)
    assert log['l_g_pix'] + log['l_g_gan'] == pytest.approx(objective.item(), rel=1e-5)
    for mine, its in ((judge, model.discriminators['student'].bare), (student, model.bare_student)):
        differences = [(a - b).abs() for a, b in zip(mine.parameters(), its.parameters(), strict=True)]
        # a first step of Adam is the gradient's sign, which rounding may turn where the gradient is next to nothing
        assert sum((d > 1e-6).sum().item() for d in differences) < 0.002 * sum(d.numel() for d in differences)


def test_r1_of_a_linear_function_is_its_squared_norm():
    weight = torch.randn(3, 4, 4)

    class Linear(torch.nn.Module):
        def forward(self, x):
            return (x * weight).sum(dim=(1, 2, 3))

    assert r1_penalty(Linear(), torch.rand(5, 3, 4, 4)).item() == pytest.approx(weight.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize('network', [JUDGE, {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}])
def test_r1_against_finite_differences(network):
    torch.manual_seed(0)
    judge = build(network, '').double().eval()
    real = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    gradient = torch.zeros_like(real)
    picked = torch.randperm(3 * SIZE * SIZE)[:40]
    with torch.no_grad():
        for index in picked:
            change = torch.zeros_like(real).reshape(2, -1)
            change[:, index] = 1e-5
            change = change.reshape_as(real)
            up, down = (judge(real + sign * change).reshape(2, -1).sum(1) for sign in (1, -1))
            gradient.reshape(2, -1)[:, index] = (up - down) / 2e-5
    exact = real.clone().requires_grad_()
    (found,) = torch.autograd.grad(judge(exact).sum(), exact)
    found, gradient = found.reshape(2, -1), gradient.reshape(2, -1)
    torch.testing.assert_close(found[:, picked], gradient[:, picked], rtol=1e-4, atol=1e-8)
    assert r1_penalty(judge, real).item() == pytest.approx(found.square().sum(dim=1).mean().item(), rel=1e-9)
    r1_penalty(judge, real).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in judge.parameters())


@pytest.mark.parametrize('network', [JUDGE, {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}])
def test_r1_goes_with_distributed_training(network, tmp_path):
    """DDP waits for a gradient of every parameter, and refuses the next pass where one never comes."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        judge = build(network, '')
        wrapped = torch.nn.parallel.DistributedDataParallel(judge)
        real = torch.rand(2, 3, SIZE, SIZE)
        for _ in range(2):
            wrapped(real).mean().backward()
            r1_penalty(wrapped, real).backward()
            wrapped(1 - real).mean().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_bf16_steps_are_near_those_of_fp32(faces, parse):
    losses = {}
    for precision in ('fp32', 'bf16'):
        options = faces.options()
        options['train'] |= {'precision': precision}
        torch.manual_seed(0)
        model = model_of(faces, parse, options)
        losses[precision] = [step(model, iteration) for iteration in range(1, 7)]
    for one, two in zip(losses['fp32'], losses['bf16'], strict=True):
        for name in one.keys() - {'stage', 'l_d_r1'}:
            if not name.startswith('out_'):
                assert two[name] == pytest.approx(one[name], rel=0.05), name


# ---------------------------------------------------------------------------------------------------------- whole runs


def train(faces, *flags):
    command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', 'run.yml', *flags]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=faces.root, capture_output=True, text=True, env=environment)


def test_the_command_distils_validates_every_factor_and_resumes(faces):
    options = faces.options()
    options['logger']['save_checkpoint_freq'] = 6
    faces.write(options)
    done = train(faces)
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert {f'Validation {name}' for name in ('x4', 'x8')} <= set(re.findall(r'Validation x\d', log))
    models = faces.root / 'experiments/run/models'
    final = torch.load(models / 'net_g_latest.pth', weights_only=True)['params_ema']
    student = build(SMALL, '')
    student.load_state_dict(final)
    os.remove(faces.root / 'experiments/run/training_states/8.state')
    again = train(faces, '--auto_resume')
    assert again.returncode == 0 and 'Resuming training from epoch' in again.stdout + again.stderr, again.stderr


@pytest.mark.parametrize('adversary', ['dcd', 'dcd_modified'])
def test_dcd_on_gcfsr(faces, parse, adversary):
    """Connected maps go into GCFSR's discriminator at its size; it learns from the teacher's faces only."""
    options = faces.options()
    del options['network_d']
    entry = {'network': JUDGE, 'fake': ['teacher']}
    dcd = {'type': 'DCDLoss', 'discriminator_layer': 'final_linear.1:input', 'mlp': adversary == 'dcd_modified'}
    if adversary == 'dcd_modified':
        torch.save({'params': build(JUDGE, '').state_dict()}, faces.root / 'judge.pth')
        entry = {'network': JUDGE, 'weights': str(faces.root / 'judge.pth'), 'learns': False}
    options['discriminators'] = {'teacher': entry}
    options['train']['dcd_opt'] = dcd
    terms = ['pixel', 'dcd', 'gan:teacher']
    options['train']['stages'] = {'adversarial': {'iters': 2, 'lr_g': 2e-3, 'lr_d': 2e-3, 'terms': terms}}
    model = model_of(faces, parse, options)
    before = {player.name: state(player.bare) for player in model.players}
    log = step(model, 1)
    assert log['l_g_dcd'] > 0
    learning = {'g', 'connectors'} | ({'d_teacher'} if adversary == 'dcd' else set())
    assert {player.name for player in model.players if moved(before[player.name], player.bare)} == learning


def test_a_generator_from_scratch_needs_no_teacher(faces, parse):
    options = faces.options()
    del options['teacher']
    options['train']['stages'] = {'adversarial': {'iters': 4, 'lr_g': 2e-3, 'lr_d': 2e-3, 'terms': ['pixel', 'gan']}}
    model = model_of(faces, parse, options)
    before = state(model.bare_student)
    for iteration in range(1, 5):
        step(model, iteration)
    assert len(moved(before, model.bare_student)) > 20


def make_noisy(network):
    """Gives noise its weight, which is 0 at the start."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith('.weight') and parameter.shape == (1,):
                parameter.fill_(1.0)


def validated(faces, parse, noise, seed=0, iteration=1, names=('a', 'b')):
    """What the averaged student makes of one input under the names of two images, and the model."""
    options = faces.options()
    options['val']['noise'], options['manual_seed'] = noise, seed
    torch.manual_seed(0)
    model = model_of(faces, parse, options)
    torch.manual_seed(1)
    model.bare_student.load_state_dict(build(SMALL, '').state_dict())
    make_noisy(model.bare_student)
    model.net_g_ema.load_state_dict(model.bare_student.state_dict())
    model.last_iter, model.is_train = iteration, False
    images = []
    for name in names:
        model.feed_data({key: value[:1] for key, value in batch(1).items()} | {'gt_path': [f'faces/{name}.png']})
        model.test()
        images.append(model.output)
    return images, model


def test_fixed_noise_depends_on_the_images_name_only(faces, parse):
    first, model = validated(faces, parse, 'fixed')
    again, _ = validated(faces, parse, 'fixed', seed=3, iteration=7, names=('b', 'a'))
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    assert not torch.equal(*first)
    # the same noise for every network of the size, whatever its width
    wide, small = build(WIDE, ''), model.bare_student
    for one, two in zip(wide.noise_of('a'), small.noise_of('a'), strict=True):
        assert torch.equal(one, two)
    image = (small(2 * batch(1)['lq'][:1] - 1, batch(1)['in_size'][:1], small.noise_of('a')) + 1) / 2
    torch.testing.assert_close(first[0], image.detach())


def test_random_noise_is_drawn_anew_in_every_validation_and_is_reproducible(faces, parse):
    state_before = torch.get_rng_state()
    first, model = validated(faces, parse, 'random')
    assert not torch.equal(*first) and torch.equal(first[0], validated(faces, parse, 'random')[0][0])
    for change in ({'iteration': 2}, {'seed': 1}):
        assert not torch.equal(first[0], validated(faces, parse, 'random', **change)[0][0])
    torch.set_rng_state(state_before)
    model.test()  # the noise of the training that goes on is not touched
    assert torch.equal(torch.get_rng_state(), state_before)


def test_noise_is_normal_and_differs_between_layers():
    maps = build({**WIDE, 'out_size': 256, 'narrow': 1 / 64}, '').noise_of('a', 1)
    assert not torch.equal(maps[-1], maps[-2])
    values = torch.cat([noise.flatten() for noise in maps])
    assert abs(values.mean().item()) < 4 / len(values) ** 0.5
    assert abs(values.var().item() - 1) < 4 * (2 / len(values)) ** 0.5


def test_validation_adds_no_noise(faces, parse):
    model = model_of(faces, parse, faces.options())
    make_noisy(model.bare_student)
    model.net_g_ema.load_state_dict(model.bare_student.state_dict())
    images = []
    for _ in range(2):
        model.feed_data(batch(1))
        model.test()
        images.append(model.output)
    assert torch.equal(*images)
    noisy = []
    for iteration in (0, 1, 1):
        model.last_iter = iteration
        model.feed_data(batch(1))
        noisy.append(model.generate(model.bare_student, 'student').detach())
    assert torch.equal(*noisy[1:]) and not torch.equal(*noisy[:2])  # an iteration has its noise


# ----------------------------------------------------------------------------------------------------------- bad input


def change(options, path, value):
    block = options
    *parents, last = path.split(':')
    for key in parents:
        block = block[key]
    block[last] = value


@pytest.mark.parametrize(
    ('path', 'value', 'sentence'),
    [
        ('datasets:train:factors', [4, 16], 'the factor 16 does not fit images of 32 pixels'),
        ('datasets:train:factors', [3], 'the factor 3 does not fit'),
        ('datasets:train:factors', 4, 'datasets:train:factors: expected `array`, got `int`'),
        ('datasets:val:out_size', 48, 'datasets:val:out_size: 48 differs from the 32 of datasets:train'),
        ('datasets:train:type', 'FFHQDataset', 'SDAKDGCFSRModel trains on FaceDataset, not FFHQDataset'),
        ('network_g:out_size', 64, 'network_g:out_size: 64 differs from the 32 of the data sets'),
        ('network_d:out_size', 64, 'network_d: it does not take images of 32x32'),
        ('model_type', 'SDAKDModel', 'datasets:train:type: FaceDataset is for SDAKDGCFSRModel, not SDAKDModel'),
        ('network_g', {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'upscale': 1},
         'network_g: SRVGGNetCompact is none of SDAKDGCFSRModel'),
        ('val:noise', 'normal', "val:noise: invalid enum value 'normal'; known are fixed, none, random"),
        ('train:r1_reg_weight', -1, 'train:r1_reg_weight'),
        ('train:precision', 'half', 'train:precision'),
        ('network_g', 'GCFSR', 'network_g: write a mapping of keys and values here'),
        ('datasets:train:io_backend', 'disk', 'datasets:train:io_backend: expected `object`, got `str`'),
        ('datasets:train:io_backend', {'type': 'foo'}, 'io_backend:type: invalid enum value .*; known are disk'),
        ('datasets:train:dataroot_gt', None, 'datasets:train:dataroot_gt: expected `str`, got `null`'),
        ('train:optim_g', {'betas': [0.9]}, 'train:optim_g: '),
    ],
)  # fmt: skip
def test_mistakes(faces, parse, path, value, sentence):
    options = faces.options()
    change(options, path, value)
    with pytest.raises(UserError, match=sentence):
        parse(faces.write(options), faces.root)


def test_noise_is_for_generators_that_take_it(world, parse):
    options = world.options()
    options['val']['noise'] = 'fixed'
    with pytest.raises(UserError, match='val:noise: the generators of SDAKDModel take no noise; leave it out'):
        parse(world.write(options), world.root)


def test_a_size_that_is_no_power_of_two(faces, parse):
    options = faces.options()
    for block in (options['network_g'], *options['datasets'].values()):
        block['out_size'] = 48
    with pytest.raises(UserError, match='network_g: GCFSR cannot be built from these options: .*power of two'):
        parse(faces.write(options), faces.root)


def test_a_teacher_of_another_width_or_variant(faces, parse):
    options = faces.options()
    options['teacher']['network'] = {**WIDE, 'narrow': 1 / 16}
    with pytest.raises(UserError, match=r'teacher:weights: .*teacher.pth does not fit GCFSR\(.*it holds GCFSR\('):
        parse(faces.write(options), faces.root)
    options['teacher']['network'] = {**WIDE, 'type': 'GCFSRBlind'}
    with pytest.raises(UserError, match=r'does not fit GCFSRBlind\(.*it holds GCFSR\('):
        parse(faces.write(options), faces.root)


def test_a_teacher_of_another_size_told_from_its_file(faces, parse):
    options = faces.options()
    torch.save({'params_ema': build({**WIDE, 'out_size': 64}, '').state_dict()}, faces.root / 'teacher.pth')
    with pytest.raises(UserError, match='teacher:out_size: 64 differs from the 32 of the data sets'):
        parse(faces.write(options), faces.root)


def test_gcfsr_in_another_model(world, parse):
    options = world.options()
    torch.save({'params': build(WIDE, '').state_dict()}, world.root / 'gcfsr.pth')
    options['teacher']['weights'] = str(world.root / 'gcfsr.pth')
    with pytest.raises(UserError, match='teacher: GCFSR is trained by SDAKDGCFSRModel'):
        parse(world.write(options), world.root)
    options['network_g'] = dict(SMALL)
    with pytest.raises(UserError, match='network_g: GCFSR is trained by SDAKDGCFSRModel'):
        parse(world.write(options), world.root)


def test_faces_of_another_size_are_named_on_the_command_line(faces):
    cv2.imwrite(str(faces.root / 'faces/large.png'), np.zeros((64, 64, 3), np.uint8))
    faces.write(faces.options())
    done = train(faces)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'large.png is 64x64, not 32x32; make faces of one size with `sdakd prepare faces --size 32`' in done.stderr
    assert not (faces.root / 'experiments').exists()


@pytest.mark.parametrize('size', [512, 1024])
@pytest.mark.parametrize(('ending', 'ratio'), [('', 0.25), ('_1_2', 0.5), ('_1_8', 0.125)])
def test_option_files_differ_in_the_width_only(size, ending, ratio):
    files = [f'{ROOT}/options/sdakd_gcfsr_{size}{end}.yml' for end in ('', ending)]
    quarter, opt = (read_run(file) for file in files)
    for block in ('network_g', 'network_d'):
        assert opt[block] == student_of({**opt[block], 'narrow': 1}, ratio)
        quarter[block]['narrow'] = opt[block]['narrow']
    assert opt == {**quarter, 'name': f'sdakd_gcfsr_{size}{ending}'}


@pytest.mark.parametrize('name', ['sdakd_gcfsr_1024', 'sdakd_gcfsr_512', 'sdakd_gcfsr_128'])
@pytest.mark.parametrize('ratio', [0.5, 0.25, 0.125])
def test_option_files_hold_the_narrowed_teacher(name, ratio):
    opt = read_run(f'{ROOT}/options/{name}.yml')
    narrow = ratio * opt['teacher']['network']['narrow']
    force(opt, [f'network_g:narrow={narrow}', f'network_d:narrow={narrow}'])
    assert opt['network_g'] == student_of(opt['teacher']['network'], ratio)
    assert opt['network_g']['out_size'] == opt['network_d']['out_size'] == int(name.split('_')[2])
