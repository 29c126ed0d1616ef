"""A validation set is shared over processes: the figures, files and records are those of one process."""

import copy

import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from sdakd_models.processes import meet


class Board:
    """What is shown in place of TensorBoard."""

    def __init__(self):
        self.images, self.scalars = {}, {}

    def add_image(self, tag, image, iteration, dataformats):
        self.images[tag] = np.array(image)

    def add_scalar(self, tag, value, iteration):
        self.scalars[tag] = value


def validate(opt, folder, images=8):
    """Validates a student of seed 5 on the first ``images`` pairs; its figures, records, and who saved what."""
    opt['path']['visualization'] = str(folder)
    torch.manual_seed(5)
    model = build_model(opt)
    phase = opt['datasets']['val']
    dataset = build_dataset(phase)
    dataset.paths = dataset.paths[:images]
    loader = build_dataloader(dataset, phase, num_gpu=0, dist=opt['dist'], sampler=None, seed=0)
    board = Board() if opt['rank'] == 0 else None
    read, state = [], torch.get_rng_state()
    original = type(dataset).__getitem__

    def degraded(self, index):
        read.append(index)
        pair = original(self, index)
        return pair | {'lq': pair['lq'] + 0.02 * torch.randn(pair['lq'].shape)}

    type(dataset).__getitem__ = degraded
    try:
        for iteration in (1, 2):
            model.validation(loader, iteration, board, True)
    finally:
        type(dataset).__getitem__ = original
    assert torch.equal(torch.get_rng_state(), state) and model.is_train
    scores = [teacher.score for teacher in model.cotrained]
    shown = [teacher.shown.state_dict() for teacher in model.cotrained]
    shown = [value.numpy() for network in shown for value in network.values()]
    tags = (board.images, board.scalars) if board else None
    return model.metric_results, model.best_metric_results, scores, shown, read, tags


def _join(rank, meeting, opt, results, *arguments):
    torch.distributed.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    results[rank] = validate(opt | {'dist': True, 'rank': rank, 'world_size': 2}, *arguments)
    meet()
    torch.distributed.destroy_process_group()


def on_two_processes(world, opt, *arguments):
    context = torch.multiprocessing.get_context('fork')
    with context.Manager() as manager:
        results = manager.dict()
        processes = [
            context.Process(target=_join, args=(rank, world.root / 'meeting', copy.deepcopy(opt), results, *arguments))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        return results[0], results[1]


@pytest.fixture
def options(world):
    """A run with a teacher that learns along, so that a validation measures it too."""
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), world.root / 'squeezenet.pth')
    options = world.options()
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    options['val']['metrics'] |= {
        'ssim': {'type': 'calculate_ssim', 'crop_border': 4, 'test_y_channel': True},
        'fd': {'type': 'calculate_fd', 'backbone': f'squeezenet:{world.root / "squeezenet.pth"}'},
    }
    return options


def test_two_processes_find_what_one_finds(world, parse, options):
    opt = parse(world.write(options), world.root)
    alone = validate(copy.deepcopy(opt), world.root / 'alone', 7)
    first, second = on_two_processes(world, opt, world.root / 'shared', 7)
    for found in (first, second):
        assert found[0] == pytest.approx(alone[0], rel=1e-9)
        assert found[2] == pytest.approx(alone[2], rel=1e-9)
        assert all(np.array_equal(one, two) for one, two in zip(found[3], alone[3], strict=True))
    assert first[:3] == second[:3]  # to the last bit: what one takes for the best is the best to all
    assert first[1]['held_out']['psnr']['iter'] == 2
    # the student's two validations, the two of the teacher that is shown and in training, and that one's once more
    assert sorted(first[4]) == sorted([0, 2, 4, 6] * 5) and sorted(second[4]) == sorted([1, 3, 5] * 5)
    files = {path.name: path.read_bytes() for path in (world.root / 'alone').glob('*/*.png')}
    assert len(files) == 14
    assert files == {path.name: path.read_bytes() for path in (world.root / 'shared').glob('*/*.png')}
    assert second[5] is None
    (images, scalars), (shown, _) = first[5], alone[5]
    assert {tag.split('/')[1] for tag in images} == {'0', '1', '2'}
    assert np.array_equal(images['held_out/1/result'], shown['held_out/2/result'])
    assert scalars['metrics/held_out/fd'] == first[0]['fd']


def test_a_set_of_one_image_and_two_processes(world, parse, options):
    del options['val']['metrics']['ssim']
    opt = parse(world.write(options), world.root)
    alone = validate(copy.deepcopy(opt), world.root / 'alone', 1)
    first, second = on_two_processes(world, opt, world.root / 'shared', 1)
    assert first[0] == second[0] == pytest.approx(alone[0], rel=1e-9)
    assert set(first[4]) == {0} and not second[4]


def test_a_metric_that_fails_is_told_once_and_the_rest_goes_on(world, parse, caplog, tmp_path, monkeypatch):
    """NIQE takes blocks of 96 pixels: of 64 it makes no number, and BasicSR's run would end."""
    options = world.options()
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    metrics = options['val']['metrics']
    metrics['niqe'] = {'type': 'calculate_niqe', 'crop_border': 4}
    options['logger']['keep_best'] = 'niqe'
    options['val']['val_freq'] = 1000
    opt = parse(world.write(options), world.root)
    results, records, *_ = validate(opt, tmp_path / 'images')
    del options['val']['metrics']['niqe'], options['logger']['keep_best']
    plain, *_ = validate(parse(world.write(options), world.root), tmp_path / 'images')
    assert results == plain and 'psnr' in results and 'niqe' not in results
    # another test may have had the handler put at both loggers, which see the same record
    told = {id(each) for each in caplog.records if 'val:metrics:niqe: it cannot be computed for' in each.getMessage()}
    assert len(told) == 1


def test_a_metric_is_the_mean_of_the_images_that_allow_it(world, parse, tmp_path, monkeypatch):
    opt = parse(world.write(world.options()), world.root)
    from sdakd_models import validation

    measure, values = validation.calculate_metric, []

    def some(data, options):
        values.append(measure(data, options))
        if len(values) % 3 == 0:
            raise ArithmeticError('not of this one')
        return values[-1]

    monkeypatch.setattr(validation, 'calculate_metric', some)
    results, *_ = validate(opt, tmp_path / 'images')
    last = [value for number, value in enumerate(values, 1) if number % 3 and number > 8]
    assert results['psnr'] == pytest.approx(np.mean(last)) and len(last) == 5
