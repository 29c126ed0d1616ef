"""The gates of a comparison and its verdict: from logs and scores whose answer is known."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from sdakd.commands.compare import gates
from sdakd.commands.compare.config import Primary
from sdakd.commands.compare.rows import Row
from sdakd.commands.compare.summary import Cell

STAGES = {'supervised': ['pixel'], 'adversarial': ['pixel', 'feature', 'gan']}


def row(name, terms=('feature',), shuffle=None):
    stages = {
        stage: {'iters': 100, 'terms': [t for t in named if t not in ('feature',) or t in terms]}
        for stage, named in STAGES.items()
    }
    return Row(name, name, None, {'teacher': {'shuffle': shuffle}}, [], stages, [0, 1, 2])


def log(folder, share, real, fake, name='train_run_20260101_000000.log'):
    """As BasicSR and this project write it: two stages of 100 iterations, a line every ten."""
    folder.mkdir(parents=True)
    lines = []
    for number, (stage, terms) in enumerate(STAGES.items(), 1):
        lines.append(f'2026 INFO: Stage {number} of 2, {stage}: 100 iterations with {", ".join(terms)}.')
        for step in range(10, 101, 10):
            text = f'[run..][epoch:  0, iter: {100 * (number - 1) + step:,d}, lr:(1.000e-04,)] [eta: 0:00:01] '
            text += f'stage: {number}/2 {stage} {step}/100 l_g_pix: 1.0e-01 '
            if stage == 'adversarial':
                # the first half has other values, which do not count
                at = (share, real, fake) if step >= 50 else (0.9, -5, 5)
                text += 'share_feature: {:.4e} out_d_real: {:.4e} out_d_fake: {:.4e} '.format(*at)
            lines.append(text)
    (folder / name).write_text('\n'.join(lines) + '\n')
    return folder


def cell(tmp_path, of, seed, share=0.3, real=0.4, fake=-0.2):
    name = f'{of.name}_s{seed}'
    return Cell(
        of, Fraction(1, 4), seed, 1.0, SimpleNamespace(name=name, experiment=log(tmp_path / name, share, real, fake))
    )


def section(teacher, students, higher=True):
    scores = [
        {'model': name, 'set': 'set', 'metric': 'psnr', 'reference': 'gt', 'mean': value}
        for name, value in {'teacher': teacher, **students}.items()
    ]
    return {'scores': scores, 'metrics': [{'name': 'psnr', 'label': 'PSNR', 'higher_is_better': higher}]}


def difference(a, values, low=None, high=None):
    return {
        'a': a,
        'b': 'base',
        'width': '1/4',
        'set': 'set',
        'metric': 'psnr',
        'reference': 'gt',
        'low': low,
        'high': high,
        'mean': sum(values) / len(values),
        'n': len(values),
        'values': dict(enumerate(values)),
    }


BASE, OWN = row('base', terms=()), row('own')
PSNR = Primary('psnr', margin=0.05)


def look(cells, scores, differences=(), primary=PSNR):
    return {gate.name: gate for gate in gates.look(primary, BASE, cells, scores, differences)}


@pytest.mark.parametrize(('share', 'holds'), [(0.11, True), (0.09, False)])
def test_a_method_is_heard_from_a_tenth_of_the_gradient_on(tmp_path, share, holds):
    cells = [cell(tmp_path, BASE, 0, share=0.0), cell(tmp_path, OWN, 0), cell(tmp_path, OWN, 1, share=share)]
    gate = look(cells, section(30, {'base_s0': 29}))['heard']
    assert gate.open is holds and f'feature of own {share:.0%}' in gate.text  # the least of its cells; of base, nothing


@pytest.mark.parametrize(('real', 'holds'), [(-0.1, True), (-0.3, False)])
def test_discriminators_separate(tmp_path, real, holds):
    gate = look([cell(tmp_path, OWN, 0, real=real)], section(30, {}))['discriminator']
    assert gate.open is holds and f'student of own {real + 0.2:+.2f}' in gate.text


@pytest.mark.parametrize('higher', [True, False])
def test_the_teacher_beats_students_without_it(tmp_path, higher):
    cells = [cell(tmp_path, BASE, seed) for seed in (0, 1)]
    for teacher, better in ((28.9, not higher), (29.6, higher)):
        gate = look(cells, section(teacher, {'base_s0': 29, 'base_s1': 29.2}, higher))['teacher']
        assert gate.open is better and f'{teacher:.2f} and 29.10' in gate.text
    gate = look(cells, section(0, {'base_s0': 29}), primary=Primary('psnr', 'teacher'))['teacher']
    assert gate.open is True and 'closeness' in gate.text


def test_a_placebo_must_not_help(tmp_path):
    placebo = row('placebo', shuffle=3)
    cells, scores = [cell(tmp_path, placebo, 0)], section(30, {})
    assert look(cells, scores, [difference('placebo', [0.2, 0.3, 0.1], 0.1, 0.4)])['placebo'].open is False
    assert look(cells, scores, [difference('placebo', [0.2, 0.3, -0.1], -0.1, 0.4)])['placebo'].open is True
    assert look(cells, scores, [difference('placebo', [0.02, 0.03, 0.01], 0.01, 0.04)])['placebo'].open is True  # equal
    assert look([cell(tmp_path, OWN, 0)], scores)['placebo'].open is None


OPEN = [gates.Gate('teacher', True, ''), gates.Gate('placebo', None, '')]


@pytest.mark.parametrize(
    ('found', 'said'),
    [
        (difference('own', [0.2, 0.3, 0.4], 0.1, 0.5), 'better than base: own (set, width 1/4, +0.30 [+0.10, +0.50])'),
        (difference('own', [-0.2, -0.3, -0.4], -0.5, -0.1), 'worse than base: own'),
        (difference('own', [0.2, 0.3, -0.1], 0.1, 0.5), 'not told from base: own'),  # one seed says otherwise
        (difference('own', [0.2, 0.3, 0.4], -0.1, 0.5), 'not told from base: own'),  # the images may say otherwise
        (difference('own', [0.02, -0.03, 0.01], -0.04, 0.04), 'equal to base within 0.05: own'),
        (difference('own', [0.02, -0.03, 0.01], -0.06, 0.04), 'not told from base: own'),
    ],
)
def test_verdicts(found, said):
    text = gates.verdict(PSNR, 'PSNR-Y', OPEN, [], section(30, {}), [found])
    assert text.startswith(f'Verdict by PSNR-Y: {said}') and 'tendency' not in text


def test_what_a_verdict_leaves_out():
    better = difference('own', [0.2, 0.3, 0.4], 0.1, 0.5)
    scores = section(30, {})
    assert 'worse than base: own' in gates.verdict(PSNR, 'FD', OPEN, [], section(30, {}, higher=False), [better])
    closed = [*OPEN, gates.Gate('heard', False, '')]
    assert gates.verdict(PSNR, 'PSNR', closed, [], scores, [better]) == (
        'Verdict: void, because the gate heard did not hold.'
    )
    text = gates.verdict(PSNR, 'PSNR', OPEN, ['own'], scores, [better])
    assert 'better' not in text and 'void, their best weight lies at the edge of the search: own' in text
    assert 'of 1 seed, which is a tendency' in gates.verdict(PSNR, 'PSNR', OPEN, [], scores, [difference('own', [0.2])])
    mixed = gates.verdict(PSNR, 'PSNR', OPEN, [], scores, [better, difference('rival', [0.2])])
    assert ' own (' in mixed and ' rival* (' in mixed and '* of 1 seed, which is a tendency' in mixed
    several = [better, difference('rival', [0.2]), difference('other', [0.2, 0.3]), difference('far', [0.1, 0.2])]
    text = gates.verdict(PSNR, 'PSNR', OPEN, [], scores, several)
    assert text.endswith('; * of 1 or 2 seeds, which is a tendency and no evidence.')
    text = gates.verdict(
        PSNR, 'PSNR', OPEN, ['own', 'rival'], scores, several
    )  # void rows and their seeds do not count
    assert '; of 2 seeds, which' in text and '*' not in text


def test_a_verdict_by_a_distance_of_few_samples_says_so():
    def text(samples, primary='fid'):
        scores = [
            {'model': 'own', 'set': 'set', 'metric': metric, 'reference': None, 'mean': 20.0}
            | ({'samples': samples, 'needed': 20480} if metric == 'fid' else {})
            for metric in ('fid', 'kid')
        ]
        metrics = [{'name': name, 'label': name.upper(), 'higher_is_better': False} for name in ('fid', 'kid')]
        found = difference('own', [-2.0, -3.0, -4.0]) | {'metric': primary, 'reference': None}
        content = {'scores': scores, 'metrics': metrics}
        return gates.verdict(Primary(primary), primary.upper(), OPEN, [], content, [found])

    assert text(5000) == (
        'Verdict by FID: better than base: own (set, width 1/4, -3.00); FID on set is too large and says little: it '
        'stands on 5,000 independent samples, and it needs 20,480, ten for each feature.'
    )
    assert 'too large' not in text(20480) and 'too large' not in text(5000, 'kid')


def test_what_is_not_finished_is_not_called_broken():
    from sdakd.commands.compare.summary import lost_lines

    states = {'a': ('broken', 'the loss became inf.'), 'b': ('begun', ''), 'c': ('new', '')}
    runs = [
        SimpleNamespace(name=name, record=SimpleNamespace(state=state, reason=reason))
        for name, (state, reason) in states.items()
    ]
    assert lost_lines(runs) == ['Broken: a: the loss became inf.', 'Not finished: b, c.']
    assert lost_lines([]) == []
