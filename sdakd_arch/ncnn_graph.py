"""ncnn's graphs: layers that are taken one by one, as an architecture computes them.

A graph is followed from its input to its output, so that a network that deviates anywhere is refused. The format is
ncnn's own (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

ALIASES = ('Split', 'Noop')  # every output is the input
NEAREST = 1  # of Interp's ways to enlarge


class NcnnError(Exception):
    """What is wrong with the files, as the end of a sentence."""


@dataclass
class Layer:
    """A line of the graph; ``arrays`` are its weights, once they are read."""

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
            raise NcnnError(f'its layer {self} gives {value:g} under {key}, which is no count')
        return int(value)


class Graph:
    """Layers to be taken one by one, each as the architecture needs it; blobs go by the name of what they copy.

    ``source`` is the input's blob, ``rest`` what has not been taken yet, ``kinds`` counts layers by their kind.
    """

    def __init__(self, layers: list[Layer]) -> None:
        copies: dict[str, str] = {}
        self.rest: dict[tuple[str, tuple[str, ...]], list[Layer]] = {}
        self.kinds: dict[str, int] = {}
        for layer in layers:
            inputs = tuple(copies.get(blob, blob) for blob in layer.inputs)
            if layer.kind in ALIASES and len(inputs) == 1:
                copies.update(dict.fromkeys(layer.outputs, inputs[0]))
                continue
            if len(layer.outputs) != 1:
                raise NcnnError(f'its layer {layer} has {len(layer.outputs)} outputs')
            layer.inputs = inputs
            self.rest.setdefault((layer.kind, inputs), []).append(layer)
            self.kinds[layer.kind] = self.kinds.get(layer.kind, 0) + 1
        self.maker = {layer.outputs[0]: layer for same in self.rest.values() for layer in same}
        inputs = [layer for layer in layers if layer.kind == 'Input']
        if len(inputs) != 1:
            raise NcnnError(f'it has {len(inputs)} inputs')
        self.use(inputs[0])
        self.source = inputs[0].outputs[0]

    def find(self, kind: str, *inputs: str) -> Layer | None:
        same = self.rest.get((kind, inputs))
        return same[0] if same else None

    def take(self, kind: str, *inputs: str, wanted: str) -> Layer:
        layer = self.find(kind, *inputs)
        if layer is None:
            instead = [str(one) for same in self.rest.values() for one in same if inputs[0] in one.inputs]
            found = f'there is {", ".join(instead[:3])}' if instead else 'there is nothing'
            behind = f'behind {self.maker[inputs[0]]} ' if inputs[0] in self.maker else ''
            raise NcnnError(f'{wanted} is missing: {behind}{found} instead of {kind}')
        self.use(layer)
        return layer

    def use(self, layer: Layer) -> None:
        same = self.rest[layer.kind, layer.inputs]
        same.remove(layer)
        if not same:
            del self.rest[layer.kind, layer.inputs]

    def convolution(self, source: str, channels: int, wanted: str) -> tuple[Layer, str, tuple[str, float] | None]:
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
            raise NcnnError(f'its layer {layer} is no 3x3 convolution with stride 1, zero padding of 1 and a bias')
        if layer.number(8):
            raise NcnnError('its weights are 8-bit integers')
        outputs, size = layer.whole(0), layer.whole(6)
        if outputs < 1 or size != outputs * channels * 9:
            raise NcnnError(f'its layer {layer} has {size} weights where {outputs} x {channels} x 3 x 3 are needed')
        blob, kind = layer.outputs[0], layer.whole(9)
        if kind == 1:
            return layer, blob, ('relu', 0.0)
        if kind == 2:
            return layer, blob, ('leakyrelu', (layer.numbers(10) or [math.nan])[0])
        if kind:
            raise NcnnError(f'its layer {layer} has the activation number {kind}, which is no ReLU and no LeakyReLU')
        if follower := self.find('PReLU', blob):
            if follower.whole(0) != outputs:
                raise NcnnError(f'its layer {follower} has {follower.whole(0)} slopes for {outputs} channels')
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
                if layer.number(0) != 1 or not close(found, factors):
                    raise NcnnError(f'its layer {layer} does not add {factor:g} times the branch, but {found}')
                self.use(layer)
                return layer.outputs[0]
        if factor != 1:
            layer = self.take('BinaryOp', branch, wanted=wanted)
            if layer.number(0) != 2 or not layer.number(1) or not close([layer.number(2)], [factor]):
                raise NcnnError(f'its layer {layer} does not multiply by {factor:g} ({wanted})')
            branch = layer.outputs[0]
        inputs = (skip, branch) if self.find('BinaryOp', skip, branch) else (branch, skip)
        layer = self.take('BinaryOp', *inputs, wanted=wanted)
        if layer.number(0) or layer.number(1):
            raise NcnnError(f'its layer {layer} does not add ({wanted})')
        return layer.outputs[0]

    def enlarge(self, source: str, factor: float, wanted: str) -> str:
        layer = self.take('Interp', source, wanted=wanted)
        if layer.number(0) != NEAREST or any(layer.number(key) for key in (3, 4, 5)):
            raise NcnnError(f'its layer {layer} is no enlargement by the nearest pixel')
        if not close([layer.number(1, 1), layer.number(2, 1)], [factor, factor]):
            raise NcnnError(f'its layer {layer} enlarges by {layer.number(1, 1):g}, not by {factor:g}')
        return layer.outputs[0]

    def end(self, output: str) -> None:
        """Nothing is left over."""
        rest = [layer for same in self.rest.values() for layer in same]
        for layer in rest:
            if layer.kind == 'Interp' and layer.inputs == (output,):
                factor = layer.number(1, 1)
                change = 'shrinks' if factor < 1 else 'enlarges'
                raise NcnnError(f'it {change} its output by {factor:g} after the network ({layer})')
        if rest:
            raise NcnnError(f'it has layers that the network does not ({", ".join(map(str, rest[:3]))})')


def close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))


Placed = list[tuple[str, Layer]]  # what a state dict calls a layer, and the layer
