"""The outputs of discriminators on generated images, and their distributions: shared by figures 2 and 3.

The networks are U-Net discriminators (Real-ESRGAN's ``UNetDiscriminatorSN``), which give one logit for every pixel, and
GCFSR's (``GCFSRDiscriminator``), which give one for a face: above 0 they take it for real, below for generated. They
run in evaluation mode, with the spectral norms of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import COLOURS, DASHES, UserError
from torch import nn

from sdakd.files.generators import options_beside
from sdakd_arch.weights import describe, infer_network, load_into, read_weights
from sdakd_arch.width import build

BINS = 200  # between the quantiles below; what lies outside is counted in one bin on each side, and not drawn
FEWEST, PER_BIN = 10, 4  # bins where there is one output for an image, and how many of these are worth a bin
TAILS = 0.005
PIXELS, FACES = 'UNetDiscriminatorSN', 'GCFSRDiscriminator'


@dataclass
class Discriminator:
    """A discriminator that is ready to run.

    Args:
        path: The file.
        network: Its options as BasicSR's ``build_network`` takes them.
        module: Maps ``(N, 3, H, W)`` to logits ``(N, 1, H, W)``, or ``(N, 1)``.
    """

    path: Path
    network: dict
    module: nn.Module

    def __call__(self, image: torch.Tensor) -> np.ndarray:
        """The logits for one image ``(1, 3, H, W)``, about [0, 1]: float32, ``(H, W)``, of GCFSR's ``(1, 1)``.

        The image is padded by repetition to the multiple of 8 that the U-Net needs, and the logits are cut back.

        Raises:
            UserError: An output is not finite, or the discriminator takes images of another size.
        """
        height, width = image.shape[-2:]
        with torch.inference_mode():
            if self.network['type'] == FACES:
                if (size := self.module.out_size) != height or size != width:
                    raise UserError(
                        f'{self.path}: the discriminator takes faces of {size}x{size} pixels, and the generator makes '
                        f'{width}x{height}; give a generator of its size.'
                    )
                logits = self.module(2 * image - 1).numpy()
            else:
                padded = nn.functional.pad(image, (0, -width % 8, 0, -height % 8), mode='replicate')
                logits = self.module(padded)[0, 0, :height, :width].numpy()
        if not np.isfinite(logits).all():
            raise UserError(f'{self.path}: the discriminator gives outputs that are not finite; its training diverged.')
        return logits


def open_discriminator(path: str, where: str) -> Discriminator:
    """Opens a discriminator: BasicSR's ``net_d_*.pth``, Real-ESRGAN's ``*_netD.pth``.

    Whether a U-Net has skip connections cannot be told from its weights: it is read from the option file of the BasicSR
    experiment that the checkpoint lies in, and taken for granted elsewhere, as Real-ESRGAN's have them.

    Raises:
        UserError: A missing or damaged file, or another network.
    """
    state = read_weights(path, 'params', where)
    network = infer_network(state)
    if network is None or network['type'] not in (PIXELS, FACES):
        found = f'holds {describe(network)}' if network else 'holds another network'
        raise UserError(f'{where}: {path} {found}; give a {PIXELS} or a {FACES} (net_d_... of an experiment).')
    beside = (options_beside(Path(path)) or {}).get('network_d')
    if isinstance(beside, Mapping) and beside.get('type') == network['type'] == PIXELS:
        network['skip_connection'] = beside.get('skip_connection', True)
    module = build(network, where).eval().requires_grad_(False)
    load_into(module, state, path, where)
    return Discriminator(Path(path), network, module)


@dataclass
class Densities:
    """Histograms over the same bins.

    Args:
        edges: Inner edges, in logits: ``BINS + 1`` where there are outputs enough.
        shares: For every label, the share of outputs below, between the edges and above: one bin more than edges.
    """

    edges: np.ndarray
    shares: dict[str, np.ndarray]

    def density(self, label: str) -> np.ndarray:
        """Probability density between the edges, per logit."""
        return self.shares[label][1:-1] / np.diff(self.edges)

    def overlap(self, one: str, other: str) -> float:
        """The overlap coefficient: the integral of the smaller of two densities, 1 for equal ones, 0 for apart."""
        return float(np.minimum(self.shares[one], self.shares[other]).sum())

    def overlaps(self) -> list[dict]:
        """The overlap of every pair, for JSON."""
        labels = list(self.shares)
        return [
            {'a': one, 'b': other, 'overlap': self.overlap(one, other)}
            for number, one in enumerate(labels)
            for other in labels[number + 1 :]
        ]


def densities(outputs: Mapping[str, np.ndarray]) -> Densities:
    """Histograms of flat arrays of outputs, over a range that holds the central 99% of every one."""
    low = min(float(np.quantile(values, TAILS, method='lower')) for values in outputs.values())
    high = max(float(np.quantile(values, 1 - TAILS, method='higher')) for values in outputs.values())
    if high - low < 1e-6:  # a discriminator that says the same of every pixel
        low, high = low - 0.5, high + 0.5
    fewest = min(values.size for values in outputs.values())
    edges = np.linspace(low, high, 1 + min(BINS, max(FEWEST, fewest // PER_BIN)))
    shares = {}
    for label, values in outputs.items():
        inner = np.histogram(values, edges)[0]
        counts = np.array([np.count_nonzero(values < edges[0]), *inner, np.count_nonzero(values > edges[-1])])
        shares[label] = counts / values.size
    return Densities(edges, shares)


def statistics(values: np.ndarray) -> dict:
    """Mean, standard deviation, quantiles (in logits) and the share above 0 of a flat array, for JSON."""
    low, middle, high = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
    mean, spread = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    called_real = float((values > 0).mean())
    return {'mean': mean, 'std': spread, 'p05': low, 'median': middle, 'p95': high, 'called_real': called_real}


def style(number: int) -> dict:
    """Colour and dash of the line with this number."""
    return {'color': COLOURS[number % len(COLOURS)], 'linestyle': DASHES[number % len(DASHES)]}


def draw_densities(axes, found: Densities, log: bool) -> None:
    """Draws a line per label, and where the discriminator is undecided; ``log`` is for widths that differ much."""
    heights = {label: found.density(label) for label in found.shares}
    if log:
        floor = min(values[values > 0].min() for values in heights.values())
        heights = {label: np.maximum(values, floor / 2) for label, values in heights.items()}
        axes.set_yscale('log')
        axes.set_ylim(floor, 2 * max(values.max() for values in heights.values()))
    for number, (label, values) in enumerate(heights.items()):
        look = style(number)
        axes.stairs(values, found.edges, baseline=None, label=label, linewidth=1.2, zorder=2, **look)
        axes.stairs(values, found.edges, fill=True, color=look['color'], alpha=0.12, linewidth=0, zorder=1)
    if found.edges[0] < 0 < found.edges[-1]:
        axes.axvline(0, color='0.6', linewidth=0.6, zorder=0)
    if not log:
        axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.locator_params(axis='x', nbins=5)
    axes.set_xlabel('discriminator output (logit)')
    axes.set_ylabel('density (per logit)')
    # above the axes, where no distribution can reach it
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4, handlelength=2.6)
