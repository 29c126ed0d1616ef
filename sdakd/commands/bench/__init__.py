"""`sdakd bench`: what models cost: parameters, multiply-accumulates, latency and memory in every runtime."""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, compat
from sdakd.compat import UserError, near

if TYPE_CHECKING:
    import torch

    from sdakd.commands.bench.backends import Runner
    from sdakd.files.generators import Opened

NAMES = ('eager', 'channels_last', 'fast', 'compile', 'onnxruntime', 'openvino')
HEADER = ('model', 'parameters', 'GMACs', 'backend', 'precision', 'ms', 'p10', 'p90', 'ratio', 'MiB', 'PSNR')


def _whole(flag: str, least: int):
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise UserError(flag, f'write a whole number of at least {least}, not {text!r}.')
        return int(text)

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    models = (
        '.pth, .safetensors or .onnx, or random:TYPE:WIDTH for random weights, such as random:RRDBNet:1/4 or '
        'random:GCFSR512:1/4; NAME=MODEL names the row; the first one is the teacher'
    )
    add('-m', '--models', nargs='+', required=True, metavar='MODEL', help=models)
    add('-o', '--output', required=True, help='folder for results.json and the tables')
    add('--size', type=_whole('--size', 8), default=64, help='side of the input in pixels (default: 64)')
    add('--rounds', type=_whole('--rounds', 1), default=20, help='how often each is timed (default: 20)')
    add('--threads', type=_whole('--threads', 1), help="on a processor (default: torch's choice, one per core)")
    backends = f'{" ".join(NAMES)} (default: all; on a processor all but compile, which takes a minute per model)'
    add('--backends', nargs='+', metavar='BACKEND', help=backends)
    add('--device', choices=('cpu', 'cuda'), help='default: cuda where there is one')


@dataclass
class Case:
    """One model in one backend at one precision: what is run, and what was found; times in milliseconds."""

    model: str
    source: str
    backend: str
    precision: str
    graph: Path | None = None
    runner: Runner | None = None
    times: list[float] = field(default_factory=list)
    memory: float | None = None
    psnr: float | None = None
    difference: float | None = None
    error: str | None = None

    def fail(self, error: BaseException) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.error, self.runner, self.times, self.memory = lines[0][:300], None, [], None

    def entry(self, base: float | None) -> dict:
        """Its entry in ``results.json``; ``base`` is the teacher's eager fp32 median."""
        import numpy as np

        low, middle, high = np.percentile(self.times, (10, 50, 90)).tolist() if self.times else (None, None, None)
        return {
            'model': self.model,
            'backend': self.backend,
            'precision': self.precision,
            'median_ms': middle,
            'p10_ms': low,
            'p90_ms': high,
            'peak_memory_mib': self.memory,
            'ratio': base / middle if base and middle else None,
            'psnr': self.psnr,
            'difference': self.difference,
            'error': self.error,
        }


def _open(sources: Sequence[str], size: int, threads: int) -> dict[str, tuple[str, Opened]]:
    """Name -> source and generator.

    Raises:
        UserError: A model cannot be opened or takes no image of this size, or two have the same name.
    """
    from sdakd.commands.bench.backends import open_model
    from sdakd.files.testsets import split_name

    models = {}
    for text in sources:
        name, source = split_name(text)
        opened = open_model(source, threads)
        name = name or opened.name
        if name in models:
            raise UserError('-m', f'two models are called {name}; write NAME={source} to give one another name.')
        if opened.scale is None:
            if fault := opened.module.fault(size, size):
                raise UserError('--size', f'the input of {name} {fault}.')
        elif opened.scale < 4 and size % 4:
            raise UserError('--size', f'{name} takes sides that are multiples of 4, not {size}.')
        models[name] = source, opened
    return models


def _backends(names: Sequence[str] | None, device: str) -> list[str]:
    if names is None:
        return [name for name in NAMES if name != 'compile' or device == 'cuda']
    for name in names:
        if name not in NAMES:
            raise UserError('--backends', f'{name} is unknown; {near(name, NAMES)}.')
    return [name for name in NAMES if name in names]


def _device(name: str | None) -> str:
    import torch

    if name == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device', 'torch finds no GPU here; write cpu.')
    return name or ('cuda' if torch.cuda.is_available() else 'cpu')


def _cases(models: dict[str, tuple[str, Opened]], backends: Sequence[str], device: str) -> list[Case]:
    from sdakd.commands.bench.backends import GRAPHS, PLAIN, precisions
    from sdakd_arch.inference.onnx_network import OnnxNetwork

    cases = []
    for number, (name, (source, opened)) in enumerate(models.items()):
        exported = isinstance(opened.module, OnnxNetwork)
        # the teacher's eager pass is what all ratios refer to
        wanted = backends if number or exported or 'eager' in backends else ['eager', *backends]
        possible = GRAPHS if exported else PLAIN if opened.scale is None else NAMES
        if not set(backends) & set(possible):
            raise UserError(
                '--backends', f'{" and ".join(backends)} cannot run {name}; name one of {", ".join(possible)}.'
            )
        for backend in wanted:
            if backend in possible:
                chosen = precisions(backend, device)
                if backend == 'eager' and 'eager' not in backends:
                    chosen = ('fp32',)
                cases += [Case(name, source, backend, precision) for precision in chosen]
    return cases


def _graph(case: Case, opened: Opened, folder: Path) -> Path:
    """The ONNX file of a case, exported on first need; a model that is one already is used as it is."""
    from sdakd.commands.export import to_onnx

    if opened.path.suffix == '.onnx':
        return opened.path
    half = case.precision == 'fp16'
    path = folder / f'{case.model.replace("/", "_")}{"_fp16" if half else ""}.onnx'
    if not path.exists():
        to_onnx(opened, path, half)
    return path


def _compare(case: Case, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """PSNR in dB, peak 1, and the largest difference in units of the largest magnitude of ``wanted``."""
    difference = (found.double() - wanted.double()).cpu()
    error = difference.square().mean().item()
    case.psnr = -10 * math.log10(error) if 0 < error < math.inf else None
    largest = difference.abs().max().item() / max(wanted.abs().max().item(), 1e-30)
    case.difference = largest if math.isfinite(largest) else None


def _prepare(
    cases: list[Case],
    models: dict[str, tuple[str, Opened]],
    image: torch.Tensor,
    threads: int,
    folder: Path,
    bar,
) -> None:
    """Builds and warms up every case; one that fails keeps its reason."""
    import torch

    from sdakd.commands.bench.backends import GRAPHS, start

    cuda = image.device.type == 'cuda'
    wanted: dict[str, torch.Tensor] = {}
    for case in cases:
        bar.set_postfix_str(f'{case.model} {case.backend} {case.precision}')
        opened = models[case.model][1]
        try:
            if case.backend in GRAPHS:
                case.graph = _graph(case, opened, folder)
            before = torch.cuda.memory_allocated() if cuda else 0
            case.runner = start(case.backend, case.precision, opened, case.graph, image, threads)
            case.runner()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            found = case.runner()
            if cuda and case.backend not in GRAPHS:
                case.memory = (torch.cuda.max_memory_allocated() - before) / 2**20
            if (case.backend, case.precision) == ('eager', 'fp32'):
                wanted[case.model] = found
            elif opened.path.suffix != '.onnx':
                if case.model not in wanted:
                    wanted[case.model] = opened.module.to(image.device)(image)
                _compare(case, found, wanted[case.model])
        except Exception as error:  # every runtime and compiler raises its own
            case.fail(error)
        bar.update()


def _time(case: Case, cuda: bool) -> float:
    """Milliseconds of one run, after one that is not timed: other runtimes' threads come to rest meanwhile."""
    import torch

    case.runner()
    if not cuda:
        begun = time.perf_counter()
        case.runner()
        return (time.perf_counter() - begun) * 1e3
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    case.runner()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended)


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _rows(content: dict) -> list[list[str]]:
    """The table's rows; what was not measured is a dash."""
    models = {model['name']: model for model in content['models']}
    rows = []
    for run in content['runs']:
        model = models[run['model']]
        known = model['parameters'] is not None
        cells = [run['model'], f'{model["parameters"]:,d}' if known else '-']
        cells += [f'{model["macs"] / 1e9:.3f}' if known else '-', run['backend'], run['precision']]
        formats = ('median_ms', '.2f'), ('p10_ms', '.2f'), ('p90_ms', '.2f'), ('ratio', '.2f')
        for key, style in (*formats, ('peak_memory_mib', '.0f'), ('psnr', '.1f')):
            cells.append('-' if run[key] is None else format(run[key], style))
        rows.append(cells)
    return rows


def _write(output: str, content: dict) -> None:
    from sdakd.files import results

    results.write_section(output, 'bench', content)
    rows = _rows(content)
    results.write_tables(output, 'bench', HEADER, rows)
    sys.stdout.write(results.table(HEADER, rows))
    teacher, cuda = content['teacher'], content['device'] != 'cpu'
    where = content['device'] if cuda else f'{content["cpu"]}, threads: {content["threads"]}'
    basis = f'ratio: to eager fp32 of {teacher}; ' if teacher else ''
    sys.stdout.write(
        f'{where}; input {content["size"]}x{content["size"]}. ms: median (rounds: {content["rounds"]}), with '
        f"percentiles; {basis}GMACs: half of torch's flop count; MiB: growth at the peak, "
        f"{'on the GPU' if cuda else 'in a process of its own'}; PSNR: in dB to the model's own eager fp32 output.\n"
    )
    for run in content['runs']:
        if run['error']:
            sys.stdout.write(f'Left out: {run["model"]} {run["backend"]} {run["precision"]}: {run["error"]}\n')
    sys.stdout.write(f'Wrote results.json and bench.md, .csv, .tex to {output}.\n')


def run(args: argparse.Namespace) -> int:
    """Measures and writes.

    Raises:
        UserError: A mistake in the arguments, a model that cannot be opened, or an output that cannot be written.
    """
    compat.import_basicsr()
    import torch
    from tqdm import tqdm

    from sdakd.commands.bench.backends import GRAPHS, noise
    from sdakd.commands.bench.memory import peak_growth
    from sdakd.files import results

    device = _device(args.device)
    backends = _backends(args.backends, device)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    models = _open(args.models, args.size, threads)
    cases = _cases(models, backends, device)
    if not cases:
        raise UserError('--backends', f'none of {", ".join(backends)} can run these models on {device}; name others.')
    facts = [
        {'name': name, 'source': source, 'network': opened.network, 'parameters': None, 'macs': None}
        | (dict(zip(('parameters', 'macs'), opened.cost(args.size), strict=True)) if opened.network else {})
        for name, (source, opened) in models.items()
    ]
    results.output_folder(args.output)
    results.read_results(args.output)  # a damaged one shall not spoil the end
    image = noise(args.size, device)
    cuda = device == 'cuda'
    steps = len(cases) * (args.rounds + (1 if cuda else 2))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, tqdm(total=steps, desc='bench', leave=False) as bar:
        _prepare(cases, models, image, threads, Path(folder), bar)
        bar.set_postfix_str('timing')
        for _ in range(args.rounds):
            for case in cases:
                bar.update()
                if case.runner is not None:
                    try:
                        case.times.append(_time(case, cuda))
                    except Exception as error:
                        case.fail(error)
        if not cuda:
            for case in cases:
                bar.set_postfix_str(f'memory of {case.model} {case.backend} {case.precision}')
                if case.runner is not None:
                    where = (case.source, case.graph if case.backend in GRAPHS else None)
                    case.memory = peak_growth(*where, case.backend, case.precision, args.size, threads)
                bar.update()
    reference = cases[0]
    plain = (reference.backend, reference.precision) == ('eager', 'fp32')
    base = reference.entry(None)['median_ms'] if plain else None
    content = {
        'version': __version__,
        'device': torch.cuda.get_device_name() if cuda else 'cpu',
        'cpu': _processor(),
        'threads': threads,
        'torch': torch.__version__,
        'size': args.size,
        'rounds': args.rounds,
        'date': datetime.datetime.now().isoformat(timespec='seconds'),
        'models': facts,
        'teacher': reference.model if base else None,
        'runs': [case.entry(base) for case in cases],
    }
    _write(args.output, content)
    if not any(case.times for case in cases):
        raise UserError('nothing could be measured; the reasons stand above.')
    return 0
