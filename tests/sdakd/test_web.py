"""`sdakd export --to web`: the page that is built, behind a plain server in a real browser, gives what `sdakd upscale` gives."""

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from PIL import Image, ImageCms
from skimage import data

from sdakd import cli
from sdakd.commands.export import web
from sdakd.files.pictures import filled

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / 'sdakd/pretrained/demo_student_x4.pth'
EIGHTH = ROOT / 'sdakd/pretrained/x4plus_rrdbnet_1_8.safetensors'
LEVELS = 2  # of 255, by which a browser may differ
STATES = """return [...document.querySelectorAll('#queue li')].map((item) =>
    [item.querySelector('strong').textContent, item.dataset.state, item.querySelector('.words').textContent])"""
needs_npm = pytest.mark.skipif(not shutil.which('npm'), reason='no npm here: the page is not built')


def run(*words):
    return cli.main(['export', *map(str, words)])


# ------------------------------------------------------ the folder --------------------------------------------------


def small(folder, scale):
    """A network with pixel-unshuffling whose outputs spread over the levels."""
    torch.manual_seed(scale)
    network = RRDBNet(3, 3, scale=scale, num_feat=8, num_block=1, num_grow_ch=4).eval().requires_grad_(False)
    spread = network(torch.rand(1, 3, 32, 32)).std()
    network.conv_last.weight *= 0.2 / spread
    network.conv_last.bias += 0.5
    torch.save({'params': network.state_dict()}, folder / f'x{scale}.pth')
    return folder / f'x{scale}.pth'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder, built as a user builds it, one folder below what is served."""
    if not shutil.which('npm'):
        pytest.skip('no npm here: the page is not built')
    folder = tmp_path_factory.mktemp('served')
    models = [STUDENT, EIGHTH, small(folder, 2), small(folder, 1)]
    assert run('--to', 'web', '-m', *models, '-o', folder / 'sub/site') == 0
    return SimpleNamespace(root=folder, folder=folder / 'sub/site', models={path.stem: path for path in models})


def test_graphs_are_small_and_give_what_pytorch_gives(site):
    from sdakd.files.generators import open_network

    entries = json.loads((site.folder / 'models.json').read_text())
    assert [entry['name'] for entry in entries] == list(site.models)
    for entry in entries:
        file = site.folder / entry['file']
        assert entry['bytes'] == file.stat().st_size
        assert entry['sha256'] == entry['facts']['SHA-256'] == hashlib.sha256(file.read_bytes()).hexdigest()
        opened = open_network(site.models[entry['name']])
        assert (entry['scale'], entry['multiple']) == (opened.scale, opened.multiple)
        assert entry['parameters'] == sum(parameter.numel() for parameter in opened.module.parameters())
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        image = torch.rand(1, 3, 20, 28)
        (found,) = session.run(None, {'input': image.numpy()})
        assert np.abs(found - opened.module(image).numpy()).max() < 0.5 / 255
    eighth = next(entry for entry in entries if entry['name'] == EIGHTH.stem)
    assert eighth['bytes'] < 0.65 * 4 * eighth['parameters']  # weights in float16, and little beside them
    assert eighth['facts']['Teacher'] == 'RealESRGAN_x4plus.pth (BSD-3-Clause)'


def test_folder_holds_what_it_names_and_nothing_of_this_machine(site):
    told = (site.folder / 'sw.js').read_text().partition('\n')[0]
    listed = json.loads(told.removeprefix('const SITE = ').removesuffix(';'))
    there = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob('*') if path.is_file()}
    assert {entry['path'] for entry in listed['files']} == there - {'sw.js'}
    assert {entry['path'] for entry in listed['files'] if entry['lazy']} == {n for n in there if n.startswith('ort/')}
    for name in there:
        assert str(site.root).encode() not in (site.folder / name).read_bytes(), name
    assert not [path for path in site.folder.parent.iterdir() if path != site.folder]  # no half-made folders


def test_lock_file_names_no_registry():
    lock = json.loads((web.SOURCES / 'package-lock.json').read_text())
    assert '"resolved"' not in json.dumps(lock) and '://' not in re.sub(r'"funding": \{[^}]*\}', '', json.dumps(lock))
    assert all('integrity' in entry for name, entry in lock['packages'].items() if name)


# ------------------------------------------------------ the browser -------------------------------------------------


def serve(folder, port=0):
    """A plain static server, as `python -m http.server` is; what was asked for is kept in ``asked``."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', port), functools.partial(Handler, directory=str(folder))
    )
    server.asked = asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Page:
    """The page in a headless Chromium of its own."""

    def __init__(self, folder, *flags):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        binary = next((f for n in ('chromium', 'chromium-browser', 'google-chrome') if (f := shutil.which(n))), None)
        driver_file = shutil.which('chromedriver')
        if binary is None or driver_file is None:
            pytest.skip('no chromium with chromedriver here: the page is not looked at in a browser')
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (
            'headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking',
            'disable-component-update', 'disable-sync', f'user-data-dir={folder / "profile"}', *flags,
        ):  # fmt: skip
            options.add_argument(f'--{flag}')
        preferences = {'profile.default_content_setting_values.automatic_downloads': 1}  # many without being asked
        options.add_experimental_option('prefs', preferences)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
        self.driver = webdriver.Chrome(options=options, service=Service(driver_file))
        self.folder = folder / 'downloads'
        self.folder.mkdir()
        behaviour = {'behavior': 'allow', 'downloadPath': str(self.folder)}
        self.driver.execute_cdp_cmd('Browser.setDownloadBehavior', behaviour)

    def open(self, address):
        self.driver.get(address)
        self.wait('return document.documentElement.dataset.engine')

    def wait(self, script, seconds=120):
        end = time.monotonic() + seconds
        while not (found := self.driver.execute_script(script)):
            assert time.monotonic() < end, (script, self.driver.execute_script(STATES))
            time.sleep(0.02)
        return found

    def choose(self, model):
        self.driver.find_element('css selector', f'input[value="models/{model}.onnx"]').click()

    def add(self, *paths):
        self.driver.find_element('id', 'files').send_keys('\n'.join(map(str, paths)))

    def states(self):
        """State and words of every picture of the queue, by name."""
        self.wait("return !document.querySelector('#queue [data-state=waiting], #queue [data-state=working]')")
        return {name: (state, words) for name, state, words in self.driver.execute_script(STATES)}

    def result(self, name):
        """The file that Download gives, and its name."""
        links = self.driver.find_elements('css selector', '#queue [data-part=save]')
        next(link for link in links if link.get_attribute('aria-label') == f'Download {name}').click()
        (path,) = self.downloads(1)
        found = path.read_bytes(), path.name
        path.unlink()
        return found

    def downloads(self, count):
        """The files that were downloaded, once there are so many."""
        end = time.monotonic() + 30
        while True:
            files = [path for path in self.folder.iterdir() if path.suffix == '.png' and path.stat().st_size]
            if len(files) >= count:
                return files
            assert time.monotonic() < end, list(self.folder.iterdir())
            time.sleep(0.02)

    def clear(self):
        self.driver.execute_script("document.getElementById('clear').click()")


@pytest.fixture(scope='module')
def server(site):
    server = serve(site.root)
    yield server
    server.shutdown()


@pytest.fixture(scope='module')
def page(site, server, tmp_path_factory):
    page = Page(tmp_path_factory.mktemp('browser'))
    page.address = f'http://127.0.0.1:{server.server_port}/sub/site/'
    page.open(page.address)
    yield page
    page.driver.quit()


# ------------------------------------------------------- pixels -----------------------------------------------------


def wanted(folder, model, out):
    """What `sdakd upscale` makes of a folder, in one piece: by name without ending."""
    assert cli.main(['upscale', '-i', str(folder), '-o', str(out), '-m', str(model), '-t', '0', '--ext', 'png']) == 0
    return {path.stem.removesuffix('_out'): path.read_bytes() for path in out.iterdir()}


def pixels(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def assert_equal(found, wanted, name=''):
    found, wanted = pixels(found), pixels(wanted)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), name
    apart = np.abs(found.astype(int) - wanted.astype(int)).max()
    assert apart <= LEVELS * (np.iinfo(wanted.dtype).max // 255), (name, apart)


def profile(grey=False):
    """A colour profile whose values mean other colours than sRGB's: nothing may convert them."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile('XYZ' if False else 'sRGB')).tobytes()
    changed = bytearray(made)
    if grey:
        changed[16:20] = b'GRAY'
    at = made.index(b'rXYZ')  # exchanges the tags of red's and blue's colour
    blue = made.index(b'bXYZ')
    changed[at : at + 4], changed[blue : blue + 4] = b'bXYZ', b'rXYZ'
    return bytes(changed)


def soft_alpha(height, width):
    """Alpha with a part that is fully transparent, a soft edge, and a part that is opaque."""
    rows, columns = np.mgrid[:height, :width]
    return np.clip((np.hypot(rows - height / 2, columns - width / 2) - height / 4) * 40, 0, 255).astype(np.uint8)


def make_pictures(folder):
    """Pictures of all kinds, named after their kind."""
    photo = data.astronaut()[40:85, 200:255]  # 45 x 55
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    alpha = soft_alpha(height, width)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    hidden = np.where(alpha[..., None] == 0, noise, photo)
    rgba = np.dstack([hidden, alpha])
    deep = photo.astype(np.uint16) * 257 ^ np.random.default_rng(1).integers(0, 256, photo.shape, np.uint16)

    def save(name, array, **options):
        Image.fromarray(array).save(folder / name, **options)

    def turned(turn):
        tags = Image.Exif()
        tags[0x0112] = turn
        return tags

    save('colour.png', photo)
    save('grey.png', grey)
    save('clear.png', rgba)
    save('opaque.png', np.dstack([photo, np.full_like(grey, 255)]))
    save('constant.png', np.dstack([photo, np.full_like(grey, 77)]))
    save('invisible.png', np.dstack([photo, np.zeros_like(grey)]))
    Image.fromarray(np.dstack([grey, alpha]), 'LA').save(folder / 'grey_clear.png')
    Image.fromarray(photo).quantize(64).save(folder / 'palette.png')
    Image.fromarray(photo).quantize(8).save(folder / 'palette_clear.png', transparency=bytes([0, 255, 60]))
    Image.fromarray(grey).convert('1').save(folder / 'bits.png')
    Image.fromarray(grey // 64 * 85).save(folder / 'keyed.png', transparency=85)
    save('profile.png', photo, icc_profile=profile())
    save('profile_grey.png', grey, icc_profile=profile(grey=True))
    for turn in (2, 3, 4, 5, 6, 7, 8):
        save(f'turned_{turn}.png', photo, exif=turned(turn))
        save(f'turned_{turn}.jpg', photo, exif=turned(turn), quality=95, subsampling=0)
    cv2.imwrite(str(folder / 'deep.png'), deep)
    cv2.imwrite(str(folder / 'deep_grey.png'), deep[..., 0])
    cv2.imwrite(str(folder / 'deep_clear.png'), np.dstack([deep, alpha.astype(np.uint16) * 257]))
    for name, options in {
        'photo.jpg': {'quality': 90},
        'progressive.jpg': {'quality': 75, 'progressive': True},
        'fine.jpg': {'quality': 95, 'subsampling': 0, 'icc_profile': profile()},
    }.items():
        save(name, photo, **options)
    save('grey.jpg', grey, quality=90)
    Image.fromarray(photo).convert('CMYK').save(folder / 'inks.jpg', quality=95)
    save('lossy.webp', photo, quality=80)
    save('lossless.webp', photo, lossless=True, icc_profile=profile())
    save('clear.webp', rgba, lossless=True, exact=True)
    save('clear_lossy.webp', rgba, quality=80)
    save('turned.webp', photo, exif=turned(6), lossless=True)
    save('colour.bmp', photo)
    save('grey.bmp', grey)
    Image.fromarray(photo).quantize(64).save(folder / 'palette.bmp')
    save('line.png', photo[:1, :9])
    save('dot.png', photo[:1, :1])


def test_pictures_of_all_kinds(site, page, tmp_path):
    (tmp_path / 'in').mkdir()
    make_pictures(tmp_path / 'in')
    files = sorted((tmp_path / 'in').iterdir())
    expected = {}
    for number, group in enumerate(by_stem(files)):
        (tmp_path / f'group{number}').mkdir()
        for path in group:
            shutil.copy(path, tmp_path / f'group{number}')
        found = wanted(tmp_path / f'group{number}', STUDENT, tmp_path / f'out{number}')
        expected |= {path.name: found[path.stem] for path in group}
    page.clear()
    page.choose(STUDENT.stem)
    page.add(*files)
    states = page.states()
    assert {name: state for name, (state, _) in states.items() if state != 'done'} == {}
    for path in files:
        png, given = page.result(path.name)
        assert given == f'{path.stem}_x4.png'
        assert_equal(png, expected[path.name], path.name)
        found, meant = (Image.open(io.BytesIO(each)) for each in (png, expected[path.name]))
        assert (found.mode, found.info.get('icc_profile')) == (meant.mode, meant.info.get('icc_profile')), path.name


def by_stem(files):
    """Groups in which no two names differ by their endings alone."""
    groups = []
    for path in files:
        group = next((group for group in groups if path.stem not in {other.stem for other in group}), None)
        if group is None:
            groups.append(group := [])
        group.append(path)
    return groups


@pytest.mark.parametrize(
    ('model', 'height', 'width'),
    [(EIGHTH.stem, 37, 901), (EIGHTH.stem, 451, 33), ('x2', 45, 51), ('x1', 43, 37), ('x2', 1, 3), ('x1', 2, 700)],
)
def test_tiles_and_scales(site, page, tmp_path, model, height, width):
    """Pictures of several tiles, and networks that want sides of multiples, against `sdakd upscale` in one piece."""
    photo = np.ascontiguousarray(np.hstack([data.astronaut(), data.coffee()[:, :0]] if False else [data.astronaut()] * 2))
    (tmp_path / 'in').mkdir()
    Image.fromarray(photo[-height:, 20 : 20 + width]).save(tmp_path / 'in/picture.png')
    page.clear()
    page.choose(model)
    page.add(tmp_path / 'in/picture.png')
    assert page.states()['picture.png'][0] == 'done'
    assert_equal(page.result('picture.png')[0], wanted(tmp_path / 'in', site.models[model], tmp_path / 'out')['picture'])
