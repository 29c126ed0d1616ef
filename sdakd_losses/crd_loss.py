"""Content relations (CRD): how rows, columns and patches of one image relate to each other, in student and teacher.

Source: Exploring Content Relationships for Distilling Efficient GANs, sections 3.1 and 3.2, on the distance and the
angle of Relational Knowledge Distillation (Park et al., CVPR 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GREY_LEVEL = 1 / 255
IDENTICAL = 1e-12  # a squared distance below this share of the squared lengths is rounding
NEAR = 1e-3
CHUNK = 2**20


def rows(image: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` as ``H`` slices of every image, ``(N, H, C * W)``."""
    return image.transpose(1, 2).flatten(2)


def columns(image: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` as ``W`` slices of every image, ``(N, W, C * H)``."""
    return image.permute(0, 3, 1, 2).flatten(2)


def patches(image: torch.Tensor, number: int) -> torch.Tensor:
    """Square patches without overlap, ``number`` of them along the shorter side; what is left over is not used.

    Returns:
        ``(N, n, C * side**2)`` with ``side = min(H, W) // number``, at least one pixel.
    """
    side = max(1, min(image.shape[2:]) // number)
    return F.unfold(image, side, stride=side).mT


def instances(image: torch.Tensor) -> torch.Tensor:
    """The images of the batch as slices of one: ``(1, N, C * H * W)``."""
    return image.flatten(1)[None]


def distances(slices: torch.Tensor) -> torch.Tensor:
    """Euclidean distances between slices in units of their mean.

    The mean is that of the positive distances of the same image, as in RKD, but no less than the distance that one grey
    level at every pixel makes (a choice of this project): an image that is flat but for rounding has no relations worth
    learning. The distances come from the Gram matrix of the centred slices in double precision, where the difference of
    near slices survives. The gradient of a distance of zero is zero.

    Args:
        slices: ``(B, n, m)``, values in [0, 1].

    Returns:
        ``(B, n, n)`` in the precision of ``slices``, at least single; symmetric in every bit.
    """
    kind = torch.promote_types(slices.dtype, torch.float32)
    centred = slices.double()
    centred = centred - centred.mean(1, keepdim=True)
    gram = centred @ centred.mT
    lengths = gram.diagonal(dim1=1, dim2=2)
    lengths = lengths[:, :, None] + lengths[:, None]
    squared = lengths - (gram + gram.mT)
    same = squared <= IDENTICAL * lengths
    # the root's derivative at zero is infinite, and infinity times zero is no number: the root of one instead
    distance = torch.where(same, 0.0, torch.where(same, 1.0, squared).sqrt())
    mean = distance.sum((1, 2), keepdim=True) / (~same).sum((1, 2), keepdim=True).clamp(min=1)
    return (distance / mean.clamp(min=GREY_LEVEL * math.sqrt(slices.shape[2]))).to(kind)


def _cosines(squared: torch.Tensor, inverse: torch.Tensor, vertices: slice) -> torch.Tensor:
    """Cosines of the angles at ``vertices``, ``(B, vertices, n, n)``, by the law of cosines."""
    sides, factors = squared[:, vertices], inverse[:, vertices]
    cosines = sides[..., None] + sides[..., None, :]
    return cosines.sub_(squared[:, None]).mul_(factors[..., None]).mul_(0.5 * factors[..., None, :])


class _AngleLoss(torch.autograd.Function):
    """Huber loss between the cosines of all triplets, for squared distances ``(B, n, n)`` of student and teacher.

    Value and gradient are found in one pass over chunks of vertices: of the ``B * n**3`` cosines, a few megabytes exist
    at a time, and nothing but a matrix of the size of the distances is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        batch, number, _ = student.shape
        count = batch * number**3
        inverse, teacher_inverse = (student + NEAR**2).rsqrt(), (teacher + NEAR**2).rsqrt()
        learns = ctx.needs_input_grad[0]
        at_vertex, across = torch.zeros_like(student), torch.zeros_like(student)
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        step = max(1, CHUNK // (batch * number**2))
        for start in range(0, number, step):
            vertices = slice(start, start + step)
            cosines = _cosines(student, inverse, vertices)
            residual = cosines - _cosines(teacher, teacher_inverse, vertices)
            slope = residual.clamp(-1, 1)  # Huber's derivative h; its value is h * (residual - h / 2)
            total += torch.dot(slope.flatten(), residual.flatten()) - 0.5 * torch.dot(slope.flatten(), slope.flatten())
            if not learns:
                continue
            factors = inverse[:, vertices]
            # cos = (D_ij + D_kj - D_ik) f_ij f_kj / 2 with f = (D + NEAR^2)^(-1/2), symmetric in i and k
            turning = cosines.mul_(slope).sum(3)
            slope.mul_(factors[..., None, :])
            at_vertex[:, vertices] = factors * slope.sum(3) - factors.square() * turning
            across += slope.mul_(factors[..., None]).sum(1)
        ctx.save_for_backward((at_vertex - 0.5 * across) / count if learns else None)
        return (total / count).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


@LOSS_REGISTRY.register()
class ContentRelationLoss(nn.Module):
    """Relations between the slices of the student's image against those between the slices of the teacher's.

    For every granularity ``g`` (rows, columns, patches, or whole images of the batch) with slices ``x_1 ... x_n`` of an
    image and ``D_ij = |x_i - x_j| / mean of the positive |x_a - x_b|``::

        loss = loss_weight * sum over g of  w_g * (distance * mean_ij  huber(D_ij - D'_ij)
                                                   + angle   * mean_ijk huber(cos_ijk - cos'_ijk))
        cos_ijk = <x_i - x_j, x_k - x_j> / (|x_i - x_j| |x_k - x_j|)
        huber(r) = r^2 / 2 for |r| <= 1, |r| - 1/2 beyond

    where primes mark the teacher. The relations, the Huber loss, ``angle: 2`` and 8 x 8 patches (32 pixels of 256) are
    CRD's; its ``loss_weight`` is 25 for CycleGAN and 2.5 for Pix2Pix. Means run over all ``n^2`` pairs and ``n^3``
    triplets, degenerate ones included, and over the images. Choices of this project: patches are given by their
    number, so that they scale with the crop; see :func:`distances` for flat images; and in the angle, a length ``d`` of
    a side (in units of the mean) is taken as ``sqrt(d^2 + NEAR^2)``, which keeps the gradient of slices that are almost
    the same from growing without bound.

    Time grows with ``n^3``; see ``docs/methods/crd.md``. The gradient can be taken once.

    Args:
        loss_weight: Factor of the result.
        row, column, patch: Weights of the granularities; 0 leaves one out.
        instance: Weight of the relations between the images of the batch, RKD itself, for comparison.
        distance, angle: Weights of pairs and triplets.
        patches: Patches along the shorter side.

    Raises:
        ValueError: A value out of range, as ``key: what to do``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        row: float = 1.0,
        column: float = 1.0,
        patch: float = 1.0,
        instance: float = 0.0,
        distance: float = 1.0,
        angle: float = 2.0,
        patches: int = 8,
    ) -> None:
        super().__init__()
        self.loss_weight, self.distance, self.angle, self.patches = loss_weight, distance, angle, patches
        self.granularities = {'row': row, 'column': column, 'patch': patch, 'instance': instance}
        relations = {'distance': distance, 'angle': angle}
        for key, value in {**self.granularities, **relations}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f'{key}: write a number of at least 0, not {value!r}')
        for group in (self.granularities, relations):
            if not any(group.values()):
                raise ValueError(f'{", ".join(group)}: all are 0, leave at least one on')
        if isinstance(patches, bool) or not isinstance(patches, int) or patches < 2:
            raise ValueError(f'patches: write a whole number of at least 2, not {patches!r}')

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compares images of equal shape ``(N, C, H, W)`` in [0, 1]. The teacher's is detached. Returns a scalar."""
        cut: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            'row': rows,
            'column': columns,
            'patch': lambda image: patches(image, self.patches),
            'instance': instances,
        }
        teacher, total = teacher.detach(), 0.0
        for name, weight in self.granularities.items():
            if weight:
                total = total + weight * self.relations(cut[name](student), cut[name](teacher))
        return self.loss_weight * total

    def relations(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Distance and angle term, weighted, of slices ``(B, n, m)``."""
        student, teacher, total = distances(student), distances(teacher), 0.0
        if self.distance:
            total = self.distance * F.smooth_l1_loss(student, teacher)
        if self.angle:
            total = total + self.angle * _AngleLoss.apply(student.square(), teacher.square())
        return total
