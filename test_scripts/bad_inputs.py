"""Every command with wrong inputs: each must end in one sentence and exit status 2, and leave nothing behind.

The cases are made of the commands' own flags: every flag of every command gets every kind of wrong value that its kind
of value knows. They run in this process, in a temporary folder.

    python test_scripts/bad_inputs.py [--command upscale] [--every 1] [--verbose]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import cv2
import numpy as np

from sdakd import cli, compat
from sdakd.compat import Parser, UserError
from sdakd.files.results import table

PATIENCE = 30  # seconds that a case may take

# of a command that found out while it worked that nothing could be used
MAY_BE_LEFT = ('./out', './out/.sdakd_prepare.json', './out/distill.json', './out/.lock')

# a line that each command takes
LINES = {
    'prepare subimages': '-i in -o out --crop_size 32 --step 32 --workers 1',
    'prepare multiscale': '-i in -o out --workers 1',
    'prepare meta': '-i in -o out.txt --workers 1 --check',
    'prepare lmdb': '-i in -o out.lmdb --workers 1',
    'prepare pairs': '-i in -o out --degradation bicubic --workers 1',
    'prepare faces': '-i in -o out --aligned --size 32 --workers 1',
    'distill': '-t net.pth -d in -o out --degradation bicubic --plan',
    'demo': '-o out',
    'init': '--from from.yml -t net.pth -o out.yml',
    'fetch': '-o out nothing',
    'models': '',
    'options': 'nothing',
    'link': 'checkout',
    'evaluate': '-m bicubic -d in -o out --metrics psnr',
    'bench': '-m net.pth -o out --size 8 --rounds 1 --backends eager --precisions fp32',
    'bench train': '-opt train.yml -o out --rounds 1 --threads 1',
    'export': '-m net.pth -o out --to safetensors',
    'card': '-m net.pth -o out',
    'publish': '-m net.pth --dry_run',
    'upscale': '-i in -o out -m net.pth',
    'report': '-i results -o out.html',
    'doctor': '--folder in',
    'compare': '-opt compare.yml -o out --dry_run',
}
SLOW = ('distill', 'demo', 'compare', 'bench train')  # get nothing that they take
FILES = {  # what a flag names: (commands, or None for all; argument) -> kind
    'weights': {'model', 'models', 'teacher', 'detector', 'face_model', 'backbone', 'distance'},
    'images': {'images', 'photographs', 'validation', 'data', 'lq', 'folders', 'folder', 'root', 'pictures'},
    'text': {'opt', 'config', 'source', 'identities', 'results'},
    'output': {'output'},
}
NOT_FILES = {('evaluate', 'teacher'), ('prepare faces', 'validation')}

NUMBERS = {
    'negative': '-1', 'zero': '0', 'a fraction': '1.5', 'not a number': 'nan', 'infinite': 'inf', 'huge': '1e30',
    'a long number': '9' * 40, 'a word': 'many', 'nothing': '', 'a space': ' ', 'hexadecimal': '0x10', 'a list': '1,2',
}  # fmt: skip
WORDS = {
    'an unknown word': 'nonsense', 'nothing': '', 'a space': ' ', 'other letters': 'Ünïcödé 名', 'bytes': 'a\udcff',
    'a line break': 'a\nb', 'very long': 'x' * 5000, 'a path': '../../etc', 'a template': '{0} %s $HOME',
}  # fmt: skip
MISSING = {
    'missing': 'nowhere/at.all', 'nothing': '', 'bytes': 'a\udcff', 'a long name': 'x' * 300, 'a loop': 'loop',
    'below a file': 'net.pth/below', 'a line break': 'a\nb',
}  # fmt: skip
ENDLESS = {'a pipe': 'pipe', 'a device': 'device'}
WEIGHTS = {
    **MISSING, **ENDLESS, 'a folder': 'in', 'empty': 'empty.pth', 'cut off': 'cut.pth', 'garbage': 'garbage.pth',
    'a list': 'list.pth', 'a discriminator': 'judge.pth', 'an image': 'in/a.png', 'a garbage graph': 'garbage.onnx',
    'an empty graph': 'empty.onnx', 'garbage of safetensors': 'garbage.safetensors', 'nan weights': 'nan.pth',
}  # fmt: skip
IMAGES = {
    **MISSING, **ENDLESS, 'a file': 'net.pth', 'an empty folder': 'empty', 'only texts': 'texts',
    'an empty image': 'broken/empty', 'a cut image': 'broken/cut', 'garbage': 'broken/garbage',
    'grey of one pixel': 'broken/tiny', 'a pipe inside': 'broken/pipe', 'a device inside': 'broken/device',
    'a dangling link inside': 'broken/link', 'twins': 'broken/twins', 'a folder named as an image': 'broken/folder',
    'a wrong kind': 'broken/text', 'deep folders that loop': 'broken/loop',
}  # fmt: skip
TEXTS = {
    **MISSING, **ENDLESS, 'a folder': 'in', 'empty': 'empty.yml', 'garbage': 'garbage.pth', 'broken YAML': 'broken.yml',
    'a list': 'list.yml', 'a circle': 'circle.yml', 'code': 'code.yml', 'deep': 'deep.yml', 'other keys': 'other.yml',
}  # fmt: skip
OUTPUTS = {
    'below a file': 'net.pth/below', 'a file': 'net.pth', 'a folder that is full': 'texts', 'the input': 'in',
    'in the input': 'in/out', 'a loop': 'loop', 'a loop above': 'loop/out', 'a long name': 'x' * 300, 'a pipe': 'pipe',
    'a device': 'device', 'proc': '/proc/nowhere/out', 'nothing': '',
}  # fmt: skip
KINDS = {'weights': WEIGHTS, 'images': IMAGES, 'text': TEXTS, 'output': OUTPUTS, 'number': NUMBERS, 'word': WORDS}


@dataclass(frozen=True)
class Case:
    """A command and what is wrong with it."""

    command: str
    flag: str
    kind: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        shown = ' '.join(word if len(word) < 60 else f'{word[:20]}...' for word in self.words)
        return f'{self.command} {self.flag}, {self.kind}: sdakd {shown}'.encode('ascii', 'backslashreplace').decode()


# what is right after all: (command, flag, kind), where an empty text stands for any
LEGAL = {
    ('export', '--output', 'the input'),
    ('export', '--output', 'in the input'),
    ('card', '--output', 'the input'),
    ('card', '--output', 'in the input'),
    ('card', '--license', 'an unknown word'),
    ('card', '--author', ''),
    ('bench', '--output', ''),
    ('bench train', '--output', ''),
    ('bench train', '--data', 'twins'),
    ('demo', '--output', 'in the input'),
    ('', '--tile', 'zero'),
    ('', '--tile', 'a long number'),
    ('', '--seed', 'zero'),
    ('', '--output', 'a folder that is full'),
    ('evaluate', '--models', 'a folder'),
    ('evaluate', '--crop_border', 'zero'),
    ('prepare pairs', '--seed', 'a long number'),
    ('upscale', '--input', 'grey of one pixel'),
    ('upscale', '--input', 'twins'),
    ('upscale', '--outscale', 'a fraction'),
    ('upscale', '--tile_pad', 'zero'),
    ('upscale', '--tile_pad', 'a long number'),
    ('upscale', '--pre_pad', 'zero'),
    ('upscale', '--suffix', ''),
    ('doctor', '--folder', ''),
    ('report', '--max_images', 'a long number'),
    ('prepare meta', '--input', 'twins'),
    ('prepare multiscale', '--input', 'grey of one pixel'),
    ('prepare subimages', '--thresh_size', 'zero'),
    ('prepare subimages', '--thresh_size', 'a long number'),
    ('prepare subimages', '--step', 'a long number'),
    ('', '--workers', 'a long number'),
    ('', '--max-pixels', 'a long number'),
    ('prepare meta', '--input', 'grey of one pixel'),
    ('prepare lmdb', '--input', 'grey of one pixel'),
}


def is_legal(case: Case) -> bool:
    """Whether a case is declared to be right."""
    own = case.command, case.flag, case.kind
    return any(all(not part or part == of for part, of in zip(one, own, strict=True)) for one in LEGAL)


# ----------------------------------------------------- the cases -----------------------------------------------------


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command, and every job of `sdakd prepare`, with its parser."""
    for name in cli.COMMANDS:
        parser = Parser(prog=name)
        cli.module_of(name).add_arguments(parser)
        jobs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not jobs:
            yield name, parser
        for job, own in jobs[0].choices.items() if jobs else ():
            yield f'{name} {job}', own


def kind_of(command: str, action: argparse.Action) -> str:
    """What a flag takes."""
    if (command, action.dest) not in NOT_FILES:
        for kind, names in FILES.items():
            if action.dest in names:
                return kind
    takes_number = getattr(action.type, '__name__', '') in ('number', '_auto')
    return 'number' if takes_number else 'word'


def replaced(line: list[str], action: argparse.Action, value: str | None) -> list[str]:
    """A line with another value for a flag, or with none."""
    flags = action.option_strings
    at = next((i for i, word in enumerate(line) if word in flags), None)
    if not flags:
        return [*line[:-1], value]
    if at is not None:
        line = [*line[:at], *line[at + 2 :]]
    given = [flags[-1]] if value is None else [f'{flags[-1]}={value}'] if flags[-1][:2] == '--' else [flags[-1], value]
    return [*given, *line]


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    found = []
    for command, parser in parsers():
        line = LINES[command].split()

        def add(flag: str, kind: str, words: list[str], command: str = command) -> None:
            case = Case(command, flag, kind, (*command.split(), *words))
            if command not in SLOW or not is_legal(case):
                found.append(case)

        add('', 'an unknown flag', [*line, '--nonsense'])
        add('', 'an unknown flag with a value', [*line, '--nonsense=1'])
        add('', 'one argument too many', [*line, 'more', 'and-more'])
        for action in parser._actions:
            if action.dest in ('help', 'debug'):
                continue
            name, takes = (action.option_strings or [action.dest])[-1], action.nargs != 0
            if action.required and action.option_strings:
                at = next(i for i, word in enumerate(line) if word in action.option_strings)
                add(name, 'left out', [*line[:at], *line[at + 2 :]])
            if not takes:
                add(name, 'a value for a switch', [*line, f'{name}=1'])
                continue
            if action.option_strings and action.nargs not in ('*', '?'):
                add(name, 'without a value', [*line, name])
            for kind, value in KINDS[kind_of(command, action)].items():
                add(name, kind, replaced(line, action, value))
    return found


# ----------------------------------------------------- the place -----------------------------------------------------


def make_place() -> None:
    """Fills the current folder with what the cases name."""
    import torch
    from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    broken = ('empty', 'cut', 'garbage', 'tiny', 'pipe', 'device', 'link', 'twins', 'folder', 'text', 'loop')
    for folder in ('in', 'empty', 'texts', 'checkout', *(f'broken/{name}' for name in broken)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for name in 'ab':
        cv2.imwrite(f'in/{name}.png', noise)
    data, junk = Path('in/a.png').read_bytes(), bytes(range(256)) * 8
    Path('texts/a.txt').write_text('a text', encoding='utf-8')
    Path('broken/empty/a.png').touch()
    Path('broken/cut/a.png').write_bytes(data[: len(data) // 2])
    Path('broken/garbage/a.png').write_bytes(junk)
    cv2.imwrite('broken/tiny/a.png', noise[:1, :1, 0])
    os.mkfifo('broken/pipe/a.png')
    Path('broken/device/a.png').symlink_to('/dev/zero')
    Path('broken/link/a.png').symlink_to('nowhere.png')
    cv2.imwrite('broken/twins/a.png', noise)
    cv2.imwrite('broken/twins/a.bmp', noise)
    Path('broken/folder/a.png').mkdir()
    Path('broken/text/a.jpg').write_text('a text', encoding='utf-8')
    Path('broken/loop/loop').symlink_to('../loop')
    Path('loop').symlink_to('loop')
    os.mkfifo('pipe')
    Path('device').symlink_to('/dev/zero')
    torch.save({'params': SRVGGNetCompact(num_feat=8, num_conv=1).state_dict()}, 'net.pth')
    whole = Path('net.pth').read_bytes()
    torch.save({'params': {key: value * np.nan for key, value in SRVGGNetCompact(num_feat=8, num_conv=1).state_dict()
                           .items()}}, 'nan.pth')  # fmt: skip
    torch.save([1, 2], 'list.pth')
    torch.save({'params': UNetDiscriminatorSN(3, num_feat=4).state_dict()}, 'judge.pth')
    Path('cut.pth').write_bytes(whole[: len(whole) // 2])
    for ending in ('pth', 'onnx', 'safetensors'):
        Path(f'garbage.{ending}').write_bytes(junk)
        Path(f'empty.{ending}').touch()
    texts = {
        'empty': '', 'broken': 'a: [1', 'list': '- 1\n- 2\n', 'circle': 'extends: circle.yml\n',
        'other': 'colour: red\n',        'code': '!!python/object/apply:os.system ["true"]\n', 'deep': '[' * 20_000,
        'from': 'name: a\nmodel_type: ESRGANModel\nscale: 4\n', 'compare': 'output: out\n',
    }  # fmt: skip
    pairs = {
        'name': 'a', 'type': 'PairedImageDataset', 'dataroot_gt': 'in', 'dataroot_lq': 'in', 'gt_size': 32,
        'io_backend': {'type': 'disk'}, 'use_hflip': False, 'use_rot': False, 'batch_size_per_gpu': 1,
    }  # fmt: skip
    stage = {'iters': 9, 'lr_g': 1e-4, 'terms': ['output']}
    texts['train'] = json.dumps({
        'name': 'a', 'model_type': 'SDAKDModel', 'scale': 4, 'datasets': {'train': pairs},
        'teacher': {'weights': 'net.pth'}, 'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 1},
        'train': {'stages': {'one': stage}, 'output_opt': {'type': 'L1Loss'}},
    })  # fmt: skip
    for name, text in texts.items():
        Path(f'{name}.yml').write_text(text, encoding='utf-8')
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main(['evaluate', '-m', 'bicubic', '-d', 'in', '-o', 'results', '--metrics', 'psnr'])


def tree() -> dict[str, tuple]:
    """Every path below the current folder, with what tells whether it has changed."""
    found = {}
    for at, folders, files in os.walk('.'):
        for name in (*folders, *files):
            path = os.path.join(at, name)
            facts = os.lstat(path)
            found[path] = facts.st_mode, 0 if os.path.isdir(path) else (facts.st_size, facts.st_mtime_ns)
    return found


# ----------------------------------------------------- the runs ------------------------------------------------------


@dataclass
class Result:
    """What came of a case: the exit status, what was said, and what is wrong with it."""

    status: int | str
    said: str
    fault: str
    left: list[str]


class Late(BaseException):
    """Nothing that a command could take for an error of its work."""


def late(*_: object) -> None:
    raise Late(f'more than {PATIENCE} s')


def run(case: Case) -> Result:
    """Gives the command in this process, and puts the folder back as it was."""
    before, hook, directory = tree(), sys.excepthook, os.getcwd()
    out = io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True)  # as strict as a terminal's
    err = io.TextIOWrapper(io.BytesIO(), 'utf-8', 'backslashreplace', write_through=True)
    status, sentence, fault = 'none', '', ''
    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            status = cli.main(list(case.words))
    except UserError as error:
        status, sentence = 2, error.report()
        mistakes = [str(mistake) for mistake in error.mistakes]
        if any('\n' in text for text in mistakes):
            fault = 'several lines'
        elif not all(text.endswith(('.', '?')) for text in mistakes):
            fault = 'no whole sentence'
        elif any(mark in text for text in mistakes for mark in ('Traceback', '<class ', 'object at 0x', 'Errno')):
            fault = 'words of a program'
        elif max(map(len, mistakes)) > 1500:
            fault = 'very long'
        elif len(set(mistakes)) < len(mistakes):
            fault = 'said twice'
    except SystemExit as error:
        status, fault = error.code, 'SystemExit'
    except BaseException as error:
        status, sentence, fault = 1, f'{type(error).__name__}: {error}'[:300], 'unforeseen'
    finally:
        signal.alarm(0)
        sys.excepthook = hook
        os.chdir(directory)
    said = err.buffer.getvalue().decode(errors='replace')
    fault = fault or ('traceback' if 'Traceback' in said else '')
    if not fault and status != 2 and not (status == 0 and is_legal(case)):
        fault = f'status {status}'
    after = tree()
    left = sorted(after.keys() - before.keys())
    changed = [path for path in before if after.get(path) != before[path]]
    if changed and not fault:
        fault = 'changed ' + changed[0]
    if not fault and status == 2 and (more := [path for path in left if path not in MAY_BE_LEFT]):
        fault = 'left ' + more[0]
    for path in left:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return Result(status, sentence or said[-300:], fault, left)


@contextlib.contextmanager
def place() -> Iterator[None]:
    """A temporary folder with all that the cases name; nothing is downloaded meanwhile."""
    before, known = os.getcwd(), dict(os.environ)
    os.environ |= {f'{kind}_proxy': 'http://127.0.0.1:9' for kind in ('http', 'https')} | {'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            make_place()
            yield
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(known)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--command', help='only this one')
    parser.add_argument('--every', type=int, default=1, help='only every so many-th case')
    parser.add_argument('--verbose', action='store_true', help='show what every case says')
    arguments = parser.parse_args()
    compat.import_basicsr()
    sys.path.append(common.ROOT)
    chosen = [case for case in cases() if arguments.command in (None, case.command)][:: arguments.every]
    figures: dict[str, Counter] = {}
    faults = []
    begun = time.monotonic()
    with place():
        for case in chosen:
            result = run(case)
            kind = 'faults' if result.fault else 'refused' if result.status == 2 else 'taken'
            figures.setdefault(case.command, Counter())[kind] += 1
            if result.fault:
                faults.append((case, result))
                print(f'{result.fault}: {case}\n    {result.said!r}', flush=True)
            elif arguments.verbose:
                print(f'{result.status}: {case}\n    {result.said!r}', flush=True)
    kinds = ('refused', 'taken', 'faults')
    rows = [[name, str(sum(of.values())), *(str(of[kind]) for kind in kinds)] for name, of in figures.items()]
    rows.append(['all', *(str(sum(int(row[i]) for row in rows)) for i in range(1, 5))])
    print(table(['command', 'cases', 'refused', 'taken, as declared', 'faults'], rows))
    print(f'{time.monotonic() - begun:.0f} s')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
