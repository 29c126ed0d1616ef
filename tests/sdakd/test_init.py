"""`sdakd init`: files with the structure and values of Real-ESRGAN's and BasicSR's own, turned into SDAKD's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.models.lr_scheduler import MultiStepRestartLR

import sdakd
from sdakd.cli import main
from sdakd.compat import UserError
from sdakd.files.option_text import OptionText
from sdakd_arch.width import scale_of
from sdakd_models.options import read_train
from sdakd_models.reader import read_run
from sdakd_models.registry import term_options
from sdakd_models.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
DEEP = {'num_feat': 16, 'num_block': 23, 'num_grow_ch': 8}
TINY = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'num_grow_ch': 4}

DEGRADATION = """\
# first round
resize_prob: [0.2, 0.7, 0.1]  # larger, smaller, as it is
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]

# second round
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]

gt_size: 256
queue_size: 180
"""
KERNELS = """\
    blur_kernel_size: 21
    kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]

    blur_kernel_size2: 21
    kernel_list2: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]

    final_sinc_prob: 0.8
"""
LOADER = """\
    use_hflip: True
    use_rot: False

    # how it is loaded
    use_shuffle: true
    num_worker_per_gpu: 5
    batch_size_per_gpu: 12
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
"""
GENERATOR = """\
network_g:
  type: RRDBNet
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 23
  num_grow_ch: 32
"""
UNET = """\
network_d:
  type: UNetDiscriminatorSN
  num_in_ch: 3
  num_feat: 64
  skip_connection: True
"""
OPTIM_D = """\
  optim_d:
    type: Adam
    lr: !!float 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
"""
SCHEDULE = """\
  # how fast
  scheduler:
    type: MultiStepLR
    milestones: [400000]
    gamma: 0.5

  total_iter: 400000
  warmup_iter: -1  # starts at full rate

  # what is wanted of an image
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
"""
PERCEPTUAL = """\
  # as it is seen
  perceptual_opt:
    type: PerceptualLoss
    layer_weights:
      # in front of the activation
      'conv1_2': 0.1
      'conv2_2': 0.1
      'conv3_4': 1
      'conv4_4': 1
      'conv5_4': 1
    vgg_type: vgg19
    use_input_norm: true
    perceptual_weight: !!float 1.0
    style_weight: 0
    range_norm: false
    criterion: l1
"""
GAN = """\
  # against a discriminator
  gan_opt:
    type: GANLoss
    gan_type: vanilla
    real_label_val: 1.0
    fake_label_val: 0.0
    loss_weight: !!float 1e-1

  net_d_iters: 1
  net_d_init_iters: 0
"""
END = """\

# switch on to validate
# val:
#   val_freq: !!float 5e3

# what is written down
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~

# several machines
dist_params:
  backend: nccl
  port: 29500
"""


def optim_g(rate):
    return f"""\
# training
train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float {rate}
    weight_decay: 0
    betas: [0.9, 0.99]
"""


def head(name, model, usm, gpus=4):
    return f'# at large\nname: {name}\nmodel_type: {model}\nscale: 4\nnum_gpu: {gpus}\nmanual_seed: 0\n\n{usm}\n'


USM = '# sharpened or not\nl1_gt_usm: True\npercep_gt_usm: True\ngan_gt_usm: False\n'
ONLINE = f"""\
# images
datasets:
  train:
    name: DF2K+OST
    type: RealESRGANDataset
    dataroot_gt: datasets/DF2K
    meta_info: datasets/DF2K/meta_info/list.txt
    io_backend:
      type: disk

{KERNELS}
    gt_size: 256
{LOADER}
  # val:
  #   name: held_out

# who learns
"""
START_G = """\

# where from
path:
  # the network trained for PSNR
  pretrain_network_g: experiments/pretrained_models/RealESRNet_x4plus.pth
  param_key_g: params_ema
  strict_load_g: true
"""
START_D = """\
  pretrain_network_d: experiments/pretrained_models/RealESRGAN_x4plus_netD.pth
  param_key_d: params
  strict_load_d: true
"""
RESUME = '  resume_state: ~\n\n'
GAN_TRAINING = f'{optim_g("1e-4")}{OPTIM_D}\n{SCHEDULE}{PERCEPTUAL}{GAN}{END}'

FILES = {
    'train_realesrgan': f'{head("gan_400k", "RealESRGANModel", USM + DEGRADATION)}'
    f'{ONLINE}{GENERATOR}\n\n{UNET}{START_G}{RESUME}{GAN_TRAINING}',
    'finetune_realesrgan': f'{head("tuned", "RealESRGANModel", USM + DEGRADATION, "auto")}'
    f'{ONLINE}{GENERATOR}\n{UNET}{START_G}{START_D}{RESUME}{GAN_TRAINING}',
    'finetune_pairs': f"""\
{head('tuned_on_pairs', 'RealESRGANModel', USM, 'auto')}
high_order_degradation: False # pairs are there already

datasets:
  train:
    name: pairs
    type: RealESRGANPairedDataset
    dataroot_gt: datasets/DF2K
    dataroot_lq: datasets/DF2K
    meta_info: datasets/DF2K/meta_info/pairs.txt
    io_backend:
      type: disk

    gt_size: 256
{LOADER}
{GENERATOR}
{UNET}{START_G}{START_D}{RESUME}{GAN_TRAINING}""",
    'train_realesrnet': f'{head("psnr_1000k", "RealESRNetModel", "gt_usm: True  # the target" + chr(10) + DEGRADATION)}'
    f'{ONLINE}{GENERATOR}{START_G}{RESUME}'
    f'{optim_g("2e-4")}\n{SCHEDULE.replace("400000", "1000000")}{END}',
    'train_esrgan': f"""\
{head('esrgan', 'ESRGANModel', '', '1  # 0 for the processor')}
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/HR_sub
    dataroot_lq: datasets/DIV2K/X4_sub
    # or as databases
    # dataroot_gt: datasets/DIV2K/HR_sub.lmdb
    filename_tmpl: '{{}}'
    io_backend:
      type: disk
      # type: lmdb

    gt_size: 128
{LOADER}
  val:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod12
    dataroot_lq: datasets/Set14/LRbicx4
    io_backend:
      type: disk

network_g:
  type: RRDBNet
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 23

network_d:
  type: VGGStyleDiscriminator
  num_in_ch: 3
  num_feat: 64
{START_G}{RESUME}{optim_g('1e-4')}{OPTIM_D}
{SCHEDULE.replace('[400000]', '[50000, 100000, 200000, 300000]').replace('weight: 1.0', 'weight: !!float 1e-2')}\
{PERCEPTUAL}{GAN.replace('1e-1', '5e-3')}
val:
  val_freq: !!float 5e3
  save_img: true

  metrics:
    psnr: # any name
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false
{END}""",
}


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """A file with RealESRGAN_x4plus's depth, a quarter of its width and random weights."""
    path = tmp_path_factory.mktemp('official') / 'RealESRGAN_x4plus.pth'
    torch.save({'params_ema': RRDBNet(**{**TINY, **DEEP}).half().state_dict()}, path)
    return path


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / 'rrdb.pth'
    torch.save({'params': RRDBNet(**TINY).state_dict()}, path)
    return path


def write(folder, text, name='mine.yml'):
    path = folder / name
    path.write_text(text)
    return path


def leaves(value, path=()):
    """Every value below mappings, by the path of its keys."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, (*path, str(name))).items()}
    return {path: value}


def comments(text):
    return re.findall(r'(?:^|\s)(#.*)$', text, re.MULTILINE)


# -------------------------------------------------- published files ---------------------------------------------------


@pytest.mark.parametrize('name', FILES)
def test_published_files_become_runs_and_each_change_is_listed(name, official, tmp_path):
    source = write(tmp_path, FILES[name])
    made = sdakd.init(source, official)
    before, text = yaml.safe_load(FILES[name]), made.file.read_text()
    after = yaml.safe_load(text)

    # a run as the trainer reads it: the student, its discriminator, the teacher and three stages
    run = read_run(made.file)
    scenario = Scenario.read(run)
    assert run['network_g'] == {'type': 'RRDBNet', 'scale': 4, **TINY, **DEEP, 'num_feat': 4, 'num_grow_ch': 2}
    assert run['network_d']['num_feat'] == 16
    assert scenario.teachers['teacher'].weights == str(official)
    assert scenario.degrades == (name in ('train_realesrgan', 'finetune_realesrgan', 'train_realesrnet'))
    lengths = [stage.iters for stage in scenario.plan.stages]
    total = before['train']['total_iter']
    assert lengths == [total // 4, total // 4, total // 2]
    perceptual = ['perceptual'] if name != 'train_realesrnet' else []
    assert list(scenario.active.values()) == [
        ['pixel', *perceptual],
        ['pixel', *perceptual, 'feature'],
        ['pixel', *perceptual, 'feature', 'gan'],
    ]

    # what differs is listed, and nothing else differs
    old, new = leaves(before), leaves(after)
    differ = {path for path in old.keys() | new.keys() if old.get(path, ...) != new.get(path, ...)}
    listed = [tuple(change.key.split(':')) for change in made.changes]
    assert all(change.reason for change in made.changes)
    listed += [('l1_gt_usm',)] if name == 'train_realesrnet' else []  # what gt_usm became
    for path in differ:
        assert any(path[: len(key)] == key for key in listed), path
    for key in listed:
        assert any(path[: len(key)] == key or key[: len(path)] == path for path in differ), key

    # untouched lines keep their order and every comment its place among them
    kept = [line for line in text.splitlines() if line in FILES[name].splitlines()]
    rest = iter(FILES[name].splitlines())
    assert all(line in rest for line in kept if line.strip())
    assert {line for line in FILES[name].splitlines() if line.strip().startswith('#')} <= set(kept)
    at = text.index('# at large')
    for comment in comments(FILES[name]):
        at = text.index(comment, at)
    assert before['datasets'] == after['datasets'] and before.get('val') == after.get('val')
    assert '!!float 5e3' in text


def test_the_list_names_key_old_new_and_reason(official, tmp_path, capsys):
    source = write(tmp_path, FILES['finetune_realesrgan'])
    assert main(['init', '--from', str(source), '-t', str(official), '-w', '0.5']) == 0
    lines = capsys.readouterr().out.splitlines()
    file = tmp_path / 'mine_sdakd_1_2.yml'
    assert lines[-1] == f'  python basicsr/train.py -opt {file}' and file.is_file()
    changes = lines[: lines.index('')]
    assert all(re.fullmatch(r'[\w:]+: +\S.* -> \S.*: +\S.*', line) for line in changes)
    begins = {re.match(r'\S+ +', line).end() for line in changes}
    assert len(begins) == 1  # aligned
    starts = [line.split()[0] for line in changes]
    assert 'path:pretrain_network_g:' in starts and 'path:pretrain_network_d:' in starts
    assert 'name: tuned_sdakd_1_2\n' in file.read_text()  # the run before keeps its folder


@pytest.mark.parametrize('null', ['', 'network_d: ~   # none\n'])
def test_a_file_without_a_discriminator_gets_the_published_one(null, official, tmp_path):
    made = sdakd.init(write(tmp_path, null + FILES['train_realesrnet']), official, '1/8')
    assert not null or 'network_d: {width: 1/8}   # none\n' in made.file.read_text()
    run = read_run(made.file)
    assert run['network_d'] == {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8, 'skip_connection': True}
    assert run['train']['gan_opt']['type'] == 'GANLoss'
    assert (run['l1_gt_usm'], run['gan_gt_usm'], 'gt_usm' in run) == (True, False, False)
    stages = run['train']['stages']
    assert [stage['lr_g'] for stage in stages.values()] == [2e-4, 2e-4, 1e-4] and stages['adversarial']['lr_d'] == 1e-4
    said = {change.key: change.reason for change in made.changes}
    assert 'the file has none' in said['network_d'] and 'without' in said['train:gan_opt']


@pytest.mark.parametrize(('usm', 'paired'), [('False', False), ('True', True)])
def test_targets_that_realesrnet_does_not_sharpen_stay_so(usm, paired, official, tmp_path):
    text = FILES['train_realesrnet'].replace('gt_usm: True', f'gt_usm: {usm}')
    text = text.replace('scale: 4\n', 'scale: 4\nhigh_order_degradation: false\n') if paired else text
    run = read_run(sdakd.init(write(tmp_path, text), official).file)
    assert (run['l1_gt_usm'], run['gan_gt_usm']) == (False, False)


# ----------------------------------------------------- schedules ------------------------------------------------------


@pytest.mark.parametrize('milestones', ['[200, 400, 600]', '[500, 800, 1600]', '[800]'])
def test_rates_decay_in_every_stage_as_they_did_in_the_whole(milestones, tiny, tmp_path):
    """Against BasicSR's own scheduler, at the same fractions of the length."""
    text = re.sub(r'milestones: .*', f'milestones: {milestones}', FILES['train_esrgan'])
    text = text.replace('total_iter: 400000', 'total_iter: 800').replace('gamma: 0.5', 'gamma: 0.3')
    made = sdakd.init(write(tmp_path, text), tiny)
    plan = read_train(yaml.safe_load(made.file.read_text()), term_options()).plan()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1e-4)
    scheduler = MultiStepRestartLR(optimizer, yaml.safe_load(milestones), 0.3)
    rates = []
    for _ in range(800):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    begin = 0
    for length in (200, 200, 400):
        found = [plan.learning_rate(begin + step + 1, 'g') for step in range(length)]
        assert found == pytest.approx(rates[:: 800 // length])
        begin += length
    assert plan.total_iter == 800 and plan.learning_rate(800, 'd') == pytest.approx(rates[-1])


def test_cosine_warm_up_and_what_has_no_counterpart(tiny, tmp_path):
    text = FILES['train_esrgan'].replace('type: MultiStepLR', 'type: CosineAnnealingRestartLR')
    text = re.sub(r' +milestones: .*\n', '    periods: [400000]\n    eta_min: !!float 1e-6\n', text)
    text = re.sub(r'    gamma: 0.5\n', '', text).replace('warmup_iter: -1', 'warmup_iter: 500')
    text = text.replace('  net_d_iters', '  ldl_opt:\n    type: L1Loss  # of artefacts\n  net_d_iters')
    text = text.replace('  ema_decay: 0.999\n', '').replace('use_hflip', 'use_flip')
    made = sdakd.init(write(tmp_path, text), tiny)
    run = read_run(made.file)
    stages = list(run['train']['stages'].values())
    assert [stage['scheduler'] for stage in stages] == [{'type': 'CosineAnnealingLR', 'eta_min': 0.01}] * 3
    assert [stage.get('warmup_iter') for stage in stages] == [500, None, None]
    assert 'ldl_opt' not in run['train'] and run['train']['ema_decay'] == 0  # BasicSR's value where there is none
    assert run['datasets']['train']['use_hflip'] is True
    assert '# type: L1Loss  # of artefacts' in made.file.read_text()  # a line that goes leaves its comment
    assert {'train:ldl_opt', 'train:ema_decay', 'datasets:train'} <= {change.key for change in made.changes}


# ------------------------------------------------------ networks ------------------------------------------------------


def test_the_teacher_s_depth_and_architecture_win_and_it_is_said(world, tiny, tmp_path):
    source = write(tmp_path, FILES['train_esrgan'])
    made = sdakd.init(source, tiny, '1/2', tmp_path / 'a.yml')
    assert read_run(made.file)['network_g']['num_block'] == 2
    said = next(change for change in made.changes if change.key == 'network_g')
    assert 'num_block: 23' in said.reason and 'num_feat: 64' in said.reason
    other = sdakd.init(source, world.root / 'teacher.pth', '1/2', tmp_path / 'b.yml')
    assert read_run(other.file)['network_g']['type'] == 'SRVGGNetCompact'
    assert 'RRDBNet' in next(change for change in other.changes if change.key == 'network_g').reason


def test_a_teacher_by_the_name_that_fetch_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('experiments/pretrained_models').mkdir(parents=True)
    path = Path('experiments/pretrained_models/RealESRGAN_x4plus.pth')
    torch.save({'params_ema': RRDBNet(**TINY).state_dict()}, path)
    made = sdakd.init(write(tmp_path, FILES['train_realesrgan']), 'RealESRGAN_x4plus')
    assert yaml.safe_load(made.file.read_text())['teacher']['weights'] == str(path)


# ------------------------------------------------------ mistakes ------------------------------------------------------


@pytest.mark.parametrize(
    ('old', 'new', 'sentence'),
    [
        ('scale: 4', 'scale: 2', r'scale: it is 2, but .*rrdb\.pth enlarges 4 times; both must agree\.'),
        (
            'ESRGANModel',
            'VideoBaseModel',
            r'model_type: VideoBaseModel cannot .* these can: RealESRGANModel, .*, ESRGANModel',
        ),
        ('ESRGANModel', 'SDAKDModel', r'model_type: SDAKDModel is SDAKD already'),
        ('total_iter: 400000', 'total_iter: 2', r'train:total_iter: write a number of at least 3, not 2\.'),
        ('  total_iter: 400000\n', '', r'train:total_iter: write a number of at least 3, not none\.'),
        (
            '    lr: !!float 1e-4\n    weight_decay: 0',
            '    weight_decay: 0',
            r'train:optim_g:lr: write a positive number',
        ),
        ('type: MultiStepLR', 'type: StepLR', r"train:scheduler:type: 'StepLR' is none of BasicSR"),
        (
            'num_feat: 64\n\n# where',
            'num_feat: 30\n\n# where',
            r'network_d: num_feat of VGGStyleDiscriminator is 30, which',
        ),
        ('type: Adam', 'type: SGD', r"train:optim_g:type: 'SGD' is not offered, write Adam or AdamW"),
        ('reduction: mean', 'reduce: mean', r"train:pixel_opt: L1Loss takes no 'reduce'"),
        ('manual_seed: 0', 'manual_seed: !!python/object/apply:os.system ["touch made"]', r'broken YAML in line 6'),
        ('    gt_size: 128\n', '    <<: *a\n', r'broken YAML'),
    ],
)
def test_a_file_that_cannot_be_turned_ends_in_one_sentence(old, new, sentence, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FILES['train_esrgan']
    assert old in text
    source = write(tmp_path, text.replace(old, new, 1))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=sentence) as error:
        sdakd.init(source, tiny)
    assert str(error.value).startswith(str(source)) and '\n' not in str(error.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_mistakes_of_flags_are_named_by_them(tiny, tmp_path):
    source = write(tmp_path, FILES['train_esrgan'])
    discriminator = tmp_path / 'net_d.pth'
    torch.save({'params': UNetDiscriminatorSN(3, 4).state_dict()}, discriminator)
    for arguments, where in (
        ((tmp_path / 'absent.yml', tiny), '--from'),
        ((source, 'RealESRGAN_x4plos'), '-t'),
        ((source, discriminator), '-t'),
        ((source, tiny, '1/3'), '-w'),
        ((source, tiny, 'narrow'), '-w'),
        ((source, tiny, '1/4', source), '-o'),
    ):
        with pytest.raises(UserError) as error:
            sdakd.init(*arguments)
        assert error.value.where == where, error.value
    assert source.read_text() == FILES['train_esrgan']


def test_an_output_that_is_there_is_kept(tiny, tmp_path):
    source, out = write(tmp_path, FILES['train_esrgan']), tmp_path / 'out.yml'
    assert sdakd.init(source, tiny, output=out).written
    again = sdakd.init(source, tiny, output=out)
    assert not again.written and 'was there already' in str(again)
    edited = out.read_text().replace('manual_seed: 0', 'manual_seed: 7')
    out.write_text(edited)
    with pytest.raises(UserError, match='is there already and is another one'):
        sdakd.init(source, tiny, output=out)
    assert out.read_text() == edited


# ------------------------------------------------------ training ------------------------------------------------------


def small(text, world, **values):
    """A file on the images of a small world, eight iterations long, without the file of VGG19."""
    options = {
        'dataroot_gt': world.root / 'HR',
        'dataroot_lq': world.root / 'LRx4',
        'gt_size': 32,
        'queue_size': 4,
        'num_worker_per_gpu': 0,
        'batch_size_per_gpu': 2,
        'total_iter': 8,
        'num_gpu': 'auto',
        'num_feat': 8,
        'use_tb_logger': 'false',
    }
    for key, value in {**options, **values}.items():
        text = re.sub(rf'^( *{key}: ).*$', lambda found, value=value: f'{found[1]}{value}', text, flags=re.MULTILINE)
    return re.sub(r'  # as it is seen\n(.*\n)*?(?=  # against)', '', text)


@pytest.mark.parametrize('name', ['train_realesrgan', 'train_esrgan'])
def test_what_is_written_trains(name, world, tiny, tmp_path):
    """Two iterations of the first two stages and four of the third, on the literal command."""
    listed = tmp_path / 'list.txt'
    listed.write_text(''.join(f'{path.name}\n' for path in sorted((world.root / 'HR').iterdir())))
    text = small(FILES[name], world, meta_info=listed, milestones='[4]')
    if name == 'train_esrgan':  # of images of 128 pixels, which the small world does not have
        text = text.replace('VGGStyleDiscriminator', 'UNetDiscriminatorSN')
    made = sdakd.init(write(tmp_path, text), tiny, '1/2')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', str(made.file)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    options = yaml.safe_load(made.file.read_text())
    models = tmp_path / 'experiments' / options['name'] / 'models'
    assert {'net_g_2.pth', 'net_g_4.pth', 'net_g_8.pth', 'net_d_8.pth'} <= {path.name for path in models.iterdir()}
    student = RRDBNet(**{**TINY, 'num_feat': 4, 'num_grow_ch': 2})
    student.load_state_dict(torch.load(models / 'net_g_8.pth', weights_only=True)['params_ema'])
    assert scale_of(student, 'student') == 4


# -------------------------------------------------------- text --------------------------------------------------------


def test_keys_change_and_nothing_else_does():
    text = OptionText(
        "a: {b: 1, c: 2, d: 'x # y'}  # one\n"
        'e:   # two\n'
        '  f: "a # b"   # three\n'
        '  # four\n'
        '  g: [1, 2]\n'
        '\n'
        '# five\n'
        "'h':  7\n"
        'i:\n'
    )
    text.set(['a', 'b'], '5')
    text.remove(['a', 'c'])
    text.remove(['a', 'd'])
    text.add(['a', 'z'], '[3]')
    text.remove(['e', 'f'])
    text.set(['h'], '8')
    text.set(['i'], 'text')
    text.add(['j'], '\n  k: 1\n  l: 2', after='h', gap=True)
    text.rename(['e', 'g'], 'm')
    assert text.written() == (
        'a: {b: 5, z: [3]}  # one\n'
        'e:   # two\n'
        '  # f: "a # b"   # three\n'
        '  # four\n'
        '  m: [1, 2]\n'
        '\n'
        '# five\n'
        "'h': 8\n"
        '\n'
        'j:\n'
        '  k: 1\n'
        '  l: 2\n'
        'i: text\n'
    )


def test_a_block_that_goes_leaves_its_comments():
    text = OptionText('a:  # one\n  b: 1\n  # two\n  c: 2  # three\n\nd: 4\n\ne: 5\n\nf: 6\n')
    text.set(['a'], '{w: 1/4}')
    text.remove(['d'])
    assert text.written() == 'a: {w: 1/4}  # one\n  # two\n  # c: 2  # three\n\ne: 5\n\nf: 6\n'


@pytest.mark.parametrize(
    ('text', 'change'),
    [
        ('a: &x {b: 1}\nc: *x\n', lambda text: text.remove(['a'])),
        ('a: &x {b: 1}\nc:\n  <<: *x\n', lambda text: text.set(['c', 'b'], '2')),
        ('a: {b: 1}\n', lambda text: (text.add(['a', 'c'], '\n  d: 1\n  e: 2'), text.remove(['a', 'b']))),
    ],
)
def test_text_that_cannot_be_changed_key_by_key_is_refused(text, change):
    text = OptionText(text)
    with pytest.raises(UserError, match='write a key a line'):
        change(text)
        text.written()
