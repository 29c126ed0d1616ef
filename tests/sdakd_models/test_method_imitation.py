"""The teacher's image as a target: pixel by pixel, and in a backbone as OMGD, CRD and DCD have it."""

import copy
import math
import os

import numpy as np
import pytest
import torch
import torchvision
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_losses.imitation_loss import BackbonePerceptualLoss, ImitationLoss, gram

VGG16 = (64, 64, 'pool', 128, 128, 'pool', 256, 256, 256, 'pool', 512, 512, 512, 'pool', 512, 512, 512, 'pool')
RELUS = (3, 8, 15, 22)  # relu1_2, relu2_2, relu3_3, relu4_3 in torchvision's numbering


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Random weights with torchvision's key names: a VGG16 without classifier, a SqueezeNet in half precision."""
    folder, generator = tmp_path_factory.mktemp('backbones'), torch.Generator().manual_seed(0)
    state, channels, number = {}, 3, 0
    for width in VGG16:
        if width != 'pool':
            kernel = torch.randn(width, channels, 3, 3, generator=generator) * math.sqrt(2 / (9 * channels))
            state[f'features.{number}.weight'] = kernel
            state[f'features.{number}.bias'] = 0.1 * torch.randn(width, generator=generator)
            channels = width
        number += 1 if width == 'pool' else 2
    torch.save(state, folder / 'vgg16.pth')
    torch.manual_seed(0)
    torch.save({k: v.half() for k, v in torchvision.models.squeezenet1_1().state_dict().items()}, folder / 'sq.pth')
    return {'vgg16': folder / 'vgg16.pth', 'squeezenet': folder / 'sq.pth', 'squeezenet-caffe': folder / 'sq.pth'}


def images(size=32, count=2):
    student, teacher = torch.rand(2, count, 3, size, size, dtype=torch.float64)
    return student, teacher


def vgg_maps(file, image):
    """relu1_2, relu2_2, relu3_3 and relu4_3, layer by layer in double precision, on the image as it is."""
    state, found, number = torch.load(file, weights_only=True), [], 0
    for width in VGG16[:13]:
        if width == 'pool':
            image, number = F.max_pool2d(image, 2), number + 1
            continue
        weight, bias = (state[f'features.{number}.{kind}'].double() for kind in ('weight', 'bias'))
        image, number = F.conv2d(image, weight, bias, padding=1).clamp(min=0), number + 2
        if number - 1 in RELUS:
            found.append(image.numpy())
    return found


def squeezenet_maps(file, kind, image):
    """The last map of every resolution, by torchvision's own network and transform."""
    network = torchvision.models.squeezenet1_1()
    network.load_state_dict(torch.load(file, weights_only=True))
    network = network.double().eval().features
    if kind == 'squeezenet':
        image = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(image)
    else:
        image = image[:, [2, 1, 0]] * 255 - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    with torch.no_grad():
        found = [network[:end](image).numpy() for end in (2, 5, 8, 13)]
    assert [f.shape[1] for f in found] == [64, 128, 256, 512]
    return found


def maps_of(files, kind, student, teacher):
    if kind == 'vgg16':
        return [vgg_maps(files[kind], image) for image in (student, teacher)]
    ours, theirs = (squeezenet_maps(files[kind], kind, image) for image in (student, teacher))
    units = [math.sqrt(np.mean(t**2)) for t in theirs]
    return [[f / unit for f, unit in zip(side, units, strict=True)] for side in (ours, theirs)]


def test_gram_is_its_formula():
    feature = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    wanted = [
        [
            [
                math.fsum(float(image[i, y, x] * image[j, y, x]) for y in range(4) for x in range(5)) / (3 * 4 * 5)
                for j in range(3)
            ]
            for i in range(3)
        ]
        for image in feature
    ]
    torch.testing.assert_close(gram(feature), torch.tensor(wanted, dtype=torch.float64))
    # the style does not know where something is
    order = torch.randperm(20)
    torch.testing.assert_close(gram(feature), gram(feature.flatten(2)[..., order].view(2, 3, 4, 5)))


@pytest.mark.parametrize('kind', ['vgg16', 'squeezenet', 'squeezenet-caffe'])
def test_imitation_is_its_formula(files, kind):
    student, teacher = images()
    style = 0.0
    ours, theirs = maps_of(files, kind, student, teacher)
    for one, other in zip(ours, theirs, strict=True):
        n, c, h, w = one.shape
        for a, b in zip(one.reshape(n, c, -1), other.reshape(n, c, -1), strict=True):
            style += np.abs(a @ a.T - b @ b.T).sum() / (c * h * w) / (n * c * c)
    feature = np.abs(ours[1] - theirs[1]).mean()
    loss = ImitationLoss(kind, files[kind], style_weight=30.0, feature_weight=2.0, loss_weight=0.5).double()
    parts = loss.parts(student, teacher)[0]
    assert parts['style'].item() == pytest.approx(0.5 * 30 * style, rel=1e-6)
    assert parts['feature'].item() == pytest.approx(0.5 * 2 * feature, rel=1e-6)
    assert loss(student, teacher).item() == pytest.approx(15 * style + feature, rel=1e-6)
    assert loss(teacher, teacher).item() == 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_part_with_weight_zero_is_not_computed(files):
    student, teacher = images()
    for weights, name in ((dict(style_weight=0), 'feature'), (dict(feature_weight=0), 'style')):
        loss = ImitationLoss('squeezenet', files['squeezenet'], **weights).double()
        assert list(loss.parts(student, teacher)[0]) == [name]


def test_perceptual_loss_is_its_formula(files):
    student, target = images()
    weights = [0.1, 0.2, 1.0, 3.0]
    for kind in ('vgg16', 'squeezenet-caffe'):
        pairs = zip(weights, *maps_of(files, kind, student, target), strict=True)
        wanted = 0.5 * sum(weight * np.abs(one - other).mean() for weight, one, other in pairs)
        loss = BackbonePerceptualLoss(kind, files[kind], layer_weights=weights, loss_weight=0.5).double()
        found, style = loss(student, target)
        assert found.item() == pytest.approx(wanted, rel=1e-6) and style is None


@pytest.mark.parametrize('make', [ImitationLoss, BackbonePerceptualLoss])
def test_the_gradient_is_the_finite_difference_and_reaches_the_student_only(files, make):
    loss = make('squeezenet-caffe', files['squeezenet']).double()

    def value(image):
        found = loss(image, teacher)
        return found[0] if isinstance(found, tuple) else found

    student, teacher = (image.requires_grad_() for image in images(count=1))
    (gradient,) = torch.autograd.grad(value(student), student, retain_graph=True)
    assert torch.autograd.grad(value(student), teacher, allow_unused=True) == (None,)
    for _ in range(5):
        direction = torch.randn_like(student)
        step = 1e-7 * direction
        with torch.no_grad():
            slope = (value(student + step) - value(student - step)) / 2e-7
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_a_stand_in_with_larger_activations_gives_the_same_loss(files, tmp_path):
    state = {key: value.float() for key, value in torch.load(files['squeezenet'], weights_only=True).items()}
    for key in state:  # rectifiers and pooling are homogeneous: every map becomes a hundred times larger
        if key.endswith('bias') or key == 'features.0.weight':
            state[key] = state[key] * 100
    torch.save(state, tmp_path / 'larger.pth')
    student, teacher = images()
    values = [
        ImitationLoss('squeezenet', file).double()(student, teacher)
        for file in (files['squeezenet'], tmp_path / 'larger.pth')
    ]
    torch.testing.assert_close(*values)


# ------------------------------------------------------------------------------------------------------------ training


def batch(seed=3):
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return {'gt': gt, 'lq': F.avg_pool2d(gt, 4)}


def step(model, data, iteration=1):
    model.update_learning_rate(iteration)
    model.feed_data(data)
    model.optimize_parameters(iteration)
    return model.get_current_log()


@pytest.fixture
def options(world, files):
    """One stage with the ground truth and, in a SqueezeNet, the teacher."""
    options = world.options()
    values = {'backbone': 'squeezenet', 'weights': str(files['squeezenet']), 'style_weight': 2.0, 'feature_weight': 3.0}
    options['train'] |= {
        'stages': {'only': {'iters': 4, 'lr_g': 1e-3, 'terms': ['pixel', 'imitation']}},
        'imitation_opt': {'type': 'ImitationLoss', **values, 'loss_weight': 0.1},
        'output_opt': {'type': 'L1Loss', 'loss_weight': 0.5},
        'teacher_margin': 1,  # of 8 input pixels: SqueezeNet takes no less
    }
    return options


def test_a_step_with_two_teachers(world, parse, options, files):
    torch.manual_seed(2)
    other = SRVGGNetCompact(num_feat=4, num_conv=2)
    torch.save({'params': other.state_dict()}, world.root / 'other.pth')
    options['teachers'] = {'other': {'weights': str(world.root / 'other.pth')}}
    options['train']['imitation_opt']['teachers'] = ['teacher', 'other']
    model = build_model(parse(world.write(options), world.root))
    student = copy.deepcopy(model.bare_student)
    backbone = copy.deepcopy(model.terms['imitation'].loss.backbone.state_dict())
    data = batch()
    log = step(model, data)
    with torch.no_grad():
        image = student(data['lq'])
        targets = {'': world.teacher(data['lq']), '_other': other(data['lq'])}
    seen = []  # what the measured units are of: the images of all teachers so far
    for suffix, target in targets.items():
        pair = (x[..., 4:-4, 4:-4].double() for x in (image, target))  # a border of one input pixel is left out
        ours, theirs = (squeezenet_maps(files['squeezenet'], 'squeezenet', x)[1] for x in pair)
        seen.append(theirs)
        feature = 0.1 * 3 * np.abs(ours - theirs).mean() / math.sqrt(np.mean(np.square(seen)))
        assert log[f'l_g_imit_feature_squeezenet{suffix}'] == pytest.approx(feature, rel=1e-3)
        assert log[f'l_g_imit_style_squeezenet{suffix}'] > 0
    assert log['l_g_imit_style_squeezenet'] != log['l_g_imit_style_squeezenet_other']
    after = model.bare_student.state_dict()
    assert all(not torch.equal(value, after[key]) for key, value in student.state_dict().items())
    now = model.terms['imitation'].loss.backbone.state_dict()
    assert backbone and all(torch.equal(value, now[key]) for key, value in backbone.items())
    assert [player.name for player in model.players] == ['g']


def test_the_output_term_is_the_distance_to_the_teachers_image(world, parse, options):
    options['train']['stages']['only']['terms'] = ['pixel', 'output']
    model = build_model(parse(world.write(options), world.root))
    student, data = copy.deepcopy(model.bare_student), batch()
    log = step(model, data)
    image = student(data['lq'])
    difference = image - world.teacher(data['lq']).detach()
    distance = 0.5 * difference[..., 4:-4, 4:-4].abs().mean()  # an input pixel is border
    assert log['l_g_output'] == pytest.approx(distance.item(), rel=1e-5)
    ((image - data['gt']).abs().mean() + distance).backward()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, betas=(0.9, 0.99))
    optimizer.step()
    for mine, theirs in zip(student.parameters(), model.bare_student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    assert all(torch.equal(v, model.teachers['teacher'].state_dict()[k]) for k, v in world.teacher.state_dict().items())


def test_a_squeezenet_stands_in_for_basicsrs_vgg19(world, parse, options, files):
    options['train']['stages']['only']['terms'] = ['pixel', 'perceptual']
    options['train']['perceptual_opt'] = {
        'type': 'BackbonePerceptualLoss', 'backbone': 'squeezenet-caffe', 'weights': str(files['squeezenet']),
    }  # fmt: skip
    model = build_model(parse(world.write(options), world.root))
    student, data = copy.deepcopy(model.bare_student), batch()
    with torch.no_grad():
        ours, theirs = maps_of(files, 'squeezenet-caffe', student(data['lq']).double(), data['gt'].double())
    wanted = sum(w * np.abs(a - b).mean() for w, a, b in zip((0.1, 0.1, 1, 1), ours, theirs, strict=True))
    log = step(model, data)
    assert log['l_g_percep_squeezenet'] == pytest.approx(wanted, rel=1e-3)
    assert set(log) == {'stage', 'l_g_pix', 'l_g_percep_squeezenet', 'share_pixel', 'share_perceptual'}


def test_a_relative_weights_file_is_found_beside_experiments(world, parse, options, files):
    relative = 'experiments/pretrained_models/squeezenet.pth'
    (world.root / relative).parent.mkdir(parents=True)
    (world.root / relative).write_bytes(files['squeezenet'].read_bytes())
    options['train']['imitation_opt']['weights'] = relative
    opt = parse(world.write(options), world.root)
    assert opt['train']['imitation_opt']['weights'] == os.path.join(world.root, relative)


MISTAKES = [
    ({'backbone': 'squeezenett'}, "imitation_opt:backbone: no backbone is called 'squeezenett'; did you mean squeezen"),
    ({'backbone': None}, 'imitation_opt:backbone: write text, not None'),
    ({'backbone': ['vgg16']}, r"imitation_opt:backbone: write text, not \['vgg16'\]"),
    ({'weights': None}, 'imitation_opt:weights: name the file of squeezenet'),
    ({'weights': 'gone.pth'}, r'imitation_opt:weights: the file .*gone.pth does not exist; .*`imitation_opt: ~`'),
    ({'weights': 'teacher.pth'}, r"imitation_opt:weights: .*teacher.pth does not hold torchvision's squeezenet1_1"),
    ({'backbone': 'vgg16'}, r"imitation_opt:weights: .*sq.pth does not hold torchvision's vgg16"),
    ({'input': 'imgnet'}, "imitation_opt:input: there is no 'imgnet'; write imagenet, raw or caffe"),
    ({'backbone': 'squeezenet-caffe', 'input': 'raw'}, 'imitation_opt:input: squeezenet-caffe takes caffe; .*squeezen'),
    ({'units': 'rms'}, "imitation_opt:units: there is no 'rms'; write given or measured"),
    ({'shift': -1}, r'imitation_opt:shift: write a whole number of pixels from 0 \(off\) to 16, .* not -1'),
    ({'shift': 17}, 'imitation_opt:shift: write a whole number .* not 17'),
    ({'shift': 2.5}, 'imitation_opt:shift: write a whole number, not 2.5'),
    ({'shift': True}, 'imitation_opt:shift: write a whole number, not True'),
    ({'style_weight': '1e4'}, "imitation_opt:style_weight: write a number .* not '1e4'"),
    ({'style_weight': 0, 'feature_weight': 0}, 'style_weight and feature_weight are both 0'),
    ({'style': 1.0}, "ImitationLoss takes no 'style'; did you mean style_weight"),
    ({'teachers': ['techer']}, 'teachers:techer: the block is missing'),
    ({'teachers': []}, r'imitation_opt:teachers: expected `array` of length >= 1'),
]


@pytest.mark.parametrize(('change', 'sentence'), MISTAKES)
def test_mistakes_are_one_sentence(world, parse, options, change, sentence):
    options['train']['imitation_opt'] |= change
    with pytest.raises(UserError, match=sentence) as error:
        parse(world.write(options), world.root)
    assert '\n' not in str(error.value) and not (world.root / 'experiments').exists()


def test_a_missing_vgg16_names_its_address_and_how_to_go_without(world, parse, options, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError('no network')

    monkeypatch.setattr('urllib.request.urlopen', offline)
    file = world.root / 'vgg16-397923af.pth'
    options['train']['imitation_opt'] |= {'backbone': 'vgg16', 'weights': str(file)}
    with pytest.raises(UserError) as error:
        parse(world.write(options), world.root)
    for part in (
        f'{file} does not exist',
        'https://download.pytorch.org/models/vgg16-397923af.pth',
        'imitation_opt: ~',
    ):
        assert part in str(error.value)
    options['train']['imitation_opt'] = None
    assert isinstance(build_model(parse(world.write(options), world.root)).net_g, nn.Module)


def test_a_crop_that_is_too_small_for_the_backbone_is_refused(world, parse, options):
    options['train']['teacher_margin'] = 2  # 16x16 of the 32x32 pixels remain: nothing after the third pooling
    with pytest.raises(UserError, match=r'teacher_margin leaves 16x16 pixels, too few for squeezenet'):
        parse(world.write(options), world.root)
    options['train']['teacher_margin'] = 1
    parse(world.write(options), world.root)


@pytest.mark.parametrize('factors', [[1.0], 'all', [1, 1, 1, '1e-1']])
def test_layer_weights_are_four_numbers(world, parse, options, files, factors):
    options['train']['stages']['only']['terms'] = ['pixel', 'perceptual']
    values = {'backbone': 'squeezenet', 'weights': str(files['squeezenet']), 'layer_weights': factors}
    options['train']['perceptual_opt'] = {'type': 'BackbonePerceptualLoss', **values}
    with pytest.raises(UserError, match='train:perceptual_opt:layer_weights: write a list of four numbers'):
        parse(world.write(options), world.root)
