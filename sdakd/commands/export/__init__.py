"""`sdakd export`: a generator as a file for other programs, read back by its own runtime before it gets its name."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdakd import __version__, compat, stops
from sdakd.commands.export import formats as exporters
from sdakd.commands.export import int8, web
from sdakd.commands.export.formats import to_onnx, to_openvino
from sdakd.commands.interface import Flags, Outcome, number, one_of
from sdakd.compat import UserError
from sdakd.files.named import model_files, zoo
from sdakd.progress import Progress

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

__all__ = ['FORMATS', 'to_onnx', 'to_openvino']

ALL = 'all'
ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = 1e-4  # largest difference in float32, of values in [0, 1]
LOWEST_PSNR = 45.0  # dB, of a float16 file against PyTorch in float32
SIZES = (24, 36), (33, 47)  # that every file is checked at


@dataclass(frozen=True)
class Format:
    """One of the formats.

    Args:
        write: Writes a generator to a path, in float16 if asked.
        read: Opens the file by its own runtime, for ``(N, 3, h, w)``.
        endings: Of its files; the first one is the default.
        packages: What it needs beyond this project's dependencies.
        mark: What its file names get, to tell them from another format's.
        check: Refuses a generator that the format is not for.
        any_size: Whether it takes sides that are no multiples of what the generator wants.
        note: What the line about the file says of it.
        quantiser: Of an int8 format, which is written by it, from photographs, and not by ``write``.
    """

    write: exporters.Writer | None
    read: exporters.Reader
    endings: tuple[str, ...]
    packages: tuple[str, ...] = ()
    mark: str = ''
    check: Callable[[Opened], None] | None = None
    any_size: bool = True
    note: str = ''
    quantiser: int8.Quantiser | None = None


FORMATS = {
    'safetensors': Format(exporters.to_safetensors, exporters.run_weights, ('.safetensors', '.pth')),
    'padded': Format(
        exporters.to_padded,
        exporters.run_spandrel,
        ('.safetensors', '.pth'),
        mark='_padded',
        check=exporters.check_padded,
        any_size=False,
    ),
    'onnx': Format(to_onnx, exporters.run_onnx, ('.onnx',), ('onnx', 'onnxruntime'), note=f'opset {exporters.OPSET}, '),
    'openvino': Format(to_openvino, exporters.run_openvino, ('.xml', '.bin'), ('onnx', 'openvino'), mark='_openvino'),
    'torchscript': Format(exporters.to_torchscript, exporters.run_torchscript, ('.pt',)),
    'ncnn': Format(exporters.to_ncnn, exporters.run_ncnn, ('.param', '.bin'), ('pnnx', 'ncnn'), any_size=False),
}
for _name, _quantiser in int8.QUANTISERS.items():  # as the format that they quantise
    _float = FORMATS[_name.removesuffix('-int8')]
    FORMATS[_name] = dataclasses.replace(
        _float,
        write=None,
        packages=_quantiser.packages,
        mark=f'{_float.mark}_int8',
        check=_quantiser.check,
        quantiser=_quantiser,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, export)
    which = 'the generator: .pth, .safetensors, ncnn .param, or a name of `sdakd models`; for web one or several '
    which += f'(default: {zoo().default})'
    add('-m', '--model', nargs='+', metavar='FILE', help=which)
    every = f'{", ".join(FORMATS)}; all (the default): those that the model and this machine allow; '
    every += 'web, which all leaves out: a folder with an application for browsers, built with npm'
    add('--to', nargs='+', choices=[*FORMATS, web.NAME, ALL], metavar='FORMAT', help=every)
    where = 'a folder, or for one format a file name (default: the current folder)'
    add('-o', '--output', metavar='OUT', help=where)
    add('--half', action='store_true', help='weights in float16; input and output stay float32')
    folder = 'for int8: a folder of photographs, at least 4 and better 20 or more; one in four only judges'
    add('--calibrate', metavar='FOLDER', help=folder)
    loss = 'for int8: the most that PSNR may fall, in dB on the photographs that judge (default: {default})'
    add('--max_loss', type=number, metavar='DB', help=loss)


@dataclass
class Exported(Outcome):
    """What was written.

    Args:
        files: File by format; for ncnn the ``.param``, for OpenVINO the ``.xml``, beside which the ``.bin`` lies.
        lines: Size, precision and difference to PyTorch by format, in words.
        network: The generator, in words.
        left_out: Why not, by format, where all were asked for.
    """

    files: dict[str, Path]
    lines: dict[str, str]
    network: str
    left_out: dict[str, str]

    def __str__(self) -> str:
        folder = next(iter(self.files.values())).parent
        lines = ''.join(f'{path}: {self.lines[name]}\n' for name, path in self.files.items())
        lines += ''.join(f'not {name}: {reason}\n' for name, reason in self.left_out.items())
        loss = ', int8 but for the loss that its line says' * any(FORMATS[name].quantiser for name in self.files)
        return (
            f'{lines}Wrote {self.network} to {folder} as {", ".join(self.files)}; every file was read back by its own '
            f'runtime and gives what PyTorch gives{loss}.\n'
        )


@stops.leaving('only whole files were written; give the same command again')
def export(
    model: str | Path | Sequence[str | Path] | None = None,
    to: Sequence[str] = (ALL,),
    output: str | Path = '.',
    *,
    half: bool = False,
    calibrate: str | Path | None = None,
    max_loss: float = int8.MAX_LOSS,
) -> Exported | web.Site:
    """Writes a generator as files for other programs, one format after the other.

    Each file gets its name when its own runtime has read it back and its output was compared with PyTorch's.

    Args:
        model: ``.pth`` or ``.safetensors``, or a name of :mod:`sdakd.files.named`; for ``web`` one or several; its
            default is that of `sdakd upscale`.
        to: Of :data:`FORMATS`; or ``all``, which leaves out those that cannot be had and says why; or ``web`` alone.
        output: A folder, or for one format a file name with the format's ending.
        half: Weights in float16; input and output stay float32.
        calibrate: A folder of photographs, which the int8 formats need; ``all`` has these only with it.
        max_loss: The most that PSNR may fall in an int8 file, in dB: :func:`sdakd.commands.export.int8.export_int8`.

    Returns:
        The files; of ``web`` the folder.

    Raises:
        UserError: A mistake in the arguments, a model that cannot be opened; of a format that was named: a missing
            package, a model that cannot be written in it, or a file that does not give what PyTorch gives. Of ``all``
            the same only where no format is left.
    """
    names, output = list(dict.fromkeys([to] if isinstance(to, str) else to)), Path(output)
    for name in names:
        one_of(name, [*FORMATS, web.NAME, ALL], '--to')
    if model is None and names != [web.NAME]:
        raise UserError('-m', f'name a model; only --to {web.NAME} has one of its own ({zoo().default}).')
    models = model_files(zoo().default if model is None else model)
    for path in models:
        if path.suffix == '.onnx':
            raise UserError(
                '-m', f'{path} is an exported graph already; give the .pth or .safetensors that it came from.'
            )
    if web.NAME in names:
        int8.check_arguments([], calibrate, max_loss, half)
        return _to_web(names, models, output, half)
    if len(models) != 1:
        raise UserError('-m', f'{len(models)} models are given; one, or several with --to {web.NAME}.')
    model = models[0]
    every = ALL in names
    if every:
        names = [name for name, entry in FORMATS.items() if entry.quantiser is None or calibrate is not None]
    max_loss = int8.check_arguments([name for name in names if FORMATS[name].quantiser], calibrate, max_loss, half)
    targets = _targets(names, output, model, half)
    compat.import_basicsr()
    from sdakd.files.generators import open_network

    opened = open_network(model)
    lines: dict[str, str] = {}
    left_out: dict[str, str] = {}

    def leave_out(name: str, error: UserError) -> None:
        if not every or not error.where.startswith('--to'):  # it was named, or the folder cannot be written to
            raise error
        left_out[name] = error.sentence
        del targets[name]

    for name, target in list(targets.items()):
        try:
            _check(name, target, opened)
        except UserError as error:
            leave_out(name, error)
    opened.metadata = _facts(opened)
    photographs = None
    if any(FORMATS[name].quantiser for name in targets):
        photographs = int8.read_photographs(calibrate, opened.scale, opened.multiple)
    mask = os.umask(0)
    os.umask(mask)
    with _folder(output if every else next(iter(targets.values())).parent) as work:
        progress = Progress('export', len(targets), 'files')
        for name, target in progress.over(list(targets.items())):
            progress.note = name
            place = work / name
            place.mkdir()
            try:
                lines[name] = _export(name, opened, place / target.name, half, photographs, max_loss)
            except UserError as error:
                leave_out(name, error if error.where.startswith('--to') else error.at(str(target)))
                continue
            for file in sorted(place.iterdir()):
                if file.is_file():
                    file.chmod(0o666 & ~mask)  # safetensors writes for its owner alone
                    os.replace(file, target.with_name(file.name))
        if not targets:
            reasons = '; '.join(f'{name}: {reason.rstrip(".")}' for name, reason in left_out.items())
            raise UserError('--to all', f'{model} cannot be written in any format ({reasons}).')
    return Exported(targets, lines, opened.describe(), left_out)


def _to_web(names: list[str], models: list[Path], output: Path, half: bool) -> web.Site:
    """The folder of :mod:`sdakd.commands.export.web`."""
    if len(names) > 1 or half:
        flag, sentence = ('--half', 'stores weights in float16 by itself') if half else ('--to', 'makes a folder')
        raise UserError(flag, f'{web.NAME} {sentence}; give {web.NAME} by itself.')
    web.check(models, output)
    compat.import_basicsr()
    from sdakd.files.generators import open_network

    opened = [open_network(path) for path in models]
    return web.site(opened, output, to_onnx, lambda each, path: _compare('onnx', each, path)[0], _facts)


def _check(name: str, target: Path, opened: Opened) -> None:
    """Before anything is written.

    Raises:
        UserError: A package is missing, the file is the model itself, or the format is not for this model.
    """
    for package in FORMATS[name].packages:
        try:
            importlib.import_module(package)
        except ImportError:
            wanted = ' '.join(FORMATS[name].packages)
            raise UserError(f'--to {name}', f'the package {package} is not installed: pip install {wanted}.') from None
    written = (target, target.with_suffix('.bin')) if '.bin' in FORMATS[name].endings else (target,)
    if os.path.realpath(opened.path) in map(os.path.realpath, written):
        raise UserError(
            f'--to {name}', f'{target} is the model itself, which would be overwritten; give another folder.'
        )
    if FORMATS[name].check:
        FORMATS[name].check(opened)


def _targets(names: list[str], output: Path, model: Path, half: bool) -> dict[str, Path]:
    """The file of every format: ``output`` itself, or one in the folder ``output`` that is named after the model."""
    known = {ending for entry in FORMATS.values() for ending in entry.endings}
    if output.suffix in known and not output.is_dir():
        if len(names) > 1:
            raise UserError('-o', f'{output} is one file, but --to names {len(names)} formats; give a folder.')
        endings = FORMATS[names[0]].endings
        if output.suffix not in endings:
            raise UserError('-o', f'{output} should end in {" or ".join(endings)}, as --to {names[0]} writes it.')
        targets = {names[0]: output.with_suffix(endings[0]) if output.suffix == '.bin' else output}
    else:
        if output.exists() and not output.is_dir():
            raise UserError('-o', f'{output} is a file; give a folder, or a name that ends as the format does.')
        stem, end = model.stem.removesuffix('_fp16'), '_fp16' if half else ''
        targets = {n: output / f'{stem}{FORMATS[n].mark}{end}{FORMATS[n].endings[0]}' for n in names}
    for target in targets.values():
        if target.is_dir():
            raise UserError('-o', f'{target} is a folder; remove it or give another name.')
    return targets


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Makes the output folder, and a hidden one in it to work in; what was made is gone again if the work fails."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    work = folder / f'.export_{os.getpid()}'  # known before it is made: a Ctrl-C may come between the two
    try:
        try:
            shutil.rmtree(work, ignore_errors=True)
            try:
                work.mkdir(parents=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError('-o', f'{folder} cannot be written to ({reason}); choose another folder.') from None
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only where nothing has been finished in it
        raise


def _export(
    name: str, opened: Opened, path: Path, half: bool, photographs: int8.Photographs | None, max_loss: float
) -> str:
    """Writes one format to ``path`` and checks it; returns what to say about it."""
    entry = FORMATS[name]
    if entry.quantiser:
        quality = int8.export_int8(name, entry.quantiser, opened, path, photographs, max_loss)
        difference, _, sizes = _compare(name, opened, path)
        if math.isnan(difference):
            raise UserError(f'--to {name}', f'the file that was written for {opened.path} gives nan and was deleted.')
        return f'{_size(path)}, {entry.note}{quality}, runs at {sizes} pixels'
    entry.write(opened, path, half)
    difference, psnr, sizes = _compare(name, opened, path)
    if not (psnr >= LOWEST_PSNR if half else difference <= TOLERANCE):  # also where it is nan
        bound = f'at least {LOWEST_PSNR:g} dB' if half else f'at most {TOLERANCE:g}'
        found = f'{psnr:.1f} dB' if half else f'{difference:.1e}'
        remedy = f'update the packages of this format ({_versions(name)}), or take safetensors: a graph does not '
        remedy += 'follow an architecture that computes with sizes in Python, as SwinIR does'
        remedy = 'export without --half' if half else remedy
        raise UserError(
            f'--to {name}',
            f'the file that was written for {opened.path} does not give what PyTorch gives ({found}, '
            f'{bound} is wanted) and was deleted; {remedy}.',
        )
    quality = f'largest difference {difference:.1e}' if difference else 'no difference'
    quality += f', {psnr:.1f} dB,' if half and difference else ''
    precision = 'float16' if half else 'float32'
    return f'{_size(path)}, {entry.note}{precision}, {quality} at {sizes} pixels'


def _size(path: Path) -> str:
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file() and file.suffix != '.json')
    return f'{size / 1e6:.2f} MB'


def _compare(name: str, opened: Opened, path: Path) -> tuple[float, float, str]:
    """The file against PyTorch in float32: largest absolute difference, PSNR (dB, of all values), and at which sizes.

    Both are in units of the output's largest magnitude, or of 1 where that is less: images are in [0, 1].
    """
    step = 1 if FORMATS[name].any_size else opened.multiple
    sizes = [(height - height % step, width - width % step) for height, width in SIZES]
    generator = torch.Generator().manual_seed(0)
    reference = exporters.Portable(opened)
    largest, squares, count = 0.0, 0.0, 0
    at = 'be opened'
    try:
        runner = FORMATS[name].read(path)
        for height, width in sizes:
            at = f'run at {height}x{width} pixels'
            image = torch.rand(2, 3, height, width, generator=generator)
            with torch.no_grad():
                found, wanted = runner(image).double(), reference(image).double()
            difference = (found - wanted) / max(1.0, wanted.abs().max().item())
            largest = max(largest, difference.abs().max().item()) if difference.isfinite().all() else math.nan
            squares, count = squares + difference.square().sum().item(), count + difference.numel()
    except Exception as error:  # every runtime raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f'--to {name}', f'the file that was written for {opened.path} could not {at} and was deleted ({reason}).'
        ) from None
    psnr = -10 * math.log10(squares / count) if squares else math.inf
    if math.isnan(largest):
        psnr = math.nan
    return largest, psnr, ' and '.join(f'{height}x{width}' for height, width in sizes)


def _versions(name: str) -> str:
    found = ['torch', *FORMATS[name].packages]
    return ', '.join(f'{package} {getattr(importlib.import_module(package), "__version__", "")}' for package in found)


# ------------------------------------------------------ metadata ------------------------------------------------------


def _facts(opened: Opened) -> dict:
    """What an exported file says of itself beside its network; how it was trained travels on."""
    from sdakd.files.training import training_of

    return {'training': training_of(opened), 'commit': _commit(), 'version': __version__}


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with ``-dirty`` where it was changed since."""
    if not (ROOT / '.git').exists():
        return None
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*']
    try:
        done = subprocess.run(command, capture_output=True, encoding='utf-8', timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
