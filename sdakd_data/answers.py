"""What teachers make of a batch, wherever it comes from: a forward pass, the pool, a cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Answer:
    """What a teacher makes of a batch, as far as it was asked for: its image ``(N, 3, H, W)``, its maps by tap."""

    image: torch.Tensor | None
    features: dict[str, torch.Tensor] = field(default_factory=dict)
