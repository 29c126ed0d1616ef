"""What stands for files in a rehearsal: the discriminator yet to be trained; in a dry run, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import torch
from basicsr.archs import vgg_arch

from sdakd.commands.compare import missing
from sdakd.commands.compare.matrix import Matrix
from sdakd_arch.width import build
from sdakd_models.checks.vgg import VGG

FOLDER = Path('experiments/pretrained_models')


def put(options: dict, matrix: Matrix, folder: Path) -> None:
    """Names stand-ins in the options of a cell, in place of what is not there.

    Args:
        options: They are changed.
        matrix: Of the comparison.
        folder: Receives the stand-ins, and has the place of the folder that holds ``experiments/``.
    """
    trained = matrix.discriminator_run()
    for name, entry in (options.get('discriminators') or {}).items():
        later = trained is not None and entry.get('weights') == str(trained.result)
        if entry.get('weights') and not Path(entry['weights']).is_file() and (later or missing.noting()):
            entry['weights'] = _network(entry['network'], folder / f'discriminator_{name}.pth')
            entry.pop('param_key', None)
    if not missing.noting():
        return
    path = options['path']
    if path.get('pretrain_network_d') and not Path(path['pretrain_network_d']).is_file():
        path['pretrain_network_d'] = None
    teachers = {'teacher': options['teacher'], **(options.get('teachers') or {})}
    for name, teacher in teachers.items():
        if not Path(teacher['weights']).is_file() and teacher.get('network'):
            teacher['weights'] = _network(teacher['network'], folder / f'{name}.pth')
            teacher.pop('param_key', None)
    for block in _blocks(options):
        if 'backbone' in block and block['backbone'].startswith('vgg') and not Path(block['weights']).is_file():
            block['weights'] = _vgg(block['backbone'].partition('-')[0], folder)
        elif (kind := note_vgg(block)) is not None:
            _vgg(kind, folder)


def note_vgg(block: object) -> str | None:
    """Notes the VGG of a published perceptual term where it is missing, and says which one it is."""
    if not isinstance(block, Mapping) or block.get('type') != 'PerceptualLoss':
        return None
    if (kind := block.get('vgg_type', 'vgg19')) not in VGG:
        return None
    file = FOLDER / VGG[kind]
    if any(place.is_file() for place in (file, Path(torch.hub.get_dir(), 'checkpoints', VGG[kind]))):
        return None
    missing.note(f'methods ({kind} of the perceptual term)', missing.how_to_get(file.absolute()))
    return kind


def _blocks(options: dict) -> Iterator[dict]:
    return (block for block in options['train'].values() if isinstance(block, dict))


def _network(network: dict, file: Path) -> str:
    if not file.is_file():
        torch.save({'params': build(network, 'network').state_dict()}, file)
    return str(file)


@cache
def _layers(kind: str) -> dict[str, torch.Tensor]:
    import torchvision

    state = getattr(torchvision.models, kind)(weights=None).state_dict()
    # nobody looks at the classifier, which is most of the file
    return {
        key: torch.zeros(1).expand_as(value) if key.startswith('classifier') else value for key, value in state.items()
    }


def _vgg(kind: str, folder: Path) -> str:
    """A VGG of random numbers where trainings look for the published one."""
    file = folder / FOLDER / VGG[kind]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_layers(kind), file)
    vgg_arch.VGG_PRETRAIN_PATH = str(file)
    return str(file)
