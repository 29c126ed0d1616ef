"""BasicSR's own training step on the work of a run: what every other row is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from basicsr.data import degradations
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.models.sr_model import SRModel
from basicsr.models.srgan_model import SRGANModel
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from sdakd.compat import UserError
from sdakd_data.degradation import OF_BASICSR

LATE = 10**9  # a milestone of the rate that no benchmark reaches


class _Contiguous(nn.Module):
    """A JPEG whose output BasicSR's ``filter2D`` takes on a CPU as well."""

    def __init__(self, jpeg: nn.Module) -> None:
        super().__init__()
        self.jpeg = jpeg

    def forward(self, image: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        return self.jpeg(image, quality=quality).contiguous()


@contextlib.contextmanager
def of_basicsr(device: torch.device) -> Iterator[None]:
    """Puts back what this project puts in the place of BasicSR's degradation, and lets ``.cuda()`` stay on a CPU."""
    ours = {name: getattr(degradations, name) for name in OF_BASICSR}
    module = nn.Module.cuda
    for name, function in OF_BASICSR.items():
        setattr(degradations, name, function)
    if device.type != 'cuda':  # BasicSR's models for degraded images ask for a GPU whatever num_gpu says
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *_: self
    try:
        yield
    finally:
        for name, function in ours.items():
            setattr(degradations, name, function)
        if device.type != 'cuda':
            nn.Module.cuda = module
            del torch.Tensor.cuda


def options(plain: Mapping) -> dict:
    """The options of BasicSR's model for the work of a plain step.

    Args:
        plain: Completed options of :class:`SDAKDModel` with one stage of the terms pixel, perceptual and gan.
    """
    opt = deepcopy(dict(plain))
    train, (stage,) = opt['train'], opt['train']['stages'].values()
    found = {key: train[key] for key in ('pixel_opt', 'perceptual_opt', 'gan_opt') if train.get(key)}
    for side in ('g', 'd'):
        optim = {'type': 'Adam', 'betas': [0.9, 0.99]} | (train.get(f'optim_{side}') or {})
        found[f'optim_{side}'] = optim | {'lr': stage.get(f'lr_{side}')}
    found['scheduler'] = {'type': 'MultiStepLR', 'milestones': [LATE], 'gamma': 0.5}
    opt['train'] = found | {'ema_decay': train.get('ema_decay', 0.999)}
    for network in (opt['network_g'], opt.get('network_d') or {}):
        if network.get('type') not in dict(iter(ARCH_REGISTRY)) and network:
            network['type'] += '_basicsr'  # else BasicSR says that it looks for it under this name
    for key in ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm'):
        opt.setdefault(key, True)
    opt['gt_usm'] = opt['l1_gt_usm']  # RealESRNetModel's
    return opt


def build(opt: Mapping) -> Any:
    """BasicSR's model: RealESRGANModel or SRGANModel, without a discriminator RealESRNetModel or SRModel.

    Args:
        opt: What :func:`options` returns; it is left as it is.

    Raises:
        UserError: BasicSR has no such optimizer.
    """
    opt = deepcopy(dict(opt))
    degrades = 'RealESRGAN' in opt['model_type']
    kind = {(True, True): RealESRGANModel, (True, False): RealESRNetModel,
            (False, True): SRGANModel, (False, False): SRModel}[degrades, bool(opt.get('network_d'))]  # fmt: skip
    device = torch.device('cuda' if opt['num_gpu'] else 'cpu')
    with of_basicsr(device):
        try:
            model = kind(opt)
        except NotImplementedError as error:
            raise UserError('train:optim_g', f'BasicSR says: {error}.') from None
        if degrades and device.type != 'cuda':
            model.jpeger = _Contiguous(model.jpeger)
    model.name = kind.__name__
    return model
