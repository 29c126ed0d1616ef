"""CRD: relations inside images against their formula written out, their invariances, memory, and who learns when."""

import copy
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from basicsr.models import build_model

from sdakd.compat import UserError
from sdakd_losses import crd_loss
from sdakd_losses.crd_loss import ContentRelationLoss
from sdakd_models.checks import stages
from sdakd_models.reader import force, read_run
from sdakd_models.scenario import Scenario
from sdakd_models.terms import Context

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OFF = {'row': 0, 'column': 0, 'patch': 0, 'instance': 0}
KINDS = ('row', 'column', 'patch', 'instance')


def cut_by_hand(images, kind, patches):
    """For every group of slices that belong together: its slices, as lists of numbers."""
    count, channels, height, width = images.shape
    values = images.double().tolist()

    def region(n, top, left, high, wide):
        return [values[n][c][top + y][left + x] for c in range(channels) for y in range(high) for x in range(wide)]

    if kind == 'instance':
        return [[region(n, 0, 0, height, width) for n in range(count)]]
    if kind == 'row':
        return [[region(n, y, 0, 1, width) for y in range(height)] for n in range(count)]
    if kind == 'column':
        return [[region(n, 0, x, height, 1) for x in range(width)] for n in range(count)]
    side = min(height, width) // patches
    corners = [(y * side, x * side) for y in range(height // side) for x in range(width // side)]
    return [[region(n, top, left, side, side) for top, left in corners] for n in range(count)]


def lengths_by_hand(slices):
    found = [[math.dist(one, other) for other in slices] for one in slices]
    positive = [value for line in found for value in line if value > 0]
    unit = math.fsum(positive) / len(positive) if positive else 0.0
    unit = max(unit, math.sqrt(len(slices[0])) / 255)
    return [[value / unit for value in line] for line in found], unit


def cosine_by_hand(slices, unit, i, j, k):
    """The angle at j, from the vectors of its sides; the length of a side is never less than 1e-3 of the mean."""
    one, other = ([a - b for a, b in zip(slices[n], slices[j], strict=True)] for n in (i, k))
    lengths = [math.sqrt(math.fsum(a * a for a in side) + (1e-3 * unit) ** 2) for side in (one, other)]
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (lengths[0] * lengths[1])


def huber(residual):
    return residual**2 / 2 if abs(residual) <= 1 else abs(residual) - 0.5


def by_hand(student, teacher, kind, distance=1.0, angle=2.0, patches=3):
    """The formula for one granularity, one pair and one triplet at a time; also the largest residual of an angle."""
    pairs, triplets, largest = [], [], 0.0
    groups = zip(cut_by_hand(student, kind, patches), cut_by_hand(teacher, kind, patches), strict=True)
    for mine, its in groups:
        (my_lengths, my_unit), (its_lengths, its_unit) = lengths_by_hand(mine), lengths_by_hand(its)
        everyone = range(len(mine))
        pairs += [huber(my_lengths[i][j] - its_lengths[i][j]) for i in everyone for j in everyone]
        for i in everyone:
            for j in everyone:
                for k in everyone:
                    residual = cosine_by_hand(mine, my_unit, i, j, k) - cosine_by_hand(its, its_unit, i, j, k)
                    triplets.append(huber(residual))
                    largest = max(largest, abs(residual))
    return distance * math.fsum(pairs) / len(pairs) + angle * math.fsum(triplets) / len(triplets), largest


@pytest.fixture
def images():
    """Student's and teacher's, neither square nor a multiple of 3.

    Slices lie almost on a line, in another order in each: angles of 0 and 180 degrees meet Huber's linear part.
    """
    line_of_rows, line_of_columns, noise = (torch.rand(2, 3, *shape) for shape in ((1, 7, 1), (1, 1, 8), (2, 7, 8)))
    return 0.4 * line_of_rows + 0.4 * line_of_columns + 0.1 * noise


# ----------------------------------------------------------------------------------------------------------- the value


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('chunk', [1, 300, 2**20])
def test_value_is_the_formulas(images, kind, chunk, monkeypatch):
    monkeypatch.setattr(crd_loss, 'CHUNK', chunk)  # one vertex at a time, a few with a remainder, all at once
    student, teacher = images
    wanted, largest = by_hand(student, teacher, kind)
    assert largest > 1 or kind == 'instance'  # three images are no line
    found = ContentRelationLoss(**{**OFF, kind: 1.0}, patches=3)(student, teacher)
    assert found.shape == () and found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize(('distance', 'angle'), [(1.0, 0.0), (0.0, 1.0), (3.0, 0.5)])
def test_weights_of_pairs_triplets_and_granularities(images, distance, angle):
    weights = {'row': 1.0, 'column': 0.25, 'patch': 2.0, 'instance': 0.5}
    wanted = sum(weight * by_hand(*images, kind, distance, angle)[0] for kind, weight in weights.items())
    loss = ContentRelationLoss(7.0, **weights, distance=distance, angle=angle, patches=3)
    assert loss(*images).item() == pytest.approx(7 * wanted, rel=2e-5)


def test_published_weights_are_the_default(images):
    wanted = sum(by_hand(*images, kind, 1.0, 2.0)[0] for kind in ('row', 'column', 'patch'))
    assert ContentRelationLoss(patches=3)(*images).item() == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize(('size', 'patches', 'count', 'side'), [(256, 8, 64, 32), (64, 8, 64, 8), (100, 8, 64, 12),
                                                                (256, 16, 256, 16), (5, 8, 25, 1)])  # fmt: skip
def test_patches_scale_with_the_crop(size, patches, count, side):
    image = torch.rand(1, 3, size, size)
    found = crd_loss.patches(image, patches)
    assert found.shape == (1, count, 3 * side * side)
    assert torch.equal(found[0, 1], image[0, :, :side, side : 2 * side].flatten())


# -------------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('terms', [{'angle': 0.0}, {'distance': 0.0}, {'distance': 0.7, 'angle': 1.3}])
def test_gradient_against_finite_differences(images, kind, terms, monkeypatch):
    monkeypatch.setattr(crd_loss, 'CHUNK', 150)
    student, teacher = images[..., :5, :4].double()
    loss = ContentRelationLoss(**{**OFF, kind: 1.0}, **terms, patches=2)
    assert torch.autograd.gradcheck(lambda image: loss(image, teacher), student.requires_grad_())


def test_gradient_beside_identical_slices():
    """Two rows are one row repeated; a direction that keeps them equal must have its finite difference as gradient."""
    student, teacher = torch.rand(2, 1, 1, 5, 6, dtype=torch.float64)
    student[..., 3, :] = student[..., 2, :]
    direction = torch.randn_like(student)
    direction[..., 3, :] = direction[..., 2, :]
    loss = ContentRelationLoss(**{**OFF, 'row': 1.0})
    leaf = student.clone().requires_grad_()
    loss(leaf, teacher).backward()
    step = 1e-6
    wanted = (loss(student + step * direction, teacher) - loss(student - step * direction, teacher)) / (2 * step)
    assert (leaf.grad * direction).sum().item() == pytest.approx(wanted.item(), rel=1e-5)


def test_teacher_gets_no_gradient(images):
    student, teacher = (image.clone().requires_grad_() for image in images)
    ContentRelationLoss(patches=3)(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_single_precision_agrees_with_double(photo):
    """Neighbouring rows and patches of a photograph are almost the same: their relations survive in float32."""
    teacher = photo[..., :64, :64]
    student = torch.nn.functional.avg_pool2d(teacher, 3, 1, 1, count_include_pad=False)
    found = []
    for kind in (torch.float32, torch.float64):
        image = student.to(kind, copy=True).requires_grad_()
        loss = ContentRelationLoss()(image, teacher.to(kind))
        loss.backward()
        found.append((loss.item(), image.grad.double()))
    (single, single_grad), (double, double_grad) = found
    assert single == pytest.approx(double, rel=1e-5)
    assert (single_grad - double_grad).norm() < 1e-4 * double_grad.norm()


# --------------------------------------------------------------------------------------------------------- invariances


def test_equal_images_cost_nothing(photo):
    image = photo.clone().requires_grad_()
    loss = ContentRelationLoss(instance=1.0)(image, photo)
    loss.backward()
    assert loss.item() == 0 and not image.grad.any()


@pytest.mark.parametrize('kind', KINDS)
def test_a_constant_added_to_all_pixels_changes_nothing(images, kind):
    loss = ContentRelationLoss(**{**OFF, kind: 1.0}, patches=3)
    wanted = loss(*images).item()
    assert wanted > 1e-3
    assert loss(images[0] + 0.5, images[1]).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(images[0], images[1] - 2).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(images[1] + 0.25, images[1]).item() < 1e-9


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('terms', [{'angle': 0.0}, {'distance': 0.0}])
@pytest.mark.parametrize('factor', [0.25, 3.0])
def test_contrast_changes_nothing(images, kind, terms, factor):
    loss = ContentRelationLoss(**{**OFF, kind: 1.0}, **terms, patches=3)
    wanted = loss(*images).item()
    assert wanted > 1e-4
    assert loss(factor * images[0], images[1]).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(factor * images[1], images[1]).item() < 1e-9


def test_every_granularity_sees_what_it_should(images):
    """Rows relate the same after the columns have changed places, and so on."""
    student, teacher = images
    losses = {kind: ContentRelationLoss(**{**OFF, kind: 1.0}, patches=3) for kind in ('row', 'column', 'patch')}
    before = {kind: loss(student, teacher).item() for kind, loss in losses.items()}
    columns_turned, rows_turned = student.flip(3), student.flip(2)
    assert losses['row'](columns_turned, teacher).item() == pytest.approx(before['row'], rel=1e-5)
    assert losses['column'](columns_turned, teacher).item() != pytest.approx(before['column'], rel=1e-2)
    assert losses['column'](rows_turned, teacher).item() == pytest.approx(before['column'], rel=1e-5)
    assert losses['row'](rows_turned, teacher).item() != pytest.approx(before['row'], rel=1e-2)
    side = 7 // 3
    turned = student.clone()
    for top in range(0, 6, side):
        for left in range(0, 8, side):
            area = (..., slice(top, top + side), slice(left, left + side))
            turned[area] = student[area].flip(2, 3)
    assert losses['patch'](turned, teacher).item() == pytest.approx(before['patch'], rel=1e-5)
    assert losses['row'](turned, teacher).item() != pytest.approx(before['row'], rel=1e-2)


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('flat', ['student', 'both', 'half'])
def test_flat_images_have_finite_gradients(photo, value, flat):
    teacher, student = photo[..., :32, :32].clone(), torch.full((1, 3, 32, 32), value)
    if flat == 'both':
        teacher = torch.full((1, 3, 32, 32), 0.7)
    if flat == 'half':
        student[..., 16:, :] = photo[..., 64:80, :32]
    student.requires_grad_()
    loss = ContentRelationLoss()(student, teacher)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()
    if flat != 'half':
        assert not student.grad.any()
    assert (loss.item() == 0) == (flat == 'both')


@pytest.mark.parametrize('noise', [1e-8, 1e-6, 1e-4])
def test_rounding_in_a_flat_image_is_no_content(photo, noise):
    """Relations are free of scale, so noise would count as much as a photograph and its gradient grow as 1 / noise."""
    flat = 0.5 + noise * torch.randn(1, 3, 32, 32)
    other = 0.5 + noise * torch.randn(1, 3, 32, 32)
    gradients = []
    for student, teacher in (
        (flat, other),
        (photo[..., :32, :32] + 0.1 * torch.rand(1, 3, 32, 32), photo[..., :32, :32]),
    ):
        student = student.clone().requires_grad_()
        ContentRelationLoss(angle=0)(student, teacher).backward()
        gradients.append(student.grad.norm().item())
    assert gradients[0] < 10 * gradients[1]


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='peak memory is read as Linux reports it')
def test_memory_at_real_size():
    """256 x 256, batch 4: the 134 million cosines of rows and columns never exist together (536 MB each for two)."""
    code = (
        'import resource, torch\n'
        'from sdakd_losses.crd_loss import ContentRelationLoss\n'
        'peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n'
        'loss = ContentRelationLoss()\n'
        'student, teacher = torch.rand(2, 4, 3, 256, 256)\n'
        'student.requires_grad_()\n'
        'loss(student[..., :16, :16], teacher[..., :16, :16]).backward()\n'
        'before = peak()\n'
        'loss(student, teacher).backward()\n'
        'print(peak() - before)\n'
    )
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 300  # MiB; the promise is 1 GB


# -------------------------------------------------------------------------------------------------------- option files


def crd_file(name):
    folder = 'options/methods' if name == 'crd' else 'options/methods/crd'
    return read_run(os.path.join(ROOT, folder, f'{name}.yml'))


def test_the_regimes_differ_in_the_discriminator_only():
    wanted = crd_file('crd')
    for name in ('pretrained_freezing', 'pretrained_updating', 'no_discriminator', 'always_updating'):
        found = crd_file(f'crd_{name}')
        for opt in (found, wanted):
            for key in ('name', 'discriminators'):
                opt.pop(key, None)
            adversarial = opt['train']['stages']['adversarial']
            adversarial['terms'] = [term for term in adversarial['terms'] if term != 'gan:teacher']
            adversarial.pop('lr_d', None)
            opt['train'].pop('gan_opt', None)
        assert found == wanted


def test_the_ablations_of_the_page_can_be_forced():
    with open(os.path.join(ROOT, 'docs/methods/crd.md'), encoding='utf-8') as stream:
        lines = [re.findall(r'[a-z_]+:[a-z_:]+=[\d.]+', line) for line in stream if line.startswith('| ')]
    ablations = [entries for entries in lines if entries]
    assert len(ablations) == 12
    for entries in ablations:
        opt, published = crd_file('crd'), crd_file('crd')
        force(opt, entries)
        assert opt != published
        scenario = Scenario.read(opt)
        stages.check(scenario)
        if 'crd' in scenario.terms:
            scenario.terms['crd'].build('cpu')


@pytest.fixture
def step(world, parse):
    """One adversarial step of an option file of CRD, on small networks: the model, and its state before."""

    def take(name):
        published = crd_file(name)
        options = world.options()
        del options['network_d']
        options['train']['crd_opt'] = published['train']['crd_opt']
        judge = copy.deepcopy(published.get('discriminators'))
        if judge:
            judge['teacher']['network']['num_feat'] = 4
            if judge['teacher']['weights']:
                from basicsr.archs.discriminator_arch import UNetDiscriminatorSN

                torch.save({'params': UNetDiscriminatorSN(3, 4).state_dict()}, world.root / 'judge.pth')
                judge['teacher']['weights'] = str(world.root / 'judge.pth')
            options['discriminators'] = judge
        terms = [
            t for t in published['train']['stages']['adversarial']['terms'] if t not in ('perceptual', 'imitation')
        ]
        assert 'crd' in terms
        options['train']['stages'] = {'adversarial': {'iters': 4, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': terms}}
        model = build_model(parse(world.write(options), world.root))
        generator = torch.Generator().manual_seed(2)
        gt = torch.rand(2, 3, 32, 32, generator=generator)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        before = states(model)
        model.update_learning_rate(1)
        model.optimize_parameters(1)
        return model, before

    return take


def states(model):
    networks = {'student': model.bare_student, 'teacher': model.teachers['teacher']}
    networks |= {f'judge {name}': adversary.bare for name, adversary in model.discriminators.items()}
    return {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in networks.items()}


def moved(before, after, network):
    return {key for key, value in after[network].items() if not torch.equal(value, before[network][key])}


# what the discriminator learns from; None: it does not learn
REGIMES = {
    'crd': ['teacher'],
    'crd_always_updating': ['teacher', 'student'],
    'crd_pretrained_updating': ['student'],
    'crd_pretrained_freezing': None,
}


@pytest.mark.parametrize('name', REGIMES)
def test_who_moves_in_a_step_of_each_regime(step, world, name):
    model, before = step(name)
    after, judge = states(model), model.discriminators['teacher']
    assert moved(before, after, 'student') == set(before['student'])
    assert moved(before, after, 'teacher') == set()
    log = model.get_current_log()
    assert {'l_g_pix', 'l_g_crd', 'l_g_gan_teacher'} <= set(log)
    everything = {key for key in before['judge teacher']}
    vectors = {key for key, _ in judge.bare.named_buffers()}
    assert vectors and vectors < everything
    if REGIMES[name] is None:
        assert moved(before, after, 'judge teacher') == set() and 'l_d_fake_teacher' not in log
    else:
        assert judge.facts.fake == REGIMES[name]
        assert moved(before, after, 'judge teacher') == everything
    if 'pretrained' in name:
        stored = torch.load(world.root / 'judge.pth', weights_only=True)['params']
        start = {key for key in stored if not torch.equal(stored[key], before['judge teacher'][key])}
        assert start <= vectors  # an online one's vectors settle before the first step

    # the student's pass alone: vectors of spectral norm stay where the student is none of the fakes
    context = Context(model, with_features=False)
    loss = sum(judge.student_loss(context).values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.bare_student.parameters())
    assert all(parameter.grad is None for parameter in judge.bare.parameters())
    stirred = moved(after, states(model), 'judge teacher')
    assert stirred == (vectors if 'student' in (REGIMES[name] or []) else set())


def test_without_discriminator_only_the_student_moves(step):
    model, before = step('crd_no_discriminator')
    after = states(model)
    assert model.discriminators == {} and [player.name for player in model.players] == ['g']
    assert moved(before, after, 'student') == set(before['student'])
    assert moved(before, after, 'teacher') == set()


def test_the_step_pays_the_relations_of_the_two_images(step):
    model, before = step('crd')
    network = copy.deepcopy(model.bare_student)
    network.load_state_dict(before['student'])
    with torch.no_grad():
        student, teacher = network(model.lq), model.teachers['teacher'](model.lq)
    student, teacher = (image[..., 8:-8, 8:-8] for image in (student, teacher))  # two input pixels are border
    log = model.get_current_log()
    wanted = log['weight_crd'] * ContentRelationLoss()(student, teacher).item()
    assert log['l_g_crd'] == pytest.approx(wanted, rel=1e-4)
    supervised = 1 - log['share_gan_teacher']  # relations have 0.3 of what is no GAN loss
    assert log['share_crd'] / supervised == pytest.approx(0.3, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- bad input


MISTAKES = [
    ({'patches': 1}, 'train:crd_opt:patches: write a whole number of at least 2, not 1'),
    ({'patches': 8.0}, 'train:crd_opt:patches: write a whole number, not 8.0'),
    ({'row': -1}, 'train:crd_opt:row: write a number of at least 0, not -1'),
    ({'column': '1e1'}, "train:crd_opt:column: write a number .*, not '1e1'"),
    ({'angle': float('nan')}, 'train:crd_opt:angle: write finite numbers, not nan'),
    ({'row': 0, 'column': 0, 'patch': 0}, 'train:crd_opt:row, column, patch, instance: all are 0'),
    ({'distance': 0, 'angle': 0}, 'train:crd_opt:distance, angle: all are 0'),
    ({'loss_weight': 'much'}, "train:crd_opt:loss_weight: write a number .* not 'much'"),
    ({'rows': 1}, "train:crd_opt: ContentRelationLoss takes no 'rows'; did you mean row"),
    ({'type': 'ContentRelatonLoss'}, 'train:crd_opt:type: .*did you mean ContentRelationLoss'),
]


def crd_options(world, **changes):
    options = world.options()
    options['train']['stages']['adversarial']['terms'].append('crd')
    options['train']['crd_opt'] = {'type': 'ContentRelationLoss', **changes}
    return options


@pytest.mark.parametrize(('changes', 'sentence'), MISTAKES)
def test_mistakes_in_the_block(shared_world, parse, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(shared_world.write(crd_options(shared_world, **changes)), shared_world.root)


def test_a_mistake_on_the_command_line(world):
    file = world.write(crd_options(world, patches=0))
    there = {path.name for path in world.root.iterdir()}
    command = [sys.executable, '-W', 'ignore', '-c', 'import sys; from sdakd.cli import main; sys.exit(main())']
    environment = {**os.environ, 'PYTHONPATH': ROOT}
    run = subprocess.run(
        [*command, 'train', '-opt', file], capture_output=True, text=True, cwd=world.root, env=environment
    )
    assert run.returncode == 2
    assert 'train:crd_opt:patches: write a whole number of at least 2, not 0.' in run.stderr
    assert 'Traceback' not in run.stderr
    assert {path.name for path in world.root.iterdir()} == there
