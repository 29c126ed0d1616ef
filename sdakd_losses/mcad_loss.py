"""MCAD-KD's contrast: the student's image is nearer to the teacher's of the same input than to those of others."""

from __future__ import annotations

import math

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_losses.shared import gather_of_all


def contrast(student: torch.Tensor, teacher: torch.Tensor, tau: float, first: int = 0) -> torch.Tensor:
    """InfoNCE without the positive pair in its denominator, as MCAD-KD has it.

    With the embeddings ``s_i`` of the student and ``t_j`` of the teacher, all of length 1::

        mean over i of  log(sum over j != i of exp(<s_i, t_j> / tau)) - <s_i, t_i> / tau

    Args:
        student: Embeddings ``(n, d)``, the anchors.
        teacher: Embeddings ``(m, d)``, ``m >= n``; the positive of the ``i``-th anchor is number ``first + i``.
        tau: The temperature.
        first: See there.

    Returns:
        A scalar; 0 where there is nothing but positives.
    """
    similarities = student @ teacher.mT / tau
    if len(teacher) < 2:
        return 0 * similarities.sum()
    positive = torch.zeros_like(similarities, dtype=torch.bool)
    positive[:, first : first + len(student)].fill_diagonal_(True)
    others = similarities.masked_fill(positive, -math.inf).logsumexp(1)
    return (others - similarities[positive]).mean()


@LOSS_REGISTRY.register()
class ContrastiveImageLoss(nn.Module):
    """The student's image against the teacher's by contrast, as a whole and in patches: MCAD-KD.

    With :func:`contrast` ``C`` of the embeddings of all images of the batch by the head ``h``, and of all patches of
    all images by the head ``p``::

        loss = loss_weight * (image_weight * C(h(student), h(teacher))
                              + patch_weight * C(p(patches of student), p(patches of teacher)))
        h: 3x3 convolution to d/2, ReLU, mean over positions, linear map to d, length 1
        p: 3x3 convolution to d/4, ReLU, 3x3 convolution to d/2, ReLU, mean over positions, linear map to d, length 1

    Ko et al., "Multi-Scale Contrastive-Adversarial Distillation for Super-Resolution", ICCV Workshops 2025, by its
    public code: the heads, ``d``, ``tau`` and the weights are published. The heads stay as they were drawn and ``tau``
    as it is given, because that code creates both after the optimizer, which never gets them.

    Choices of this project: the heads are drawn from ``seed``, so that all processes and resumed runs have the same; a
    patch of the student and its positive are at the same place, where the code draws one place for each; all images of
    a batch are cut at the same places; a patch is no larger than half of the image.

    Args:
        loss_weight: Factor of the result.
        image_weight, patch_weight: Of the two levels; 0 leaves one out.
        tau: The temperature.
        patches: Of an image, drawn anew in every call.
        patch_size: Their side in pixels.
        embedding: ``d``.
        seed: Of the heads.

    Raises:
        ValueError: A value out of range, as ``key: what to do``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        image_weight: float = 0.3,
        patch_weight: float = 0.7,
        tau: float = 0.07,
        patches: int = 8,
        patch_size: int = 48,
        embedding: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.loss_weight, self.image_weight, self.patch_weight = loss_weight, image_weight, patch_weight
        self.tau, self.patches, self.patch_size = tau, patches, patch_size
        if not (image_weight or patch_weight):
            raise ValueError('image_weight, patch_weight: both are 0, leave at least one on')
        if not tau > 0:
            raise ValueError(f'tau: write a number above 0, not {tau!r}')
        for key, value, least in (('patches', patches, 1), ('patch_size', patch_size, 1), ('embedding', embedding, 4)):
            if value < least:
                raise ValueError(f'{key}: write a whole number of at least {least}, not {value!r}')
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            half, quarter = embedding // 2, embedding // 4
            self.image_head = _head([3, half], embedding)
            self.patch_head = _head([3, quarter, half], embedding)
        self.requires_grad_(False)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compares images of equal shape ``(N, 3, H, W)`` in [0, 1]. The teacher's is detached. Returns a scalar."""
        total = torch.zeros((), dtype=student.dtype, device=student.device)
        if self.image_weight:
            total = total + self.image_weight * self._contrast(self.image_head, student, teacher)
        if self.patch_weight:
            places = self._places(*student.shape[2:])
            cut = (torch.cat([image[place] for place in places]) for image in (student, teacher))
            total = total + self.patch_weight * self._contrast(self.patch_head, *cut)
        return self.loss_weight * total

    def _contrast(self, head: nn.Module, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            known, first = gather_of_all(F.normalize(head(teacher), dim=1))
        return contrast(F.normalize(head(student), dim=1), known, self.tau, first)

    def _places(self, height: int, width: int) -> list[tuple]:
        side = max(1, min(self.patch_size, height // 2, width // 2))
        # drawn on the CPU, so that a GPU is not waited for
        tops, lefts = (torch.randint(length - side + 1, (self.patches,)).tolist() for length in (height, width))
        return [(..., slice(top, top + side), slice(left, left + side)) for top, left in zip(tops, lefts, strict=True)]


def _head(channels: list[int], embedding: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for own, following in zip(channels, channels[1:], strict=False):
        layers += [nn.Conv2d(own, following, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], embedding))
