"""Families: what is known of an architecture, and that commands work for those of which little or nothing is."""

import ast
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from basicsr.archs.rcan_arch import RCAN
from basicsr.models import build_model
from torch import nn

from sdakd import cli
from sdakd.compat import UserError
from sdakd_arch.adapter_arch import AdapterBank, match_size
from sdakd_arch.families import FAMILIES, Family, example_of, family_of, register_family
from sdakd_arch.inference.tiling import mirror_to_multiple, run_tiled
from sdakd_arch.pairing import pair_taps
from sdakd_arch.plugins import GROUP
from sdakd_arch.taps import default_taps
from sdakd_arch.weights import infer_network
from sdakd_arch.width import build, build_on_meta, example_inputs, scale_of, student_of

ROOT = Path(__file__).resolve().parents[2]
RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_grow_ch': 4}
SRVGG = {'type': 'SRVGGNetCompact', 'num_feat': 8}
SMALL_EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 4}
SMALL_SWINIR = {
    'type': 'SwinIR', 'img_size': 16, 'window_size': 4, 'depths': [2, 2], 'num_heads': [2, 2], 'embed_dim': 8,
    'upscale': 4, 'upsampler': 'pixelshuffledirect', 'mlp_ratio': 2,
}  # fmt: skip


def on_meta(options):
    return build_on_meta(options, 'network_g')


# -------------------------------------------------------------------------------------------- where knowledge may stand


def comparisons(source):
    """What a source compares with, and the keys of its dictionaries: the constants in them, with their lines."""
    for node in ast.walk(ast.parse(source)):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else getattr(node, 'keys', ())
        for part in filter(None, parts):  # None stands for ** in a dictionary
            yield from (inner for inner in ast.walk(part) if isinstance(inner, ast.Constant))


def test_only_families_ask_for_an_architecture_by_name():
    example = "if kind in ('RRDBNet', 'x'): y = {'GCFSR': {'type': 'EDSR'}, **z}"
    assert [node.value for node in comparisons(example)] == ['RRDBNet', 'x', 'GCFSR', 'type']
    files = [path.relative_to(ROOT) for path in ROOT.glob('sdakd*/**/*.py')]
    found = [
        f'{path}:{node.lineno}: {node.value}'
        for path in files
        if 'families' not in path.parts
        for node in comparisons((ROOT / path).read_text())
        if node.value in FAMILIES
    ]
    assert len(files) > 50 and not found


def test_a_family_is_told_from_options_modules_and_states():
    for options in (RRDB, SRVGG, {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}):
        network = build(options, 'network_g')
        family = family_of(options)
        assert family is family_of(network) is family_of(network.state_dict()) is FAMILIES[options['type']]
    assert family_of({**RRDB, 'type': 'RRDBNet_basicsr'}) is FAMILIES['RRDBNet']
    assert family_of(SMALL_EDSR) is family_of(build(SMALL_EDSR, '')) is family_of({'a.weight': torch.zeros(1)})
    assert family_of(SMALL_EDSR) not in FAMILIES.values()


def test_an_architecture_has_one_family():
    with pytest.raises(ValueError, match='RRDBNet has two families, RRDBNetFamily and Second'):

        @register_family
        class Second(Family):
            types = ('RRDBNet',)


@pytest.mark.parametrize('size', [128, 256])
def test_a_vgg_style_discriminator_is_told_from_its_weights(size):
    with torch.device('meta'):
        state = VGGStyleDiscriminator(3, 8, size).state_dict()
    wanted = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 8, 'input_size': size}
    assert infer_network(state) == wanted
    assert family_of(state).discriminator


# --------------------------------------------------------------------------------------------- without a family: widths


@pytest.mark.parametrize(
    ('network', 'key', 'wide'),
    [
        ({'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3}, 'num_feat', 64),
        ({'type': 'MSRResNet', 'num_feat': 48}, 'num_feat', 48),
        ({**SMALL_SWINIR, 'embed_dim': 60, 'num_heads': [6, 6]}, 'embed_dim', 60),
    ],
)
def test_a_network_without_family_is_narrowed_by_its_constructors_argument(network, key, wide):
    assert student_of(network, 1 / 2) == {**network, key: wide // 2}
    narrow, full = (sum(p.numel() for p in on_meta(student_of(network, r)).parameters()) for r in (1 / 2, 1))
    assert narrow < 0.5 * full


@pytest.mark.parametrize(
    ('network', 'ratio', 'sentence'),
    [
        (SMALL_EDSR, 1 / 16, 'num_feat of EDSR is 8, which 1/16 does not divide into channels'),
        ({**SMALL_SWINIR, 'embed_dim': 60, 'num_heads': [6, 6]}, 1 / 4,
         'embed_dim of SwinIR would be 15 at 1/4, which its 6 attention heads do not divide'),
        ({'type': 'ECBSR'}, 1 / 2, "'ECBSR', whose constructor has neither num_feat nor embed_dim"),
        ({'type': 'EDSRR'}, 1 / 2, "no rule says how to narrow the architecture 'EDSRR'"),
    ],
)  # fmt: skip
def test_widths_that_leave_no_network_without_family(network, ratio, sentence):
    with pytest.raises(UserError) as error:
        student_of(network, ratio)
    assert sentence in str(error.value)


def test_random_networks_of_any_registered_architecture():
    assert scale_of(on_meta(example_of('EDSR')), '-m') == 4
    assert example_of('MSRResNet') == {'type': 'MSRResNet'}
    assert example_of('GCFSR512') == {'type': 'GCFSR', 'out_size': 512}
    for name in ('VGGStyleDiscriminator', 'UNetDiscriminatorSN', 'EDRS', 'ECBSR'):
        with pytest.raises(UserError, match=f"no generator is called '{name}'"):
            example_of(name)


# ----------------------------------------------------------------------------------------------- without a family: taps


class Chain(nn.Module):
    """Convolutions and activations in one Sequential inside another one, and a tail that repeats less."""

    def __init__(self):
        super().__init__()
        layers = [layer for _ in range(5) for layer in (nn.Conv2d(4, 4, 3, 1, 1), nn.LeakyReLU())]
        tail = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 48, 1))
        self.all = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Sequential(*layers), tail, nn.PixelShuffle(4))


def test_the_trunk_is_what_repeats():
    # the upsampler of so short a network has more weights
    assert default_taps(on_meta({**SMALL_EDSR, 'num_block': 2})) == ['body.0', 'body.1']
    assert default_taps(Chain(), 5) == [f'all.1.{2 * step + 1}' for step in range(5)]
    with torch.device('meta'):
        groups = RCAN(3, 3, num_feat=8, num_group=3, num_block=5, squeeze_factor=4)
    assert default_taps(groups) == ['body.0', 'body.1', 'body.2']  # not the five blocks inside one group
    assert default_taps(nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(2)))) == ['0', '1']


def test_steps_that_are_no_maps_are_refused():
    network = build(SMALL_SWINIR, 'network_g')
    with pytest.raises(UserError, match="layers: the tap 'layers.0' of SwinIR is no feature map"):
        pair_taps(network, network, None, 'layers')


# -------------------------------------------------------------------------------------------------- pairing by depth


def depth_of(network, tap):
    """The share of the trunk behind which a tap lies, counted in residual blocks or in activations."""
    number = int(tap.split('.')[1])
    if hasattr(network, 'num_conv'):
        return Fraction(number // 2, network.num_conv)  # body.3 is the activation of the first convolution of num_conv
    return Fraction(number + 1, len(network.body))


@pytest.mark.parametrize(
    ('teacher', 'student'),
    [
        ({**RRDB, 'num_block': 23}, {**SRVGG, 'num_conv': 16}),
        ({**RRDB, 'num_block': 23}, {**SRVGG, 'num_conv': 32}),
        ({**RRDB, 'num_block': 23}, {**RRDB, 'num_block': 6, 'num_feat': 4}),
        ({**RRDB, 'num_block': 6}, {**RRDB, 'num_block': 23}),
        ({**SMALL_EDSR, 'num_block': 16}, {**RRDB, 'num_block': 23}),
        ({**SRVGG, 'num_conv': 32}, {**SRVGG, 'num_conv': 16}),
        ({**RRDB, 'num_block': 23, 'scale': 2}, {**SRVGG, 'num_conv': 16, 'upscale': 2}),
        ({**RRDB, 'num_block': 23}, {**SRVGG, 'num_conv': 2}),
    ],
)
def test_default_taps_are_paired_at_equal_depth(teacher, student):
    networks = on_meta(student), on_meta(teacher)
    pairing = pair_taps(*networks, None, 'layers')
    assert len(pairing.pairs) == min(4, student.get('num_conv', 4))
    depths = [tuple(map(depth_of, networks, pair)) for pair in pairing.pairs.items()]
    for step, (own, other) in enumerate(depths, 1):
        share = Fraction(step, len(depths))
        for depth, network in zip((own, other), networks, strict=True):
            steps = getattr(network, 'num_conv', None) or len(network.body)
            assert 0 <= depth - share < Fraction(1, steps)  # the first step that is not before its share
    assert depths[-1] == (1, 1)
    assert set(pairing.channels.values()) == {(student['num_feat'], teacher['num_feat'])}
    for network, taps in zip(networks, (pairing.pairs, pairing.pairs.values()), strict=True):
        if hasattr(network, 'num_conv'):
            assert all(isinstance(network.get_submodule(tap), nn.PReLU) for tap in taps)


def test_names_that_a_user_gives_stay_names():
    student, teacher = on_meta({**SRVGG, 'num_conv': 16}), on_meta({**SRVGG, 'num_conv': 32})
    assert pair_taps(student, teacher, ['body.9'], 'layers').pairs == {'body.9': 'body.9'}


def test_a_student_without_unshuffling_learns_maps_of_a_teacher_with_it(world, parse):
    """x2plus to SRVGG: the teacher's maps have half the resolution, and the term compares means of 2 x 2 pixels."""
    teacher = build({**RRDB, 'num_block': 2, 'scale': 2}, 'teacher')
    torch.save({'params': teacher.state_dict()}, world.root / 'teacher.pth')
    options = world.options()
    options['network_g'] |= {'upscale': 2}
    options['scale'] = 2
    for folder, side in (('HR', 64), ('LRx4', 32)):  # pairs for scale 2
        for path in (world.root / folder).iterdir():
            cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))
    model = build_model(parse(world.write(options), world.root))
    term = model.terms['feature']
    assert term.pairs == {'teacher': {'body.5': 'body.0', 'body.9': 'body.1'}}
    gt = torch.rand(2, 3, 32, 32)
    before = {key: value.clone() for key, value in model.bare_student.state_dict().items()}
    for iteration in range(21, 24):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': nn.functional.avg_pool2d(gt, 2)})
        model.optimize_parameters(iteration)
    assert model.get_current_log()['l_g_feature'] > 0
    assert any(not torch.equal(before[key], value) for key, value in model.bare_student.state_dict().items())


def test_adapted_maps_are_means_of_areas():
    bank = AdapterBank({'a': (4, 6)}, hidden_ratio=0)
    maps = torch.rand(2, 4, 8, 12)
    (adapted,) = bank({'a': maps}).values()
    wanted = nn.functional.avg_pool2d(adapted, 2)
    torch.testing.assert_close(match_size(adapted, torch.empty(2, 6, 4, 6)), wanted)


# ------------------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize('size', [(13, 18), (3, 9), (16, 16)])
def test_images_are_mirrored_to_the_size_of_windows(size):
    network = build(SMALL_SWINIR, 'network_g').eval()
    assert family_of(network).multiple(network) == 4
    image = torch.rand(1, 3, *size)
    extended = np.pad(image.numpy(), ((0, 0), (0, 0), (0, -size[0] % 4), (0, -size[1] % 4)), mode='reflect')
    np.testing.assert_array_equal(mirror_to_multiple(image, 4).numpy(), extended)
    with torch.no_grad():
        whole = run_tiled(network, image, 4)
        wanted = network(torch.from_numpy(extended))[..., : 4 * size[0], : 4 * size[1]]
    torch.testing.assert_close(whole, wanted)


@pytest.mark.parametrize(('options', 'multiple'), [
    (RRDB, 1), ({**RRDB, 'scale': 2}, 2), ({**RRDB, 'scale': 1}, 4), ({**SRVGG, 'upscale': 2}, 1), (SMALL_EDSR, 1),
])  # fmt: skip
def test_multiples(options, multiple):
    network = on_meta({**options, **({'num_block': 1} if 'num_grow_ch' in options else {})})
    assert family_of(network).multiple(network) == multiple
    scale = scale_of(on_meta({**options, **({'num_block': 1} if 'num_grow_ch' in options else {})}), '')
    (image,) = example_inputs(network, 61)
    assert image.shape[-1] == 61 + -61 % multiple
    assert network(image).shape[-1] == image.shape[-1] * scale
    if multiple > 1:  # and less would not do
        with pytest.raises((AssertionError, RuntimeError)):
            network(image[..., : image.shape[-1] - multiple // 2, :])


# ----------------------------------------------------------------------------- commands, on networks without a family


def evaluated(models, folder, out):
    """Runs `sdakd evaluate`; returns the images that it saved, by model."""
    arguments = ['evaluate', '-m', *map(str, models), '-d', str(folder), '-o', str(out), '--metrics', 'psnr']
    assert cli.main(arguments) == 0
    images = out / 'images' / Path(folder).parent.name
    return {path.name: {p.stem: cv2.imread(str(p)) for p in path.glob('*.png')} for path in images.iterdir()}


@pytest.fixture
def odd(tmp_path, photographs):
    """A set whose LR images have sides that 4 does not divide."""
    from sdakd.commands.prepare.synthesis import downscale

    for side in ('HR', 'LRx4'):
        (tmp_path / 'odd' / side).mkdir(parents=True)
    gt = np.ascontiguousarray(photographs['chelsea'][:52, :72, ::-1])
    cv2.imwrite(str(tmp_path / 'odd/HR/chelsea.png'), gt)
    cv2.imwrite(str(tmp_path / 'odd/LRx4/chelsea.png'), downscale(gt, 4))
    return tmp_path / 'odd/HR'


def experiment(root, name, options):
    """A network where an experiment would have left it."""
    network = build(options, 'network_g').eval()
    folder = root / 'experiments' / name
    (folder / 'models').mkdir(parents=True)
    (folder / 'run.yml').write_text(yaml.safe_dump({'network_g': options}))
    torch.save({'params': network.state_dict()}, folder / 'models/net_g_latest.pth')
    return network, folder / 'models/net_g_latest.pth'


def test_evaluate_and_upscale_take_windows_at_odd_sizes(tmp_path, odd):
    network, path = experiment(tmp_path, 'swin', SMALL_SWINIR)
    found = evaluated([path], odd, tmp_path / 'out')['net_g_latest']['chelsea']
    lq = cv2.imread(str(odd.parent / 'LRx4/chelsea.png'))
    assert lq.shape[:2] == (13, 18)
    image = np.pad(lq[..., ::-1] / np.float32(255), ((0, 3), (0, 2), (0, 0)), mode='reflect')
    with torch.no_grad():
        wanted = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0, :, :52, :72]
    wanted = (wanted.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()[..., ::-1]
    assert np.abs(found - wanted).max() <= 1
    arguments = ['upscale', '-m', str(path), '-i', str(odd.parent / 'LRx4'), '-o', str(tmp_path / 'large')]
    assert cli.main(arguments) == 0
    large = cv2.imread(str(tmp_path / 'large/chelsea_out.png'))
    assert np.abs(large.astype(int) - found).max() <= 1


def test_an_edsr_student_trains_is_measured_and_exported(world, parse, tmp_path, odd):
    torch.manual_seed(4)
    _, teacher = experiment(tmp_path, 'edsr_teacher', SMALL_EDSR)
    options = world.options()
    options['teacher'] = {'weights': str(teacher), 'network': SMALL_EDSR}
    options['network_g'] = {'width': '1/2'}
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    opt = parse(world.write(options), world.root)
    assert opt['network_g'] == {**SMALL_EDSR, 'num_feat': 4}
    model = build_model(opt)
    names = ('body.0', 'body.1', 'body.2', 'body.3')
    assert model.terms['feature'].pairs == {'teacher': {name: name for name in names}}
    gt = torch.rand(2, 3, 32, 32)
    for iteration in range(21, 24):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
    assert model.get_current_log()['l_g_feature'] > 0
    model.save(0, 23)
    student = world.root / 'experiments/run/models/net_g_23.pth'
    (world.root / 'experiments/run/run.yml').write_text(yaml.safe_dump({'network_g': opt['network_g']}))

    out = tmp_path / 'onnx'
    assert cli.main(['export', '-m', str(student), '--to', 'onnx', 'safetensors', '-o', str(out)]) == 0
    network = model.net_g_ema.eval()
    image = torch.rand(2, 3, 13, 18)
    session = onnxruntime.InferenceSession(str(out / 'net_g_23.onnx'), providers=['CPUExecutionProvider'])
    with torch.no_grad():
        difference = session.run(None, {'input': image.numpy()})[0] - network(image).numpy()
    assert np.abs(difference).max() <= 1e-4
    models = [f'{kind}={out}/net_g_23.{kind}' for kind in ('onnx', 'safetensors')] + [f'pth={student}', str(teacher)]
    found = evaluated(models, odd, tmp_path / 'out')
    assert len(found) >= 4
    for kind in ('onnx', 'safetensors'):
        assert np.abs(found[kind]['chelsea'].astype(int) - found['pth']['chelsea']).max() <= 1


# ----------------------------------------------------------------------------------------- a family of somebody else


LADDER = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_arch.families import Family, register_family


class Rung(nn.Module):
    def __init__(self, rails):
        super().__init__()
        self.step = nn.Conv2d(rails, rails, 3, 1, 1)

    def forward(self, x):
        return x + F.relu(self.step(x))


@ARCH_REGISTRY.register()
class LadderNet(nn.Module):
    def __init__(self, rails=8, rungs=3):
        super().__init__()
        self.foot = nn.Conv2d(12, rails, 3, 1, 1)
        for number in range(rungs):  # in no container: only the family can tell the trunk
            self.add_module(f'rung{number}', Rung(rails))
        self.rungs = rungs
        self.top = nn.Conv2d(rails, 192, 3, 1, 1)

    def forward(self, x):
        y = self.foot(F.pixel_unshuffle(x, 2))
        for number in range(self.rungs):
            y = getattr(self, f'rung{number}')(y)
        return F.pixel_shuffle(self.top(y), 8) + F.interpolate(x, scale_factor=4, mode='nearest')


@register_family
class LadderFamily(Family):
    types = ('LadderNet',)
    channels = {'rails': 8}

    def infer(self, state):
        if 'foot.weight' not in state:
            return None
        rungs = sum(key.endswith('.step.weight') for key in state)
        return {'type': 'LadderNet', 'rails': len(state['foot.weight']), 'rungs': rungs}

    def trunk(self, network):
        return [f'rung{number}' for number in range(network.rungs)]

    def initialise(self, network):
        nn.init.constant_(network.foot.bias, 0.125)

    def multiple(self, network):
        return 2
"""


@pytest.fixture(scope='module')
def ladder(tmp_path_factory, photographs):
    """A package with an entry point, a teacher of its architecture, and a comparison of two methods."""
    from sdakd.commands.prepare.synthesis import downscale

    root = tmp_path_factory.mktemp('ladder')
    information = root / 'site/ladder_family-1.0.dist-info'
    information.mkdir(parents=True)
    (information / 'METADATA').write_text('Metadata-Version: 2.1\nName: ladder_family\nVersion: 1.0\n')
    (information / 'entry_points.txt').write_text(f'[{GROUP}]\nladder = ladder_family\n')
    (root / 'site/ladder_family.py').write_text(LADDER)
    for part, name in {'train': 'astronaut', 'validation': 'chelsea', 'test': 'rocket'}.items():
        for side in ('HR', 'LRx4'):
            (root / part / side).mkdir(parents=True)
        gt = np.ascontiguousarray(photographs[name][: 52 if part == 'test' else 64, :72, ::-1])
        cv2.imwrite(str(root / part / f'HR/{name}.png'), gt)
        cv2.imwrite(str(root / part / f'LRx4/{name}.png'), downscale(gt, 4))
    program = 'import torch; from ladder_family import LadderNet; torch.manual_seed(1);'
    program += "torch.save({'params': LadderNet().state_dict()}, 'teacher.pth')"
    status, text = python(root, '-c', f'import sdakd_arch; {program}')
    assert status == 0, text
    length = {'iters': 1, 'lr_g': 1e-3}
    config = {
        'teacher': 'teacher.pth', 'perceptual': 'none', 'output': 'OUT', 'widths': ['1/2'], 'seeds': [0],
        'data': {part: {'gt': f'{part}/HR', 'lq': f'{part}/LRx4'} for part in ('train', 'validation')}
        | {'test': {'odd': 'test/HR'}},
        'budget': {'stages': {'supervised': length, 'distillation': length, 'adversarial': {**length, 'lr_d': 1e-4}},
                   'batch': 1, 'crop': 32},
        'methods': {'sdakd': {'weight': 'train:feature_opt:share'}}, 'reference': 'sdakd',
        'primary': {'metric': 'psnr', 'against': 'gt'}, 'metrics': ['psnr'],
    }  # fmt: skip
    (root / 'compare.yml').write_text(yaml.safe_dump(config, sort_keys=False))
    return root


def python(root, *arguments):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore'}
    environment['PYTHONPATH'] = os.pathsep.join([str(root / 'site'), str(ROOT)])
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=root, env=environment, timeout=500, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process.returncode, process.stdout


def test_a_plug_ins_family_is_compared_measured_and_exported(ladder):
    status, text = python(ladder, '-m', 'sdakd.cli', 'compare', '-opt', 'compare.yml')
    assert status == 0, text
    (cell,) = (ladder / 'OUT/cells').glob('sdakd_*.yml')
    content = yaml.safe_load(cell.read_text())
    assert content['network_g'] == {'type': 'LadderNet', 'rails': 4, 'rungs': 3}
    assert content['network_d']['num_feat'] == 4  # as wide as the student, as the method's file has it
    (start,) = (ladder / 'OUT/starts').glob('*.pth')  # what the first stage begins with, which cells share
    start = torch.load(start, weights_only=True)['params']
    assert torch.equal(start['foot.bias'], torch.full((4,), 0.125))
    experiment = ladder / 'OUT/experiments' / cell.stem
    student = experiment / 'models/net_g_latest.pth'
    status, text = python(ladder, '-m', 'sdakd.cli', 'export', '-m', student, '--to', 'onnx', '-o', 'student.onnx')
    assert status == 0, text
    models = f'onnx=student.onnx pth={student} teacher.pth'.split()
    arguments = [*models, '-d', 'test/HR', '-o', 'measured', '--metrics', 'psnr']
    status, text = python(ladder, '-m', 'sdakd.cli', 'evaluate', '-m', *arguments)
    assert status == 0, text
    onnx, pth = (cv2.imread(str(ladder / f'measured/images/test/{name}/rocket.png')) for name in ('onnx', 'pth'))
    assert onnx.shape == (52, 72, 3)
    assert np.abs(onnx.astype(int) - pth).max() <= 1


def test_a_family_by_imports_narrows_the_teacher_of_an_option_file(ladder, shared_world):
    options = shared_world.options() | {'imports': ['ladder_family'], 'network_g': {'width': '1/4'}}
    options['teacher'] = {'weights': str(ladder / 'teacher.pth')}
    path = shared_world.write(options, 'ladder.yml')
    program = f"""
import sdakd_models
from sdakd_arch.pairing import pair_taps
from sdakd_arch.width import build
from sdakd_models.reader import read_run
options = read_run({path!r})["network_g"]
print(options, pair_taps(build(options, ''), build({{**options, "rails": 8, "rungs": 6}}, ''), None, '').pairs)
"""
    (ladder / 'site/ladder_family-1.0.dist-info/entry_points.txt').rename(ladder / 'not_installed')
    try:
        status, text = python(ladder, '-c', program)
    finally:
        (ladder / 'not_installed').rename(ladder / 'site/ladder_family-1.0.dist-info/entry_points.txt')
    pairs = {'rung0': 'rung1', 'rung1': 'rung3', 'rung2': 'rung5'}
    assert status == 0 and f"{{'type': 'LadderNet', 'rails': 2, 'rungs': 3}} {pairs}" in text, text
