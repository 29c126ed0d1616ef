"""Several students in one option file: ``students:`` taken apart into the options of one run each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from sdakd.compat import Mistakes, UserError, UserErrors, near
from sdakd.machine import refused_letters
from sdakd.option_files import merge
from sdakd_models.basicsr_options import StudentBlock
from sdakd_models.options import typed
from sdakd_models.reader import has_width
from sdakd_models.rehearsal import Rehearsed

# what an entry may say: whatever decides about data, lengths and teachers is the same for all
OF_PATH = ('pretrain_network_g', 'param_key_g', 'pretrain_network_d', 'param_key_d')
OF_TRAIN = ('ema_decay', 'optim_g', 'optim_d', 'r1_reg_weight', 'net_d_reg_every', 'share_freq', 'stages')
OF_STAGE = ('terms', 'lr_g', 'lr_d', 'warmup_iter', 'scheduler', 'grad_clip', 'reset_optimizers')


def expand(opt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each student, as if it were trained in a run of its own, which is called ``<name>_<student>``.

    Args:
        opt: What was read of the option file, with widths as they are written.

    Raises:
        UserError: An entry is not one; all mistakes, with their keys.
    """
    entries, found = opt['students'], {}
    with Mistakes() as mistakes:
        if not isinstance(entries, Mapping) or not entries:
            mistakes.add('students', 'write a mapping of name and student, such as `w4: {width: 1/4}`.')
            entries = {}
        if not opt.get('name'):
            mistakes.add('name', 'the key is missing.')
        if (((opt.get('logger') or {}).get('wandb')) or {}).get('project'):
            mistakes.add('logger:wandb', 'it takes one run of a process; leave it out, or train students one by one.')
        if (opt.get('path') or {}).get('resume_state'):
            mistakes.add('path:resume_state', 'several students go on by --auto_resume; leave it out.')
        for name, entry in entries.items():
            where = f'students:{name}'
            if letters := '/' if '/' in str(name) else refused_letters(str(name)):
                mistakes.add(where, f'it names a folder under experiments/, which may hold no {letters} here.')
            elif typed(StudentBlock, entry, where, mistakes=mistakes) is not None:
                with mistakes.collect():
                    _check_shared(opt, entry, where)
                with mistakes.collect():
                    found[str(name)] = _options_of(opt, str(name), entry)
    return found


def _check_shared(opt: Mapping, entry: Mapping, where: str) -> None:
    """Refuses what all students have in common."""
    train = entry.get('train') or {}
    stages = (opt.get('train') or {}).get('stages')
    stages = {str(name) for name in stages} if isinstance(stages, Mapping) else set()
    with Mistakes() as mistakes:
        _refuse(entry.get('path'), OF_PATH, f'{where}:path', 'path', mistakes)
        for key in train:
            if not str(key).endswith('_opt'):
                _refuse({key: train[key]}, OF_TRAIN, f'{where}:train', 'train', mistakes)
        for name, stage in (train.get('stages') or {}).items() if isinstance(train.get('stages'), Mapping) else ():
            if str(name) not in stages:
                mistakes.add(f'{where}:train:stages:{name}', f'train:stages has no such stage; {near(name, stages)}.')
            elif isinstance(stage, Mapping):
                _refuse(stage, OF_STAGE, f'{where}:train:stages:{name}', f'train:stages:{name}', mistakes)
            else:
                mistakes.add(f'{where}:train:stages:{name}', 'write a mapping of keys and values here.')


def _refuse(block: object, own: Iterable[str], where: str, common: str, mistakes: Mistakes) -> None:
    for key in block if isinstance(block, Mapping) else ():
        if key not in own:
            sentence = f'this is the same for all students, write it under {common}; one of them may have '
            mistakes.add(f'{where}:{key}', f'{sentence}{", ".join(own)}.')


def _options_of(opt: Mapping, name: str, entry: Mapping) -> dict:
    merged = deepcopy(merge({key: value for key, value in opt.items() if key != 'students'},
                            {key: value for key, value in entry.items() if key != 'width'}))  # fmt: skip
    merged['name'] = f'{opt.get("name") or "run"}_{name}'
    if entry.get('width') is None:
        return merged
    own = {*entry, *(f'discriminators:{key}' for key in entry.get('discriminators') or {})}
    if 'network_g' not in own:
        block = merged.setdefault('network_g', {'width': None})
        if not isinstance(block, dict) or 'width' not in block or has_width(block.get('type')):
            raise UserError(
                f'students:{name}:width',
                'network_g has no width that it could take the place of; write network_g into the entry.',
            )
        block['width'] = entry['width']
    further = merged.get('discriminators')
    blocks = {f'discriminators:{key}': (each or {}).get('network') if isinstance(each, Mapping) else None
              for key, each in (further.items() if isinstance(further, Mapping) else ())}  # fmt: skip
    for key, block in {'network_d': merged.get('network_d'), **blocks}.items():
        if key not in own and isinstance(block, dict) and 'width' in block and not has_width(block.get('type')):
            block['width'] = entry['width']
    return merged


def place(errors: Mapping[str, UserError], entries: Mapping[str, Mapping]) -> UserError:
    """The mistakes of all students, each once: at its own key where all have it, else in the entry of the student.

    Args:
        errors: By student; those without a mistake are not there.
        entries: Of the option file.
    """
    entries = {str(name): entry for name, entry in entries.items()}
    having = {name: {str(each) for each in error.mistakes} for name, error in errors.items()}
    found: dict[str, UserError] = {}
    for name, error in errors.items():
        for each in error.mistakes:
            common = all(str(each) in having.get(other, ()) for other in entries) and len(entries) > 1
            shown = each if common else each.at(_key(each.where, name, entries[name]))
            # one width narrows several networks
            found.setdefault(shown.where if shown.where == f'students:{name}:width' else str(shown), shown)
    mistakes = list(found.values())
    return UserErrors(mistakes) if len(mistakes) > 1 else mistakes[0]


def _key(where: str, name: str, entry: Mapping) -> str:
    """The key of a student's mistake in the file that has its entry."""
    key, _, rest = where.partition(': ')
    block = next((block for block in ('network_g', 'network_d', 'discriminators') if key.startswith(block)), None)
    if key.endswith(':width') and block is not None and block not in entry and 'width' in entry:
        key = 'width'
    return f'students:{name}:{key}' + (f': {rest}' if rest else '') if where else f'students:{name}'


def check_together(found: Mapping[str, Rehearsed]) -> None:
    """Checks that students can share what they are shown: each would see the same in a run of its own.

    Args:
        found: What the rehearsals of the students have shown, in their order.

    Raises:
        UserError: With the student.
    """
    (first, model), *others = found.items()
    with Mistakes() as mistakes:
        for name, other in others:
            where, stages = f'students:{name}', other.drawn.items()
            if stage := next((stage for stage, drawn in stages if not drawn.equals(model.drawn[stage])), None):
                mistakes.add(
                    where,
                    f'in a step of the stage {stage} it draws other random numbers than {first} (such as dropout), and '
                    'would have other training data in a run of its own; give it one.',
                )
            elif other.held_out != model.held_out:
                mistakes.add(
                    where,
                    f'it holds out other training images than {first} for a selective discriminator, and would have '
                    'other training data in a run of its own; give it one, or all students the same.',
                )
            elif other.pooled and (other.compares, other.taps) != (model.compares, model.taps):
                mistakes.add(
                    where,
                    f'it compares other feature maps than {first}, by which train:pool_reuse chooses crops; give all '
                    'students the same feature maps in every stage, or leave pool_reuse out.',
                )
