"""Images are decoded as trainings decode them, once, and what was found is remembered as long as it holds."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib

import cv2
import lmdb
import numpy as np
import pytest
from basicsr.data import build_dataset
from PIL import Image

from sdakd import decoding
from sdakd.compat import UserError
from sdakd_data import decoded, remembered
from sdakd_data.decoded import Decoder
from sdakd_data.remembered import Remembered

HOUR = 3600


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(remembered, '_unwritten', {})
    return tmp_path / 'cache'


@pytest.fixture
def decodings(monkeypatch):
    """How many images OpenCV has decoded so far."""
    count, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *arguments: count.append(1) or decode(*arguments))
    return count


def aged(path):
    """An image that was made an hour ago."""
    then = time.time() - HOUR
    os.utime(path, (then, then))
    return str(path)


@pytest.fixture
def images(tmp_path):
    """Files of many kinds, by name, and what each is: what a training gets, or what is wrong."""
    folder, rng = tmp_path / 'images', np.random.default_rng(0)
    folder.mkdir()

    def noise(*shape):
        return rng.integers(0, 256, shape, np.uint8)

    cv2.imwrite(str(folder / 'a.png'), noise(20, 30, 3))
    cv2.imwrite(str(folder / 'grey.png'), noise(12, 17))
    cv2.imwrite(str(folder / 'alpha.png'), noise(9, 8, 4))
    cv2.imwrite(str(folder / 'deep.png'), noise(9, 8, 3).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(noise(16, 40, 3)).save(folder / 'turned.jpg', exif=exif)
    Image.fromarray(noise(10, 40, 3)).save(folder / 'b.webp')
    content = (folder / 'a.png').read_bytes()
    (folder / 'cut.png').write_bytes(content[: len(content) // 2])
    (folder / 'text.jpg').write_bytes(b'no image')
    (folder / 'empty.png').write_bytes(b'')
    for path in folder.iterdir():
        aged(path)
    damaged = 'is damaged or no image'
    return folder, {
        'a.png': (20, 30, 3),
        'grey.png': (12, 17, 3),
        'alpha.png': (9, 8, 3),
        'deep.png': (9, 8, 3),
        'turned.jpg': (40, 16, 3),
        'b.webp': (10, 40, 3),
        'cut.png': damaged,
        'text.jpg': damaged,
        'empty.png': 'is empty',
        'gone.png': 'does not exist',
    }


def sizes(folder, names, kind='disk', side='gt', **backend):
    """What a new start finds out."""
    decoder = Decoder({'type': kind, **backend}, {side: str(folder)}, 'datasets:train')
    names = [str(folder / name) if kind == 'disk' else name for name in names]
    return list(decoder.sizes([(side, name) for name in names], len(names), 'images'))


def test_images_are_what_trainings_get_and_are_remembered(images, decodings):
    folder, wanted = images
    assert sizes(folder, wanted) == list(wanted.values())
    decoded_at_first = len(decodings)
    assert decoded_at_first == 8  # all but the empty one and the one that is missing
    assert sizes(folder, wanted) == list(wanted.values()) and len(decodings) == decoded_at_first


def test_sizes_are_those_of_a_data_set(images):
    """Against BasicSR's own data set, which turns what EXIF says."""
    folder, wanted = images
    good = [name for name, size in wanted.items() if not isinstance(size, str)]
    (folder.parent / 'list.txt').write_text(''.join(f'{name}\n' for name in good))
    options = {'type': 'SingleImageDataset', 'name': 'x', 'dataroot_lq': str(folder), 'io_backend': {'type': 'disk'}}
    data = build_dataset({**options, 'meta_info_file': str(folder.parent / 'list.txt')})
    assert [tuple(item['lq'].shape[i] for i in (1, 2, 0)) for item in data] == sizes(folder, good)


def test_what_has_changed_is_decoded_anew(images, decodings):
    folder, _ = images
    assert sizes(folder, ['a.png', 'grey.png']) == [(20, 30, 3), (12, 17, 3)]
    content = bytearray((folder / 'a.png').read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # of the same length
    (folder / 'a.png').write_bytes(content)
    os.utime(folder / 'a.png', (1, 1))
    del decodings[:]
    assert sizes(folder, ['a.png', 'grey.png']) == ['is damaged or no image', (12, 17, 3)] and len(decodings) == 1
    cv2.imwrite(str(folder / 'a.png'), np.zeros((3, 4, 3), np.uint8))
    assert sizes(folder, ['a.png']) == [(3, 4, 3)]


def test_an_image_of_this_moment_is_not_trusted_to_stay(images, decodings, monkeypatch):
    """On a disk whose clock counts in seconds, it may be replaced by another one of the same size and time."""
    folder, _ = images
    now = int(time.time())
    os.utime(folder / 'a.png', (now, now))
    sizes(folder, ['a.png'])
    sizes(folder, ['a.png'])
    assert len(decodings) == 2
    monkeypatch.setattr(time, 'time_ns', lambda: (now + 3) * 10**9)
    sizes(folder, ['a.png'])
    sizes(folder, ['a.png'])
    assert len(decodings) == 3


def test_another_decoder_finds_out_for_itself(images, decodings, monkeypatch):
    folder, _ = images
    sizes(folder, ['a.png'])
    monkeypatch.setattr(cv2, '__version__', '4.0.0')
    assert sizes(folder, ['a.png']) == [(20, 30, 3)] and len(decodings) == 2


@pytest.mark.parametrize('damage', ['half', 'digit', 'noise', 'nothing', 'lines', 'folder', 'pipe'])
def test_a_damaged_memory_is_no_memory(images, cache, damage):
    folder, wanted = images
    assert sizes(folder, wanted) == list(wanted.values())
    (file,) = (cache / 'sdakd/images').iterdir()
    content = file.read_bytes()
    file.unlink()
    if damage == 'folder':
        file.mkdir()
    elif damage == 'pipe':
        os.mkfifo(file)
    else:
        changed = {
            'half': content[: len(content) // 2],
            'digit': content.replace(b'[20, 30, 3]', b'[21, 30, 3]'),
            'noise': np.random.default_rng(0).bytes(5000),
            'nothing': b'',
            'lines': b'\n' + content + content.replace(b'[20,', b'[21,'),
        }[damage]
        assert changed != content
        file.write_bytes(changed)
    for _ in range(3):
        assert sizes(folder, wanted) == list(wanted.values())


def test_where_nothing_can_be_written_the_process_remembers(images, cache, decodings):
    folder, wanted = images
    cache.write_text('no folder')
    for _ in range(2):
        assert sizes(folder, wanted) == list(wanted.values()) and len(decodings) == 8


def test_two_at_a_time_and_one_that_was_killed(cache):
    one, two = Remembered('x'), Remembered('x')
    one.add('a', (1, 1), [1, 2, 3])
    two.add('b', (2, 2), 'is empty')
    one.write()
    two.write()
    with open(one.path, 'ab') as file:  # killed while it wrote
        file.write(b'0badcafe ["c", 3,')
    two.add('d', (4, 4), [4, 5, 3])
    two.write()
    found = Remembered('x')
    known = [found.get('a', (1, 1)), found.get('b', (2, 2)), found.get('d', (4, 4))]
    assert known == [[1, 2, 3], 'is empty', [4, 5, 3]]
    others = [found.get('a', (1, 2)), found.get('a', (2, 1)), found.get('c', (3, 3)), Remembered('y').get('a', (1, 1))]
    assert others == [None] * 4


def test_the_file_does_not_grow_without_end(cache):
    lengths = []
    for change in range(12):
        memory = Remembered('x')
        for name in 'abc':
            memory.add(name, (1, change + 1), [change, 1, 3])
        memory.write()
        lengths.append(memory.path.stat().st_size)
    assert max(lengths) < 5 * lengths[0]
    assert [Remembered('x').get(name, (1, 12)) for name in 'abc'] == [[11, 1, 3]] * 3


@pytest.fixture
def database(tmp_path):
    """Two good images, one that is damaged."""
    path = tmp_path / 'set.lmdb'
    with lmdb.open(str(path), map_size=1 << 20) as db, db.begin(write=True) as content:
        for name, shape in (('a', (8, 9, 3)), ('b', (7, 6, 3))):
            content.put(name.encode(), cv2.imencode('.png', np.zeros(shape, np.uint8))[1].tobytes())
        content.put(b'bad', b'no image')
    aged(path / 'data.mdb')
    return path


def test_databases(database, decodings):
    backend = {'kind': 'lmdb', 'db_paths': [str(database)], 'client_keys': ['gt']}
    names, damaged = ['a', 'b', 'bad', 'gone', 'ä'], 'is damaged or no image'
    wanted = [(8, 9, 3), (7, 6, 3), damaged, 'is not in the database', 'is not in the database']
    for _ in range(2):
        assert sizes(database, names, **backend) == wanted and len(decodings) == 3
    code = (
        'import sys, cv2, lmdb, numpy as np\n'
        'with lmdb.open(sys.argv[1], map_size=1 << 20) as db, db.begin(write=True) as content:\n'
        "    content.put(b'a', cv2.imencode('.png', np.zeros((5, 5, 3), np.uint8))[1].tobytes())\n"
    )
    subprocess.run([sys.executable, '-c', code, str(database)], check=True)
    os.utime(database / 'data.mdb', (1, 1))
    assert sizes(database, ['a', 'b'], **backend) == [(5, 5, 3), (7, 6, 3)]
    single = {'kind': 'lmdb', 'db_paths': str(database)}  # as FFHQDataset names it
    assert sizes(database, ['b'], **single) == [(7, 6, 3)]
    shutil.rmtree(database)
    with pytest.raises(UserError, match='datasets:train: the images cannot be opened'):
        sizes(database, ['a'], **backend)


def png(width, height):
    """The header of a large image, and nothing behind it."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return decoding.PNG + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


def test_what_opencv_would_refuse_is_told_before(images, decodings, monkeypatch):
    folder, _ = images
    (folder / 'huge.png').write_bytes(png(32_768, 32_769))
    (fault,) = sizes(folder, ['huge.png'])
    assert fault == 'has 32768x32769 pixels, more than the 1,073,741,824 that OpenCV decodes' and not decodings
    with pytest.raises(cv2.error, match='IO_MAX'):
        cv2.imdecode(np.frombuffer((folder / 'huge.png').read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '599')
    assert sizes(folder, ['a.png'])[0] == 'has 30x20 pixels, more than the 599 that OpenCV decodes'


@pytest.mark.parametrize('ending', ['.jpg', '.bmp', '.tif', '.webp', '.jp2'])
def test_headers_tell_the_size_without_a_word(tmp_path, monkeypatch, recwarn, ending):
    """Pillow would warn of an image of this size."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 6000)
    content = cv2.imencode(ending, np.zeros((80, 120, 3), np.uint8))[1].tobytes()
    (tmp_path / f'x{ending}').write_bytes(content)
    assert sizes(tmp_path, [f'x{ending}']) == [(80, 120, 3)]
    assert not recwarn.list
    if ending != '.jp2':
        found = decoding.header(content)
        assert (found.width, found.height) == (120, 80)


def test_threads_hold_no_more_than_there_is_room_for():
    room, held, most = decoded._Room(10), [], []

    def work(amount):
        with room(amount):
            held.append(amount)
            most.append(sum(held))
            time.sleep(0.002)
            held.remove(amount)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (3, 4, 5, 6, 25, 1, 9, 10) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 24 and max(most) == 25 and all(each <= 10 for each in most if each != 25)


def test_an_interruption_leaves_no_thread_and_loses_nothing(images, decodings, monkeypatch):
    """As Ctrl-C does it, after a few of many images."""
    folder, _ = images
    for number in range(300):
        aged(shutil.copy(folder / 'a.png', folder / f'{number:03d}.png'))
    names = [f'{number:03d}.png' for number in range(300)]
    monkeypatch.setattr(decoded, 'cores', lambda: 2)
    decoder = Decoder({'type': 'disk'}, {'gt': str(folder)}, 'datasets:train')
    with pytest.raises(KeyboardInterrupt):
        for number, _ in enumerate(decoder.sizes([('gt', str(folder / name)) for name in names], 300, 'images')):
            if number == 100:
                signal.raise_signal(signal.SIGINT)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('decoding')]
    begun = len(decodings)
    assert 101 <= begun < 150
    assert sizes(folder, names) == [(20, 30, 3)] * 300
    assert len(decodings) - begun <= 300 - 101


def test_the_order_is_that_of_the_images(images, monkeypatch):
    """Whichever thread is first."""
    folder, wanted = images
    monkeypatch.setattr(decoded, 'cores', lambda: 4)
    decode = Decoder.decode
    waits = dict(zip(wanted, (0.05, 0, 0.02, 0, 0.03, 0, 0, 0.01, 0, 0), strict=True))
    monkeypatch.setattr(Decoder, 'decode', lambda *a: time.sleep(waits[os.path.basename(a[2])]) or decode(*a))
    assert sizes(folder, wanted) == list(wanted.values())
