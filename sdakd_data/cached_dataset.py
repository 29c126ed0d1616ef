"""Pairs with the teachers' answers to them: BasicSR's paired data sets, beside a :class:`TeacherCache` per teacher."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from basicsr.data.transforms import augment, paired_random_crop
from basicsr.utils import FileClient, imfrombytes, img2tensor
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from sdakd.compat import UserError
from sdakd_arch.width import lookup
from sdakd_data.answers import Answer
from sdakd_data.decoded import Decoder
from sdakd_data.teacher_cache import TeacherCache, blocks, joined, key_of


@DATASET_REGISTRY.register()
class CachedPairedDataset(Dataset):
    """Crops and flips of pairs, and the same crops and flips of the teachers' answers to the whole input images.

    The checks of a run put it in the place of ``PairedImageDataset`` or ``RealESRGANPairedDataset`` where a teacher has
    a ``cache``. It draws what they draw, in their order: with the same seed, the pairs are the same.

    Args:
        opt: Their options, and:

            - ``plain``: the type whose place it takes.
            - ``caches``: by teacher, the arguments of its :class:`TeacherCache`.

    An item holds ``lq`` and ``gt``, ``(3, h, w)``, RGB in [0, 1], and what :func:`answers_in` collects from a batch.
    """

    def __init__(self, opt: Mapping) -> None:
        super().__init__()
        self.opt = opt
        self.pairs = lookup(DATASET_REGISTRY, opt['plain'], 'datasets:train:plain')(deepcopy(dict(opt)))
        self.paths = self.pairs.paths
        self.caches = {name: TeacherCache(**arguments) for name, arguments in opt['caches'].items()}
        self.client: FileClient | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, side: str) -> np.ndarray:
        """The whole ``gt`` or ``lq`` of a pair, ``(H, W, 3)``, uint8, BGR."""
        if self.client is None:  # in the process that reads
            backend = dict(self.pairs.io_backend_opt)
            self.client = FileClient(backend.pop('type'), **backend)
        return imfrombytes(self.client.get(self.paths[index][f'{side}_path'], side))

    def inputs(self) -> list[tuple[int, int, str]]:
        """Height, width and key of every pair's ``lq``; what is remembered of an image is not decoded again.

        Raises:
            UserError: An image cannot be decoded.
        """
        names, where = [entry['lq_path'] for entry in self.paths], 'datasets:train'
        decoder = Decoder(self.pairs.io_backend_opt, {'lq': self.opt['dataroot_lq']}, where, keyed=('lq',))
        found = list(decoder.sizes((('lq', name) for name in names), len(names), 'keys of images'))
        for name, each in zip(names, found, strict=True):
            if isinstance(each, str):
                raise UserError(where, f'the image {name} {each}.')
        return [(height, width, key) for height, width, _, key in found]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        gt, lq = self.read(index, 'gt'), self.read(index, 'lq')
        key = key_of(lq)
        images = {name: cache.read(key) for name, cache in self.caches.items()}
        maps = {(name, tap): cache.read(key, tap) for name, cache in self.caches.items() for tap in cache.taps}
        wholes = [blocks(values, len(values) // len(lq)) for values in (*images.values(), *maps.values())]
        gt, lq = gt.astype(np.float32) / 255, lq.astype(np.float32) / 255

        gt, (lq, *crops) = paired_random_crop(
            gt, [lq, *wholes], self.opt['gt_size'], self.opt['scale'], self.paths[index]['gt_path']
        )
        crops = [joined(crop) for crop in crops]
        pictures = [crop.astype(np.float32) for crop in crops[: len(images)]]
        # maps stay as they are: the checks refuse them where something is flipped
        gt, lq, *pictures = augment([gt, lq, *pictures], self.opt['use_hflip'], self.opt['use_rot'])

        gt, lq = img2tensor([gt, lq], bgr2rgb=True, float32=True)
        item = {'lq': lq, 'gt': gt, **self.paths[index]}
        item |= {_label(name): _tensor(picture) for name, picture in zip(images, pictures, strict=True)}
        return item | {
            _label(name, tap): _tensor(crop) for (name, tap), crop in zip(maps, crops[len(images) :], strict=True)
        }


def _label(name: str, tap: str = '') -> str:
    return f'answer/{tap}/{name}'  # a tap has no slash


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def answers_in(batch: Mapping, device: torch.device) -> dict[str, Answer]:
    """What a batch of :class:`CachedPairedDataset` holds of teachers' answers, by teacher, in float32; else nothing."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for label, values in batch.items():
        if label.startswith('answer/'):
            _, tap, name = label.split('/', 2)
            found.setdefault(name, {})[tap] = values.to(device).float()
    return {name: Answer(values.pop(''), values) for name, values in found.items()}
