"""`sdakd upscale`, against the network called directly, RealESRGANer, Pillow, and the untiled result."""

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from PIL import Image, ImageCms, ImageOps
from realesrgan import RealESRGANer

from sdakd import cli
from sdakd.commands import upscale
from sdakd.commands.export import to_onnx
from sdakd.commands.upscale.record import NAME as RECORD
from sdakd.commands.upscale.upscaler import Upscaler
from sdakd.compat import UserError
from sdakd.files import pictures
from sdakd.files.generators import Opened, open_network
from sdakd.files.images import UnusableError
from sdakd.files.named import PRETRAINED, zoo

STUDENT = PRETRAINED / 'demo_student_x4.pth'


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """A small network that does a lot to an image, so that seams and borders show."""
    torch.manual_seed(3)
    net = SRVGGNetCompact(num_feat=8, num_conv=4)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    path = tmp_path_factory.mktemp('model') / 'net_g_latest.pth'
    torch.save({'params': net.state_dict()}, path)
    return path


@pytest.fixture(scope='module')
def picture(photographs):
    """BGR, 45 x 38 pixels."""
    return np.ascontiguousarray(photographs['astronaut'][40:85, 30:68, ::-1])


def direct(model, image):
    """The network called on a BGR or grey image: BGR, float, in units of the input's range, not rounded."""
    top = np.iinfo(image.dtype).max
    image = np.dstack([image] * 3) if image.ndim == 2 else image[..., ::-1]
    tensor = torch.from_numpy(image.astype(np.float32) / top).permute(2, 0, 1)[None]
    with torch.no_grad():
        output = open_network(model).module(tensor)
    return output[0].permute(1, 2, 0).clamp(0, 1).numpy()[..., ::-1] * top


def deep(image, seed=0):
    """The same picture with 16 bits, all of them used."""
    noise = np.random.default_rng(seed).integers(0, 257, image.shape)
    return (image.astype(np.int64) * 256 + np.minimum(noise, 255)).astype(np.uint16)


def apart(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return np.abs(a.astype(int) - b.astype(int)).max()


def is_rounded(result, exact):
    """Whether these levels are the nearest to exact ones, but for the rounding of float32, which convolutions of other
    sizes do in another order: a value that ends in .5 may then go either way."""
    assert result.shape == exact.shape and result.dtype == np.uint8
    return np.abs(result - exact).max() <= 0.5 + 1e-3


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def load(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def run(*words):
    return cli.main(['upscale', *(str(word) for word in words)])


def command(*words, cwd=None):
    words = [sys.executable, '-m', 'sdakd.cli', 'upscale', *(str(word) for word in words)]
    environment = {'PYTHONPATH': str(Path(cli.__file__).parents[1]), 'PATH': '', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)


def files(folder):
    """What is in a folder, without the record of what was made."""
    found = (path for path in Path(folder).rglob('*') if path.is_file() and path.name != RECORD)
    return sorted(path.relative_to(folder).as_posix() for path in found)


# ------------------------------------------------ the picture ---------------------------------------------------------


def test_result_is_the_networks(tmp_path, model, picture, capsys):
    source = save(tmp_path / 'a.png', picture)
    assert run('-i', source, '-o', tmp_path / 'out', '-m', model) == 0
    result = load(tmp_path / 'out/a_out.png')
    assert apart(result, direct(model, picture).round().astype(np.uint8)) == 0
    assert result.std() > 10
    assert 'upscale: a_out.png in' in capsys.readouterr().out


def test_without_a_model_the_shipped_student_enlarges(tmp_path, picture):
    run('-i', save(tmp_path / 'a.png', picture), '-o', tmp_path / 'out')
    default = PRETRAINED / f'{zoo().default}.safetensors'
    assert is_rounded(load(tmp_path / 'out/a_out.png'), direct(default, picture))
    for flag in ('-n', '--model_name', '-m'):
        run('-i', tmp_path / 'a.png', '-o', tmp_path / 'named', flag, 'demo_student_x4', '--overwrite')
        assert is_rounded(load(tmp_path / 'named/a_out.png'), direct(STUDENT, picture))
        (tmp_path / 'named/a_out.png').unlink()


@pytest.mark.parametrize('outscale', [None, 2.5])
@pytest.mark.parametrize('kind', ['RGB', 'L', 'RGBA', 'RGB 16', 'L 16', 'RGBA 16'])
def test_enhance_is_realesrganers(model, picture, kind, outscale):
    alpha = np.linspace(0, 255, picture.shape[1]).astype(np.uint8)[None].repeat(picture.shape[0], 0)
    image = {'RGB': picture, 'L': picture[..., 1].copy(), 'RGBA': np.dstack([picture, alpha])}[kind.split()[0]]
    image = deep(image) if '16' in kind else image
    module = open_network(model).module
    theirs = RealESRGANer(4, str(model), model=module, pre_pad=3, device=torch.device('cpu'))
    result, mode = Upscaler(open_network(model), pre_pad=3).enhance(image, outscale)
    expected, expected_mode = theirs.enhance(image, outscale)
    assert mode == expected_mode == kind.split()[0]
    assert apart(result, expected) <= 1


def test_half_precision_is_realesrganers(model, picture):
    theirs = RealESRGANer(
        4, str(model), model=open_network(model).module, pre_pad=0, half=True, device=torch.device('cpu')
    )
    assert apart(Upscaler(open_network(model), half=True).enhance(picture)[0], theirs.enhance(picture)[0]) <= 1


def test_bicubic_alpha_is_opencvs(model, picture):
    alpha = np.linspace(0, 255, picture.shape[1]).astype(np.uint8)[None].repeat(picture.shape[0], 0)
    result = Upscaler(open_network(model)).enhance(np.dstack([picture, alpha]), alpha_upsampler='bicubic')[0]
    assert (result[..., 3] == cv2.resize(alpha, (152, 180), interpolation=cv2.INTER_CUBIC)).all()


def test_nothing_of_realesrgan_and_its_faces_is_needed(tmp_path, model, picture):
    """As in an environment without the packages and what they bring."""
    source = save(tmp_path / 'a.png', picture)
    hidden = ('realesrgan', 'gfpgan', 'facexlib', 'numba', 'llvmlite', 'filterpy')
    code = (
        f'import sys; sys.modules.update(dict.fromkeys({hidden}))\nfrom sdakd import cli\n'
        f'sys.exit(cli.main(["upscale", "-i", {str(source)!r}, "-o", {str(tmp_path / "out")!r}, "-m", {str(model)!r}]))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=Path(cli.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert apart(load(tmp_path / 'out/a_out.png'), direct(model, picture).round().astype(np.uint8)) == 0


def test_x2_is_realesrganers_and_odd_sizes_and_tiles_are_no_obstacle(tmp_path, picture):
    net = RRDBNet(3, 3, scale=2, num_feat=8, num_block=1, num_grow_ch=4).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'x2.pth')
    theirs = RealESRGANer(2, str(tmp_path / 'x2.pth'), model=net, pre_pad=0, device=torch.device('cpu'))
    even = np.ascontiguousarray(picture[:36, :32])
    opened = open_network(tmp_path / 'x2.pth')
    assert apart(Upscaler(opened).enhance(even)[0], theirs.enhance(even)[0]) == 0
    whole = Upscaler(opened, tile=0).enhance(picture)[0]
    assert whole.shape == (90, 76, 3)
    assert apart(Upscaler(opened, tile=15, tile_pad=37).enhance(picture)[0], whole) <= 1
    assert Upscaler(opened).enhance(picture[:1, :3])[0].shape == (2, 6, 3)


@pytest.mark.parametrize('ending', ['.pth', '.onnx'])
@pytest.mark.parametrize(
    ('kind', 'scale', 'multiple'),
    [('srvgg', 1, 1), ('srvgg', 2, 1), ('srvgg', 3, 1), ('srvgg', 4, 1), ('rrdb', 4, 1), ('rrdb', 2, 2), ('rrdb', 1, 4),
     ('esrgan', 1, 1), ('esrgan', 2, 1)],
)  # fmt: skip
def test_nothing_is_padded_but_what_the_architecture_needs(tmp_path, photographs, kind, scale, multiple, ending):
    from sdakd_arch.esrgan_arch import ESRGAN

    torch.manual_seed(8)
    net = {
        'srvgg': lambda: SRVGGNetCompact(num_feat=8, num_conv=2, upscale=scale),
        'rrdb': lambda: RRDBNet(3, 3, scale=scale, num_feat=8, num_block=1, num_grow_ch=4),
        'esrgan': lambda: ESRGAN(3, 3, upscale=scale, num_feat=8, num_block=1, num_grow_ch=4),
    }[kind]()
    net = net.eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter += 0.08 * torch.randn_like(parameter)
    path = tmp_path / 'net.pth'
    torch.save({'params': net.state_dict()}, path)
    if ending == '.onnx':
        to_onnx(open_network(path), path := tmp_path / 'net.onnx')
    image = np.ascontiguousarray(photographs['chelsea'][:37, :53, ::-1])
    lq = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)[None].float() / 255
    # an image of odd sides, continued as in a mirror up to the next multiple
    lq = torch.nn.functional.pad(lq, (0, -53 % multiple, 0, -37 % multiple), 'reflect')
    wanted = net(lq)[0, :, : 37 * scale, : 53 * scale].clamp(0, 1).mul(255)
    found, _ = Upscaler(open_network(path)).enhance(image)
    assert found.shape == (37 * scale, 53 * scale, 3)
    assert wanted.std() > 5
    assert is_rounded(found[..., ::-1], wanted.permute(1, 2, 0).numpy())


def test_16_bits_are_more_than_8(tmp_path, model, picture):
    image = deep(picture)
    run('-i', save(tmp_path / 'a.png', image), '-o', tmp_path / 'out', '-m', model)
    result, exact = load(tmp_path / 'out/a_out.png'), direct(model, image)
    assert result.dtype == np.uint16
    assert np.abs(result - exact).max() <= 1  # and 257 where only eight bits survived
    assert np.abs((exact / 257).round() * 257 - exact).max() > 100


def test_a_dark_16_bit_image_stays_one(tmp_path, model, picture):
    dark = picture.astype(np.uint16)  # a brightest value below 256
    run('-i', save(tmp_path / 'a.png', dark), '-o', tmp_path / 'out', '-m', model)
    assert np.abs(load(tmp_path / 'out/a_out.png') - direct(model, dark)).max() <= 1


def test_threads_are_chosen_where_there_is_enough_work(tmp_path, model, picture, monkeypatch, capfd):
    """By a measurement, unless the user says how many; the first image tells how much work there is."""
    before = torch.get_num_threads()
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    save(tmp_path / 'in.png', picture)
    words = ['-i', tmp_path / 'in.png', '-o', tmp_path / 'out', '-m', model]
    try:
        torch.set_num_threads(2)
        assert run(*words, '--suffix', 'plain') == 0 and torch.get_num_threads() == 2
        assert ' threads: ' not in capfd.readouterr().err  # a second is more than all of this takes
        monkeypatch.setattr('sdakd.commands.upscale.upscaler.WORTH', 0)
        assert run(*words, '--suffix', 'chosen') == 0
        line = f'{torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}: '
        assert line in capfd.readouterr().err
        torch.set_num_threads(2)
        assert run(*words, '--suffix', 'told', '--threads', 1) == 0 and torch.get_num_threads() == 1
        assert ' for ' not in capfd.readouterr().err
    finally:
        torch.set_num_threads(before)
    made = [load(tmp_path / 'out' / f'in_{suffix}.png').astype(int) for suffix in ('plain', 'chosen', 'told')]
    assert all(abs(each - made[0]).max() <= 1 for each in made)  # sums of another number of threads


def test_grey_stays_grey(tmp_path, model, picture):
    run('-i', save(tmp_path / 'a.png', picture[..., 1]), '-o', tmp_path / 'out', '-m', model)
    expected = direct(model, picture[..., 1].copy()) @ np.array([0.114, 0.587, 0.299])
    result = load(tmp_path / 'out/a_out.png')
    assert result.ndim == 2
    assert np.abs(result - expected).max() <= 0.51


def test_alpha(tmp_path, model, picture):
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[10:30, 5:25] = 255
    save(tmp_path / 'in/soft.png', np.dstack([picture, alpha]))
    save(tmp_path / 'in/even.png', np.dstack([picture, np.full_like(alpha, 200)]))
    flags = ['-i', tmp_path / 'in', '-m', STUDENT]
    run(*flags, '-o', tmp_path / 'net')
    run(*flags, '-o', tmp_path / 'bicubic', '--alpha_upsampler', 'bicubic')
    for folder in ('net', 'bicubic'):
        assert (load(tmp_path / folder / 'even_out.png')[..., 3] == 200).all()
        result = load(tmp_path / folder / 'soft_out.png')
        resized = cv2.resize(alpha, (152, 180), interpolation=cv2.INTER_CUBIC)
        # the network sharpens the edge, and agrees everywhere else
        assert np.abs(result[..., 3].astype(int) - resized).mean() < (0.001 if folder == 'bicubic' else 6)
        # colours that are not seen come from the nearest one that is, here from the border of a rectangle
        rows, columns = np.clip(np.arange(45), 10, 29), np.clip(np.arange(38), 5, 24)
        assert is_rounded(result[..., :3], direct(STUDENT, picture[rows][:, columns]))


@pytest.fixture(scope='module')
def discs():
    """A disc of one colour with a soft edge, BGRA; what is under its transparent pixels differs."""
    y, x = np.mgrid[:64, :64] - 31.5
    alpha = np.clip((22.3 - np.hypot(x, y)) * 255, 0, 255).round().astype(np.uint8)
    found = {}
    for name, hidden in (('black', 0), ('white', 255), ('same', (40, 60, 230))):
        colours = np.empty((64, 64, 3), np.uint8)
        colours[:] = (40, 60, 230)
        colours[alpha == 0] = hidden
        found[name] = np.dstack([colours, alpha])
    return found


@pytest.mark.parametrize('kind', ['8', '16'])
@pytest.mark.parametrize('flags', [[], ['--alpha_upsampler', 'bicubic'], ['-s', '2.5'], ['--ext', 'webp']])
def test_what_transparent_pixels_hide_is_not_seen(tmp_path, discs, flags, kind):
    """Composites on any background agree, also with those of a picture that hides nothing of another colour."""
    for name, image in discs.items():
        save(tmp_path / f'in/{name}.png', image if kind == '8' else image.astype(np.uint16) * 257)
    run('-i', tmp_path / 'in', '-o', tmp_path / 'out', *flags)
    ending = 'webp' if 'webp' in flags else 'png'
    results = {name: load(tmp_path / f'out/{name}_out.{ending}') for name in discs}
    if kind == '16' and ending == 'png':
        assert all(image.dtype == np.uint16 for image in results.values())
        results = {name: (image / 257).round().astype(np.uint8) for name, image in results.items()}
    for background in (0, 128, 255):
        shown = {}
        for name, image in results.items():
            share = image[..., 3:] / 255
            shown[name] = image[..., :3] * share + background * (1 - share)
        for name in ('black', 'white'):
            assert np.abs(shown[name] - shown['same']).max() <= 6, (name, background)
    edge = (results['same'][..., 3] > 50) & (results['same'][..., 3] < 200)
    assert edge.sum() > 100


def test_opaque_and_invisible_pictures_stay_as_they_are(tmp_path, model, picture):
    for level in (0, 255):
        image = np.dstack([picture, np.full(picture.shape[:2], level, np.uint8)])
        assert pictures.filled(image) is image
        run('-i', save(tmp_path / f'{level}.png', image), '-o', tmp_path / 'out', '-m', model)
        result = load(tmp_path / f'out/{level}_out.png')
        assert apart(result[..., :3].copy(), direct(model, picture).round().astype(np.uint8)) == 0
        assert (result[..., 3] == level).all()
    assert pictures.filled(picture) is picture


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_hidden_pixels_get_the_colour_of_the_nearest_one(dtype):
    """Of seen pixels that all differ in colour, by scipy's exact distances."""
    from scipy.ndimage import distance_transform_edt

    y, x = np.mgrid[:40, :50]
    seen = np.random.default_rng(0).random((40, 50)) < 0.02
    image = np.dstack([y, x, y + x, seen * np.iinfo(dtype).max]).astype(dtype)
    before = image.copy()
    result = pictures.filled(image)
    assert (image == before).all() and (result[seen] == before[seen]).all() and (result[..., 3] == before[..., 3]).all()
    assert seen[result[..., 0], result[..., 1]].all()  # a pixel's colour says where it comes from
    away = np.hypot(result[..., 0].astype(int) - y, result[..., 1].astype(int) - x)
    assert (away <= 1.05 * distance_transform_edt(~seen) + 1e-9).all()  # OpenCV's distances are off by up to 5 %


@pytest.mark.parametrize(
    ('outscale', 'size'), [('1', (45, 38)), ('2.5', (112, 95)), ('4', (180, 152)), ('6', (270, 228))]
)
def test_outscale(tmp_path, model, picture, outscale, size):
    run('-i', save(tmp_path / 'a.png', picture), '-o', tmp_path / 'out', '-m', model, '-s', outscale)
    result = load(tmp_path / 'out/a_out.png')
    assert result.shape[:2] == size
    whole = direct(model, picture).round().astype(np.uint8)
    expected = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_LANCZOS4) if outscale != '4' else whole
    assert apart(result, expected) == 0


# ------------------------------------------------ tiles ---------------------------------------------------------------


@pytest.mark.parametrize('tile', [16, 23])
@pytest.mark.parametrize('which', ['small', 'student'])
def test_tiles_leave_no_seam(model, photographs, which, tile):
    opened = open_network(model if which == 'small' else STUDENT)
    image = np.ascontiguousarray(photographs['coffee'][:70, :59, ::-1])
    whole = Upscaler(opened, tile=0).enhance(image)[0]
    assert apart(Upscaler(opened, tile=tile).enhance(image)[0], whole) <= 1
    if which == 'small':
        assert apart(Upscaler(opened, tile=tile, tile_pad=1).enhance(image)[0], whole) > 1  # seams would be seen here


def test_tile_flags(tmp_path, model, picture):
    source = save(tmp_path / 'a.png', deep(np.dstack([picture, picture[..., 0]])))
    results = []
    for number, flags in enumerate((['-t', '0'], ['-t', '16', '--tile_pad', '6'], ['-t', '16', '--tile_pad', '0'])):
        run('-i', source, '-o', tmp_path / str(number), '-m', model, *flags)
        results.append(load(tmp_path / str(number) / 'a_out.png'))
    assert apart(results[0], results[1]) <= 1
    assert apart(results[0], results[2]) > 257


def test_a_large_image_is_tiled_by_itself():
    upscaler = Upscaler(open_network(STUDENT))
    assert upscaler.fitting_tile(500, 500) == 0
    tile = upscaler.fitting_tile(6000, 4000)
    side = tile + 2 * upscaler.tile_pad
    assert 256 < tile < 4000
    assert 4 * upscaler.widest * side * side * 4 <= 2 << 30
    unknown = Opened('x', Path('x.onnx'), torch.nn.Identity(), 4, None)
    assert 0 < Upscaler(unknown).fitting_tile(3000, 4000) < tile


class Limited(torch.nn.Module):
    """Runs out of memory above a number of pixels, as torch says it."""

    def __init__(self, module, limit):
        super().__init__()
        self.module, self.limit, self.calls = module, limit, 0

    def forward(self, image):
        if image.shape[-1] * image.shape[-2] > self.limit:
            raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB.')
        self.calls += 1
        return self.module(image)


def test_out_of_memory(model, photographs):
    image = np.ascontiguousarray(photographs['rocket'][:, :, ::-1])
    opened = open_network(model)
    whole = Upscaler(opened).enhance(image)[0]
    opened.module = Limited(opened.module, 90 * 90)
    assert apart(Upscaler(opened).enhance(image)[0], whole) <= 1
    assert opened.module.calls == 4
    with pytest.raises(UnusableError, match='more memory in tiles of 100 than there is'):
        Upscaler(opened, tile=100).enhance(image)
    opened.module.limit = 10
    with pytest.raises(UnusableError, match='more memory'):
        Upscaler(opened).enhance(image)


def test_half_precision(picture):
    full = Upscaler(open_network(STUDENT)).enhance(picture)[0]
    half = Upscaler(open_network(STUDENT), half=True)
    assert next(half.model.parameters()).dtype == torch.float16
    assert 1 <= apart(half.enhance(picture)[0], full) <= 3


def test_values_that_are_no_numbers(model, picture):
    opened = open_network(model)
    opened.module.body[0].weight.mul_(float('inf'))
    with pytest.raises(UnusableError, match='no numbers'):
        Upscaler(opened).enhance(picture)


# ------------------------------------------------ files ---------------------------------------------------------------


def written(image, kind, **extra):
    buffer = io.BytesIO()
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'JPEG'])
def test_orientation_is_pillows(tmp_path, picture, kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f'{orientation}.{kind.lower()}'
        path.write_bytes(written(Image.fromarray(picture), kind, exif=exif))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))
        assert (upscale.read(path).pixels[..., ::-1] == expected).all(), orientation


def test_orientation_of_16_bits(tmp_path, picture):
    grey = Image.fromarray(deep(picture[..., 0]))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, extra in (('PNG', {'exif': exif}), ('TIFF', {'tiffinfo': {0x0112: orientation}})):
            path = tmp_path / f'{orientation}.{kind.lower()}'
            path.write_bytes(written(grey, kind, **extra))
            expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes()))))
            assert (upscale.read(path).pixels == expected).all(), (orientation, kind)


def test_a_turned_photograph_is_upright_and_has_no_tag(tmp_path, model, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'a.jpg').write_bytes(written(Image.fromarray(picture), 'JPEG', exif=exif))
    run('-i', tmp_path / 'a.jpg', '-o', tmp_path / 'out', '-m', model)
    result = Image.open(tmp_path / 'out/a_out.jpg')
    assert result.size == (180, 152)  # the stored picture is 38 wide and 45 high
    assert 0x0112 not in result.getexif()


def test_palettes_and_other_modes(tmp_path, picture):
    image = Image.fromarray(picture[..., ::-1])
    alpha = Image.fromarray(np.dstack([picture[..., ::-1], picture[..., 0]]))
    modes = {
        'palette.png': (written(image.quantize(32), 'PNG'), 'RGB'),
        'palette-alpha.png': (written(image.quantize(32), 'PNG', transparency=bytes(range(0, 256, 8))), 'RGBA'),
        'la.png': (written(alpha.convert('LA'), 'PNG'), 'RGBA'),
        'la.tif': (written(alpha.convert('LA'), 'TIFF'), 'RGBA'),
        'bits.png': (written(image.convert('1'), 'PNG'), 'L'),
        'keyed.png': (written(image.convert('L'), 'PNG', transparency=7), 'RGBA'),
        'cmyk.jpg': (written(image.convert('CMYK'), 'JPEG'), 'RGB'),
        'a.bmp': (written(image, 'BMP'), 'RGB'),
    }
    for name, (data, mode) in modes.items():
        (tmp_path / name).write_bytes(data)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
        pixels = upscale.read(tmp_path / name).pixels
        rgb = pixels if mode == 'L' else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        assert (rgb == expected).all(), name


def test_profiles_are_kept_where_they_fit(tmp_path, model, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    rgb = picture[..., ::-1].copy()
    for name, kind in (('a.png', 'PNG'), ('a.jpg', 'JPEG'), ('a.webp', 'WEBP'), ('a.tif', 'TIFF')):
        (tmp_path / name).write_bytes(written(Image.fromarray(rgb), kind, icc_profile=profile))
        run('-i', tmp_path / name, '-o', tmp_path / 'out', '-m', model)
        result = Image.open(tmp_path / 'out' / name.replace('.', '_out.'))
        result.load()
        assert result.info['icc_profile'] == profile, name
        assert upscale.read(tmp_path / name).profile == profile, name
    (tmp_path / 'g.png').write_bytes(written(Image.fromarray(rgb[..., 0].copy()), 'PNG', icc_profile=profile))
    assert upscale.read(tmp_path / 'g.png').profile is None


def test_names_and_endings(tmp_path, model, picture):
    see_through = np.dstack([picture, picture[..., 0]])
    save(tmp_path / 'in/a.JPG', picture)
    save(tmp_path / 'in/a.jpeg', picture)
    save(tmp_path / 'in/sub/a.png', picture)
    save(tmp_path / 'in/b.tif', deep(picture))
    save(tmp_path / 'in/c.tif', picture)
    save(tmp_path / 'in/d.bmp', picture)
    (tmp_path / 'in/e.webp').write_bytes(written(Image.fromarray(see_through), 'WEBP'))
    save(tmp_path / 'in/f.png', see_through)
    flags = ['-i', tmp_path / 'in', '-m', model]
    run(*flags, '-o', tmp_path / 'auto')
    names = [
        'a_out.jpeg',
        'a_out.jpg',
        'b_out.tif',
        'c_out.tif',
        'd_out.bmp',
        'e_out.webp',
        'f_out.png',
        'sub/a_out.png',
    ]
    assert files(tmp_path / 'auto') == names
    assert load(tmp_path / 'auto/b_out.tif').dtype == np.uint16
    assert Image.open(tmp_path / 'auto/e_out.webp').mode == 'RGBA'
    expected = direct(model, picture).round().astype(np.uint8)
    assert apart(load(tmp_path / 'auto/c_out.tif'), expected) == 0
    (tmp_path / 'in/a.jpeg').unlink()
    run(*flags, '-o', tmp_path / 'jpg', '--ext', 'jpg', '--suffix', '')
    assert files(tmp_path / 'jpg') == ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg', 'e.png', 'f.png', 'sub/a.jpg']
    eight = (direct(model, deep(picture)).round() / 257).round().astype(np.uint8)
    expected = written(Image.fromarray(eight[..., ::-1].copy()), 'JPEG', quality=95)
    assert apart(load(tmp_path / 'jpg/b.jpg'), cv2.imdecode(np.frombuffer(expected, np.uint8), -1)) == 0
    before = (tmp_path / 'jpg/b.jpg').stat().st_mtime_ns
    run(*flags, '-o', tmp_path / 'jpg', '--ext', 'jpg', '--suffix', '')
    assert (tmp_path / 'jpg/b.jpg').stat().st_mtime_ns == before  # it is kept
    run(*flags, '-o', tmp_path / 'jpg', '--ext', 'jpg', '--suffix', '', '--overwrite')
    assert (tmp_path / 'jpg/b.jpg').stat().st_mtime_ns > before


def test_onnx_is_the_network(tmp_path, model, picture):
    path = tmp_path / 'student.onnx'
    axes = {name: {0: 'n', 2: 'h', 3: 'w'} for name in ('input', 'output')}
    names = {'input_names': ['input'], 'output_names': ['output'], 'dynamic_axes': axes, 'dynamo': False}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch has a newer exporter, and says so
        torch.onnx.export(open_network(model).module, (torch.rand(1, 3, 20, 20),), str(path), **names)
    source = save(tmp_path / 'a.png', picture)
    for number, flags in enumerate((['-m', model], ['-m', path], ['-m', path, '-t', '20'])):
        run('-i', source, '-o', tmp_path / str(number), *flags)
    results = [load(tmp_path / str(number) / 'a_out.png') for number in range(3)]
    assert apart(results[0], results[1]) <= 1
    assert apart(results[0], results[2]) <= 1


# ------------------------------------------------ faces ---------------------------------------------------------------


class Faces:
    """Stands for GFPGANer, whose weights are large: hands everything to its background, as that does without a face."""

    def __init__(self, upscaler, factor):
        self.bg_upsampler, self.upscale = upscaler, factor

    def enhance(self, image, has_aligned, only_center_face, paste_back):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        return [], [], self.bg_upsampler.enhance(image, outscale=self.upscale)[0]


def test_everything_but_the_faces_is_as_without_them(model, picture):
    upscaler = Upscaler(open_network(model))
    for image in (picture, picture[..., 0].copy(), np.dstack([picture, picture[..., 0]]), deep(picture)):
        result = upscale.with_faces(image, upscaler, Faces(upscaler, 4), 4, 'bicubic').whole()
        expected = upscaler.enhance(image, 4, 'bicubic')[0]
        if image.dtype == np.uint16:
            expected = (expected / 257).round().astype(np.uint8)
        assert apart(result, expected) <= (2 if image.dtype == np.uint16 else 1)


def test_faces_without_gfpgan(tmp_path, model, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gfpgan', None)
    source = save(tmp_path / 'a.png', picture)
    with pytest.raises(UserError, match=r'gfpgan is not installed: pip install gfpgan'):
        run('-i', source, '-o', tmp_path / 'out', '-m', model, '--face_enhance')
    assert not (tmp_path / 'out').exists()


def test_faces_with_a_torchvision_of_another_torch(tmp_path, model, picture, monkeypatch):
    def missing(*args):
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.ops, 'nms', missing)
    with pytest.raises(UserError, match='the torchvision that belongs to torch'):
        run('-i', save(tmp_path / 'a.png', picture), '-o', 'out', '-m', model, '--face_enhance')
    assert files(tmp_path) == ['a.png']


def test_faces_without_weights(tmp_path, model, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.ops, 'nms', lambda boxes, scores, threshold: torch.zeros(1))  # may be missing here
    for name in upscale.FACE_URLS:
        monkeypatch.setitem(upscale.FACE_URLS, name, f'http://127.0.0.1:9/{name}')
    source = save(tmp_path / 'a.png', picture)
    flags = ['-i', source, '-o', 'out', '-m', model, '--face_enhance']
    with pytest.raises(
        UserError, match=r'gfpgan/weights/GFPGANv1.3.pth .*cannot be downloaded .*http.*or leave the flag'
    ):
        run(*flags)
    assert files(tmp_path) == ['a.png']
    for name in upscale.FACE_URLS:
        (tmp_path / 'gfpgan/weights').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'gfpgan/weights' / name).write_bytes(b'cut off')
    with pytest.raises(UserError, match='a file in gfpgan/weights cannot be used'):
        run(*flags)


# ------------------------------------------------ what can go wrong ---------------------------------------------------


def test_one_bad_image_among_three(tmp_path, model, picture):
    for name in ('a.png', 'b.jpg', 'c.png'):
        save(tmp_path / 'in' / name, picture)
    whole = (tmp_path / 'in/b.jpg').read_bytes()
    (tmp_path / 'in/b.jpg').write_bytes(whole[: len(whole) // 2])
    done = command('-i', 'in', '-o', 'out', '-m', model, cwd=tmp_path)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if 'b.jpg' in line]
    assert len(lines) == 2  # at once, and at the end
    assert lines[1].startswith('Error: 1 of 3 images in in could not be upscaled (b.jpg cannot be read (')
    assert '2 of 3 images in out' in done.stdout
    assert files(tmp_path / 'out') == ['a_out.png', 'c_out.png']


def test_a_single_unreadable_image_on_the_command_line(tmp_path, model):
    (tmp_path / 'a.png').write_bytes(b'no image')
    done = command('-i', 'a.png', '-o', 'out', '-m', model, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == 'Error: -i: a.png is damaged or no image.'
    assert 'Traceback' not in done.stderr
    assert files(tmp_path) == ['a.png']


def test_images_that_are_refused(tmp_path, picture):
    image = Image.fromarray(picture)
    frames = {'save_all': True, 'append_images': [image.rotate(180)]}
    reasons = {
        'moving.webp': (written(image, 'WEBP', **frames), 'is animated, with 2 frames'),
        'moving.png': (written(image, 'PNG', **frames), 'is animated, with 2 frames'),
        'pages.tif': (written(image, 'TIFF', **frames), 'has 2 pages'),
        'float.tif': (written(image.convert('F'), 'TIFF'), 'floating-point samples from '),
        'empty.png': (b'', 'is empty'),
        'cut.png': (written(image, 'PNG')[:2000], 'truncated'),
        'cut16.png': (cv2.imencode('.png', deep(picture))[1].tobytes()[:3000], 'truncated'),
    }
    for name, (data, reason) in reasons.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnusableError) as error:
            upscale.read(tmp_path / name)
        assert reason in error.value.reason, name


def test_mistakes_on_the_command_line(tmp_path, model, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'in/a.png', picture)
    save(tmp_path / 'two/a.png', picture)
    save(tmp_path / 'two/a.bmp', picture)
    save(tmp_path / 'clash/a.png', picture)
    (tmp_path / 'clash/a.webp').write_bytes(written(Image.fromarray(np.dstack([picture, picture[..., 0]])), 'WEBP'))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'taken/a_out.png').mkdir(parents=True)
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'broken.pth').write_bytes(b'x')
    (tmp_path / 'broken.onnx').write_bytes(b'x')
    before = files(tmp_path)
    good = ['-m', model]
    for flags, message in [
        (['-i', 'none', '-o', 'out', *good], '-i: none does not exist'),
        (['-i', 'empty', '-o', 'out', *good], '-i: empty holds no file'),
        (['-i', 'notes.txt', '-o', 'out', *good], '-i: notes.txt is no image'),
        (['-i', 'in', '-o', 'in/out', *good], '-o: in/out lies in the folder of the inputs'),
        (['-i', 'in', '-o', 'file', *good], '-o: file cannot be written to'),
        (['-i', 'in', '-o', 'taken', *good], '-o: taken/a_out.png is a folder'),
        (['-i', 'in/a.png', '-o', 'in', '--suffix', '', *good], 'would replace in/a.png itself'),
        (['-i', 'two', '-o', 'out', '--ext', 'png', *good], 'would both become a_out.png'),
        (['-i', 'clash', '-o', 'out', '--ext', 'jpg', '-n', 'x'], '-n: no model is called x'),
        (['-i', 'in', '-o', 'out', '-n', 'RealESRGAN_x4plu'], '-n: no model is called RealESRGAN_x4plu; did you mean'),
        (['-i', 'in', '-o', 'out', '-n', 'RealESRGAN_x4plus', *good], '-m and -n: give one'),
        (['-i', 'in', '-o', 'out', '-n', 'x4plus_rrdbnet_14'], 'did you mean x4plus_rrdbnet_1_4'),
        (['-i', 'in', '-o', 'out', '-m', 'none.pth'], '-m: the file none.pth does not exist'),
        (['-i', 'in', '-o', 'out', '-m', 'x4plus_rrdb'], '-m: the file x4plus_rrdb does not exist, and no model is'),
        (['-i', 'in', '-o', 'out', '-m', 'x4plus_rrdb'], 'did you mean x4plus_rrdbnet_1_'),
        (['-i', 'in', '-o', 'out', '-m', 'broken.pth'], '-m: broken.pth cannot be read as a weights file'),
        (['-i', 'in', '-o', 'out', '-m', 'broken.onnx'], '-m: broken.onnx cannot be read as an ONNX graph'),
        (['-i', 'in', '-o', 'out', '-g', '99', *good], '-g: there is no GPU 99'),
    ]:
        with pytest.raises(UserError) as error:
            run(*flags)
        assert message in str(error.value), flags
        assert files(tmp_path) == before, flags
    save(tmp_path / 'clash/b.jpg', picture)
    (tmp_path / 'clash/b.png').write_bytes((tmp_path / 'clash/a.png').read_bytes())
    with pytest.raises(UserError, match='b.png and b.jpg|b.jpg and b.png'):
        run('-i', 'clash', '-o', 'out', '--ext', 'jpg', *good)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['-s', '0'], '-s: 0 is no factor; give a number above 0'),
        (['-s', 'nan'], '-s: nan is no factor'),
        (['-t', '-1'], "expected one argument|-t: write a whole number of at least 0, not '-1'"),
        (['--tile_pad', 'wide'], "--tile_pad: write a whole number of at least 0, not 'wide'"),
        (['--suffix', 'a/b'], 'no part of a file name'),
        (['--ext', 'gif'], 'invalid choice'),
    ],
)
def test_values_that_flags_refuse(flags, message, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        run('-i', 'in', '-o', 'out', *flags)
    if error.type is SystemExit:  # argparse's own
        assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err or str(error.value))


@pytest.mark.parametrize('flag', ['-n', '-m'])
def test_a_published_model_that_is_not_here(tmp_path, picture, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / 'a.png', picture)
    with pytest.raises(UserError, match=f'^{flag}: RealESRGAN_x2plus .*get it by `sdakd fetch RealESRGAN_x2plus`'):
        run('-i', source, '-o', 'out', flag, 'RealESRGAN_x2plus')
    assert files(tmp_path) == ['a.png']


@pytest.mark.parametrize('folder', ['experiments/pretrained_models', 'weights'])
@pytest.mark.parametrize('name', ['realesr-general-x4v3', 'realesr-general-x4v3.pth'])
def test_a_published_model_by_name(tmp_path, model, picture, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / 'realesr-general-x4v3.pth').write_bytes(model.read_bytes())
    run('-i', save(tmp_path / 'a.png', picture), '-o', 'out', '-n', name)
    assert apart(load(tmp_path / 'out/a_out.png'), direct(model, picture).round().astype(np.uint8)) == 0
