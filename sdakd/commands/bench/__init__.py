"""`sdakd bench`: what models cost: parameters, multiply-accumulates, latency and memory in every runtime."""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, compat, stops
from sdakd.commands.interface import MOST_THREADS, Flags, Outcome, number, one_of, whole
from sdakd.compat import UserError
from sdakd.progress import Progress

if TYPE_CHECKING:
    import torch

    from sdakd.commands.bench.backends import Runner
    from sdakd.files.generators import Opened

NAMES = ('eager', 'channels_last', 'fast', 'compile', 'onnxruntime', 'openvino')
DEVICES = ('cpu', 'cuda')
LARGEST, MOST_ROUNDS = 16384, 100_000
HEADER = ('model', 'parameters', 'GMACs', 'backend', 'precision', 'ms', 'p10', 'p90', 'ratio', 'MiB', 'PSNR')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, bench)
    models = (
        '.pth, .safetensors, ncnn .param or .onnx, a name of `sdakd models`, or random:TYPE:WIDTH for random weights, '
        'such as random:RRDBNet:1/4 or random:GCFSR512:1/4; NAME=MODEL names the row; the first one is the teacher'
    )
    add('-m', '--models', nargs='+', metavar='MODEL', help=models)
    add('-o', '--output', required=True, help='folder for results.json and the tables')
    add('--size', type=number, help='side of the input in pixels (default: {default})')
    add('--rounds', type=number, help='how often each is timed (default: {default})')
    add('--threads', type=number, help="on a processor (default: torch's choice, one per core)")
    backends = f'{" ".join(NAMES)} (default: all; on a processor all but compile, which takes a minute per model)'
    add('--backends', nargs='+', metavar='BACKEND', help=backends)
    precisions = 'fp32 bf16 fp16 (default: fp32 and fp16 on a GPU; fp32, and bf16 on a processor that has units for it)'
    add('--precisions', nargs='+', metavar='PRECISION', help=precisions)
    add('--device', choices=DEVICES, help='default: cuda where there is one')


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
        reason = error.sentence if isinstance(error, UserError) and error.where.startswith('--to') else str(error)
        lines = reason.strip().splitlines() or [type(error).__name__]
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
        elif size % opened.multiple:
            raise UserError('--size', f'{name} takes sides that are multiples of {opened.multiple}, not {size}.')
        models[name] = source, opened
    return models


def _backends(names: Sequence[str] | None, device: str) -> list[str]:
    if names is None:
        return [name for name in NAMES if name != 'compile' or device == 'cuda']
    for name in names:
        one_of(name, NAMES, '--backends')
    return [name for name in NAMES if name in names]


def device_of(name: str | None) -> str:
    """``cpu`` or ``cuda``; default: ``cuda`` where there is one.

    Raises:
        UserError: It is unknown, or not there.
    """
    import torch

    if name is not None:
        one_of(name, DEVICES, '--device')
    if name == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device', 'torch finds no GPU here; write cpu.')
    return name or ('cuda' if torch.cuda.is_available() else 'cpu')


def _cases(
    models: dict[str, tuple[str, Opened]], backends: Sequence[str], precisions: Sequence[str], device: str
) -> list[Case]:
    from sdakd.commands.bench.backends import GRAPHS, PLAIN, possible_precisions
    from sdakd_arch.inference.onnx_network import OnnxNetwork

    cases = []
    for index, (name, (source, opened)) in enumerate(models.items()):
        exported = isinstance(opened.module, OnnxNetwork)
        # the teacher's eager pass is what all ratios refer to
        wanted = backends if index or exported or 'eager' in backends else ['eager', *backends]
        possible = GRAPHS if exported else PLAIN if opened.scale is None else NAMES
        if not set(backends) & set(possible):
            raise UserError(
                '--backends', f'{" and ".join(backends)} cannot run {name}; name one of {", ".join(possible)}.'
            )
        for backend in wanted:
            if backend in possible:
                chosen = [one for one in possible_precisions(backend, device) if one in precisions]
                if backend == 'eager' and not index and not exported:
                    chosen = ['fp32', *(one for one in chosen if one != 'fp32' and 'eager' in backends)]
                cases += [Case(name, source, backend, precision) for precision in chosen]
    return cases


def _graph(case: Case, opened: Opened, folder: Path) -> Path:
    """The graph of a case, exported on first need; a model that is one already is used as it is."""
    from sdakd.commands.export import to_onnx, to_openvino

    if opened.path.suffix == '.onnx':
        return opened.path
    half, write = case.precision == 'fp16', to_openvino if case.backend == 'openvino' else to_onnx
    ending = '.xml' if case.backend == 'openvino' else '.onnx'
    path = folder / f'{case.model.replace("/", "_")}{"_fp16" if half else ""}{ending}'
    if not path.exists():
        write(opened, path, half)
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
    progress,
) -> None:
    """Builds and warms up every case; one that fails keeps its reason."""
    import torch

    from sdakd.commands.bench.backends import GRAPHS, start

    cuda = image.device.type == 'cuda'
    wanted: dict[str, torch.Tensor] = {}
    for case in cases:
        progress.note = f'{case.model} {case.backend} {case.precision}'
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
        progress.step()


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


def processor() -> str:
    """What the processor is called."""
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
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


@dataclass
class Timings(Outcome):
    """What was measured.

    Args:
        section: The section ``bench`` of ``results.json``, see docs/performance.md; ``runs`` holds an entry per model,
            backend and precision, with times in milliseconds.
        output: The folder that it was written to, or None.
        left_out: Why precisions were not measured, one line each.
    """

    section: dict
    output: Path | None
    left_out: list[str]

    def __str__(self) -> str:
        from sdakd.files import results

        content, cuda = self.section, self.section['device'] != 'cpu'
        where = content['device'] if cuda else f'{content["cpu"]}, threads: {content["threads"]}'
        basis = f'ratio: to eager fp32 of {content["teacher"]}; ' if content['teacher'] else ''
        lines = [
            f'{where}; input {content["size"]}x{content["size"]}. ms: median (rounds: {content["rounds"]}), with '
            f"percentiles; {basis}GMACs: half of torch's flop count; MiB: growth at the peak, "
            f"{'on the GPU' if cuda else 'in a process of its own'}; PSNR: in dB to the model's own eager fp32 output."
        ]
        lines += self.left_out
        lines += [
            f'Left out: {run["model"]} {run["backend"]} {run["precision"]}: {run["error"]}'
            for run in content['runs']
            if run['error']
        ]
        if self.output:
            lines.append(f'Wrote results.json and bench.md, .csv, .tex to {self.output}.')
        return results.table(HEADER, _rows(content)) + ''.join(f'{line}\n' for line in lines)

    def check(self) -> None:
        if not any(run['median_ms'] for run in self.section['runs']):
            raise UserError('nothing could be measured; the reasons stand above.')


def _precisions(names: Sequence[str] | None, device: str) -> tuple[list[str], list[str]]:
    """What to measure, and what to say of what is left out."""
    from sdakd.commands.bench.backends import DTYPES
    from sdakd_arch.inference.onednn import computes_bf16

    if names is not None:
        for name in names:
            one_of(name, DTYPES, '--precisions')
        return list(names), []
    if device == 'cpu' and not computes_bf16():
        return ['fp32'], ['bf16: this processor has no units for it (--precisions fp32 bf16 measures it anyway).']
    return list(DTYPES), []


@stops.leaving('nothing was written; give the same command again')
def bench(
    models: Sequence[str],
    output: str | Path | None = None,
    *,
    size: int = 64,
    rounds: int = 20,
    threads: int | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    device: str | None = None,
) -> Timings:
    """Measures what models cost: parameters, multiply-accumulates, latency and memory.

    Args:
        models: ``.pth``, ``.safetensors`` or ``.onnx`` files, names of :mod:`sdakd.files.named`, or
            ``random:TYPE:WIDTH`` for random weights, each with ``NAME=`` in front where wanted. The first one is the
            teacher, to which ratios refer.
        output: Folder for results.json and the tables; None writes nothing.
        size: Side of the input in pixels, at least 8.
        rounds: How often each is timed.
        threads: On a processor; default: torch's choice. torch keeps it afterwards.
        backends: Of :data:`NAMES`; default: all, on a processor all but ``compile``.
        precisions: Of ``fp32``, ``bf16`` and ``fp16``, where a backend has them; default: on a GPU ``fp32`` and
            ``fp16``; on a processor ``fp32``, and ``bf16`` where it has units for it. The teacher's eager pass is
            always timed in ``fp32``.
        device: ``cpu`` or ``cuda``; default: ``cuda`` where there is one.

    Returns:
        All measurements. What a runtime refuses has its reason in ``error``.

    Raises:
        UserError: A mistake in the arguments, a model that cannot be opened, or an output that cannot be written.
    """
    size, rounds = whole(size, '--size', 8, LARGEST), whole(rounds, '--rounds', 1, MOST_ROUNDS)
    threads = None if threads is None else whole(threads, '--threads', 1, MOST_THREADS)
    compat.import_basicsr()
    import torch

    from sdakd.commands.bench.backends import GRAPHS, noise
    from sdakd.commands.bench.memory import peak_growth
    from sdakd.files import results

    device = device_of(device)
    backends = _backends(backends, device)
    wanted, left_out = _precisions(precisions, device)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    opened = _open(models, size, threads)
    cases = _cases(opened, backends, wanted, device)
    if not cases:
        raise UserError('--backends', f'none of {", ".join(backends)} can run these models on {device}; name others.')
    facts = [
        {'name': name, 'source': source, 'network': model.network, 'parameters': None, 'macs': None}
        | (dict(zip(('parameters', 'macs'), model.cost(size), strict=True)) if model.network else {})
        for name, (source, model) in opened.items()
    ]
    if output is not None:
        results.output_folder(output)
        results.read_results(output)  # a damaged one shall not spoil the end
    image = noise(size, device)
    cuda = device == 'cuda'
    steps = len(cases) * (rounds + (1 if cuda else 2))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, Progress('bench', steps, 'steps') as progress:
        _prepare(cases, opened, image, threads, Path(folder), progress)
        progress.note = 'timing'
        for _ in range(rounds):
            for case in cases:
                progress.step()
                if case.runner is not None:
                    try:
                        case.times.append(_time(case, cuda))
                    except Exception as error:
                        case.fail(error)
        if not cuda:
            for case in cases:
                progress.note = f'memory of {case.model} {case.backend} {case.precision}'
                if case.runner is not None:
                    where = (case.source, case.graph if case.backend in GRAPHS else None)
                    case.memory = peak_growth(*where, case.backend, case.precision, size, threads)
                progress.step()
    reference = cases[0]
    plain = (reference.backend, reference.precision) == ('eager', 'fp32')
    base = reference.entry(None)['median_ms'] if plain else None
    content = {
        'version': __version__,
        'device': torch.cuda.get_device_name() if cuda else 'cpu',
        'cpu': processor(),
        'threads': threads,
        'torch': torch.__version__,
        'size': size,
        'rounds': rounds,
        'date': datetime.datetime.now().isoformat(timespec='seconds'),
        'models': facts,
        'teacher': reference.model if base else None,
        'runs': [case.entry(base) for case in cases],
    }
    if output is not None:
        results.write_section(output, 'bench', content)
        results.write_tables(output, 'bench', HEADER, _rows(content))
    return Timings(content, None if output is None else Path(output), left_out)
