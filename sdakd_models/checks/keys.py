"""What the option file says by itself: keys are known, values are of their kind and within bounds, before all else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import torch
from basicsr.utils.registry import DATASET_REGISTRY
from msgspec import Struct, structs

from sdakd.compat import Mistakes, meant, near
from sdakd_arch.width import lookup
from sdakd_data.cached_dataset import CachedPairedDataset
from sdakd_models.basicsr_options import (
    DATASETS,
    Dataset,
    DistParams,
    OptionFile,
    Paths,
    RealESRGANDataset,
    Settings,
    Validation,
)
from sdakd_models.options import Logger, typed
from sdakd_models.scenario import Scenario

KNOWN_TOP_LEVEL = set(OptionFile.__struct_fields__)
SLIP = 0.85  # how much an unknown key, legal in BasicSR, looks like a known one
MAPPINGS = ('datasets', 'network_g', 'network_d', 'teacher', 'path', 'val', 'logger', 'dist_params')
BLOCKS = {'path': Paths, 'val': Validation, 'logger': Logger, 'dist_params': DistParams}
PHASES = ('train', 'val')


def settle(opt: dict, mistakes: Mistakes) -> None:
    """Reads what is BasicSR's in the options of a training, in place: numbers in text become numbers.

    What is wrong is told and taken away, what is misspelt has its right key, for the checks that come.

    Args:
        opt: The options.
        mistakes: Takes up what is wrong.
    """
    _settle_slips(opt, KNOWN_TOP_LEVEL, '', mistakes)
    for key in MAPPINGS:
        if opt.get(key) is not None and not isinstance(opt[key], Mapping):
            mistakes.add(key, f'write a mapping of keys and values here, not {opt[key]!r}.')
            opt[key] = None
    if isinstance(opt.get('num_gpu'), str) and opt['num_gpu'].isdecimal():
        opt['num_gpu'] = int(opt['num_gpu'])  # the launcher judges it
    _settle(Settings, opt, '', mistakes)
    for key, struct in BLOCKS.items():
        if opt.get(key):
            _settle(struct, opt[key], key, mistakes)
    if not opt.get('val'):
        opt.pop('val', None)
    else:
        _miss(Validation.needed, opt['val'], 'val', '', mistakes)
    _settle_datasets(opt.get('datasets') or {}, mistakes)


def _settle_slips(block: dict, known: Iterable[str], where: str, mistakes: Mistakes) -> None:
    """Unknown keys are legal, but one that looks like a known one is a slip."""
    for key in block:
        if key not in known and difflib.get_close_matches(str(key), known, cutoff=SLIP):
            mistakes.add(_place(where, key), f'this key is not known; {near(str(key), known)}.')
    for key, value in meant(block, known, SLIP).items():
        block.setdefault(key, value)


def _settle(struct: type[Struct], block: dict, where: str, mistakes: Mistakes) -> None:
    fields = {each.name: each for each in structs.fields(struct)}
    if struct.__struct_config__.forbid_unknown_fields:
        found = typed(struct, block, where, mistakes=mistakes)
        given = meant(block, fields)
        block.clear()
        block.update(given)
    else:
        known = {key: value for key, value in block.items() if key in fields}
        found = typed(struct, known, where, mistakes=mistakes)
    for key in [*(block.keys() & fields.keys())]:
        given = block.pop(key)
        if found is None or mistakes.about(_place(where, key)):
            continue
        value = getattr(found, key)
        if isinstance(value, Struct):
            value = {name: inner for name, inner in structs.asdict(value).items() if name in given}
        if value is not None or fields[key].default is not None:  # a null is as if it had never been written
            block[key] = value


def _place(where: str, key: object) -> str:
    return f'{where}:{key}' if where else str(key)


def _miss(needed: Iterable[str], block: Mapping, where: str, who: str, mistakes: Mistakes) -> None:
    for key in needed:
        if key not in block and not mistakes.about(f'{where}:{key}'):
            mistakes.add(f'{where}:{key}', f'the key is missing{who and f", {who} needs it"}.')


def _settle_datasets(sets: dict, mistakes: Mistakes) -> None:
    for phase, dataset in [*sets.items()]:
        where, name = f'datasets:{phase}', str(phase)
        del sets[phase]
        if name != 'train' and name.split('_')[0] != 'val':
            mistakes.add(where, f'a data set is called train, val or val_<number>; {near(name, PHASES)}.')
            name = next((close for close in difflib.get_close_matches(name, PHASES, 1, 0.5) if close not in sets), '')
        if not isinstance(dataset, dict):
            mistakes.add(where, f'write a mapping of keys and values here, not {dataset!r}.')
        elif name:
            sets[name] = dataset
            _settle_dataset(dataset, where, name == 'train', mistakes)


def _settle_dataset(dataset: dict, where: str, training: bool, mistakes: Mistakes) -> None:
    kind = dataset.get('type')
    struct = Dataset
    if isinstance(kind, str):
        with mistakes.collect():
            cls = lookup(DATASET_REGISTRY, kind, f'{where}:type')
            if cls.__module__.partition('.')[0] in ('basicsr', 'sdakd_data'):  # others have keys of their own
                struct = DATASETS.get(cls.__name__, Dataset)
            if cls is CachedPairedDataset and 'caches' not in dataset:
                mistakes.add(f'{where}:type', 'it is put there by teacher:cache; write PairedImageDataset.')
    if struct is Dataset:
        _settle_slips(dataset, Dataset.__struct_fields__, where, mistakes)
        loader = {key: value for key, value in dataset.items() if key in Dataset.__struct_fields__}
        others = {key: value for key, value in dataset.items() if key not in loader}
        _settle(struct, loader, where, mistakes)
        dataset.clear()
        dataset.update(loader | others)
    else:
        _settle(struct, dataset, where, mistakes)
    needed = (*struct.needed, *(struct.needed_in_training if training else ()))
    _miss(needed, dataset, where, kind if struct is not Dataset else '', mistakes)
    _check_loader(dataset, where, training, mistakes)
    if struct is RealESRGANDataset:
        _check_kernels(dataset, where, mistakes)


def _check_loader(dataset: Mapping, where: str, training: bool, mistakes: Mistakes) -> None:
    if dataset.get('prefetch_mode') == 'cuda' and dataset.get('pin_memory') is False and training:
        mistakes.add(f'{where}:pin_memory', 'with prefetch_mode: cuda, write pin_memory: true.')
    if dataset.get('persistent_workers') and (not training or dataset.get('num_worker_per_gpu') == 0):
        mistakes.add(f'{where}:persistent_workers', 'no worker process loads these images; leave it out.')
    if [len(dataset[key]) for key in ('mean', 'std') if key in dataset] not in ([], [1, 1], [3, 3]):
        mistakes.add(f'{where}:mean', 'write mean and std of one length, 1 or 3, or neither.')


def _check_kernels(dataset: Mapping, where: str, mistakes: Mistakes) -> None:
    for number in ('', '2'):
        kinds, shares = dataset.get(f'kernel_list{number}'), dataset.get(f'kernel_prob{number}')
        if kinds and shares and len(kinds) != len(shares):
            sentence = f'write {len(kinds)} probabilities, one for each of kernel_list{number}.'
            mistakes.add(f'{where}:kernel_prob{number}', sentence)
    lmdb = (dataset.get('io_backend') or {}).get('type') == 'lmdb'
    if 'io_backend' in dataset and not lmdb:
        _miss(['meta_info'], dataset, where, RealESRGANDataset.__name__, mistakes)


def check(scenario: Scenario) -> None:
    """What the options ask for, machine and stages have.

    Raises:
        UserError: With the key.
    """
    train, total, gpus = scenario.train, scenario.plan.total_iter, scenario.file['num_gpu']
    with Mistakes() as mistakes:
        wanted = {'train:precision': train.precision}
        wanted |= {entry.key('precision'): entry.precision for entry in scenario.teachers.values()}
        for key, precision in wanted.items():
            if precision == 'bf16' and gpus and not torch.cuda.is_bf16_supported():
                mistakes.add(key, 'this GPU cannot compute in bfloat16; write fp16 or tf32.')
        if train.total_iter not in (None, total) and scenario.whole:
            mistakes.add('train:total_iter', f'the stages last {total:,d} iterations; leave this key out.')
        if (scenario.datasets.get('train') or {}).get('prefetch_mode') == 'cuda' and not gpus:
            mistakes.add('datasets:train:prefetch_mode', 'this run is on the CPU; write cpu, or leave it out.')
