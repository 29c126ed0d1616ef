"""Model files as others write them, opened here and by spandrel: both give the same image."""

import itertools
import re

import pytest
import spandrel
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.families import family_of
from sdakd_arch.inference.fast import Plain, accelerate
from sdakd_arch.width import build, initialise, student_of

SIZE = 12, 20
WRAPPERS = {
    'bare': lambda state: state,
    'params_ema': lambda state: {'params_ema': state},
    'params-ema': lambda state: {'params-ema': state, 'iter': 7},
    'params': lambda state: {'params': state},
    'state_dict': lambda state: {'state_dict': state, 'epoch': 3},
    'model_state_dict': lambda state: {'model_state_dict': state},
    'model': lambda state: {'model': state},
    'net': lambda state: {'net': state},
    'some name': lambda state: {'mine': state},
    'module.': lambda state: prefixed('module.', state),
    'netG.': lambda state: {'params': prefixed('netG.', state)},
    'module.netG.': lambda state: {'state_dict': prefixed('module.netG.', state)},
}
OURS = {  # what spandrel does not open
    'generator': lambda state: {'generator': state, 'discriminator': {'conv0.weight': torch.ones(3)}},
    'net_g': lambda state: {'net_g': state, 'net_d': {'conv0.weight': torch.ones(3)}},
    'twice': lambda state: {'state_dict': {'params': state}},
    'torch.compile': lambda state: {'params': prefixed('_orig_mod.', state)},
    'torch.compile, model.': lambda state: {'params': prefixed('_orig_mod.model.', state)},
    'model.': lambda state: prefixed('model.', state),
    'network.': lambda state: {'params_ema': prefixed('network.', state)},
    'AveragedModel': lambda state: {'n_averaged': torch.tensor(5), **prefixed('module.', state)},
    'Lightning': lambda state: {'state_dict': {**prefixed('net_g.', state), 'net_d.conv0.weight': torch.ones(3)}},
}
CONTAINERS = ('zip', 'legacy', 'safetensors')


def prefixed(prefix, state):
    return {f'{prefix}{key}': tensor for key, tensor in state.items()}


def made(network, scale=0.1):
    """With weights that matter: every layer shows in the image."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network.eval()


def esrgan(scale, shuffle=None, plus=False, channels=(3, 3), blocks=2):
    inside = scale * (shuffle or 1)
    taken = channels[0] * (shuffle or 1) ** 2
    return made(
        ESRGAN(
            in_nc=taken,
            out_nc=channels[1],
            num_filters=8,
            num_blocks=blocks,
            scale=inside,
            plus=plus,
            shuffle_factor=shuffle,
        )
    )


def compact(scale, channels=(3, 3), features=8, convs=2):
    return made(
        Compact(num_in_ch=channels[0], num_out_ch=channels[1], num_feat=features, num_conv=convs, upscale=scale)
    )


def renamed(state, names):
    """ESRGAN's first names as BSRGAN's (``upconv1``) or as Real-ESRGAN's (``conv_up1``)."""
    last = max(int(key.split('.')[1]) for key in state)
    trunk = max(int(key.split('.')[3]) for key in state if key.startswith('model.1.sub.'))
    bsrgan = names == 'bsrgan'
    places = {'model.0': 'conv_first', f'model.1.sub.{trunk}': 'trunk_conv' if bsrgan else 'conv_body'}
    places |= {f'model.{last - 2}': 'HRconv' if bsrgan else 'conv_hr', f'model.{last}': 'conv_last'}
    found = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition('.')
        block = re.fullmatch(r'model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0', module)
        if block:
            place = 'RRDB_trunk.{}.RDB{}.conv{}' if bsrgan else 'body.{}.rdb{}.conv{}'
            place = place.format(*block.groups())
        else:
            number = int(module.split('.')[1]) // 3
            place = places.get(module, f'upconv{number}' if bsrgan else f'conv_up{number}')
        found[f'{place}.{kind}'] = tensor
    return found


def written(state, path, wrapper='bare', container='zip'):
    state = {key: tensor.clone() for key, tensor in state.items()}
    if container == 'safetensors':
        path = path.with_suffix('.safetensors')
        save_file(state, path)
        return path
    content = {**WRAPPERS, **OURS}[wrapper](state)
    torch.save(content, path, _use_new_zipfile_serialization=container == 'zip')
    return path


def image(size=SIZE):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_spandrel(path, size=SIZE):
    return spandrel.ModelLoader('cpu').load_from_file(path).model.eval()(image(size))


@torch.no_grad()
def by_us(path, size=SIZE):
    return open_network(path).module(image(size))


def assert_same(found, wanted):
    assert found.shape == wanted.shape
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


def networks():
    for scale, names in itertools.product((1, 2, 4, 8, 16), ('esrgan', 'bsrgan', 'realesrgan')):
        yield f'x{scale} {names}', lambda scale=scale: esrgan(scale), names, scale, 1
    for (scale, shuffle), names in itertools.product(
        ((1, 2), (1, 4), (2, 2), (2, 4), (4, 2), (8, 2)), ('esrgan', 'bsrgan', 'realesrgan')
    ):
        known = f'x{scale} of {shuffle}x{shuffle} pixels {names}'
        yield known, lambda scale=scale, shuffle=shuffle: esrgan(scale, shuffle), names, scale, shuffle
    for scale, shuffle in ((1, None), (2, None), (4, None), (8, None), (2, 2), (1, 4)):
        known = f'ESRGAN+ x{scale}{" unshuffled" if shuffle else ""}'
        yield (
            known,
            lambda scale=scale, shuffle=shuffle: esrgan(scale, shuffle, plus=True),
            'esrgan',
            scale,
            shuffle or 1,
        )
    for scale in (1, 2, 3, 4, 5, 6, 8):
        yield f'Compact x{scale}', lambda scale=scale: compact(scale), 'compact', scale, 1
    yield 'Compact of 11 convolutions', lambda: compact(2, features=4, convs=11), 'compact', 2, 1
    yield 'x4 of 11 blocks', lambda: esrgan(4, blocks=11), 'realesrgan', 4, 1


NETWORKS = list(networks())


@pytest.mark.parametrize('number', range(len(NETWORKS)), ids=[known for known, *_ in NETWORKS])
def test_spandrel_opens_the_same_image(tmp_path, number):
    _, make, names, scale, multiple = NETWORKS[number]
    state = make().state_dict()
    state = renamed(state, names) if names in ('bsrgan', 'realesrgan') else state
    wrapper = list(WRAPPERS)[number % len(WRAPPERS)]
    path = written(state, tmp_path / 'net.pth', wrapper, CONTAINERS[number % 3])
    opened = open_network(path)
    assert (opened.scale, opened.multiple) == (scale, multiple)
    wanted = by_spandrel(path)
    assert wanted.shape == (1, 3, scale * SIZE[0], scale * SIZE[1])
    assert_same(by_us(path), wanted)


@pytest.mark.parametrize('container', ['zip', 'legacy'])
@pytest.mark.parametrize('wrapper', [*WRAPPERS, *OURS])
@pytest.mark.parametrize('network', ['ESRGAN x2', 'Compact x4'])
def test_wrappers_and_prefixes(tmp_path, wrapper, container, network):
    state = (esrgan(2) if network == 'ESRGAN x2' else compact(4)).state_dict()
    path = written(state, tmp_path / 'net.pth', wrapper, container)
    plain = path if wrapper in WRAPPERS else written(state, tmp_path / 'plain.pth')
    assert_same(by_us(path), by_spandrel(plain))


def test_the_ending_does_not_matter(tmp_path):
    state = compact(2).state_dict()
    wanted = by_spandrel(written(state, tmp_path / 'net.pth'))
    found = written(state, tmp_path / 'net.pth', container='safetensors')
    for name in ('a.pth', 'b.ckpt', 'c'):
        assert_same(by_us(found.rename(tmp_path / name)), wanted)
        found = tmp_path / name
    for name in ('d.safetensors', 'e.bin'):
        (tmp_path / name).write_bytes((tmp_path / 'net.pth').read_bytes())
        assert_same(by_us(tmp_path / name), wanted)


def test_what_a_program_puts_in_front_is_kept_where_it_is_a_networks_own(tmp_path):
    """``net.`` around a network that nobody knows is its own name, and so is a part beside a known one."""
    from sdakd_arch.weights import load_into, read_weights

    class Around(torch.nn.Module):
        def __init__(self, more):
            super().__init__()
            self.net = compact(2)
            if more:
                self.tail = torch.nn.Conv2d(3, 3, 1)

    for more in (False, True):
        torch.manual_seed(9)
        network = Around(more)
        path = written(network.state_dict(), tmp_path / 'net.pth')
        other = Around(more).requires_grad_(False)
        for parameter in other.parameters():
            parameter.zero_()
        load_into(other, read_weights(path), path, 'teacher:weights')
        assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ('make', 'taken', 'given'),
    [
        (lambda: compact(4, (1, 1)), 1, 1),
        (lambda: compact(2, (1, 1)), 1, 1),
        (lambda: compact(4, (1, 3)), 1, 3),
        (lambda: compact(2, (4, 4)), 4, 4),
        (lambda: compact(4, (4, 4)), 4, 4),
        (lambda: esrgan(4, channels=(1, 1)), 1, 1),
        (lambda: esrgan(2, channels=(1, 1)), 1, 1),
        (lambda: esrgan(2, 2, channels=(1, 1)), 1, 1),
        (lambda: esrgan(4, channels=(4, 4)), 4, 4),
        (lambda: esrgan(4, channels=(4, 3)), 4, 3),
        (lambda: esrgan(1, channels=(3, 1)), 3, 1),
        (lambda: esrgan(2, 2, channels=(4, 4)), 4, 4),
    ],
)
def test_networks_of_other_images_than_rgb_are_refused_for_their_channels(tmp_path, make, taken, given):
    network = make()
    path = written(network.state_dict(), tmp_path / 'net.pth')
    known = spandrel.ModelLoader('cpu').load_from_file(path)
    assert (known.input_channels, known.output_channels) == (taken, given)
    with pytest.raises(
        UserError, match=rf'net.pth holds .*maps {taken} channels? to {given}, where RGB images have 3'
    ) as e:
        open_network(path)
    told = re.search(r'(?:upscale|scale)=(\d+)', str(e.value))
    assert int(told[1]) == known.scale


# ------------------------------------------------------------------------------- students of the networks that open


@pytest.mark.parametrize(('scale', 'unshuffle'), [(1, 1), (2, 1), (8, 1), (2, 2), (1, 2), (4, 2)])
def test_a_student_of_esrgan_begins_as_the_enlarged_image(scale, unshuffle):
    network = build({'type': 'ESRGAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': scale, 'unshuffle': unshuffle,
                     'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}, 'network_g')  # fmt: skip
    initialise(network)
    means = torch.nn.functional.avg_pool2d(image(), unshuffle)  # a block of pixels begins as its mean
    wanted = means.repeat_interleave(scale * unshuffle, 2).repeat_interleave(scale * unshuffle, 3)
    with torch.no_grad():
        assert (network(image()) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize('growth', [4, 8, 12])
@pytest.mark.parametrize(('scale', 'unshuffle', 'plus'), [(1, 1, False), (2, 1, False), (8, 2, False), (2, 1, True)])
def test_faster_forms_give_the_same(scale, unshuffle, plus, growth):
    options = {'type': 'ESRGAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': scale, 'unshuffle': unshuffle}
    options |= {'num_feat': 8, 'num_block': 2, 'num_grow_ch': growth, 'plus': plus}
    network = made(build(options, 'network_g')).requires_grad_(False)
    wanted = network(image())
    family = family_of(options)
    fast = accelerate(network)
    assert isinstance(fast, Plain) == plus
    regrouped = [family.regrouped(network, runtime) for runtime in ('onnxruntime', 'openvino')]
    for other in (fast, *regrouped, family.portable(network)):
        assert_same(other(image()), wanted)


@pytest.mark.parametrize('layout', ['esrgan', 'bsrgan', 'realesrgan'])
def test_an_opened_network_is_narrowed(tmp_path, layout):
    state = esrgan(2).state_dict()
    path = written(renamed(state, layout) if layout != 'esrgan' else state, tmp_path / 'net.pth')
    narrow = student_of(open_network(path).network, 1 / 4)
    assert narrow == {'type': 'ESRGAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2, 'unshuffle': 1,
                      'num_feat': 2, 'num_block': 2, 'num_grow_ch': 8}  # fmt: skip
    torch.save({'params': build(narrow, 'network_g').state_dict()}, tmp_path / 'student.pth')
    assert open_network(tmp_path / 'student.pth').network == narrow
