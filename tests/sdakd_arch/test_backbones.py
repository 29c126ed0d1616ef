"""Perceptual backbones against torchvision's own layers: inputs, files, measured units, shift and what a run logs."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from basicsr.models import build_model
from torch.nn import functional as F
from torchvision.models import vgg

from sdakd.compat import UserError
from sdakd_arch.backbones import PerceptualBackbone
from sdakd_losses.imitation_loss import BackbonePerceptualLoss, ImitationLoss

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# how many of torchvision's layers lead to the four depths, and those depths' numbers of channels
ENDS = {'vgg16': (4, 9, 16, 23), 'vgg19': (4, 9, 18, 27), 'squeezenet': (2, 5, 8, 13)}
CHANNELS = [64, 128, 256, 512]


def layers(kind):
    if kind == 'squeezenet':
        return torchvision.models.squeezenet1_1().features
    return vgg.make_layers(vgg.cfgs[{'vgg16': 'D', 'vgg19': 'E'}[kind]])


@pytest.fixture(scope='module')
def networks():
    """torchvision's convolutions with random weights that keep the magnitude of the maps."""
    torch.manual_seed(0)
    found = {kind: layers(kind) for kind in ENDS}
    for network in found.values():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
                torch.nn.init.normal_(module.bias, std=0.1)
    return {kind: network.double() for kind, network in found.items()}


@pytest.fixture(scope='module')
def files(networks, tmp_path_factory):
    """Their files, without classifier; the VGGs end with their deepest map."""
    folder = tmp_path_factory.mktemp('backbones')
    for kind, network in networks.items():
        state = network[: ENDS[kind][-1]].state_dict()
        torch.save({f'features.{key}': value.float() for key, value in state.items()}, folder / f'{kind}.pth')
    return {kind: folder / f'{kind}.pth' for kind in networks}


def prepared(image, given):
    """What a backbone is given for an image in [0, 1], one channel at a time."""
    red, green, blue = image.double().unbind(1)
    if given == 'imagenet':
        channels = (red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225
    elif given == 'caffe':
        channels = 255 * blue - 104, 255 * green - 117, 255 * red - 123
    else:
        channels = red, green, blue
    return torch.stack(channels, 1)


@torch.no_grad()
def maps(networks, kind, image, given):
    found = [networks[kind][:end](prepared(image, given)).numpy() for end in ENDS[kind]]
    assert [each.shape[1] for each in found] == CHANNELS
    return found


# ------------------------------------------------------------------------------------------------ the network by itself


@pytest.mark.parametrize('given', ['imagenet', 'raw', 'caffe'])
@pytest.mark.parametrize('kind', ENDS)
def test_maps_are_torchvisions_with_the_input_written_out(networks, files, kind, given):
    image = torch.rand(2, 3, 40, 32)
    found = PerceptualBackbone(kind, files[kind], given)(image)
    for one, other in zip(found, maps(networks, kind, image, given), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(
    ('backbone', 'given'),
    [('vgg16', 'raw'), ('vgg19', 'imagenet'), ('squeezenet', 'imagenet'), ('squeezenet-caffe', 'caffe')],
)
def test_usual_inputs(files, backbone, given):
    file, image = files[backbone.removesuffix('-caffe')], torch.rand(1, 3, 32, 32)
    kind = backbone.removesuffix('-caffe')
    usual, stated = PerceptualBackbone(backbone, file)(image), PerceptualBackbone(kind, file, given)(image)
    assert all(torch.equal(one, other) for one, other in zip(usual, stated, strict=True))


def test_depths_are_rectified_and_the_last_of_their_resolution():
    """relu1_2, relu2_2, relu3_3 or relu3_4, relu4_3 or relu4_4: a rectifier before a pooling layer."""
    for kind in ('vgg16', 'vgg19'):
        network, ends = layers(kind), ENDS[kind]
        pools = [at for at, layer in enumerate(network) if isinstance(layer, torch.nn.MaxPool2d)]
        assert list(ends) == pools[:4]
        assert all(isinstance(network[end - 1], torch.nn.ReLU) for end in ends)


@pytest.mark.parametrize('kind', ['vgg16', 'vgg19'])
def test_a_file_may_hold_more_than_is_needed(networks, files, tmp_path, kind):
    image = torch.rand(1, 3, 32, 32)
    wanted = PerceptualBackbone(kind, files[kind])(image)
    whole = {f'features.{key}': value.float() for key, value in networks[kind].state_dict().items()}
    for name, state in {'convolutions': whole, 'all': {**whole, 'classifier.0.bias': torch.zeros(9)}}.items():
        torch.save(state, tmp_path / f'{name}.pth')
        found = PerceptualBackbone(kind, tmp_path / f'{name}.pth')(image)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_file_with_too_little_or_of_another_network(files, tmp_path):
    for kind in ENDS:
        for other in ENDS.keys() - {kind}:
            with pytest.raises(UserError, match=f"^here: .* does not hold torchvision's {kind}"):
                PerceptualBackbone(kind, files[other], where='here')
    state = torch.load(files['vgg19'], weights_only=True)
    del state['features.25.bias']
    torch.save(state, tmp_path / 'short.pth')
    with pytest.raises(UserError, match="short.pth does not hold torchvision's vgg19; name its file"):
        PerceptualBackbone('vgg19', tmp_path / 'short.pth')


# ----------------------------------------------------------------------------------------------------------- the losses


def by_hand(networks, kind, given, image, target, weights, units):
    ours, theirs = (maps(networks, kind, each, given) for each in (image, target))
    parts = zip(weights, ours, theirs, units, strict=True)
    return math.fsum(w * np.abs(one - other).mean() / unit for w, one, other, unit in parts)


@pytest.mark.parametrize('kind', ['vgg16', 'vgg19'])
def test_given_units_are_the_activations(networks, files, kind):
    image, target = torch.rand(2, 2, 3, 32, 32)
    weights = [0.1, 0.2, 1.0, 3.0]
    loss = BackbonePerceptualLoss(kind, files[kind], weights, 0.5, input='caffe')
    wanted = 0.5 * by_hand(networks, kind, 'caffe', image, target, weights, [1.0] * 4)
    assert loss(image, target)[0].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(('kind', 'units'), [('squeezenet', None), ('vgg16', 'measured')])
def test_measured_units_are_those_of_the_first_20_targets(networks, files, kind, units):
    loss = BackbonePerceptualLoss(kind, files[kind], [1, 1, 1, 1], units=units, input='imagenet')
    image, squares, weights = torch.rand(1, 3, 20, 20), [[], [], [], []], [1.0] * 4
    for number in range(23):
        target = (1 + number) / 23 * torch.rand(2 if number % 2 else 1, 3, 20, 20)
        found = loss(image[: len(target)].expand(len(target), -1, -1, -1), target)[0].item()
        if number < 20:
            for seen, each in zip(squares, maps(networks, kind, target, 'imagenet'), strict=True):
                seen.append(np.square(each).ravel())
        if number in (0, 1, 2, 19, 20, 22):
            rms = [math.sqrt(np.concatenate(seen).mean()) for seen in squares]
            wanted = by_hand(networks, kind, 'imagenet', image.expand(len(target), -1, -1, -1), target, weights, rms)
            assert found == pytest.approx(wanted, rel=1e-4), number


def test_measured_units_make_files_of_other_magnitudes_equal(networks, files, tmp_path):
    """Rectifiers and pooling are homogeneous: with larger biases and first weights, every map grows."""
    state = torch.load(files['vgg19'], weights_only=True)
    for key in state:
        if key.endswith('bias') or key == 'features.0.weight':
            state[key] = state[key] * 50
    torch.save(state, tmp_path / 'larger.pth')
    student, teacher = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    for make in (ImitationLoss, BackbonePerceptualLoss):
        values = []
        for file in (files['vgg19'], tmp_path / 'larger.pth'):
            found = make('vgg19', file, units='measured').double()(student, teacher)
            values.append(found[0] if isinstance(found, tuple) else found)
        torch.testing.assert_close(*values)


def test_measured_units_of_black_maps_are_finite(networks, tmp_path):
    state = {f'features.{key}': torch.zeros_like(value) for key, value in networks['vgg16'].state_dict().items()}
    torch.save(state, tmp_path / 'dead.pth')
    loss = BackbonePerceptualLoss('vgg16', tmp_path / 'dead.pth', units='measured')
    assert loss(*torch.rand(2, 1, 3, 16, 16))[0].item() == 0


def inputs_of(loss):
    """Records what the backbone is given."""
    seen = []
    loss.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    return seen


def offset_of(image, shifted, shift):
    """By how many pixels down and right an image has been moved behind NumPy's reflection; None for no match."""
    height, width = image.shape[-2:]
    found = []
    for down in range(shift):
        for right in range(shift):
            padded = np.pad(image.numpy(), ((0, 0), (0, 0), (down, 0), (right, 0)), mode='reflect')
            if np.array_equal(padded[..., :height, :width], shifted.numpy()):
                found.append((down, right))
    return found[0] if len(found) == 1 else None


def test_both_images_are_shifted_by_the_same_pixels_and_all_offsets_occur(files):
    loss = BackbonePerceptualLoss('squeezenet', files['squeezenet'], shift=3)
    seen, offsets = inputs_of(loss), []
    image, target = torch.rand(2, 1, 3, 21, 18)
    for _ in range(80):
        loss(image, target)
        target_seen, image_seen = seen[-2:]
        offsets.append(offset_of(image, image_seen, 5))
        assert offset_of(target, target_seen, 5) == offsets[-1] is not None
    assert set(offsets) == {(down, right) for down in range(3) for right in range(3)}


def test_equal_images_stay_equal(files):
    loss = ImitationLoss('vgg19', files['vgg19'], shift=16)
    image = torch.rand(1, 3, 32, 32)
    assert all(loss(image, image).item() == 0 for _ in range(5))


def test_no_shift_outside_of_training_and_no_random_number_without_it(files):
    image, target = torch.rand(2, 1, 3, 32, 32)
    off, on = (BackbonePerceptualLoss('vgg16', files['vgg16'], shift=shift) for shift in (0, 16))
    state = torch.get_rng_state()
    value = off(image, target)[0]
    on.eval()
    seen = inputs_of(on)
    assert all(torch.equal(on(image, target)[0], value) for _ in range(3))
    assert all(torch.equal(one, other) for one, other in zip(seen, 3 * [target, image], strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    on.train()
    assert len({on(image, target)[0].item() for _ in range(10)}) > 5


@pytest.mark.parametrize('make', [ImitationLoss, BackbonePerceptualLoss])
@pytest.mark.parametrize(
    ('values', 'sentence'),
    [
        ({'input': 'rgb'}, "input: there is no 'rgb'; write imagenet, raw or caffe"),
        ({'units': 'measure'}, "units: there is no 'measure'; write given or measured"),
        ({'shift': -4}, 'shift: write a whole number of pixels'),
        ({'backbone': 'resnet'}, "backbone: no backbone is called 'resnet'"),
    ],
)
def test_mistakes_in_python_are_one_sentence_too(files, make, values, sentence):
    with pytest.raises(UserError, match=f'^train:(imitation|perceptual)_opt:{sentence}'):
        make(**{'backbone': 'vgg16', 'weights': files['vgg16'], **values})


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def options(world, files):
    """One stage against the ground truth in a SqueezeNet and against the teacher in a VGG16."""
    options = world.options()
    del options['val'], options['network_d']
    options['datasets'].pop('val')
    options['logger']['print_freq'] = 1
    options['train'] |= {
        'stages': {'only': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel', 'perceptual', 'imitation']}},
        'perceptual_opt': {
            'type': 'BackbonePerceptualLoss', 'backbone': 'squeezenet-caffe', 'weights': str(files['squeezenet']),
        },
        'imitation_opt': {
            'type': 'ImitationLoss', 'backbone': 'vgg16', 'weights': str(files['vgg16']), 'loss_weight': 1e-3,
            'input': 'imagenet', 'units': 'measured', 'shift': 16,
        },
    }  # fmt: skip
    return options


def test_a_run_says_which_backbones_it_has(world, options, files):
    """Values carry the backbone's name, and one line says which file and how it is used."""
    code = f'import sys; from sdakd.cli import train; sys.exit(train(root_path={str(world.root)!r}))'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': ROOT}
    command = [sys.executable, '-c', code, '-opt', world.write(options)]
    done = subprocess.run(command, cwd=world.root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (world.root / 'experiments/run').glob('train_*.log')
    text = log.read_text()
    for line in (
        f'INFO: perceptual: squeezenet of {files["squeezenet"]}, input caffe, units measured, shift 0',
        f'INFO: imitation: vgg16 of {files["vgg16"]}, input imagenet, units measured, shift 16',
    ):
        assert text.count(line) == 1
    names = {'l_g_pix', 'l_g_percep_squeezenet', 'l_g_imit_style_vgg16', 'l_g_imit_feature_vgg16'}
    assert set(re.findall(r'\b(l_g_\w+): \d', text)) == names
    from sdakd.commands.report.curves import read_run

    series = read_run(log.parent).series
    shares = {'share_pixel', 'share_perceptual', 'share_imitation'}
    assert set(series) == names | shares and all(len(points) == 2 for points in series.values())


def test_measured_units_go_on_where_a_run_goes_on(world, parse, options):
    """Two iterations, saved and continued, against four in one go."""
    from sdakd_models.resuming import load_resume_state

    options['train']['stages']['only']['iters'] = 4
    options['train']['imitation_opt']['shift'] = 0

    def step(model, iteration):
        gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(iteration)) / iteration
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': F.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
        return {key: value for key, value in model.get_current_log().items() if key != 'stage'}

    model = build_model(parse(world.write(options), world.root))
    for key in ('models', 'training_states'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    for iteration in (1, 2):
        step(model, iteration)
    model.save(0, 2)
    wanted = [step(model, iteration) for iteration in (3, 4)]
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    state = load_resume_state(again)
    resumed = build_model(again)
    resumed.resume_training(state)
    assert [step(resumed, iteration) for iteration in (3, 4)] == wanted
