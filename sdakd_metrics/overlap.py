"""How much two distributions of numbers overlap: a diagnostic of a discriminator's outputs, not a loss."""

from __future__ import annotations

import torch


def overlap(one: torch.Tensor, other: torch.Tensor, bins: int = 50) -> torch.Tensor:
    """The overlap coefficient of two samples: 1 for equal distributions, 0 for separate ones.

    For densities p and q it is the integral of min(p, q). Here both are histograms over common bins b::

        overlap = sum_b min(p_b, q_b) = 1 - 1/2 sum_b |p_b - q_b|

    where p_b is the share of the values of ``one`` in bin b. The inner edges of the bins are the quantiles 1/bins, ...,
    (bins - 1)/bins of both samples taken together: so it is, as the integral is, the same for logits and for
    probabilities (for every increasing function of the values), and outliers do not stretch the bins. Two samples of
    n values from one distribution are expected to give 1 - sqrt(bins / (pi n)).

    Args:
        one, other: Values, in any shape; at least one each.
        bins: Number of bins.

    Returns:
        A scalar without gradient.
    """
    one, other = (values.detach().flatten() for values in (one, other))
    together = torch.cat([one, other]).sort().values
    ranks = torch.arange(1, bins, device=together.device) * together.numel() // bins
    edges = together[ranks]
    shares = [
        torch.bincount(torch.bucketize(values, edges, right=True), minlength=bins).float() / values.numel()
        for values in (one, other)
    ]
    return torch.minimum(*shares).sum()
