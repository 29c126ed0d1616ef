"""Precisions, memory layout, compiled networks, and passes of teachers that end at the deepest tap."""

import copy
import shutil

import pytest
import torch
import torchvision
import yaml
from basicsr.models import build_model
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps
from sdakd_models import measured
from sdakd_models.context import Context
from sdakd_models.precision import compile_in_place, eagerly
from sdakd_models.scenario import Scenario

COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ('c++', 'g++', 'clang++'))), reason='torch.compile needs a C++ compiler'
)


def batches(count, size=2):
    generator = torch.Generator().manual_seed(3)
    gts = [torch.rand(size, 3, 32, 32, generator=generator) for _ in range(count)]
    return [{'gt': gt, 'lq': nn.functional.avg_pool2d(gt, 4)} for gt in gts]


def step(model, data, iteration):
    model.update_learning_rate(iteration)
    model.feed_data(data)
    model.optimize_parameters(iteration)
    return model.get_current_log()


def built(world, parse, name='run.yml', iters=2, **train):
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = iters
    options['train'] |= train
    torch.manual_seed(0)
    return build_model(parse(world.write(options, name), world.root))


def losses(log):
    return {name: value for name, value in log.items() if name.startswith('l_')}


# ------------------------------------------------------------------------------------------------ teachers, in part


class Twice(nn.Module):
    """Runs one of its layers twice: the second output is what counts."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x))))


def test_a_pass_for_maps_alone_ends_at_the_deepest_tap_and_records_the_same():
    network, image = Twice(), torch.rand(1, 3, 8, 8)
    taps, ran = FeatureTaps(network, ['first', 'again']), []
    network.last.register_forward_hook(lambda *_: ran.append(1))
    with taps.alone():  # nothing is known of the pass yet
        network(image)
    known = taps.pop()
    assert len(ran) == 1
    with taps.alone():
        network(image)
    found = taps.pop()
    assert len(ran) == 1 and found.keys() == known.keys()
    assert all(torch.equal(found[name], known[name]) for name in known)
    with taps:
        assert network(image).shape == image.shape  # a whole one afterwards is whole
    assert torch.equal(taps.pop()['again'], known['again']) and len(ran) == 2


def test_teachers_run_to_their_image_only_where_something_takes_it(world, parse, monkeypatch):
    """The feature term alone needs no image; the student's gradients are the same either way."""
    gradients, ends = {}, {}
    for whole in (False, True):
        model = built(world, parse, iters=4)
        count = ends[whole] = []
        upsampling = list(model.teachers['teacher'].body)[-1]  # behind the deepest tap
        upsampling.register_forward_hook(lambda *_, count=count: count.append(1))
        if whole:
            monkeypatch.setattr(Scenario, 'shown', lambda *_: {'teacher'})
        data = batches(8)
        for iteration in range(1, 9):
            step(model, data[iteration - 1], iteration)
        gradients[whole] = {name: value.clone() for name, value in model.bare_student.state_dict().items()}
    assert len(ends[True]) == 4 and len(ends[False]) < 2
    assert all(torch.equal(gradients[True][name], gradients[False][name]) for name in gradients[True])


def test_an_image_that_nobody_announced_is_made_all_the_same(world, parse):
    model = built(world, parse)
    model.feed_data(batches(1)[0])
    for _ in range(2):
        context = Context(model, with_features=True, shown=())
        maps = context.features('teacher')
        assert torch.equal(context.image('teacher'), model.teachers['teacher'](model.lq))
        assert all(torch.equal(context.features('teacher')[name], maps[name]) for name in maps)


def test_the_stages_say_whose_images_are_taken(world, parse):
    options = world.options()
    options['train']['output_opt'] = {'type': 'L1Loss'}
    options['train']['stages']['distillation']['terms'] = ['pixel', 'feature', 'output']
    options['discriminators'] = {'t': {'network': options['network_d'], 'real': 'teacher'}}
    options['train']['stages']['adversarial']['terms'] = ['pixel', 'feature', 'gan:t']
    del options['network_d']
    model = build_model(parse(world.write(options), world.root))
    assert [model.scenario.shown(stage) for stage in model.plan.names] == [set(), {'teacher'}, {'teacher'}]
    options['train']['stages']['distillation']['terms'] = ['pixel', 'feature']
    model = build_model(parse(world.write(options), world.root))
    assert not model.scenario.shown('distillation')


# --------------------------------------------------------------------------------------------------------- precision


def dtypes_of(network):
    found = set()
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda _m, _i, output: found.add(output.dtype))
    return found


def test_the_teacher_has_a_precision_of_its_own(world, parse):
    options = world.options()
    options['teacher']['precision'] = 'bf16'
    for stage in options['train']['stages'].values():
        stage['iters'] = 1
    model = build_model(parse(world.write(options), world.root))
    seen = {
        'student': dtypes_of(model.bare_student),
        'teacher': dtypes_of(model.teachers['teacher']),
        'd': dtypes_of(model.discriminators['student'].bare),
    }
    for iteration, data in enumerate(batches(3), 1):
        step(model, data, iteration)
    assert seen == {'student': {torch.float32}, 'teacher': {torch.bfloat16}, 'd': {torch.float32}}


def test_weights_of_a_teacher_in_half_precision_are_cast_once(world, parse):
    """The same images as with a cast in every pass; layers whose code may want float32 stay as they are."""
    options = world.options()
    options['teacher']['precision'] = 'bf16'
    model = build_model(parse(world.write(options), world.root))
    weights = {type(m): m.weight.dtype for m in model.teachers['teacher'].modules() if hasattr(m, 'weight')}
    assert weights == {nn.Conv2d: torch.bfloat16, nn.PReLU: torch.float32}
    model.feed_data(batches(1)[0])
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = world.teacher.to(memory_format=torch.channels_last)(model.lq).float()
        assert torch.equal(model.generate(model.teachers['teacher'], 'teacher'), expected)


def test_the_backbone_of_a_perceptual_loss_is_lowered_and_its_loss_is_not(world, parse):
    torch.manual_seed(1)
    network = torchvision.models.vgg16(weights=None)
    torch.save(network.state_dict(), world.root / 'vgg.pth')
    loss = {'type': 'BackbonePerceptualLoss', 'backbone': 'vgg16', 'weights': str(world.root / 'vgg.pth')}
    found = {}
    for precision in ('tf32', 'bf16'):
        model = built(world, parse, precision=precision, perceptual_opt=loss, stages={
            'only': {'iters': 4, 'lr_g': 1e-4, 'terms': ['pixel', 'perceptual']}
        })  # fmt: skip
        backbone = model.terms['perceptual'].loss.backbone
        seen = dtypes_of(backbone)
        assert {maps.dtype for maps in backbone(torch.rand(1, 3, 32, 32))} == {torch.float32}
        assert seen == {torch.float32 if precision == 'tf32' else torch.bfloat16}
        found[precision] = step(model, batches(1)[0], 1)['l_g_percep_vgg16']
    assert found['bf16'] == pytest.approx(found['tf32'], rel=0.02) and found['bf16'] != found['tf32']


@pytest.mark.parametrize('clip', [None, 1.0])
def test_fp16_scales_losses_and_takes_it_back(world, parse, clip):
    """Steps like those of float32, whose moments hold unscaled gradients; a state keeps the scale."""
    found = {}
    for precision in ('fp32', 'fp16'):
        model = built(world, parse, precision=precision, ema_decay=0.9)
        for stage in model.plan.stages:
            stage.grad_clip = clip
        if precision == 'fp16':  # the scale that it begins with overflows, and steps would be left out
            model.cast.scaler.load_state_dict({**model.cast.scaler.state_dict(), 'scale': 2.0**8})
        found[precision] = [losses(step(model, data, number)) for number, data in enumerate(batches(6), 1)]
        assert model.cast.scaler.is_enabled() == (precision == 'fp16')
        assert all(player.optimizer.state for player in model.players)
        moments = [m['exp_avg'].abs().max() for m in model.players[0].optimizer.state.values()]
        found[precision, 'moments'] = max(moments).item()
    for one, other in zip(found['fp32'], found['fp16'], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=0.02), name
    assert found['fp16', 'moments'] == pytest.approx(found['fp32', 'moments'], rel=0.1)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(world, parse):
    model = built(world, parse, precision='fp16')
    model.cast.scaler = model.players[0].scaler  # one for all
    model.cast.scaler.load_state_dict({**model.cast.scaler.state_dict(), 'scale': 2.0**40})
    before = copy.deepcopy(model.bare_student.state_dict())
    step(model, batches(1)[0], 1)
    assert all(torch.equal(value, before[name]) for name, value in model.bare_student.state_dict().items())
    assert model.cast.scaler.get_scale() == 2.0**39
    for _ in range(60):
        model.optimize_parameters(1)
        if model.cast.scaler.get_scale() < 2.0**20:
            break
    step(model, batches(1)[0], 2)
    assert any(not torch.equal(value, before[name]) for name, value in model.bare_student.state_dict().items())


def test_a_state_keeps_the_scale_and_what_was_measured(world, parse):
    model = built(world, parse, precision='fp16', iters=6)
    for key in ('models', 'training_states'):
        (world.root / 'experiments/run' / key).mkdir(parents=True, exist_ok=True)
    step(model, batches(1)[0], 1)
    model.cast.scaler.load_state_dict({**model.cast.scaler.state_dict(), 'scale': 512.0, '_growth_tracker': 7})
    model.cast.precisions.measured = {'student': 'bf16'}
    model.save(0, 1)
    opt = parse(world.root / 'run.yml', world.root, '--auto_resume')
    state = torch.load(opt['path']['resume_state'], weights_only=True)
    again = build_model(opt)
    again.resume_training(state)
    assert again.cast.scaler.state_dict() == model.cast.scaler.state_dict()
    assert again.cast.precisions.measured == {'student': 'bf16'}


def test_auto_is_what_takes_less_time(world, parse, monkeypatch):
    """Every role by itself: the times are those of a clock of this test."""
    options = world.options()
    options['train'] |= {'precision': 'auto'}
    options['teacher']['precision'] = 'fp32'
    opt = parse(world.write(options), world.root)
    model = build_model({**opt, 'rehearsal': True})
    cost = {('student', 'bf16'): 3, ('student', 'tf32'): 2, ('discriminator', 'bf16'): 1, ('discriminator', 'tf32'): 2}
    now, asked = [0.0], []
    real = type(model.cast.precisions).autocast

    def autocast(self, role):
        asked.append(role)
        now[0] += cost[role, self.of(role)]
        return real(self, role)

    monkeypatch.setattr(type(model.cast.precisions), 'autocast', autocast)
    monkeypatch.setattr(measured.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(measured, 'computes_bf16', lambda: True)
    measured.settle_precisions(opt, model)
    assert opt['precisions'] == {'student': 'tf32', 'discriminator': 'bf16'} and set(asked) == set(opt['precisions'])
    assert 'student float32 (3000 ms a pass in bf16, 2000 ms in float32)' in opt['precision']
    monkeypatch.setattr(measured, 'computes_bf16', lambda: False)
    measured.settle_precisions(opt, model)
    assert set(opt['precisions'].values()) == {'tf32'}
    found = {'student': 'bf16', 'discriminator': 'tf32'}
    chosen = build_model({**opt, 'precisions': found, 'rehearsal': True}).cast.precisions
    assert [chosen.of(role) for role in ('student', 'discriminator', 'teacher')] == ['bf16', 'tf32', 'fp32']


@pytest.mark.parametrize(('precision', 'allowed'), [('fp32', False), ('tf32', True), ('bf16', True)])
def test_fp32_forbids_tf32_and_a_teacher_may_use_it(world, parse, monkeypatch, precision, allowed):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    options = world.options()
    options['train']['precision'] = precision
    options['teacher']['precision'] = 'tf32'
    model = build_model(parse(world.write(options), world.root))
    assert torch.backends.cudnn.allow_tf32 == allowed
    with model.autocast('teacher'):
        assert torch.backends.cudnn.allow_tf32
    with model.autocast('student'):
        assert torch.backends.cudnn.allow_tf32 == allowed
    torch.backends.cudnn.allow_tf32 = True


def test_the_layout_of_memory_is_chosen(world, parse):
    for wanted in (None, True, False):
        model = built(world, parse, channels_last=wanted)
        networks = [model.bare_student, model.net_g_ema, *model.teachers.values(), model.discriminators['student'].bare]
        for network in networks:
            weights = [p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[-1] > 1]
            for weight in weights:
                assert weight.is_contiguous(memory_format=torch.channels_last) == (wanted is not False)


def test_what_several_are_compared_with_goes_through_the_backbone_once(world, parse):
    """A teacher that learns along is compared with the ground truth as the student is; the student with two."""
    torch.manual_seed(1)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), world.root / 'vgg.pth')
    loss = {'backbone': 'vgg16', 'weights': str(world.root / 'vgg.pth')}
    options = world.options()
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    options['teachers'] = {'other': {'weights': str(world.root / 'teacher.pth')}}
    options['train'] |= {
        'perceptual_opt': {'type': 'BackbonePerceptualLoss', **loss},
        'imitation_opt': {'type': 'ImitationLoss', 'teachers': ['teacher', 'other'], 'shift': 3, **loss},
        'stages': {'only': {'iters': 4, 'lr_g': 1e-4, 'terms': ['perceptual', 'imitation']}},
    }
    model = build_model(parse(world.write(options), world.root))
    passes = {name: [] for name in ('perceptual', 'imitation')}
    for name, found in passes.items():
        network = model.terms[name].loss.backbone.network
        network.register_forward_pre_hook(lambda _, images, found=found: found.append(images[0].requires_grad))
    first = losses(step(model, batches(1)[0], 1))
    # both generators' images and one ground truth; the student's image and those of two teachers
    assert passes['perceptual'].count(True) == 2 and passes['imitation'].count(True) >= 1
    known = passes['perceptual'].count(False)
    step(model, batches(2)[1], 2)
    assert passes['perceptual'].count(False) == known + 1  # another one is not taken for it
    term = model.terms['imitation'].loss.eval()
    images = torch.rand(3, 1, 3, 32, 32).requires_grad_()
    together = term.parts(*images)
    assert together == [term.parts(images[0], other)[0] for other in images[1:]]
    assert first['l_g_percep_vgg16'] > 0 and first['l_t_percep_vgg16'] > 0


def test_basicsrs_style_loss_takes_maps_in_any_layout(world, parse, monkeypatch):
    """Its Gram matrix needs maps in the order of their dimensions."""
    torch.manual_seed(1)
    network = torchvision.models.vgg19(weights=None)
    torch.save(network.state_dict(), world.root / 'vgg.pth')
    monkeypatch.setattr('basicsr.archs.vgg_arch.VGG_PRETRAIN_PATH', str(world.root / 'vgg.pth'))
    monkeypatch.setattr('sdakd_models.terms.supervised.ensure_vgg', lambda *_: None)
    loss = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1}, 'style_weight': 1.0, 'criterion': 'l1'}
    found = {}
    for layout in (False, True):
        model = built(world, parse, channels_last=layout, perceptual_opt=loss, stages={
            'only': {'iters': 4, 'lr_g': 1e-4, 'terms': ['pixel', 'perceptual']}
        })  # fmt: skip
        found[layout] = losses(step(model, batches(1)[0], 1))
    assert found[True] == pytest.approx(found[False], rel=1e-4) and found[True]['l_g_style'] > 0


# ----------------------------------------------------------------------------------------------------------- compiled


@COMPILER
def test_compiled_networks_train_like_others_and_are_saved_alike(world, parse):
    found, states = {}, {}
    for compiled in (False, True):
        options = world.options()
        options['network_g']['num_conv'] = options['network_d']['num_feat'] = 2
        options['train']['compile'] = compiled
        options['train']['feature_opt'] |= {'layers': {'body.2': 'body.2'}}
        for stage in options['train']['stages'].values():
            stage['iters'] = 2
        torch.manual_seed(0)
        model = build_model(parse(world.write(options), world.root))
        networks = [model.bare_student, model.teachers['teacher'], model.discriminators['student'].bare]
        assert all((network._compiled_call_impl is not None) == compiled for network in networks)
        assert model.net_g_ema._compiled_call_impl is None
        torch._dynamo.utils.counters.clear()
        found[compiled] = [losses(step(model, data, number)) for number, data in enumerate(batches(6), 1)]
        states[compiled] = set(model.bare_student.state_dict())
    assert not torch._dynamo.utils.counters['graph_break'], dict(torch._dynamo.utils.counters['graph_break'])
    assert states[True] == states[False]
    for one, other in zip(*found.values(), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@COMPILER
def test_taps_record_where_a_network_without_taps_was_compiled_before():
    plain, tapped, image = Twice(), Twice(), torch.rand(1, 3, 8, 8)
    taps = FeatureTaps(tapped, ['again'])
    with torch.no_grad():
        for network in (plain, tapped):
            compile_in_place(network)
            with taps:
                network(image)
    assert torch.allclose(taps.pop()['again'], tapped.again(tapped.again(tapped.first(image))), atol=1e-6)
    with taps.alone():
        assert tapped(image).shape == image.shape  # what is compiled runs to its end


def test_other_sizes_do_not_compile_anew():
    network, calls = Twice(), []
    network.compile(backend=lambda graph, _: calls.append(1) or graph)
    network(torch.rand(1, 3, 8, 8))
    with eagerly():
        network(torch.rand(1, 3, 9, 9))
    assert len(calls) == 1


@pytest.mark.parametrize(('key', 'value'), [('train', 'half'), ('teacher', 'float16')])
def test_an_unknown_precision_is_refused(world, parse, key, value):
    options = world.options()
    options[key]['precision'] = value
    with pytest.raises(UserError, match=rf'{key}:precision: .*{value}'):
        parse(world.write(options), world.root)
    assert yaml.safe_load((world.root / 'run.yml').read_text())[key]['precision'] not in ('fp32', 'tf32')


def test_two_hundred_steps_in_bf16_log_what_those_in_fp32_do(world, parse):
    """Of every stage and every loss, the mean over its last steps; a single step of a GAN may be farther off."""
    found = {}
    for precision in ('fp32', 'bf16'):
        model = built(world, parse, iters=70, precision=precision)
        data = batches(10)
        logs = [losses(step(model, data[number % 10], number)) for number in range(1, 211)]
        for end in (70, 140, 210):
            for name in logs[end - 1]:
                found[precision, end, name] = sum(log[name] for log in logs[end - 20 : end]) / 20
    assert sum(key[0] == 'bf16' for key in found) == 8
    for (precision, end, name), value in found.items():
        if precision == 'bf16':
            assert value == pytest.approx(found['fp32', end, name], rel=0.02), (end, name)
