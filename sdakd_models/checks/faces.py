"""GCFSR, its model and its data sets come together, at one size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sdakd.compat import UserError
from sdakd_arch.families import family_of
from sdakd_models.scenario import FACES, Scenario

DATASET = 'FaceDataset'


def check(scenario: Scenario) -> None:
    """What the option file says by itself.

    Raises:
        UserError: GCFSR's model with other data sets, its data set with another model, or noise for others' generators.
    """
    faces, noise = scenario.faces, scenario.val.get('noise') or 'none'
    if noise != 'none' and not faces:
        raise UserError(f'val:noise: the generators of {scenario.model_type} take no noise; leave it out.')
    for phase, dataset in scenario.datasets.items():
        kind = dataset.get('type')
        if (kind == DATASET) != faces and kind is not None:
            other = f'{FACES} trains on {DATASET}' if faces else f'{DATASET} is for {FACES}'
            raise UserError(f'datasets:{phase}:type: {other}, not {kind if faces else scenario.model_type}.')
    if scenario.network_g and 'type' in scenario.network_g:
        _check_generator(scenario, 'network_g', scenario.network_g['type'], scenario.network_g)
    sizes = {phase: dataset.get('out_size') for phase, dataset in scenario.datasets.items()} if faces else {}
    for phase, size in sizes.items():
        first = next(iter(sizes))
        if size != sizes[first]:
            raise UserError(
                f'datasets:{phase}:out_size: {size} differs from the {sizes[first]} of datasets:{first}; write one.'
            )


def check_network(scenario: Scenario, where: str, network: nn.Module) -> None:
    """A generator that was built, from options or from what its file says.

    Raises:
        UserError: It is not of the kind or size of the model and its data.
    """
    _check_generator(scenario, where, type(network).__name__, {'out_size': getattr(network, 'out_size', None)})


def _check_generator(scenario: Scenario, where: str, kind: str, options: Mapping) -> None:
    """The type and size of a generator."""
    faces, makes_faces = scenario.faces, family_of({'type': kind}).faces
    if makes_faces != faces:
        fits = f'is trained by {FACES}' if makes_faces else f'is none of {FACES}'
        raise UserError(f'{where}: {kind} {fits}; correct it, or model_type.')
    data = next(iter(scenario.datasets.values()), {}).get('out_size')
    if faces and options.get('out_size') != data:
        raise UserError(
            f'{where}:out_size: {options.get("out_size")} differs from the {data} of the data sets; write one size.'
        )
