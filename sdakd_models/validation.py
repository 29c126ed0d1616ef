"""Validation: the images of a set are shared over the processes, and all of them know the same figures."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite, tensor2img
from torch import nn
from torch.utils.data import DataLoader, Dataset

from sdakd.progress import Progress
from sdakd_arch.inference.tiling import run_tiled
from sdakd_data.randomness import aside
from sdakd_models.precision import eagerly
from sdakd_models.processes import gather, spread

VALIDATION = 2  # what a seed is for, beside those of sdakd_data.draws


class _Share(Dataset):
    """Every N-th image of a set, degraded alike in all validations, whoever reads it.

    Args:
        dataset: The set.
        first: Its first image in this share.
        every: N.
        seed: Of the run.
    """

    def __init__(self, dataset: Dataset, first: int, every: int, seed: int) -> None:
        self.dataset, self.numbers, self.seed = dataset, range(first, len(dataset), every), seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        number = self.numbers[index]
        with aside(self.seed, VALIDATION, number):
            return self.dataset[number]


def _measured(compared: Mapping[str, np.ndarray], options: Mapping) -> object:
    """A metric of an image.

    Raises:
        ValueError: It is no number.
    """
    with warnings.catch_warnings():  # NumPy's, about what becomes no number then
        warnings.simplefilter('ignore', RuntimeWarning)
        value = calculate_metric(compared, options)
    if np.isscalar(value) and not np.isfinite(value) and not np.isposinf(value):  # PSNR of equal images is infinite
        raise ValueError(f'it is {value}')
    return value


class Validation:
    """The part of :class:`sdakd_models.sdakd_model.SDAKDModel` that validates."""

    @torch.no_grad()
    def upscale(self, network: nn.Module) -> torch.Tensor:
        """What a generator makes of ``self.lq`` in validation; ``(N, 3, H, W)`` in [0, 1], in tiles where wanted."""
        val = self.opt.get('val') or {}
        with eagerly():
            return run_tiled(network, self.lq, self.scale, val.get('tile') or 0, val.get('tile_pad', 10))

    def test(self) -> None:
        """Runs the averaged student on ``self.lq``, in tiles where ``val:tile`` says so."""
        network = getattr(self, 'net_g_ema', self.bare_student)
        network.eval()
        self.output = self.upscale(network)
        if network is self.bare_student:
            network.train(self.opt['is_train'])

    def validation(self, dataloader, current_iter, tb_logger, save_img=False) -> None:
        """BasicSR's; after the first set the best checkpoint is kept, and teachers that learn are shown if better."""
        if not self.is_train:
            return super().validation(dataloader, current_iter, tb_logger, save_img)
        if current_iter == self.validated:
            return None  # BasicSR's loop validates once more at its end
        sets = [options['name'] for phase, options in self.opt['datasets'].items() if phase.startswith('val')]
        with self.clock.aside('validation'), aside(device=self.device):  # training goes on as if there had been none
            self._validate(dataloader, current_iter, tb_logger, save_img)
        if dataloader.dataset.opt['name'] == sets[-1]:
            self.validated = current_iter
            self.note_validation()
        return None

    def _validate(self, dataloader, current_iter, tb_logger, save_img) -> None:
        super().validation(dataloader, current_iter, tb_logger, save_img)
        first = next((phase for phase in self.opt['datasets'] if phase.startswith('val')), None)
        if dataloader.dataset.opt['name'] != self.opt['datasets'][first]['name']:
            return
        if (by := self.scenario.best_by) is not None and self.opt['rank'] == 0:
            self.consider_best(self.metric_results.get(by, math.nan), self._lower(by))
        for teacher in self.cotrained:
            measure = partial(self._measure, dataloader=dataloader, metric=teacher.metric)
            teacher.consider(measure, self._lower(teacher.metric), current_iter)

    def _lower(self, metric: str) -> bool:
        """Whether a lower value of one of ``val:metrics`` is the better one."""
        return self.opt['val']['metrics'][metric].get('better', 'higher') == 'lower'

    def _measure(self, network: nn.Module, dataloader: DataLoader, metric: str) -> float:
        """One of ``val:metrics`` of a generator on a set: what the validation of the student computes of it."""
        name = dataloader.dataset.opt['name']
        metrics = {metric: self.opt['val']['metrics'][metric]}
        run = partial(self.upscale, network)
        return self._over(dataloader, f'validation of a teacher on {name}', metrics, run).get(metric, math.nan)

    def dist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's, which leaves all images to the main process; here every process has its share."""
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        """BasicSR's validation of one set, with some images of every set in TensorBoard (``val:tb_images``, default 3).

        TensorBoard shows the main process's images: the first ones of a set, or every N-th of N processes.
        """
        val, name = self.opt['val'], dataloader.dataset.opt['name']
        shown = iter(range(val.get('tb_images', 3) if tb_logger is not None else 0))

        def run() -> torch.Tensor:
            self.test()
            return self.output

        def look(path: str, visuals: Mapping[str, torch.Tensor], image: np.ndarray) -> None:
            if (number := next(shown, None)) is not None:
                for kind, tensor in visuals.items():
                    rgb = tensor2img([tensor], rgb2bgr=False)
                    tb_logger.add_image(f'{name}/{number}/{kind}', rgb, current_iter, dataformats='HWC')
            if save_img:
                imwrite(image, self._image_path(path, name, current_iter))

        metrics = val.get('metrics') or {}
        results = self._over(dataloader, f'validation of {name}', metrics, run, look)
        if metrics:
            self.metric_results = results
            self._initialize_best_metric_results(name)
            for metric, value in results.items():
                self._update_best_metric_result(name, metric, value, current_iter)
            self._log_validation_metric_values(current_iter, name, tb_logger)

    def _image_path(self, path: str, dataset: str, current_iter: int) -> str:
        """Where BasicSR saves the result for the image at ``path``."""
        stem, folder = os.path.splitext(os.path.basename(path))[0], self.opt['path']['visualization']
        if self.opt['is_train']:
            return os.path.join(folder, stem, f'{stem}_{current_iter}.png')
        return os.path.join(folder, dataset, f'{stem}_{self.opt["val"].get("suffix") or self.opt["name"]}.png')

    def _over(
        self,
        dataloader: DataLoader,
        what: str,
        metrics: Mapping[str, Mapping],
        run: Callable[[], torch.Tensor],
        look: Callable[[str, Mapping[str, torch.Tensor], np.ndarray], None] = lambda *_: None,
    ) -> dict[str, float]:
        """Runs a generator on a set, and takes the means of metrics.

        Args:
            dataloader: Of the set; its images are shared over the processes.
            what: Is done, for the signs of life.
            metrics: Their options by name.
            run: Makes the image of ``self.lq``.
            look: Called with the path of every input, the current images and the result as uint8 (H, W, 3), BGR.

        Returns:
            The means over all images by name, the same on every process.
        """
        sums, counts = dict.fromkeys(metrics, 0), dict.fromkeys(metrics, 0)
        training, self.is_train = self.is_train, False  # its images are no training pairs
        loader = self._share(dataloader)
        for data in Progress(what, len(loader), 'images').over(loader):
            self.feed_data(data)
            self.output = run()
            visuals = self.get_current_visuals()
            compared = {'img': tensor2img([visuals['result']])}
            if 'gt' in visuals:
                compared['img2'] = tensor2img([visuals['gt']])
                del self.gt
            del self.lq, self.output
            torch.cuda.empty_cache()  # images have different sizes
            look(data['lq_path'][0], visuals, compared['img'])
            for name, options in metrics.items():
                with self._told_once(name, data['lq_path'][0]):
                    sums[name] = sums[name] + _measured(compared, options)
                    counts[name] += 1
            if self.loop is not None:
                self.loop.interrupt()
        self.is_train = training
        return self._means(sums, counts)

    def _share(self, dataloader: DataLoader) -> DataLoader:
        """This process's images of a set: every N-th of N processes, in their order; global random numbers stay."""
        rank, processes = (self.opt['rank'], self.opt['world_size']) if self.opt['dist'] else (0, 1)
        own = _Share(dataloader.dataset, rank, processes, self.opt['manual_seed'])
        workers, pinned = dataloader.num_workers, dataloader.pin_memory
        options = {'num_workers': workers, 'pin_memory': pinned, 'collate_fn': dataloader.collate_fn}
        return DataLoader(own, batch_size=1, generator=torch.Generator(), **options)

    def _means(self, sums: Mapping[str, object], counts: Mapping[str, int]) -> dict[str, float]:
        """The means of metrics from every process's sums; those of a whole set are computed here, once."""
        if not sums:
            return {}
        means: dict[str, float] = {}
        parts = gather((sums, counts))
        for name in sums if parts else ():
            images = sum(count[name] for _, count in parts)
            if images:  # a metric may take none of them
                with self._told_once(name, 'the set'):
                    # a process may have no image
                    means[name] = float(sum(part[name] for part, count in parts if count[name]) / images)
        return spread(means)

    @contextlib.contextmanager
    def _told_once(self, metric: str, what: str) -> Iterator[None]:
        """Survives a metric that cannot be computed, for which a training is too dear; one warning a run is enough."""
        try:
            yield
        except Exception as error:  # of whatever a metric does
            if metric in self.told:
                return
            self.told.add(metric)
            reason = ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
            get_root_logger().warning(
                f'val:metrics:{metric}: it cannot be computed for {what} ({reason}); it is the mean of the images that '
                'allow it, in all validations of this run.'
            )
