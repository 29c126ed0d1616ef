"""Distillation on Real-ESRGAN's second-order degradation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils.registry import MODEL_REGISTRY

from sdakd_data.degradation import BatchJPEG, Sharpener
from sdakd_data.pool import ROOM, packed, unpacked
from sdakd_models.sdakd_model import SDAKDModel


@MODEL_REGISTRY.register()
class SDAKDRealESRGANModel(SDAKDModel, RealESRGANModel):
    """:class:`SDAKDModel` on BasicSR's Real-ESRGAN degradation, pair pool and sharpened targets, on any device.

    ``l1_gt_usm``, ``percep_gt_usm`` and ``gan_gt_usm`` say which terms compare with the sharpened ground truth, as
    upstream; ``high_order_degradation: false`` takes paired data instead.
    """

    batch = (*SDAKDModel.batch, 'gt_usm')
    sharpened = {'pixel': 'l1_gt_usm', 'perceptual': 'percep_gt_usm', 'gan': 'gan_gt_usm'}

    def __init__(self, opt: Mapping) -> None:
        SDAKDModel.__init__(self, opt)
        self.jpeger = BatchJPEG(differentiable=False).to(self.device)
        self.usm_sharpener = Sharpener().to(self.device)
        self.queue_size = opt.get('queue_size', 180)

    def take(self, data: Mapping) -> None:
        """Takes ``gt`` with blur kernels to degrade, or a pair of ``lq`` and ``gt``."""
        options = self.opt
        if self.pool is not None and not self.aside and self.is_train and self.scenario.degrades:
            # the degradation's last step cuts pairs to gt_size; those of the pool are larger
            side = options['gt_size'] + (2 * self.teacher_margin + ROOM) * options['scale']
            side = min(side, data['gt'].shape[-1])
            self.opt = {**options, 'gt_size': side // options['scale'] * options['scale']}
        # collating keeps the loader's channels-last strides, which filter2D refuses on a CPU
        super().take({k: v.contiguous() if torch.is_tensor(v) else v for k, v in data.items()})
        self.opt = options

    def draw(self, batch: int) -> None:
        """Takes a batch from the pool, and its sharpened ground truth."""
        super().draw(batch)
        self.gt_usm = self.usm_sharpener(self.gt)

    @torch.no_grad()
    def _dequeue_and_enqueue(self) -> None:
        """BasicSR's pool: the batch takes the places of random pairs, which are the current batch from now on.

        BasicSR shuffles all pairs in memory and takes the first ones; here only their order is shuffled.
        """
        if self.pool is not None or self.aside:
            return
        if not hasattr(self, 'queue_lr'):
            self.queue_lr = self.lq.new_zeros(self.queue_size, *self.lq.shape[1:])
            self.queue_gt = self.gt.new_zeros(self.queue_size, *self.gt.shape[1:])
            self.queue_order, self.queue_ptr = torch.arange(self.queue_size), 0
        batch = len(self.lq)
        if self.queue_ptr < self.queue_size:
            rows = slice(self.queue_ptr, self.queue_ptr + batch)  # nothing has been shuffled yet
            self.queue_lr[rows], self.queue_gt[rows] = self.lq, self.gt
            self.queue_ptr += batch
            return
        self.queue_order = self.queue_order[torch.randperm(self.queue_size)]
        rows = self.queue_order[:batch].to(self.lq.device, non_blocking=True)
        drawn = self.queue_lr[rows], self.queue_gt[rows]
        self.queue_lr[rows], self.queue_gt[rows] = self.lq, self.gt
        self.lq, self.gt = drawn

    def pool_state(self) -> dict:
        """The pool of pairs, BasicSR's where none is reused."""
        if self.pool is not None or not hasattr(self, 'queue_lr'):
            return super().pool_state()
        rows = self.queue_order.to(self.queue_lr.device)
        pairs = {'lq': packed(self.queue_lr[rows]), 'gt': packed(self.queue_gt[rows])}
        return {'pairs': pairs, 'filled': self.queue_ptr}

    def load_pool(self, state: Mapping) -> None:
        if self.pool is not None or 'filled' not in state:
            super().load_pool(state)
            return
        crop, side, batch = (
            self.scenario.crop,
            self.scenario.input_crop,
            self.opt['datasets']['train']['batch_size_per_gpu'],
        )
        lq, gt = (unpacked(state['pairs'][name], self.device) for name in ('lq', 'gt'))
        fits = lq.shape[0] == self.queue_size and (lq.shape[-1], gt.shape[-1]) == (side, crop)
        if fits and state['filled'] % batch == 0:
            self.queue_lr, self.queue_gt, self.queue_ptr = lq, gt, state['filled']
            self.queue_order = torch.arange(self.queue_size)

    def target(self, term: str) -> torch.Tensor:
        """The ground truth of a term, sharpened where the options say so."""
        return self.gt if self.opt.get(self.sharpened.get(term)) is False else self.gt_usm
