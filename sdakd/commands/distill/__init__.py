"""`sdakd distill`: a teacher and photographs in, a small model out."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import sys
import time
import urllib.parse
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sdakd import compat, stops
from sdakd.commands.interface import MOST_SEED, Flags, Outcome, number, one_of, whole
from sdakd.compat import UserError
from sdakd.machine import shown
from sdakd.progress import duration, sign

if TYPE_CHECKING:
    from sdakd.files.generators import Opened
    from sdakd_models.costs import Costs

DEGRADATIONS = ('realesrgan', 'bicubic', 'none')
PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16', 'auto')  # of train:precision
RECORD = 'distill.json'
OF_DATA = ('data', 'degradation', 'seed', 'photos-validation')  # arguments that the prepared photographs rest on
KEPT = ('teacher', 'photographs', '.lock', '.lock.json')  # that may be in the folder before
STARTS = 20  # seconds in which a training starts
LEAST = 60  # iterations, below which nothing is learned
STEP = 0.5  # seconds of a step on a processor for which the batch is chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, distill)
    add('-t', '--teacher', metavar='TEACHER', help='its file, its address, or a name that `sdakd fetch` knows')
    add(
        '-d',
        '--data',
        dest='photographs',
        metavar='PHOTOS',
        help='folder of photographs; GT:LQ with --degradation none',
    )
    add('-w', '--width', help="the student's share of the teacher's channels (default: {default})")
    add('-o', '--output', metavar='OUT', help='folder for all that is made; the same command again continues there')
    add(
        '--arch',
        metavar='ARCH',
        help="another architecture than the teacher's, such as SRVGGNetCompact, narrowed likewise",
    )
    add('--time', metavar='TIME', help='how long all may take: 20m, 2h, 1h30m (default: 1h)')
    add('--iters', type=number, metavar='N', help='iterations of all stages together, instead of a time')
    add('--degradation', choices=DEGRADATIONS, help="how photographs become inputs: Real-ESRGAN's blur, noise and "
        'JPEG, bicubic reduction, or none where -d holds pairs (default: {default})')  # fmt: skip
    add('--seed', type=number, help='of all random numbers (default: {default})')
    add(
        '--precision',
        choices=PRECISIONS,
        help='of the training; auto is measured on a processor that has units for bf16 (default: {default})',
    )
    add('--photos-validation', '--photos_validation', dest='validation', metavar='FOLDER', help='photographs to '
        'measure on (default: some of PHOTOS, which are held out)')  # fmt: skip
    add('--baseline', action='store_true', help='also train the student without its teacher, for comparison')
    add('--plan', action='store_true', help='stop when the plan is shown')


@dataclass
class Distilled(Outcome):
    """What was made.

    Args:
        folder: Where all is.
        files: Of what stays, by what it is.
        rows: The closing table, with its header.
        facts: What the student is, in a sentence or two.
        notes: For people.
    """

    folder: Path
    files: dict[str, Path]
    rows: list[list[str]]
    facts: str
    notes: list[str]

    def __str__(self) -> str:
        from sdakd.files.results import table

        if not self.rows:
            return ''
        lines = [f'  {shown(path)}: {what}' for what, path in self.files.items()]
        return '\n'.join(['', table(self.rows[0], self.rows[1:]), self.facts, *self.notes, *lines, ''])


@stops.leaving('give the same command again to go on')
def distill(
    teacher: str | Path,
    photographs: str | Path,
    output: str | Path,
    *,
    width: str | float = '1/4',
    arch: str | None = None,
    time: str | float | None = None,
    iters: int | None = None,
    degradation: str = 'realesrgan',
    seed: int = 0,
    precision: str = 'auto',
    validation: str | Path | None = None,
    baseline: bool = False,
    plan: bool = False,
) -> Distilled:
    """Distils a teacher into a student on photographs, from preparing them to a report.

    Given again with the same arguments, it continues where it stopped.

    Args:
        teacher: Its file, its address, or the name of an official one.
        photographs: Folder of photographs; ``GT:LQ`` for pairs.
        output: Folder for everything.
        width: The student's share of the teacher's channels.
        arch: Another architecture than the teacher's, at its usual size before it is narrowed.
        time: How long all may take, as ``1h30m`` or in seconds; default: an hour.
        iters: Iterations of all stages together, instead.
        degradation: ``realesrgan``, ``bicubic`` or, for pairs, ``none``.
        seed: Of all random numbers.
        precision: ``train:precision``: fp32, tf32, bf16, fp16 or auto.
        validation: Photographs to measure on, or ``GT:LQ``; default: some of the others, which are held out.
        baseline: Whether the student is also trained without its teacher.
        plan: Whether to stop when the plan is shown.

    Raises:
        UserError: A mistake in an argument, file or photograph, or a folder that holds another distillation.
    """
    one_of(degradation, DEGRADATIONS, '--degradation')
    one_of(precision, PRECISIONS, '--precision')
    seed = whole(seed, '--seed', 0, MOST_SEED)
    if time is not None and iters is not None:
        raise UserError('--time', '--iters is given as well; leave one of them out.')
    iters = None if iters is None else whole(iters, '--iters', LEAST)
    seconds = None if iters else read_time('1h' if time is None else time)
    compat.import_basicsr()
    from sdakd.commands.distill.photographs import Source
    from sdakd.commands.prepare.jobs import apart
    from sdakd.files.results import output_folder
    from sdakd.lock import alone_in
    from sdakd_arch.width import fraction

    ratio = fraction(width, '-w')
    source = Source.read(str(photographs), degradation == 'none', '-d')
    measured = (
        None if validation is None else Source.read(str(validation), degradation == 'none', '--photos-validation')
    )
    for one in (source, measured):
        for folder in (one.gt, one.lq) if one else ():
            if folder and os.path.isdir(folder):
                apart(folder, str(output), one.where)
    opened = open_teacher(str(teacher), Path(output))
    asked = {
        'teacher': hashlib.sha256(opened.path.read_bytes()).hexdigest(),
        'data': [os.path.realpath(part) for part in (source.gt, source.lq) if part],
        'width': str(ratio),
        'arch': arch,
        'time': seconds,
        'iters': iters,
        'degradation': degradation,
        'seed': seed,
        'precision': precision,
        'photos-validation': measured and [os.path.realpath(part) for part in (measured.gt, measured.lq) if part],
    }
    work = Work(Path(output), opened, ratio, arch, degradation, seed, precision, asked)
    check_folder(work.folder)
    with alone_in(output_folder(work.folder), '-o'):
        work.claim()
        work.prepare(source, measured)
        work.make_plan(seconds, iters, baseline)
        if plan:
            return Distilled(work.folder, {}, [], '', [])
        return work.train_and_close(baseline)


def check_folder(folder: Path) -> None:
    """Creates nothing.

    Raises:
        UserError: It holds something else than a distillation.
    """
    there = [entry for entry in folder.glob('*') if entry.name not in KEPT] if folder.is_dir() else []
    if there and not (folder / RECORD).is_file():
        raise UserError('-o', f'{folder} holds {there[0].name} and no distillation; give a new or empty folder.')


def read_time(text: str | float) -> float:
    """Seconds of ``1h30m``, ``20m``, ``90s``, or a number of seconds.

    Raises:
        UserError: It is no time.
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and math.isfinite(text) and text > 0:
        return float(text)
    found = re.fullmatch(r'(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?', str(text).strip())
    try:
        parts = [float(part or 0) for part in found.groups()] if found else []
    except ValueError:
        parts = []
    total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if total <= 0:
        raise UserError('--time', f'write a time such as 20m, 2h or 1h30m, not {str(text)!r}.')
    return total


def open_teacher(text: str, output: Path) -> Opened:
    """Opens the teacher; one that has an address or is known by its name is put into ``OUT/teacher``.

    Raises:
        UserError: There is none, or one that cannot teach.
    """
    from sdakd.commands.fetch import fetch_one
    from sdakd.files.generators import open_network
    from sdakd_arch.zoo import MODELS, ensure_file

    path = Path(text)
    if text.startswith(('http://', 'https://')):
        path = output / 'teacher' / (PurePosixPath(urllib.parse.urlsplit(text).path).name or 'teacher.pth')
        ensure_file(path, '-t', url=text)
    elif not path.exists() and text.removesuffix('.pth') in MODELS:
        path = fetch_one(text, output / 'teacher')
    elif not path.exists():
        raise UserError('-t', f'the file {text} does not exist; {compat.near(text, MODELS)}.')
    opened = open_network(path, '-t', foreign=True)
    if path.suffix == '.onnx':
        raise UserError('-t', f'{path} is a graph, which cannot teach; give the weights, as .pth or .safetensors.')
    return opened


def say(text: str) -> None:
    sign()
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


@dataclass
class Work:
    """One distillation and its folder.

    Args:
        folder: Where all is.
        teacher: The teacher.
        ratio: Of the channels.
        arch, degradation, seed, precision: As asked.
        asked: The arguments that must be the same to continue.
    """

    folder: Path
    teacher: Opened
    ratio: Fraction
    arch: str | None
    degradation: str
    seed: int
    precision: str
    asked: dict[str, Any]

    def __post_init__(self) -> None:
        from sdakd.commands.distill import recipe

        self.begun = time.monotonic()
        self.record: dict[str, Any] = {'asked': self.asked}
        self.student = recipe.student_network(self.teacher, self.ratio, self.arch)
        self.discriminator = recipe.discriminator_network(self.teacher, self.ratio)

    # -------------------------------------------------------------------------------------------------- the folder

    def claim(self) -> None:
        """Makes the folder this distillation's, or finds that it is already.

        One that has no plan yet takes other arguments; of its photographs, what still holds is kept.

        Raises:
            UserError: It holds one with other arguments.
        """
        path = self.folder / RECORD
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding='utf-8'))
                old = found['asked']
            except (ValueError, KeyError, TypeError):
                raise UserError('-o', f'{path} is damaged; delete {self.folder}, or give another folder.') from None
            changed = [key for key, value in self.asked.items() if old.get(key) != value]
            for key, value in self.asked.items():
                if key in changed and 'plan' in found:
                    raise UserError(
                        '-o',
                        f'{self.folder} holds a distillation with {key} {old.get(key)}, and now it is {value}; give '
                        'another folder, or delete this one.',
                    )
            self.record = found | {'asked': self.asked}
            if set(changed) & {'teacher', *OF_DATA}:
                self.record.pop('photographs', None)
                shutil.rmtree(self.folder / 'data', ignore_errors=True)
        self._save()

    def _save(self) -> None:
        from sdakd.files.images import write

        write(self.folder / RECORD, (json.dumps(self.record, indent=1) + '\n').encode())

    @property
    def data(self) -> Path:
        return (self.folder / 'data').resolve()

    # ---------------------------------------------------------------------------------------------- photographs, plan

    def prepare(self, source, validation) -> None:
        """Prepares the photographs."""
        from sdakd.commands.distill import photographs, recipe
        from sdakd.files.images import list_images, write
        from sdakd_arch.weights import describe

        say(f'Teacher: {self.teacher.path.name}, {self.teacher.describe()}')
        say(f'Student: {describe(self.student)}')
        if 'photographs' not in self.record:
            scale, sizes = self.teacher.scale, recipe.first_sizes(self.precision)
            online = self.degradation == 'realesrgan'
            # BasicSR's data set cuts 400 pixels out of an image to degrade
            cut = photographs.Cut(400, 200) if online else photographs.Cut(60 * scale, sizes.pair * scale)
            train, held_out = photographs.prepare(
                source, validation, self.data, self.degradation, scale, cut, self.seed
            )
            if online:
                names = list_images(str(self.data / 'train/gt'))
                write(self.data / 'train/meta_info.txt', ''.join(f'{name}\n' for name in names).encode())
            self.record['photographs'] = {'train': len(train), 'held_out': held_out}
            self._save()
        found = self.record['photographs']
        names = found['held_out']
        say(f'Photographs: {found["train"]} to train on, {len(names)} to measure on ({", ".join(names[:3])}'
            f'{", ..." if len(names) > 3 else ""})')  # fmt: skip

    def options(self, sizes) -> dict[str, Any]:
        from sdakd.commands.distill import recipe

        return recipe.options(
            self.teacher, self.student, self.discriminator, self.data, self.degradation, sizes, self.seed
        )

    def costs(self, opt: dict[str, Any], begins: bool = False) -> Costs:
        """Checks options, and times their steps; ``begins`` chooses the number of threads first."""
        from copy import deepcopy

        from sdakd_models.costs import measure
        from sdakd_models.launch import check_options

        opt = deepcopy(opt)
        check_options(opt, str(self.folder), str(self.folder / 'distill.yml'), begins=begins)
        return measure(opt)

    def _sizes(self) -> tuple[Any, Costs]:
        """The batch that the machine takes well, and what its steps cost."""
        import torch

        from sdakd.commands.distill import recipe

        sizes = recipe.first_sizes(self.precision)
        costs = self.costs(self.options(sizes), begins=True)
        if not torch.cuda.is_available():
            room = STEP / recipe.mean(costs.step)
            if (batch := sizes.batch * min(4, 2 ** max(0, math.floor(math.log2(room))))) > sizes.batch:
                sizes = replace(sizes, batch=batch)
                costs = self.costs(self.options(sizes))
            return recipe.with_workers(sizes, costs, torch.get_num_threads()), costs
        while sizes.batch < 64:  # as long as a GPU gains by larger ones
            larger = replace(sizes, batch=2 * sizes.batch)
            try:
                found = self.costs(self.options(larger))
            except torch.cuda.OutOfMemoryError:
                break
            if max(found.step.values()) > 1.8 * max(costs.step.values()):
                break
            sizes, costs = larger, found
        return recipe.with_workers(sizes, costs, 1), costs

    def make_plan(self, seconds: float | None, iters: int | None, baseline: bool) -> None:
        """Times the stages, says how long each will be, and writes the option files."""
        import torch

        from sdakd.commands.distill import recipe
        from sdakd.machine import cores

        if 'plan' not in self.record:
            say('Timing a step of every stage')
            sizes, costs = self._sizes()
            threads = 0 if torch.cuda.is_available() else torch.get_num_threads()
            opt = self.options(sizes)
            plain_opt = recipe.without_teacher(opt)
            plain = self.costs(plain_opt)
            step, plain_step = (
                {name: each.iteration(name, sizes.workers, threads, cores()) for name in recipe.SHARES}
                for each in (costs, plain)
            )
            closing = self._closing_seconds()
            if iters is None:
                mean = recipe.mean(step) + (recipe.mean(plain_step) if baseline else 0.0)
                iters = self._iterations(seconds, closing + costs.pool, mean)
            self.record['plan'] = {
                'iters': recipe.lengths(iters), 'step': step, 'step_without_teacher': plain_step, 'pool': costs.pool,
                'batch': sizes.batch, 'crop': sizes.crop * self.teacher.scale, 'precision': sizes.precision,
                'threads': threads, 'closing': closing, 'memory': costs.memory,
            }  # fmt: skip
            command = ' '.join(['sdakd', *map(shlex.quote, sys.argv[1:])])
            for name, each, of in ((recipe.NAME, opt, step), (recipe.BASELINE, plain_opt, plain_step)):
                file = self.folder / f'{name}.yml'
                recipe.write_options(recipe.with_lengths(each, iters, of, threads), file, command)
            self._save()
        self._show_plan(baseline)

    def _iterations(self, seconds: float, other: float, each: float) -> int:
        """How many iterations of ``each`` seconds fit in, beside ``other`` seconds to come and those that are spent.

        Raises:
            UserError: Too few.
        """
        spent = time.monotonic() - self.begun + other + STARTS
        iters = int((seconds - spent) / each)
        if iters < LEAST:
            least = math.ceil((spent + LEAST * each) / 60)
            raise UserError(
                '--time',
                f'{duration(seconds)} leaves time for {max(0, iters)} iterations, and {LEAST} are the least; give '
                f'{least}m or more, or a smaller student or teacher.',
            )
        return iters

    def _closing_seconds(self) -> float:
        """How long measuring will take, roughly: the teacher's passes, and four seconds a photograph for the rest."""
        import torch

        from sdakd.commands.distill.closing import ROUNDS
        from sdakd.commands.distill.photographs import LARGEST

        size = 48
        with torch.no_grad():
            image = torch.rand(1, 3, size, size)
            self.teacher.module(image)
            begun = time.monotonic()
            self.teacher.module(image)
        pixel = (time.monotonic() - begun) / size**2
        count = len(self.record['photographs']['held_out'])
        passes = count * (LARGEST / self.teacher.scale) ** 2 * 0.7 + 2 * (ROUNDS + 3) * 64**2
        return pixel * passes + 4 * count + 40

    def _show_plan(self, baseline: bool) -> None:
        from sdakd.commands.distill import recipe
        from sdakd.files.results import table
        from sdakd_arch.threads import threads_of

        plan = self.record['plan']
        where = threads_of(plan['threads']) if plan['threads'] else 'GPU'
        memory = f', {plan["memory"] / 2**30:.1f} GiB' if plan['memory'] else ''
        crops = f'{plan["batch"]} crops of {plan["crop"]}x{plan["crop"]} pixels'
        say(f'Plan: {where}, {plan["precision"]}, batches of {crops}{memory}')
        rows = [[name, f'{count:,d}', f'{plan["step"][name]:.3f}', f'{count * plan["step"][name] / 60:.1f}']
                for name, count in plan['iters'].items()]  # fmt: skip
        total = plan['pool'] + sum(count * plan['step'][name] for name, count in plan['iters'].items())
        if baseline:
            plain = sum(count * plan['step_without_teacher'][name] for name, count in plan['iters'].items())
            count = sum(plan['iters'].values())
            rows.append([f'all, {recipe.BASELINE}', f'{count:,d}', f'{plain / count:.3f}', f'{plain / 60:.1f}'])
            total += plain
        rows.append(['measuring, export, report', '', '', f'{plan["closing"] / 60:.1f}'])
        rows.append(['together', '', '', f'{(total + plan["closing"]) / 60:.1f}'])
        say(table(['stage', 'iterations', 'seconds each', 'minutes'], rows).rstrip())
        say(f'Writes to {shown(self.folder)}: student.pth, export/, card/, report.html, '
            'comparison.png, table.md, distill.yml, results/, experiments/, data/')  # fmt: skip

    # --------------------------------------------------------------------------------------------- training, closing

    def train_and_close(self, baseline: bool) -> Distilled:
        """Trains, measures and writes what stays."""
        from sdakd.commands.distill import closing, recipe, training

        plan = self.record['plan']
        iters, step = plan['iters'], dict(plan['step'])
        first = next(iter(iters))
        trained = {}
        for name, seconds in ((recipe.NAME, step), (recipe.BASELINE, plan['step_without_teacher'])):
            if name == recipe.BASELINE and not baseline:
                continue
            say(f'Training {name}.yml')
            extra = plan['pool'] / iters[first] if name == recipe.NAME else 0.0
            course = training.Course(iters, seconds | {first: seconds[first] + extra})
            trained[name] = training.train(self.folder / f'{name}.yml', self.folder, course)
        say('Measuring')
        models = {closing.BICUBIC: 'bicubic', closing.TEACHER: str(self.teacher.path)}
        if baseline:
            models[closing.PLAIN] = str(trained[recipe.BASELINE])
        models[closing.STUDENT] = str(trained[recipe.NAME])
        found = self.record['photographs']
        facts = {
            'iterations': sum(iters.values()),
            'batch': str(plan['batch']),
            'data': f'{found["train"]} photographs, {len(found["held_out"])} others held out to measure on',
            'degradation': self.degradation,
            'recipe': 'sdakd distill',
        }
        measured, left_out, lacks = closing.close(self.folder, models, self.teacher.scale, facts)
        files = {
            'the student': self.folder / 'student.pth',
            'the student for other programs': self.folder / 'export',
            'its page': self.folder / 'card',
            'all in one page': self.folder / 'report.html',
            'side by side': self.folder / 'comparison.png',
            'to train again': self.folder / 'distill.yml',
        }
        notes = [f'Not exported as {name}: {reason}' for name, reason in left_out.items()] + lacks
        return Distilled(self.folder, files, [closing.HEADER, *measured.rows], measured.facts(), notes)
