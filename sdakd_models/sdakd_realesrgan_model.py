"""Distillation on Real-ESRGAN's second-order degradation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils.registry import MODEL_REGISTRY

from sdakd_data.answers import Answer
from sdakd_data.degradation import ContiguousJPEG, Sharpener
from sdakd_data.pool import ROOM, ReusingPool
from sdakd_models.sdakd_model import SDAKDModel


@MODEL_REGISTRY.register()
class SDAKDRealESRGANModel(SDAKDModel, RealESRGANModel):
    """:class:`SDAKDModel` on BasicSR's Real-ESRGAN degradation, pair pool and sharpened targets, on any device.

    ``l1_gt_usm``, ``percep_gt_usm`` and ``gan_gt_usm`` say which terms compare with the sharpened ground truth, as
    upstream; ``high_order_degradation: false`` takes paired data instead.
    """

    sharpened = {'pixel': 'l1_gt_usm', 'perceptual': 'percep_gt_usm', 'gan': 'gan_gt_usm'}

    def __init__(self, opt: Mapping) -> None:
        SDAKDModel.__init__(self, opt)
        self.jpeger = ContiguousJPEG(differentiable=False).to(self.device)
        self.usm_sharpener = Sharpener().to(self.device)
        self.queue_size = opt.get('queue_size', 180)
        self.pool: ReusingPool | None = None
        if self.is_train and self.train_options.pool_reuse > 1:
            reuse, crop = self.train_options.pool_reuse, opt['gt_size'] // opt['scale']
            self.pool = ReusingPool(self.queue_size, reuse, crop, self.teacher_margin, opt['scale'], self._ask)

    def feed_data(self, data: Mapping) -> None:
        """Takes a batch: ``gt`` with blur kernels to degrade, or a pair of ``lq`` and ``gt``."""
        pooled, batch = self.pool is not None and self.is_train, len(next(iter(data.values())))
        if not pooled or self.pool.wants(batch):
            options = self.opt
            if pooled:  # the degradation's last step cuts pairs to gt_size; those of the pool are larger
                side = options['gt_size'] + (2 * self.teacher_margin + ROOM) * options['scale']
                side = min(side, data['gt'].shape[-1])
                self.opt = {**options, 'gt_size': side // options['scale'] * options['scale']}
            # collating keeps the loader's channels-last strides, which filter2D refuses on a CPU
            super().feed_data({k: v.contiguous() if torch.is_tensor(v) else v for k, v in data.items()})
            self.opt = options
        if pooled:
            # mirrored feature maps are not those of the mirrored input: the filters are oriented
            names = self.scenario.active[self.plan.at(self.last_iter + 1).name]
            compared = any(self.terms[name].needs_features for name in names if name in self.terms)
            flips = self.opt['datasets']['train'].get('use_hflip', False) and not compared
            self.lq, self.gt = self.pool.draw(batch, flips)
            self.gt_usm = self.usm_sharpener(self.gt)

    def answer(self, who: str, with_features: bool) -> Answer | None:
        """From the pool where pairs are reused, unless the teacher learns along."""
        if self.pool is None or any(teacher.name == who for teacher in self.cotrained):
            return super().answer(who, with_features)
        return self.pool.answers(who, with_features)

    @torch.no_grad()
    def _ask(self, who: str, lq: torch.Tensor, with_features: bool) -> Answer:
        taps = self.taps.get(who) if with_features else None
        with taps or nullcontext():
            image = self.run(self.teachers[who], lq)
        return Answer(image, taps.pop() if taps is not None else {})

    def _dequeue_and_enqueue(self) -> None:
        if self.pool is not None:
            self.pool.add(self.lq, self.gt)
            return
        if not hasattr(self, 'queue_lr'):  # BasicSR would allocate the pool on the GPU
            self.queue_lr = self.lq.new_zeros(self.queue_size, *self.lq.shape[1:])
            self.queue_gt = self.gt.new_zeros(self.queue_size, *self.gt.shape[1:])
            self.queue_ptr = 0
        super()._dequeue_and_enqueue()

    def target(self, term: str) -> torch.Tensor:
        """The ground truth of a term, sharpened where the options say so."""
        return self.gt if self.opt.get(self.sharpened.get(term)) is False else self.gt_usm
