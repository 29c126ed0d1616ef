"""The one interception point: reads and checks an option file before BasicSR creates or archives any folder.

``parse_options`` is wrapped wherever BasicSR's training loop finds it. Option files of other models pass through
untouched; those of this plugin's models are read by :mod:`sdakd.option_files` and :mod:`sdakd_models.reader` (BasicSR
uses the loader that can execute code), all their mistakes are told together, the archived file is complete, and
resuming works from any folder and without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import functools
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import basicsr.utils.options
import yaml
from basicsr.utils import get_root_logger, make_exp_dirs, mkdir_and_rename, set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import MODEL_REGISTRY

from sdakd.compat import Mistakes, UserError, exit_with_sentence, in_order_of, one_voice
from sdakd.lock import check_free
from sdakd.machine import refused_letters
from sdakd.option_files import arguments, model_type, read_options, read_yaml
from sdakd.shipped import without_schema_line
from sdakd_arch.weights import read_weights
from sdakd_arch.width import lookup
from sdakd_models import loaders
from sdakd_models.checks.keys import settle
from sdakd_models.checks.paths import resolve_paths
from sdakd_models.checks.run import check_run
from sdakd_models.clock import TrainingLog
from sdakd_models.launchers import distribute
from sdakd_models.loop import Loop, create_train_val_dataloader
from sdakd_models.manifest import newest_common, newest_whole
from sdakd_models.options import modernise
from sdakd_models.processes import meet
from sdakd_models.reader import complete, load_modules
from sdakd_models.rehearsal import Rehearsed, rehearse
from sdakd_models.resuming import begin, load_resume_state, seed_for, take
from sdakd_models.sdakd_model import SDAKDModel
from sdakd_models.students import check_together, expand, place
from sdakd_models.students_model import StudentsLog, StudentsModel, open_logs

_original = basicsr.utils.options.parse_options
_of_basicsr: dict[str, Callable] = {}  # what this plugin's runs put something else in the place of


def _belongs_to_another() -> bool:
    """Whether the command line names an option file for a model that is registered and not this plugin's."""
    name, models = model_type(), dict(iter(MODEL_REGISTRY))
    model = models.get(name, models.get(f'{name}_basicsr'))
    return model is not None and not issubclass(model, SDAKDModel)


@functools.wraps(_original)
def parse_options(root_path: str, is_train: bool = True):
    """BasicSR's ``parse_options`` for this plugin's models; for any other it is BasicSR's own.

    Returns:
        The completed options and the command line's arguments.

    Raises:
        UserError: All that a user has to mend; on the main process only, a sentence each, with the file's name.
    """
    if _belongs_to_another():
        for name, function in list(_of_basicsr.items()):
            if name != 'parse_options':
                _replace_everywhere(name, function)
        return _original(root_path, is_train)
    sys.excepthook = exit_with_sentence
    # oneDNN keeps what it compiles for 1,024 shapes, 500 MiB and more where the degradation resizes at random
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '256')
    args = arguments()
    _replace_everywhere('load_resume_state', functools.partial(begin, file=args.opt, change_stages=args.change_stages))
    _replace_everywhere('MessageLogger', TrainingLog)
    _replace_everywhere('get_root_logger', open_log)
    _replace_everywhere('create_train_val_dataloader', create_train_val_dataloader)
    for name in _of_basicsr.keys() & {'build_model', 'make_exp_dirs'}:  # of a run of several students before
        _replace_everywhere(name, _of_basicsr[name])
    Loop.latest = Loop(args.debug)
    with one_voice():
        opt, left = read_options(args.opt, args.force_yml or ())
        if opt.get('students') is not None:
            return _parse_students(opt, left, args, root_path, is_train), args
        written, mistakes = opt, Mistakes()
        try:
            complete(opt, left, root_path, mistakes)
            written = copy.deepcopy(opt)
            flags = args.launcher, args.auto_resume, args.debug
            check_options(opt, root_path, args.opt, *flags, is_train, mistakes, begins=True)
        except UserError as error:
            raise in_order_of(written, error).within(args.opt) from None
    if opt['path'].get('resume_state'):
        modernise(written)
    _replace_everywhere('copy_opt_file', functools.partial(archive, options=written))
    return opt, args


def check_options(
    opt: dict,
    root_path: str,
    file: str,
    launcher: str = 'none',
    auto_resume: bool = False,
    debug: bool = False,
    is_train: bool = True,
    mistakes: Mistakes | None = None,
    begins: bool = False,
    rehearses: bool = True,
) -> Rehearsed | None:
    """Completes options that were read, checks and rehearses them: all that happens before a run creates anything.

    Args:
        opt: The options; changed in place.
        root_path: The folder that holds ``experiments/``.
        file: Where they come from, for messages that show a command.
        launcher, auto_resume, debug: BasicSR's flags.
        is_train: Whether they are those of a training.
        mistakes: What was found already; what depends on it is not checked.
        begins: Whether the training begins after it; see :func:`sdakd_models.rehearsal.rehearse`.
        rehearses: Whether the first steps are rehearsed.

    Returns:
        What the rehearsal of a training has shown.

    Raises:
        UserError: All mistakes; with the key, without the file.
    """
    with mistakes or Mistakes() as mistakes:
        if is_train:
            settle(opt, mistakes)
        distribute(opt, launcher, file, mistakes)
        if is_train:
            loaders.complete(opt)
        if mistakes.found and int(os.environ.get('WORLD_SIZE', 1)) > 1 and not opt['dist']:
            return None  # processes that cannot wait for each other would check and fetch the same
        _complete(opt, auto_resume, debug, root_path, is_train, mistakes)
        if is_train and begins and opt['rank'] == 0:
            check_free(opt['path']['experiments_root'])
        resolve_paths(opt, root_path)
        if opt['path'].get('resume_state') and (old := modernise(opt)) and opt['rank'] == 0:
            logging.getLogger('basicsr').warning(
                f'{file}: the run to resume has keys of version 0.1.0, which are read by their names of today: '
                f'{", ".join(old)}.'
            )
        if opt['rank'] > 0:  # the others wait for the main process: it downloads what is missing and reports mistakes
            meet()
        if is_train:
            with mistakes.collect():
                keep_connector(opt)
            cast = check_run(opt, mistakes, quiet=opt['rank'] > 0)
            state = opt['path'].get('resume_state')
            if mistakes.found and state and not os.path.isfile(state):  # alone, it is told where the state is loaded
                mistakes.add('path:resume_state', f'the file {state} does not exist.')
    if opt['rank'] == 0:
        meet()
    return rehearse(opt, cast, begins) if is_train and rehearses else None


# ---------------------------------------------------------------------------------------------------- several students


def _parse_students(opt: dict, left: list[str], args: argparse.Namespace, root_path: str, is_train: bool) -> dict:
    """:func:`parse_options` for an option file with ``students:``; see :mod:`sdakd_models.students`.

    Returns:
        The options of the first student under the name of the run, with those of every student under ``students``.
    """
    written: dict[str, dict] = {}
    try:
        _check_alone(args, left, is_train)
        load_modules(opt)
        found = expand(opt)
        if args.auto_resume:
            debug = 'debug_' * (args.debug and not str(opt['name']).startswith('debug'))
            roots = {name: Path(root_path, 'experiments', debug + each['name']) for name, each in found.items()}
            for name, state in newest_common({name: root / 'training_states' for name, root in roots.items()}).items():
                found[name]['path'] = {**(found[name].get('path') or {}), 'resume_state': state}
        if opt.get('manual_seed') is None:
            seed = seed_for(((next(iter(found.values())).get('path')) or {}).get('resume_state'))
            found = {name: each | {'manual_seed': seed} for name, each in found.items()}
        rehearsed, errors = {}, {}
        for name, each in found.items():
            mistakes = Mistakes()
            try:
                complete(each, (), root_path, mistakes)
                written[name] = copy.deepcopy(each)
                (written[name].get('path') or {}).pop('resume_state', None)
                begins = not rehearsed  # the first one, to which the others' threads are set
                rehearsed[name] = check_options(
                    each, root_path, args.opt, debug=args.debug, mistakes=mistakes, begins=begins
                )
                each.setdefault('precisions', next(iter(found.values())).get('precisions') or {})
                check_free(each['path']['experiments_root'])
            except UserError as error:
                errors[name] = error
        if errors:
            raise place(errors, opt['students'])
        check_together(rehearsed)
        joint = _together(opt, found, root_path)
        check_free(joint['path']['experiments_root'])
    except UserError as error:
        raise in_order_of(opt, error).within(args.opt) from None
    if joint['path']['resume_state']:
        for each in written.values():
            modernise(each)

    def create(options: Mapping) -> None:
        for each in (options, *found.values()):
            make_exp_dirs(each)
            if each['logger'].get('use_tb_logger') and 'debug' not in each['name']:
                mkdir_and_rename(os.path.join(root_path, 'tb_logger', each['name']))

    def keep(opt_file: str, experiments_root: str) -> None:
        archive(opt_file, experiments_root, opt)
        for name, each in found.items():
            root = each['path']['experiments_root']
            _write_archived(os.path.join(root, f'{each["name"]}.yml'), opt_file, written[name])

    def open_all(*given, log_file: str | None = None, **more) -> logging.Logger:
        if log_file is not None:  # train_*.log is that of one student
            log_file = os.path.join(os.path.dirname(log_file), f'students{os.path.basename(log_file)[5:]}')
        logger = open_log(*given, log_file=log_file, **more)
        open_logs(logger, found)
        return logger

    _replace_everywhere('load_resume_state', functools.partial(_begin_students, found=found, args=args))
    _replace_everywhere('make_exp_dirs', create)
    _replace_everywhere('copy_opt_file', keep)
    _replace_everywhere('get_root_logger', open_all)
    _replace_everywhere('build_model', StudentsModel)
    _replace_everywhere('MessageLogger', StudentsLog)
    return joint


def _check_alone(args: argparse.Namespace, left: list[str], is_train: bool) -> None:
    """Refuses what is for one student alone."""
    if not is_train:
        raise UserError('students', 'one student is tested at a time; give the option file in its folder.')
    if args.launcher != 'none' or int(os.environ.get('WORLD_SIZE', 1)) > 1:
        raise UserError(
            f'--launcher {args.launcher}',
            'several students are trained by one process; start it without a launcher, or train each of them in a run '
            'of its own.',
        )
    if left:
        raise UserError(f'--force_yml {left[0]}', 'write what is inside of a network into the entries of students.')


def _together(opt: Mapping, found: Mapping[str, dict], root_path: str) -> dict:
    """The options that BasicSR's loop gets of a run of several students."""
    first, *others = found.values()
    name = first['name'].removesuffix(f'_{next(iter(found))}')
    root = os.path.join(root_path, 'experiments', name)
    joint = {**first, 'name': name, 'students': dict(found)}
    joint['path'] = {'experiments_root': root, 'log': root, 'resume_state': first['path'].get('resume_state')}
    joint['logger'] = {**first['logger'], 'use_tb_logger': False}  # every student has its own
    joint['datasets'] = copy.deepcopy(first['datasets'])
    for teacher, cache in (joint['datasets']['train'].get('caches') or {}).items():
        more = [each['datasets']['train'].get('caches', {}).get(teacher, cache)['taps'] for each in others]
        cache['taps'] = sorted({*cache['taps'], *(tap for taps in more for tap in taps)})
    return joint


def _begin_students(_opt: dict, found: Mapping[str, dict], args: argparse.Namespace) -> dict | None:
    """:func:`begin` for several students: their states are of one iteration."""
    take(_opt, args.opt)
    states = {}
    for name, each in found.items():
        take(each, args.opt)
        try:
            states[name] = load_resume_state(each, args.change_stages)
        except UserError as error:
            raise error.within(f'students:{name}') from None
    first = next(iter(states.values()))
    return first and {'iter': first['iter'], 'epoch': first['epoch'], 'students': states}


# ---------------------------------------------------------------------------------------------------- what is the same


def keep_connector(opt: Mapping) -> None:
    """Has a resumed run of DCD keep the teacher's connector that it began with, where its option file names none.

    Version 0.1.0 had another default, ``normalised``. The checkpoint tells: that one has no running statistics.
    """
    path, train = opt['path'], opt.get('train')
    block = train.get('dcd_opt') if isinstance(train, dict) else None
    if not path.get('resume_state') or not isinstance(block, dict) or 'teacher_connector' in block:
        return
    saved = Path(path['models'], f'net_connectors_{Path(path["resume_state"]).stem}.pth')
    if saved.is_file():
        keys = read_weights(saved, 'params', 'path:resume_state')
        if not any(key.startswith('teacher.') and key.endswith('.running_mean') for key in keys):
            block['teacher_connector'] = 'normalised'


def archive(opt_file: str, experiments_root: str, options: Mapping) -> None:
    """Writes a run's options into its folder, where BasicSR would copy the option file.

    A file that extends others or has a ``width``, or whose values the command line changes, is not complete: the
    resolved options take its place, under its name. Any other file is copied with its comments, as BasicSR does it, but
    as the UTF-8 that option files are on every system. A file that was archived before may be the option file: BasicSR
    has moved it with its folder by now, or would copy it onto itself.
    """
    if get_dist_info()[0] > 0:
        return
    copied = os.path.join(experiments_root, os.path.basename(opt_file))
    if os.path.isfile(opt_file) and read_yaml(opt_file) == options:
        if os.path.realpath(opt_file) != os.path.realpath(copied):
            text = without_schema_line(Path(opt_file).read_text(encoding='utf-8'))
            command = ' '.join(shlex.join(sys.argv).split())
            head = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n'
            Path(copied).write_text(head + text, encoding='utf-8')
        return
    _write_archived(copied, opt_file, options)


def _write_archived(path: str, opt_file: str, options: Mapping) -> None:
    """Writes resolved options with a word on where they come from."""
    command = ' '.join(shlex.join(sys.argv).split())
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True, width=120)
    with open(path, 'w', encoding='utf-8') as file:
        file.write(
            f'# The options of {os.path.abspath(opt_file)}, complete: with what that file extends and narrows, and\n'
            f'# with --force_yml. Written on {time.asctime()} by the command\n#   {command}\n\n{text}'
        )


def open_log(*given, **more) -> logging.Logger:
    """BasicSR's ``get_root_logger``; its file is UTF-8 on every system, which may have no letters for a path."""
    logger = get_root_logger(*given, **more)
    open_logs(logger, {})
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.stream.reconfigure(encoding='utf-8', errors='backslashreplace')
    return logger


def _complete(opt: dict, auto_resume: bool, debug: bool, root_path: str, is_train: bool, mistakes: Mistakes) -> None:
    """What BasicSR derives from the options: seed, phases, folders, debug values; and the state to resume from.

    What is mistaken has something in its place afterwards, for the checks that come.
    """
    for key in ('name', 'model_type', 'datasets', *(() if is_train else ('network_g',))):
        if not opt.get(key) and not mistakes.about(key):
            mistakes.add(key, 'the key is missing.')
    if opt.get('model_type'):
        with mistakes.collect():
            lookup(MODEL_REGISTRY, opt['model_type'], 'model_type')
    if mistakes.about('model_type'):
        known = [name for name, _ in MODEL_REGISTRY]
        opt['model_type'] = next(iter(difflib.get_close_matches(str(opt.get('model_type')), known, 1)), '')
    opt['name'] = str(opt.get('name') or 'run')
    if os.path.basename(opt['name']) != opt['name'] or opt['name'] in ('.', '..'):
        mistakes.add('name', f'{opt["name"]!r} names a folder under experiments/, it may hold no path separator.')
    elif letters := refused_letters(opt['name']):
        mistakes.add('name', f'{opt["name"]!r} names a folder under experiments/, which may hold no {letters} here.')
    opt['path'] = opt.get('path') or {}
    opt['logger'] = {'print_freq': 100, 'save_checkpoint_freq': 5000, 'use_tb_logger': False} | (
        opt.get('logger') or {}
    )
    opt['is_train'], opt['auto_resume'] = is_train, auto_resume
    if debug and not opt['name'].startswith('debug'):
        opt['name'] = 'debug_' + opt['name']
    opt['datasets'] = opt.get('datasets') or {}
    for phase, dataset in list(opt['datasets'].items()):
        if not isinstance(dataset, dict):
            mistakes.add(f'datasets:{phase}', 'write a mapping of keys and values here.')
            del opt['datasets'][phase]
            continue
        dataset['phase'] = phase.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']

    path = opt['path']
    if is_train:
        root = os.path.join(root_path, 'experiments', opt['name'])
        path.update(experiments_root=root, log=root)
        for folder in ('models', 'training_states', 'visualization'):
            path[folder] = os.path.join(root, folder)
        if 'debug' in opt['name']:
            opt['logger'].update(print_freq=1, save_checkpoint_freq=8)
            if opt.get('val'):
                opt['val']['val_freq'] = 8
        if auto_resume:
            states = [p for p in Path(path['training_states']).glob('*.state') if p.stem.isdigit()]
            path['resume_state'] = None
            with mistakes.collect():
                state = newest_whole(states)
                path['resume_state'] = str(state) if state else None
            # BasicSR would look under the current folder, and start afresh where it finds nothing
            opt['auto_resume'] = False
    else:
        root = os.path.join(root_path, 'results', opt['name'])
        path.update(results_root=root, log=root, visualization=os.path.join(root, 'visualization'))
    if opt.get('manual_seed') is None:
        state = path.get('resume_state')
        opt['manual_seed'] = seed_for(state if isinstance(state, str) else None)
    set_random_seed(opt['manual_seed'] + opt['rank'])


def _replace_everywhere(name: str, function: Callable) -> None:
    """Puts ``function`` where a training loop looks ``name`` up: BasicSR's, or a train.py that runs as main program."""
    for module in ('basicsr.utils.options', 'basicsr.train', '__main__'):
        module = sys.modules.get(module)
        if module is not None and hasattr(module, name):
            _of_basicsr.setdefault(name, getattr(module, name))
            setattr(module, name, function)


def install() -> None:
    """Wraps ``parse_options``; done once, when ``sdakd_models`` is imported."""
    _replace_everywhere('parse_options', parse_options)
