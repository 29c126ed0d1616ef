"""`sdakd prepare`, on photographs that ship with scikit-image, read back with other code than made the files."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from sdakd import cli, compat
from sdakd.commands.prepare import database, jobs
from sdakd.compat import UserError

compat.import_basicsr()


def photo(width=160, height=128, which='astronaut'):
    return getattr(data, which)()[:height, :width, ::-1].copy()


def save(path, image, *params):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image, *params)


def run(*words):
    return cli.main(['prepare', *(str(word) for word in words), '--workers', '2'])


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())


def contents(folder):
    return {name: Path(folder, name).read_bytes() for name in names(folder)}


@pytest.fixture
def photos(tmp_path):
    save(tmp_path / 'in' / 'a.png', photo())
    save(tmp_path / 'in' / 'c.png', photo(133, 121, 'chelsea'))
    return tmp_path / 'in'


@pytest.fixture
def cut_off(photos):
    save(photos / 'b.jpg', photo())
    whole = (photos / 'b.jpg').read_bytes()
    (photos / 'b.jpg').write_bytes(whole[: len(whole) // 2])
    return photos


# ---------------------------------------------- sub-images and multi-scale copies -------------------------------------


@pytest.mark.parametrize('thresh_size', [0, 9, 10])
def test_subimages_cover_the_image(photos, thresh_size):
    out = photos.parent / 'out'
    run('subimages', '-i', photos, '-o', out, '--crop_size', 48, '--step', 24, '--thresh_size', thresh_size)
    for name, image in (('a', photo()), ('c', photo(133, 121, 'chelsea'))):
        starts = []
        for length in image.shape[:2]:
            regular, rest = divmod(length - 48, 24)
            starts.append([24 * k for k in range(regular + 1)] + ([length - 48] if rest > thresh_size else []))
        crops = [image[y : y + 48, x : x + 48] for y in starts[0] for x in starts[1]]
        found = sorted(out.glob(f'{name}_s*.png'))
        assert [p.name for p in found] == [f'{name}_s{k:03d}.png' for k in range(1, len(crops) + 1)]
        assert all(np.array_equal(cv2.imread(str(p)), crop) for p, crop in zip(found, crops, strict=True))
    # 128 - 48 = 3 * 24 + 8, 121 - 48 = 3 * 24 + 1, 160 - 48 = 4 * 24 + 16, 133 - 48 = 3 * 24 + 13
    assert len(list(out.glob('a_s*'))) == (30 if thresh_size == 0 else 24)


def test_subimages_of_div2k_lq_get_the_names_of_gt(tmp_path):
    save(tmp_path / 'in' / '0801x4.png', photo(64, 64))
    save(tmp_path / 'in' / 'matrix4.png', photo(64, 64))
    run('subimages', '-i', tmp_path / 'in', '-o', tmp_path / 'out', '--crop_size', 64)
    assert {n for n in names(tmp_path / 'out') if n[0] != '.'} == {'0801_s001.png', 'matrix4_s001.png'}
    save(tmp_path / 'in' / '0801x2.png', photo(64, 64))
    with pytest.raises(UserError, match='0801x[24].png and 0801x[24].png .* would both become 0801'):
        run('subimages', '-i', tmp_path / 'in', '-o', tmp_path / 'out2', '--crop_size', 64)


def test_multiscale(tmp_path):
    image = data.chelsea()[..., ::-1]
    save(tmp_path / 'in' / 'small.png', image)  # 451 x 300
    save(tmp_path / 'in' / 'sub' / 'tall.png', cv2.rotate(cv2.resize(image, (902, 600)), cv2.ROTATE_90_CLOCKWISE))
    run('multiscale', '-i', tmp_path / 'in', '-o', tmp_path / 'out')
    sizes = {n: Image.open(tmp_path / 'out' / n).size for n in names(tmp_path / 'out') if n[0] != '.'}
    assert sizes == {
        'smallT0.png': (338, 225),
        'smallT1.png': (225, 150),
        'smallT2.png': (150, 100),
        'sub/tallT0.png': (450, 676),
        'sub/tallT1.png': (300, 451),
        'sub/tallT2.png': (200, 300),
        'sub/tallT3.png': (400, 601),
    }
    # an antialiasing filter of another kind gives nearly the same image, in the same channel order
    assert psnr(cv2.imread(str(tmp_path / 'out' / 'smallT2.png')), cv2.resize(image, (150, 100), None, 0, 0, 3)) > 30


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


# ---------------------------------------------- meta-info -------------------------------------------------------------


def test_meta_of_several_folders(photos, capsys):
    root = photos.parent
    run('subimages', '-i', photos, '-o', root / 'sub', '--crop_size', 96)
    (photos / 'notes.md').write_text('no image')
    save(photos / '.thumbnails' / 'a.png', photo())
    run('meta', '-i', photos, root / 'sub', '-o', root / 'meta.txt')
    lines = (root / 'meta.txt').read_text().splitlines()
    assert lines == ['in/a.png', 'in/c.png', 'sub/a_s001.png', 'sub/a_s002.png', 'sub/a_s003.png', 'sub/a_s004.png'] + [
        f'sub/c_s00{k}.png' for k in (1, 2, 3, 4)
    ]
    assert 'left out 1 of other kinds (.md)' in capsys.readouterr().err
    run('meta', '-i', photos, '--root', root, root, '-o', root / 'rooted.txt')
    assert (root / 'rooted.txt').read_text().splitlines() == ['in/a.png', 'in/c.png']
    run('meta', '-i', photos, '-o', root / 'own.txt')
    assert (root / 'own.txt').read_text().splitlines() == ['a.png', 'c.png']

    run('meta', '-i', photos, '-o', root / 'own.txt')
    assert '0 done, 2 kept' in capsys.readouterr().out
    (root / 'own.txt').write_text('chosen by hand\n')
    with pytest.raises(UserError, match='lists other images'):
        run('meta', '-i', photos, '-o', root / 'own.txt')
    assert (root / 'own.txt').read_text() == 'chosen by hand\n'


def test_meta_check_leaves_out_what_cannot_be_read(cut_off, capsys):
    meta = cut_off.parent / 'meta.txt'
    run('meta', '-i', cut_off, '-o', meta)
    assert meta.read_text().split() == ['a.png', 'b.jpg', 'c.png']
    meta.unlink()
    with pytest.raises(UserError, match='1 of 3 images'):
        run('meta', '-i', cut_off, '-o', meta, '--check')
    assert meta.read_text().split() == ['a.png', 'c.png']
    assert '2 done, 0 kept, 1 unreadable' in capsys.readouterr().out


def test_meta_of_pairs(photos):
    root = photos.parent
    for name in ('a', 'c'):
        image = cv2.imread(str(photos / f'{name}.png'))
        save(
            root / 'lq' / f'{name}{"x4" if name == "a" else ""}.png',
            image[: image.shape[0] // 4, : image.shape[1] // 4],
        )
    run('meta', '-i', photos, '--lq', root / 'lq', '-o', root / 'pairs.txt')
    assert (root / 'pairs.txt').read_text() == 'a.png, ax4.png\nc.png, c.png\n'
    with pytest.raises(UserError, match=r'1 of 2 .*c.png, c.png do not fit: GT is 133x121, LQ 33x30'):
        run('meta', '-i', photos, '--lq', root / 'lq', '-o', root / 'checked.txt', '--check')
    assert (root / 'checked.txt').read_text() == 'a.png, ax4.png\n'
    save(root / 'lq' / 'd.png', photo(32, 32))
    with pytest.raises(UserError, match='1 images have no partner in .*, the first is d.png'):
        run('meta', '-i', photos, '--lq', root / 'lq', '-o', root / 'more.txt')
    (root / 'lq' / 'd.png').rename(photos / 'd.png')
    with pytest.raises(UserError, match='no partner for d.png'):
        run('meta', '-i', photos, '--lq', root / 'lq', '-o', root / 'more.txt')
    assert not (root / 'more.txt').exists()


# ---------------------------------------------- LMDB ------------------------------------------------------------------


def test_lmdb_holds_what_basicsr_would_decode(tmp_path, monkeypatch):
    from basicsr.utils import imfrombytes

    monkeypatch.setattr(database, 'LMDB_ROOM', 1 << 18)  # the map must grow on the way
    source = tmp_path / 'in'
    save(source / 'sub' / 'colour.png', photo(500, 500))
    save(source / 'grey.png', data.camera()[:60, :80])
    save(source / 'deep.png', photo().astype(np.uint16) * 257)
    save(source / 'alpha.png', np.dstack([photo(), np.full((128, 160), 9, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(photo()).save(source / 'turned.jpg', exif=exif)
    run('lmdb', '-i', source, '-o', tmp_path / 'db.lmdb/')

    meta = dict(line.split(' ', 1) for line in (tmp_path / 'db.lmdb' / 'meta_info.txt').read_text().splitlines())
    assert meta['turned.png'] == '(160,128,3) 1' and meta['grey.png'] == '(60,80,3) 1'
    with lmdb.open(str(tmp_path / 'db.lmdb'), readonly=True, lock=False) as db, db.begin() as txn:
        stored = {key.decode(): value for key, value in txn.cursor()}
    assert stored.keys() == {'sub/colour', 'grey', 'deep', 'alpha', 'turned'}
    assert {f'{key}.png' for key in stored} == meta.keys()
    for name in names(source):
        expected = imfrombytes((source / name).read_bytes())
        assert np.array_equal(cv2.imdecode(np.frombuffer(stored[name.split('.')[0]], np.uint8), -1), expected), name


def test_lmdb_finished_is_kept_and_other_refused(cut_off, capsys):
    out = cut_off.parent / 'db.lmdb'
    with pytest.raises(UserError, match='b.jpg is damaged'):
        run('lmdb', '-i', cut_off, '-o', out)
    assert '2 done, 0 kept, 1 unreadable' in capsys.readouterr().out
    before = contents(out)
    with pytest.raises(UserError, match='b.jpg is damaged'):
        run('lmdb', '-i', cut_off, '-o', out)
    assert '0 done, 2 kept, 1 unreadable' in capsys.readouterr().out
    save(cut_off / 'b.jpg', photo())
    with pytest.raises(UserError, match='the database lacks b.jpg'):
        run('lmdb', '-i', cut_off, '-o', out)
    (cut_off / 'b.jpg').unlink()
    assert run('lmdb', '-i', cut_off, '-o', out) == 0
    os.utime(cut_off / 'a.png', (time.time() + 9, time.time() + 9))
    with pytest.raises(UserError, match='a.png in .* is newer than the database'):
        run('lmdb', '-i', cut_off, '-o', out)
    (cut_off / 'a.png').unlink()
    with pytest.raises(UserError, match='the database holds a, which'):
        run('lmdb', '-i', cut_off, '-o', out)
    assert contents(out) == before
    assert not list(cut_off.parent.glob('.*'))


@pytest.mark.parametrize('name', ['IMG.1.png', 'v1.0/a.png', 'Möwe.png'])
def test_lmdb_refuses_keys_that_basicsr_would_cut(tmp_path, name):
    save(tmp_path / 'in' / name, photo())
    with pytest.raises(UserError, match=f'{name} in .* cannot be a key'):
        run('lmdb', '-i', tmp_path / 'in', '-o', tmp_path / 'db.lmdb')
    assert names(tmp_path) == [f'in/{name}']


# ---------------------------------------------- pairs -----------------------------------------------------------------


def matlab_bicubic(image, scale):
    """Keys' cubic kernel (a = -1/2), stretched by the scale, over an image mirrored at its borders."""

    def weights(length):
        matrix = np.zeros((length // scale, length))
        for row in range(length // scale):
            centre = (row + 0.5) * scale - 0.5
            for at in range(int(centre) - 2 * scale - 1, int(centre) + 2 * scale + 3):
                x = abs(at - centre) / scale
                value = 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (x < 2)
                matrix[row, -1 - at if at < 0 else min(at, 2 * length - 1 - at)] += value
        return matrix / matrix.sum(1, keepdims=True)

    height, width = image.shape[:2]
    return np.einsum('ij,jkc,lk->ilc', weights(height), image.astype(float), weights(width)).clip(0, 255)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_bicubic_pairs(photos, scale):
    out = photos.parent / 'out'
    run('pairs', '-i', photos, '-o', out, '--degradation', 'bicubic', '--scale', scale)
    for name in ('a', 'c'):
        source, gt, lq = (cv2.imread(str(p / f'{name}.png')) for p in (photos, out / 'gt', out / 'lq'))
        height, width = (side // scale * scale for side in source.shape[:2])
        assert np.array_equal(gt, source[:height, :width])
        assert np.abs(lq - matlab_bicubic(gt, scale)).max() < 0.51
        pillow = np.asarray(Image.fromarray(gt).resize((width // scale, height // scale), Image.Resampling.BICUBIC))
        assert np.abs(lq.astype(int) - pillow)[3:-3, 3:-3].max() <= 2  # Pillow treats the border otherwise


def realesrgan(source, out, *words):
    run('pairs', '-i', source, '-o', out, '--degradation', 'realesrgan', *words)
    return {name: content for name, content in contents(out).items() if name != jobs.RECORD}


def test_realesrgan_pairs_depend_on_seed_and_name_only(photos):
    root = photos.parent
    first = realesrgan(photos, root / 'first')
    assert set(first) == {'gt/a.png', 'gt/c.png', 'lq/a.png', 'lq/c.png'}
    for name, (width, height) in {'a': (160, 128), 'c': (132, 120)}.items():
        assert Image.open(root / 'first' / 'gt' / f'{name}.png').size == (width, height)
        assert Image.open(root / 'first' / 'lq' / f'{name}.png').size == (width // 4, height // 4)
    save(root / 'other' / '0.png', photo(133, 121, 'chelsea'))  # other images before it, and another place
    save(root / 'other' / 'c.png', photo(133, 121, 'chelsea'))
    second = realesrgan(root / 'other', root / 'second')
    assert second['lq/c.png'] == first['lq/c.png'] != second['lq/0.png']  # every name has its own degradation
    assert realesrgan(photos, root / 'seeded', '--seed', 1)['lq/c.png'] != first['lq/c.png']
    # it is the same scene, degraded
    for name in ('a', 'c'):
        gt, lq = (cv2.imread(str(root / 'first' / part / f'{name}.png')) for part in ('gt', 'lq'))
        assert 12 < psnr(lq, matlab_bicubic(gt, 4)) < 40


def test_sharpened_ground_truth_is_that_of_basicsr(photos):
    from basicsr.utils.img_process_util import USMSharp

    plain, sharp = (realesrgan(photos, photos.parent / name, *more) for name, more in (('p', ()), ('s', ['--sharpen'])))
    assert {name for name in plain if plain[name] != sharp[name]} == {'gt/a.png', 'gt/c.png'}  # LQ is the same
    for name in 'ac':
        gt, found = (cv2.imread(str(photos.parent / part / 'gt' / f'{name}.png')) for part in 'ps')
        wanted = USMSharp()(torch.from_numpy(gt.transpose(2, 0, 1).astype(np.float32) / 255)[None])[0]
        error = found.astype(float) - wanted.numpy().transpose(1, 2, 0) * 255
        assert np.abs(error).max() < 0.51
        assert np.abs(found.astype(int) - gt).max() > 10


@pytest.mark.parametrize('links', [True, False])
def test_several_degradations_per_image(photos, monkeypatch, links):
    root = photos.parent
    if not links:
        if multiprocessing.get_start_method() != 'fork':
            pytest.skip('what is replaced here does not reach workers that are started afresh; see test_windows.py')

        def refused(*_names):
            raise OSError('this disk has no hard links')

        monkeypatch.setattr(os, 'link', refused)  # the workers are forked
    several = realesrgan(photos, root / 'several', '--per_image', 3)
    assert set(several) == {f'{part}/{n}_{k}.png' for part in ('gt', 'lq') for n in 'ac' for k in (1, 2, 3)}
    single = realesrgan(photos, root / 'single')
    for n in 'ac':
        files = [root / f'several/gt/{n}_{k}.png' for k in (1, 2, 3)]
        assert all(file.read_bytes() == single[f'gt/{n}.png'] for file in files)
        assert len({file.stat().st_ino for file in files}) == (1 if links else 3)
        assert len({several[f'lq/{n}_{k}.png'] for k in (1, 2, 3)}) == 3
        for k in (1, 2, 3):
            lq = cv2.imdecode(np.frombuffer(several[f'lq/{n}_{k}.png'], np.uint8), cv2.IMREAD_COLOR)
            assert 12 < psnr(lq, matlab_bicubic(cv2.imread(str(files[0])), 4)) < 40  # of the same scene
    # what one of them is depends on its name and the seed only
    save(root / 'alone' / 'a_2.png', photo())
    assert realesrgan(root / 'alone', root / 'second')['lq/a_2.png'] == several['lq/a_2.png']

    for lost in ('gt/a_1.png', 'lq/c_2.png', 'gt/c_3.png'):
        (root / 'several' / lost).unlink()
    assert realesrgan(photos, root / 'several', '--per_image', 3) == several
    with pytest.raises(UserError, match='was made with per_image 3, and now it is 2'):
        realesrgan(photos, root / 'several', '--per_image', 2)

    save(photos / 'c.png', photo(133, 121, 'coffee'))
    os.utime(photos / 'c.png', (time.time() + 9, time.time() + 9))
    changed = realesrgan(photos, root / 'several', '--per_image', 3)
    assert {name for name in several if several[name] != changed[name]} == {name for name in several if '/c_' in name}
    assert changed['gt/c_1.png'] == changed['gt/c_2.png'] == changed['gt/c_3.png']
    assert not list((root / 'several').rglob('.*.part'))


def test_realesrgan_degradation_is_basicsr_own():
    """The same seed gives the LQ image of BasicSR's training step, as it is but for CUDA and the pair pool."""
    import torch
    from basicsr.models.realesrgan_model import RealESRGANModel
    from basicsr.utils import DiffJPEG, USMSharp

    from sdakd.commands.prepare import synthesis as pairs

    settings = pairs.read_settings('realesrgan', 4, None, 0)
    degrader = pairs.Degrader(settings)

    class Plain(RealESRGANModel):
        def __init__(self):
            self.opt, self.is_train, self.device = {**settings, 'gt_size': 128}, True, 'cpu'
            self.usm_sharpener, jpeg = USMSharp(), DiffJPEG(differentiable=False)
            self.jpeger = lambda image, quality: jpeg(image, quality=quality).contiguous()

        def _dequeue_and_enqueue(self):
            pass

    plain = Plain()
    # 128 x 128, so that the crop at the end is the whole image
    gt = photo(128)
    for seed in range(4):
        lq = degrader.degrade(gt, seed)
        torch.manual_seed(seed)
        np.random.seed(seed)
        pairs.random.seed(seed)
        sample = degrader.kernels[0]
        image = torch.from_numpy(gt[..., ::-1] / 255).float().permute(2, 0, 1)
        plain.feed_data(
            {**{key: sample[key][None] for key in ('kernel1', 'kernel2', 'sinc_kernel')}, 'gt': image[None]}
        )
        expected = (plain.lq[0].permute(1, 2, 0).numpy()[..., ::-1] * 255).round()
        # blurring by rows and columns differs in the last bit, which noise and JPEG may round the other way
        assert psnr(lq, expected) > 45, seed


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_realesrgan_degrades_the_smallest_image(monkeypatch, scale):
    from sdakd.commands.prepare import synthesis as pairs

    settings = {
        **pairs.read_settings('realesrgan', scale, None, 0),
        'resize_prob': [0, 1, 0],
        'resize_prob2': [0, 1, 0],
    }
    degrader = pairs.Degrader(settings)
    monkeypatch.setattr(np.random, 'uniform', lambda low=0, high=1: low)  # the smallest of all resizes, and every blur
    side = -(-degrader.smallest() // scale) * scale
    assert degrader.degrade(photo(side, side), 0).shape == (side // scale, side // scale, 3)
    with pytest.raises(RuntimeError, match='[Pp]adding'):
        degrader.degrade(photo(side - scale, side - scale), 0)


def test_option_file_replaces_the_degradation(photos):
    root = photos.parent
    noisy = {'scale': 2, 'noise_range': [200, 200], 'gaussian_noise_prob': 1, 'gaussian_noise_prob2': 1.0}
    clean = {'noise_range': [0, 0], 'noise_range2': [0, 0], 'jpeg_range': [95, 95], 'jpeg_range2': [95, 95]}
    kernels = {'kernel_list': ['iso'], 'kernel_prob': [1.0], 'blur_sigma': [0.2, 0.3]}
    (root / 'noisy.yml').write_text(yaml.safe_dump(noisy))
    (root / 'clean.yml').write_text(yaml.safe_dump({**noisy, **clean, 'datasets': {'train': kernels}}))
    found = {}
    for kind in ('noisy', 'clean'):
        realesrgan(photos, root / kind, '-opt', root / f'{kind}.yml')
        gt, lq = (cv2.imread(str(root / kind / part / 'a.png')) for part in ('gt', 'lq'))
        assert gt.shape[0] == 2 * lq.shape[0]
        found[kind] = psnr(lq, matlab_bicubic(gt, 2))
    assert found['clean'] > found['noisy'] + 6
    record = json.loads((root / 'clean' / jobs.RECORD).read_text())
    assert record['kernel_list'] == ['iso'] and record['resize_range'] == [0.15, 1.5]  # the rest stays as published


def test_pairs_train_with_basicsr(photos):
    from basicsr.data.paired_image_dataset import PairedImageDataset
    from basicsr.data.realesrgan_dataset import RealESRGANDataset

    root = photos.parent
    run('pairs', '-i', photos, '-o', root / 'out', '--degradation', 'bicubic', '--scale', 2)
    for part in ('gt', 'lq'):
        run('lmdb', '-i', root / 'out' / part, '-o', root / f'{part}.lmdb')
    run('meta', '-i', root / 'out' / 'gt', '--lq', root / 'out' / 'lq', '-o', root / 'pairs.txt', '--check')
    run('meta', '-i', root / 'out' / 'gt', '-o', root / 'gt.txt')
    common = {'phase': 'val', 'scale': 2}
    folders = {'dataroot_gt': str(root / 'out' / 'gt'), 'dataroot_lq': str(root / 'out' / 'lq')}
    databases = {'dataroot_gt': str(root / 'gt.lmdb'), 'dataroot_lq': str(root / 'lq.lmdb')}
    sets = [
        PairedImageDataset({**common, **folders, 'io_backend': {'type': 'disk'}}),
        PairedImageDataset({**common, **databases, 'io_backend': {'type': 'lmdb'}}),
        PairedImageDataset({**common, **folders, 'meta_info_file': root / 'gt.txt', 'io_backend': {'type': 'disk'}}),
    ]
    try:
        from realesrgan.data.realesrgan_paired_dataset import RealESRGANPairedDataset
    except ImportError:
        pass
    else:
        listed = {**folders, 'meta_info': str(root / 'pairs.txt'), 'io_backend': {'type': 'disk'}}
        sets.append(RealESRGANPairedDataset({**common, **listed}))
    for dataset in sets:
        samples = sorted((dataset[k] for k in range(len(dataset))), key=lambda sample: sample['gt_path'])
        assert [tuple(sample['gt'].shape) for sample in samples] == [(3, 128, 160), (3, 120, 132)]
        assert [tuple(sample['lq'].shape) for sample in samples] == [(3, 64, 80), (3, 60, 66)]
        assert np.array_equal(samples[0]['gt'].permute(1, 2, 0).numpy()[..., ::-1] * 255, photo())

    from sdakd.commands.prepare import synthesis as pairs

    del dataset, sets  # LMDB opens a database once per process
    kernels = {**pairs.PUBLISHED, 'blur_kernel_size': 21, 'blur_kernel_size2': 21, 'use_hflip': True, 'use_rot': False}
    unpaired = RealESRGANDataset({**kernels, 'dataroot_gt': databases['dataroot_gt'], 'io_backend': {'type': 'lmdb'}})
    assert len(unpaired) == 2 and unpaired[1]['gt'].shape == (3, 400, 400)


# ---------------------------------------------- interrupted, repeated, unreadable -------------------------------------


def test_killed_run_goes_on(tmp_path):
    """SIGKILL midway, the same command again: bit by bit the folder of an uninterrupted run; a bad image gives 2."""
    source = tmp_path / 'in'
    for k in range(16):
        save(source / f'{k:02d}.png', np.roll(photo(160, 160), 8 * k, 1))
    (source / '07x.jpg').write_bytes(b'\xff\xd8\xff\xe0 no image')

    def command(out):
        words = ['pairs', '-i', source, '-o', tmp_path / out, '--degradation', 'realesrgan', '--workers', '2']
        return [str(word) for word in words]

    with pytest.raises(UserError):
        cli.main(['prepare', *command('whole')])
    whole = contents(tmp_path / 'whole')
    assert len(whole) == 1 + 2 * 16

    root = str(Path(cli.__file__).parents[1])  # off the path again, or its folder basicsr/ could hide BasicSR
    enter = (
        f'import sys; sys.path.append({root!r}); from sdakd import cli; sys.path.remove({root!r}); sys.exit(cli.main())'
    )
    start = [sys.executable, '-c', enter, 'prepare', *command('killed')]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, cwd=tmp_path)
    while process.poll() is None and not list((tmp_path / 'killed').glob('gt/*.png')):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)  # ends when the workers, which hold the pipe too, have followed
    after = contents(tmp_path / 'killed')
    finished = {name for name in after if not Path(name).name.startswith('.')}
    assert 1 <= len(finished) < 2 * 16
    assert all(after[name] == whole[name] for name in finished)
    times = {name: (tmp_path / 'killed' / name).stat().st_mtime_ns for name in finished if name.startswith('gt/')}

    again = subprocess.run(start, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2
    assert 'Traceback' not in again.stderr
    last = again.stderr.strip().splitlines()[-1]
    assert last.startswith('Error: 1 of 17 images') and '07x.jpg is damaged or no image' in last
    kept = len(times)
    assert f'pairs: {16 - kept} done, {kept} kept, 1 unreadable' in again.stdout
    assert contents(tmp_path / 'killed') == whole
    assert all((tmp_path / 'killed' / name).stat().st_mtime_ns == at for name, at in times.items())


@pytest.mark.parametrize('job', ['subimages --crop_size 96', 'multiscale', 'pairs --degradation bicubic'])
def test_second_run_makes_only_what_is_missing(cut_off, job, capsys):
    out = cut_off.parent / 'out'
    words = [*job.split(), '-i', cut_off, '-o', out]
    with pytest.raises(UserError, match='1 of 3 images in .* could not be used .b.jpg is damaged'):
        run(*words)
    assert '2 done, 0 kept, 1 unreadable' in capsys.readouterr().out
    before = contents(out)
    changed = {name: (out / name).stat().st_mtime_ns for name in before}
    lost = next(name for name in before if 'a' in Path(name).stem and name.endswith('.png'))
    (out / lost).unlink()
    save(cut_off / 'b.jpg', photo())
    assert run(*words) == 0
    assert '2 done, 1 kept, 0 unreadable' in capsys.readouterr().out
    after = contents(out)
    assert before.items() <= after.items() and len(after) > len(before)
    touched = {name for name in before if (out / name).stat().st_mtime_ns != changed[name]}
    assert lost in touched and not any(Path(name).name.startswith('c') for name in touched)

    save(cut_off / 'c.png', photo(133, 121, 'astronaut'))
    os.utime(cut_off / 'c.png', (time.time() + 9, time.time() + 9))
    assert run(*words) == 0
    assert '1 done, 2 kept' in capsys.readouterr().out
    assert contents(out) != after


def test_a_file_is_absent_or_complete(tmp_path, monkeypatch):
    from sdakd.files import images

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(images.os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.write_png(tmp_path / 'a.png', photo())
    assert names(tmp_path) == []  # nothing that BasicSR or the next run could take for an image


def test_jpeg_that_opencv_fills_with_grey_is_unreadable(cut_off, monkeypatch):
    from sdakd.files import images

    monkeypatch.setattr(images.cv2, 'imdecode', lambda data, flags: photo())  # OpenCV 4 returns a full image
    with pytest.raises(images.UnusableError, match='truncated'):
        images.read_image(cut_off / 'b.jpg')
    save(cut_off / 'b.jpg', photo())
    assert images.read_image(cut_off / 'b.jpg').shape == (128, 160, 3)


@pytest.mark.parametrize(
    'job', ['subimages --crop_size 150', 'pairs --degradation realesrgan --scale 12', 'pairs --degradation bicubic']
)
def test_image_too_small(photos, job, capsys):
    save(photos / 'tiny.png', photo(14, 14))
    with pytest.raises(UserError, match='tiny.png is smaller .(14x14|12x12).*; repair or remove'):
        run(*job.split(), '-i', photos, '-o', photos.parent / 'out')
    assert 'too small' in capsys.readouterr().out


# ---------------------------------------------- mistakes --------------------------------------------------------------


@pytest.mark.parametrize(
    'line, sentence',
    [
        ('subimages -i nowhere -o out', '-i: .*nowhere is no folder'),
        ('subimages -i in/a.png -o out', '-i: .*a.png is no folder'),
        ('subimages -i empty -o out', '-i: .*empty holds no file'),
        ('subimages -i texts -o out', r'-i: .*texts holds only files of other kinds \(.txt\)'),
        ('subimages -i in -o in', 'lies in the folder of the inputs'),
        ('pairs -i in -o in/out --degradation bicubic', 'lies in the folder of the inputs'),
        ('multiscale -i in -o texts', 'already exists and `sdakd prepare` did not make it'),
        ('multiscale -i in -o texts/a.txt', 'already exists and `sdakd prepare` did not make it'),
        ('multiscale -i twins -o out', 'a.(png|jpg) and a.(png|jpg) in .*twins would both become a'),
        ('subimages -i in -o out --crop_size 0', "--crop_size: write a whole number of at least 1, not '0'"),
        ('subimages -i in -o out --step x', "--step: write a whole number of at least 1, not 'x'"),
        ('pairs -i in -o out --degradation bicubic --scale 2.5', "--scale: .* not '2.5'"),
        ('pairs -i in -o out --degradation bicubic --scale -4', "--scale: .* not '-4'"),
        ('pairs -i in -o out --degradation bicubic --scale 1', '--scale: .*give 2 or more'),
        (
            'pairs -i in -o out --degradation bicubic --per_image 2',
            '--per_image: .*pairs of an image would be equal',
        ),
        ('pairs -i in -o out --degradation bicubic --sharpen', "--sharpen: .*Real-ESRGAN's targets"),
        ('pairs -i in -o out --degradation realesrgan --per-image 0', "--per_image: .* at least 1, not '0'"),
        ('pairs -i in -o out --degradation bicubic -opt ok.yml', '-opt: .*leave it out'),
        ('pairs -i in -o out --degradation realesrgan -opt gone.yml', '-opt: .*gone.yml cannot be read'),
        ('pairs -i in -o out --degradation realesrgan -opt bad.yml', 'bad.yml: broken YAML in line'),
        ('pairs -i in -o out --degradation realesrgan -opt texts/a.txt', 'texts/a.txt: this is no option file'),
        ('pairs -i in -o out --degradation realesrgan -opt none.yml', 'holds no Real-ESRGAN degradation'),
        ('pairs -i in -o out --degradation realesrgan -opt range.yml', 'noise_range in .* must be a range'),
        ('pairs -i in -o out --degradation realesrgan -opt shares.yml', 'kernel_prob in .* must have 6 shares'),
        ('pairs -i in -o out --degradation realesrgan -opt ok.yml --scale 4', 'ok.yml says 3 and the flag 4'),
        ('lmdb -i in -o db', 'must end in .lmdb'),
        ('lmdb -i in -o file.lmdb', 'already exists and is no database'),
        ('meta -i in -o in/meta.txt', 'lies in the folder of the inputs'),
        ('meta -i in -o meta', 'must end|ends in .txt'),
        ('meta -i in empty -o meta.txt', '-i: .*empty holds no file'),
        ('meta -i in --root texts -o meta.txt', '--root: .*texts does not hold every folder'),
        ('meta -i in --root in texts -o meta.txt', '--root: an option file has one dataroot_gt'),
        ('meta -i in twins --lq in -o meta.txt', '--lq: pairs have one folder each'),
        ('meta -i spaced -o meta.txt', 'would cut the line of a b.png at its space'),
        ('meta -i comma --lq comma -o meta.txt', 'would cut the line of'),
    ],
)
def test_a_mistake_is_one_sentence_and_creates_nothing(tmp_path, monkeypatch, line, sentence):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'in' / 'a.png', photo())
    save(tmp_path / 'twins' / 'a.png', photo())
    save(tmp_path / 'twins' / 'a.jpg', photo())
    save(tmp_path / 'spaced' / 'a b.png', photo())
    save(tmp_path / 'comma' / 'a, b.png', photo())
    for path, text in {
        'texts/a.txt': 'text',
        'file.lmdb': 'text',
        'ok.yml': 'scale: 3\nnoise_range: [1, 2]',
        'bad.yml': 'a: [1',
        'none.yml': 'scale: 3',
        'range.yml': 'noise_range: [30, 1]',
        'shares.yml': 'kernel_prob: [1.0]',
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / 'empty').mkdir()
    before = sorted(tmp_path.rglob('*')), contents(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        run(*line.split())
    assert '\n' not in str(caught.value) and str(caught.value).endswith('.')
    assert (sorted(tmp_path.rglob('*')), contents(tmp_path)) == before


def test_other_settings_do_not_mix(photos):
    out = photos.parent / 'out'
    run('subimages', '-i', photos, '-o', out, '--crop_size', 96)
    before = contents(out)
    with pytest.raises(UserError, match='was made with crop_size 96, and now it is 64'):
        run('subimages', '-i', photos, '-o', out, '--crop_size', 64)
    assert contents(out) == before
