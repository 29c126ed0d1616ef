"""Distillation of GCFSR: faces at any factor, with the conditioning value, shared noise and GCFSR's order of a step."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from sdakd_models.parts import in_parts
from sdakd_models.precision import eagerly
from sdakd_models.scenario import Scenario
from sdakd_models.sdakd_model import SDAKDModel


@MODEL_REGISTRY.register()
class SDAKDGCFSRModel(SDAKDModel):
    """:class:`SDAKDModel` on faces, for :class:`sdakd_arch.gcfsr.gcfsr_arch.GCFSR`.

    Images, and with them all losses, are in [0, 1], as for every model here; the networks see [-1, 1]. A difference of
    images is half of what it is in GCFSR's recipe, so its L1 weight of 1 is 2 here. Teacher and student get the same
    noise. Validation adds none, or what ``val:noise`` says: ``random`` noise is drawn anew for every image in every
    validation (as in GCFSR), ``fixed`` noise depends on the image's name only. The discriminator learns before the
    generator, as in GCFSR, and both see one image of the student, where GCFSR makes a second one.
    """

    batch = (*SDAKDModel.batch, 'in_size', 'paths', 'noise')
    has_borders = False  # whole faces
    discriminators_first = True

    @classmethod
    def noise_batch(cls, scenario: Scenario, number: int) -> dict[str, torch.Tensor]:
        factor = scenario.datasets['train']['factors'][0]
        in_size = torch.full((number, 1), 16 * factor / scenario.crop)
        return {**super().noise_batch(scenario, number), 'in_size': in_size}

    def take(self, data: Mapping) -> None:
        """Takes a batch of :class:`sdakd_data.face_dataset.FaceDataset` and, in training, draws its noise."""
        super().take(data)
        self.in_size = data['in_size'].to(self.device)
        self.paths = data.get('gt_path')
        if self.is_train:
            generators = (getattr(self, 'bare_student', None), *self.teachers.values())
            self.noise = next(network for network in generators if network is not None).make_noise(len(self.lq))

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """From [0, 1] to [-1, 1]."""
        return 2 * image - 1

    def generate(self, network: nn.Module, role: str) -> torch.Tensor:
        """The image of a generator for the current input, factor and noise."""
        with self.autocast(role):
            inputs = self.as_input(self.lq), self.in_size, self.noise
            return (in_parts(network, self.micro_batch, *inputs).float().contiguous() + 1) / 2

    @torch.no_grad()
    def upscale(self, network: nn.Module) -> torch.Tensor:
        """The image of a generator with the noise of ``val:noise``, the same for every network; there are no tiles."""
        with eagerly():
            return (network(self.as_input(self.lq), self.in_size, self._validation_noise(network)) + 1) / 2

    def _validation_noise(self, network: nn.Module) -> list[torch.Tensor] | None:
        kind = (self.opt.get('val') or {}).get('noise') or 'none'
        if kind == 'none':
            return None
        facts = () if kind == 'fixed' else (self.opt['manual_seed'], getattr(self, 'last_iter', 0))
        names = [os.path.splitext(os.path.basename(path))[0] for path in self.paths]
        return [torch.cat(maps) for maps in zip(*(network.noise_of(name, *facts) for name in names), strict=True)]
