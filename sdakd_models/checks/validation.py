"""Validation and logging."""

from __future__ import annotations

from collections.abc import Mapping

from basicsr.utils.registry import METRIC_REGISTRY

from sdakd.compat import Mistakes, UserError, near
from sdakd_arch.width import lookup
from sdakd_metrics.set_metrics import check_set_metric
from sdakd_models.scenario import Scenario

LEAST = (  # block, key, least value
    ('logger', 'print_freq', 1),
    ('logger', 'save_checkpoint_freq', 1),
    ('val', 'val_freq', 1),
    ('val', 'tile', 0),
    ('val', 'tile_pad', 0),
    ('val', 'tb_images', 0),
)


def check(scenario: Scenario) -> None:
    """Metrics exist and have what they compare with; frequencies are numbers, and become whole ones."""
    opt = scenario.file
    with Mistakes() as mistakes:
        for block, key, least in LEAST:
            with mistakes.collect():
                _check_number(opt, block, key, least)
        with mistakes.collect():
            _check_best(scenario)
        val = opt.get('val')
        if not val:
            return
        val.setdefault('save_img', False)
        for name, metric in (val.get('metrics') or {}).items():
            with mistakes.collect():
                _check_metric(opt, name, metric)


def _check_number(opt: Mapping, block: str, key: str, least: int) -> None:
    value = (opt.get(block) or {}).get(key)
    if value is None and not (key == 'val_freq' and opt.get('val')):
        return
    try:
        number = int(float(value))
    except (TypeError, ValueError):
        number = -1
    if number < least:
        raise UserError(f'{block}:{key}', f'write a whole number of at least {least}, not {value!r}.')
    opt[block][key] = number


def _check_metric(opt: Mapping, name: str, metric: object) -> None:
    where = f'val:metrics:{name}'
    if not isinstance(metric, Mapping) or 'type' not in metric:
        raise UserError(where, 'write a mapping with its type, for example {type: calculate_psnr, ...}.')
    lookup(METRIC_REGISTRY, metric['type'], f'{where}:type')
    check_set_metric(metric, where)
    if metric['type'] == 'calculate_niqe':
        metric.setdefault('better', 'lower')  # BasicSR would keep the worst as the best
    for phase, dataset in opt['datasets'].items():
        if phase.startswith('val') and metric['type'] != 'calculate_niqe' and not dataset.get('dataroot_gt'):
            raise UserError(
                f'datasets:{phase}:dataroot_gt', f'the metric {name} compares with a ground truth, name it.'
            )


def _check_best(scenario: Scenario) -> None:
    """The metric of ``logger:keep_best`` is there, and what is validated is saved; ``logger:`` has no other keys."""
    logger, metrics = scenario.logger, scenario.val.get('metrics') or {}
    if not logger.keep_best:
        return
    if not any(phase.startswith('val') for phase in scenario.datasets) or not metrics:
        raise logger.error('it needs val:metrics and a validation set; add them or leave the key out.', 'keep_best')
    if scenario.best_by not in metrics:
        sentence = f'there is no {scenario.best_by!r} under val:metrics; {near(scenario.best_by, metrics)}.'
        raise logger.error(sentence, 'keep_best')
    if scenario.val['val_freq'] % logger.save_checkpoint_freq:
        raise logger.error(
            f'what is validated every {scenario.val["val_freq"]:,d} iterations (val:val_freq) is not saved then; '
            f'write a multiple of save_checkpoint_freq ({logger.save_checkpoint_freq:,d}) there.',
            'keep_best',
        )
