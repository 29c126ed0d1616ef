"""The pool that uses degraded pairs and the teacher's answers to them several times."""

import itertools
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.models import build_model
from basicsr.models.realesrgan_model import RealESRGANModel
from torch import nn
from torch.utils.data import DataLoader

from sdakd.compat import UserError
from sdakd_data.answers import Answer
from sdakd_data.pool import ReusingPool

CROP, MARGIN, ROOM, SCALE = 8, 2, 4, 2


class Network(nn.Module):
    """A teacher with maps at the input's resolution and at half of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.small = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 2, stride=2)
        self.last = nn.Conv2d(4, 3 * SCALE**2, 3, padding=1)

    def forward(self, lq):
        maps = self.first(lq).relu()
        return nn.functional.pixel_shuffle(self.last(maps), SCALE), {'first': maps, 'half': self.small(maps)}


class Teacher:
    """Answers for the pool; counts its passes and the images in them."""

    def __init__(self):
        self.network, self.passes, self.images = Network(), 0, 0

    def __call__(self, who, lq, with_features, with_image):
        assert who == 'teacher'
        self.passes, self.images = self.passes + 1, self.images + len(lq)
        with torch.no_grad():
            image, maps = self.network(lq)
        return Answer(image if with_image else None, maps if with_features else {})


def pair(number, count=2):
    """Noise, so that every crop tells where it is from; the ground truth is the input enlarged."""
    side = CROP + 2 * MARGIN + ROOM
    lq = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(number))
    return lq, lq.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)


def make(size=8, reuse=4, teacher=None):
    random.seed(1)
    return ReusingPool(size, reuse, CROP, MARGIN, SCALE, teacher or Teacher())


def place(crop, images):
    """Which image a crop is from, and where: (number, top, left, whether it is mirrored)."""
    found = []
    for number, image in enumerate(images):
        for top, left in itertools.product(range(MARGIN, MARGIN + ROOM + 1), repeat=2):
            part = image[:, top : top + CROP, left : left + CROP]
            found += [(number, top, left, False)] * torch.equal(part, crop)
            found += [(number, top, left, True)] * torch.equal(part.flip(-1), crop)
    assert len(found) == 1
    return found[0]


def feed(pool, images, batch=2):
    """Adds a new batch where the pool wants one; remembers its inputs."""
    if pool.wants(batch):
        lq, gt = pair(len(images))
        images += list(lq)
        pool.add(lq, gt)
        return True
    return False


def test_every_pair_leaves_after_its_draws():
    pool, images, drawn, adds = make(), [], Counter(), []
    for _ in range(120):
        adds.append(feed(pool, images))
        lq, gt = pool.draw(2, flips=False)
        assert lq.shape == (2, 3, CROP, CROP) and gt.shape == (2, 3, CROP * SCALE, CROP * SCALE)
        numbers = [place(crop, images)[0] for crop in lq]
        assert len(set(numbers)) == 2  # no pair stands twice in a batch
        drawn.update(numbers)
        assert len(pool.entries) <= 8
    full = next(number for number, added in enumerate(adds) if not added) * 2  # pairs until the pool is full
    inner = slice(MARGIN, MARGIN + CROP)
    gone = set(drawn) - {place(entry.lq[:, inner, inner], images)[0] for entry in pool.entries}
    assert len(gone) > 40 and all(drawn[number] == 4 for number in gone if number >= full)
    assert all(1 <= drawn[number] <= 4 for number in drawn) and len({drawn[n] for n in gone if n < full}) > 1
    assert sum(drawn.values()) == 240


def test_a_crop_is_cut_at_the_same_place_from_everything():
    teacher = Teacher()
    pool, images = make(teacher=teacher), []
    seen = set()
    for step in range(60):
        feed(pool, images)
        lq, gt = pool.draw(2, flips=False)
        answer = pool.answers('teacher', with_features=True)
        assert set(answer.features) == {'first', 'half'}
        for number, crop in enumerate(lq):
            which, top, left, flip = place(crop, images)
            seen.add((top, left))
            assert not flip
            with torch.no_grad():
                image, maps = teacher.network(images[which][None])
            assert torch.equal(gt[number], crop.repeat_interleave(2, -1).repeat_interleave(2, -2))
            wanted = image[0, :, 2 * top : 2 * top + 2 * CROP, 2 * left : 2 * left + 2 * CROP]
            torch.testing.assert_close(answer.image[number], wanted)
            wanted = maps['first'][0, :, top : top + CROP, left : left + CROP]
            torch.testing.assert_close(answer.features['first'][number], wanted, rtol=1e-3, atol=1e-4)  # kept in half
            if step:  # from the second draw on, the pool knows that a pixel of some map covers two
                assert top % 2 == left % 2 == 0
                half = CROP // 2
                wanted = maps['half'][0, :, top // 2 : top // 2 + half, left // 2 : left // 2 + half]
                torch.testing.assert_close(answer.features['half'][number], wanted, rtol=1e-3, atol=1e-4)
    assert set(itertools.product(range(MARGIN, MARGIN + ROOM + 1, 2), repeat=2)) <= seen  # everywhere


def test_answers_without_features_and_then_with_them():
    teacher = Teacher()
    pool, images = make(teacher=teacher), []
    feed(pool, images)
    pool.draw(2, flips=False)
    assert pool.answers('teacher', with_features=False).features == {} and teacher.images == 2
    pool.answers('teacher', with_features=False)
    assert teacher.images == 2  # known
    assert set(pool.answers('teacher', with_features=True).features) == {'first', 'half'} and teacher.images == 4
    assert set(pool.answers('teacher', with_features=False).features) == set() and teacher.images == 4


def test_mirrored_crops_are_mirrored_alike():
    teacher = Teacher()
    pool, images, flips = make(teacher=teacher), [], []
    for _ in range(40):
        feed(pool, images)
        lq, gt = pool.draw(2, flips=True)
        answer = pool.answers('teacher', with_features=False)
        for number, crop in enumerate(lq):
            which, top, left, flip = place(crop, images)
            flips.append(flip)
            with torch.no_grad():
                image, _ = teacher.network(images[which][None])
            wanted = image[0, :, 2 * top : 2 * top + 2 * CROP, 2 * left : 2 * left + 2 * CROP]
            torch.testing.assert_close(answer.image[number], wanted.flip(-1) if flip else wanted)
            assert torch.equal(gt[number], crop.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert 20 < sum(flips) < 60


def test_the_teacher_sees_every_pair_once():
    teacher = Teacher()
    pool, images, passes = make(size=8, reuse=4, teacher=teacher), [], 0
    for _ in range(100):
        passes += feed(pool, images)
        pool.draw(2, flips=False)
        pool.answers('teacher', with_features=True)
    assert teacher.passes == passes and teacher.images == len(images)
    assert 100 / 4 <= passes <= 100 / 4 + 8  # the pool itself is a stock of four batches, half used at first


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def options(world):
    """A distillation stage on Real-ESRGAN's degradation of photographs of 64 pixels, crops of 32, batches of 2."""
    options = world.options()
    names = sorted(path.name for path in (world.root / 'HR').iterdir())
    (world.root / 'meta.txt').write_text(''.join(f'{name}\n' for name in names))
    data = {'name': 'gt', 'type': 'RealESRGANDataset', **world.kernels, 'use_hflip': True, 'use_rot': False,
            'gt_size': 32, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataroot_gt': str(world.root / 'HR'),
            'meta_info': str(world.root / 'meta.txt'), 'io_backend': {'type': 'disk'}}  # fmt: skip
    options |= {'model_type': 'SDAKDRealESRGANModel', **world.degradation, 'gt_size': 32, 'queue_size': 8}
    options['datasets']['train'] = data
    options['train']['stages'] = {
        'supervised': {'iters': 4, 'lr_g': 1e-3, 'terms': ['pixel', 'output']},
        'distillation': {'iters': 60, 'lr_g': 1e-3, 'terms': ['pixel', 'feature']},
    }
    options['train'] |= {'output_opt': {'type': 'L1Loss', 'loss_weight': 1.0}, 'pool_reuse': 4}
    return options


def training(world, parse, options, count):
    """The model, and its batches of ground truth with kernels."""
    opt = parse(world.write(options), world.root)
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    model = build_model(opt)
    dataset = build_dataset(opt['datasets']['train'])
    loader = DataLoader(dataset, batch_size=2, drop_last=True)
    return model, itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count)


def step(model, batch, iteration):
    model.update_learning_rate(iteration)
    model.feed_data(batch)
    model.optimize_parameters(iteration)


def test_degradation_and_teacher_are_paid_once_for_several_iterations(world, parse, options):
    model, data = training(world, parse, options, 44)
    passes, degraded = [], []
    model.teachers['teacher'].register_forward_pre_hook(lambda *_: passes.append(1))
    model.jpeger.register_forward_hook(lambda *_: degraded.append(1))  # twice in each degradation
    for iteration, batch in enumerate(data, 1):
        step(model, batch, iteration)
        assert model.lq.shape == (2, 3, 8, 8) and model.gt.shape == model.gt_usm.shape == (2, 3, 32, 32)
        assert model.output.shape == (2, 3, 32, 32)
    # a quarter of the iterations, and what fills the pool of four batches; the stage with features asks about it anew
    assert 44 / 4 <= len(degraded) / 2 <= 44 / 4 + 8
    assert 44 / 4 <= len(passes) <= 44 / 4 + 12
    assert all(torch.isfinite(value).all() for value in model.bare_student.state_dict().values())


def test_the_answers_are_those_of_the_teacher_in_context(world, parse, options):
    """Inside, where nothing of the padding is felt, a crop of the answer is what the teacher makes of the crop."""
    options['train']['stages'] = {'only': {'iters': 60, 'lr_g': 1e-3, 'terms': ['pixel', 'output']}}
    model, data = training(world, parse, options, 6)
    for iteration, batch in enumerate(data, 1):
        step(model, batch, iteration)
        answer = model.answer('teacher', with_features=False)
        with torch.no_grad():
            alone = world.teacher(model.lq)
        assert answer.image.shape == alone.shape == (2, 3, 32, 32)
        # six convolutions of 3x3 reach over the middle of 8x8: near, and nearer than any other place
        errors = {shift: (answer.image - alone.roll(shift, -1))[..., 8:-8, 8:-8].abs().mean() for shift in (-4, 0, 4)}
        assert errors[0] == min(errors.values())


@pytest.mark.parametrize(('terms', 'mirrored'), [(['pixel', 'output'], True), (['pixel', 'feature'], False)])
def test_flips_are_off_where_maps_are_compared(world, parse, options, terms, mirrored):
    options['train']['stages'] = {'only': {'iters': 60, 'lr_g': 1e-3, 'terms': terms}}
    model, data = training(world, parse, options, 12)
    flips = []
    for iteration, batch in enumerate(data, 1):
        step(model, batch, iteration)
        for lq, (entry, top, left, _) in zip(model.lq, model.pool.drawn, strict=True):
            part = entry.lq[:, top : top + 8, left : left + 8]
            assert torch.equal(lq, part) or torch.equal(lq, part.flip(-1))
            flips.append(not torch.equal(lq, part))
    assert any(flips) == mirrored


def test_flips_are_off_where_the_data_set_has_none(world, parse, options):
    options['datasets']['train']['use_hflip'] = False
    options['train']['stages'] = {'only': {'iters': 60, 'lr_g': 1e-3, 'terms': ['pixel', 'output']}}
    model, data = training(world, parse, options, 8)
    for batch in data:
        model.feed_data(batch)
        assert not any(flip for *_, flip in model.pool.drawn)


def test_a_reuse_of_one_is_the_run_without_the_option(world, parse, options):
    ends = []
    for reuse in (None, 1):
        options['train'].pop('pool_reuse', None)
        if reuse:
            options['train']['pool_reuse'] = reuse
        model, data = training(world, parse, options, 7)
        for iteration, batch in enumerate(data, 1):
            step(model, batch, iteration)
        assert model.pool is None and model.queue_lr.shape == (8, 3, 8, 8)
        ends.append([model.lq, *model.bare_student.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_pairs_that_are_used_once_wait_as_in_basicsrs_pool(world, parse, options):
    """The same pairs in the same order, by the same random numbers, also where a run goes on with a saved pool."""
    del options['train']['pool_reuse']
    models = [training(world, parse, options, 0)[0] for _ in range(3)]
    theirs = SimpleNamespace(
        queue_size=8, queue_ptr=0, queue_lr=torch.zeros(8, 3, 8, 8), queue_gt=torch.zeros(8, 3, 32, 32)
    )
    ours = models[0]
    for number in range(24):
        if number in (3, 14):  # while it fills, and shuffled
            models[number // 10 + 1].load_pool(ours.pool_state())
            ours = models[number // 10 + 1]
        lq = torch.rand(2, 3, 8, 8)
        found = []
        for each, draw in (
            (ours, ours._dequeue_and_enqueue),
            (theirs, lambda: RealESRGANModel._dequeue_and_enqueue(theirs)),
        ):
            each.lq, each.gt = lq.clone(), lq.repeat_interleave(4, -1).repeat_interleave(4, -2)
            torch.manual_seed(number)
            draw()
            found.append((each.lq.clone(), each.gt.clone(), torch.rand(1)))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        assert torch.equal(found[0][0], lq) == (number < 4)
        state = ours.pool_state()
        assert torch.equal(state['pairs']['lq'], theirs.queue_lr) and torch.equal(state['pairs']['gt'], theirs.queue_gt)
        ours.lq.zero_(), ours.gt.zero_()  # what is drawn is no part of the pool any more


def test_a_teacher_that_learns_along_is_asked_every_time(world, parse, options):
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    model, data = training(world, parse, options, 3)
    passes = []
    model.teachers['teacher'].register_forward_pre_hook(lambda *_: passes.append(1))
    for iteration, batch in enumerate(data, 1):
        step(model, batch, iteration)
    assert len(passes) == 3


@pytest.mark.parametrize(
    ('reuse', 'sentence'),
    [
        (0, 'train:pool_reuse: expected `int` >= 1'),
        (-2, 'train:pool_reuse: expected `int` >= 1'),
        ('often', 'train:pool_reuse: expected `int'),
        (7, r'train:pool_reuse: 7 does not divide the pair pool \(queue_size: 8\)'),
        (16, 'train:pool_reuse: 16 does not divide the pair pool'),
        ('3', 'train:pool_reuse: 3 does not divide the pair pool'),
    ],
)
def test_reuses_that_are_refused(world, parse, options, reuse, sentence):
    options['train']['pool_reuse'] = reuse
    there = set(world.root.rglob('*')) | {world.root / 'run.yml'}
    with pytest.raises(UserError, match=sentence) as error:
        parse(world.write(options), world.root)
    assert '\n' not in str(error.value) and set(world.root.rglob('*')) == there


@pytest.fixture(params=['SDAKDModel', 'SDAKDRealESRGANModel'])
def paired(world, request):
    """Pairs of 32 pixels and more of context, crops of 32, a stage with pixels and one with feature maps."""
    options = world.options()
    options |= {'model_type': request.param, 'high_order_degradation': False, 'gt_size': 32, 'queue_size': 8}
    options['datasets']['train'] |= {'gt_size': 64, 'batch_size_per_gpu': 2}
    options['train']['stages'] = {
        'supervised': {'iters': 12, 'lr_g': 1e-3, 'terms': ['output']},
        'distillation': {'iters': 60, 'lr_g': 1e-3, 'terms': ['pixel', 'feature']},
    }
    options['train'] |= {
        'output_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
        'pool_reuse': 4,
        'teacher_margin': 2,
    }
    return options


def test_pairs_of_a_data_set_are_reused_and_have_context(world, parse, paired):
    model, data = training(world, parse, paired, 24)
    passes = []
    model.teachers['teacher'].register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape))
    assert model.border == 0
    seen = []
    for iteration, batch in enumerate(data, 1):
        step(model, batch, iteration)
        assert model.lq.shape == (2, 3, 8, 8) and model.gt.shape == (2, 3, 32, 32)
        for lq, (entry, top, left, flip) in zip(model.lq, model.pool.drawn, strict=True):
            assert 2 <= top <= 6 and 2 <= left <= 6  # the margin of 2 is left to the teacher
            crop = entry.lq[:, top : top + 8, left : left + 8]
            assert torch.equal(lq, crop.flip(-1) if flip else crop)
        seen.append(model.lq)
    # where the stage with feature maps begins, an odd number of pairs may wait for theirs
    assert {shape[1:] for shape in passes} == {(3, 16, 16)} and {shape[0] for shape in passes} <= {1, 2}
    assert len(passes) <= 24 / 4 + 8
    pairs = {batch.flatten().sum().item() for batch in seen}
    assert len(pairs) > 12  # crops differ


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda options: options.pop('gt_size'), 'datasets:train:gt_size: with train:pool_reuse, pairs are larger'),
        (lambda options: options['datasets']['train'].update(gt_size=56), 'datasets:train:gt_size: .* write 64 here'),
        (lambda options: options.update(queue_size=9), 'queue_size: the pair pool holds 9 pairs'),
        (lambda options: options['teacher'].update(cache='cache'), 'train:pool_reuse: teacher:cache has whole images'),
    ],
)
def test_pools_of_pairs_that_are_refused(world, parse, paired, change, sentence):
    change(paired)
    with pytest.raises(UserError, match=sentence):
        parse(world.write(paired), world.root)


def test_images_are_asked_for_once_they_are_wanted():
    teacher = Teacher()
    pool = make(size=4, reuse=4, teacher=teacher)
    for number in range(2):
        pool.add(*pair(number))
    pool.draw(2, flips=False)
    assert pool.answers('teacher', with_features=True, with_image=False).image is None and teacher.images == 4
    state = pool.state()
    again = make(size=4, reuse=4, teacher=teacher)
    again.load_state(state, torch.device('cpu'))
    assert all(entry.answers['teacher'].image is None for entry in again.entries)
    found = pool.answers('teacher', with_features=True)
    assert found.image.shape == (2, 3, CROP * SCALE, CROP * SCALE) and teacher.images == 8
    assert pool.answers('teacher', with_features=True, with_image=False).image is None and teacher.images == 8
