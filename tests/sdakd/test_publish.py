"""`sdakd publish` against a server that speaks what the Hub speaks: the bytes that arrive, and every refusal."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

import sdakd
from sdakd.compat import UserError

TOKEN = 'hf_of_the_test'


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory: files by repository and name. ``token`` may write to what begins with ``user/``."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answers)
        self.repos, self.private, self.objects, self.commits, self.asked = {}, {}, {}, [], []
        self.address = f'http://127.0.0.1:{self.server_port}'


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, content=None, status=200, **headers):
        data = json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for key, value in {'Content-Type': 'application/json', 'Content-Length': str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def refused(self, repo):
        """Whether the token is unknown, or may not write there; it is answered then."""
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self.answer({'error': 'Invalid credentials'}, 401)
            return True
        if repo and not repo.startswith('user/'):
            self.answer({'error': 'Forbidden'}, 403, **{'X-Error-Message': 'you have no right to write here'})
            return True
        return False

    def do_GET(self):  # noqa: N802
        hub = self.server
        hub.asked.append(self.path)
        if self.path == '/api/whoami-v2':
            return None if self.refused(None) else self.answer({'name': 'user', 'type': 'user', 'auth': {}})
        repo = self.path.removeprefix('/api/models/').partition('?')[0]
        if repo not in hub.repos:
            return self.answer({'error': 'Repository not found'}, 404, **{'X-Error-Code': 'RepoNotFound'})
        return self.answer({'id': repo, 'modelId': repo, 'private': hub.private[repo], 'siblings': [], 'tags': []})

    def do_PUT(self):  # noqa: N802
        self.server.asked.append(self.path)
        data = self.body()
        oid = self.path.rpartition('/')[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.answer()

    def do_POST(self):  # noqa: N802
        hub, data = self.server, self.body()
        hub.asked.append(self.path)
        if self.path == '/api/validate-yaml':
            return self.answer({'errors': [], 'warnings': []})
        if self.path == '/api/repos/create':
            asked = json.loads(data)
            repo = f'{asked["organization"]}/{asked["name"]}'
            if self.refused(repo):
                return None
            if repo in hub.repos:
                return self.answer(
                    {'error': 'You already created this model repo', 'url': f'{hub.address}/{repo}'}, 409
                )
            hub.repos[repo], hub.private[repo] = {}, asked.get('visibility') == 'private' or bool(asked.get('private'))
            return self.answer({'url': f'{hub.address}/{repo}'})
        if self.path.endswith('.git/info/lfs/objects/batch'):
            if self.refused(self.path[1:].partition('.git')[0]):
                return None
            objects = [
                {**each, 'actions': {'upload': {'href': f'{hub.address}/lfs/{each["oid"]}', 'header': {}}}}
                for each in json.loads(data)['objects']
            ]
            return self.answer({'transfer': 'basic', 'objects': objects})
        parts = self.path.partition('?')[0].removeprefix('/api/models/').split('/')
        repo, what = '/'.join(parts[:2]), parts[2]
        if self.refused(repo):
            return None
        files = hub.repos[repo]
        if what == 'preupload':
            return self.answer({'files': [
                {'path': f['path'], 'uploadMode': 'regular' if f['path'].endswith(('.md', '.json')) else 'lfs',
                 'shouldIgnore': False} for f in json.loads(data)['files']
            ]})  # fmt: skip
        if what == 'paths-info':
            from urllib.parse import parse_qs

            names = parse_qs(data.decode())['paths']
            return self.answer([self.info(name, files[name]) for name in names if name in files])
        assert what == 'commit'
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines[1:]:
            value = line['value']
            files[value['path']] = (
                hub.objects[value['oid']] if line['key'] == 'lfsFile' else base64.b64decode(value['content'])
            )
        hub.commits.append([line['value']['path'] for line in lines[1:]])
        return self.answer({'commitUrl': f'{hub.address}/{repo}/commit/{len(hub.commits)}', 'commitOid': 'c' * 40})

    @staticmethod
    def info(name, data):
        blob = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
        found = {'type': 'file', 'path': name, 'size': len(data), 'oid': blob}
        if not name.endswith(('.md', '.json')):  # of an LFS file git holds a pointer
            found['oid'] = 'f' * 40
            found['lfs'] = {'oid': hashlib.sha256(data).hexdigest(), 'size': len(data), 'pointerSize': 130}
        return found


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that this process takes for the Hub, and a token for it; nobody is logged in."""
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, 'ENDPOINT', server.address)
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)  # the protocol that the server speaks is LFS
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A model in two formats, and its card."""
    root = tmp_path_factory.mktemp('files')
    torch.manual_seed(0)
    save_file(SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict(), root / 'net.safetensors')
    sdakd.export(root / 'net.safetensors', 'onnx', root / 'net.onnx')
    sdakd.card(root / 'net.safetensors', root / 'card', license='MIT', repo='user/net')
    return root


def read(path):
    return Path(path).read_bytes()


def test_every_byte_arrives_in_one_commit(hub, files):
    models = [files / 'net.safetensors', files / 'net.onnx']
    made = sdakd.publish(models, repo='user/net', card=files / 'card', private=True)
    wanted = {path.name: read(path) for path in [*models, *(files / 'card').iterdir()]}
    assert hub.repos == {'user/net': wanted} and hub.private == {'user/net': True}
    assert len(hub.commits) == 1 and set(made.changed.values()) == {'new'}
    assert made.address == f'{hub.address}/user/net/commit/1' and made.address in str(made)
    assert made.files == {name: len(data) for name, data in wanted.items()}


def test_of_a_folder_only_what_is_the_card_s_goes(hub, files, tmp_path):
    folder = tmp_path / 'card'
    wanted = {path.name for path in (files / 'card').iterdir()}
    assert {'README.md', '2x-net.json', 'comparison.png', 'before_rocket.png', 'after_rocket.png'} < wanted
    shutil.copytree(files / 'card', folder)
    for name in ('before_private.png', 'comparison.psd', 'secret.json', '4x-other.json', '.env'):
        (folder / name).write_text('{"api_key": 1}', encoding='utf-8')
    (folder / 'passwd').symlink_to('/etc/passwd')
    (folder / 'deeper').mkdir()
    (folder / 'my own (1).png').write_bytes(b'1')
    (folder / 'README.md').write_text(
        (folder / 'README.md').read_text(encoding='utf-8')
        + '![a](my%20own%20%281%29.png) ![b](https://a.example/b.png) ![c](<my own (1).png> "title")',
        encoding='utf-8',
    )
    made = sdakd.publish(files / 'net.safetensors', repo='user/net', card=folder)
    assert made.files.keys() == hub.repos['user/net'].keys() == wanted | {'net.safetensors', 'my own (1).png'}


def test_again_only_what_differs_goes_and_that_is_said(hub, files, capsys):
    sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    again = sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    assert len(hub.commits) == 1 and set(again.changed.values()) == {'the same'} and 'no commit was made' in str(again)
    hub.repos['user/net']['README.md'] += b'more'
    hub.repos['user/net']['net.safetensors'] += b'more'
    capsys.readouterr()
    third = sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    said = capsys.readouterr().err
    for name in ('README.md', 'net.safetensors'):
        assert third.changed[name] == 'replaced' and f'{name} is in user/net already and differs' in said
    assert sorted(hub.commits[1]) == ['README.md', 'net.safetensors']
    assert hub.repos['user/net']['net.safetensors'] == read(files / 'net.safetensors')


def test_without_a_card_one_is_made_for_the_token_s_user(hub, files):
    made = sdakd.publish(files / 'net.safetensors')
    assert made.repo == 'user/net'
    readme = hub.repos['user/net']['README.md'].decode()
    assert ModelCard(readme).data.license == 'other' and 'hf download user/net net.safetensors' in readme
    assert 'licence is not known' in str(made) and '2x-net.json' in hub.repos['user/net']


def test_a_checkpoint_brings_what_describes_it(hub, files):
    sdakd.export(files / 'net.safetensors', 'safetensors', 'out/net.pth')
    sdakd.publish('out/net.pth', repo='user/pth')
    assert hub.repos['user/pth']['net.json'] == read('out/net.json')
    said = json.loads(read('out/net.json'))
    for foreign in ({'api_key': 1}, {**said, 'api_key': 1}, {**said, 'values': '0' * 64}):
        Path('out/net.json').write_text(json.dumps(foreign), encoding='utf-8')
        assert 'net.json' not in sdakd.publish('out/net.pth', repo='user/pth', dry_run=True).files


def test_a_dry_run_needs_no_package_of_the_hub(files, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert 'README.md' in sdakd.publish(files / 'net.safetensors', repo='user/net', dry_run=True).files
    with pytest.raises(UserError, match='--to hf: the package huggingface_hub is not installed'):
        sdakd.publish(files / 'net.safetensors', repo='user/net')


def test_the_command_line_and_a_dry_run(hub, files, tmp_path):
    environment = {**os.environ, 'HF_ENDPOINT': hub.address, 'HF_HUB_DISABLE_XET': '1', 'HF_TOKEN': TOKEN}
    line = [sys.executable, '-m', 'sdakd.cli', 'publish', '--to', 'hf', '--repo', 'user/a', '--card', files / 'card']
    line += ['-m', files / 'net.safetensors']

    def run(*more, **variables):
        return subprocess.run([*line, *more], capture_output=True, text=True, env={**environment, **variables})

    dry = run('--dry_run', HF_TOKEN='')
    assert dry.returncode == 0 and not hub.asked, dry.stderr
    for name in ['net.safetensors', *(path.name for path in (files / 'card').iterdir())]:
        assert f'{name}: ' in dry.stdout
    assert 'Nothing was sent' in dry.stdout and 'user/a' in dry.stdout
    done = run()
    assert done.returncode == 0 and f'Published: {hub.address}/user/a/commit/1' in done.stdout, done.stderr
    assert hub.repos['user/a']['net.safetensors'] == read(files / 'net.safetensors')


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'repo': 'somebody/net'}, 'HF_TOKEN: this token may not write to somebody/net'),
        ({'repo': 'net'}, "--repo: 'net' is no name on the Hub"),
        ({'repo': 'user/a..b'}, '--repo: '),
        ({'to': 'gitlab'}, '--to: gitlab is unknown'),
        ({'models': []}, '-m: give a model'),
        ({'models': 'absent.pth'}, '-m: the file absent.pth does not exist'),
        ({'models': 'damaged.safetensors'}, '-m: '),
        ({'models': ['copy/net.safetensors', 'net.safetensors']}, '-m: two files are called net.safetensors'),
        ({'card': 'absent'}, '--card: absent is no folder'),
        ({'card': 'copy'}, '--card: .*README.md does not exist'),
        ({'card': 'bare'}, '--card: .* does not begin with metadata that name a license'),
        ({'card': 'odd'}, '--card: the metadata of .* are no YAML'),
        ({'card': 'blind'}, '--card: .* shows gone.png, which is not in the folder'),
        ({'card': 'foreign'}, '--card: .* is of another file: it has the SHA-256 of none of net.safetensors'),
        ({'card': 'torn'}, '--card: .*2x-net.json is damaged'),
        ({'card': 'twice'}, '--card: twice holds net.safetensors, which -m names as well'),
        ({'card': 'above'}, '--card: above shows ../a.png, which is not in the folder'),
        ({'card': 'linked'}, '--card: linked.a.png is a link to another place'),
        ({'models': 'my net.pth', 'repo': None, 'dry_run': True}, "--repo: 'USER/my net' is no name on the Hub"),
    ],
)
def test_a_mistake_sends_nothing(hub, files, arguments, sentence):
    for folder, text in {
        'bare': '# net', 'odd': '---\nlicense: [\n---\n', 'blind': '---\nlicense: mit\n---\n![a](gone.png)',
        'foreign': '---\nlicense: mit\nlibrary_name: sdakd\n---\n' + 64 * '0', 'torn': '---\nlicense: mit\n---\n',
        'twice': '---\nlicense: mit\n---\n![a](net.safetensors)', 'above': '---\nlicense: mit\n---\n![a](../a.png)',
        'linked': '---\nlicense: mit\n---\n<img width="9" src="a.png">',
    }.items():  # fmt: skip
        Path(folder).mkdir()
        Path(folder, 'README.md').write_text(text, encoding='utf-8')
    Path('torn/2x-net.json').write_text('{', encoding='utf-8')
    Path('a.png').write_bytes(b'')
    Path('linked/a.png').symlink_to(Path('a.png').resolve())
    Path('copy').mkdir()
    for place in ('net.safetensors', 'copy/net.safetensors', 'twice/net.safetensors'):
        Path(place).write_bytes(read(files / 'net.safetensors'))
    Path('damaged.safetensors').write_bytes(read(files / 'net.safetensors')[:-9])
    given = {'models': 'net.safetensors', 'repo': 'user/net', 'card': files / 'card', **arguments}
    with pytest.raises(UserError, match=sentence):
        sdakd.publish(**given)
    assert not hub.commits and not hub.objects and not hub.repos
    if given['repo'] != 'somebody/net':
        assert not hub.asked  # all of this is found before anybody is asked


def test_no_token(hub, files, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(UserError, match='HF_TOKEN: there is no token: `hf auth login`, or set HF_TOKEN'):
        sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    Path('no token').write_text(TOKEN, encoding='utf-8')  # that of a login
    assert sdakd.publish(files / 'net.safetensors', card=files / 'card').repo == 'user/net'


def test_a_token_that_is_none(hub, files, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_unknown')
    for repo in ('user/net', None):
        with pytest.raises(UserError, match='HF_TOKEN: the Hub does not know this token; make a new one'):
            sdakd.publish(files / 'net.safetensors', repo=repo, card=files / 'card')
    assert not hub.repos


@pytest.mark.parametrize('token', ['hf_schlüssel', 'hf_of\x01the', 'hf of the test'])
def test_a_token_that_no_header_can_hold_is_not_shown(hub, files, monkeypatch, token):
    monkeypatch.setenv('HF_TOKEN', token)
    for repo in ('user/net', None):
        with pytest.raises(UserError, match='HF_TOKEN: the token holds characters that none has') as raised:
            sdakd.publish(files / 'net.safetensors', repo=repo, card=files / 'card')
        assert token not in str(raised.value)
    assert not hub.asked


def test_nobody_answers(hub, files, monkeypatch):
    with contextlib.closing(ThreadingHTTPServer(('127.0.0.1', 0), Answers).socket) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{port}')
    with pytest.raises(
        UserError, match=f'--to hf: http://127.0.0.1:{port} cannot be reached .*; no file was published'
    ):
        sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='HF_HUB_OFFLINE: it forbids the network'):
        sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')


def test_private_does_not_go_to_a_public_place(hub, files):
    sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    with pytest.raises(UserError, match='--private: user/net is there already and public'):
        sdakd.publish(files / 'net.onnx', repo='user/net', private=True)
    assert len(hub.commits) == 1


def test_what_the_hub_refuses_is_passed_on(hub, files, monkeypatch):
    def full(self, status=413):
        self.body()
        self.answer({'error': 'storage is full'}, status)

    monkeypatch.setattr(Answers, 'do_PUT', full)
    with pytest.raises(UserError, match='--to hf: the Hub refuses user/net .status 413: .*no file was published'):
        sdakd.publish(files / 'net.safetensors', repo='user/net', card=files / 'card')
    assert not hub.commits and hub.repos == {'user/net': {}}
