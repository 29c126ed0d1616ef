"""Validation and logging."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping

from basicsr.utils.registry import METRIC_REGISTRY

from sdakd.compat import Mistakes, UserError, meant, near
from sdakd_arch.width import lookup
from sdakd_metrics.set_metrics import check_set_metric
from sdakd_models.options import wrong_argument
from sdakd_models.scenario import Scenario

IMAGES = ('img', 'img2')  # what a metric compares


def check(scenario: Scenario, mistakes: Mistakes) -> None:
    """Metrics exist, take their arguments and have what they compare with; what the log is sent to is installed.

    Args:
        scenario: The run.
        mistakes: What was found already.

    Raises:
        UserError: With the key.
    """
    val = scenario.val
    with Mistakes() as found:
        if not mistakes.about('logger'):
            _check_boards(scenario, found)
            if not mistakes.about('val'):
                with found.collect():
                    _check_best(scenario)
        if val:
            val.setdefault('save_img', False)
        for name, metric in (val.get('metrics') or {}).items():
            with found.collect():
                _check_metric(scenario.file, name, metric)


def _check_boards(scenario: Scenario, mistakes: Mistakes) -> None:
    logger, wanted = scenario.logger, {}
    if logger.use_tb_logger:
        wanted['use_tb_logger'] = 'tensorboard'
    if logger.wandb and logger.wandb.project:
        wanted['wandb:project'] = 'wandb'
        if not logger.use_tb_logger:
            mistakes.add('logger:use_tb_logger', 'wandb takes what goes to TensorBoard; write use_tb_logger: true.')
    for key, package in wanted.items():
        if importlib.util.find_spec(package) is None:
            mistakes.add(f'logger:{key}', f'the package {package} is not installed; pip install it, or go without.')


def _check_metric(opt: Mapping, name: str, metric: object) -> None:
    where = f'val:metrics:{name}'
    if not isinstance(metric, Mapping) or 'type' not in metric:
        raise UserError(where, 'write a mapping with its type, for example {type: calculate_psnr, ...}.')
    function = lookup(METRIC_REGISTRY, metric['type'], f'{where}:type')
    _check_arguments(function, metric, where)
    check_set_metric(metric, where)
    if metric['type'] == 'calculate_niqe':
        metric.setdefault('better', 'lower')  # BasicSR would keep the worst as the best
    for phase, dataset in opt['datasets'].items():
        if phase.startswith('val') and metric['type'] != 'calculate_niqe' and not dataset.get('dataroot_gt'):
            raise UserError(
                f'datasets:{phase}:dataroot_gt', f'the metric {name} compares with a ground truth, name it.'
            )


def _check_arguments(function: Callable, metric: Mapping, where: str) -> None:
    parameters = dict(inspect.signature(function).parameters)
    # those of BasicSR and of this project take any key, and ignore it
    others = function.__module__.partition('.')[0] not in ('basicsr', 'sdakd_metrics')
    takes_any = others and any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    known = {key: each for key, each in parameters.items() if key not in IMAGES and each.kind is not each.VAR_KEYWORD}
    with Mistakes() as mistakes:
        for key in metric.keys() - known.keys() - {'type', 'better'} if not takes_any else ():
            mistakes.add(where, f'{metric["type"]} takes no {key!r}; {near(str(key), {*known, "better"})}.')
        given = meant(metric, {*known, 'type', 'better'})
        for key, parameter in known.items():
            if key in given and (fault := wrong_argument(parameter, given[key])):
                mistakes.add(f'{where}:{key}', f'{fault}, not {given[key]!r}.')
            elif key not in given and parameter.default is parameter.empty:
                mistakes.add(f'{where}:{key}', f'the key is missing, {metric["type"]} needs it.')
        if given.get('better', 'lower') not in ('lower', 'higher'):
            mistakes.add(f'{where}:better', f'write lower or higher, not {given["better"]!r}.')


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
