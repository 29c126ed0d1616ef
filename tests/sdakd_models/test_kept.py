"""Which checkpoints stay: real short trainings that are killed and go on, against the list written out by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sdakd.compat import UserError
from sdakd_models.kept import Kept

ROOT = Path(__file__).resolve().parents[2]


def write(world, **logger):
    """Three stages of 10 iterations with a checkpoint every 2; only the last of them has a discriminator."""
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 10
    options['logger'] = {'print_freq': 5, 'save_checkpoint_freq': 2, 'use_tb_logger': False, **logger}
    options['val']['val_freq'] = 4
    return world.write(options)


def train(world, file, *flags, last=None, scores=None):
    """The training in a process of its own, which dies without a word after iteration ``last``.

    Args:
        scores: What PSNR is made out to be by iteration; 0 elsewhere. ``None``: what it is.
    """
    code = (
        'import os, sys; from sdakd import compat; compat.import_basicsr(); import sdakd_models, basicsr.train;'
        'from sdakd_models.sdakd_model import SDAKDModel as Model; step, validate = Model.optimize_parameters, '
        'Model.nondist_validation\n'
        'def dying(model, i):\n'
        f'    late = {last} and i > ({last} or 0) and "rehearsal" not in model.opt\n'
        '    return os._exit(9) if late else step(model, i)\n'
        'def told(model, *arguments):\n'
        '    validate(model, *arguments)\n'
        f'    if {scores} is not None: model.metric_results["psnr"] = ({scores} or {{}}).get(model.last_iter, 0.0)\n'
        'Model.optimize_parameters, Model.nondist_validation = dying, told\n'
        f'basicsr.train.train_pipeline({str(world.root)!r})'
    )
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    process = subprocess.run(
        [sys.executable, '-c', code, '-opt', file, *flags],
        env=environment, cwd=world.root, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.returncode == (9 if last else 0), process.stdout
    return process.stdout


def saved(world):
    """The iterations whose files are there, all of a checkpoint or none; the states tell which files these are."""
    run = world.root / 'experiments/run'
    names = {path.name for path in (run / 'models').iterdir()}
    iterations = sorted(int(path.stem) for path in (run / 'training_states').glob('*.state'))
    whole = {
        f'net_{player}_{iteration}.pth'
        for iteration in iterations
        for player in torch.load(run / f'training_states/{iteration}.state', weights_only=True)['players']
    }
    assert {name for name in names if not name.endswith('_latest.pth')} == whole
    return iterations


def test_the_newest_and_the_ends_of_stages_stay_over_kills(world):
    file = write(world)
    train(world, file, last=5)
    assert saved(world) == [2, 4]
    train(world, file, '--auto_resume', last=15)
    assert saved(world) == [10, 12, 14]  # 10 is an end, and among the newest three
    train(world, file, '--auto_resume', last=22)
    assert saved(world) == [10, 18, 20, 22]
    train(world, file, '--auto_resume')
    assert saved(world) == [10, 20, 26, 28, 30]
    assert (world.root / 'experiments/run/models/net_g_latest.pth').is_file()


def test_the_best_stays_under_its_own_iteration(world):
    file = write(world, keep_last=1, keep_best='psnr')
    scores = {4: 20.0, 8: 25.0, 10: 24.0, 12: 23.0, 16: 26.0, 24: 25.5, 30: 26.0}
    out = train(world, file, last=7, scores=scores)
    assert saved(world) == [4, 6] and 'iteration 4 (psnr 20.0000)' in out
    out = train(world, file, '--auto_resume', last=13, scores=scores)
    assert saved(world) == [8, 10, 12] and 'iteration 8 (psnr 25.0000, before 20.0000 at 4)' in out
    out = train(world, file, '--auto_resume', last=29, scores=scores)
    assert saved(world) == [10, 16, 20, 28] and 'iteration 24' not in out
    out = train(world, file, '--auto_resume', scores=scores)  # the last validation is of the last checkpoint
    assert saved(world) == [10, 16, 20, 30] and 'iteration 30 (psnr 26.0000, before 26.0000 at 16)' in out


def test_a_run_that_goes_back_leaves_what_came_later(world):
    """From an older state, later checkpoints belong to nobody: they stay until they are written over."""
    file = write(world, keep_last=2)
    train(world, file, last=17)
    assert saved(world) == [10, 14, 16]
    state = world.root / 'experiments/run/training_states/10.state'
    options = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
    options['path'] = {'resume_state': str(state)}
    back = world.write(options, 'back.yml')
    before = (world.root / 'experiments/run/training_states/16.state').stat().st_mtime_ns
    train(world, back, last=13)
    assert saved(world) == [10, 12, 14, 16]
    assert (world.root / 'experiments/run/training_states/16.state').stat().st_mtime_ns == before
    train(world, file, '--auto_resume', last=19)  # from 16, whose run wrote 14 and 16: 12 is none of its checkpoints
    assert saved(world) == [10, 12, 16, 18]


def test_nothing_goes_that_an_earlier_version_or_somebody_else_wrote(world, tmp_path):
    file = write(world, keep_last=None)
    train(world, file, last=9)
    states = world.root / 'experiments/run/training_states'
    for path in states.glob('*.state'):
        content = torch.load(path, weights_only=True)
        del content['kept']
        torch.save(content, path)
        path.with_suffix('.json').unlink()  # nor did it write manifests
    assert saved(world) == [2, 4, 6, 8]
    other = world.root / 'experiments/run/models/net_other_12.pth'
    other.write_bytes(b'of somebody else')
    train(world, write(world, keep_last=1), '--auto_resume', last=16)
    assert other.read_bytes() == b'of somebody else'
    other.unlink()
    assert saved(world) == [2, 4, 6, 8, 10, 16]


@pytest.mark.parametrize('lower', [False, True])
def test_the_best_is_that_of_a_search_over_all(lower):
    """Random scores and lengths, against the rule applied to the whole history at every checkpoint."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda top: int(torch.randint(top, (1,), generator=generator))  # noqa: E731
    for _ in range(60):
        last, ends = 1 + draw(4), {5 * (1 + draw(8)) for _ in range(2)}
        kept, there, history = Kept(last, ends), [], {}
        for iteration in range(1, 41):
            gone = kept.add(iteration)
            there.append(iteration)
            assert set(gone) <= set(there)
            there = [each for each in there if each not in gone]
            best = history and (min if lower else max)(history.values())
            wanted = {*range(iteration - last + 1, iteration + 1), *(end for end in ends if end <= iteration)} - {0}
            wanted |= {max(i for i, score in history.items() if score == best)} if history else set()
            assert set(there) == {each for each in wanted if each > 0}
            if draw(2):
                history[iteration] = draw(10)
                kept.consider(iteration, 'psnr', history[iteration], lower)
            if draw(4) == 0:  # killed, and resumed from the state
                again = Kept(last, ends)
                again.load_state(kept.state())
                kept = again


def test_a_score_that_is_no_number_and_another_metric():
    kept = Kept(1, ())
    assert not kept.consider(1, 'psnr', float('nan'), False) and kept.best is None
    assert kept.consider(2, 'psnr', 30.0, False) and not kept.consider(3, 'psnr', float('nan'), False)
    assert kept.consider(4, 'niqe', 5.0, True) and kept.best.iteration == 4


@pytest.mark.parametrize(
    ('logger', 'sentence'),
    [
        ({'keep_lst': 2}, "logger: unknown key 'keep_lst'; did you mean keep_last"),
        ({'keep_last': 0}, 'logger:keep_last: expected `int` >= 1, given 0'),
        ({'keep_best': 'pnsr'}, "logger:keep_best: there is no 'pnsr' under val:metrics; did you mean psnr"),
        ({'keep_best': True, 'save_checkpoint_freq': 3}, r'logger:keep_best: .* every 4 iterations .*\(3\) there'),
    ],
)
def test_mistakes(world, parse, logger, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(write(world, **logger), world.root)
    assert not (world.root / 'experiments').exists()


def test_the_best_needs_a_validation(world, parse):
    options = yaml.safe_load(Path(write(world, keep_best=True)).read_text(encoding='utf-8'))
    del options['val']
    with pytest.raises(UserError, match='logger:keep_best: it needs val:metrics'):
        parse(world.write(options), world.root)
