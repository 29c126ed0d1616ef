"""Pictures of any size: written while they are computed, in memory that does not grow with them; no limit in the way.

The judges of strips are the same picture made in one piece, ``cv2.resize`` of the whole, Pillow, OpenCV and tifffile.
"""

import io
import tracemalloc
import weakref

import cv2
import numpy as np
import pytest
import tifffile
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from PIL import Image

from sdakd import cli
from sdakd.commands.upscale.upscaler import Upscaler
from sdakd.compat import UnusableError, UserError
from sdakd.files import pictures
from sdakd.files.generators import open_network
from sdakd.files.images import read_image
from sdakd.files.limits import pixel_limit
from sdakd.files.pictures import Bands, bands_of, beside, check_format, resized, write_picture
from sdakd.files.testsets import open_sets
from sdakd_data.decoded import Decoder


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small network that does a lot to an image, so that seams show."""
    torch.manual_seed(3)
    net = SRVGGNetCompact(num_feat=8, num_conv=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    path = tmp_path_factory.mktemp('model') / 'tiny.pth'
    torch.save({'params': net.state_dict()}, path)
    return path


@pytest.fixture(scope='module')
def images(photographs):
    """By kind, as files are read: 61 x 44 pixels."""
    colour = np.ascontiguousarray(photographs['coffee'][:61, :44, ::-1])
    alpha = np.linspace(0, 255, 44).astype(np.uint8)[None].repeat(61, 0)
    eight = {'L': colour[..., 1].copy(), 'RGB': colour, 'RGBA': np.dstack([colour, alpha])}
    return eight | {f'{kind} 16': image.astype(np.uint16) * 256 + 77 for kind, image in eight.items()}


KINDS = ['L', 'RGB', 'RGBA', 'L 16', 'RGB 16', 'RGBA 16']


@pytest.fixture
def small_parts(monkeypatch):
    """Files and resized pictures are made in parts of a few rows."""
    monkeypatch.setattr(pictures, 'BAND', 10_000)


# ------------------------------------------------- strips ------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_rows_of_tiles_are_the_picture(model, images, kind):
    """The tiles overlap by more than the network's reach, so it does not matter where they begin."""
    upscaler = Upscaler(open_network(model), tile=16)
    made = upscaler.bands(images[kind])
    parts = list(made.rows)
    assert [len(part) for part in parts] == [64, 64, 64, 52]
    whole = Upscaler(open_network(model), tile=0).enhance(images[kind])[0]
    assert made.shape == whole.shape and made.dtype == whole.dtype
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1
    assert (np.concatenate(parts) == upscaler.enhance(images[kind])[0]).all()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_a_file_in_parts_holds_the_picture(tmp_path, model, images, small_parts, kind, ending):
    made = Upscaler(open_network(model), tile=16).bands(images[kind])
    whole = Upscaler(open_network(model), tile=16).enhance(images[kind])[0]
    path = tmp_path / f'a.{ending}'
    write_picture(path, made)
    rgb = whole if whole.ndim == 2 else whole[..., [2, 1, 0, 3][: whole.shape[2]]]
    if ending == 'tif':
        assert (tifffile.imread(path) == rgb).all()
    else:
        assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == whole).all()
    if '16' not in kind:
        assert (np.asarray(Image.open(path)) == rgb).all()


def test_strips_of_an_image_of_which_a_tile_did_not_fit(model, images):
    """The second row of tiles runs out of memory: what is made stays, and the rest is made of smaller ones."""
    opened = open_network(model)
    whole = Upscaler(opened).enhance(images['RGBA'])[0]

    class Failing(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, -99

        def forward(self, image):
            self.calls += 1
            if self.calls == 6:  # two each for the first rows of colours and of alpha
                raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')
            return self.module(image)

    opened.module = Failing(opened.module)
    upscaler = Upscaler(opened)
    opened.module.calls = 0
    upscaler.fitting_tile = lambda height, width: 34
    parts = list(upscaler.bands(images['RGBA']).rows)
    assert [len(part) // 4 for part in parts] == [34, 17, 10]
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1


@pytest.mark.parametrize('interpolation', [cv2.INTER_LANCZOS4, cv2.INTER_CUBIC])
@pytest.mark.parametrize(
    ('size', 'parts'),
    [
        ((120, 88), True),
        ((60, 44), True),
        ((360, 264), False),
        ((480, 352), True),
        ((80, 66), False),
        ((90, 67), False),
    ],
)
def test_resizing_in_parts_is_resizing(small_parts, photographs, interpolation, size, parts):
    image = cv2.resize(photographs['rocket'], (176, 240))
    for whole in (image, image[..., 0].copy(), image.astype(np.uint16) * 257):
        made = resized(
            Bands(whole.shape, whole.dtype, iter([whole[:13], whole[13:14], whole[14:]])), size, interpolation
        )
        rows = list(made.rows)
        assert (len(rows) > 3) == parts
        assert (np.concatenate(rows) == cv2.resize(whole, size[::-1], interpolation=interpolation)).all()
        assert made.shape == (*size, *whole.shape[2:])


def test_alpha_beside_colours_of_other_heights():
    colours, alpha = np.random.default_rng(0).integers(0, 256, (20, 7, 4), dtype=np.uint8)[..., :3], np.eye(20, 7)
    alpha = alpha.astype(np.uint8)
    made = beside(Bands(colours.shape, colours.dtype, iter([colours[:9], colours[9:]])), bands_of(alpha))
    assert (made.whole() == np.dstack([colours, alpha])).all()
    parts = Bands(alpha.shape, alpha.dtype, iter([alpha[:1], alpha[1:15], alpha[15:]]))
    assert (beside(bands_of(colours), parts).whole() == np.dstack([colours, alpha])).all()


# ------------------------------------------------- memory ------------------------------------------------------------


@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    """144 MB of pixels in parts of 1.2 MB, by what numpy and zlib ask for."""
    part = np.arange(50 * 8000 * 3, dtype=np.uint32).astype(np.uint8).reshape(50, 8000, 3)
    tracemalloc.start()
    try:
        write_picture(tmp_path / f'a.{ending}', Bands((6000, 8000, 3), part.dtype, (part for _ in range(120))))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20  # some copies of a part of 4 MiB
    with Image.open(tmp_path / f'a.{ending}') as image:
        assert image.size == (8000, 6000)
        assert (np.asarray(image.crop((0, 3000, 8000, 3050))) == part[..., ::-1]).all()


@pytest.mark.parametrize('count', [4, 10, 25])
def test_a_part_is_let_go_before_the_next_is_made(count):
    """Rows of tiles are large: none is alive while the next is computed, however they are cut."""

    class Watched(np.ndarray):
        """An array to which there are weak references; parts of it keep it alive."""

    alive, together = weakref.WeakValueDictionary(), []

    def rows():
        for number in range(6):
            together.append(len(alive))
            part = Watched((10, 4, 3), np.uint8)
            part[:], alive[number] = number, part
            yield part.view(np.ndarray)
            del part

    for part in Bands((60, 4, 3), np.dtype(np.uint8), rows()).in_rows(count):
        assert len(part) in (count, 60 % count)
    assert together == [0] * 6


# ------------------------------------------------- limits ------------------------------------------------------------


@pytest.mark.parametrize(
    ('shape', 'ending', 'words'),
    [
        (
            (100, 65_501, 3),
            '.jpg',
            '65501x100 pixels, more than the 65500 on a side that JPEG files hold; give --ext png',
        ),
        ((16_384, 10, 4), '.webp', '10x16384 pixels, more than the 16383 on a side that WEBP files hold'),
        ((40_000, 36_000, 3), '.bmp', 'more than the 4 GiB that BMP files hold'),
    ],
)
def test_what_a_format_does_not_hold_is_told_before(shape, ending, words):
    with pytest.raises(UnusableError) as error:
        check_format(shape, ending)
    assert words in error.value.reason
    check_format((*(side // 2 for side in shape[:2]), *shape[2:]), ending)
    check_format(shape, '.png')
    check_format(shape, '.tif')


def test_limits_are_libjpegs_and_libwebps():
    for form, most in pictures.SIDES.items():
        Image.new('L', (most, 1)).save(io.BytesIO(), form)
        with pytest.raises((OSError, ValueError)):
            Image.new('L', (most + 1, 1)).save(io.BytesIO(), form)


def test_a_result_that_its_format_does_not_hold(tmp_path, model):
    """It is refused before anything is computed, and the others go on."""
    (tmp_path / 'in').mkdir()
    Image.new('RGB', (16_376, 1)).save(tmp_path / 'in/wide.jpg')
    Image.new('RGB', (16, 8)).save(tmp_path / 'in/small.jpg')
    words = ['upscale', '-i', str(tmp_path / 'in'), '-o', str(tmp_path / 'out'), '-m', str(model)]
    with pytest.raises(UserError, match='wide.jpg would become 65504x4 pixels, more than the 65500 on a side'):
        cli.main(words)
    assert sorted(path.name for path in (tmp_path / 'out').glob('[!.]*')) == ['small_out.jpg']
    words[2] += '/wide.jpg'
    with pytest.raises(UserError, match='give --ext png'):
        cli.main(words)
    assert cli.main([*words, '--ext', 'png']) == 0
    with Image.open(tmp_path / 'out/wide_out.png') as image:
        assert image.size == (65_504, 4)


def test_a_bigtiff_where_4_gib_do_not_suffice(tmp_path, monkeypatch):
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    write_picture(tmp_path / 'a.tif', bands_of(image))
    monkeypatch.setattr(pictures, 'TIFF_BYTES', 299)
    write_picture(tmp_path / 'b.tif', bands_of(image))
    for name, big in (('a.tif', False), ('b.tif', True)):
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.is_bigtiff == big
            assert (file.asarray() == image[..., ::-1]).all()


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, model, monkeypatch, images):
    """Half of the file is written when the network fails; what was there before is there still."""
    cv2.imwrite(str(tmp_path / 'a.png'), images['RGB'])
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/a_out.png').write_bytes(b'of before')
    enlarged, calls = Upscaler._in_tiles, []

    def failing(self, *arguments):
        for rows in enlarged(self, *arguments):
            calls.append(sorted(path.name for path in (tmp_path / 'out').iterdir()))
            if len(calls) == 3:
                raise RuntimeError('the network is tired')
            yield rows

    monkeypatch.setattr(Upscaler, '_in_tiles', failing)
    words = ['upscale', '-i', str(tmp_path / 'a.png'), '-o', str(tmp_path / 'out'), '-m', str(model), '-t', '16']
    with pytest.raises(UserError, match='the network is tired'):
        cli.main(words)
    assert '.a_out.png.part' in calls[-1]
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a_out.png']
    assert (tmp_path / 'out/a_out.png').read_bytes() == b'of before'


# --------------------------------------------- large files in ---------------------------------------------------------


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """180 megapixels, where Pillow refuses to open files, in a few kB: one bit each, all white."""
    side = 13_417
    path = tmp_path_factory.mktemp('large') / 'a.png'
    Image.fromarray(np.ones((side, side), bool)).save(path)
    assert side**2 > 2 * 89_478_485 and path.stat().st_size < 100_000
    return path


def test_large_files_are_read_by_every_command(large):
    side = 13_417
    image = read_image(large)  # prepare
    assert image.shape == (side, side, 3) and image[::997, ::991].min() == 255
    del image
    found = Decoder({'type': 'disk'}, {'gt': str(large.parent)}, 'datasets:train').decode('gt', str(large))
    assert found[0] == (side, side, 3)  # train
    (testset,) = open_sets([f':{large.parent}'], 4)  # evaluate
    assert testset.size('a') == (side * 4, side * 4)
    picture = pictures.read(large)  # upscale
    assert picture.pixels.shape == (side, side) and picture.pixels[::997, ::991].min() == 255
    assert pictures.ending_of(large, 'jpg') == '.jpg'


def test_wider_than_opencv_reads(tmp_path):
    """OpenCV's limits are no limits here; a training, which depends on it, says so before it starts."""
    row = np.arange(1_048_577).astype(np.uint8)[None]
    Image.fromarray(row).save(tmp_path / 'a.png')
    assert (pictures.read(tmp_path / 'a.png').pixels == row).all()
    assert (read_image(tmp_path / 'a.png')[..., 1] == row).all()
    found, _ = Decoder({'type': 'disk'}, {'gt': str(tmp_path)}, 'datasets:train').decode('gt', str(tmp_path / 'a.png'))
    assert found == 'has 1048577x1 pixels, more than the 1,048,576 in width that OpenCV decodes'
    with pixel_limit(1_048_576), pytest.raises(UnusableError, match='give --max-pixels 1048577'):
        pictures.read(tmp_path / 'a.png')
