"""Models by name: those that ship with this project, and Real-ESRGAN's own where somebody has put them.

What ships lies in ``sdakd/pretrained``: the files, and ``zoo.json``, which says what each is for and what was measured.
``test_scripts/zoo_figures.py`` writes the figures. Neither torch nor BasicSR is needed to read them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sdakd.compat import UserError, near

PRETRAINED = Path(__file__).resolve().parents[1] / 'pretrained'
FIGURES = 'zoo.json'
DOWNLOADS = Path('experiments/pretrained_models')  # where `sdakd fetch` puts files, and option files want them
PLACES = (DOWNLOADS, Path('weights'))  # the second is that of Real-ESRGAN's inference script
ENDINGS = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors', '.param', '.onnx')
_NAME = re.compile(r'[A-Za-z0-9][\w.+-]{0,99}', re.ASCII)


class Cost(msgspec.Struct, forbid_unknown_fields=True):
    """What a network costs.

    Args:
        parameters: Their number.
        macs: Multiply-accumulates for :attr:`Speed.size` pixels on a side.
        ms: Milliseconds for such an image, on the machine of :class:`Speed`; None where it was not measured.
    """

    parameters: int
    macs: int
    ms: float | None = None


class Teacher(Cost, forbid_unknown_fields=True, kw_only=True):
    """A teacher of what ships.

    Args:
        network: Its options as BasicSR's ``build_network`` takes them.
    """

    network: dict


class Quality(msgspec.Struct, forbid_unknown_fields=True):
    """How close a student's images are to its teacher's: means over a test set.

    Args:
        set: The test set, in words.
        psnr: On the Y channel, in dB.
        distance: Of EfficientNet-lite0's features, see docs/evaluate.md; less is closer.
        bicubic: PSNR and distance of bicubic interpolation on the same images.
    """

    set: str
    psnr: float
    distance: float
    bicubic: tuple[float, float]


class Shipped(msgspec.Struct, forbid_unknown_fields=True):
    """A model that ships.

    Args:
        file: Its name in :data:`PRETRAINED`.
        what: What it is for, in a line.
        teacher: Whose student it is; None of a teacher.
        network: In words.
        license: Of the weights, an SPDX name.
        training: Iterations and batches, in words.
        bytes: Of the file.
        sha256: Of the file.
        values: Of its weights: :func:`sdakd_arch.zoo.values_digest`.
        cost: What it costs.
        quality: None where it was not measured.
    """

    file: str
    what: str
    teacher: str | None = None
    network: str = ''
    license: str = ''
    training: str = ''
    bytes: int = 0
    sha256: str = ''
    values: str = ''
    cost: Cost | None = None
    quality: Quality | None = None

    @property
    def path(self) -> Path:
        """Where it lies."""
        return PRETRAINED / self.file


class Speed(msgspec.Struct, forbid_unknown_fields=True):
    """How the times were measured: each network in the faster way of PyTorch's, in float32.

    Args:
        size: Side of the input in pixels.
        cpu, threads, torch, rounds, date: Of `sdakd bench`.
    """

    size: int
    cpu: str = ''
    threads: int = 0
    torch: str = ''
    rounds: int = 0
    date: str = ''


class Zoo(msgspec.Struct, forbid_unknown_fields=True):
    """What ships.

    Args:
        default: The model of `sdakd upscale` where none is named.
        speed: How times were measured.
        teachers: By their names.
        models: By their names; the order is that of tables.
    """

    default: str
    speed: Speed
    teachers: dict[str, Teacher]
    models: dict[str, Shipped]

    def teacher_cost(self, name: str) -> Cost | None:
        """What the teacher of a model costs; None of a teacher."""
        teacher = self.models[name].teacher
        shipped = self.models.get(teacher or '')
        return shipped.cost if shipped else self.teachers.get(teacher or '')

    def ratio(self, name: str) -> float | None:
        """How many times as fast as its teacher a model is; None where that was not measured."""
        own, teacher = self.models[name].cost, self.teacher_cost(name)
        return teacher.ms / own.ms if own and teacher and own.ms and teacher.ms else None

    def of_file(self, sha256: str) -> str | None:
        """The name of the model whose file has this SHA-256; None: none."""
        return next((name for name, model in self.models.items() if model.sha256 == sha256), None)


@functools.cache
def zoo() -> Zoo:
    """What ships, from :data:`FIGURES`."""
    return msgspec.json.decode((PRETRAINED / FIGURES).read_bytes(), type=Zoo)


def write_zoo(content: Zoo) -> None:
    """Replaces :data:`FIGURES`."""
    from sdakd.files.images import write

    text = json.dumps(msgspec.to_builtins(content), indent=2, ensure_ascii=False)
    write(PRETRAINED / FIGURES, (text + '\n').encode())
    zoo.cache_clear()


def published() -> list[str]:
    """Names of Real-ESRGAN's generators, which `sdakd fetch` gets."""
    from sdakd_arch.zoo import MODELS

    return [name for name, model in MODELS.items() if model.sha256]


def by_name(name: str, where: str = '-n', before: str = '') -> Path:
    """The file of a model that ships, or of a published one that is in one of :data:`PLACES`.

    Args:
        name: With or without ``.pth``.
        where: The flag to name in an error.
        before: What the error about a name that is unknown begins with.

    Raises:
        UserError: No model has this name, with near ones; or it is published and not here.
    """
    name = name.removesuffix('.pth')
    if name in zoo().models:
        return zoo().models[name].path
    known = published()
    if name not in known:
        raise UserError(where, f'{before}no model is called {name}; {near(name, [*zoo().models, *known])}.')
    found = next((path for folder in PLACES if (path := folder / f'{name}.pth').is_file()), None)
    if found is None:
        places = ' or '.join(map(str, PLACES))
        raise UserError(where, f'{name} does not ship and is not in {places}; get it by `sdakd fetch {name}`.')
    return found


def model_file(model: str | Path, where: str = '-m') -> Path:
    """What ``-m`` means: the file of this path or, where there is none, the model of this name.

    A folder is no file: the one that `sdakd export -m NAME -o NAME` has written does not hide the model.

    Args:
        model: A path, or a name as :func:`by_name` takes it.
        where: The flag to name in an error.

    Returns:
        The file; the path itself where it cannot be a name, whether it exists or not.

    Raises:
        UserError: There is neither.
    """
    text = os.fspath(model)
    folder = os.path.isdir(text)
    there = os.path.lexists(text) and not folder
    if there or not _NAME.fullmatch(text) or Path(text).suffix.lower() in ENDINGS:
        return Path(text)
    return by_name(text, where, f'{text} is a folder, and ' if folder else f'the file {text} does not exist, and ')


def model_files(models: str | Path | Iterable[str | Path], where: str = '-m') -> list[Path]:
    """:func:`model_file` of one or several."""
    return [model_file(model, where) for model in ([models] if isinstance(models, str | Path) else models)]
