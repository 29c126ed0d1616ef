"""The order of samples and their random numbers: functions of seed and draw alone."""

import collections
import os
import random
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sdakd_data.draws import Drawn, Draws, SampleError, training_loader
from sdakd_data.randomness import aside, random_state, seed_all, set_random_state


def taken(draws):
    """What the loader of a process gets: lists of (image, draw), an entry for every iteration."""
    drawn = list(draws)
    return [drawn[begin : begin + draws.batch] for begin in range(0, len(drawn), draws.batch)]


@pytest.mark.parametrize('seed', range(20))
def test_every_image_comes_once_before_one_comes_again_and_all_processes_share_one_sequence(seed):
    rng = random.Random(seed)
    images, batch, processes = rng.randint(1, 60), rng.randint(1, 17), rng.choice([1, 1, 2, 3])
    last = rng.randint(1, 60)
    by_process = [taken(Draws(images, batch, seed, 1, last, rank, processes)) for rank in range(processes)]
    assert all(len(each) == last and all(len(samples) == batch for samples in each) for each in by_process)
    sequence = [sample for iteration in zip(*by_process, strict=True) for part in iteration for sample in part]
    assert [draw for _, draw in sequence] == list(range(last * batch * processes))
    order = [image for image, _ in sequence]
    for begin in range(0, len(order), images):
        epoch = order[begin : begin + images]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(images))
    # a resumed run gets the rest, whatever the number of its processes was
    first = rng.randint(1, last)
    again = [taken(Draws(images, batch, seed, first, last, rank, processes)) for rank in range(processes)]
    assert again == [each[first - 1 :] for each in by_process]
    assert Draws(images, batch, seed, 1, last, 0, processes).epoch(first) == (first - 1) * batch * processes // images
    assert list(Draws(images, batch, seed, last + 1, last)) == [] and len(Draws(images, batch, seed, 5, 2)) == 0


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {(seed, epoch): tuple(Draws(40, 1, seed, 1, 200).image(40 * epoch + n) for n in range(40))
              for seed in range(3) for epoch in range(5)}  # fmt: skip
    assert len(set(orders.values())) == 15
    places = collections.Counter(order.index(0) for order in orders.values())
    assert len(places) > 8


class Dice(Dataset):
    """A sample is what all three global generators draw."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {
            'image': index,
            'numbers': torch.tensor([random.random(), np.random.uniform(), float(torch.rand(()))], dtype=torch.float64),
        }


def loaded(seed, first, workers, last=12):
    loader = DataLoader(
        Drawn(Dice(), seed, 'datasets:train'), 2, sampler=Draws(7, 2, seed, first, last), num_workers=workers,
        generator=torch.Generator(),
    )  # fmt: skip
    return [(batch['image'].tolist(), batch['numbers'].tolist()) for batch in loader]


def test_samples_are_the_same_with_any_number_of_workers_and_after_a_stop():
    whole = loaded(0, 1, 0)
    assert loaded(0, 1, 2) == whole and loaded(0, 5, 2) == whole[4:] and loaded(0, 5, 0) == whole[4:]
    assert loaded(1, 1, 0) != whole
    numbers = np.array([sample for _, batch in whole for sample in batch])
    assert len(np.unique(numbers)) == numbers.size == 72  # an image that comes again has others
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.7


def test_loading_changes_none_of_the_random_numbers_of_the_training():
    seed_all(4, 5)
    expected = [random.random(), np.random.uniform(), float(torch.rand(()))]
    seed_all(4, 5)
    loaded(0, 1, 0)
    with aside():
        torch.rand(3), random.random(), np.random.normal()
    assert [random.random(), np.random.uniform(), float(torch.rand(()))] == expected


def test_a_state_that_was_saved_brings_all_generators_back(tmp_path):
    seed_all(1)
    random.gauss(0, 1), np.random.normal(), torch.randn(3)  # the halves of pairs that wait count as well
    torch.save(random_state(), tmp_path / 'state.pth')
    draw = lambda: [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), *torch.randn(3).tolist()]  # noqa: E731
    expected = draw()
    seed_all(2)
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == expected


class Folder(Dataset):
    def __init__(self, paths):
        self.paths, self.opt = paths, {'io_backend': {'type': 'disk'}}

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {'gt': torch.from_numpy(cv2.imread(self.paths[index]).astype(np.float32)), 'path': self.paths[index]}


@pytest.fixture
def folder(tmp_path):
    paths = [str(tmp_path / f'{number}.png') for number in range(6)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, np.full((4, 4, 3), number, np.uint8))
    return paths


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('harm', ['damaged', 'gone'])
def test_a_bad_image_is_named_in_one_line(folder, workers, harm):
    if harm == 'gone':
        (path := Path(folder[3])).unlink()
    else:
        path = Path(folder[3])
        path.write_bytes(b'no image')
    data = Drawn(Folder(folder), 0, 'datasets:train')
    with pytest.raises(SampleError) as caught:
        list(DataLoader(data, 2, sampler=Draws(6, 2, 0, 1, 3), num_workers=workers))
    assert caught.value.where == 'datasets:train' and '\n' not in str(caught.value)
    assert str(path) in str(caught.value) and 'on_bad_sample: skip' in str(caught.value)


def test_a_bad_image_is_skipped_where_that_is_wanted(folder, caplog):
    os.unlink(folder[3])
    sampler = Draws(6, 2, 0, 1, 3)
    data = DataLoader(Drawn(Folder(folder), 0, 'datasets:train', skip=True), 2, sampler=sampler, num_workers=0)
    seen = [path for batch in data for path in batch['path']]
    assert sorted(seen) == sorted([*folder[:3], folder[4], folder[4], folder[5]])
    assert caplog.text.count('3.png') == 1 and 'is skipped' in caplog.text


@pytest.mark.parametrize('mode', [None, 'cpu'])
def test_no_thread_loads_beside_the_training(folder, mode):
    """BasicSR's thread dies of a bad image in silence, and its loop waits for it."""
    Path(folder[3]).unlink()
    train = {'phase': 'train', 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'prefetch_mode': mode}
    opt = {'datasets': {'train': train}, 'num_gpu': 0, 'dist': False}
    loader = training_loader(Drawn(Folder(folder), 0, 'datasets:train'), Draws(6, 2, 0, 1, 3), opt)
    threads = threading.active_count()
    with pytest.raises(SampleError):
        list(loader)
    assert type(loader) is DataLoader and threading.active_count() == threads


def test_a_set_of_bad_images_ends_even_then(folder):
    for path in folder:
        os.unlink(path)
    with pytest.raises(SampleError, match='nor can those before it'):
        Drawn(Folder(folder), 0, 'datasets:train', skip=True)[2, 0]
