"""`sdakd evaluate --distance` and its EfficientNet-lite0, against formulas and networks written out here."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from sdakd import cli
from sdakd.compat import UserError
from sdakd_arch.efficientnet import SameConv2d, efficientnet_lite0, own_keys
from sdakd_metrics import distance
from sdakd_metrics.distance import open_distance
from sdakd_metrics.distribution import open_backbone
from sdakd_metrics.metrics import Settings, open_metrics

# ---------------------------------------------- EfficientNet-lite0 --------------------------------------------------

# kernel, stride, channels in, between and out of all 16 blocks, counted by hand from table 1 of arXiv 1905.11946
BLOCKS = [
    (3, 1, 32, 32, 16),
    (3, 2, 16, 96, 24), (3, 1, 24, 144, 24),
    (5, 2, 24, 144, 40), (5, 1, 40, 240, 40),
    (3, 2, 40, 240, 80), (3, 1, 80, 480, 80), (3, 1, 80, 480, 80),
    (5, 1, 80, 480, 112), (5, 1, 112, 672, 112), (5, 1, 112, 672, 112),
    (5, 2, 112, 672, 192), (5, 1, 192, 1152, 192), (5, 1, 192, 1152, 192), (5, 1, 192, 1152, 192),
    (3, 1, 192, 1152, 320),
]  # fmt: skip


def published_file(path):
    """A file with the published key names and shapes, and random values that keep features of a usual size."""
    generator = torch.Generator().manual_seed(5)
    state = {}

    def conv(key, out, into, kernel):
        fan = into * kernel**2
        state[f'{key}.weight'] = torch.randn(out, into, kernel, kernel, generator=generator) * (2 / fan) ** 0.5

    def norm(key, channels):
        for name, low in (('weight', 0.5), ('bias', -0.5), ('running_mean', -0.5), ('running_var', 0.5)):
            state[f'{key}.{name}'] = torch.rand(channels, generator=generator) + low
        state[f'{key}.num_batches_tracked'] = torch.tensor(7)

    conv('_conv_stem', 32, 3, 3)
    norm('_bn0', 32)
    for number, (kernel, _, before, between, after) in enumerate(BLOCKS):
        block = f'_blocks.{number}'
        if between != before:
            conv(f'{block}._expand_conv', between, before, 1)
            norm(f'{block}._bn0', between)
        conv(f'{block}._depthwise_conv', between, 1, kernel)
        norm(f'{block}._bn1', between)
        conv(f'{block}._project_conv', after, between, 1)
        norm(f'{block}._bn2', after)
    conv('_conv_head', 1280, 320, 1)
    norm('_bn1', 1280)
    state |= {'_fc.weight': torch.zeros(1000, 1280), '_fc.bias': torch.zeros(1000)}
    torch.save(state, path)
    return state


@pytest.fixture(scope='module')
def lite(tmp_path_factory):
    path = tmp_path_factory.mktemp('lite') / 'lite0.pth'
    return path, published_file(path)


def slow_same(image, weight, stride, groups):
    """TensorFlow's SAME convolution, output by output, in float64."""
    image, weight = image.double().numpy()[0], weight.double().numpy()
    out, into, kernel, _ = weight.shape
    height, width = (math.ceil(side / stride) for side in image.shape[1:])
    needed = ((height - 1) * stride + kernel, (width - 1) * stride + kernel)
    before = [max(need - side, 0) // 2 for need, side in zip(needed, image.shape[1:], strict=True)]
    result = np.zeros((out, height, width))
    for o in range(out):
        first = o // (out // groups) * into
        for y in range(height):
            for x in range(width):
                for i in range(kernel):
                    for j in range(kernel):
                        row, column = y * stride + i - before[0], x * stride + j - before[1]
                        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                            result[o, y, x] += image[first : first + into, row, column] @ weight[o, :, i, j]
    return result


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize('groups', [1, 4])
def test_padding_is_tensorflows(kernel, stride, groups):
    for size in ((8, 7), (6, 9), (1, 2)):
        layer = SameConv2d(4, 8, kernel, stride, groups=groups, bias=False)
        image = torch.randn(1, 4, *size)
        expected = slow_same(image, layer.weight.detach(), stride, groups)
        found = layer(image).detach()[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def written_out(state, image):
    """The network by its keys, in float64: what stem, blocks and head give, each ``(N, C, h, w)``."""
    state = {key: tensor.double() for key, tensor in state.items()}

    def conv(maps, key, stride=1):
        weight = state[f'{key}.weight']
        for axis, side in ((2, weight.shape[3]), (3, weight.shape[3])):
            size = maps.shape[axis]
            zeros = max((math.ceil(size / stride) - 1) * stride + side - size, 0)
            shape = list(maps.shape)
            before, after = (
                torch.zeros(*shape[:axis], number, *shape[axis + 1 :], dtype=maps.dtype)
                for number in (zeros // 2, zeros - zeros // 2)
            )
            maps = torch.cat([before, maps, after], axis)
        return F.conv2d(maps, weight, stride=stride, groups=maps.shape[1] // weight.shape[1])

    def norm(maps, key):
        scale = state[f'{key}.weight'] / (state[f'{key}.running_var'] + 1e-3).sqrt()
        shift = state[f'{key}.bias'] - state[f'{key}.running_mean'] * scale
        return maps * scale[:, None, None] + shift[:, None, None]

    maps = norm(conv(image.double(), '_conv_stem', 2), '_bn0').clamp(0, 6)
    found = [maps]
    for number, (_, stride, before, between, after) in enumerate(BLOCKS):
        block, start = f'_blocks.{number}', maps
        if between != before:
            maps = norm(conv(maps, f'{block}._expand_conv'), f'{block}._bn0').clamp(0, 6)
        maps = norm(conv(maps, f'{block}._depthwise_conv', stride), f'{block}._bn1').clamp(0, 6)
        maps = norm(conv(maps, f'{block}._project_conv'), f'{block}._bn2')
        if stride == 1 and before == after:
            maps = maps + start
        found.append(maps)
    return [*found, norm(conv(maps, '_conv_head'), '_bn1').clamp(0, 6)]


def test_efficientnet_is_the_published_network(lite, tmp_path):
    path, state = lite
    learnt = [key for key in state if not key.endswith(('mean', 'var', 'tracked'))]
    assert sum(state[key].numel() for key in learnt) == 4_652_008  # published: 4.65 M, with the classifier
    network = open_backbone(f'efficientnet_lite0:{path}', '--distance').features.double()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - 1_281_000  # without 1280 x 1000 + 1000
    maps = image = torch.rand(1, 3, 61, 70, dtype=torch.float64) * 2 - 1  # odd sides on the way down
    expected = written_out(state, image)
    assert len(network) == len(expected) == 18
    for layer, wanted in zip(network, expected, strict=True):
        maps = layer(maps)
        assert maps.shape == wanted.shape
        assert (maps - wanted).abs().max() < 1e-10 * wanted.abs().max()
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    assert sorted(own_keys(state)) == sorted(efficientnet_lite0().state_dict())


def test_fd_of_efficientnet(lite, photographs):
    path, state = lite
    (metric,) = open_metrics(['fd'], Settings(4, backbone=f'efficientnet_lite0:{path}'))
    assert metric.label == 'FD-efficientnet_lite0' and '(value - 127) / 128' in metric.convention
    image = photographs['coffee'][:64, :64, ::-1].copy()
    rgb = (torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].double() - 127) / 128
    metric.features.double()
    np.testing.assert_allclose(metric.features(image), written_out(state, rgb)[-1].mean((2, 3)), rtol=1e-9, atol=1e-9)


# ---------------------------------------------- the distance --------------------------------------------------------


def torchvisions(kind):
    """torchvision's ``features``; of VGG16 without making its classifier, which takes seconds."""
    if kind == 'vgg16':
        return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs['D'])
    return torchvision.models.squeezenet1_1(weights=None).features


@pytest.fixture(scope='module')
def files(tmp_path_factory, lite):
    """Weights files by kind."""
    root = tmp_path_factory.mktemp('files')
    torch.manual_seed(3)
    for name in ('vgg16', 'squeezenet'):
        features = torchvisions(name)
        for parameter in features.parameters():  # a bias, so that no layer is homogeneous
            if parameter.dim() == 1:
                torch.nn.init.uniform_(parameter, -0.1, 0.1)
        torch.save({f'features.{key}': tensor for key, tensor in features.state_dict().items()}, root / f'{name}.pth')
    return {
        'vgg16': root / 'vgg16.pth',
        'squeezenet': root / 'squeezenet.pth',
        'squeezenet-caffe': root / 'squeezenet.pth',
        'efficientnet_lite0': lite[0],
    }


def slow_distance(kind, file, image, reference):
    """The formula in float64: mirrored by index, the whole network run, maps picked by the size of what follows."""
    height, width = (max(64, math.ceil(side / 32) * 32) for side in image.shape[:2])

    def mirrored(index, side):
        index %= 2 * (side - 1)
        return index if index < side else 2 * (side - 1) - index

    def maps(picture):
        rows = [mirrored(y, picture.shape[0]) for y in range(height)]
        columns = [mirrored(x, picture.shape[1]) for x in range(width)]
        bgr = torch.from_numpy(picture[rows][:, columns].astype(np.float64)).permute(2, 0, 1)
        if kind == 'efficientnet_lite0':
            found = written_out(torch.load(file, weights_only=True), ((bgr.flip(0) - 127) / 128)[None])
            return [found[number] for number in (1, 3, 5, 11, 16)]  # the last of 16, 24, 40, 112 and 320 channels
        if kind.endswith('-caffe'):
            bgr -= torch.tensor([104, 117, 123])[:, None, None]
        else:
            bgr = torchvision.transforms.functional.normalize(
                bgr.flip(0) / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            )
        network = torchvisions(kind.removesuffix('-caffe')).double()
        state = torch.load(file, weights_only=True)
        network.load_state_dict({key.removeprefix('features.'): tensor for key, tensor in state.items()})
        found, last = [], bgr[None]
        for layer in network:
            if isinstance(layer, torch.nn.MaxPool2d):
                found.append(last.clone())
            with torch.no_grad():
                last = layer(last)
        return found if kind == 'vgg16' else [*found, last]

    pairs = list(zip(maps(image), maps(reference), strict=True))
    return sum(float((a - b).abs().mean() / (b**2).mean() ** 0.5) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize('kind', ['vgg16', 'squeezenet', 'squeezenet-caffe', 'efficientnet_lite0'])
def test_distance_is_its_formula(kind, files, photographs):
    measure = open_distance(f'{kind}:{files[kind]}', '--distance').double()
    for height, width in ((64, 96), (70, 65), (20, 33)):  # fits; does not; is less than what is mirrored
        reference = photographs['coffee'][:height, :width, ::-1].copy()
        noise = np.random.default_rng(0).normal(0, 12, reference.shape)
        image = (reference + noise).clip(0, 255).round().astype(np.uint8)
        expected = slow_distance(kind, files[kind], image, reference)
        assert measure(image, reference) == pytest.approx(expected, rel=1e-6) and expected > 0.01
        assert measure(reference, image) == pytest.approx(slow_distance(kind, files[kind], reference, image), rel=1e-6)
        assert measure(reference, reference) == 0


def test_features_of_an_image_are_computed_once(files, photographs, monkeypatch):
    """Three results and two references, in the order of `sdakd evaluate`; the values are those without memory."""
    images = [photographs[name][:64, :64, ::-1].copy() for name in ('coffee', 'chelsea', 'rocket', 'astronaut')]
    truth, teacher, *others = images
    pairs = [(row, other) for row in (teacher, *others) for other in (truth, teacher) if row is not other]
    measure = open_distance(f'squeezenet:{files["squeezenet"]}', '--distance')
    seen = []
    measure.backbone.features[0].register_forward_hook(lambda *_: seen.append(None))
    found = [measure(*pair) for pair in pairs]
    assert len(seen) == len(images)
    monkeypatch.setattr(distance, 'PIXELS', 0)
    bare = open_distance(f'squeezenet:{files["squeezenet"]}', '--distance')
    assert found == [bare(*pair) for pair in pairs] and not bare.kept
    for _ in range(9):
        measure(truth.copy(), teacher)
    assert len(measure.kept) == 4


def test_reference_without_features_is_left_out(files):
    measure = open_distance(f'squeezenet:{files["squeezenet"]}', '--distance')
    torch.nn.init.zeros_(measure.backbone.features[0].weight)
    torch.nn.init.zeros_(measure.backbone.features[0].bias)
    image = np.zeros((64, 64, 3), np.uint8)
    assert math.isnan(measure(image, image.copy()))


# ---------------------------------------------- the command ---------------------------------------------------------


@pytest.fixture(scope='module')
def ground(tmp_path_factory, photographs):
    """Three photographs, their LR images, and images that a teacher and a student made before."""
    root = tmp_path_factory.mktemp('ground')
    generator = np.random.default_rng(0)
    for name in ('coffee', 'chelsea', 'rocket'):
        gt = photographs[name][:64, :72, ::-1]
        images = {'set/gt': gt, 'set/lq': cv2.resize(gt, (18, 16), interpolation=cv2.INTER_AREA)}
        for folder, amount in (('teacher', 6), ('student', 12)):
            images[folder] = (gt + generator.normal(0, amount, gt.shape)).clip(0, 255).round().astype(np.uint8)
        for folder, image in images.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f'{name}.png'), image)
    return root


def evaluate(*arguments):
    return cli.main(['evaluate', *map(str, arguments)])


def test_evaluate_measures_distances_to_truth_and_teacher(ground, files, tmp_path, capsys):
    """A folder of images is the teacher, so nothing is enlarged by it."""
    sets, models = f'{ground}/set/gt:{ground}/set/lq', [ground / 'teacher', ground / 'student', 'bicubic']
    specs = [f'{kind}:{files[kind]}' for kind in ('squeezenet-caffe', 'efficientnet_lite0')]
    flags = ['--teacher', 'teacher', '--metrics', 'psnr', '--distance', *specs]
    assert evaluate('-m', *models, '-d', sets, *flags, '-o', tmp_path / 'out') == 0
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())['evaluate']
    names = ['dist-squeezenet-caffe', 'dist-efficientnet_lite0']
    assert [metric['name'] for metric in found['metrics'][1:]] == names
    assert all(
        'not LPIPS' in metric['convention'] and not metric['higher_is_better'] for metric in found['metrics'][1:]
    )
    scores = {(s['model'], s['metric'], s['reference']): s for s in found['scores']}
    folders = {'gt': 'set/gt', 'teacher': 'teacher'}
    for kind, name in zip(('squeezenet-caffe', 'efficientnet_lite0'), names, strict=True):
        assert ('teacher', name, 'teacher') not in scores
        for reference, folder in folders.items():
            entry = scores['student', name, reference]
            pairs = {n: [cv2.imread(f'{ground}/{f}/{n}.png') for f in ('student', folder)] for n in entry['per_image']}
            expected = {n: slow_distance(kind, files[kind], *pair) for n, pair in pairs.items()}
            assert len(expected) == entry['n'] == 3 and entry['per_image'] == pytest.approx(
                expected, rel=1e-4
            )  # float32
        (difference,) = (
            d
            for d in found['differences']
            if (d['a'], d['b'], d['metric'], d['reference']) == ('bicubic', 'student', name, 'teacher')
        )
        of_a, of_b = (scores[row, name, 'teacher']['per_image'] for row in ('bicubic', 'student'))
        assert difference['mean'] == pytest.approx(np.mean([of_a[n] - of_b[n] for n in of_a]), abs=1e-9)
        assert difference['n'] == 3
    shown = capsys.readouterr().out
    assert 'Compared with the images of teacher' in shown and shown.count('dist-efficientnet_lite0') >= 3


def test_distances_to_the_teacher_need_no_ground_truth(ground, files, tmp_path, capsys):
    models = (ground / 'teacher', ground / 'student', 'bicubic')
    flags = ('--teacher', 'teacher', '--metrics', 'psnr', '--distance', f'squeezenet:{files["squeezenet"]}')
    assert evaluate('-m', *models, '-d', f':{ground}/set/lq', *flags, '-o', tmp_path / 'out') == 0
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())['evaluate']
    pairs = {(s['model'], s['reference']) for s in found['scores']}
    assert pairs == {('student', 'teacher'), ('bicubic', 'teacher')}
    assert 'bicubic - student' in capsys.readouterr().out  # nothing can be subtracted from the teacher's own row


MISTAKES = [
    (['vgg16'], 'write KIND:FILE'),
    (['vgg61:x.pth'], "no backbone is called 'vgg61'; did you mean vgg19 or vgg16"),
    (
        ['efficientnet_lite0-caffe:x.pth'],
        "no backbone is called 'efficientnet_lite0-caffe'; did you mean efficientnet_l",
    ),
    (['vgg19:x.pth'], 'no depths are known for vgg19; give vgg16, squeezenet, efficientnet_lite0 or squeezenet-caffe'),
    (['efficientnet_lite0:gone.pth'], 'the file gone.pth does not exist'),
    (
        ['efficientnet_lite0:{vgg16}'],
        "vgg16.pth does not hold EfficientNet-PyTorch's EfficientNet-lite0; name its file",
    ),
    (['efficientnet_lite0:{cut}'], "cut.pth does not hold EfficientNet-PyTorch's EfficientNet-lite0; name its file"),
    (['vgg16:{efficientnet_lite0}'], "lite0.pth does not hold torchvision's vgg16; name its file"),
    (['squeezenet:{squeezenet}', 'squeezenet:{squeezenet}'], 'dist-squeezenet would stand for two columns; give each'),
]


@pytest.mark.parametrize(('specs', 'sentence'), MISTAKES)
def test_mistakes(specs, sentence, ground, files, lite, tmp_path):
    torch.save({key: tensor for key, tensor in lite[1].items() if '_blocks.9.' not in key}, tmp_path / 'cut.pth')
    specs = [spec.format(**files, cut=tmp_path / 'cut.pth') for spec in specs]
    with pytest.raises(UserError, match=f'^--distance: .*{sentence}') as caught:
        evaluate('-m', 'bicubic', '-d', ground / 'set/gt', '-o', tmp_path / 'out', '--distance', *specs)
    assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()
