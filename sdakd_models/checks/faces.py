"""GCFSR, its model and its data sets come together, at one size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sdakd.compat import UserError

NOISES = ('none', 'random', 'fixed')
MODEL, DATASET = 'SDAKDGCFSRModel', 'FaceDataset'
NETWORKS = ('GCFSR', 'GCFSRBlind')


def check_faces(opt: Mapping) -> None:
    """What the option file says by itself.

    Raises:
        UserError: GCFSR's model with other data sets, its data set with another model, or a wrong ``val:noise``.
    """
    faces = opt['model_type'] == MODEL
    noise = (opt.get('val') or {}).get('noise') or 'none'
    if noise not in NOISES:
        raise UserError(f'val:noise: write none, random or fixed, not {noise!r}.')
    if noise != 'none' and not faces:
        raise UserError(f'val:noise: the generators of {opt["model_type"]} take no noise; leave it out.')
    for phase, dataset in opt['datasets'].items():
        kind = dataset.get('type')
        if (kind == DATASET) != faces and kind is not None:
            other = f'{MODEL} trains on {DATASET}' if faces else f'{DATASET} is for {MODEL}'
            raise UserError(f'datasets:{phase}:type: {other}, not {kind if faces else opt["model_type"]}.')
    check_generator(opt, 'network_g', (opt.get('network_g') or {}).get('type'), (opt.get('network_g') or {}))
    sizes = {phase: dataset.get('out_size') for phase, dataset in opt['datasets'].items()} if faces else {}
    for phase, size in sizes.items():
        first = next(iter(sizes))
        if size != sizes[first]:
            raise UserError(
                f'datasets:{phase}:out_size: {size} differs from the {sizes[first]} of datasets:{first}; write one.'
            )


def check_network(opt: Mapping, where: str, network: nn.Module) -> None:
    """A generator that was built, from options or from what its file says.

    Raises:
        UserError: It is not of the kind or size of the model and its data.
    """
    check_generator(opt, where, type(network).__name__, {'out_size': getattr(network, 'out_size', None)})


def check_generator(opt: Mapping, where: str, kind: str | None, options: Mapping) -> None:
    """The type and size of a generator; a type of None is somebody else's to refuse."""
    if kind is None:
        return
    faces = opt['model_type'] == MODEL
    if (kind in NETWORKS) != faces:
        fits = f'is trained by {MODEL}' if kind in NETWORKS else f'is none of {MODEL}'
        raise UserError(f'{where}: {kind} {fits}; correct it, or model_type.')
    data = next(iter(opt['datasets'].values()), {}).get('out_size')
    if faces and options.get('out_size') != data:
        raise UserError(
            f'{where}:out_size: {options.get("out_size")} differs from the {data} of the data sets; write one size.'
        )
