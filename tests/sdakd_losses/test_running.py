"""Scales measured over the first batches: against a slow formula, in two processes, and brought back."""

import math

import pytest
import torch

from sdakd_losses.feature_loss import FeatureMapLoss
from sdakd_losses.running import RunningScale


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {'body.1': 3 + torch.randn(4, 3, 5, 6, generator=generator), 'conv': torch.randn(4, 2, 2, generator=generator)}
        for _ in range(count)
    ]


def by_hand(values, centred):
    mean = math.fsum(values) / len(values) if centred else 0.0
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


@pytest.mark.parametrize('centred', [True, False])
def test_variance_and_mean_square_of_the_first_batches(centred):
    scale, given = RunningScale(3, centred), batches(5)
    for number, batch in enumerate(given, 1):
        scale.update(batch)
        for name in batch:
            values = [v for each in given[: min(number, 3)] for v in each[name].double().flatten().tolist()]
            assert scale.scale(name).item() == pytest.approx(by_hand(values, centred), rel=1e-6)


def test_a_state_goes_on_as_the_scale_it_is_of(tmp_path):
    scale, again, given = RunningScale(3), RunningScale(3), batches(5)
    for batch in given[:2]:
        scale.update(batch)
    torch.save(scale.get_extra_state(), tmp_path / 'state')
    again.set_extra_state(torch.load(tmp_path / 'state', weights_only=True))
    for batch in given[2:]:
        scale.update(batch)
        again.update(batch)
    assert all(torch.equal(scale.scale(name), again.scale(name)) for name in given[0])


def _measure(rank, file, results):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    scale = RunningScale(3)
    for batch in batches(5):
        scale.update({name: each[2 * rank : 2 * rank + 2] for name, each in batch.items()})
    results[rank] = {name: scale.scale(name).item() for name in scale.totals}
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    context = torch.multiprocessing.get_context('fork')
    with context.Manager() as manager:
        results = manager.dict()
        args = [(rank, tmp_path / 'meeting', results) for rank in range(2)]
        processes = [context.Process(target=_measure, args=each) for each in args]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = dict(results)
    scale = RunningScale(3)
    for batch in batches(5):
        scale.update(batch)
    assert found[0] == found[1]
    assert found[0] == pytest.approx({name: scale.scale(name).item() for name in scale.totals}, rel=1e-12)


def test_the_feature_loss_divides_by_the_running_variance():
    loss, given = FeatureMapLoss(batches=2), batches(4)
    for number, batch in enumerate(given, 1):
        student = {name: torch.zeros_like(each) for name, each in batch.items()}
        wanted = []
        for name in batch:
            seen = [v for each in given[: min(number, 2)] for v in each[name].double().flatten().tolist()]
            values = batch[name].double().flatten().tolist()
            wanted.append(math.fsum(v * v for v in values) / len(values) / by_hand(seen, True))
        assert loss(student, batch).item() == pytest.approx(sum(wanted) / len(wanted), rel=1e-6)
