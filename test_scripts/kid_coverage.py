r"""How often 95% intervals of a difference of two KIDs cover the known one, on the features of real photographs.

    OMP_NUM_THREADS=1 python test_scripts/kid_coverage.py -i PHOTOGRAPHS --backbone efficientnet_lite0

The photographs are the population: two models are played by a downscaling by 3 and back, and by a Gaussian blur. The
difference of their KIDs over all pairs of photographs is the truth; sets of images are drawn from the population with
replacement, and the intervals of evaluate (Student's) and of compare (studentised bootstrap) are made from each.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd.files.images import list_images  # noqa: E402
from sdakd.files.intervals import bootstrap_interval, mean_interval  # noqa: E402
from sdakd_metrics.distribution import image_kernels, kernel_distance_of_images, open_backbone  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-i', '--input', required=True, help='folder of photographs')
    parser.add_argument('--backbone', default='efficientnet_lite0', help='as of sdakd evaluate')
    parser.add_argument('--photographs', type=int, default=150, help='how many of them')
    parser.add_argument('--sets', type=int, default=1000, help='how many are drawn')
    args = parser.parse_args()
    network = open_backbone(args.backbone, '--backbone')
    network.stride = 96  # a few patches of each photograph are enough
    truth, models = [], ([], [])
    for name in list_images(args.input, '-i')[: args.photographs]:
        image = cv2.imread(str(Path(args.input, name)))
        size = image.shape[1::-1]
        small = cv2.resize(image, (size[0] // 3, size[1] // 3), interpolation=cv2.INTER_AREA)
        truth.append(network(image))
        models[0].append(network(cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)))
        models[1].append(network(cv2.GaussianBlur(image, (0, 0), 1.2)))
    of_truth = image_kernels(truth, truth)
    kernels = [(image_kernels(model, model), of_truth, image_kernels(model, truth)) for model in models]
    first, second = ((own + other - 2 * cross).mean() for own, other, cross in kernels)
    generator = np.random.default_rng(7)
    print('| images | Student | studentised bootstrap |\n|--:|--:|--:|')
    for number in (14, 20, 40, 100):
        covered = {mean_interval: 0, bootstrap_interval: 0}
        for _ in range(args.sets):
            drawn = np.ix_(*[generator.integers(0, len(truth), number)] * 2)
            a, b = (kernel_distance_of_images(*(each[drawn] for each in one))[1] for one in kernels)
            for interval in covered:
                _, low, high = interval(a - b)
                covered[interval] += low <= first - second <= high
        print(f'| {number} | {" | ".join(f"{100 * found / args.sets:.1f} %" for found in covered.values())} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
