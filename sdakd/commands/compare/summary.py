"""From what was measured to what is said: means over seeds, paired differences, costs, tables and their notes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import msgspec

from sdakd.commands.compare.config import Budget, Config, Primary
from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.rows import Row
from sdakd.files.intervals import FEWEST, bootstrap_interval
from sdakd.files.runs import Run, digest

FEWEST_SEEDS = 3  # of which a spread, and an interval of a difference, is given
DIGITS = {'psnr': 2, 'ssim': 4, 'niqe': 2, 'lpips': 4, 'fid': 2, 'kid': 4, 'fd': 1, 'identity': 4}


@dataclass
class Cell:
    """One cell with its run; ``factor`` scales the weights of the row's own terms."""

    row: Row
    ratio: Fraction
    seed: int
    factor: float
    run: Run


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1); no deviation for fewer than :data:`FEWEST_SEEDS` values."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) >= FEWEST_SEEDS else None


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def over_seeds(section: Mapping, cells: Sequence[Cell], reference_row: str) -> tuple[list[dict], list[dict]]:
    """Means over seeds, and differences between rows whose seeds were paired.

    An interval over images says how far a difference may depend on the choice of images, for these students. Of one or
    two trainings a method would be judged by it as though training had no chance in it: then there is none, nor a
    standard deviation, and tables show the value of every seed.

    Args:
        section: The section ``evaluate`` of results.json; its models are named after the cells' runs.
        cells: The final cells that are done.
        reference_row: What the others are compared with.

    Returns:
        Entries ``row, width, set, metric, reference, mean, sd, n, values``; and ``a, b, ...`` for every row ``a`` of a
        width minus the reference row ``b`` on the same seeds; ``low`` and ``high`` are limits of the 95% interval over
        ``images`` images, of the difference averaged over seeds, where the metric belongs to images.
    """
    found = {(s['model'], s['set'], s['metric'], s['reference']): s for s in section['scores']}
    columns = dict.fromkeys((s['set'], s['metric'], s['reference']) for s in section['scores'])
    groups: dict[tuple[str, Fraction], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.row.name, cell.ratio), []).append(cell)
    scores, differences = [], []
    for column in columns:
        of, metric, reference = column
        taken = {}
        for (name, ratio), members in groups.items():
            entries = {c.seed: found.get((c.run.name, *column)) for c in members}
            entries = {s: e for s, e in sorted(entries.items()) if e is not None and _finite(e['mean'])}
            if not entries:
                continue
            taken[name, ratio] = entries
            values = {s: e['mean'] for s, e in entries.items()}
            mean, sd = spread(list(values.values()))
            scores.append(
                {'row': name, 'width': str(ratio), 'set': of, 'metric': metric, 'reference': reference}
                | {'mean': mean, 'sd': sd, 'n': len(values), 'values': {str(s): v for s, v in values.items()}}
            )
        for (a, ratio), entries in taken.items():
            others = taken.get((reference_row, ratio), {})
            seeds = [s for s in entries if s in others]
            if a == reference_row or not seeds:
                continue
            values = {s: entries[s]['mean'] - others[s]['mean'] for s in seeds}
            mean, sd = spread(list(values.values()))
            images = _over_images([(_by_image(entries[s]), _by_image(others[s])) for s in seeds])
            enough = images and len(seeds) >= FEWEST_SEEDS
            _, low, high = bootstrap_interval(images) if enough else (None, None, None)
            differences.append(
                {'a': a, 'b': reference_row, 'width': str(ratio), 'set': of, 'metric': metric, 'reference': reference}
                | {'mean': mean, 'sd': sd, 'n': len(seeds), 'values': {str(s): v for s, v in values.items()}}
                | {'low': low, 'high': high, 'images': len(images)}
            )
    return scores, differences


def _by_image(score: Mapping) -> dict | None:
    """The value of every image, or of a metric of sets the image's pseudo-value, where there is one."""
    return score['per_image'] or score.get('pseudo_values')


def _over_images(pairs: Sequence[tuple[dict | None, dict | None]]) -> list[float]:
    """The difference of every image that all seeds have in common, averaged over them; empty for metrics of a set."""
    if any(not one or not other for one, other in pairs):
        return []
    names = [n for n in pairs[0][0] if all(_finite(one.get(n)) for pair in pairs for one in pair)]
    return [statistics.fmean(one[n] - other[n] for one, other in pairs) for n in names]


def best(section: Mapping, primary: Primary, names: Sequence[str]) -> str:
    """The student that the page leads with: the best of ``names`` by the primary metric on the first test set."""
    higher = next(m['higher_is_better'] for m in section['metrics'] if m['name'] == primary.metric)
    key = section['sets'][0]['name'], primary.metric
    values = {
        s['model']: s['mean'] if higher else -s['mean']
        for s in section['scores']
        if (s['set'], s['metric']) == key and s['reference'] in (primary.against, None) and _finite(s['mean'])
    }
    return max(names, key=lambda name: values.get(name, -math.inf))


def costs(cells: Sequence[Cell]) -> list[dict]:
    """What training a cell of each row and width took: wall time and the most memory that its process held."""
    groups: dict[tuple[str, Fraction], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.row.name, cell.ratio), []).append(cell)
    entries = []
    for (name, ratio), members in groups.items():
        records = [cell.run.record for cell in members]
        mean, sd = spread([record.seconds for record in records])
        peaks, gpu = ([p for r in records if (p := getattr(r, key)) is not None] for key in ('peak_mib', 'gpu_mib'))
        entries.append(
            {'row': name, 'width': str(ratio), 'iterations': members[0].row.iterations, 'factor': members[0].factor}
            | {'seconds': mean, 'seconds_sd': sd, 'n': len(members)}
            | {'peak_mib': max(peaks, default=None), 'gpu_mib': max(gpu, default=None)}
        )
    return entries


# ------------------------------------------------------ tables -------------------------------------------------------


def plus_minus(mean: float | None, sd: float | None, digits: int, values: Iterable[float] = ()) -> str:
    """``28.10 ± 0.05``; without a deviation ``28.10 (28.06, 28.14)`` with the value of every seed, if there are two."""
    if not _finite(mean):
        return '-'
    each = [f'{value:.{digits}f}' for value in values]
    spread = f' ± {sd:.{digits}f}' if sd is not None else f' ({", ".join(each)})' if len(each) > 1 else ''
    return f'{mean:.{digits}f}{spread}'


def quality_table(
    section: Mapping, scores: Sequence[dict], references: tuple[str | None, ...], others: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per set, width and method; ``others`` are models without seeds, shown first."""
    found = {(s['set'], s['width'], s['row'], s['metric']): s for s in scores if s['reference'] in references}
    plain = {(s['set'], s['model'], s['metric']): s for s in section['scores'] if s['reference'] in references}
    metrics = [m for m in section['metrics'] if any(key[3] == m['name'] for key in found)]
    rows = []
    for of in dict.fromkeys(key[0] for key in found):
        for model in others:
            cells = [(plain.get((of, model, m['name'])) or {}).get('mean') for m in metrics]
            if any(_finite(cell) for cell in cells):
                shown = [plus_minus(c, None, DIGITS[m['name']]) for c, m in zip(cells, metrics, strict=True)]
                rows.append([of, '1' if model == 'teacher' else '-', model, '-', *shown])
        for width, name in dict.fromkeys(key[1:3] for key in found if key[0] == of):
            entries = [found.get((of, width, name, m['name'])) for m in metrics]
            shown = [
                plus_minus(entry['mean'], entry['sd'], DIGITS[m['name']], entry['values'].values()) if entry else '-'
                for entry, m in zip(entries, metrics, strict=True)
            ]
            rows.append([of, width, name, str(max(e['n'] for e in entries if e)), *shown])
    return ['Set', 'Width', 'Method', 'Seeds', *(m['label'] for m in metrics)], rows


def difference_table(section: Mapping, differences: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every method minus the reference method, on the same seeds."""
    metrics = [m for m in section['metrics'] if any(d['metric'] == m['name'] for d in differences)]
    against = {'gt': 'ground truth', 'teacher': 'teacher', None: 'ground truth'}
    found, rows = {}, []
    for d in differences:
        found[d['set'], d['width'], f'{d["a"]} - {d["b"]}', against[d['reference']], d['metric']] = d
    for key in dict.fromkeys(key[:4] for key in found):
        cells = []
        for m in metrics:
            d = found.get((*key, m['name']))
            digits = DIGITS[m['name']]
            text = plus_minus(d['mean'], d['sd'], digits, d['values'].values()) if d else '-'
            if d and d['low'] is not None:
                text += f' [{d["low"]:.{digits}f}, {d["high"]:.{digits}f}]'
            cells.append(text)
        rows.append([*key, *cells])
    return ['Set', 'Width', 'Difference', 'Measured against', *(m['label'] for m in metrics)], rows


def cost_table(
    entries: Sequence[dict], models: Mapping[tuple[str, str], dict], latency: Mapping[str, dict]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: training and network of every method and width.

    Args:
        models: An entry of ``evaluate``'s models for each row and width.
        latency: By width.
    """
    on_gpu = any(entry['gpu_mib'] is not None for entry in entries)
    header = ['Width', 'Method', 'Weight', 'Iterations', 'Minutes', 'Peak memory, MiB']
    header += ['on the GPU, MiB'] * on_gpu + ['Parameters', 'GMACs', 'Latency, ms']
    rows = []
    for e in entries:
        sd = None if e['seconds_sd'] is None else e['seconds_sd'] / 60
        model = models.get((e['row'], e['width'])) or {}
        row = [e['width'], e['row'], f'x{e["factor"]:g}', f'{e["iterations"]:,d}', plus_minus(e['seconds'] / 60, sd, 1)]
        for key in ('peak_mib', 'gpu_mib') if on_gpu else ('peak_mib',):
            row.append('-' if e[key] is None else f'{e[key]:,.0f}')
        row.append('-' if not model.get('parameters') else f'{model["parameters"]:,d}')
        row.append('-' if not model.get('macs') else f'{model["macs"] / 1e9:.3f}')
        row.append(f'{latency[e["width"]]["median_ms"]:.2f}' if e['width'] in latency else '-')
        rows.append(row)
    return header, rows


# ------------------------------------------------------- notes -------------------------------------------------------


def label_of(config: Config) -> str:
    """The primary metric in words."""
    name = config.primary.metric
    if name == 'niqe':
        return 'NIQE'
    kind = (config.fd_backbone or '').partition(':')[0].removesuffix('-caffe')
    label = {'psnr': 'PSNR-Y', 'ssim': 'SSIM-Y', 'fd': f'FD-{kind}'}.get(name, name.upper())
    label += f'-{kind}' if name == 'kid' and kind else ''
    return f'{label} to the {"teacher" if config.primary.against == "teacher" else "ground truth"}'


def student_line(network: Mapping) -> str:
    """Students of another network than the teacher's, in words."""
    facts = ', '.join(f'{key} {value}' for key, value in network.items() if key != 'type')
    return f"Students: parts of {network['type']} ({facts}), which stands in the place of the teacher's network."


def budget_line(budget: Budget) -> str:
    """The budget in words."""
    stages = ', '.join(
        f'{name} {stage.iters:,d} (rate {stage.lr_g:g}' + (f', discriminators {stage.lr_d:g})' if stage.lr_d else ')')
        for name, stage in budget.stages.items()
    )
    precision = '' if budget.precision in ('fp32', 'tf32') else f', {budget.precision}'
    crop = f'crop {budget.crop} of the ground truth' if budget.crop else 'whole faces'
    return f'Iterations: {stages}; batch {budget.batch}, {crop}{precision}.'


def perceptual_line(config: Config) -> str:
    """The backbone of perceptual terms in words."""
    stand_in = config.stand_in()
    if stand_in is None:
        published = config.perceptual == 'as published'
        return f'Perceptual terms: {"VGG, as published" if published else "none, for all methods alike"}.'
    stated = msgspec.to_builtins(stand_in)
    file = stand_in.weights.rpartition('/')[2]
    facts = ', '.join([file, *(f'{key} {stated[key]}' for key in ('input', 'units', 'shift') if key in stated)])
    return f'Perceptual terms: {stand_in.backbone} ({facts}) stands in for VGG, for all methods alike.'


def notes(
    matrix: Matrix, section: Mapping, cells: Sequence[Cell], broken: Sequence[Cell], edge: Sequence[str], jobs: int
) -> list[str]:
    """What was equal and what was not, a sentence each."""
    config = matrix.config
    why = [config.exploratory.rstrip('.')] if config.exploratory else []
    if len(config.seeds) < FEWEST_SEEDS:
        why.append(f'{len(config.seeds)} seed{"s" * (len(config.seeds) > 1)}')
    found = [f'Exploratory: {"; ".join(why)}.'] if why else []
    fewer = [f'{row.name} ({len(row.seeds)})' for row in matrix.rows if len(row.seeds) < len(config.seeds)]
    found += [f'Trained with fewer seeds than {len(config.seeds)}: {", ".join(fewer)}.'] if fewer else []
    found.append(f'Primary metric, named before the run: {label_of(config)}.')
    found.append(
        f'Equal for all methods: the teacher ({matrix.teacher.name}, SHA-256 {digest(matrix.teacher)[:8]}), images and '
        'their order, crops and flips and the first weights of the student for a seed, iterations, batch, crop, rates, '
        'Adam, averaging.'
    )
    found += [student_line(config.student)] if config.student is not None else []
    found += [*matrix.images.facts, budget_line(config.budget)]
    factors = ', '.join(f'{factor:g}' for factor in config.search.factors)
    if len(config.search.factors) > 1:
        found.append(
            f"Weights: those of a method's own terms in its file, times one of {factors}, the same number of "
            f'trials for every method; chosen on the validation split by the primary metric, at width '
            f'{config.ratios()[0]} with seed {config.seeds[0]}.'
        )
    else:
        found.append(f"Weights: those of the methods' files, times {factors}; none were searched.")
    if edge:
        found.append(f'Void: {", ".join(edge)}. The best factor is the first or the last one; search further.')
    free = [row.name for row in matrix.rows if not row.weights]
    if free and len(config.search.factors) > 1:
        found.append(f'Without a weight of its own to search: {", ".join(free)}.')
    found.append(perceptual_line(config))
    for row in matrix.rows:
        if row.own_schedule:
            stages = ', '.join(f'{name} {stage["iters"]:,d}' for name, stage in row.stages.items())
            found.append(f'{row.name}: {row.method} with a schedule of its own ({stages}).')
    found += _first_stages(matrix)
    found += _files(matrix)
    again = [cell.run.name for cell in cells if cell.run.record.starts > 1]
    if again:
        found.append(
            f'Continued after an interruption, with the images and draws of an uninterrupted run: {", ".join(again)}.'
        )
    found += lost_lines([cell.run for cell in broken])
    threads = sorted({cell.run.record.threads for cell in cells})
    found.append(
        'Minutes: wall time of a training process with its start, mean over seeds; '
        f'{jobs} at a time in the last call, {"/".join(map(str, threads))} thread{"s" * (threads != [1])} each. '
        'Peak memory: the largest process. GMACs: for 64x64 input pixels.'
    )
    for better in (True, False):
        labels = [metric['label'] for metric in section['metrics'] if metric['higher_is_better'] is better]
        found += [f'{"Higher" if better else "Lower"} is better: {", ".join(labels)}.'] if labels else []
    if len(config.seeds) < FEWEST_SEEDS:
        found.append(
            f'In parentheses: the value of every seed. Fewer than {FEWEST_SEEDS} seeds tell no spread and allow no '
            'interval of a difference between methods.'
        )
    else:
        found.append(
            '±: standard deviation over seeds (n - 1). Differences: same seed minus same seed; in brackets the 95% '
            f'interval over images (studentised bootstrap) of their mean over seeds, from {FEWEST} images on: what the '
            'choice of images does, not what chance in training does.'
        )
    return found


def lost_lines(runs: Sequence[Run]) -> list[str]:
    """Which trainings broke, and why, and which are not finished."""
    lines = [f'Broken: {run.name}: {run.record.reason}' for run in runs if run.record.state == 'broken']
    rest = [run.name for run in runs if run.record.state != 'broken']
    return lines + ([f'Not finished: {", ".join(rest)}.'] if rest else [])


def _first_stages(matrix: Matrix) -> list[str]:
    """What rows share of their first stage, and what it cost."""
    config, found = matrix.config, {}
    for row in matrix.rows:
        for ratio in config.ratios():
            for seed in row.seeds:
                if run := matrix.first_run(row, ratio, seed):
                    rows, runs = found.setdefault(run.name.partition('_w')[0], ({}, {}))
                    rows[row.name] = runs[run.name] = run
    lines = []
    for rows, runs in found.values():
        iterations = next(iter(runs.values())).iterations
        minutes = statistics.fmean(run.record.seconds for run in runs.values()) / 60
        lines.append(
            f'The first stage, {iterations:,d} iterations, was trained once for a seed and width and is shared by '
            f'{", ".join(rows)} (on average {minutes:.1f} minutes, on top of those below).'
        )
    return lines


def _files(matrix: Matrix) -> list[str]:
    """Which methods start from a discriminator's file, and what it cost."""
    if (trained := matrix.discriminator_run()) is not None:
        record = trained.record
        return [
            f"The teacher's discriminator, trained once on the same images ({trained.iterations:,d} iterations, "
            f'{record.seconds / 60:.1f} minutes, on top of those below): {", ".join(matrix.guided)}.'
        ]
    users: dict[str, list[str]] = {}
    for row in matrix.rows:
        entries = [*(row.options.get('discriminators') or {}).values()]
        files = [entry.get('weights') for entry in entries] + [
            (row.options.get('path') or {}).get('pretrain_network_d')
        ]
        for file in filter(None, files):
            users.setdefault(file, []).append(row.name)
    return [
        f'Trained before, which is not counted here: the discriminator {file.rpartition("/")[2]} of {", ".join(names)}.'
        for file, names in users.items()
    ]
