"""MCAD-KD: its loss against loops in float64, and training by its option file's terms."""

import math
import os

import pytest
import torch
from basicsr.models import build_model

from sdakd.compat import UserError
from sdakd_losses import mcad_loss
from sdakd_losses.mcad_loss import ContrastiveImageLoss, contrast
from sdakd_models.reader import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def images(number, side, seed=0):
    return torch.rand(number, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolved(image, weight, bias):
    """A 3x3 convolution with zeros beyond the border, and ReLU, ``[channel][y][x]``, from nested lists."""
    height, width = len(image[0]), len(image[0][0])
    found = []
    for kernel, offset in zip(weight, bias, strict=True):
        plane = []
        for y in range(height):
            row = []
            for x in range(width):
                value = offset
                for channel, taps in zip(image, kernel, strict=True):
                    for i in range(3):
                        for j in range(3):
                            if 0 <= y + i - 1 < height and 0 <= x + j - 1 < width:
                                value += taps[i][j] * channel[y + i - 1][x + j - 1]
                row.append(max(0.0, value))
            plane.append(row)
        found.append(plane)
    return found


def embedded(image, state, head, layers):
    """The embedding of one image by the weights of a head with so many convolutions."""
    for layer in range(layers):
        image = convolved(image, *(state[f'{head}.{2 * layer}.{kind}'].tolist() for kind in ('weight', 'bias')))
    means = [math.fsum(map(math.fsum, plane)) / (len(plane) * len(plane[0])) for plane in image]
    weight, bias = (state[f'{head}.{2 * layers + 2}.{kind}'].tolist() for kind in ('weight', 'bias'))
    found = [math.fsum(a * b for a, b in zip(row, means, strict=True)) + c for row, c in zip(weight, bias, strict=True)]
    length = math.sqrt(math.fsum(value * value for value in found))
    return [value / length for value in found]


def contrast_by_loops(student, teacher, tau):
    """The mean over anchors of log(sum of the others' exponentials) - positive."""
    found = []
    for i, anchor in enumerate(student):
        cosines = [math.fsum(a * b for a, b in zip(anchor, other, strict=True)) / tau for other in teacher]
        others = math.fsum(math.exp(cosine) for j, cosine in enumerate(cosines) if j != i)
        found.append(math.log(others) - cosines[i])
    return math.fsum(found) / len(found)


def loss_by_loops(loss, student, teacher):
    """Both levels, at the places that the loss draws next."""
    state = loss.state_dict()
    whole = [[embedded(each, state, 'image_head', 1) for each in batch.tolist()] for batch in (student, teacher)]
    places = loss._places(*student.shape[2:])
    cut = [[image[place].tolist() for place in places for image in batch] for batch in (student, teacher)]
    pieces = [[embedded(each, state, 'patch_head', 2) for each in batch] for batch in cut]
    return 0.3 * contrast_by_loops(*whole, loss.tau) + 0.7 * contrast_by_loops(*pieces, loss.tau)


def test_the_formula_in_loops():
    student, teacher = images(3, 8), images(3, 8, seed=1)
    loss = ContrastiveImageLoss(loss_weight=0.6, tau=0.3, patches=2, patch_size=3, embedding=8).double()
    torch.manual_seed(4)
    found = loss(student, teacher)
    torch.manual_seed(4)
    wanted = 0.6 * loss_by_loops(loss, student, teacher)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(wanted, rel=1e-11)


def test_a_patch_and_its_positive_are_at_the_same_place(monkeypatch):
    """Of equal images, every positive is the same patch, whatever is drawn; patches of a level are halves at most."""
    seen = []
    monkeypatch.setattr(mcad_loss, 'contrast', lambda *given: seen.append(given[:2]) or contrast(*given))
    image = images(4, 16)
    loss, sizes = ContrastiveImageLoss(patches=5, patch_size=48).double(), set()
    loss.patch_head[0].register_forward_hook(lambda _module, inputs, _output: sizes.add(inputs[0].shape))
    loss(image, image)
    (whole, same), (pieces, its_pieces) = seen
    assert whole.shape == same.shape == (4, 256) and pieces.shape == (20, 256) and sizes == {(20, 3, 8, 8)}
    assert torch.allclose(pieces, its_pieces, atol=1e-12) and not torch.allclose(pieces, its_pieces.roll(1, 0))


def test_places_are_drawn_anew_and_by_the_runs_random_numbers():
    loss = ContrastiveImageLoss(image_weight=0).double()
    one, other = images(2, 64), images(2, 64, seed=1)
    values = [loss(one, other).item() for _ in range(3)]
    assert len(set(values)) == 3
    state = torch.get_rng_state()
    first = loss(one, other).item()
    torch.set_rng_state(state)
    assert loss(one, other).item() == first


def test_the_heads_are_the_same_in_every_run_and_stay():
    torch.manual_seed(1)
    one = ContrastiveImageLoss()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # nothing was taken from the run's random numbers
    torch.manual_seed(2)
    other, another = ContrastiveImageLoss(), ContrastiveImageLoss(seed=1)
    state = one.state_dict()
    assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())
    assert not any(torch.equal(state[key], value) for key, value in another.state_dict().items())
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_the_right_teachers_image_costs_least():
    teacher = images(4, 16) * torch.tensor([0.2, 0.5, 0.8, 1.0]).view(4, 1, 1, 1)
    loss = ContrastiveImageLoss(patch_weight=0).double()
    right, wrong = loss(teacher, teacher), loss(teacher.roll(1, 0), teacher)
    assert right < wrong


def test_the_gradient_is_that_of_finite_differences():
    student, teacher = images(2, 6).requires_grad_(), images(2, 6, seed=1).requires_grad_()
    loss = ContrastiveImageLoss(embedding=8, patches=2, patch_size=3).double()

    def seeded(image):
        torch.manual_seed(0)
        return loss(image, teacher)

    assert torch.autograd.gradcheck(seeded, student)
    seeded(student).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_an_image_alone_has_nothing_to_be_contrasted_with(world, parse):
    image = images(1, 8).requires_grad_()
    loss = ContrastiveImageLoss(patch_weight=0, embedding=8).double()(image, images(1, 8, seed=1))
    loss.backward()
    assert loss.item() == 0 and not image.grad.any()
    options = options_of(world)
    options['datasets']['train']['batch_size_per_gpu'] = 1
    with pytest.raises(UserError, match=r'batch_size_per_gpu: train:mcad_opt contrasts .* write at least 2, or'):
        parse(world.write(options), world.root)
    options['train']['mcad_opt']['image_weight'] = 0
    parse(world.write(options), world.root)  # patches of one image are enough
    options['train']['mcad_opt']['patches'] = 1
    with pytest.raises(UserError, match=r'train:mcad_opt:patches: a batch has one patch, .*; write at least 2'):
        parse(world.write(options), world.root)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'tau': 0.0}, 'tau: write a number above 0'),
        ({'patches': 0}, 'patches: write a whole number of at least 1'),
        ({'embedding': 2}, 'embedding: write a whole number of at least 4'),
        ({'image_weight': 0, 'patch_weight': 0}, 'image_weight, patch_weight: both are 0'),
    ],
)
def test_values_out_of_range(given, said):
    with pytest.raises(ValueError, match=said):
        ContrastiveImageLoss(**given)


def options_of(world):
    """Its stages after the supervised one, on small networks."""
    published = read_run(os.path.join(ROOT, 'options/methods/mcad.yml'))['train']
    options = world.options()
    stages = {name: published['stages'][name] for name in ('distillation', 'adversarial')}
    for stage in stages.values():
        stage |= {'iters': 10, 'lr_g': 2e-3, 'terms': [term for term in stage['terms'] if term != 'perceptual']}
    options['train'] |= {'stages': stages, **{f'{term}_opt': published[f'{term}_opt'] for term in ('output', 'mcad')}}
    del options['train']['feature_opt']
    return options


def test_training_by_the_terms_of_its_option_file(world, parse):
    """Twenty iterations of its stages on small networks; the contrast falls."""
    model = build_model(parse(world.write(options_of(world)), world.root))
    assert [player.name for player in model.players] == ['g', 'd']  # the heads do not learn
    gt = torch.rand(2, 3, 32, 32)
    values = []
    for iteration in range(1, 21):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
        log = model.get_current_log()
        values.append(log['l_g_mcad'] / log['weight_mcad'])
    assert {'l_g_pix', 'l_g_output', 'l_g_mcad', 'l_g_gan', 'share_mcad', 'weight_mcad'} <= set(log)
    assert sum(values[-5:]) < sum(values[:5])
