"""Weights files: every form a teacher comes in, what must not be opened, and what others make of the students."""

import os
import pickle

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import save_file

from sdakd.compat import UserError
from sdakd_arch.weights import fingerprint, infer_network, load_into, read_weights, save_whole, tensors_only
from sdakd_arch.width import build, student_of

CPU = torch.device('cpu')


def rrdbnet(**options):
    return RRDBNet(3, 3, **{'num_feat': 8, 'num_block': 2, 'num_grow_ch': 4, **options})


def image_of(net, size=12):
    torch.manual_seed(7)
    with torch.no_grad():
        return net.eval()(torch.rand(1, 3, size, size))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert type(found[key]) is torch.Tensor
        assert found[key].dtype == torch.float32
        assert not found[key].requires_grad
        assert torch.equal(found[key], tensor)


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize('key', ['params_ema', 'params', 'state_dict', None])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('zipped', [True, False])
def test_pth_with_its_tensors_under_any_known_key(tmp_path, key, prefix, zipped):
    wanted = rrdbnet().state_dict()
    state = {prefix + name: tensor for name, tensor in wanted.items()}
    content = state if key is None else {key: state, 'epoch': 3}
    torch.save(content, tmp_path / 'net.pth', _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(tmp_path / 'net.pth'), wanted)
    assert_same(read_weights(str(tmp_path / 'net.pth'), 'params_g'), wanted)


def test_the_key_asked_for_comes_first_and_then_the_averaged_weights(tmp_path):
    states = {key: rrdbnet().state_dict() for key in ('state_dict', 'params', 'params_ema', 'mine')}
    torch.save(states, tmp_path / 'net.pth')
    for key, wanted in [(None, 'params_ema'), ('absent', 'params_ema'), *((k, k) for k in states)]:
        assert_same(read_weights(tmp_path / 'net.pth', key), states[wanted])
    del states['params_ema']
    torch.save(states, tmp_path / 'net.pth')
    assert_same(read_weights(tmp_path / 'net.pth', 'params_ema'), states['params'])


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, suffix, dtype):
    state = {name: tensor.to(dtype) for name, tensor in rrdbnet().state_dict().items()}
    path = tmp_path / f'net{suffix}'
    torch.save({'params': state}, path) if suffix == '.pth' else save_file(state, path)
    assert_same(read_weights(path), {name: tensor.to(torch.float32) for name, tensor in state.items()})


def test_safetensors(tmp_path):
    wanted = rrdbnet().state_dict()
    save_file({f'module.{name}': tensor for name, tensor in wanted.items()}, tmp_path / 'net.safetensors')
    assert_same(read_weights(tmp_path / 'net.safetensors'), wanted)


def test_parameters_become_plain_tensors(tmp_path):
    net = rrdbnet()
    torch.save(dict(net.named_parameters()), tmp_path / 'net.pth')
    assert_same(read_weights(tmp_path / 'net.pth'), net.state_dict())


def test_counters_of_batch_norm_stay_whole_numbers(tmp_path):
    torch.save({'params': torch.nn.BatchNorm2d(3).state_dict()}, tmp_path / 'net.pth')
    assert read_weights(tmp_path / 'net.pth')['num_batches_tracked'].dtype == torch.int64


def named_as_in_esrgans_first_release(state, blocks):
    """A Sequential of: first convolution, trunk with shortcut, twice (enlarge, convolution, activation), two more."""
    places = {'conv_first': 'model.0', 'conv_body': f'model.1.sub.{blocks}', 'conv_up1': 'model.3'}
    places |= {'conv_up2': 'model.6', 'conv_hr': 'model.8', 'conv_last': 'model.10'}
    old = {}
    for key, tensor in state.items():
        parts = key.split('.')
        if parts[0] == 'body':
            _, block, dense, conv, kind = parts
            old[f'model.1.sub.{block}.RDB{dense[-1]}.{conv}.0.{kind}'] = tensor
        else:
            old[f'{places[parts[0]]}.{parts[1]}'] = tensor
    return old


def named_as_in_esrgans_second_release(state, _blocks):
    places = {'conv_body': 'trunk_conv', 'conv_up1': 'upconv1', 'conv_up2': 'upconv2', 'conv_hr': 'HRconv'}
    old = {}
    for key, tensor in state.items():
        parts = key.split('.')
        if parts[0] == 'body':
            old[f'RRDB_trunk.{parts[1]}.{parts[2].replace("rdb", "RDB")}.{parts[3]}.{parts[4]}'] = tensor
        else:
            old[f'{places.get(parts[0], parts[0])}.{parts[1]}'] = tensor
    return old


@pytest.mark.parametrize('rename', [named_as_in_esrgans_first_release, named_as_in_esrgans_second_release])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('blocks', [1, 11])
def test_esrgans_older_names(tmp_path, rename, prefix, blocks):
    net, other = rrdbnet(num_block=blocks), rrdbnet(num_block=blocks)
    old = {prefix + key: tensor for key, tensor in rename(net.state_dict(), blocks).items()}
    assert len(old) == len(net.state_dict())
    torch.save(old, tmp_path / 'old.pth')
    state = read_weights(tmp_path / 'old.pth')
    assert infer_network(state)['num_block'] == blocks
    assert not torch.equal(image_of(other), image_of(net))
    load_into(other, state, 'old.pth', 'teacher:weights')
    assert torch.equal(image_of(other), image_of(net))


# ------------------------------------------------------------------------------------------------------------ refusing


class Malicious:
    """Creates a folder when it is unpickled without restrictions."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle', 'beside'])
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_code_in_a_file_does_not_run(tmp_path, kind, suffix):
    victim, path = tmp_path / 'victim', tmp_path / f'net{suffix}'
    content = {'params': Malicious(victim)}
    if kind == 'beside':
        content = {'params_ema': rrdbnet().state_dict(), 'extra': Malicious(victim)}
    if kind == 'pickle':
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != 'legacy')
    with pytest.raises(UserError, match=f'teacher:weights: .*net{suffix} cannot be read as a weights file'):
        read_weights(path, where='teacher:weights')
    assert not victim.exists()
    if kind == 'pickle':  # the file is what it claims to be
        pickle.loads(path.read_bytes())
        assert victim.exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('kept', [0, 7, 0.5, 0.99])
def test_truncated_files(tmp_path, suffix, kept):
    path = tmp_path / f'net{suffix}'
    state = rrdbnet().state_dict()
    torch.save({'params': state}, path) if suffix == '.pth' else save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(UserError, match=f'teacher:weights: .*net{suffix} cannot be read') as caught:
        read_weights(path, where='teacher:weights')
    assert '\n' not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r'teacher:weights: .*absent\.pth does not exist'):
        read_weights(tmp_path / 'absent.pth', where='teacher:weights')
    with pytest.raises(UserError, match=f'teacher:weights: .*{tmp_path.name}'):
        read_weights(tmp_path, where='teacher:weights')


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ([torch.ones(3)], 'holds a list'),
        (torch.ones(3), 'holds a Tensor'),
        ({'epoch': 3, 'iter': 7}, 'no tensors .* found epoch, iter'),
        ({'params': {}}, 'no tensors'),
        ({}, 'no tensors'),
        ({0: torch.ones(3)}, 'teacher:weights'),
    ],
)
def test_files_that_hold_no_state_dict(tmp_path, content, sentence):
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(UserError, match=sentence):
        read_weights(tmp_path / 'net.pth', where='teacher:weights')


LINEAR = {'type': 'Linear', 'in_features': 2, 'out_features': 2}
TINY = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'num_grow_ch': 4}
COMPACT = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2}
UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}


def made(options):
    return torch.nn.Linear(2, 2) if options is LINEAR else build(options, 'network_g')


@pytest.mark.parametrize(
    ('network', 'file', 'wanted', 'held'),
    [
        (TINY, {**TINY, 'num_feat': 16}, 'num_feat=8', 'num_feat=16'),
        (TINY, {**TINY, 'num_grow_ch': 2}, 'num_grow_ch=4', 'num_grow_ch=2'),
        (TINY, {**TINY, 'num_block': 3}, 'num_block=2', 'num_block=3'),
        (TINY, {**TINY, 'scale': 2}, 'scale=4', 'scale=2'),
        (COMPACT, {**COMPACT, 'num_feat': 16}, 'num_feat=8', 'num_feat=16'),
        (COMPACT, {**COMPACT, 'num_conv': 3}, 'num_conv=2', 'num_conv=3'),
        (COMPACT, {**COMPACT, 'upscale': 2}, 'upscale=4', 'upscale=2'),
        (UNET, {**UNET, 'num_feat': 8}, 'num_feat=4', 'num_feat=8'),
        (TINY, COMPACT, 'RRDBNet', 'SRVGGNetCompact'),
        (TINY, LINEAR, 'RRDBNet', '2 unknown'),
        (LINEAR, TINY, 'Linear', 'num_block=2'),
    ],
)
def test_weights_of_another_network_are_refused_and_both_are_named(network, file, wanted, held):
    net = made(network)
    before = fingerprint(net)
    with pytest.raises(UserError, match=rf'^teacher:weights: some.pth.*{wanted}\b.*{held}\b'):
        load_into(net, made(file).state_dict(), 'some.pth', 'teacher:weights')
    assert fingerprint(net) == before


def test_a_difference_that_no_width_explains_is_named():
    # an image and its condition, six channels, for a discriminator of images
    with pytest.raises(UserError, match='conv0.weight|num_in_ch=6'):
        load_into(made(UNET), made({**UNET, 'num_in_ch': 6}).state_dict(), 'some.pth', 'path:pretrain_network_d')


@pytest.mark.parametrize('key', ['conv_last.weight', 'conv_hr.bias', 'body.0.rdb1.conv1.weight', 'conv_first.weight'])
def test_a_missing_key_is_named(key):
    state = rrdbnet().state_dict()
    del state[key]
    with pytest.raises(UserError, match=f'RRDBNet.*{key}'):
        load_into(rrdbnet(), state, 'some.pth', 'teacher:weights')


def test_an_unknown_key_is_named():
    state = rrdbnet().state_dict() | {'conv_extra.weight': torch.ones(3)}
    with pytest.raises(UserError, match='conv_extra.weight'):
        load_into(rrdbnet(), state, 'some.pth', 'teacher:weights')


# ---------------------------------------------------------------------------------------------------------- inferring


def variants():
    for scale in (4, 2, 1):
        for feat, grow, blocks in ((64, 32, 1), (16, 8, 2), (8, 4, 11), (24, 6, 1)):
            options = {'num_feat': feat, 'num_block': blocks, 'num_grow_ch': grow}
            yield {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': scale, **options}
    for feat, convs, scale in ((64, 16, 4), (32, 32, 4), (16, 1, 2), (8, 5, 3), (8, 4, 1)):
        options = {'num_feat': feat, 'num_conv': convs, 'upscale': scale, 'act_type': 'prelu'}
        yield {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, **options}
    for feat in (4, 64):
        yield {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': feat, 'skip_connection': True}


@pytest.mark.parametrize('options', list(variants()), ids=lambda o: '-'.join(str(v) for v in o.values()))
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_network_is_told_from_its_file(tmp_path, options, suffix):
    net = build(options, 'network_g')
    path = tmp_path / f'net{suffix}'
    torch.save({'params': net.state_dict()}, path) if suffix == '.pth' else save_file(net.state_dict(), path)
    state = read_weights(path)
    found = infer_network(state)
    assert found == options
    other = build(found, 'teacher:network')
    load_into(other, state, path, 'teacher:weights')
    assert torch.equal(image_of(other, 8), image_of(net, 8))


def perceptron():
    layers = torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1)
    return torch.nn.ModuleDict({'body': torch.nn.Sequential(*layers)})


@pytest.mark.parametrize(
    ('make', 'without'),
    [
        (lambda: SRVGGNetCompact(num_feat=8, num_conv=1, act_type='leakyrelu'), None),
        (perceptron, None),
        (rrdbnet, 'conv_last.weight'),
        (lambda: UNetDiscriminatorSN(3, 4), 'conv0.weight'),
    ],
    ids=['leakyrelu', 'perceptron', 'no last layer', 'no first layer'],
)
def test_other_networks_are_not_guessed(make, without):
    state = make().state_dict()
    state.pop(without, None)
    assert infer_network(state) is None


# ------------------------------------------------------------------------------------------------- others open students


SRVGG = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_conv': 6, 'upscale': 4}
RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 2, 'num_grow_ch': 32}
WIDTHS = [1, 1 / 2, 1 / 4, 1 / 8]


@pytest.fixture
def small(photo):
    return photo[..., 40:61, 30:54].contiguous()


def basicsr_image(options, state, image):
    """BasicSR's own class, not what the registry holds: realesrgan registers a class of the same name."""
    cls = {'SRVGGNetCompact': SRVGGNetCompact, 'RRDBNet': RRDBNet}[options['type']]
    net = cls(**{key: value for key, value in options.items() if key != 'type'}).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(image)


def vivid(options):
    """A network whose image depends on every layer: BasicSR begins residual blocks and PReLUs near the identity."""
    net = build(options, 'network_g')
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize('ratio', WIDTHS)
def test_spandrel_opens_srvgg_students(tmp_path, small, ratio):
    from spandrel import ModelLoader

    options = student_of(SRVGG, ratio)
    state = vivid(options).state_dict()
    save_whole({'params_ema': state}, tmp_path / 'student.pth')
    found = ModelLoader(device=CPU).load_from_file(tmp_path / 'student.pth')
    assert (found.architecture.id, found.scale) == ('Compact', 4)
    with torch.no_grad():
        image = found.model(small)
    torch.testing.assert_close(image, basicsr_image(options, state, small), atol=1e-4, rtol=0)


@pytest.mark.parametrize('ratio', WIDTHS)
@pytest.mark.parametrize('network', [RRDB, {**RRDB, 'scale': 2}, SRVGG], ids=['RRDBNet', 'RRDBNet x2', 'SRVGG'])
def test_realesrganer_opens_students(tmp_path, small, photographs, network, ratio):
    from realesrgan import RealESRGANer
    from realesrgan.archs.srvgg_arch import SRVGGNetCompact as TheirCompact

    options = student_of(network, ratio)
    state, averaged = (vivid(options).state_dict() for _ in range(2))
    save_whole({'params': state, 'params_ema': averaged}, tmp_path / 'student.pth')
    scale = options.get('scale', 4)
    cls = RRDBNet if options['type'] == 'RRDBNet' else TheirCompact
    empty = cls(**{key: value for key, value in options.items() if key != 'type'})
    upsampler = RealESRGANer(scale, str(tmp_path / 'student.pth'), model=empty, pre_pad=0, device=CPU)
    even = small[..., :20, :24]
    with torch.no_grad():
        image = upsampler.model(even)
    wanted = basicsr_image(options, averaged, even)
    torch.testing.assert_close(image, wanted, atol=1e-4, rtol=0)
    # and through its whole way from picture to picture, BGR, within one level of rounding
    bgr = photographs['chelsea'][40:60, 30:54, ::-1]
    picture, _ = upsampler.enhance(bgr)
    levels = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1).float()
    assert (levels - wanted[0].clamp(0, 1) * 255).abs().max() <= 1


# ------------------------------------------------------------------------------------------------------------- writing


def test_save_whole_writes_what_torch_reads(tmp_path):
    state = rrdbnet().state_dict()
    save_whole({'params': state}, str(tmp_path / 'net.pth'))
    found = torch.load(tmp_path / 'net.pth', weights_only=True)['params']
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    assert [path.name for path in tmp_path.iterdir()] == ['net.pth']


class Interrupting:
    """Interrupts its own saving, as Ctrl-C in the middle would."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
@pytest.mark.parametrize('old', [b'the old file', None])
def test_an_interrupted_save_leaves_the_old_file_and_no_partial_one(tmp_path, error, old):
    path = tmp_path / 'net.pth'
    if old:
        path.write_bytes(old)
    with pytest.raises(error):
        save_whole({'params': rrdbnet().state_dict(), 'then': Interrupting(error)}, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({'net.pth': old} if old else {})


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    def half(content, file):
        file.write(b'half')
        raise OSError('No space left on device')

    save_whole({'params': rrdbnet().state_dict()}, tmp_path / 'net.pth')
    old = (tmp_path / 'net.pth').read_bytes()
    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(OSError, match='No space left'):
        save_whole({'params': rrdbnet().state_dict()}, tmp_path / 'net.pth')
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {'net.pth': old}


def test_fingerprint_tells_networks_apart_by_one_bit_of_one_weight():
    net, other = rrdbnet(), rrdbnet()
    other.load_state_dict(net.state_dict())
    assert fingerprint(net) == fingerprint(other)
    with torch.no_grad():
        weight = other.body[1].rdb3.conv5.weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    assert fingerprint(net) != fingerprint(other)


def test_fingerprint_sees_buffers_and_ignores_memory_layout():
    net = UNetDiscriminatorSN(3, 4)
    before = fingerprint(net)
    net.train()(torch.rand(1, 3, 16, 16))
    assert fingerprint(net) != before
    plain = rrdbnet()
    before = fingerprint(plain)
    assert fingerprint(plain.to(memory_format=torch.channels_last)) == before
    assert fingerprint(plain.half()) != before


# --------------------------------------------- values that are no numbers --------------------------------------------


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', ['float32', 'float16', 'bfloat16', 'safetensors', 'average'])
def test_a_file_with_values_that_are_no_numbers_is_refused(tmp_path, kind, value):
    net, other = (SRVGGNetCompact(num_feat=8, num_conv=1) for _ in range(2))
    path, name = tmp_path / 'net.pth', 'params:body.0.weight'
    net.body[0].weight.data[3, 1, 0, 2] = value
    state = net.state_dict()
    if kind == 'safetensors':
        path, name = tmp_path / 'net.safetensors', 'body.0.weight'
        save_file(state, path)
    elif kind == 'average':
        name = 'params_ema:body.0.weight'
        torch.save({'params': other.state_dict(), 'params_ema': state}, path)
        assert read_weights(path, 'params')  # these are good
    else:
        torch.save({'params': {key: tensor.to(getattr(torch, kind)) for key, tensor in state.items()}}, path)
    with pytest.raises(UserError, match=rf'^teacher:weights: {path} is damaged .* tensor {name} is not finite .*\.$'):
        read_weights(path, where='teacher:weights')


def test_a_number_that_float32_does_not_hold_is_none(tmp_path):
    state = SRVGGNetCompact(num_feat=8, num_conv=1).double().state_dict()
    state['body.0.bias'][2] = 1e300
    torch.save(state, tmp_path / 'net.pth')
    with pytest.raises(UserError, match=r'its tensor body.0.bias is not finite'):
        read_weights(tmp_path / 'net.pth')


def test_whoever_loads_a_file_itself_is_told(tmp_path):
    """As BasicSR's VGG does: a state dict, or one below a name; what is no tensor is passed over."""
    torch.save({'a': torch.ones(2), 'b': {'c': torch.tensor([1.0, float('nan')])}, 'd': 3}, tmp_path / 'bad.pth')
    torch.save(
        {'a': torch.ones(2), 'b': {'c': torch.tensor([], dtype=torch.float16)}, 'd': None}, tmp_path / 'good.pth'
    )
    with tensors_only('train:perceptual_opt'):
        assert set(torch.load(tmp_path / 'good.pth')) == {'a', 'b', 'd'}
        with pytest.raises(UserError, match=r'^train:perceptual_opt: .*bad.pth is damaged .* tensor b:c is not finite'):
            torch.load(tmp_path / 'bad.pth')
