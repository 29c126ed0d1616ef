"""What is wrong with the images of data sets: found in all of them before a run, told in a sentence for each fault."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset

from sdakd.compat import UserError, exit_with_sentence


def told(world, parse, options=None):
    """The sentences of a start, with their places; nothing is created."""
    file = world.write(options or world.options())
    with pytest.raises(UserError) as caught:
        parse(file, world.root / 'root')
    assert not (world.root / 'root').exists()
    return [str(each).removeprefix(f'{file}: ') for each in caught.value.mistakes]


def more(world, count):
    """Further pairs of 32 and 8 pixels; returns their names."""
    names = [f'x{number:03d}.png' for number in range(count)]
    for name in names:
        cv2.imwrite(str(world.root / 'HR' / name), np.zeros((32, 32, 3), np.uint8))
        cv2.imwrite(str(world.root / 'LRx4' / name), np.zeros((8, 8, 3), np.uint8))
    return names


def test_the_last_of_many_images_is_decoded(world, parse):
    """Its header is good, and its pixels are not."""
    name = more(world, 250)[-1]
    path = world.root / 'LRx4' / name
    content = bytearray(path.read_bytes())
    content[-30:-12] = bytes(18)  # of the pixels; the ends of the file stay
    path.write_bytes(content)
    for _ in range(2):  # and again from what is remembered
        sentences = told(world, parse)
        assert len(sentences) == 2 and all(f'{name} is damaged or no image; mend it' in text for text in sentences)


def test_many_bad_images_are_a_sentence_for_each_fault(world, parse, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    names = more(world, 30)
    options = world.options()
    del options['datasets']['val']
    for name in names[:20]:
        (world.root / 'HR' / name).write_bytes(b'no image')
    for name in names[20:22]:
        (world.root / 'LRx4' / name).write_bytes(b'')
    small = names[22:25]
    for name in small:
        cv2.imwrite(str(world.root / 'HR' / name), np.zeros((28, 28, 3), np.uint8))
        cv2.imwrite(str(world.root / 'LRx4' / name), np.zeros((7, 7, 3), np.uint8))
    cv2.imwrite(str(world.root / 'LRx4' / names[25]), np.zeros((9, 8, 3), np.uint8))
    sentences = told(world, parse, options)
    damaged, empty, crop, scale = sorted(
        sentences, key=lambda text: [word in text for word in ('at scale', 'crop of', 'empty')]
    )
    assert damaged.startswith('datasets:train: the image ') and all(len(text) < 500 for text in sentences)
    assert 'is damaged or no image; mend it or take it away; the same holds for x' in damaged and '17 more' in damaged
    assert 'is empty; mend it' in empty and empty.count('.png') == 2 and 'more' not in empty
    assert crop.startswith('datasets:train:gt_size: the crop of 32 does not fit into ') and crop.count('.png') == 3
    assert f'{names[25]} is 32x32 and its LQ image 8x9; at scale 4 that must be 8x8' in scale
    (listing,) = (tmp_path / 'cache/sdakd').glob('unusable-train-*.txt')
    assert f'17 more, listed in {listing}.' in damaged
    bad = {*(str(world.root / 'HR' / name) for name in [*names[:20], *small, names[25]])}
    bad |= {str(world.root / 'LRx4' / name) for name in names[20:22]}
    assert set(listing.read_text().splitlines()) == bad


def test_many_bad_images_where_no_list_can_be_written(world, parse, monkeypatch, tmp_path):
    (tmp_path / 'cache').write_text('no folder')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for name in more(world, 5):
        (world.root / 'HR' / name).write_bytes(b'')
    assert all(text.endswith(' and 2 more.') for text in told(world, parse))


def test_what_opencv_shows_wrong_is_refused(world, parse):
    """A TIFF whose colours OpenCV darkens by their alpha, one with floats, one with two pages, and an animation."""
    import tifffile
    from PIL import Image

    from sdakd.files.images import read_image

    names = more(world, 5)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    rgb = Image.fromarray(image[..., :3].copy())
    rgb.save(world.root / 'HR/x000.tif')  # as it should be
    tifffile.imwrite(world.root / 'HR/x001.tif', image, photometric='rgb', extrasamples=['unassalpha'])
    tifffile.imwrite(world.root / 'HR/x002.tif', image[..., :3] / np.float32(255), photometric='rgb')
    rgb.save(world.root / 'HR/x003.tif', save_all=True, append_images=[rgb])
    rgb.save(world.root / 'HR/x004.png', save_all=True, append_images=[rgb.rotate(90)])
    for name in names[:4]:
        (world.root / 'HR' / name).unlink()
        (world.root / 'LRx4' / name).rename(world.root / 'LRx4' / name.replace('png', 'tif'))
        cv2.imwrite(str(world.root / 'LRx4' / name.replace('png', 'tif')), np.zeros((8, 8, 3), np.uint8))
    options = world.options()
    del options['datasets']['val']
    sentences = told(world, parse, options)
    text = '\n'.join(sentences)
    assert len(sentences) == 4 and 'x000' not in text and 'mend it' not in text
    assert 'x001.tif is a TIFF of a kind that OpenCV, with which BasicSR reads, shows wrong; convert it to PNG.' in text
    assert (
        'x002.tif is a TIFF of a kind that OpenCV, with which BasicSR reads, does not know; convert it to PNG.' in text
    )
    assert 'x003.tif has 2 pages; give each page as a file of its own.' in text
    assert 'x004.png is animated, with 2 frames; give each frame as a file of its own.' in text
    assert (read_image(world.root / 'HR/x001.tif')[..., ::-1] == image[..., :3]).all()  # `sdakd prepare` reads it right


def test_a_turned_image_has_the_size_that_trainings_see(world, parse):
    """Its header says 64x32 and its EXIF tag that it is shown upright."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    name = more(world, 1)[0].replace('png', 'jpg')
    for folder, side in (('HR', 32), ('LRx4', 8)):
        (world.root / folder / name.replace('jpg', 'png')).unlink()
        Image.fromarray(np.zeros((side, 2 * side, 3), np.uint8)).save(world.root / folder / name, exif=exif)
    parse(world.write(world.options()), world.root / 'root')
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(world.root / 'LRx4' / name)  # not turned
    sentences = told(world, parse)
    assert f'{name} is 32x64 and its LQ image 16x8; at scale 4 that must be 8x16; one of them is turned' in sentences[0]


@pytest.mark.parametrize(
    ('kind', 'height', 'fits'),
    [
        ('PairedImageDataset', 128 + 11, True),  # cut to a multiple of 12, as usual for several scales
        ('PairedImageDataset', 128 + 24, False),
        ('PairedImageDataset', 127, False),
        ('RealESRGANPairedDataset', 128, True),
        ('RealESRGANPairedDataset', 129, False),
    ],
)
def test_pairs_of_validation(world, parse, kind, height, fits):
    """What the data set's own images are alike, or are not: the judge is BasicSR's data set."""
    options = world.options()
    shutil.copytree(world.root / 'HR', world.root / 'val')
    name = sorted(os.listdir(world.root / 'val'))[-1]
    cv2.imwrite(str(world.root / 'val' / name), np.zeros((height, 64, 3), np.uint8))
    options['datasets']['val'] |= {'type': kind, 'dataroot_gt': str(world.root / 'val')}
    data = build_dataset({**options['datasets']['val'], 'phase': 'val', 'scale': 4})
    item = next(item for item in data if item['gt_path'].endswith(name))
    alike = item['gt'].shape[1] == 4 * item['lq'].shape[1]
    assert alike or not fits
    if fits:
        parse(world.write(options), world.root / 'root')
    else:
        (sentence,) = told(world, parse, options)
        assert sentence.startswith('datasets:val: ') and f'{name} is 64x{height} and its LQ image 16x32' in sentence


def test_a_database_is_decoded_whole(world, parse):
    options = world.options()
    for folder in ('HR', 'LRx4'):
        names = sorted(os.listdir(world.root / folder))
        root = world.root / f'{folder}.lmdb'
        with lmdb.open(str(root), map_size=1 << 22) as db, db.begin(write=True) as content:
            for name in names:
                content.put(name[:-4].encode(), (world.root / folder / name).read_bytes())
        (root / 'meta_info.txt').write_text(''.join(f'{name} (128,64,3) 1\n' for name in names))
    roots = {'dataroot_gt': str(world.root / 'HR.lmdb'), 'dataroot_lq': str(world.root / 'LRx4.lmdb')}
    for data in options['datasets'].values():
        data.update(roots, io_backend={'type': 'lmdb'})
    parse(world.write(options), world.root / 'root')
    data = build_dataset({**options['datasets']['val'], 'phase': 'val', 'scale': 4})
    assert data[7]['lq'].shape == (3, 32, 16)
    code = (
        'import sys, lmdb\n'
        'with lmdb.open(sys.argv[1], map_size=1 << 22) as database, database.begin(write=True) as content:\n'
        "    content.put(sys.argv[2].encode(), b'no image')\n"
        '    content.delete(sys.argv[3].encode())\n'
    )  # in a process of its own: here the database is open for reading
    changes = (roots['dataroot_lq'], names[3][:-4], names[4][:-4])
    subprocess.run([sys.executable, '-c', code, *changes], check=True)
    sentences = told(world, parse, options)
    assert len(sentences) == 4  # two data sets of two faults
    assert any(f'the image {names[3][:-4]} is damaged or no image' in text for text in sentences)
    assert any(f'the image {names[4][:-4]} is not in the database' in text for text in sentences)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(roots['dataroot_gt'], 'data.mdb'))
    assert 'no LMDB data set, it has no data.mdb' in told(world, parse, options)[0]


def test_what_opencv_does_not_decode_is_told_with_its_remedy(world, parse, monkeypatch):
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '4000')
    first = told(world, parse)[0]
    assert 'has 64x128 pixels, more than the 4,000 that OpenCV decodes; cut it into smaller ones, or set' in first
    assert 'the same holds for' in first and 'listed in' in first


def test_an_interruption_is_a_sentence_and_the_next_start_goes_on(world, parse, monkeypatch, capsys):
    """Ctrl-C at the 200th of 316 images."""
    more(world, 150)
    decoded, decode = [], cv2.imdecode

    def interrupted(data, flag):
        decoded.append(1)
        if len(decoded) == 200:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(data, flag)

    monkeypatch.setattr(cv2, 'imdecode', interrupted)
    monkeypatch.setattr('sdakd_data.decoded.cores', lambda: 2)
    options = world.options()
    del options['datasets']['val']
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt, match='give the same command again') as caught:
            parse(world.write(options), world.root / 'root')
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(SystemExit) as left:
        exit_with_sentence(caught.type, caught.value, None)
    assert left.value.code == 130 and capsys.readouterr().err.startswith('\nInterrupted: give the same command again')
    begun = len(decoded)
    parse(world.write(options), world.root / 'root')
    assert 200 <= begun < 316 and len(decoded) < 316 + 150  # a few were on their way
