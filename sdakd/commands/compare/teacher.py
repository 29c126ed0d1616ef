"""The teacher of a comparison: a weights file, or the block ``teacher`` of an option file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdakd.commands.compare.config import Config, locate
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd.option_files import read_merged
from sdakd.shipped import option_file
from sdakd_arch.families import family_of
from sdakd_arch.weights import describe
from sdakd_arch.width import build_on_meta, scale_of


@dataclass
class Teacher:
    """Who teaches in all cells.

    Args:
        weights: Its file.
        network: Its options.
        scale: Of its images over their inputs; None for faces, which have any factor.
        keys: Further keys of the block ``teacher`` of cells.
    """

    weights: Path
    network: dict
    scale: int | None
    keys: dict = field(default_factory=dict)


def open_teacher(config: Config) -> Teacher:
    """Opens it, and checks that it is one for the comparison's data.

    Raises:
        UserError: The file is missing or damaged, or makes other images than the data are for.
    """
    found = _of_option_file(config.teacher) if config.teacher.endswith(('.yml', '.yaml')) else _of_weights(config)
    faces, wanted = family_of(found.network).faces, config.data.faces is not None
    if faces != wanted:
        kind = describe(found.network)
        if faces:
            raise UserError('teacher', f'{found.weights} holds {kind}, which makes faces; write faces under data.')
        raise UserError('data:faces', f'{found.weights} holds {kind}, no generator of faces; name one as teacher.')
    if faces:
        size = found.network.get('out_size')
        for factor in (*config.data.faces.factors, *config.factors()):
            if size % factor or size // factor < 4:
                raise UserError(
                    'data:faces',
                    f'the factor {factor} does not fit the faces of {size} pixels of {found.weights.name}: it must '
                    'divide the size and leave 4 pixels.',
                )
    return found


def _of_weights(config: Config) -> Teacher:
    weights = locate(config.teacher, 'teacher')
    if weights.suffix == '.onnx':
        raise UserError(f'teacher: {weights} is an exported graph; give the .pth or .safetensors behind it.')
    opened = open_network(weights, 'teacher', faces=True)
    return Teacher(weights, dict(opened.network), opened.scale)


def _of_option_file(name: str) -> Teacher:
    file = option_file(name)
    block = read_merged(file).get('teacher')
    if not isinstance(block, Mapping) or not isinstance(block.get('weights'), str):
        raise UserError('teacher', f'{file} has no block teacher with weights; name another file, or a weights file.')
    weights = locate(block['weights'], 'teacher')
    keys = {key: block[key] for key in ('param_key',) if block.get(key)}
    network = block.get('network')
    if not isinstance(network, Mapping):
        opened = open_network(weights, 'teacher', faces=True)
        return Teacher(weights, dict(opened.network), opened.scale, keys)
    faces = family_of(network).faces
    return Teacher(weights, dict(network), None if faces else scale_of(build_on_meta(network, 'teacher'), 'teacher'),
                   keys)  # fmt: skip
