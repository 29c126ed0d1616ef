"""The int8 formats of `sdakd export`: quantised on photographs, and judged on others, by each runtime's own quantiser.

A photograph gives one pair: its middle, and that reduced by the network's scale. The small images of three quarters of
the pairs are what a quantiser sees; the last quarter says what int8 costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdakd.commands.export import formats as exporters
from sdakd.compat import UnusableError, UserError
from sdakd.files.images import list_images, read_image, write
from sdakd.progress import Progress, say

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

SIDE = 64  # pixels of an input
LEAST, MOST = 4, 64  # photographs
EVERY = 4  # one of so many is held out
MAX_LOSS = 0.5  # dB
PERCENTILE = 99.99  # of ONNX Runtime's calibration by that name
TOOLS = ('ncnn2table', 'ncnn2int8')
TOOLS_FOLDER = 'NCNN_TOOLS'  # environment variable
os.environ.setdefault('NNCF_CI', '1')  # else NNCF, once imported, tells its makers that it was used


@dataclass(frozen=True)
class Pair:
    """A photograph's middle and its small version: float32 ``(1, 3, h, w)``, RGB in [0, 1]."""

    name: str
    small: torch.Tensor
    large: torch.Tensor


@dataclass(frozen=True)
class Photographs:
    """Pairs to calibrate on, and pairs that are held out of that; no crop is in both."""

    calibration: list[Pair]
    held_out: list[Pair]


@dataclass(frozen=True)
class Quantiser:
    """How one runtime's int8 file is made.

    Args:
        methods: Of calibration; all are tried, and the one that is closest to float32 on the calibration's inputs is
            taken.
        quantise: Writes the files of a generator to a path, from inputs, by a method.
        sign: Writes what the file says of itself into it or beside it.
        read: Opens it by its own runtime.
        packages: What it needs beyond this project's dependencies.
        check: Refuses what cannot work, before anything is written.
    """

    methods: tuple[str, ...]
    quantise: Callable[[Opened, Path, Sequence[torch.Tensor], str], None]
    sign: Callable[[Opened, Path], None]
    read: exporters.Reader
    packages: tuple[str, ...]
    check: Callable[[Opened], None] | None = None


def check_arguments(names: Sequence[str], folder: str | Path | None, max_loss: float, half: bool) -> float:
    """Checks what the int8 formats ``names`` are told.

    Returns:
        The most that may be lost.

    Raises:
        UserError: Photographs are missing; they or the bar have no use; it is no number; or float16 is wanted, too.
    """
    if isinstance(max_loss, bool) or not isinstance(max_loss, int | float) or not 0 <= max_loss < math.inf:
        raise UserError('--max_loss', f'write a number of dB of at least 0, such as {MAX_LOSS:g}, not {max_loss!r}.')
    if not names:
        for flag, given in (('--calibrate', folder is not None), ('--max_loss', max_loss != MAX_LOSS)):
            if given:
                raise UserError(flag, f'only int8 formats use it; name one with --to ({", ".join(QUANTISERS)}).')
        return max_loss
    if folder is None:
        raise UserError(
            f'--to {names[0]}',
            'int8 is calibrated on photographs: name a folder of them with --calibrate, at least 4 and better 20.',
        )
    if half:
        raise UserError('--half', f'{names[0]} has no weights in float16; leave out one of both.')
    return max_loss


def read_photographs(folder: str | Path, scale: int, multiple: int = 1) -> Photographs:
    """Reads the photographs of a folder, at most :data:`MOST` of them, evenly spread over their sorted names.

    What is damaged or smaller than a crop is named and left out; crops that are equal in every pixel count once.

    Args:
        folder: With its sub-folders.
        scale: Of the generator: the middle ``(scale * side, scale * side)`` pixels are reduced by it, by MATLAB's
            bicubic, as `sdakd prepare pairs` reduces.
        multiple: What sides of inputs must be multiples of; ``side`` is the next one from :data:`SIDE` on.

    Raises:
        UserError: No folder, or less than :data:`LEAST` photographs that can be used.
    """
    from sdakd.commands.prepare.synthesis import downscale

    names = list_images(str(folder), '--calibrate')
    small_side = SIDE + -SIDE % multiple
    side = small_side * scale
    found: dict[bytes, Pair] = {}
    chosen = [names[number * len(names) // MOST] for number in range(MOST)] if len(names) > MOST else names
    for name in chosen:
        path = os.path.join(folder, name)
        try:
            image = read_image(path)
            height, width = image.shape[:2]
            if min(height, width) < side:
                raise UnusableError('too small', f'has {width}x{height} pixels, less than {side}x{side}')
        except UnusableError as error:
            say(f'{path} {error.reason}; left out of the calibration.')
            continue
        top, left = (height - side) // 2, (width - side) // 2
        crop = np.ascontiguousarray(image[top : top + side, left : left + side])
        found.setdefault(crop.tobytes(), Pair(name, _tensor(downscale(crop, scale)), _tensor(crop)))
    pairs = list(found.values())
    if len(pairs) < LEAST:
        raise UserError(
            '--calibrate',
            f'{folder} holds {len(pairs)} different photographs of at least {side}x{side} pixels, and {LEAST} are '
            'needed, three to calibrate on and one to judge by; give more of them, 20 or so.',
        )
    calibration = [pair for number, pair in enumerate(pairs, 1) if number % EVERY]
    return Photographs(calibration, pairs[EVERY - 1 :: EVERY])


def _tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3), BGR, as float32 (1, 3, H, W), RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float()[None] / 255


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, peak 1, over all values of two images, clipped to [0, 1]; 120 if equal."""
    error = (found.double().clamp(0, 1) - wanted.double().clamp(0, 1)).square().mean().item()
    return -10 * math.log10(max(error, 1e-12))


def export_int8(
    name: str, quantiser: Quantiser, opened: Opened, path: Path, photographs: Photographs, max_loss: float
) -> str:
    """Writes the int8 file of a generator to ``path`` and judges it.

    The loss is ``PSNR(float32, photograph) - PSNR(int8, photograph)``, the mean over the photographs that were held
    out, with PyTorch's output as float32's and the file's own runtime as int8's.

    Returns:
        What to say of it. The file says it itself, too, as ``quantization``.

    Raises:
        UserError: It cannot be written or run, or loses more than ``max_loss`` dB.
    """
    reference = exporters.Portable(opened)
    inputs = [pair.small for pair in photographs.calibration]
    with torch.no_grad():
        wanted = [reference(image) for image in inputs]
    errors: dict[str, float] = {}
    with Progress(f'calibration of {name}', len(quantiser.methods), 'methods') as progress:
        for method in quantiser.methods:
            progress.note = method
            place = path.parent / method
            place.mkdir()
            try:
                quantiser.quantise(opened, place / path.name, inputs, method)
                outputs = list(map(quantiser.read(place / path.name), inputs))
            except UserError:
                raise
            except Exception as error:  # every quantiser and runtime raises its own
                raise exporters._refusal(name, opened, error) from None
            errors[method] = float(np.mean([psnr(*pair) for pair in zip(outputs, wanted, strict=True)]))
            progress.step()
    best = max(quantiser.methods, key=lambda method: errors[method])
    for file in (path.parent / best).iterdir():
        os.replace(file, path.parent / file.name)
    for method in quantiser.methods:
        shutil.rmtree(path.parent / method)
    run = quantiser.read(path)
    losses, closeness = [], []
    for pair in photographs.held_out:
        with torch.no_grad():
            whole, coarse = reference(pair.small), run(pair.small)
        losses.append(psnr(whole, pair.large) - psnr(coarse, pair.large))
        closeness.append(psnr(coarse, whole))
    loss, close = float(np.mean(losses)), float(np.mean(closeness))
    held_out = f'{len(losses)} photograph{"s" * (len(losses) > 1)} held out'
    if not loss <= max_loss:  # also where it is nan
        raise UserError(
            f'--to {name}',
            f'the int8 file of {opened.path} loses {loss:.2f} dB on {held_out}, more than --max_loss {max_loss:g}, and '
            'was deleted; calibrate on more photographs, or take float16 (--half) or a wider student.',
        )
    facts = {
        'method': best,
        'images': [pair.name for pair in photographs.calibration],
        'held_out': [pair.name for pair in photographs.held_out],
        'loss_db': round(loss, 4),
        'psnr_to_float_db': round(close, 4),
    }
    signed = dataclasses.replace(opened, metadata={**opened.metadata, 'quantization': facts})
    quantiser.sign(signed, path)
    loss = round(loss, 2) + 0.0  # not -0
    return f'int8 by {best}, loses {loss:.2f} dB on {held_out}, {close:.1f} dB to float32'


# ------------------------------------------------------- ONNX --------------------------------------------------------


class _Inputs:
    """Inputs as ONNX Runtime's quantiser asks for them, a stride at a time, which bounds its memory."""

    def __init__(self, images: Sequence[torch.Tensor]) -> None:
        self.images, self.left = images, iter(())

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(self.images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {'input': image.numpy()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Quantisers print and log for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def quantise_onnx(opened: Opened, path: Path, images: Sequence[torch.Tensor], method: str) -> None:
    """ONNX Runtime's static quantisation: weights int8 per output channel, activations uint8, as QDQ nodes.

    Dense blocks stay as the network has them: sums of shares (:mod:`sdakd_arch.inference.regroup`) lose much more.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        graph, ready = Path(folder, 'float.onnx'), Path(folder, 'ready.onnx')
        graph.write_bytes(exporters._onnx_graph(opened, False, 'onnx-int8', None))
        quant_pre_process(graph, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            path,
            _Inputs(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method={'minmax': CalibrationMethod.MinMax, 'percentile': CalibrationMethod.Percentile}[method],
            extra_options={'CalibStridedMinMax': 1, 'CalibPercentile': PERCENTILE},
        )


def sign_onnx(opened: Opened, path: Path) -> None:
    """Writes what the file says of itself into it."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, exporters.texts(opened))
    write(path, model.SerializeToString())


# ----------------------------------------------------- OpenVINO -----------------------------------------------------


def quantise_openvino(opened: Opened, path: Path, images: Sequence[torch.Tensor], method: str) -> None:
    """NNCF's post-training quantisation by its preset ``performance``; regrouped but for sums of shares."""
    import nncf
    import openvino

    from sdakd_arch.inference.openvino_graph import own_slopes
    from sdakd_arch.inference.regroup import Shares

    parts = opened.family.regrouped(opened.module, 'openvino').modules()
    runtime = None if any(isinstance(part, Shares) for part in parts) else 'openvino'
    with _quiet():
        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(exporters._onnx_graph(opened, False, 'openvino-int8', runtime))
        own_slopes(model)
        data, preset = nncf.Dataset([image.numpy() for image in images]), nncf.QuantizationPreset[method.upper()]
        quantised = nncf.quantize(model, data, preset=preset, subset_size=len(images))
        openvino.save_model(quantised, str(path), compress_to_fp16=False)


def sign_openvino(opened: Opened, path: Path) -> None:
    """Writes what the file says of itself into its ``rt_info``, under ``framework``."""
    import openvino

    model = openvino.Core().read_model(path)
    for key, text in exporters.texts(opened).items():
        model.set_rt_info(text, ['framework', key])
    part = path.with_name(f'signed_{path.name}')  # the .bin is read while it is written
    openvino.save_model(model, str(part), compress_to_fp16=False)
    del model
    for ending in ('.xml', '.bin'):
        os.replace(part.with_suffix(ending), path.with_suffix(ending))


# ------------------------------------------------------- ncnn --------------------------------------------------------


def tools() -> dict[str, str]:
    """The programs of ncnn's quantiser, by name: from the folder ``NCNN_TOOLS``, else from ``PATH``.

    Raises:
        UserError: One is missing.
    """
    folder = os.environ.get(TOOLS_FOLDER)
    found = {name: shutil.which(name, path=folder) for name in TOOLS}
    if missing := [name for name, path in found.items() if path is None]:
        place = f'in the folder {folder} of the variable {TOOLS_FOLDER}' if folder else 'in PATH'
        raise UserError(
            '--to ncnn-int8',
            f'the program {missing[0]} is not {place}; build ncnn with NCNN_BUILD_TOOLS=ON, or take its release for '
            f'your system, and put the folder with {" and ".join(TOOLS)} into the variable {TOOLS_FOLDER}.',
        )
    return found


def check_tools(opened: Opened) -> None:
    """Before anything is written: see :func:`tools`."""
    tools()


def _call(result: Path, program: str, *words: str) -> None:
    """Runs one of the tools, which is to write ``result``; not every failure is told by an exit status."""
    done = subprocess.run([program, *words], check=False, capture_output=True, encoding='utf-8', errors='replace')
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['without a word'])[-1]
        raise RuntimeError(f'{Path(program).name} ended with status {done.returncode}: {last}')
    if not result.is_file() or not result.stat().st_size:
        raise RuntimeError(f'{Path(program).name} wrote nothing')


def quantise_ncnn(opened: Opened, path: Path, images: Sequence[torch.Tensor], method: str) -> None:
    """ncnn's own tools, by the method ``kl`` or ``aciq`` of ncnn2table."""
    programs = tools()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        exporters.to_ncnn(opened, folder / 'float.param')
        names = []
        for number, image in enumerate(images):
            names.append(str(folder / f'{number}.npy'))
            np.save(names[-1], image[0].numpy())
        (folder / 'list.txt').write_text('\n'.join(names) + '\n', encoding='utf-8')
        height, width = images[0].shape[-2:]
        before = str(folder / 'float.param'), str(folder / 'float.bin')
        table = folder / 'scales.table'
        words = [f'shape=[{width},{height},3]', f'method={method}', 'type=1', f'thread={torch.get_num_threads()}']
        _call(table, programs['ncnn2table'], *before, str(folder / 'list.txt'), str(table), *words)
        _call(path, programs['ncnn2int8'], *before, str(path), str(path.with_suffix('.bin')), str(table))


QUANTISERS = {
    'onnx-int8': Quantiser(
        ('minmax', 'percentile'), quantise_onnx, sign_onnx, exporters.run_onnx, ('onnx', 'onnxruntime')
    ),
    'openvino-int8': Quantiser(
        ('performance',), quantise_openvino, sign_openvino, exporters.run_openvino, ('onnx', 'openvino', 'nncf')
    ),
    'ncnn-int8': Quantiser(
        ('kl', 'aciq'), quantise_ncnn, exporters._write_texts, exporters.run_ncnn, ('pnnx', 'ncnn'), check_tools
    ),
}
