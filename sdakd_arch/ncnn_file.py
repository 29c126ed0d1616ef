"""ncnn's files, ``NAME.param`` (the graph, text) and ``NAME.bin`` (the weights), read as the networks that they hold.

The formats are ncnn's own (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure). A graph is followed
from its input to its output as the architecture computes it, so that a network that deviates anywhere is refused.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from sdakd.compat import UserError

MAGIC = '7767517'
LARGEST_TEXT = 16 << 20  # bytes; RRDBNet-23's graph has 116,029
FLOAT16, FLOAT32 = 0x01306B47, 0
OTHERS = {0x000D4B38: 'its weights are 8-bit integers', 0x0002C056: 'its weights are scaled for 8-bit integers'}
ALIASES = ('Split', 'Noop')  # every output is the input
BRANCH = 0.2  # RRDBNet's factor of every residual branch
NEAREST = 1  # of Interp's ways to enlarge
SLOPES = {'leakyrelu': 0.1}  # SRVGGNetCompact's


class _NcnnError(Exception):
    """What is wrong with the files, as the end of a sentence."""


@dataclass
class _Layer:
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[int, float | list[float]]
    arrays: list[torch.Tensor] = field(default_factory=list)

    def __str__(self) -> str:
        return f'{self.kind} {self.name}'

    def number(self, key: int, default: float = 0) -> float:
        value = self.parameters.get(key, default)
        return math.nan if isinstance(value, list) else value

    def numbers(self, key: int) -> list[float]:
        """The array under the number ``key``, which the file writes as ``-23300 - key``."""
        value = self.parameters.get(-23300 - key, [])
        return value if isinstance(value, list) else [value]

    def whole(self, key: int, default: int = 0) -> int:
        value = self.number(key, default)
        if not (math.isfinite(value) and value >= 0 and value == int(value)):
            raise _NcnnError(f'its layer {self} gives {value:g} under {key}, which is no count')
        return int(value)


def is_ncnn(path: str | os.PathLike) -> bool:
    """Whether a file is ncnn's by its ending; torch, too, writes ``.bin``, and is told by the first bytes."""
    path = Path(path)
    if path.suffix != '.bin':
        return path.suffix == '.param'
    try:
        with open(path, 'rb') as file:
            return not file.read(2).startswith((b'PK', b'\x80'))
    except OSError:
        return False


def _parameter(word: str) -> tuple[int, float | list[float]]:
    """``key=number`` or ``key=count,number,...``"""
    key, _, value = word.partition('=')
    if int(key) > -23300:
        return int(key), float(value)
    count, *numbers = value.split(',')
    if int(count) != len(numbers):
        raise ValueError
    return int(key), [float(number) for number in numbers]


def _parse(text: str) -> list[_Layer]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise _NcnnError(f'it does not begin with {MAGIC}, as every .param of ncnn does')
    try:
        layers, blobs = map(int, lines[1])
    except (IndexError, ValueError):
        raise _NcnnError('its second line does not hold the counts of layers and blobs') from None
    if layers != len(lines) - 2:
        raise _NcnnError(f'it announces {layers} layers and holds {len(lines) - 2}')
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
            raise _NcnnError(f'line {number} is no layer of ncnn ({" ".join(words)[:60]})') from None
        layer = _Layer(kind, name, tuple(names[:inputs]), tuple(names[inputs:]), parameters)
        for blob in layer.inputs:
            if blob not in made:
                raise _NcnnError(f'its layer {layer} reads {blob}, which no layer before it makes')
        for blob in layer.outputs:
            if blob in made:
                raise _NcnnError(f'its layer {layer} makes {blob}, which another layer makes too')
            made.add(blob)
        graph.append(layer)
    if blobs != len(made):
        raise _NcnnError(f'it announces {blobs} blobs and holds {len(made)}')
    return graph


class _Graph:
    """Layers to be taken one by one, each as the architecture needs it; blobs go by the name of what they copy."""

    def __init__(self, layers: list[_Layer]) -> None:
        copies: dict[str, str] = {}
        self.rest: dict[tuple[str, tuple[str, ...]], list[_Layer]] = {}
        self.kinds: dict[str, int] = {}
        for layer in layers:
            inputs = tuple(copies.get(blob, blob) for blob in layer.inputs)
            if layer.kind in ALIASES and len(inputs) == 1:
                copies.update(dict.fromkeys(layer.outputs, inputs[0]))
                continue
            if len(layer.outputs) != 1:
                raise _NcnnError(f'its layer {layer} has {len(layer.outputs)} outputs')
            layer.inputs = inputs
            self.rest.setdefault((layer.kind, inputs), []).append(layer)
            self.kinds[layer.kind] = self.kinds.get(layer.kind, 0) + 1
        self.maker = {layer.outputs[0]: layer for same in self.rest.values() for layer in same}

    def find(self, kind: str, *inputs: str) -> _Layer | None:
        same = self.rest.get((kind, inputs))
        return same[0] if same else None

    def take(self, kind: str, *inputs: str, wanted: str) -> _Layer:
        layer = self.find(kind, *inputs)
        if layer is None:
            instead = [str(one) for same in self.rest.values() for one in same if inputs[0] in one.inputs]
            found = f'there is {", ".join(instead[:3])}' if instead else 'there is nothing'
            behind = f'behind {self.maker[inputs[0]]} ' if inputs[0] in self.maker else ''
            raise _NcnnError(f'{wanted} is missing: {behind}{found} instead of {kind}')
        self.use(layer)
        return layer

    def use(self, layer: _Layer) -> None:
        same = self.rest[layer.kind, layer.inputs]
        same.remove(layer)
        if not same:
            del self.rest[layer.kind, layer.inputs]

    def convolution(self, source: str, channels: int, wanted: str) -> tuple[_Layer, str, tuple[str, float] | None]:
        """A 3x3 convolution of ``channels`` maps with bias, fused with its activation or followed by it.

        Returns:
            The layer, the blob behind the activation, and the activation's name and slope, None where there is none.
        """
        layer = self.take('Convolution', source, wanted=wanted)
        width = layer.number(1)
        pad = layer.number(4)
        square = layer.number(11, width) == width == 3 and layer.number(12, 1) == layer.number(2, 1) == 1
        square = square and layer.number(13, 1) == layer.number(3, 1) == 1
        square = square and pad == 1 == layer.number(14, pad) == layer.number(15, pad) == layer.number(16, pad)
        if not (square and layer.number(5) == 1 and layer.number(18) == 0):
            raise _NcnnError(f'its layer {layer} is no 3x3 convolution with stride 1, zero padding of 1 and a bias')
        if layer.number(8):
            raise _NcnnError('its weights are 8-bit integers')
        outputs, size = layer.whole(0), layer.whole(6)
        if outputs < 1 or size != outputs * channels * 9:
            raise _NcnnError(f'its layer {layer} has {size} weights where {outputs} x {channels} x 3 x 3 are needed')
        blob, kind = layer.outputs[0], layer.whole(9)
        if kind == 1:
            return layer, blob, ('relu', 0.0)
        if kind == 2:
            return layer, blob, ('leakyrelu', (layer.numbers(10) or [math.nan])[0])
        if kind:
            raise _NcnnError(f'its layer {layer} has the activation number {kind}, which is no ReLU and no LeakyReLU')
        if follower := self.find('PReLU', blob):
            if follower.whole(0) != outputs:
                raise _NcnnError(f'its layer {follower} has {follower.whole(0)} slopes for {outputs} channels')
            activation = ('prelu', 0.0)
        elif follower := self.find('ReLU', blob):
            slope = follower.number(0)
            activation = ('leakyrelu', slope) if slope else ('relu', 0.0)
        else:
            return layer, blob, None
        self.use(follower)
        return layer, follower.outputs[0], activation

    def add(self, branch: str, skip: str, factor: float, wanted: str) -> str:
        """``factor * branch + skip``: Eltwise with two coefficients, or BinaryOp's product and sum."""
        for inputs, factors in (((branch, skip), [factor, 1.0]), ((skip, branch), [1.0, factor])):
            if layer := self.find('Eltwise', *inputs):
                found = layer.numbers(1) or [1.0, 1.0]
                if layer.number(0) != 1 or not _close(found, factors):
                    raise _NcnnError(f'its layer {layer} does not add {factor:g} times the branch, but {found}')
                self.use(layer)
                return layer.outputs[0]
        if factor != 1:
            layer = self.take('BinaryOp', branch, wanted=wanted)
            if layer.number(0) != 2 or not layer.number(1) or not _close([layer.number(2)], [factor]):
                raise _NcnnError(f'its layer {layer} does not multiply by {factor:g} ({wanted})')
            branch = layer.outputs[0]
        inputs = (skip, branch) if self.find('BinaryOp', skip, branch) else (branch, skip)
        layer = self.take('BinaryOp', *inputs, wanted=wanted)
        if layer.number(0) or layer.number(1):
            raise _NcnnError(f'its layer {layer} does not add ({wanted})')
        return layer.outputs[0]

    def enlarge(self, source: str, factor: float, wanted: str) -> str:
        layer = self.take('Interp', source, wanted=wanted)
        if layer.number(0) != NEAREST or any(layer.number(key) for key in (3, 4, 5)):
            raise _NcnnError(f'its layer {layer} is no enlargement by the nearest pixel')
        if not _close([layer.number(1, 1), layer.number(2, 1)], [factor, factor]):
            raise _NcnnError(f'its layer {layer} enlarges by {layer.number(1, 1):g}, not by {factor:g}')
        return layer.outputs[0]

    def end(self, output: str) -> None:
        """Nothing is left over."""
        rest = [layer for same in self.rest.values() for layer in same]
        for layer in rest:
            if layer.kind == 'Interp' and layer.inputs == (output,):
                factor = layer.number(1, 1)
                change = 'shrinks' if factor < 1 else 'enlarges'
                raise _NcnnError(f'it {change} its output by {factor:g} after the network ({layer})')
        if rest:
            raise _NcnnError(f'it has layers that the network does not ({", ".join(map(str, rest[:3]))})')


def _close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))


Placed = list[tuple[str, _Layer]]  # what a state dict calls a layer, and the layer


def _rrdbnet(graph: _Graph, source: str, unshuffle: int) -> tuple[Placed, dict]:
    placed: Placed = []

    def convolution(name: str, blob: str, inputs: int, active: bool) -> tuple[str, int]:
        layer, output, activation = graph.convolution(blob, inputs, name)
        placed.append((name, layer))
        if active and (activation is None or activation[0] != 'leakyrelu' or not _close([activation[1]], [0.2])):
            raise _NcnnError(f'LeakyReLU(0.2) does not follow {name} ({layer})')
        if not active and activation is not None:
            raise _NcnnError(f'an activation follows {name} ({layer})')
        return output, layer.whole(0)

    first, features = convolution('conv_first', source, 3 * unshuffle**2, False)
    blob, blocks, growth = first, 0, 0
    while any(kind == 'Concat' and inputs[0] == blob for kind, inputs in graph.rest):
        start = blob
        for dense in (1, 2, 3):
            inner, joined, width, parts = blob, blob, features, [blob]
            for number in (1, 2, 3, 4, 5):
                name = f'body.{blocks}.rdb{dense}.conv{number}'
                inner, channels = convolution(name, joined, width, number < 5)
                growth = growth or channels
                if channels != (growth if number < 5 else features):
                    raise _NcnnError(f'{name} makes {channels} channels')
                if number < 5:
                    parts.append(inner)
                    layer = graph.take('Concat', *parts, wanted=f'the input of {name[:-1]}{number + 1}')
                    if layer.number(0):
                        raise _NcnnError(f'its layer {layer} does not join channels')
                    joined, width = layer.outputs[0], width + channels
            blob = graph.add(inner, blob, BRANCH, f'the residual of body.{blocks}.rdb{dense}')
        blob = graph.add(blob, start, BRANCH, f'the residual of body.{blocks}')
        blocks += 1
    blob, channels = convolution('conv_body', blob, features, False)
    blob = graph.add(blob, first, 1.0, 'the residual around the body')
    for name, active in (('conv_up1', True), ('conv_up2', True), ('conv_hr', True), ('conv_last', False)):
        if name.startswith('conv_up'):
            blob = graph.enlarge(blob, 2.0, f'the enlargement before {name}')
        blob, channels = convolution(name, blob, channels, active)
    if channels != 3:
        raise _NcnnError(f'its output has {channels} channels where RGB has 3')
    graph.end(blob)
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'scale': {1: 4, 2: 2, 4: 1}[unshuffle]}
    return placed, network | {'num_feat': features, 'num_block': blocks, 'num_grow_ch': growth}


def _srvgg(graph: _Graph, source: str) -> tuple[Placed, dict]:
    placed: Placed = []
    blob, channels, features, count, kinds = source, 3, 0, 0, set()
    while True:
        name = f'body.{2 * count}'
        layer, blob, activation = graph.convolution(blob, channels, name)
        placed.append((name, layer))
        channels = layer.whole(0)
        if activation is None:
            break
        features = features or channels
        kinds.add(activation)
        if channels != features:
            raise _NcnnError(f'its convolutions have {features} and {channels} channels')
        if activation[0] == 'prelu':
            placed.append((f'body.{2 * count + 1}', graph.maker[blob]))
        count += 1
    layer = graph.take('PixelShuffle', blob, wanted='the shuffling of pixels')
    if len(kinds) != 1:
        raise _NcnnError(f'its convolutions have {len(kinds)} kinds of activations where there is one')
    kind, slope = kinds.pop()
    if not _close([slope], [SLOPES.get(kind, 0.0)]):
        raise _NcnnError(f'its LeakyReLU has the slope {slope:g}, not {SLOPES[kind]:g}')
    scale = layer.whole(0)
    if layer.number(1) or channels != 3 * scale**2:
        raise _NcnnError(f'its layer {layer} does not make 3 channels of {channels}')
    base = source if scale == 1 and not graph.find('Interp', source) else None
    blob = graph.add(
        layer.outputs[0], base or graph.enlarge(source, scale, 'the enlarged image'), 1.0, 'the sum with the image'
    )
    graph.end(blob)
    network = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': features}
    return placed, network | {'num_conv': count - 1, 'upscale': scale, 'act_type': kind}


def _follow(layers: list[_Layer]) -> tuple[Placed, dict]:
    """Which layer is which, and the network's options."""
    inputs = [layer for layer in layers if layer.kind == 'Input']
    graph = _Graph(layers)
    if len(inputs) != 1:
        raise _NcnnError(f'it has {len(inputs)} inputs')
    graph.use(inputs[0])
    source = inputs[0].outputs[0]
    if 'PixelShuffle' in graph.kinds:
        return _srvgg(graph, source)
    if 'Concat' not in graph.kinds:
        held = ', '.join(sorted(graph.kinds))[:100]
        raise _NcnnError(f'it is no RRDBNet, which joins maps, and no SRVGGNetCompact, which shuffles pixels ({held})')
    unshuffle = 1
    if layer := graph.find('Reorg', source):
        graph.use(layer)
        source, unshuffle = layer.outputs[0], layer.whole(0)
        if unshuffle not in (2, 4) or layer.number(1):
            raise _NcnnError(f'its layer {layer} unshuffles by {unshuffle}, not by 2 or 4')
    return _rrdbnet(graph, source, unshuffle)


class _Reader:
    """The arrays of a ``.bin``, each checked against the file's length before it is touched."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int, kind: str, layer: _Layer) -> np.ndarray:
        size = count * np.dtype(kind).itemsize
        if size > len(self.data) - self.position:
            raise _NcnnError(
                f'it ends in the weights of {layer}, after {len(self.data)} bytes: it is cut off, or belongs to '
                'another graph'
            )
        array = np.frombuffer(self.data, kind, count, self.position)
        self.position += size + -size % 4
        return array

    def weights(self, count: int, layer: _Layer) -> np.ndarray:
        tag = int(self.take(1, '<u4', layer)[0])
        if tag not in (FLOAT16, FLOAT32):
            raise _NcnnError(f'{OTHERS.get(tag, "its weights are a quantisation table and indices")} ({layer})')
        return self.take(count, '<f2' if tag == FLOAT16 else '<f4', layer)


def _read_arrays(layers: list[_Layer], data: bytes) -> None:
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
        raise _NcnnError(f'it has {len(data)} bytes, {len(data) - reader.position} more than the graph has weights for')


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
        raise UserError(f'{where}: {file} cannot be read as an ncnn model: {reason}; {remedy}.') from None

    for file in (graph, weights):
        if not file.is_file():
            if file == Path(path):
                raise UserError(f'{where}: the file {file} does not exist.')
            raise UserError(f'{where}: {path} is half of an ncnn model; put {file.name} beside it.')
    again = 'convert or download it again, with its other half'
    try:
        if graph.stat().st_size > LARGEST_TEXT:
            raise _NcnnError('it is too large for a graph')
        layers = _parse(graph.read_text())
    except (OSError, UnicodeDecodeError, _NcnnError) as error:
        refuse(graph, 'it is no text' if isinstance(error, UnicodeDecodeError) else error, again)
    try:
        placed, network = _follow(layers)
    except _NcnnError as error:
        refuse(graph, error, 'give a plain RRDBNet or SRVGGNetCompact, such as the .pth that it was converted from')
    try:
        _read_arrays(layers, weights.read_bytes())
    except (OSError, _NcnnError) as error:
        remedy = 'give the model in float16 or float32' if str(error).startswith('its weights') else again
        refuse(weights, error, remedy)
    state = {}
    for name, layer in placed:
        state |= {f'{name}.{key}': array for key, array in zip(('weight', 'bias'), layer.arrays, strict=False)}
    return state, network
