"""ONNX graphs as modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError, no_file

# Where messages hold other messages down to tensors: kind -> field number -> kind (onnx.proto, IR version 11)
_HOLDS = {
    'model': {7: 'graph', 20: 'training', 25: 'function'},
    'training': {1: 'graph', 2: 'graph'},
    'function': {7: 'node', 11: 'attribute'},
    'graph': {1: 'node', 5: 'tensor', 15: 'sparse'},
    'node': {5: 'attribute'},
    'attribute': {5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse'},
    'sparse': {1: 'tensor', 2: 'tensor'},
    'tensor': {13: 'entry'},
}


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A variable-length number of protobuf, and where the next thing begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError('a number has more than 64 bits')


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that have a length: texts, bytes and messages, with their numbers."""
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _number(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _number(data, at)
            if size > len(data) - at:
                raise ValueError('it is cut off')
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f'it has a field of the unknown kind {kind}')


def external_files(path: Path) -> set[str]:
    """What an ONNX file names as files of its tensors, as it is written there.

    Raises:
        ValueError, IndexError: It is no ONNX file.
    """
    found: set[str] = set()
    waiting = [('model', memoryview(path.read_bytes()))]
    while waiting:
        kind, message = waiting.pop()
        for number, content in _fields(message):
            inner = _HOLDS[kind].get(number)
            if inner == 'entry':
                entry = dict(_fields(content))
                if bytes(entry.get(1, b'')) == b'location':
                    found.add(bytes(entry.get(2, b'')).decode())
            elif inner is not None:
                waiting.append((inner, content))
    return found


def check_external(path: Path, where: str) -> None:
    """Checks that the files of a graph's tensors lie beside it or below, before ONNX Runtime opens any.

    Raises:
        UserError: One does not, be it through a link, or is no file; or the graph's file is none.
    """
    try:
        names = external_files(path)
    except (ValueError, IndexError):
        raise UserError(where, f'{path} cannot be read as an ONNX graph; export it again.') from None
    folder = os.path.realpath(path.parent)
    for name in sorted(names):
        place = os.path.realpath(os.path.join(folder, name.replace('\0', '')))
        if '\0' in name or os.path.isabs(name) or os.path.commonpath([folder, place]) != folder:
            raise UserError(where, f'{path} names the file {name!r} for its weights, which lies outside its folder.')
        if reason := no_file(place):
            raise UserError(where, f'{path} names the file {name!r} for its weights, which {reason}.')


class OnnxNetwork(nn.Module):
    """An ONNX graph run by ONNX Runtime, called as any other generator.

    Args:
        path: The file; its input is ``(N, 3, h, w)`` with dynamic height and width.
        threads: How many threads ONNX Runtime may use; 0 leaves the choice to it.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is no ONNX graph that takes one image.
    """

    def __init__(self, path: Path, where: str, threads: int = 0) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(f'{where}: {path} needs ONNX Runtime: pip install onnxruntime.') from None
        check_external(path, where)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        wanted = ['CUDAExecutionProvider', 'CPUExecutionProvider']
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f'{where}: {path} cannot be read as an ONNX graph ({reason}).') from None
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[1] != 3:
            shapes = [entry.shape for entry in inputs]
            raise UserError(f'{where}: {path} takes {shapes}, not one RGB image (N, 3, height, width).')
        self.input = inputs[0].name
        self.dtype = torch.float16 if 'float16' in inputs[0].type else torch.float32

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        array = image.detach().to('cpu', self.dtype).contiguous().numpy()
        output = self.session.run(None, {self.input: array})[0]
        return torch.from_numpy(output).to(image.device, image.dtype)
