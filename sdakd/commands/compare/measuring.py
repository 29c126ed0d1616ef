"""Measures the students of a comparison: `sdakd evaluate`, once for the same files."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdakd.commands.compare.config import Config, locate
from sdakd.commands.compare.factors import merge, names_of, source_of
from sdakd.commands.compare.matrix import Matrix
from sdakd.compat import UserError
from sdakd.files.images import ENDINGS, UnusableError, find_files, read_header, write
from sdakd.files.runs import digest

if TYPE_CHECKING:
    from sdakd.commands.compare.summary import Cell
    from sdakd_metrics.metrics import Metric

ROUNDS = 10  # of timing a network
PAIR = 2  # images that a kernel distance takes at least
Sizes = list[tuple[int, int] | None]  # height and width of images; None of one that cannot be read


def check_measures(config: Config, matrix: Matrix) -> None:
    """Opens metrics and test sets before any training.

    Args:
        config, matrix: The comparison.
    """
    from sdakd.files.testsets import open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    check_judge(config)
    scales = config.factors() or [matrix.scale]
    try:
        metrics = open_metrics(config.metrics, Settings(scales[0], backbone=fd_backbone(config)))
    except UserError as error:
        keys = {'--backbone': 'fd_backbone', '--face_model': 'metrics'}
        raise error.at(keys.get(error.where, error.where.removeprefix('--'))) from None
    # papers decide by FID on sets of every size; a note says how many samples it stands on
    decides = next((each for each in metrics if each.name == config.primary.metric in ('fd', 'kid')), None)
    sizes: dict[str, Sizes] = {}
    if decides and len(config.search.factors) > 1 and (found := _validation_sizes(matrix)):
        sizes['the validation split'] = found
    for name, source in matrix.images.test.items():
        try:
            for scale in scales:
                (testset,) = open_sets([f'{name}={source}'], scale)
        except UserError as error:
            raise error.at(f'data:test:{name}') from None
        sizes[name] = [testset.size(image) for image in testset.names]
    if decides:
        check_samples(decides, sizes)


def _validation_sizes(matrix: Matrix) -> Sizes:
    """Of the ground truth of the validation split: photographs as they are, or the folder's; none if it is missing."""
    split, found = matrix.images.splits.get('validation'), []
    folder = split.folder if split else matrix.images.validation[0]
    names = split.names if split else find_files(str(folder), ENDINGS)
    for path in (folder / name for name in names):
        try:
            header = read_header(path)
            found.append((header.height, header.width))
        except UnusableError:
            found.append(None)
    return found


def check_samples(primary: Metric, sizes: Mapping[str, Sizes]) -> None:
    """Checks that a distance of sets that is to decide has samples enough on every set that it is measured on.

    Raises:
        UserError: It has not; says how many images it takes.
    """
    for name, images in sizes.items():
        samples = [primary.features.independent(*size) for size in images if size]
        if not primary.needed and (usable := sum(map(bool, samples))) < PAIR:
            raise UserError(
                'primary:metric',
                f'{primary.label} compares {primary.features.unit} of two or more images, and {name} has {usable} '
                f'that will do in {len(images)}; give more, or larger ones.',
            )
        if (found := sum(samples)) >= primary.needed:
            continue
        more = f'about {math.ceil(primary.needed * len(images) / found):,d} such images' if found else 'larger images'
        raise UserError(
            'primary:metric',
            f'{primary.label} takes {primary.needed:,d} {primary.features.unit}, ten for each of its '
            f'{primary.features.channels:,d} features, and {name} has {found:,d} in {len(images)} images; give {more}, '
            'or write kid, which few images do not bias.',
        )


def without_short(section: dict) -> tuple[dict, list[str]]:
    """The section ``evaluate`` without FDs of too few samples, and a sentence for each set with too few.

    FID stays, with its sentence: papers give it for sets of every size.
    """
    short = {(s['metric'], s['set']): s for s in section['scores'] if s.get('samples', 0) < s.get('needed', 0)}
    labels, sentences = {metric['name']: metric['label'] for metric in section['metrics']}, []
    for (metric, of), entry in short.items():
        stands = f'{entry["samples"]:,d} independent samples, and it needs {entry["needed"]:,d}, ten for each feature'
        if metric == 'fd':
            sentences.append(f'{labels[metric]} is not reported on {of}: there are {stands}.')
        else:
            sentences.append(f'{labels[metric]} on {of} is too large and says little: it stands on {stands}.')
    scores = [s for s in section['scores'] if s['metric'] != 'fd' or ('fd', s['set']) not in short]
    kept = {s['metric'] for s in scores}
    return section | {'scores': scores, 'metrics': [m for m in section['metrics'] if m['name'] in kept]}, sentences


def check_judge(config: Config) -> None:
    """Checks that the backbone of FD and KID is not the one of perceptual terms: students learn to please that one.

    Raises:
        UserError: They are the same file, or copies of one.
    """
    judge, trainer = (fd_backbone(config) or '').partition(':')[2], config.stand_in()
    if judge and trainer is not None:
        trains = locate(trainer.weights, 'perceptual')
        if trains.is_file() and Path(judge).is_file() and digest(judge) == digest(trains):
            raise UserError(
                'fd_backbone',
                f'{Path(judge).name} is also what trains students (perceptual), who learn to please it; judge them by '
                'another network.',
            )


def fd_backbone(config: Config) -> str | None:
    if config.fd_backbone is None or ':' not in config.fd_backbone:
        return config.fd_backbone
    kind, _, file = config.fd_backbone.partition(':')
    return f'{kind}:{locate(file, "fd_backbone")}'


def measure(
    config: Config, matrix: Matrix, folder: Path, cells: Sequence[Cell], sets: dict[str, str], metrics: Sequence[str],
    others: Sequence[str], images: bool,
) -> dict:  # fmt: skip
    """`sdakd evaluate` on the cells' students; kept where the same files were measured before.

    Returns:
        The section ``evaluate`` of the folder's results.json.
    """
    from sdakd.commands.evaluate import evaluate
    from sdakd.files.results import read_results, write_section

    plain = {'teacher': lambda: str(teaching_file(matrix)), 'bicubic': lambda: 'bicubic'}
    models = {name: plain[name]() for name in others} | {cell.run.name: str(cell.run.result) for cell in cells}
    sources = {name: f'{name}={source}' for name, source in sets.items()}
    known = read_results(folder).get('evaluate') or {}
    wanted = {name: None if path == 'bicubic' else digest(path) for name, path in models.items()}
    same = {model['name']: model['sha256'] for model in known.get('models', ())} == wanted
    factors = config.factors()
    scales = factors or [matrix.scale]
    inputs = {'scales': scales, 'data': {name: _content(source, scales) for name, source in sources.items()}}
    before = known.get('inputs') or {}
    same = same and all(before.get(key) == value for key, value in inputs.items()) and before['images'] >= images
    same = same and [s['name'] for s in known['sets']] == names_of(list(sets), factors)
    same = same and all(s['source'] == source_of(s['name'], sources) for s in known['sets'])
    backbone = fd_backbone(config) if {'fd', 'kid'} & set(metrics) else None
    for metric in known.get('metrics', ()):
        if metric['name'] in ('fd', 'kid'):
            same = same and (f' {backbone} (' in metric['convention'] if backbone else metric['label'] == 'KID')
    if same and [metric['name'] for metric in known['metrics']] == list(dict.fromkeys(metrics)):
        return known
    evaluate(
        [f'{name}={path}' for name, path in models.items()],
        list(sources.values()),
        folder,
        scale=factors or matrix.scale,
        metrics=metrics,
        backbone=backbone,
        teacher='teacher' if 'teacher' in others else None,
        images=images,
    ).check()
    section = merge(folder, factors) if len(factors) > 1 else read_results(folder)['evaluate']
    section['inputs'] = {**inputs, 'images': images}
    write_section(folder, 'evaluate', section)
    return section


def _content(source: str, scales: Sequence[int]) -> str:
    """A digest of the names and bytes of a test set's images, wherever they lie."""
    from sdakd.files.testsets import Folder, open_sets

    found, lines = functools.cache(digest), []
    for scale in scales:  # inputs may lie in a folder for each
        (testset,) = open_sets([source], scale)
        for side, images in (('hr', testset.hr), ('lr', testset.lr)):
            if images is not None:
                names = images.files.values() if isinstance(images, Folder) else ('data.mdb', 'meta_info.txt')
                lines += [f'{side} {scale} {name} {found(Path(images.path, name))}' for name in sorted(names)]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def teaching_file(matrix: Matrix) -> Path:
    """A file that opens as what teaches: the teacher's own, or, where an option file names other tensors of it or a
    network that it does not tell by itself, one with these in ``OUT/starts``.
    """
    from safetensors.torch import save

    from sdakd.files.generators import open_network
    from sdakd_arch.weights import read_weights

    key = matrix.teaches.get('param_key')
    state = read_weights(matrix.teacher, key, 'teacher')
    try:
        opened = open_network(matrix.teacher, 'teacher', faces=True)
        usual = read_weights(matrix.teacher, 'params_ema', 'teacher')
        equal = state.keys() == usual.keys() and all(torch.equal(state[name], usual[name]) for name in state)
        if equal and _whole(opened.network) == _whole(matrix.network):
            return matrix.teacher
    except UserError:  # it does not tell its network
        pass
    file = matrix.output / 'starts' / 'teacher.safetensors'
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    write(file, save(tensors, metadata={'network': json.dumps(matrix.network)}))
    return file


def _whole(network: Mapping) -> dict:
    """A network's options with what its class takes for those that are left out."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from sdakd_arch.width import lookup

    parameters = inspect.signature(lookup(ARCH_REGISTRY, network['type'], 'teacher')).parameters
    return {name: one.default for name, one in parameters.items()} | dict(network)


def latencies(matrix: Matrix, cells: Sequence[Cell]) -> tuple[dict[str, dict], str]:
    """How long the teacher and a student of each width take on this machine: `sdakd bench`, eager, fp32.

    Returns:
        ``median_ms``, ``p10_ms`` and ``p90_ms`` by width, and of ``teacher``; and under which conditions, in words, or
        why there is none: nothing that was trained shall be lost for it.
    """
    from sdakd.commands.bench import bench

    students = {str(cell.ratio): str(cell.run.result) for cell in reversed(cells)}
    names = {'teacher': 'teacher'} | {width: f'student {number}' for number, width in enumerate(students)}
    files = {'teacher': str(teaching_file(matrix))} | students
    sources = [f'{names[key]}={file}' for key, file in files.items()]
    try:
        content = bench(sources, rounds=ROUNDS, backends=['eager'], precisions=['fp32']).section
    except UserError as error:  # a generator of faces smaller than the input
        return {}, f'not measured, {error.sentence.rstrip(".")}'
    runs = {run['model']: run for run in content['runs'] if run['median_ms']}
    found = {
        key: {name: runs[names[key]][name] for name in ('median_ms', 'p10_ms', 'p90_ms')}
        for key in files
        if names[key] in runs
    }
    threads = f'{content["threads"]} thread{"s" * (content["threads"] != 1)}'
    where = f'{content["cpu"]}, {threads}' if content['device'] == 'cpu' else content['device']
    return found, f'eager fp32, {content["size"]}x{content["size"]} pixels, {where}, {ROUNDS} rounds'
