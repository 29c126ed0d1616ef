"""A teacher of an architecture that only spandrel knows teaches by its image; what else is asked of it is refused."""

import copy
import pickle

import pytest
import spandrel
import torch
import yaml
from spandrel.architectures.LaMa import LaMa
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR

from sdakd import cli
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.foreign import Foreign

NETWORKS = {
    'SPAN': lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
    'SwinIR': lambda: SwinIR(
        upscale=4, embed_dim=4, depths=[1], num_heads=[2], window_size=4, img_size=16, upsampler='pixelshuffledirect'
    ),
    'OmniSR': lambda: OmniSR(num_in_ch=3, num_out_ch=3, num_feat=8, res_num=1, up_scale=4),
    'SAFMN': lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=4),
    'RCAN': lambda: RCAN(scale=4, n_resgroups=1, n_resblocks=1, n_feats=16),
}


def written(folder, kind='SPAN', name='foreign.pth'):
    torch.manual_seed(2)
    network = NETWORKS[kind]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save({'params_ema': network.state_dict()}, folder / name)
    return folder / name


def by_spandrel(path, image):
    model = spandrel.ModelLoader('cpu').load_from_file(path).eval()
    return torch.cat([model(one[None].clone()) for one in image]).clone()


@pytest.mark.parametrize('kind', NETWORKS)
def test_the_image_is_spandrels(tmp_path, kind):
    path = written(tmp_path, kind)
    opened = open_network(path, foreign=True)
    image = torch.rand(2, 3, 13, 21)
    before = image.clone()
    assert (opened.scale, opened.network) == (4, None)
    found = opened.module(image)
    assert torch.equal(image, before)  # RCAN works in place
    assert (found - by_spandrel(path, image)).abs().max() < 1e-4
    student = torch.zeros(1, requires_grad=True)
    (found * student).sum().backward()  # what comes out may meet gradients
    assert copy.deepcopy(opened.module)(image).equal(opened.module(image))


@pytest.fixture
def options(world):
    opt = world.options()
    opt['teacher'] = {'weights': str(written(world.root))}
    opt['train']['stages'] = {'distillation': {'iters': 2, 'lr_g': 1e-3, 'terms': ['output']}}
    opt['train']['output_opt'] = {'type': 'L1Loss', 'loss_weight': 1.0}
    opt['datasets'].pop('val')
    opt.pop('val')
    for key in ('network_d', 'feature_opt', 'gan_opt'):
        opt.pop(key, None)
        opt['train'].pop(key, None)
    return opt


@pytest.mark.parametrize('kind', ['SPAN', 'SwinIR'])
def test_a_student_is_trained(world, options, fork, kind):
    weights = options['teacher']['weights'] = str(written(world.root, kind))
    run = fork(world.root, '-opt', world.write(options))
    printed = run.wait()
    assert run.status == 0, printed
    assert f'teacher: {kind}' in printed and 'by spandrel' in printed
    assert 'l_g_output' in printed or 'output' in printed
    student = torch.load(world.root / 'experiments/run/models/net_g_2.pth')['params']
    assert all(torch.isfinite(tensor).all() for tensor in student.values())
    assert weights in (world.root / 'experiments/run/run.yml').read_text()


@pytest.mark.parametrize('more', ['cache', 'bf16', 'pool'])
def test_what_else_a_run_may_ask_for(world, options, fork, more):
    options['teacher']['weights'] = str(written(world.root, 'SwinIR'))
    if more == 'cache':
        options['teacher']['cache'] = str(world.root / 'answers')
    elif more == 'bf16':
        options['train']['precision'] = 'bf16'
    else:
        options['train']['pool_reuse'] = 2
        options |= {'gt_size': 32, 'queue_size': 4}
        options['datasets']['train']['gt_size'] = 64
    run = fork(world.root, '-opt', world.write(options))
    printed = run.wait()
    assert run.status == 0, printed


def test_the_loss_is_the_distance_from_its_image(world, options, parse):
    from basicsr.models import build_model

    opt = parse(world.write(options), world.root)
    model = build_model(opt)
    (teacher,) = model.teachers.values()
    assert isinstance(teacher, Foreign)
    lq = torch.rand(2, 3, 8, 8)
    model.feed_data({'lq': lq, 'gt': torch.rand(2, 3, 32, 32)})
    with torch.no_grad():
        wanted = by_spandrel(options['teacher']['weights'], lq)
        inside = slice(4 * model.scenario.border, 32 - 4 * model.scenario.border)
        student = model.net_g(lq)
        distance = (student - wanted)[..., inside, inside].abs().mean()
    model.optimize_parameters(1)
    assert model.log_dict['l_g_output'] == pytest.approx(distance.item(), rel=1e-3)


def changed(options, change):
    change(options)
    return options


def add_features(options):
    options['train']['stages']['distillation']['terms'].append('feature')
    options['train']['feature_opt'] = {'type': 'FeatureMapLoss', 'loss_weight': 0.1}


def name_layers(options):
    add_features(options)
    options['train']['feature_opt']['layers'] = {'body.3': 'network.block_1'}


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (add_features, r'train:feature_opt:layers: SPAN 8nf by spandrel gives its image and no feature maps; compare'),
        (name_layers, r'train:feature_opt:layers: SPAN 8nf by spandrel gives its image and no feature maps; compare'),
        (lambda opt: opt.update(network_g={'width': '1/2'}), r'network_g:width: .*narrowed; write .*type and keys'),
        (lambda opt: opt['network_g'].update(upscale=2), r'teacher: it enlarges 4 times and .* 2 times'),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_run(world, options, parse, change, sentence):
    options.pop('scale')
    with pytest.raises(UserError, match=sentence):
        parse(world.write(changed(options, change)), world.root)
    assert not (world.root / 'experiments').exists()


def test_without_spandrel_the_sentence_names_it(world, options, parse, monkeypatch):
    import builtins
    import importlib.util

    real, find = builtins.__import__, importlib.util.find_spec

    def without(name, *given, **more):
        if name.partition('.')[0] == 'spandrel':
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, '__import__', without)
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *more: None if name == 'spandrel' else find(name, *more)
    )
    with pytest.raises(UserError, match='teacher:weights: .*pip install spandrel'):
        parse(world.write(options), world.root)
    with pytest.raises(UserError, match='nothing tells the architecture.*pip install spandrel'):
        open_network(options['teacher']['weights'])


def test_code_in_a_file_does_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path / 'victim').mkdir, ()

    path = written(tmp_path)
    content = {**torch.load(path), 'extra': Malicious()}
    torch.save(content, path, pickle_module=pickle)
    with pytest.raises(UserError, match='could run code'):
        open_network(path, foreign=True)
    assert not (tmp_path / 'victim').exists()


def test_weights_that_only_look_like_a_network_of_spandrel(tmp_path):
    """It takes whatever has these two names for Compact."""
    torch.save({'body.0.weight': torch.ones(4, 3, 3, 3), 'body.1.weight': torch.ones(2, 2)}, tmp_path / 'net.pth')
    with pytest.raises(UserError, match='nothing tells the architecture'):
        open_network(tmp_path / 'net.pth', foreign=True)


def test_names_with_large_numbers_are_not_counted(tmp_path):
    """spandrel counts layers by the largest number: a name alone would take all memory."""
    path = written(tmp_path, 'SwinIR')
    state = torch.load(path)['params_ema']
    state['layers.9999999999.residual_group.blocks.0.norm1.weight'] = torch.ones(4)
    torch.save(state, path)
    with pytest.raises(UserError, match='nothing tells the architecture'):
        open_network(path, foreign=True)


@pytest.mark.parametrize('supported', [True, False])
def test_precisions_that_an_architecture_does_not_support(tmp_path, supported):
    from sdakd.commands.upscale.upscaler import Upscaler

    opened = open_network(written(tmp_path), foreign=True)
    opened.module.descriptor.supports_half = opened.module.descriptor.supports_bfloat16 = supported
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        found = opened.module(torch.rand(1, 3, 8, 8))
    assert found.dtype == (torch.bfloat16 if supported else torch.float32)
    assert Upscaler(opened, half=True).half == supported


def test_networks_that_are_no_generators_of_images_are_refused(tmp_path):
    torch.save(LaMa().state_dict(), tmp_path / 'lama.pth')
    torch.save(SPAN(num_in_ch=1, num_out_ch=1, feature_channels=8, upscale=4).state_dict(), tmp_path / 'grey.pth')
    for name, sentence in (('lama', 'takes a mask'), ('grey', 'maps 1 channel to 1, where RGB images have 3')):
        with pytest.raises(UserError, match=f'{name}.pth holds .*{sentence}'):
            open_network(tmp_path / f'{name}.pth', foreign=True)


def test_other_commands_say_where_it_is_of_use(tmp_path):
    path = written(tmp_path)
    with pytest.raises(UserError, match='-m: .*holds SPAN 8nf by spandrel, which can teach'):
        cli.main(['export', '-m', str(path), '-o', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


def test_upscale_and_evaluate_run_it(tmp_path, photographs):
    import cv2
    import numpy as np

    path = written(tmp_path, 'SwinIR')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'HR').mkdir()
    image = photographs['chelsea']
    cv2.imwrite(str(tmp_path / 'in/a.png'), image[:21, :37, ::-1])
    cv2.imwrite(str(tmp_path / 'HR/a.png'), image[:64, :64, ::-1])
    assert cli.main(['upscale', '-m', str(path), '-i', str(tmp_path / 'in'), '-o', str(tmp_path / 'out')]) == 0
    found = cv2.imread(str(next((tmp_path / 'out').glob('*.png'))))[..., ::-1]
    lq = torch.from_numpy(np.ascontiguousarray(image[:21, :37])).permute(2, 0, 1)[None] / 255
    wanted = (by_spandrel(path, lq)[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1
    words = [
        'evaluate',
        '-m',
        str(path),
        'bicubic',
        '-d',
        str(tmp_path / 'HR'),
        '--scale',
        '4',
        '-o',
        str(tmp_path / 'e'),
    ]
    assert cli.main([*words, '--metrics', 'psnr']) == 0


def test_distill_makes_its_options(tmp_path):
    from sdakd.commands.distill import recipe

    teacher = open_network(written(tmp_path), foreign=True)
    with pytest.raises(
        UserError, match='--arch: the teacher, SPAN 8nf by spandrel, cannot be narrowed; name the student'
    ):
        recipe.student_network(teacher, 0.25, None)
    student = recipe.student_network(teacher, 0.25, 'SRVGGNetCompact')
    discriminator = recipe.discriminator_network(teacher, 0.25)
    opt = recipe.options(
        teacher, student, discriminator, tmp_path, 'bicubic', recipe.Sizes(2, 24, 8, 8, 96, 1, 'fp32'), 0
    )
    assert opt['teacher'] == {'weights': str((tmp_path / 'foreign.pth').resolve())}
    assert 'feature' not in str(yaml.safe_dump(opt['train']))
    assert [stage['terms'] for stage in opt['train']['stages'].values()] == [
        ['output'],
        ['output'],
        ['output', 'gan:image'],
    ]
