r"""What loading costs: a sample by kind of file, in one process, and what a run with worker processes waits for.

    OMP_NUM_THREADS=1 python test_scripts/loading.py -i PHOTOGRAPHS

Photographs are enlarged to the size of DF2K's (2040 pixels wide), which is what training data sets hold, and cut to
sub-images of 480 pixels, as `sdakd prepare subimages` does. Each kind holds the same pixels but for JPEG's loss. Kinds
take turns; times are medians over samples, files are in the memory of the system after the first round.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd import compat  # noqa: E402

compat.import_basicsr()

from basicsr.data import build_dataset  # noqa: E402

import sdakd_data  # noqa: E402, F401  it registers data sets
from sdakd.commands.prepare.database import lmdb  # noqa: E402
from sdakd.commands.prepare.synthesis import PUBLISHED  # noqa: E402
from sdakd.files.images import list_images, read_image  # noqa: E402
from sdakd_data.draws import Drawn  # noqa: E402
from sdakd_models.basicsr_options import Degradation  # noqa: E402

WIDTH, PART, SCALE, QUALITY = 2040, 480, 4, 95


def write(folder: Path, kind: str, number: int, image) -> None:
    flags = {'png': [cv2.IMWRITE_PNG_COMPRESSION, 3], 'jpg': [cv2.IMWRITE_JPEG_QUALITY, QUALITY], 'bmp': []}[kind]
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{number:03d}.{kind}'), image, flags)


def make(root: Path, photographs: str, count: int) -> None:
    """Folders ``whole/KIND/gt`` and ``parts/KIND/gt`` with inputs beside them, and databases of the PNG files."""
    numbers = {'whole': 0, 'parts': 0}
    for name in list_images(photographs)[:count]:
        image = read_image(Path(photographs, name))
        height = round(WIDTH * image.shape[0] / image.shape[1]) // SCALE * SCALE
        image = cv2.resize(image, (WIDTH, height), interpolation=cv2.INTER_CUBIC)
        for size, found in (('whole', image), ('parts', image[:PART, :PART])):
            small = cv2.resize(found, None, fx=1 / SCALE, fy=1 / SCALE, interpolation=cv2.INTER_AREA)
            for kind in ('png', 'jpg', 'bmp'):
                write(root / size / kind / 'gt', kind, numbers[size], found)
                write(root / size / kind / 'lq', kind, numbers[size], small)
            numbers[size] += 1
    for size in numbers:
        for side in ('gt', 'lq'):
            lmdb(root / size / 'png' / side, root / size / f'png_{side}.lmdb')


def dataset(root: Path, size: str, kind: str, degraded: bool, seed: int) -> Drawn:
    folder = root / size
    gt, lq = (folder / f'png_{side}.lmdb' if kind == 'lmdb' else folder / kind / side for side in ('gt', 'lq'))
    backend = {'io_backend': {'type': 'lmdb' if kind == 'lmdb' else 'disk'}}
    common = {'name': kind, 'dataroot_gt': str(gt), 'use_hflip': True, 'use_rot': False, 'phase': 'train', **backend}
    if degraded:
        names = sorted(path.name for path in (folder / 'png' / 'gt').iterdir())
        (folder / f'{kind}.txt').write_text(''.join(f'{Path(name).stem}.{kind}\n' for name in names))
        listed = {} if kind == 'lmdb' else {'meta_info': str(folder / f'{kind}.txt')}
        kernels = {key: value for key, value in PUBLISHED.items() if key not in Degradation.__struct_fields__}
        kernels |= {'blur_kernel_size': 21, 'blur_kernel_size2': 21}
        options = {'type': 'RealESRGANDataset', 'gt_size': 256, **kernels, **listed}
    else:
        options = {'type': 'PairedImageDataset', 'dataroot_lq': str(lq), 'gt_size': 256, 'scale': SCALE}
    return Drawn(build_dataset({**common, **options}), seed, kind)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-i', required=True, help='folder of photographs')
    parser.add_argument('--images', type=int, default=12)
    parser.add_argument('--rounds', type=int, default=6)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make(root, args.i, args.images)
        cases = [(size, kind, degraded) for size in ('whole', 'parts') for kind in ('png', 'jpg', 'bmp', 'lmdb')
                 for degraded in (True, False)]  # fmt: skip
        sets = {case: dataset(root, *case, 0) for case in cases}
        times = {case: [] for case in cases}
        for number in range(args.rounds + 1):
            for case, found in sets.items():
                for index in range(len(found)):
                    begun = time.perf_counter()
                    found[index, number * len(found) + index]
                    if number:
                        times[case].append(1e3 * (time.perf_counter() - begun))
        print('| images | files | to degrade, ms | pairs, ms |\n|---|---|--:|--:|')
        for size in ('whole', 'parts'):
            for kind in ('png', 'jpg', 'bmp', 'lmdb'):
                cells = [f'{statistics.median(times[size, kind, degraded]):.1f}' for degraded in (True, False)]
                print(f'| {size} | {kind} | {" | ".join(cells)} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
