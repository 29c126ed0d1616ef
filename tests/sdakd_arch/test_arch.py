"""Widths and their costs, feature taps, channel adapters, tiled inference."""

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import AdapterBank, ChannelMLP, match_size
from sdakd_arch.families import FAMILIES
from sdakd_arch.inference.tiling import run_tiled
from sdakd_arch.pairing import Pairing, pair_taps
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.width import build, cost, initialise, lookup, scale_of, student_of

RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23, 'num_grow_ch': 32}
SRVGG = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_conv': 32, 'upscale': 4}
UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}


def randomize(network, std=0.1):
    """Weights so large that every layer matters in the output (BasicSR begins residual blocks near zero)."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0, std / parameter[0].numel() ** 0.5 * 10 if name.endswith('weight') else std)
    return network


# --------------------------------------------------------------------------------------------------- widths and costs


@pytest.mark.parametrize(
    ('ratio', 'feat', 'grow', 'parameters', 'gmacs', 'unet_parameters'),
    [
        (1, 64, 32, 16_697_987, 73.43, 4_376_897),
        (1 / 2, 32, 16, 4_178_755, 18.39, 1_094_817),
        (1 / 4, 16, 8, 1_046_819, 4.61, 274_001),
        (1 / 8, 8, 4, 262_771, 1.16, 68_649),
    ],
)
def test_published_sizes_of_every_width(ratio, feat, grow, parameters, gmacs, unet_parameters):
    student = student_of(RRDB, ratio)
    assert student == {**RRDB, 'num_feat': feat, 'num_grow_ch': grow}
    found, macs = cost(student)
    assert found == parameters
    assert round(macs / 1e9, 2) == gmacs
    unet = student_of(UNET, ratio)
    assert unet == {**UNET, 'num_feat': feat}
    assert cost(unet)[0] == unet_parameters


@pytest.mark.parametrize(
    ('network', 'parameters', 'gmacs', 'digits'),
    [
        ({**RRDB, 'num_block': 6}, 4_467_779, 23.4, 1),
        (SRVGG, 1_213_296, 4.95, 2),
        ({**SRVGG, 'num_conv': 16}, 621_424, 2.54, 2),
    ],
)
def test_published_sizes_of_other_teachers(network, parameters, gmacs, digits):
    found, macs = cost(network)
    assert found == parameters
    assert round(macs / 1e9, digits) == gmacs


@pytest.mark.parametrize('size', [32, 48])
def test_macs_of_a_narrow_srvgg_by_hand(size):
    feat = 16
    convolutions = 3 * feat * 9 + 4 * feat * feat * 9 + feat * 48 * 9
    assert cost(student_of({**SRVGG, 'num_conv': 4}, 1 / 4), size)[1] == convolutions * size**2


def test_macs_of_a_network_that_unshuffles_its_input_by_hand():
    feat, grow, side = 8, 4, 32  # 64 x 64 pixels become 32 x 32 positions of 12 channels
    block = 3 * 9 * (sum((feat + i * grow) * grow for i in range(4)) + (feat + 4 * grow) * feat)
    low = 9 * 12 * feat + 2 * block + 9 * feat * feat
    macs = side**2 * low + (2 * side) ** 2 * 9 * feat**2 + (4 * side) ** 2 * (2 * 9 * feat**2 + 9 * feat * 3)
    assert cost({**student_of({**RRDB, 'num_block': 2}, 1 / 8), 'scale': 2})[1] == macs


def test_defaults_that_the_options_leave_out_are_narrowed_too():
    student = student_of({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3}, 1 / 4)
    assert (student['num_feat'], student['num_grow_ch']) == (16, 8)
    assert build(student, 'network_g').conv_first.out_channels == 16
    assert student_of({'type': 'SRVGGNetCompact'}, 1 / 8)['num_feat'] == 8


def test_narrowing_leaves_the_given_options_alone():
    before = dict(RRDB)
    student_of(RRDB, 1 / 2)
    assert before == RRDB


def test_every_narrowable_architecture_can_be_built_at_half_width():
    for kind in [kind for kind, family in FAMILIES.items() if family.channels]:
        wide = {
            'type': kind,
            'num_in_ch': 3,
            **({'num_out_ch': 3, 'num_block': 1} if kind in ('RRDBNet', 'ESRGAN') else {}),
        }
        assert cost(student_of(wide, 1 / 2), 128)[0] < 0.6 * cost({**wide, **FAMILIES[kind].channels}, 128)[0]


@pytest.mark.parametrize('ratio', [0, -0.5, 1.5, 2, 1e-9, 1 / 3, 0.3, 1 / 64, float('nan'), float('inf')])
def test_ratios_that_leave_no_network_are_refused(ratio):
    with pytest.raises(UserError, match='RRDBNet'):
        student_of(RRDB, ratio)


def test_a_third_is_allowed_where_it_divides():
    assert student_of({**SRVGG, 'num_feat': 48}, 1 / 3)['num_feat'] == 16


def test_near_names():
    with pytest.raises(UserError, match="'RRDBnet'.*did you mean RRDBNet"):
        student_of({**RRDB, 'type': 'RRDBnet'}, 1 / 2)
    with pytest.raises(UserError, match='network_g:type.*SRVGGCompact.*did you mean SRVGGNetCompact'):
        build({'type': 'SRVGGCompact'}, 'network_g')
    with pytest.raises(UserError, match='network_g: RRDBNet cannot be built.*num_fea'):
        build({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_fea': 8}, 'network_g')
    with pytest.raises(UserError, match='network_g.*type is missing'):
        build({'num_feat': 8}, 'network_g')


def test_lookup_finds_names_that_basicsr_registers_with_its_suffix():
    from basicsr.utils.registry import ARCH_REGISTRY

    assert lookup(ARCH_REGISTRY, 'UNetDiscriminatorSN', 'network_d').__name__ == 'UNetDiscriminatorSN'


@pytest.mark.parametrize(('scale', 'network'), [(4, RRDB), (2, RRDB), (1, RRDB), (3, SRVGG), (2, SRVGG)])
def test_scale_is_found_by_running(scale, network):
    key = 'scale' if network is RRDB else 'upscale'
    narrow = student_of({**network, **({'num_block': 1} if network is RRDB else {'num_conv': 1})}, 1 / 8)
    assert scale_of(build({**narrow, key: scale}, 'network_g'), 'network_g') == scale


def signal(net, image):
    """What is left behind every layer of the difference between an image and its mirror image, as root mean square."""
    both = torch.cat([image, image.flip(3)])
    with torch.no_grad(), FeatureTaps(net, [f'body.{i}' for i in range(len(net.body))]) as taps:
        net(both)
    return [(one - other).square().mean().sqrt().item() for one, other in taps.pop().values()]


@pytest.mark.parametrize('feat', [8, 16, 64])
def test_a_deep_student_begins_with_a_signal_in_every_layer_and_a_small_residual(photo, feat):
    net = SRVGGNetCompact(num_feat=feat, num_conv=32)
    image = photo[..., :32, :32]
    activations = signal(net, image)[1:-1:2]
    assert activations[-1] < 1e-6 * activations[0]  # torch's default
    initialise(net)
    *features, residual = signal(net, image)
    activations = features[1::2]
    assert len(activations) == 33
    assert all(0.3 < behind / activations[0] < 3 for behind in activations)
    assert residual < 0.5 * activations[-1]
    centre = net.body[2].weight[:, :, 1, 1].double()
    gain = 2 / (1 + net.body[1].weight[0].double() ** 2)
    torch.testing.assert_close(centre @ centre.T, gain * torch.eye(feat, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert net.body[2].weight.count_nonzero() == centre.count_nonzero()
    assert all(net.body[i].bias.abs().max() == 0 for i in range(0, 67, 2))


def student_from_nothing(ratio, blocks, scale=4):
    net = build({**student_of(RRDB, ratio), 'num_block': blocks, 'scale': scale}, 'network_g')
    initialise(net)
    return net


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('ratio', 'blocks'), [(1 / 2, 23), (1 / 4, 23), (1 / 8, 23), (1 / 8, 6), (1, 1), (1 / 16, 2)])
def test_rrdbnet_begins_as_the_image_with_its_pixels_repeated(image, ratio, blocks, dtype):
    net, image = student_from_nothing(ratio, blocks).to(dtype), image.to(dtype)
    image[0, :, :2, :2] = torch.tensor([[0, 1], [1, 0]])  # the ends of the range
    with torch.no_grad():
        assert torch.equal(net(image), F.interpolate(image, scale_factor=4, mode='nearest'))


@pytest.mark.parametrize('ratio', [1 / 4, 1 / 8])
@pytest.mark.parametrize(('scale', 'block'), [(2, 2), (1, 4)])
def test_rrdbnet_of_smaller_scales_begins_as_the_means_of_blocks(scale, block, ratio):
    image = torch.randint(256, (2, 3, 16, 12)) / 256  # sums of 16 such numbers are exact
    means = torch.stack([image[:, :, i::block, j::block] for i in range(block) for j in range(block)]).mean(0)
    with torch.no_grad():
        found = student_from_nothing(ratio, 2, scale)(image)
    assert torch.equal(found, means.repeat_interleave(4, 2).repeat_interleave(4, 3))


@pytest.mark.parametrize('scale', [2, 1])
def test_no_weights_of_rrdbnet_tell_the_pixels_of_equal_blocks_apart(scale):
    """Why a start at scale 2 and 1 cannot be exact: inside a checkerboard the output does not depend on the place."""
    net = randomize(RRDBNet(3, 3, scale=scale, num_feat=8, num_block=1, num_grow_ch=4)).double()
    board = torch.zeros(1, 3, 160, 160, dtype=torch.double)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1
    with torch.no_grad():
        output = net(board)
    inside = output[..., output.shape[2] // 2 - 8 :, output.shape[3] // 2 - 8 :][..., :16, :16]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside), rtol=1e-9, atol=1e-9)
    assert (output - inside[..., :1, :1]).abs().max() > 0.01  # at the edges it does


@pytest.mark.parametrize('scale', [4, 2])
def test_every_parameter_of_rrdbnet_has_a_gradient_from_the_second_step(image, scale):
    torch.manual_seed(0)
    net = student_from_nothing(1 / 8, 23, scale)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    target = torch.rand(2, 3, 16 * scale, 12 * scale)
    for _ in range(2):
        optimizer.zero_grad()
        (net(image) - target).abs().mean().backward()
        optimizer.step()
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.all()] == []


def test_rrdbnet_from_nothing_soon_beats_the_enlarged_image(photographs):
    gt = torch.stack([torch.from_numpy(p[:64, :64]).permute(2, 0, 1) for p in photographs.values()]).float() / 255
    lq = F.avg_pool2d(gt, 4)
    nearest = (F.interpolate(lq, scale_factor=4) - gt).abs().mean().item()
    losses = []
    for prepare in (initialise, lambda network: None):
        torch.manual_seed(0)
        net = build({**student_of(RRDB, 1 / 8), 'num_block': 2}, 'network_g')
        prepare(net)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
        for _ in range(60):
            loss = (net(lq) - gt).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < nearest < losses[1] / 2


def test_rrdbnet_begins_with_a_signal_in_the_layers_behind_its_trunk(photo):
    torch.manual_seed(0)
    net = student_from_nothing(1 / 2, 1)
    names = ['conv_up1', 'conv_up2', 'conv_hr']
    with torch.no_grad(), FeatureTaps(net, names) as taps:
        net(photo[..., :32, :32])
    size = [F.leaky_relu(feature[:, 3:], 0.2).square().mean().sqrt() for feature in map(taps.pop().get, names)]
    assert all(0.5 < behind / before < 2 for before, behind in zip(size, size[1:], strict=False)), size


def test_the_start_of_rrdbnet_follows_the_seed():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(student_from_nothing(1 / 8, 2).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first['conv_up1.weight'], other['conv_up1.weight'])


@pytest.mark.parametrize(
    'options',
    [
        {**UNET, 'num_feat': 4},
        {**RRDB, 'num_feat': 2, 'num_block': 1, 'num_grow_ch': 4},  # too few channels for three colours
    ],
)
def test_other_architectures_initialise_themselves(options):
    net = build(options, 'network_g')
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    initialise(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# --------------------------------------------------------------------------------------------------------------- taps


@pytest.fixture
def rrdb():
    return randomize(RRDBNet(3, 3, num_feat=8, num_block=2, num_grow_ch=4))


@pytest.fixture
def image():
    return torch.rand(2, 3, 16, 12)


def trunk_by_hand(net, image):
    """RRDBNet up to the first upsampled convolution, with functional calls only: nothing works in place."""

    def convolve(module, x):
        return F.conv2d(x, module.weight, module.bias, padding=1)

    def dense(block, x):
        grown = [x]
        for i in range(1, 5):
            grown.append(F.leaky_relu(convolve(getattr(block, f'conv{i}'), torch.cat(grown, 1)), 0.2))
        return x + 0.2 * convolve(block.conv5, torch.cat(grown, 1))

    first = x = convolve(net.conv_first, image)
    bodies = []
    for block in net.body:
        x = x + 0.2 * dense(block.rdb3, dense(block.rdb2, dense(block.rdb1, x)))
        bodies.append(x)
    x = first + convolve(net.conv_body, x)
    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return {'body.0': bodies[0], 'body.1': bodies[1], 'conv_up1': convolve(net.conv_up1, up), 'conv_up1:input': up}


def test_output_and_input_taps_equal_the_activations_by_hand(rrdb, image):
    names = ['body.0', 'body.1', 'conv_up1', 'conv_up1:input']
    untapped = rrdb(image)
    with FeatureTaps(rrdb, names) as taps:
        output = rrdb(image)
    found = taps.pop()
    assert torch.equal(output, untapped)
    assert set(found) == set(names)
    for name, wanted in trunk_by_hand(rrdb, image).items():
        torch.testing.assert_close(found[name], wanted)
    # conv_up1 is followed by an activation in place, which would leave a fifth of every negative value
    assert found['conv_up1'].min() < 0


def test_an_output_may_be_named_as_such(rrdb, image):
    with FeatureTaps(rrdb, ['body.1', 'body.1:output']) as taps:
        rrdb(image)
    found = taps.pop()
    assert torch.equal(found['body.1'], found['body.1:output'])


@pytest.mark.parametrize('skip', [True, False])
def test_input_tap_of_the_unet_discriminators_last_layer(skip):
    net = UNetDiscriminatorSN(3, 4, skip).double()
    image = torch.rand(2, 3, 16, 24, dtype=torch.double)
    net(image)  # in training mode: moves the vectors of spectral norm
    net.eval()

    def convolve(name, x, stride=1):
        weight = getattr(net, name).weight_orig
        left, right = getattr(net, name).weight_u, getattr(net, name).weight_v
        weight = weight / (left @ weight.flatten(1) @ right)
        return F.leaky_relu(F.conv2d(x, weight, stride=stride, padding=1), 0.2)

    def double(x):
        return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)

    x0 = F.leaky_relu(F.conv2d(image, net.conv0.weight, net.conv0.bias, padding=1), 0.2)
    x1 = convolve('conv1', x0, 2)
    x2 = convolve('conv2', x1, 2)
    x = convolve('conv4', double(convolve('conv3', x2, 2)))
    x = convolve('conv5', double(x + x2 if skip else x))
    x = convolve('conv6', double(x + x1 if skip else x))
    wanted = convolve('conv8', convolve('conv7', x + x0 if skip else x))
    with FeatureTaps(net, ['conv9:input']) as taps:
        net(image)
    torch.testing.assert_close(taps.pop()['conv9:input'], wanted)


def test_input_of_a_module_that_works_in_place_is_what_went_in(image):
    net = randomize(SRVGGNetCompact(num_feat=8, num_conv=1, act_type='leakyrelu'))
    with FeatureTaps(net, ['body.1:input', 'body.1']) as taps:
        net(image)
    found = taps.pop()
    wanted = F.conv2d(image, net.body[0].weight, net.body[0].bias, padding=1)
    torch.testing.assert_close(found['body.1'], F.leaky_relu(wanted, 0.1))
    torch.testing.assert_close(found['body.1:input'], wanted)


def test_gradients_flow_through_tapped_activations(rrdb, image):
    parameters = [rrdb.conv_first.weight, rrdb.body[1].rdb2.conv3.weight, rrdb.conv_up1.bias]
    by_hand = trunk_by_hand(rrdb, image)
    wanted = torch.autograd.grad(by_hand['conv_up1'].square().mean() + by_hand['body.0'].abs().mean(), parameters)
    with FeatureTaps(rrdb, ['conv_up1', 'body.0']) as taps:
        output = rrdb(image)
    found = taps.pop()
    loss = found['conv_up1'].square().mean() + found['body.0'].abs().mean()
    for ours, theirs in zip(torch.autograd.grad(loss, parameters, retain_graph=True), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    # and the image's own gradient is that of the untapped network
    direct = torch.autograd.grad(rrdb(image).mean(), parameters)
    for ours, theirs in zip(torch.autograd.grad(output.mean(), parameters), direct, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pop_empties_and_outside_with_nothing_is_recorded(rrdb, image):
    taps = FeatureTaps(rrdb, ['body.0'])
    rrdb(image)
    assert taps.pop() == {}
    with taps:
        rrdb(image)
    assert set(taps.pop()) == {'body.0'}
    assert taps.pop() == {}
    rrdb(image)
    assert taps.pop() == {}


def test_passes_are_parts_of_a_batch_until_they_are_taken(rrdb, image):
    taps = FeatureTaps(rrdb, ['body.0'])
    whole = trunk_by_hand(rrdb, torch.cat([image, 1 - image]))['body.0']
    with taps:
        rrdb(image)
        rrdb(1 - image)
    torch.testing.assert_close(taps.pop()['body.0'], whole)
    with taps:
        rrdb(1 - image)
    torch.testing.assert_close(taps.pop()['body.0'], whole[len(image) :])


def test_an_averaged_copys_pass_is_not_recorded(rrdb, image):
    averaged = RRDBNet(3, 3, num_feat=8, num_block=2, num_grow_ch=4)
    with FeatureTaps(rrdb, ['body.0']) as taps:
        rrdb(image)
        averaged(image)
    torch.testing.assert_close(taps.pop()['body.0'], trunk_by_hand(rrdb, image)['body.0'])


def test_taps_stop_recording_after_an_error(rrdb, image):
    taps = FeatureTaps(rrdb, ['body.0'])
    with pytest.raises(RuntimeError), taps:
        rrdb(image[:, :2])
    rrdb(image)
    assert taps.pop() == {}


def test_closed_taps_hear_nothing(rrdb, image):
    taps = FeatureTaps(rrdb, ['body.0', 'conv_up1:input'])
    taps.close()
    with taps:
        rrdb(image)
    assert taps.pop() == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in rrdb.modules())


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('body.2', "RRDBNet has no module 'body.2'.*body.0"),
        ('conv_up', "no module 'conv_up'.*did you mean.*conv_up1"),
        ('', 'no module'),
        (':input', 'no module'),
        ('body.0:inputs', 'body.0:input or body.0:output'),
    ],
)
def test_taps_that_do_not_exist_are_refused_with_near_names(rrdb, name, sentence):
    with pytest.raises(UserError, match=f'train:feature_opt:layers.*{sentence}'):
        FeatureTaps(rrdb, [name], 'train:feature_opt:layers')


@pytest.mark.parametrize(
    ('network', 'wanted'),
    [
        (RRDB, ['body.5', 'body.11', 'body.17', 'body.22']),
        ({**RRDB, 'num_block': 6}, ['body.1', 'body.2', 'body.4', 'body.5']),
        ({**RRDB, 'num_block': 2}, ['body.0', 'body.1']),
        (SRVGG, ['body.17', 'body.33', 'body.49', 'body.65']),
        ({**SRVGG, 'num_conv': 16}, ['body.9', 'body.17', 'body.25', 'body.33']),
        ({**SRVGG, 'num_conv': 1}, ['body.3']),
    ],
)
def test_default_taps_are_evenly_spread_and_end_the_trunk(network, wanted):
    # quarters of 23 blocks end within blocks 5.75, 11.5 and 17.25, counted from 1
    with torch.device('meta'):
        net = build(student_of(network, 1 / 8), 'network_g')
    taps = default_taps(net)
    assert taps == wanted
    modules = dict(net.named_modules())
    kinds = {type(modules[name]).__name__ for name in taps}
    assert kinds == ({'RRDB'} if network['type'] == 'RRDBNet' else {'PReLU'})


@pytest.mark.parametrize(
    ('network', 'ratio'),
    [(RRDB, 1 / 4), ({**RRDB, 'num_block': 6}, 1), ({**RRDB, 'num_block': 3, 'scale': 2}, 1 / 8), (SRVGG, 1 / 2)],
)
def test_default_taps_of_student_and_teacher_lie_at_equal_resolution(network, ratio):
    with torch.device('meta'):
        student, teacher = build(student_of(network, ratio), 'network_g'), build(network, 'teacher')
        pairing = pair_taps(student, teacher, None, 'layers')
    assert pairing.pairs == {name: name for name in default_taps(teacher)}
    assert pairing.channels == {name: (int(64 * ratio), 64) for name in default_taps(student)}
    # the probe leaves no hook behind
    assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())


def test_taps_of_unequal_resolution_are_paired_and_those_never_run_are_refused():
    with torch.device('meta'):
        student, teacher = (build(student_of({**RRDB, 'num_block': 1}, r), 'network_g') for r in (1 / 8, 1 / 4))
        pairing = pair_taps(student, teacher, {'conv_up2': 'conv_up1'}, 'layers')
        assert pairing == Pairing({'conv_up2': 'conv_up1'}, {'conv_up2': (8, 16)})
        student.spare = torch.nn.Conv2d(3, 3, 1)
        with pytest.raises(UserError, match="never runs the module 'spare'"):
            pair_taps(student, teacher, {'spare': 'body.0'}, 'layers')
        with pytest.raises(UserError, match='layers.*empty'):
            pair_taps(student, teacher, [], 'layers')


def test_maps_are_brought_to_the_size_of_others():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert match_size(maps, torch.zeros(1, 3, 4, 4)) is maps
    assert match_size(maps, torch.zeros(1, 3, 2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]  # means of 2 x 2
    ramp = match_size(maps, torch.zeros(1, 3, 8, 8))
    assert ramp.shape == (1, 1, 8, 8)
    assert torch.allclose(ramp[0, 0, 0, 1:7], torch.linspace(0.25, 2.75, 6))  # halfway points of a linear ramp


def test_an_architecture_without_default_taps_says_so():
    with pytest.raises(UserError, match='UNetDiscriminatorSN.*list the modules'):
        default_taps(UNetDiscriminatorSN(3, 4))


# ----------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(('ratio', 'hidden'), [(1.0, 12), (0.5, 6), (2.0, 24), (0.01, 1)])
def test_channel_mlp_is_two_matrices_at_every_position(ratio, hidden):
    mlp = ChannelMLP(3, 12, hidden_ratio=ratio).double()
    (w1, b1), (w2, b2) = ((layer.weight[:, :, 0, 0], layer.bias) for layer in (mlp[0], mlp[2]))
    assert (w1.shape, w2.shape) == ((hidden, 3), (12, hidden))
    feature = torch.randn(2, 3, 5, 7, dtype=torch.double)
    before = feature.clone()
    inner = (torch.einsum('dc,nchw->ndhw', w1, feature) + b1[:, None, None]).clamp(min=0)
    torch.testing.assert_close(mlp(feature), torch.einsum('dc,nchw->ndhw', w2, inner) + b2[:, None, None])
    assert torch.equal(feature, before)


def test_adapter_without_hidden_layer_is_one_matrix():
    linear = ChannelMLP(3, 12, hidden_ratio=0).double()
    feature = torch.randn(2, 3, 5, 7, dtype=torch.double)
    weight, bias = linear.parameters()
    expected = torch.einsum('oi,nihw->nohw', weight[:, :, 0, 0], feature) + bias[:, None, None]
    torch.testing.assert_close(linear(feature), expected)


def test_adapter_bank_adapts_every_tap_with_its_own_mlp():
    channels = {'body.5': (2, 8), 'conv9:input': (3, 4), 'conv_body': (2, 8)}
    bank = AdapterBank(channels, hidden_ratio=0.5)
    features = {name: torch.randn(2, own, 6, 5) for name, (own, _) in channels.items()}
    adapted = bank(features)
    assert list(adapted) == list(channels)
    weights = [p for p in bank.parameters() if p.dim() == 4]
    for i, (name, (_, other)) in enumerate(channels.items()):
        w1, w2 = weights[2 * i][:, :, 0, 0], weights[2 * i + 1][:, :, 0, 0]
        biases = [p[:, None, None] for p in bank.parameters() if p.dim() == 1][2 * i : 2 * i + 2]
        inner = (torch.einsum('dc,nchw->ndhw', w1, features[name]) + biases[0]).clamp(min=0)
        torch.testing.assert_close(adapted[name], torch.einsum('dc,nchw->ndhw', w2, inner) + biases[1])
        assert adapted[name].shape == (2, other, 6, 5)


def test_adapter_banks_state_goes_through_a_file(tmp_path):
    channels = {'body.5': (2, 8), 'conv9:input': (3, 4)}
    bank, other = AdapterBank(channels), AdapterBank(channels)
    torch.save(bank.state_dict(), tmp_path / 'adapter.pth')
    other.load_state_dict(torch.load(tmp_path / 'adapter.pth', weights_only=True))
    features = {'body.5': torch.randn(1, 2, 4, 4), 'conv9:input': torch.randn(1, 3, 4, 4)}
    for name, adapted in bank(features).items():
        assert torch.equal(adapted, other(features)[name])


# ------------------------------------------------------------------------------------------------------------- tiling


@pytest.mark.parametrize(('height', 'width', 'tile'), [(33, 47, 16), (20, 31, 7), (12, 12, 64)])
def test_tiles_with_the_receptive_field_around_them_join_without_a_trace(height, width, tile):
    net = randomize(SRVGGNetCompact(num_feat=8, num_conv=2, upscale=4))  # four 3x3 convolutions reach four pixels far
    image = torch.rand(2, 3, height, width)
    with torch.no_grad():
        whole = net(image)
        assert torch.equal(run_tiled(net, image, 4), whole)
        torch.testing.assert_close(run_tiled(net, image, 4, tile, 4), whole, atol=1e-5, rtol=1e-5)
        if tile < min(height, width):  # the comparison sees seams where there are any
            assert (run_tiled(net, image, 4, tile, 2) - whole).abs().max() > 1e-3


# one block: 1 + 15 + 1 convolutions before upsampling, and less than 2 positions after it, of 2 or 4 pixels each
@pytest.mark.parametrize(('scale', 'reach', 'height', 'width'), [(2, 38, 23, 151), (1, 76, 14, 203)])
def test_odd_sizes_and_tiles_of_networks_that_unshuffle_their_input(scale, reach, height, width):
    net = randomize(RRDBNet(3, 3, scale=scale, num_feat=4, num_block=1, num_grow_ch=4))
    image = torch.rand(1, 3, height, width)
    block = 4 // scale  # pixels that become channels together
    rows = [*range(height), *range(height - 2, height - 2 - -height % block, -1)]
    columns = [*range(width), *range(width - 2, width - 2 - -width % block, -1)]
    with torch.no_grad():
        mirrored = net(image[:, :, rows][:, :, :, columns])[..., : height * scale, : width * scale]
        whole = run_tiled(net, image, scale)
        assert whole.shape == (1, 3, height * scale, width * scale)
        torch.testing.assert_close(whole, mirrored)
        torch.testing.assert_close(run_tiled(net, image, scale, 22, reach), whole, atol=1e-5, rtol=1e-5)
        assert (run_tiled(net, image, scale, 22, 4) - whole).abs().max() > 1e-3


@pytest.mark.parametrize('size', [(1, 1), (2, 7), (3, 3)])
@pytest.mark.parametrize('scale', [1, 2])
def test_images_too_small_to_mirror_still_come_out(scale, size):
    net = RRDBNet(3, 3, scale=scale, num_feat=4, num_block=1, num_grow_ch=4)
    with torch.no_grad():
        output = run_tiled(net, torch.rand(1, 3, *size), scale)
    assert output.shape[2:] == (size[0] * scale, size[1] * scale)
    assert torch.isfinite(output).all()
