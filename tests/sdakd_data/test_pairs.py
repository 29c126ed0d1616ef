"""Which sizes are a pair, in a training, its validation and `sdakd evaluate`."""

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset

from sdakd.compat import UserError
from sdakd.files.testsets import open_sets
from sdakd_data.pairs import SPARE, fits, misfit


@pytest.mark.parametrize(
    ('gt', 'lq', 'scale', 'advice'),
    [
        ((97, 129), (25, 33), 4, 'make the LQ image again'),  # rounded up
        ((128, 160), (16, 20), 4, 'they are a pair of scale 8'),
        ((128, 160), (128, 160), 4, 'they are a pair of scale 1'),
        ((160, 128), (32, 40), 4, 'one of them is turned'),
        ((130, 160), (32, 40), 4, 'crop the ground truth to a multiple of the scale'),
        ((128, 160), (32, 41), 4, 'give the images that belong together'),
    ],
)
def test_what_a_misfit_is(gt, lq, scale, advice):
    fault, remedy = misfit(gt, lq, scale)
    assert advice in remedy and fault.startswith(f'is {gt[1]}x{gt[0]} and its LQ image {lq[1]}x{lq[0]}; at scale 4 ')
    assert fault.endswith(f'that must be {gt[1] // scale}x{gt[0] // scale}')


@pytest.mark.parametrize('more', range(-1, SPARE + 1))
def test_one_rule_where_the_ground_truth_is_cut(tmp_path, more):
    """The judge is BasicSR's data set of validation, which cuts, and whose images are compared after it."""
    gt, lq = (8 * 4 + more, 9 * 4), (8, 9)
    for name, size in (('gt', gt), ('lq', lq)):
        (tmp_path / name).mkdir()
        values = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(tmp_path / name / 'a.png'), values)
    roots = {f'dataroot_{name}': str(tmp_path / name) for name in ('gt', 'lq')}
    options = {'name': 'v', 'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': 4}
    item = build_dataset({**options, **roots})[0]
    alike = item['gt'].shape[1] == 4 * item['lq'].shape[1]
    assert fits(gt, lq, 4, SPARE) == (alike and more < SPARE)
    source = f'{tmp_path}/gt:{tmp_path}/lq'
    if not fits(gt, lq, 4, SPARE):
        with pytest.raises(UserError, match='at scale 4 that must be'):
            open_sets([source], 4)
        return
    (found,) = open_sets([source], 4)
    sample = found.read('a')
    theirs = (item['gt'].numpy().transpose(1, 2, 0)[..., ::-1] * 255).round().astype(np.uint8)
    assert np.array_equal(sample.gt, theirs) and sample.gt.shape[:2] == found.size('a') == (32, 36)
    assert (sample.gt_file is None) == (more > 0)
    assert fits(gt, lq, 4) == (more == 0)  # of training: BasicSR crops both at random and cuts nothing
