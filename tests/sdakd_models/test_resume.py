"""A run that was stopped anywhere and goes on ends in the same bits as one that was not."""

import logging
import re
import shutil

import pytest
import torch
import yaml

import basicsr.train
from sdakd.compat import UserError
from sdakd_models.loop import Loop, create_train_val_dataloader
from sdakd_models.sdakd_model import SDAKDModel

STAGE = 4  # iterations of each of the three stages


class Killed(BaseException):
    """Nobody catches it and nothing is saved, as after SIGKILL."""


def differences(one, other, where=''):
    """The places at which two nested contents differ; tensors by every element."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f'{where}: {sorted(map(str, one.keys() ^ other.keys()))}']
        return [found for key in one for found in differences(one[key], other[key], f'{where}/{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [found for n, each in enumerate(pairs) for found in differences(*each, f'{where}/{n}')]
    same = torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other
    return [] if same else [where]


class Runs:
    """Real trainings by BasicSR's loop, in this process."""

    def __init__(self, world, monkeypatch):
        self.world, self.monkeypatch = world, monkeypatch

    def __call__(self, file, *flags, kill=None):
        """Trains to the end, or until the iteration ``kill`` is about to be logged and saved."""
        self.monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(file), *flags])
        step, root = SDAKDModel.optimize_parameters, str(self.world.root)

        def optimize_parameters(model, current_iter):
            step(model, current_iter)
            if current_iter == kill and model.loop is not None:
                raise Killed

        with self.monkeypatch.context() as patch:
            patch.setattr('sys.excepthook', lambda *_: None)
            patch.setattr(Loop, 'listen', lambda loop: None)  # this process keeps its signals
            patch.setattr(SDAKDModel, 'optimize_parameters', optimize_parameters)
            from sdakd_models import launch

            patch.setattr(basicsr.train, 'parse_options', launch.parse_options)
            if kill is None:
                basicsr.train.train_pipeline(root)
            else:
                with pytest.raises(Killed):
                    basicsr.train.train_pipeline(root)
            Loop.latest = None

    def end(self, name):
        """All that is left of a run's last iteration, but for times."""
        folder = self.world.root / 'experiments' / name
        files = [*folder.glob('models/net_*_latest.pth'), *folder.glob(f'training_states/{3 * STAGE}*.[ps]*')]
        found = {path.name: torch.load(path, weights_only=True) for path in files}
        found[f'{3 * STAGE}.state'].pop('clock')
        return found


@pytest.fixture
def runs(world, monkeypatch):
    return Runs(world, monkeypatch)


def scenario(world, kind):
    """Options of a run with everything of its kind that has a state."""
    options = world.options()
    for stage in options['train']['stages'].values():
        stage |= {'iters': STAGE, 'lr_g': 1e-3, 'warmup_iter': 0}
    options['logger'] |= {'save_checkpoint_freq': 3, 'print_freq': 1}
    options['datasets']['train']['num_worker_per_gpu'] = 2 if kind in ('paired', 'faces') else 0
    if kind in ('degraded', 'reused', 'selective'):
        names = sorted(path.name for path in (world.root / 'HR').iterdir())
        (world.root / 'HR.txt').write_text(''.join(f'{name} (64,64,3)\n' for name in names))
        options |= {'model_type': 'SDAKDRealESRGANModel', **world.degradation, 'gt_size': 64}
        options['datasets']['train'] = {
            'name': 'photographs', 'type': 'RealESRGANDataset', 'dataroot_gt': str(world.root / 'HR'),
            'meta_info': str(world.root / 'HR.txt'), 'io_backend': {'type': 'disk'}, **world.kernels,
            'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2,
        }  # fmt: skip
    if kind == 'reused':
        options |= {'queue_size': 8}
        options['train'] |= {'pool_reuse': 2, 'teacher_margin': 2, 'output_opt': {'type': 'L1Loss'}}
        options['train']['stages']['distillation']['terms'] = ['output', 'feature']
    if kind == 'selective':  # channel masks of a discriminator, by images that are held out
        judge = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
        selective = {'lr': 0.2, 'held_out': 4}
        options['discriminators'] = {
            'selected': {'network': judge, 'selective': selective},
            'teacher': {'network': judge, 'fake': ['teacher'], 'trains_student': False},
        }
        options['train']['stages']['adversarial']['terms'] += ['gan:selected', 'gan:teacher']
    if kind == 'paired':  # what validation changes: the best checkpoint, and a teacher that learns along
        options['teacher'] = {'weights': options['teacher']['weights'], 'cotrain': {'metric': 'psnr'}}
        options['val']['val_freq'], options['logger']['keep_best'] = 3, 'psnr'
    return options


@pytest.mark.parametrize('kind', ['paired', 'degraded', 'reused', 'selective'])
def test_a_killed_run_that_goes_on_ends_in_the_same_bits(world, runs, kind):
    options = scenario(world, kind)
    files = {name: world.write(options | {'name': name}, f'{name}.yml') for name in ('whole', 'killed')}
    runs(files['whole'])
    for kill in (5, 8, 10):  # the last checkpoints are those of 4, 8 (not written yet: 6), and 9
        runs(files['killed'], '--auto_resume', kill=kill)
    runs(files['killed'], '--auto_resume')
    whole, killed = runs.end('whole'), runs.end('killed')
    assert not differences(whole, killed)
    assert {'net_g_latest.pth', 'net_d_latest.pth', 'net_adapter_latest.pth', '12_random0.pth'} <= whole.keys()
    assert ('12_pool0.pth' in whole) == (kind != 'paired')
    assert ('net_d_selected_masks_latest.pth' in whole) == (kind == 'selective')
    # it is not that nothing was random
    other = world.write(options | {'name': 'other', 'manual_seed': 1}, 'other.yml')
    runs(other)
    assert differences(whole, runs.end('other'))


def test_validating_does_not_change_training(world, runs):
    options = scenario(world, 'degraded')
    ends = []
    for name, val in (('often', 1), ('never', 1000)):
        options['name'], options['val']['val_freq'] = name, val
        runs(world.write(options, f'{name}.yml'))
        ends.append({key: value for key, value in runs.end(name).items() if not key.endswith('.state')})
    assert not differences(*ends)


def test_a_validation_that_was_cut_off_is_made_up_for(world, runs, monkeypatch):
    options = scenario(world, 'paired')
    files = {name: world.write(options | {'name': name}, f'{name}.yml') for name in ('whole', 'cut')}
    runs(files['whole'])
    validate, seen = SDAKDModel._validate, []

    def cut(model, dataloader, current_iter, *rest):
        seen.append(current_iter)
        if current_iter == 6 and seen.count(6) == 1:
            raise Killed
        validate(model, dataloader, current_iter, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SDAKDModel, '_validate', cut)
        with pytest.raises(Killed):
            runs(files['cut'])
        runs(files['cut'], '--auto_resume')
    assert seen == [3, 4, 6, 6, 8, 9, 12]
    assert not differences(runs.end('whole'), runs.end('cut'))


@pytest.mark.parametrize('change', ['batch', 'images', 'workers'])
def test_a_run_goes_on_at_its_iteration_with_other_data(world, runs, change):
    options = scenario(world, 'degraded')
    train = options['datasets']['train']
    runs(world.write(options), kill=8)
    if change == 'batch':
        train['batch_size_per_gpu'], options['queue_size'] = 1, 4
    elif change == 'workers':
        train['num_worker_per_gpu'] = 1
    else:
        (world.root / 'HR.txt').write_text('astronaut0.png\nchelsea0.png\ncoffee1.png\n')
    seen = []
    step = SDAKDModel.optimize_parameters

    def note(model, current_iter):
        seen.append(current_iter) if model.loop is not None else None
        step(model, current_iter)

    runs.monkeypatch.setattr(SDAKDModel, 'optimize_parameters', note)
    runs(world.write(options), '--auto_resume')
    assert seen == [7, 8, 9, 10, 11, 12] and (world.root / 'experiments/run/models/net_g_latest.pth').is_file()


def test_changed_stages_are_refused_unless_they_are_accepted(world, runs):
    options = scenario(world, 'degraded')
    runs(world.write(options), kill=8)
    files = sorted((world.root / 'experiments').rglob('*'))
    options['train']['stages']['adversarial']['iters'] = STAGE + 2
    with pytest.raises(
        UserError, match=r'train:stages:adversarial:iters: it was 4 when the run began, and is 6; .*--cha'
    ):
        runs(world.write(options), '--auto_resume')
    options['train']['stages']['adversarial']['iters'] = STAGE
    options['train']['stages'] = {'first': options['train']['stages'].pop('supervised'), **options['train']['stages']}
    with pytest.raises(UserError, match=r'train:stages: they were supervised, distillation, adversarial when'):
        runs(world.write(options), '--auto_resume')
    assert sorted((world.root / 'experiments').rglob('*')) == files
    runs(world.write(options), '--auto_resume', '--change_stages')
    assert (world.root / 'experiments/run/models/net_g_latest.pth').is_file()


def test_a_seed_that_is_left_open_stays_the_run_s(world, runs, parse):
    options = scenario(world, 'degraded') | {'manual_seed': None}
    runs(world.write(options), kill=8)
    kept = yaml.safe_load((world.root / 'experiments/run/training_states/6.json').read_text())['manual_seed']
    seeds = {parse(world.root / 'run.yml', world.root, '--auto_resume')['manual_seed'] for _ in range(3)}
    assert seeds == {kept}
    assert len({parse(world.root / 'run.yml', world.root)['manual_seed'] for _ in range(5)}) > 1


@pytest.mark.parametrize('harm', ['torn', 'gone', 'altered', 'manifest', 'state'])
def test_a_checkpoint_that_is_not_whole_is_passed_over(world, runs, parse, caplog, harm):
    runs(world.write(scenario(world, 'degraded')), kill=10)  # checkpoints: 3, 4, 6, 8, 9; the first went
    folder = world.root / 'experiments/run'
    victim = folder / {'manifest': 'training_states/9.json', 'state': 'training_states/9.state'}.get(
        harm, 'models/net_d_9.pth'
    )
    content = victim.read_bytes()
    if harm == 'gone':
        victim.unlink()
    elif harm == 'altered':
        victim.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    else:
        victim.write_bytes(content[: len(content) // 2])
    opt = parse(world.root / 'run.yml', world.root, '--auto_resume')
    assert opt['path']['resume_state'].endswith('/8.state')
    assert f'{victim} ' in caplog.text.replace(f'{victim}:', f'{victim} ') and 'goes on from' in caplog.text
    options = scenario(world, 'degraded') | {'path': {'resume_state': str(folder / 'training_states/9.state')}}
    with pytest.raises(UserError) as caught:
        runs(world.write(options, 'nine.yml'))
    assert str(victim) in str(caught.value) and '\n' not in str(caught.value)
    for state in folder.glob('training_states/*.state'):
        (folder / f'models/net_g_{state.stem}.pth').unlink()
    with pytest.raises(UserError, match='--auto_resume: the checkpoint of iteration 9 is no whole one'):
        parse(world.root / 'run.yml', world.root, '--auto_resume')


def test_pools_of_older_checkpoints_go(world, runs):
    runs(world.write(scenario(world, 'reused')))
    states = {path.name for path in (world.root / 'experiments/run/training_states').iterdir()}
    assert {name for name in states if 'pool' in name} == {'9_pool0.pth', '12_pool0.pth'}
    assert {'4.state', '4_random0.pth', '4.json', '8.state', '12.json'} <= states
    assert not any(name.startswith(('3', '6')) for name in states)


@pytest.mark.parametrize('kind', ['paired', 'degraded'])
def test_the_room_that_checkpoints_take_is_told_ahead(world, runs, parse, kind):
    """Against the files of a run; networks this small are a third headers."""
    options = scenario(world, kind)
    options['network_g']['num_feat'], options['network_d']['num_feat'] = 32, 32
    opt = parse(world.write(options), world.root)
    one, all_ = re.match(r'A checkpoint takes about ([\d.]+ \wiB), 6 that stay ([\d.]+ \wiB) of', opt['room']).groups()
    runs(world.root / 'run.yml')
    folder = world.root / 'experiments/run'
    files = [path for path in folder.rglob('*') if path.suffix in ('.pth', '.state') and 'latest' not in path.name]
    last = sum(path.stat().st_size for path in files if re.match(r'(.*_)?12[._]', path.name))
    units = {'KiB': 2**10, 'MiB': 2**20}
    told = [float(number) * units[unit] for number, unit in map(str.split, (one, all_))]
    states = len(list(folder.glob('training_states/*.state')))
    assert told[0] == pytest.approx(last, rel=0.1) and states <= 6
    # what has not learned yet has no moments
    assert told[1] / 3 < sum(path.stat().st_size for path in files) < 1.05 * told[1]


def test_a_full_disk_is_told_before_the_start(world, parse, monkeypatch):
    usage = shutil.disk_usage(world.root)
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match='path:experiments_root: two checkpoints take .* has 98 KiB left'):
        parse(world.write(scenario(world, 'paired')), world.root)
    assert not (world.root / 'experiments').exists()


def test_the_loader_of_a_run_with_nothing_left_is_empty(world, parse):
    opt = parse(world.write(scenario(world, 'paired')), world.root)
    Loop.latest.iteration = opt['train']['total_iter']
    loader, draws, validations, _, total = create_train_val_dataloader(opt, logging.getLogger())
    assert list(loader) == [] == list(draws) and len(validations) == 1 and total == 3 * STAGE
