"""`test_scripts/scaling.py`: the formulas of docs/scaling.md against counts by hand and a model's own tensors."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from sdakd import cli
from sdakd.commands.bench_train.steps import quietly

sys.path.append(str(Path(cli.__file__).parents[1] / 'test_scripts'))
import scaling  # noqa: E402


def test_a_ring_sends_what_its_steps_send():
    """Each process passes a piece of 1/N on: N - 1 times to sum up, N - 1 times to hand the sums round."""
    for processes in (1, 2, 3, 8, 64):
        pieces = [5e6 / processes] * (2 * (processes - 1))
        assert scaling.all_reduce_bytes(5e6, processes) == pytest.approx(sum(pieces), abs=0)
    assert scaling.all_reduce_bytes(8, 2) == 8 and scaling.all_reduce_bytes(8, 1) == 0
    # the two layers of a perceptron: 3 x 4 + 4 weights and biases, 4 x 2 + 2, four bytes each
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert scaling.all_reduce_bytes(sum(p.numel() * p.element_size() for p in net.parameters()), 4) == 26 * 4 * 6 / 4


def test_exponents_and_lines():
    x = [1, 2, 3, 7]
    assert scaling.slope(x, [5 * each**1.5 for each in x]) == pytest.approx(1.5)
    assert scaling.line(x, [3 + 2 * each for each in x]) == pytest.approx((3, 2))


def test_a_step_on_gpus_is_the_longer_of_arithmetic_and_launches_and_then_the_average():
    assumed = {
        'peak_flops': 100.0, 'operators': 10, 'seconds_per_operator': 0.1, 'gpus_per_machine': 2,
        'bandwidth_inside': 50.0, 'bandwidth_between': 5.0, 'seconds_per_message': 0.01,
    }  # fmt: skip
    # 2 x 200 operations at half of 100 a second
    assert scaling.step_seconds(200, 0, 1, 0.5, assumed) == pytest.approx(8)
    assert scaling.step_seconds(1, 0, 1, 0.5, assumed) == pytest.approx(1)
    assert scaling.step_seconds(200, 100, 2, 0.5, assumed) == pytest.approx(8 + 100 / 50 + 2 * 0.01)
    assert scaling.step_seconds(200, 100, 4, 0.5, assumed) == pytest.approx(8 + 150 / 5 + 6 * 0.01)


@pytest.fixture(scope='module')
def stepped(shared_world, tmp_path_factory):
    """A stepper of pairs after some steps of the last stage, and what a step was counted to be."""
    opt = shared_world.options()
    opt['train']['stages'] = {'adversarial': opt['train']['stages']['adversarial']}
    del opt['datasets']['val'], opt['val']
    file = tmp_path_factory.mktemp('scaling') / 'run.yml'
    file.write_text(yaml.safe_dump(opt))
    args = argparse.Namespace(opt=str(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, 'changes', lambda width, blocks: [])  # this teacher is no RRDBNet
        point = {'width': '1/2', 'blocks': 4, 'crop': 64, 'batch': 2}
        counted = scaling.count(args, point)
        with quietly(False):
            stepper = scaling.stepper_of(args, point, tmp_path_factory.mktemp('stepper'), 'fp32', False)
            stepper.fill()
    return stepper, counted


def test_what_is_averaged_is_what_backward_passes_reach(stepped):
    """DistributedDataParallel averages a network's gradients once in every backward pass, twice a discriminator's."""
    stepper, counted = stepped
    passes, hooks = dict.fromkeys(stepper.model.players, 0), []
    for player in passes:

        def count(_parameter, player=player):
            passes[player] += 1

        hooks.append(next(player.bare.parameters()).register_post_accumulate_grad_hook(count))
    with quietly(False):
        stepper.step()
    for hook in hooks:
        hook.remove()
    sizes = counted['parameters']
    reached = sum(4 * number * sum(p.numel() for p in player.bare.parameters()) for player, number in passes.items())
    assert scaling.averaged_bytes(sizes['student'], sizes['adapters'], sizes['discriminators']) == reached


def test_what_a_process_holds_between_steps_is_counted_from_its_tensors(stepped):
    stepper, counted = stepped
    model = stepper.model
    held = sum(p.numel() * p.element_size() for p in model.net_g_ema.parameters())
    held += sum(p.numel() * p.element_size() for teacher in model.teachers.values() for p in teacher.parameters())
    for player in model.players:
        held += sum(2 * p.numel() * p.element_size() for p in player.bare.parameters())  # weights, gradients
        moments = (state[key] for state in player.optimizer.state.values() for key in ('exp_avg', 'exp_avg_sq'))
        held += sum(moment.numel() * moment.element_size() for moment in moments)
    sizes = counted['parameters']
    assert all(sizes[name] for name in ('student', 'discriminators', 'adapters', 'teachers'))
    others = sizes['discriminators'] + sizes['adapters']
    assert scaling.state_bytes(sizes['student'], others, sizes['teachers']) == held


def test_a_step_costs_what_the_formula_makes_of_forward_passes(stepped):
    """Counted in a whole step, against forward passes alone; the formula leaves out that images need no gradient."""
    from torch.utils.flop_counter import FlopCounterMode

    stepper, counted = stepped
    model = stepper.model

    def forward(network, *shape):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(shape))
        return counter.get_total_flops() // 2

    student, whole = forward(model.bare_student, 2, 3, 16, 16), forward(model.teachers['teacher'], 2, 3, 16, 16)
    judge = forward(model.discriminators['student'].bare, 2, 3, 64, 64)
    macs = counted['macs']
    teacher = macs['teacher forward']
    assert macs['student forward'] == student and 0 < teacher < whole  # it runs as far as its last feature map
    adapters = macs['feature losses']
    formula = scaling.step_macs(student, teacher, judge, adapters)
    first = 2 * 3 * 9 * (16 * 16 * 4 + 2 * 64 * 64 * 4)  # first layers of student and, twice, of the discriminator
    assert sum(macs.values()) == formula - first


def test_kept_bytes_are_those_of_a_graph():
    """Two layers of a perceptron keep their inputs; a sigmoid keeps its output, which is the next layer's input."""
    net, image = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4)), torch.zeros(3, 6)
    book = scaling.Kept({p.untyped_storage().data_ptr() for p in net.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(book.pack, book.unpack):
        output = net(image).sum()
    assert book.now == book.peak == 4 * (3 * 6 + 3 * 5)
    output.backward()
    assert book.now == 0 and book.peak == 4 * (3 * 6 + 3 * 5)
