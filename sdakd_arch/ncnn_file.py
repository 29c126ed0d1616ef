"""ncnn's files, ``NAME.param`` (the graph, text) and ``NAME.bin`` (the weights), read as the networks that they hold.

Families of architectures say which graphs are theirs (:meth:`sdakd_arch.families.base.Family.from_ncnn`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from sdakd.compat import UserError
from sdakd_arch.families import FAMILIES
from sdakd_arch.file_kinds import is_safetensors, stand_in
from sdakd_arch.ncnn_graph import Graph, Layer, NcnnError, Placed

MAGIC = '7767517'
LARGEST_TEXT = 16 << 20  # bytes; RRDBNet-23's graph has 116,029
FLOAT16, FLOAT32 = 0x01306B47, 0
OTHERS = {0x000D4B38: 'its weights are 8-bit integers', 0x0002C056: 'its weights are scaled for 8-bit integers'}


def is_ncnn(path: str | os.PathLike) -> bool:
    """Whether a file is ncnn's by its ending; others, too, write ``.bin``, and are told by the first bytes."""
    path = Path(path)
    if path.suffix != '.bin':
        return path.suffix == '.param'
    if path.with_suffix('.param').is_file():
        return True
    try:
        with open(path, 'rb') as file:
            head = file.read(16)
    except OSError:
        return False
    return not (head.startswith((b'PK', b'\x80')) or is_safetensors(head))


def _parameter(word: str) -> tuple[int, float | list[float]]:
    """``key=number`` or ``key=count,number,...``"""
    key, _, value = word.partition('=')
    if int(key) > -23300:
        return int(key), float(value)
    count, *numbers = value.split(',')
    if int(count) != len(numbers):
        raise ValueError
    return int(key), [float(number) for number in numbers]


def _parse(text: str) -> list[Layer]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise NcnnError(f'it does not begin with {MAGIC}, as every .param of ncnn does')
    try:
        layers, blobs = map(int, lines[1])
    except (IndexError, ValueError):
        raise NcnnError('its second line does not hold the counts of layers and blobs') from None
    if layers != len(lines) - 2:
        raise NcnnError(f'it announces {layers} layers and holds {len(lines) - 2}')
    graph, made = [], set()
    for number, words in enumerate(lines[2:], 3):
        try:
            kind, name, inputs, outputs = words[0], words[1], int(words[2]), int(words[3])
            end = 4 + inputs + outputs
            if inputs < 0 or outputs < 0 or len(words) < end:
                raise ValueError
            names = words[4:end]
            parameters = dict(map(_parameter, words[end:]))
        except (IndexError, ValueError):
            raise NcnnError(f'line {number} is no layer of ncnn ({" ".join(words)[:60]})') from None
        layer = Layer(kind, name, tuple(names[:inputs]), tuple(names[inputs:]), parameters)
        for blob in layer.inputs:
            if blob not in made:
                raise NcnnError(f'its layer {layer} reads {blob}, which no layer before it makes')
        for blob in layer.outputs:
            if blob in made:
                raise NcnnError(f'its layer {layer} makes {blob}, which another layer makes too')
            made.add(blob)
        graph.append(layer)
    if blobs != len(made):
        raise NcnnError(f'it announces {blobs} blobs and holds {len(made)}')
    return graph


def _follow(layers: list[Layer]) -> tuple[Placed, dict]:
    """Which layer is which, and the network's options."""
    graph = Graph(layers)
    for family in dict.fromkeys(FAMILIES.values()):
        if (found := family.from_ncnn(graph)) is not None:
            return found
    held = ', '.join(sorted(graph.kinds))[:100]
    raise NcnnError(f'it is no RRDBNet, which joins maps, and no SRVGGNetCompact, which shuffles pixels ({held})')


class _Reader:
    """The arrays of a ``.bin``, each checked against the file's length before it is touched."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int, kind: str, layer: Layer) -> np.ndarray:
        size = count * np.dtype(kind).itemsize
        if size > len(self.data) - self.position:
            raise NcnnError(
                f'it ends in the weights of {layer}, after {len(self.data)} bytes: it is cut off, or belongs to '
                'another graph'
            )
        array = np.frombuffer(self.data, kind, count, self.position)
        self.position += size + -size % 4
        return array

    def weights(self, count: int, layer: Layer) -> np.ndarray:
        tag = int(self.take(1, '<u4', layer)[0])
        if tag not in (FLOAT16, FLOAT32):
            raise NcnnError(f'{OTHERS.get(tag, "its weights are a quantisation table and indices")} ({layer})')
        return self.take(count, '<f2' if tag == FLOAT16 else '<f4', layer)


def _read_arrays(layers: list[Layer], data: bytes) -> None:
    """Gives every layer its tensors, in the order of the graph's lines."""
    reader = _Reader(data)
    for layer in layers:
        if layer.kind == 'Convolution':
            outputs, size = layer.whole(0), layer.whole(6)
            arrays = [reader.weights(size, layer), reader.take(outputs, '<f4', layer)]
            arrays[0] = arrays[0].reshape(outputs, -1, 3, 3)
        elif layer.kind == 'PReLU':
            arrays = [reader.take(layer.whole(0), '<f4', layer)]
        else:
            continue
        layer.arrays = [torch.from_numpy(array.astype(np.float32)) for array in arrays]
    if reader.position < len(data):
        raise NcnnError(f'it has {len(data)} bytes, {len(data) - reader.position} more than the graph has weights for')


def read_ncnn(path: str | os.PathLike, where: str = 'weights') -> tuple[dict[str, torch.Tensor], dict]:
    """Reads RRDBNet or SRVGGNetCompact from ncnn's files.

    Weights in float16 and in float32 are read; the graph must be the architecture's, whatever converted it.

    Args:
        path: The ``.param`` or the ``.bin``; the other one lies beside it under the same name.
        where: Flag or key to name in an error.

    Returns:
        The state dict, float32 on the CPU with BasicSR's key names, and the options of the network as BasicSR's
        ``build_network`` takes them.

    Raises:
        UserError: A missing or damaged file, quantised weights, or another network.
    """
    graph, weights = Path(path).with_suffix('.param'), Path(path).with_suffix('.bin')

    def refuse(file: Path, reason: object, remedy: str) -> NoReturn:
        told = stand_in(file) or f'{reason}; {remedy}'
        raise UserError(f'{where}: {file} cannot be read as an ncnn model: {told}.') from None

    for file in (graph, weights):
        if not file.is_file():
            if Path(path).is_file() and (reason := stand_in(path)):
                raise UserError(where, f'{path} cannot be read as an ncnn model: {reason}.')
            if file == Path(path):
                raise UserError(f'{where}: the file {file} does not exist.')
            raise UserError(f'{where}: {path} is half of an ncnn model; put {file.name} beside it.')
    again = 'convert or download it again, with its other half'
    try:
        if graph.stat().st_size > LARGEST_TEXT:
            raise NcnnError('it is too large for a graph')
        layers = _parse(graph.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, NcnnError) as error:
        refuse(graph, 'it is no text' if isinstance(error, UnicodeDecodeError) else error, again)
    if weights.stat().st_size and stand_in(weights):
        refuse(weights, '', again)
    try:
        placed, network = _follow(layers)
    except NcnnError as error:
        refuse(graph, error, 'give a plain RRDBNet or SRVGGNetCompact, such as the .pth that it was converted from')
    try:
        _read_arrays(layers, weights.read_bytes())
    except (OSError, NcnnError) as error:
        remedy = 'give the model in float16 or float32' if str(error).startswith('its weights') else again
        refuse(weights, error, remedy)
    state = {}
    for name, layer in placed:
        state |= {f'{name}.{key}': array for key, array in zip(('weight', 'bias'), layer.arrays, strict=False)}
    return state, network
