"""How far a teacher's answer to a training crop is from its answer in context; measured once, when a run starts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_arch.width import lookup
from sdakd_data.pool import ROOM
from sdakd_models.cast import Cast
from sdakd_models.precision import eagerly
from sdakd_models.scenario import Scenario

Run = Callable[[nn.Module, torch.Tensor], torch.Tensor]

CONTEXT = 24  # input pixels around a crop, where the image has them
ENOUGH = 36.0  # dB between a teacher's image of a crop and in context, below which a run is warned
MARGINS = (4, 8, 12, 16)  # that are proposed
HEAVY = 1e11  # multiplications of a pass in context above which a CPU makes one crop do


def reach(network: nn.Module) -> int:
    """Pixels on each side that an output depends on if all convolutions stand in sequence and at one resolution."""
    return sum(max(m.kernel_size) // 2 for m in network.modules() if isinstance(m, nn.Conv2d))


def check_context(cast: Cast, run: Run) -> None:
    """Logs the error of every teacher on training crops; warns where it is large, and says what would help.

    Only where the crop is below four times the teacher's :func:`reach`, and not for teachers that learn along or whose
    cached answers have context.

    Args:
        cast: The networks, with weights.
        run: A forward pass in the precision of the training.
    """
    scenario, crop = cast.scenario, cast.scenario.input_crop
    if scenario.margin > scenario.border:  # the pool shows teachers more than a crop
        crop += 2 * scenario.margin + ROOM
    passed_over = {name for name, entry in scenario.teachers.items() if entry.cache or entry.cotrain}
    names = [name for name, each in cast.teachers.items() if crop < 4 * reach(each) and name not in passed_over]
    if not names:
        return
    weights = max(sum(p.numel() for p in cast.teachers[name].parameters()) for name in names)
    count = 3 if cast.device.type == 'cuda' else 1 if weights * (crop + 2 * CONTEXT) ** 2 > HEAVY else 2
    images = [image.to(cast.device) for image in _images(scenario, crop, count)]
    for name in names if images else ():
        _report(scenario, name, crop, *_errors(cast, run, name, crop, images))


def _images(scenario: Scenario, crop: int, count: int) -> Iterator[torch.Tensor]:
    """The middle of some training images, ``(1, 3, h, w)``: a crop with as much context as there is.

    Pairs have their input; of a ground truth to degrade, the input is its reduction by an antialiased bicubic filter.
    """
    options, scale = dict(scenario.datasets['train']), scenario.scale
    cls = lookup(DATASET_REGISTRY, options.get('plain', options['type']), 'datasets:train:type')
    dataset = cls(deepcopy({**options, 'phase': 'val', 'scale': scale}))  # pairs come whole in validation
    numbers = sorted({len(dataset) * (2 * part + 1) // (2 * count) for part in range(count)})
    states = random.getstate(), np.random.get_state()  # data sets draw numbers; the run must not notice
    items = [dataset[number] for number in numbers]
    random.setstate(states[0])
    np.random.set_state(states[1])
    for item in items:
        unit = 1 if 'lq' in item else scale
        image = item['lq' if 'lq' in item else 'gt'][None]
        around = min(CONTEXT, *((side // unit - crop) // 2 for side in image.shape[2:])) // 4 * 4
        if around <= 0:
            continue
        side = (crop + 2 * around) * unit
        top, left = ((length - side) // 2 for length in image.shape[2:])
        image = image[:, :, top : top + side, left : left + side]
        if unit > 1:
            image = F.interpolate(image, scale_factor=1 / unit, mode='bicubic', antialias=True).clamp(0, 1)
        yield image


@torch.no_grad()
def _errors(
    cast: Cast, run: Run, name: str, crop: int, images: list[torch.Tensor]
) -> tuple[dict[int, float], dict[str, float]]:
    """The image's error in dB by margin, and the feature maps' over their variance by tap, inside the run's margin."""
    network, taps, inside = cast.teachers[name], cast.taps.get(name), cast.scenario.margin

    def answer(image: torch.Tensor) -> dict[str, torch.Tensor]:
        with taps or nullcontext(), eagerly():
            found = run(network, image, name).clamp(0, 1)
        return {**({tap: maps.float() for tap, maps in taps.pop().items()} if taps else {}), '': found}

    squares: dict[tuple[str, int], list[float]] = {}
    for image in images:
        around = (image.shape[-1] - crop) // 2
        whole, part = answer(image), answer(image[:, :, around : around + crop, around : around + crop])
        for tap, maps in part.items():
            for margin in {inside, *(MARGINS if tap == '' else ())}:
                if 2 * margin < crop:
                    unit = maps.shape[-1] / crop
                    first, last = round(margin * unit), round((crop - margin) * unit)
                    shift = round(around * unit)
                    wanted = whole[tap][:, :, first + shift : last + shift, first + shift : last + shift]
                    error = (maps[:, :, first:last, first:last] - wanted).double().square().mean()
                    scale = 1 if tap == '' else wanted.double().var(unbiased=False) + 1e-8
                    squares.setdefault((tap, margin), []).append((error / scale).item())
    means = {key: sum(values) / len(values) for key, values in squares.items()}
    decibels = {margin: -10 * float(np.log10(mean + 1e-12)) for (tap, margin), mean in means.items() if tap == ''}
    return dict(sorted(decibels.items())), {tap: mean for (tap, _), mean in means.items() if tap}


def _report(scenario: Scenario, name: str, crop: int, decibels: dict[int, float], features: dict[str, float]) -> None:
    margin = scenario.margin
    maps = ', '.join(f'{tap} {error:.2g}' for tap, error in features.items())
    found = (
        f'{name}: inside a border of {margin}, its image of crops of {crop} input pixels is {decibels[margin]:.1f} dB '
        f'from what it makes of them in context' + (f', its feature maps {maps} of their variance' if maps else '')
    )
    if decibels[margin] >= ENOUGH:
        get_root_logger().info(f'{found}.')
        return
    better = [m for m, value in decibels.items() if m > margin and 4 * m <= crop and value >= ENOUGH]
    remedy = (
        f'write train:teacher_margin: {better[0]} ({decibels[better[0]]:.1f} dB)'
        if better
        else f'raise gt_size, for example to {2 * crop * scenario.scale}'
    )
    get_root_logger().warning(f'{found}, an artefact of padding that the student would imitate; {remedy}.')
