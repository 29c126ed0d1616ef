"""Checks of a run before anything is created: every mistake is found here, as one sentence, or not at all."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from basicsr.utils.registry import METRIC_REGISTRY
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.weights import load_into, read_weights
from sdakd_arch.width import build, lookup, scale_of
from sdakd_arch.zoo import URLS, ensure_file
from sdakd_metrics.set_metrics import check_set_metric, check_set_size
from sdakd_models.checks.cache import check_caches
from sdakd_models.checks.data import check_dataset
from sdakd_models.checks.faces import check_faces, check_network
from sdakd_models.options import Discriminator, Train, gan_term, read_discriminators, read_teachers, read_train
from sdakd_models.players import make_optimizer
from sdakd_models.shares import check_shares
from sdakd_models.stages import EveryOr, Plan
from sdakd_models.terms import TERMS, Term, term_options
from sdakd_models.wiring import (
    active_terms,
    border_of,
    crop_of,
    margin_of,
    needed_teachers,
    shares_of,
    teacher_network,
    used_discriminators,
)

KNOWN_TOP_LEVEL = {
    'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'network_d', 'teacher',
    'teachers', 'discriminators', 'path', 'train', 'val', 'logger', 'dist_params', 'find_unused_parameters',
    'extends', 'imports',
}  # fmt: skip
VGG = {'vgg19': 'vgg19-dcbb9e9d.pth', 'vgg16': 'vgg16-397923af.pth'}
DEGRADATION = (
    'resize_prob', 'resize_range', 'gaussian_noise_prob', 'noise_range', 'poisson_scale_range', 'gray_noise_prob',
    'jpeg_range', 'second_blur_prob', 'resize_prob2', 'resize_range2', 'gaussian_noise_prob2', 'noise_range2',
    'poisson_scale_range2', 'gray_noise_prob2', 'jpeg_range2', 'gt_size',
)  # fmt: skip


def check_run(opt: dict, root_path: str, quiet: bool = False) -> None:
    """Checks completed options and completes what depends on data and stages (see ``finish``).

    Args:
        opt: The options; changed in place.
        root_path: The folder that holds ``experiments/``.
        quiet: No download, no repeated data check (for all but the main process).

    Raises:
        UserError: The first mistake found.
    """
    for key in opt:  # unknown keys are legal in BasicSR, but one that looks like ours is a slip
        if key not in KNOWN_TOP_LEVEL and difflib.get_close_matches(key, KNOWN_TOP_LEVEL, cutoff=0.85):
            raise UserError(f'{key}: this key is not known; {near(key, KNOWN_TOP_LEVEL)}.')
    for key in ('network_g', 'network_d', 'teacher'):
        if opt.get(key) and not isinstance(opt[key], Mapping):
            raise UserError(f'{key}: write a mapping of keys and values here, not {opt[key]!r}.')
    train = read_train(opt, term_options())
    plan = train.plan()
    if train.precision == 'bf16' and opt['num_gpu'] and not torch.cuda.is_bf16_supported():
        raise UserError('train:precision: this GPU cannot compute in bfloat16; write fp32.')
    if train.total_iter not in (None, plan.total_iter):
        raise UserError(f'train:total_iter: the stages last {plan.total_iter:,d} iterations; leave this key out.')
    names = check_terms(opt, plan)
    check_optimizers(train)
    check_faces(opt)
    check_networks(opt, plan, names)
    if 'perceptual' in names and opt['train']['perceptual_opt']['type'] == 'PerceptualLoss':
        check_vgg(opt['train']['perceptual_opt'], root_path)
    check_validation(opt)
    if 'RealESRGAN' in opt['model_type'] and opt.get('high_order_degradation', True):
        check_degradation(opt, train.pool_reuse)
        if train.pool_reuse > 1:
            check_room(opt)
    elif train.pool_reuse > 1:
        raise UserError(
            "train:pool_reuse: it is for Real-ESRGAN's degradation in training; leave it out for paired data."
        )
    images = {phase: check_dataset(phase, dataset, opt, shallow=quiet) for phase, dataset in opt['datasets'].items()}
    if 'train' not in images:
        raise UserError('datasets:train: the data set to train on is missing.')
    for phase, number in images.items():
        check_set_size(opt, phase, number)
    check_caches(opt, names, shallow=quiet)
    finish(opt, plan, images['train'])


def resolve_paths(opt: dict, root_path: str) -> None:
    """Makes the paths of the options absolute, so that a run can be resumed from any folder.

    A relative path that does not exist in the current folder is looked for under ``root_path``.
    """

    def absolute(path: object) -> object:
        if not isinstance(path, str):
            return path
        path = os.path.expanduser(path)
        here, there = os.path.abspath(path), os.path.join(root_path, path)
        return there if not os.path.exists(here) and os.path.exists(there) else here

    for dataset in opt['datasets'].values():
        for key in ('dataroot_gt', 'dataroot_lq', 'meta_info', 'meta_info_file'):
            value = dataset.get(key)
            if value is not None:
                dataset[key] = [absolute(v) for v in value] if isinstance(value, list) else absolute(value)
    for key, value in opt['path'].items():
        if 'pretrain_network' in key or key == 'resume_state':
            opt['path'][key] = absolute(value)
    blocks = (opt.get('teachers'), opt.get('discriminators'), opt.get('train'))
    entries = [entry for block in blocks if isinstance(block, dict) for entry in block.values()]
    for block in (opt.get('teacher'), *entries):
        for key in ('weights', 'cache'):
            if isinstance(block, dict) and block.get(key):
                block[key] = absolute(block[key])


def check_terms(opt: Mapping, plan: Plan) -> set[str]:
    """Every term of every stage is known, has its options and its discriminator; returns the terms in use."""
    discriminators = read_discriminators(opt)
    used = set()
    for name, stage in zip(plan.names, plan.stages, strict=True):
        where = f'train:stages:{name}'
        for term in stage.terms:
            kind, _, which = term.partition(':')
            if kind == 'gan':
                which = which or 'student'
                if which not in discriminators:
                    need = 'network_d' if which == 'student' else f'discriminators:{which}'
                    raise UserError(
                        f'{where}:terms: the term {term!r} needs the discriminator {which!r}, which is not defined: '
                        f'write {need}, or take the term out.'
                    )
            elif term not in TERMS:
                known = {*TERMS, 'gan', *(f'gan:{d}' for d in discriminators if d != 'student')}
                raise UserError(f'{where}:terms: unknown term {term!r}; {near(term, known)}.')
        active = active_terms(stage, opt)
        for term in active:
            check_term(opt, term, discriminators, where)
        for term in (t for t in active if t in TERMS):
            for which in TERMS[term].discriminators(opt['train'][TERMS[term].option]):
                if gan_term(which) not in active:
                    raise UserError(
                        f'{where}:terms: the term {term!r} looks into the discriminator {which!r}, which is not on in '
                        f'this stage; add {gan_term(which)!r}.'
                    )
        if any(stage.terms.count(term) > 1 for term in stage.terms):
            raise UserError(f'{where}:terms: a term stands twice in {stage.terms}.')
        check_shares(stage, shares_of(opt, active), active, where)
        heard = [t for t in active if t in TERMS or discriminators[t.partition(':')[2] or 'student'].listens]
        if not heard and stage.lr_g is not None:
            raise UserError(
                f'{where}:terms: no term is left that trains the student; where only discriminators learn, leave lr_g '
                'out.'
            )
        if heard and stage.lr_g is None:
            raise UserError(f'{where}:lr_g: the key is missing, but a term trains the student ({heard[0]}).')
        learning = [t for t in active if t not in TERMS and discriminators[t.partition(':')[2] or 'student'].learns]
        if learning and stage.lr_d is None:
            raise UserError(
                f'{where}:lr_d: the key is missing, but a discriminator learns in this stage ({learning[0]}).'
            )
        if not heard and not learning:
            raise UserError(f'{where}:terms: no term is left that trains the student or a discriminator.')
        used.update(active)
    return used


def check_term(opt: Mapping, term: str, discriminators: Mapping[str, Discriminator], where: str) -> None:
    """The options of one term."""
    if term in TERMS:
        cls, key = TERMS[term], f'train:{TERMS[term].option}'
        options = opt['train'].get(cls.option)
    else:
        which = term.partition(':')[2] or 'student'
        cls, entry = Term, discriminators[which]  # the check of a GAN loss is that of any loss
        key = f'discriminators:{which}:gan_opt' if entry.gan_opt else 'train:gan_opt'
        options = entry.gan_opt or opt['train'].get('gan_opt')
    if options is None:
        raise UserError(f'{key}: the block is missing, but {where} has the term {term!r}.')
    cls.check(options, key)


def check_optimizers(train: Train) -> None:
    """Type and values of the optimizers, by building them."""
    for key in ('optim_g', 'optim_d'):
        kind = getattr(train, key).get('type', 'Adam')
        if kind not in ('Adam', 'AdamW'):
            raise UserError(f'train:{key}:type: {kind!r} is not offered, write Adam or AdamW.')
        try:
            make_optimizer([nn.Parameter(torch.zeros(1))], getattr(train, key))
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f'train:{key}: {error}.') from None


def check_student(opt: dict, plan: Plan) -> nn.Module | None:
    """The student can be built and its file fits; None for a run that trains discriminators only."""
    path = opt['path']
    if not opt.get('network_g'):
        if plan.trains_student:
            raise UserError('network_g: the key is missing.')
        if opt.get('val'):
            raise UserError('val: there is no student (network_g) to validate, leave the block out.')
        return None
    if not plan.trains_student:
        raise UserError('network_g: no stage trains the student; leave network_g out, or give a stage its lr_g.')
    student = build(opt['network_g'], 'network_g')
    if path.get('pretrain_network_g') and not path.get('resume_state'):
        file = path['pretrain_network_g']
        ensure_file(file, 'path:pretrain_network_g')
        load_into(student, read_weights(file, path.get('param_key_g'), 'path:pretrain_network_g'), file,
                  'path:pretrain_network_g')  # fmt: skip
    elif opt['train'].get('start_stage') not in (None, next(iter(opt['train']['stages']))) and not path.get(
        'resume_state'
    ):
        raise UserError(
            'path:pretrain_network_g: name the student to begin with, because train:start_stage is '
            f'{opt["train"]["start_stage"]!r}.'
        )
    scale = scale_of(student, 'network_g')
    if opt.setdefault('scale', scale) != scale:
        raise UserError(f'scale: the options say {opt["scale"]}, but network_g enlarges {scale} times.')
    return student


def check_networks(opt: dict, plan: Plan, names: set[str]) -> None:
    """Student, teacher and discriminators can be built, their files fit, their sizes agree."""
    student, path = check_student(opt, plan), opt['path']
    discriminators = used_discriminators(opt, names)
    teachers = {}
    for name in needed_teachers(opt, names, discriminators):
        where = 'teacher' if name == 'teacher' else f'teachers:{name}'
        if name in read_teachers(opt):
            check_teacher(opt, name, where)
        teachers[name] = teacher_network(opt, name)
        check_network(opt, where, teachers[name])
        teacher_scale = scale_of(teachers[name], where)
        scale = opt.setdefault('scale', teacher_scale)
        if teacher_scale != scale:
            other = 'the options say scale:' if student is None else 'network_g'
            raise UserError(
                f'{where}: it enlarges {teacher_scale} times and {other} {scale} times; student and teacher must agree.'
            )

    scale = opt.get('scale', 1)
    gt_size = crop_of(opt)
    if not isinstance(gt_size, int) or gt_size % scale:
        raise UserError(f'datasets:train:gt_size: the crop of {gt_size} must be a multiple of scale {scale}.')
    inside = check_margin(opt, gt_size // scale, teachers)
    judges = {}
    for name, entry in discriminators.items():
        where = 'network_d' if name == 'student' else f'discriminators:{name}:network'
        if student is None and entry.learns and 'student' in entry.fake:
            raise UserError(f'discriminators:{name}:fake: it names the student, but there is no network_g.')
        network = build(entry.network, where)
        if entry.weights and not (name == 'student' and path.get('resume_state')):
            key = 'path:pretrain_network_d' if name == 'student' else f'discriminators:{name}:weights'
            ensure_file(entry.weights, key)
            load_into(network, read_weights(entry.weights, entry.param_key, key), entry.weights, key)
        elif not entry.learns:
            raise UserError(f'discriminators:{name}:weights: a discriminator that does not learn needs its file.')
        side = inside * scale if 'teacher' in (entry.real, *entry.fake) else gt_size
        try:
            network.to('meta').eval()(torch.empty(1, 3, side, side, device='meta'))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            border = '' if side == gt_size else f', what train:teacher_margin leaves of {gt_size}'
            raise UserError(f'{where}: it does not take images of {side}x{side} pixels{border} ({reason}).') from None
        judges[name] = network
    for name in sorted(names & TERMS.keys()):
        options = opt['train'][TERMS[name].option]
        TERMS[name].check_networks(options, student, teachers, judges)
        TERMS[name].check_crop(options, inside, student, teachers, judges)


def check_margin(opt: Mapping, crop: int, teachers: Iterable[str]) -> int:
    """The border that comparisons with a teacher leave out leaves something; returns the side of that.

    Args:
        opt: The options.
        crop: Side of a crop in input pixels.
        teachers: Those that the run compares with.
    """
    if not teachers:
        return crop
    margin = margin_of(opt, crop)
    if 2 * margin >= crop:
        raise UserError(
            f'train:teacher_margin: a border of {margin} leaves nothing of crops of {crop} input pixels; write at most '
            f'{(crop - 1) // 2}, or raise gt_size.'
        )
    return crop - 2 * border_of(opt, crop, teachers)


def check_teacher(opt: Mapping, name: str, where: str) -> None:
    """Its file is there, or fetched; one that learns along has something to be measured by."""
    teacher = read_teachers(opt)[name]
    if teacher.weights is not None:
        ensure_file(teacher.weights, f'{where}:weights')
    if teacher.replace_by is None:
        return
    metrics = (opt.get('val') or {}).get('metrics') or {}
    if teacher.replace_by not in metrics:
        near_ones = near(teacher.replace_by, metrics) if metrics else 'there are none'
        raise UserError(f'{where}:replace_by: {teacher.replace_by!r} is no entry of val:metrics; {near_ones}.')
    if not any(phase.startswith('val') for phase in opt['datasets']):
        raise UserError(f'{where}:replace_by: teachers are compared on a validation set, write datasets:val.')


def check_vgg(options: Mapping, root_path: str) -> None:
    """BasicSR's perceptual loss finds its VGG, or the sentence says which file is missing and how to go without."""
    from basicsr.archs import vgg_arch

    kind = options.get('vgg_type', 'vgg19')
    without = 'go without the term: write `perceptual_opt: ~` under train'
    cache = Path(torch.hub.get_dir(), 'checkpoints')
    if kind not in VGG:
        if not list(cache.glob(f'{kind}-*.pth')):
            raise UserError(
                f"train:perceptual_opt: the weights of {kind} are not in {cache}; put torchvision's file there, or "
                f'{without}.'
            )
        vgg_arch.VGG_PRETRAIN_PATH = ''  # BasicSR would load the file of another VGG that lies there
        return
    folder = Path('experiments/pretrained_models')
    candidates = [folder / VGG[kind], Path(root_path, folder, VGG[kind]), cache / VGG[kind]]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        found = candidates[1]
        ensure_file(found, 'train:perceptual_opt', without, URLS[VGG[kind]])
    vgg_arch.VGG_PRETRAIN_PATH = str(found.resolve())


def check_validation(opt: Mapping) -> None:
    """Metrics exist and have what they compare with; frequencies are numbers."""
    least_values = {'logger': {'print_freq': 1, 'save_checkpoint_freq': 1}}
    least_values['val'] = {'val_freq': 1, 'tile': 0, 'tile_pad': 0, 'tb_images': 0}
    for block, key, least in ((block, *item) for block, items in least_values.items() for item in items.items()):
        value = (opt.get(block) or {}).get(key)
        if value is None and not (key == 'val_freq' and opt.get('val')):
            continue
        try:
            number = int(float(value))
        except (TypeError, ValueError):
            number = -1
        if number < least:
            raise UserError(f'{block}:{key}: write a whole number of at least {least}, not {value!r}.')
        opt[block][key] = number
    val = opt.get('val')
    if not val:
        return
    val.setdefault('save_img', False)
    for name, metric in (val.get('metrics') or {}).items():
        if not isinstance(metric, Mapping) or 'type' not in metric:
            raise UserError(
                f'val:metrics:{name}: write a mapping with its type, for example {{type: calculate_psnr, ...}}.'
            )
        lookup(METRIC_REGISTRY, metric['type'], f'val:metrics:{name}:type')
        check_set_metric(metric, f'val:metrics:{name}')
        if metric['type'] == 'calculate_niqe':
            metric.setdefault('better', 'lower')  # BasicSR would keep the worst as the best
        for phase, dataset in opt['datasets'].items():
            if phase.startswith('val') and metric['type'] != 'calculate_niqe' and not dataset.get('dataroot_gt'):
                raise UserError(
                    f'datasets:{phase}:dataroot_gt: the metric {name} compares with a ground truth, name it.'
                )


def check_degradation(opt: Mapping, reuse: int) -> None:
    """Real-ESRGAN's degradation has all its values, and the pair pool holds whole batches, ``reuse`` times."""
    for key in DEGRADATION:
        if key not in opt:
            raise UserError(f"{key}: the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
    batch = opt['datasets'].get('train', {}).get('batch_size_per_gpu')
    queue = opt.setdefault('queue_size', 180)
    if isinstance(batch, int) and isinstance(queue, int) and batch > 0 and queue % batch:
        raise UserError(
            f'queue_size: the pair pool holds {queue} pairs, which the batch of {batch} does not divide; write '
            f'{math.ceil(queue / batch) * batch}.'
        )
    if isinstance(queue, int) and queue % reuse:
        raise UserError(
            f'train:pool_reuse: {reuse} does not divide the pair pool (queue_size: {queue}); write a divisor of it.'
        )
    if opt['gt_size'] > 400 or opt['gt_size'] % opt['scale']:
        raise UserError(f'gt_size: write a multiple of scale {opt["scale"]} up to 400, not {opt["gt_size"]}.')


def check_room(opt: Mapping) -> None:
    """Pairs of the reusing pool are larger than crops by the margin, and Real-ESRGAN's data sets give 400 pixels.

    Raises:
        UserError: With the largest crop.
    """
    scale = opt['scale']
    most = (400 // scale - 2 * margin_of(opt, opt['gt_size'] // scale)) * scale
    if opt['gt_size'] > most:
        raise UserError(
            f'gt_size: with train:pool_reuse, crops and teacher_margin around them are cut from 400 pixels; write '
            f'{most} or less, not {opt["gt_size"]}.'
        )


def finish(opt: dict, plan: Plan, images: int) -> None:
    """Completes what BasicSR's loop reads: total length, ends of stages, and a data length that lasts.

    BasicSR drops the last incomplete batch but counts it as an iteration, and stops early in silence: 200 images in
    batches of 16 end after 1,128 of 1,200 iterations. With an enlarged data set that batches divide, none is dropped.
    """
    train = opt['datasets']['train']
    batch = train['batch_size_per_gpu'] * opt['world_size']
    ratio = train.get('dataset_enlarge_ratio', 1)
    divisor = batch // math.gcd(images, batch)
    train['dataset_enlarge_ratio'] = max(1, math.ceil(ratio / divisor)) * divisor
    opt['train']['total_iter'] = plan.total_iter
    logger = opt['logger']
    logger['save_checkpoint_freq'] = EveryOr(logger['save_checkpoint_freq'], plan.ends)
    if opt.get('val'):
        # the loop validates once more after the last iteration
        opt['val']['val_freq'] = EveryOr(opt['val']['val_freq'], plan.ends[:-1])
