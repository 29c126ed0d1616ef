"""ONNX graphs as modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdakd.compat import UserError, no_file
from sdakd_arch.file_kinds import HEAD, is_safetensors, stand_in

DTYPES = {'tensor(float)': torch.float32, 'tensor(float16)': torch.float16}
MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64)  # of pixels: what sides are tried to be multiples of
# what a graph for another range makes of grey in [0, 1]: a factor, and what it adds
RANGES = {
    (255.0, 0.0): 'gives values in [0, 255]',
    (2.0, -1.0): 'gives values in [-1, 1]',
    (1 / 255, 0.0): 'takes values in [0, 255]',
    (0.5, 0.5): 'takes values in [-1, 1]',
    (127.5, 127.5): 'takes values in [-1, 1] and gives values in [0, 255]',
}

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
    with open(path, 'rb') as file:
        head = file.read(HEAD)
    try:
        reason = stand_in(path)
        if head.startswith(b'PK') or is_safetensors(head):
            reason = 'it holds weights or an archive; let its name end as that of such a file'
        names = set() if reason else external_files(path)
    except (ValueError, IndexError):
        reason = 'it is none, or is damaged; export it again'
    if reason:
        raise UserError(where, f'{path} cannot be read as an ONNX graph: {reason}.')
    folder = os.path.realpath(path.parent)
    for name in sorted(names):
        place = os.path.realpath(os.path.join(folder, name.replace('\0', '')))
        if '\0' in name or os.path.isabs(name) or os.path.commonpath([folder, place]) != folder:
            raise UserError(where, f'{path} names the file {name!r} for its weights, which lies outside its folder.')
        if reason := no_file(place):
            raise UserError(where, f'{path} names the file {name!r} for its weights, which {reason}.')


class OnnxNetwork(nn.Module):
    """An ONNX graph run by ONNX Runtime, called as any other generator. :meth:`probe` finds out what it does.

    Args:
        path: The file; its input is ``(N, 3, h, w)``, float32 or float16, with dynamic height and width where it is a
            generator, which :meth:`probe` sees to.
        where: Flag or key to name in an error.
        threads: How many threads ONNX Runtime may use; 0 leaves the choice to it.

    Attributes:
        scale: Factor between input and output, once it is probed.
        multiple: What sides of the input must be multiples of, likewise.

    Raises:
        UserError: ONNX Runtime is not installed, or the file is no ONNX graph that takes RGB images.
    """

    scale: int
    multiple: int

    def __init__(self, path: Path, where: str, threads: int = 0) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(f'{where}: {path} needs ONNX Runtime: pip install onnxruntime.') from None
        check_external(path, where)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is told in a sentence
        wanted = ['CUDAExecutionProvider', 'CPUExecutionProvider']
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f'{where}: {path} cannot be read as an ONNX graph ({reason}).') from None
        self.path, self.where = path, where
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            names = ', '.join(entry.name for entry in inputs)
            raise self._refusal(f'takes {len(inputs)} inputs ({names}), not one RGB image (N, 3, height, width)')
        self._check_kind(inputs[0], 'takes')
        shape = self.shape = list(inputs[0].shape)
        if len(shape) == 4 and shape[3] == 3 and shape[1] != 3:
            raise self._refusal(f'takes images as {_shown(shape)}, channels last; export it for (N, 3, height, width)')
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise self._refusal(f'takes {_shown(shape)}, not one RGB image (N, 3, height, width)')
        self.input, self.dtype, self.one_by_one = inputs[0].name, DTYPES[inputs[0].type], shape[0] == 1

    def _refusal(self, sentence: str) -> UserError:
        return UserError(self.where, f'{self.path} {sentence}.')

    def _check_kind(self, entry: object, verb: str) -> None:
        if entry.type not in DTYPES:
            kind = entry.type.removeprefix('tensor(').removesuffix(')')
            values = ', whose images have values in [0, 1]' if verb == 'gives' else ''
            raise self._refusal(f'{verb} {kind}, not float32 or float16{values}; export it for such images')

    def _check_signature(self) -> None:
        """What the graph says of its sizes and outputs; dimensions that are no number it leaves open.

        Raises:
            UserError: It does not map images of any size to one.
        """
        outputs = self.session.get_outputs()
        if len(outputs) != 1:
            names = ', '.join(entry.name for entry in outputs)
            raise self._refusal(
                f'gives {len(outputs)} outputs ({names}), and nothing tells which is the image; export one'
            )
        self._check_kind(outputs[0], 'gives')
        count, _, *sides = self.shape
        if any(isinstance(side, int) for side in sides):
            raise self._refusal(
                f'takes images of one size, {_shown(self.shape)}; export it with dynamic height and width'
            )
        if isinstance(count, int) and count != 1:
            raise self._refusal(f'takes {count} images at a time; export it for one, or with a dynamic batch')

    def describe(self) -> str:
        """One line for people."""
        return 'ONNX graph'

    def probe(self, ours: bool = False) -> None:
        """Finds a generator's scale and what sides must be multiples of, by running small images.

        Args:
            ours: The graph was written by this project and gives whatever its network does; values are not judged.

        Raises:
            UserError: It enlarges by no whole factor, not to RGB, or not to values in [0, 1].
        """
        self._check_signature()
        wrong = failed = None
        for multiple in MULTIPLES:
            # odd numbers of the multiple, so that no larger one will do, and at least 16 pixels
            short = multiple * (-(-16 // multiple) // 2 * 2 + 1)
            height, width = short, short + 2 * multiple
            image = torch.linspace(0, 1, 3 * height * width).reshape(1, 3, height, width)
            try:
                output = self(image)
            except Exception as error:  # sides that it does not take
                failed = failed or (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                continue
            wrong = _wrong_shape(list(output.shape), height, width)  # or it cuts or fills up what is no block
            if wrong is None:
                break
        else:
            raise self._refusal(wrong or f'does not run on images from 16 to {width} pixels ({failed})')
        if not torch.isfinite(output).all():
            raise self._refusal('is damaged: it gives values that are not finite (NaN or infinity); replace it')
        self.multiple, self.scale = multiple, output.shape[-1] // width
        if not ours and (found := self._range(image, output)) is not None:
            raise self._refusal(f'{found}, where images have values in [0, 1]; export it for these')

    def _range(self, image: torch.Tensor, output: torch.Tensor) -> str | None:
        """Which other range of values the graph is for, as far as it shows: what becomes of grey images."""
        if torch.equal(output, output.round()) and output.min() < output.max():
            return 'gives whole numbers, as graphs for [0, 255] do'
        means = [self(torch.full_like(image, level)).mean().item() for level in (0.25, 0.5, 0.75)]
        slope = 2 * (means[2] - means[0])
        offset = means[1] - slope / 2
        for (factor, shift), found in RANGES.items():
            if abs(slope / factor - 1) < 0.1 and abs(offset - shift) < 0.1 * factor:
                return found
        if output.abs().max() > 16:
            return f'gives values from {output.min():.0f} to {output.max():.0f} for values in [0, 1]'
        return None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        array = image.detach().to('cpu', self.dtype).contiguous().numpy()
        parts = np.split(array, len(array)) if self.one_by_one and len(array) > 1 else [array]
        outputs = [torch.from_numpy(self.session.run(None, {self.input: part})[0]) for part in parts]
        return torch.cat(outputs).to(image.device, image.dtype)


def _shown(shape: list) -> str:
    return f'({", ".join(str(side or "?") for side in shape)})'


def _wrong_shape(shape: list[int], height: int, width: int) -> str | None:
    """What is wrong with an output's shape for an RGB image of this size; None where that is enlarged as it should."""
    if len(shape) != 4 or shape[0] != 1:
        return f'gives {_shown(shape)} for an image of {width}x{height} pixels, not (1, 3, height, width)'
    if shape[1] != 3:
        last = ', channels last' if shape[3] == 3 else f', {shape[1]} channel{"s" * (shape[1] != 1)} where RGB has 3'
        return f'gives {_shown(shape)} for an image of {width}x{height} pixels{last}; export it for RGB, (N, 3, h, w)'
    tall, wide = shape[2] / height, shape[3] / width
    if tall == wide and tall >= 1 and tall == int(tall):
        return None
    if shape[2] * height == shape[3] * width:
        return f'gives {shape[3]}x{shape[2]} pixels for {width}x{height}: width and height are swapped; export it anew'
    if tall == wide:
        return f'enlarges {tall:g} times; a generator here enlarges by a whole number'
    return (
        f'gives {shape[3]}x{shape[2]} pixels for {width}x{height}, which is no whole multiple; a generator here '
        'enlarges both sides by the same whole number'
    )
