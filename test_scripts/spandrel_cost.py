r"""What a narrow RRDBNet costs in spandrel: as it is, with a modulation by zero, with 32 growth channels; its teacher.

    python test_scripts/spandrel_cost.py -m sdakd/pretrained/x4plus_rrdbnet_1_8.safetensors -t RealESRGAN_x4plus.pth

Every row is a process of its own that opens the file by spandrel, on the CPU in float32, as other programs do: the
median and the smallest of some passes over one image, and the most memory that the process has held.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def one(file: str, threads: int, side: int, rounds: int) -> None:
    """Prints the figures of a row as JSON."""
    import torch

    import sdakd_arch.spandrel  # noqa: F401
    from sdakd.machine import peak_memory

    import spandrel  # isort: skip  behind what lets torchvision be imported

    torch.set_num_threads(threads)
    model, image, seconds = spandrel.ModelLoader('cpu').load_from_file(file), torch.rand(1, 3, side, side), []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - begun)
    print(json.dumps([model.architecture.id, statistics.median(seconds[1:]), min(seconds[1:]), peak_memory()]))


def files_of(models: list[str], teacher: str | None, folder: Path) -> dict[str, Path]:
    """The files of all rows, in the folder, in float32."""
    import torch
    from safetensors.torch import save_file

    from sdakd_arch.families.rrdbnet import modulated, widen_growth
    from sdakd_arch.weights import read_weights

    found = {}
    for model in models:
        state = {key: tensor.float() for key, tensor in read_weights(model, 'params_ema', '-m').items()}
        for name, each in (('as it is', state), ('modulation by 0', modulated(state)), ('32', widen_growth(state))):
            found[f'{Path(model).stem}, {name}'] = folder / f'{Path(model).stem}_{len(found)}.safetensors'
            whole = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in each.items()}
            save_file(whole, list(found.values())[-1])
    return found | ({Path(teacher).stem: Path(teacher)} if teacher else {})


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-m', '--models', nargs='+', default=[], help='narrow RRDBNets for scale 4')
    parser.add_argument('-t', '--teacher', help='a file that spandrel opens')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--side', type=int, default=128, help='pixels')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--one', nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(given.one[0], *map(int, given.one[1:]))
    from sdakd.files.results import table

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files_of(given.models, given.teacher, Path(folder)).items():
            for threads in given.threads:
                line = [sys.executable, '-W', 'ignore', __file__, '--one', str(file.resolve()), str(threads)]
                line += [str(given.side), str(given.rounds)]
                done = subprocess.run(line, capture_output=True, text=True, encoding='utf-8', check=True)
                kind, median, least, memory = json.loads(done.stdout.splitlines()[-1])
                figures = [f'{1000 * median:.0f}', f'{1000 * least:.0f}', f'{memory:.0f}']
                rows.append([name, kind, str(threads), *figures, f'{file.stat().st_size / 1e6:.1f}'])
    header = ['file', 'opens as', 'threads', 'ms', 'least ms', 'MiB of the process', 'MB of the file']
    print(table(header, rows, 'md'))


if __name__ == '__main__':
    main()
