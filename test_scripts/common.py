"""What the scripts for the paper's figures and tables share: command line, YAML, networks, the look of figures."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))


def _is_ours(entry: str) -> bool:
    return os.path.realpath(entry or '.') in (ROOT, os.path.join(ROOT, 'basicsr'))


# The checkout holds a folder basicsr/ without __init__.py, for the launcher. On the path, it would be a namespace
# package that hides an editable installation of BasicSR: the checkout leaves the path until BasicSR is imported.
sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)]
sys.path.append(ROOT)
from sdakd import compat  # noqa: E402
from sdakd.compat import UserError  # noqa: E402

sys.path.remove(ROOT)

if TYPE_CHECKING:
    import matplotlib.figure
    import numpy as np
    import torch

    from sdakd.files.generators import Opened

T = TypeVar('T')

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common kind of colour blindness. A dash belongs
# to each colour, so that lines are told apart in grey as well.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)))
COLUMN, PAGE = 3.5, 7.16  # widths in inches of one column and of two, IEEE's
STYLE = {
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],  # ships with matplotlib: figures look the same everywhere
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.labelsize': 8,
    'xtick.labelsize': 7,
    'ytick.labelsize': 7,
    'legend.fontsize': 7,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'lines.linewidth': 1.2,
    'pdf.fonttype': 42,  # TrueType: publishers refuse Type 3
    'savefig.dpi': 300,
}


def main(description: str, config: type[T], work: Callable[[T, Path], Sequence[Path]]) -> int:
    """The command line of a script: reads its YAML, makes the output folder, works, says what was written.

    Args:
        description: For ``--help``: the script's docstring.
        config: What the YAML holds, a ``msgspec.Struct`` with a field ``output``.
        work: Called with the configuration and the output folder; returns the paths of what it wrote.

    Returns:
        The exit status; a mistake of the user ends the program with one sentence and status 2.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True, metavar='FILE', help='YAML file; examples are in test_scripts/configs')
    parser.add_argument('-o', '--output', metavar='FOLDER', help="folder for what is made, instead of the YAML's")
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.files.results import output_folder

    options = read_config(args.opt, config)
    folder = args.output or options.output
    if not folder:
        raise UserError(f'{args.opt}: output: no folder is named; name one here, or give -o FOLDER.')
    new = [place for place in (Path(folder), *Path(folder).parents) if not place.exists()]
    try:
        written = work(options, output_folder(folder))
    except BaseException as error:
        with contextlib.suppress(OSError):  # leaves no empty folder behind
            for place in new:
                place.rmdir()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise UserError(f'{error.filename or folder} cannot be read or written ({reason}); mend that.') from None
    sys.stdout.write(f'Written to {folder}: {", ".join(path.name for path in written)}\n')
    return 0


def read_config(path: str, config: type[T]) -> T:
    """Reads a YAML file strictly.

    Raises:
        UserError: No such file, no YAML, an unknown key, a missing key or a value of the wrong kind.
    """
    from sdakd_models.options import typed
    from sdakd_models.reader import read_yaml

    return typed(config, read_yaml(path), path)


def fraction(text: str | int | float, where: str) -> Fraction:
    """A width as YAML may write it: ``1``, ``1/4`` or ``0.25``.

    Raises:
        UserError: It is no positive number.
    """
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise UserError(f'{where}: write a width such as 1, 1/2 or 1/4, not {text!r}.')
    return value


def check_distinct(names: Sequence[str], where: str) -> None:
    """Sees that there is something, and that no label stands for two things.

    Raises:
        UserError: There is nothing, or a label comes twice.
    """
    if not names:
        raise UserError(f'{where}: the list is empty; name at least one.')
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f'{where}: two entries are called {double!r}; rename one of them.')


# ------------------------------------------------------- networks ----------------------------------------------------


def read_rgb(path: str | Path, where: str) -> np.ndarray:
    """An image file as uint8 ``(H, W, 3)``, RGB.

    Raises:
        UserError: It is missing or damaged.
    """
    import numpy as np

    from sdakd.files.images import UnusableError, read_image

    try:
        return np.ascontiguousarray(read_image(path)[..., ::-1])
    except UnusableError as error:
        raise UserError(f'{where}: {path} {error.reason}; give another image.') from None


def enlarge(generator: Opened, image: np.ndarray) -> torch.Tensor:
    """A generator's output as its discriminator saw it in training: neither clipped nor rounded.

    Args:
        generator: From :func:`sdakd.files.generators.open_network`.
        image: uint8 ``(h, w, 3)``, RGB.

    Returns:
        ``(1, 3, h * scale, w * scale)``, RGB, about [0, 1]; of a generator of faces, at their size, without noise.

    Raises:
        UserError: An image that a generator of faces cannot take.
    """
    import torch

    from sdakd_arch.inference.tiling import run_tiled

    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        if generator.scale is not None:
            return run_tiled(generator.module, tensor, generator.scale, multiple=generator.multiple)
        if fault := generator.module.fault(*image.shape[:2]):
            raise UserError(f'{generator.path}: an input {fault}; give aligned faces.')
        return generator.module(tensor)


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """``(1, 3, H, W)`` in [0, 1] as uint8 ``(H, W, 3)``."""
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


# ------------------------------------------------------- outputs -----------------------------------------------------


def new_figure(width: float, height: float) -> matplotlib.figure.Figure:
    """An empty figure in the style of all figures; sizes in inches."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError('figures need matplotlib: pip install matplotlib.') from None
    matplotlib.use('Agg')
    matplotlib.rcParams.update(STYLE)
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout='constrained')


def save_figure(figure: matplotlib.figure.Figure, folder: Path, name: str) -> list[Path]:
    """Writes ``name.pdf`` and ``name.png`` (300 dpi); equal figures give equal files."""
    from sdakd.files.images import write

    paths = []
    for kind, metadata in (('pdf', {'CreationDate': None}), ('png', {})):
        data = io.BytesIO()
        figure.savefig(data, format=kind, metadata=metadata)
        paths.append(folder / f'{name}.{kind}')
        write(paths[-1], data.getvalue())
    return paths


def save_json(content: Any, folder: Path, name: str) -> Path:
    """Writes ``name.json``."""
    from sdakd.files.images import write

    path = folder / f'{name}.json'
    write(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode())
    return path


def save_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], folder: Path, name: str
) -> list[Path]:
    """Writes a table as Markdown, CSV and LaTeX, and shows it; the notes stand below it on screen and in Markdown."""
    from sdakd.files.images import write
    from sdakd.files.results import table, write_tables

    paths = write_tables(folder, name, header, rows)
    write(paths[0], (table(header, rows, 'md') + ''.join(f'\n{note}\n' for note in notes)).encode())
    sys.stdout.write(table(header, rows) + ''.join(f'{note}\n' for note in notes))
    return paths
