"""What a card says, whoever reads it: the model, its training, its licence, its results and its pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.compat import UserError, no_file
from sdakd.files.named import Zoo, zoo
from sdakd.files.results import NAME, read_results
from sdakd.files.training import licence_told, start_of, teachers_of
from sdakd_arch.families import family_of
from sdakd_arch.ncnn_file import is_ncnn
from sdakd_arch.zoo import digest_of, values_digest

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

HOST = 'https://huggingface.co'


@dataclass(frozen=True)
class Row:
    """A model in ``results.json`` of `sdakd evaluate`.

    Args:
        name: What the results call it.
        teacher: What they call its teacher; None where there was none.
        scores: Of all models: the entries of ``scores`` with a mean.
        models: Their entries of ``models``.
        labels: Of the metrics, by their names.
        runs: Timings of `sdakd bench` in the same folder.
        date: Of the evaluation.
    """

    name: str
    teacher: str | None
    scores: list[dict]
    models: list[dict]
    labels: dict[str, str]
    runs: list[dict]
    date: str | None

    def mean(self, model: str, metric: str, reference: str | None) -> float | None:
        """The mean over the first set in which it was measured."""
        keys = (model, metric, reference)
        return next((s['mean'] for s in self.scores if (s['model'], s['metric'], s['reference']) == keys), None)

    def own(self) -> list[dict]:
        """The scores of the model itself."""
        return [score for score in self.scores if score['model'] == self.name]

    def label(self, score: Mapping) -> str:
        """A metric, with what it compares with."""
        return self.labels.get(score['metric'], score['metric']) + (
            ' to the teacher' if score['reference'] == 'teacher' else ''
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: a row per set and model, a column per metric and reference, cost, and time per backend."""
        found = {(s['set'], s['model'], s['metric'], s['reference']): s['mean'] for s in self.scores}
        columns = list(dict.fromkeys((s['metric'], s['reference']) for s in self.scores))
        titles = [self.label({'metric': metric, 'reference': reference}) for metric, reference in columns]
        backends = list(dict.fromkeys(run['backend'] for run in self.runs if run.get('precision') == 'fp32'))
        ms = {(run['model'], run['backend']): run['median_ms'] for run in self.runs if run.get('precision') == 'fp32'}
        rows = []
        for name in dict.fromkeys(s['set'] for s in self.scores):
            for model in self.models:
                cells = [_cell(found.get((name, model['name'], *column)), _digits(column[0])) for column in columns]
                if set(cells) == {'-'}:
                    continue
                macs = model.get('macs')
                cells += [_cell(model.get('parameters'), ',d'), _cell(macs and macs / 1e9, '.3f')]
                cells += [_cell(ms.get((model['name'], backend)), '.1f') for backend in backends]
                rows.append([name, model['name'], *cells])
        return ['set', 'model', *titles, 'parameters', 'GMACs', *(f'ms, {backend}' for backend in backends)], rows


def _digits(metric: str) -> str:
    return '.2f' if metric in ('psnr', 'niqe', 'fid') else '.4f'


def _cell(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)


def read_row(results: Path, opened: Opened, sha256: str) -> Row:
    """The model's row of ``results.json``, found by its file's SHA-256, else by its name where it is the same network.

    It is the same if its size is and, where both are known, its values in float16: under its name another one may
    have been trained since.

    Args:
        results: The file, or its folder.
        opened, sha256: The model.

    Raises:
        UserError: There is no such file, or no row of this model.
    """
    path = results / NAME if results.is_dir() else results
    if path.name != NAME:
        raise UserError('--results', f'{path} is not called {NAME}; give what `sdakd evaluate -o FOLDER` has written.')
    if reason := no_file(path):
        raise UserError('--results', f'{path} {reason}; write it by `sdakd evaluate`.')
    content = read_results(path.parent, 'measure again by `sdakd evaluate`')
    try:
        section = content['evaluate']
        models, teacher = section['models'], section['teacher']
        same = [model for model in models if model['sha256'] == sha256]
        same += [
            model
            for model in models
            if model['name'] in (opened.name, opened.name.removesuffix('_fp16')) and _is_same(model, opened)
        ]
        scores = [score for score in section['scores'] if score['mean'] is not None and math.isfinite(score['mean'])]
        labels = {metric['name']: metric['label'] for metric in section['metrics']}
        runs = [run for run in content.get('bench', {}).get('runs', []) if run.get('median_ms') is not None]
        if same:
            return Row(same[0]['name'], teacher, scores, models, labels, runs, section.get('date'))
        names = ', '.join(model['name'] for model in models)
    except (KeyError, TypeError, AttributeError):
        raise UserError('--results', f'{path} holds no results of `sdakd evaluate`; measure again.') from None
    raise UserError(
        '--results', f'{path} has no row of {opened.path} (it has {names}); measure this file by `sdakd evaluate -m`.'
    )


def _is_same(model: Mapping, opened: Opened) -> bool:
    """Whether a row may be of a network; values are compared within a class, whose names of tensors are the same."""
    network = opened.network or {}
    if _size(model['network']) != _size(opened.network):
        return False
    if (
        model.get('values') is None
        or opened.path.suffix == '.onnx'
        or model['network'].get('type') != network.get('type')
    ):
        return True
    return model['values'] == values_digest(opened.module.state_dict())


def _size(network: Mapping | None) -> object:
    """What two networks have in common if one is an export of the other, which may write its activations otherwise."""
    return (network and family_of(network).catalogue(network)) or network


@dataclass(frozen=True)
class Picture:
    """An image before and after.

    Args:
        title: Of the image.
        before, after: Names of the files beside the card.
    """

    title: str
    before: str
    after: str


@dataclass(frozen=True)
class Part:
    """A file of a model.

    Args:
        name: Its name.
        size: Bytes.
        sha256: Of its content.
    """

    name: str
    size: int
    sha256: str


def parts_of(path: Path) -> list[Part]:
    """The files of a model: ncnn's are two, of which the last holds the weights."""
    files = [path.with_suffix('.param'), path.with_suffix('.bin')] if is_ncnn(path) else [path]
    return [Part(file.name, file.stat().st_size, digest_of(file)) for file in files]


@dataclass
class Subject:
    """A model to be described.

    Args:
        opened: The model.
        parts: Its files; see :func:`parts_of`.
        padded: Whether the file is padded; see :meth:`sdakd_arch.families.Family.is_padded`.
        training: See :mod:`sdakd.files.training`.
        license: An SPDX expression; None where it is not known.
        author, repo, base_model: As given; None where nothing was.
        row: Its results.
        pictures: What it makes of images.
        sheet: The name of the file that shows these side by side.
    """

    opened: Opened
    parts: list[Part]
    padded: bool
    training: dict
    license: str | None
    author: str | None = None
    repo: str | None = None
    base_model: str | None = None
    row: Row | None = None
    pictures: list[Picture] = field(default_factory=list)
    sheet: str = ''

    @property
    def name(self) -> str:
        """Of the model: its file's name without the ending."""
        return self.opened.name

    @property
    def file(self) -> str:
        """The name of the model's file; of ncnn's the ``.param``."""
        return self.parts[0].name

    @property
    def sha256(self) -> str:
        """Of the file that holds the weights."""
        return self.parts[-1].sha256

    @property
    def facts(self) -> dict:
        """What is known beyond the option file."""
        return self.training.get('facts', {})

    @property
    def teachers(self) -> list[dict]:
        """Of the run; see :mod:`sdakd.files.training`."""
        return teachers_of(self.training)

    @property
    def start(self) -> dict | None:
        """What its training began with; see :mod:`sdakd.files.training`."""
        return start_of(self.training)

    def address(self, file: str) -> str | None:
        """Where a file will lie on the Hub; None where no repository is named."""
        return f'{HOST}/{self.repo}/resolve/main/{file}' if self.repo else None

    def option(self, *keys: str) -> object:
        """A value of the option file; None where it has none."""
        found: object = self.training
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    @property
    def degradation(self) -> str | None:
        """``realesrgan``, or what the facts say; None where it is not known."""
        if said := self.facts.get('degradation'):
            return str(said)
        online = self.option('model_type') == 'SDAKDRealESRGANModel'
        return 'realesrgan' if online and self.option('high_order_degradation') is not False else None

    @property
    def batch(self) -> str | None:
        """Images of a batch, in words."""
        if said := self.facts.get('batch'):
            return str(said)
        size = self.option('datasets', 'train', 'batch_size_per_gpu')
        alone = self.option('num_gpu') in (0, 1)
        return None if size is None else f'{size}' if alone else f'{size} a process'

    @property
    def data(self) -> str | None:
        """What it was trained on, in words."""
        said = self.facts.get('data') or self.option('datasets', 'train', 'name')
        return None if said is None else str(said)

    @property
    def crop(self) -> int | None:
        """Side of a crop in pixels of the large image."""
        found = self.option('datasets', 'train', 'gt_size') or self.option('gt_size')
        return found if isinstance(found, int) else None

    @property
    def iterations(self) -> int | None:
        """So many it was trained for."""
        found = self.facts.get('iterations')
        return found if isinstance(found, int) and found > 0 else None

    @property
    def ships(self) -> tuple[Zoo, str] | None:
        """What ships with this project, and the name of this model there; None of any other file."""
        name = zoo().of_file(self.sha256)
        return None if name is None else (zoo(), name)

    @property
    def nearness(self) -> tuple[float, float | None] | None:
        """PSNR to the teacher's images, in dB, and that of bicubic interpolation; None where nobody measured it.

        It is that of the results, else that which is committed beside a model that ships.
        """
        if self.row:
            near = self.row.mean(self.row.name, 'psnr', 'teacher') if self.row.teacher else None
            return None if near is None else (near, self.row.mean('bicubic', 'psnr', 'teacher'))
        quality = self.ships and self.ships[0].models[self.ships[1]].quality
        return (quality.psnr, quality.bicubic[0]) if quality else None

    @property
    def summary(self) -> str:
        """What it is, and how near it is to its teacher, in a sentence or two."""
        cost = self.opened.cost()
        text = f'{self.opened.describe()}, which enlarges {self.opened.scale} times'
        text += f' and has {cost[0]:,d} parameters.' if cost else '.'
        if self.teachers:
            names = ' and '.join(teacher.get('official') or str(teacher.get('file')) for teacher in self.teachers)
            text += f' It was distilled from {names}.'
        if self.nearness:
            near, bicubic = self.nearness
            text += f" Its images are {near:.1f} dB from the teacher's"
            text += '.' if bicubic is None else f'; bicubic interpolation is {bicubic:.1f} dB from them.'
        if self.ships and (ratio := self.ships[0].ratio(self.ships[1])):
            text += f' It is {ratio:.1f} times as fast as its teacher on a processor.'
        return text


def licence_of(training: Mapping, given: str | None) -> str | None:
    """The licence of a model: the one given, else what its training tells (:func:`sdakd.files.training.licence_told`).

    Args:
        training: See :mod:`sdakd.files.training`.
        given: What ``--license`` says.

    Returns:
        An SPDX expression; None where it is not known.

    Raises:
        UserError: What is given is none.
    """
    if given is not None:
        if not _is_spdx(given):
            raise UserError('--license', f'{given!r} is no SPDX name of a licence, such as MIT or CC-BY-4.0.')
        return given
    said = licence_told(training)
    return said if _is_spdx(said) else None


def _is_spdx(text: object) -> bool:
    """Whether a text is the name of a licence, or several of which one may choose."""
    name = re.compile(r'[A-Za-z0-9][A-Za-z0-9.+-]{0,63}')
    return isinstance(text, str) and all(name.fullmatch(part) for part in re.split(r'\s+OR\s+', text))
