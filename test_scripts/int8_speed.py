"""What int8 costs and brings: exports models in float32 and int8, and times both in their own runtimes.

    python test_scripts/int8_speed.py -m student.safetensors --calibrate PHOTOS -o OUT

Files that OUT holds already are timed as they are. int8 files are written whatever they lose. One image of 64x64
pixels; float32 and int8 take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import common  # noqa: F401  it puts BasicSR and this project on the path

from sdakd import compat

compat.import_basicsr()

import numpy as np  # noqa: E402

from sdakd.commands.export import FORMATS, export  # noqa: E402
from sdakd.compat import UserError  # noqa: E402
from sdakd.files import results  # noqa: E402

SIDE = 64  # pixels
WARM = 3  # passes
HEADER = ('model', 'runtime', 'threads', 'float32, ms', 'int8, ms', 'ratio', 'loss, dB', 'PSNR to float32, dB')


def in_onnx(path: Path, image: np.ndarray, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'input': image})


def in_openvino(path: Path, image: np.ndarray, threads: int) -> Callable[[], object]:
    import openvino

    from sdakd_arch.inference.openvino_graph import settings

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(image.shape))
    request = core.compile_model(model, 'CPU', settings(False, threads)).create_infer_request()
    return lambda: request.infer({0: image})


def in_ncnn(path: Path, image: np.ndarray, threads: int) -> Callable[[], object]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(str(path))
    net.load_model(str(path.with_suffix('.bin')))

    def run() -> object:
        extractor = net.create_extractor()
        extractor.input('data', ncnn.Mat(image[0]))
        return extractor.extract('output')

    return run


RUNTIMES = {'onnx': in_onnx, 'openvino': in_openvino, 'ncnn': in_ncnn}


def facts(path: Path) -> dict:
    """What an int8 file says of its quantisation."""
    if path.suffix == '.onnx':
        import onnx

        text = {entry.key: entry.value for entry in onnx.load(path).metadata_props}['quantization']
    elif path.suffix == '.xml':
        import openvino

        text = openvino.Core().read_model(path).get_rt_info(['framework', 'quantization']).astype(str)
    else:
        return json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))['quantization']
    return json.loads(text)


def files(model: Path, runtime: str, photographs: str | None, folder: Path) -> tuple[Path, Path]:
    """The files of a model in float32 and int8; they are written where they are missing."""
    found = []
    for name in (runtime, f'{runtime}-int8'):
        path = folder / f'{model.stem}{FORMATS[name].mark}{FORMATS[name].endings[0]}'
        if not path.exists():
            more = {} if name == runtime else {'calibrate': photographs, 'max_loss': 99}
            print(export(model, name, folder, **more), end='', flush=True)
        found.append(path)
    return tuple(found)


def timed(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Medians in milliseconds; they take turns."""
    times = [[] for _ in runs]
    for number in range(WARM + rounds):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if number >= WARM:
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-m', '--models', nargs='+', required=True, type=Path)
    parser.add_argument('--calibrate', metavar='FOLDER', help='photographs, where int8 files are to be written')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--export_only', action='store_true', help='write files, time nothing')
    parser.add_argument('-o', '--output', required=True, type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    rows = []
    for model in arguments.models:
        for runtime in arguments.runtimes:
            try:
                pair = files(model, runtime, arguments.calibrate, arguments.output)
            except UserError as error:
                print(error, flush=True)
                continue
            told = facts(pair[1])
            for threads in arguments.threads if not arguments.export_only else []:
                whole, coarse = timed([RUNTIMES[runtime](path, image, threads) for path in pair], arguments.rounds)
                values = f'{whole:.1f}', f'{coarse:.1f}', f'{whole / coarse:.2f}'
                losses = f'{told["loss_db"]:.2f}', f'{told["psnr_to_float_db"]:.1f}'
                rows.append((model.stem, runtime, str(threads), *values, *losses))
                print(' | '.join(rows[-1]), flush=True)
    if rows:
        results.write_tables(arguments.output, 'int8', HEADER, rows)
        print(results.table(HEADER, rows))


if __name__ == '__main__':
    main()
