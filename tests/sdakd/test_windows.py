"""What Windows and macOS do otherwise, simulated (see tests/simulated): commands, trainings, and the sources."""

import ast
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from sdakd.compat import FullError, UserError, of_system
from sdakd.files.testsets import split_pair
from sdakd.machine import lives, refused_letters

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 200  # seconds, after which a test has failed
POOR = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'cp1252'}


def load(path):
    spec = importlib.util.spec_from_file_location('simulated', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def simulated():
    """The simulation as a module; it simulates nothing in this process."""
    before, wanted = sys.modules.get('tests'), os.environ.pop('SIMULATE', None)
    try:
        return load(ROOT / 'tests/simulated/sitecustomize.py')
    finally:
        if before is not None:
            sys.modules['tests'] = before
        if wanted is not None:
            os.environ['SIMULATE'] = wanted


def begin(folder, *words, how='windows', **environment):
    if sys.platform != 'linux':
        pytest.skip('the simulation is one of Linux')
    path = os.pathsep.join([str(ROOT / 'tests/simulated'), str(ROOT)])
    environment = {**os.environ, 'SIMULATE': how, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **environment}
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    line = [sys.executable, '-W', 'ignore', *map(str, words)]
    return subprocess.Popen(line, cwd=folder, env=environment, encoding='utf-8', errors='replace', **pipes)


def end(process):
    printed = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, printed


def wait_for(condition, process):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.02)


# ------------------------------------------------------- simulated ----------------------------------------------------

REFUSED = """
import os, select, signal, subprocess, sys
tried = {
    'a name': lambda: open('a:b', 'w'), 'a device': lambda: open('nul.txt', 'w'), 'a folder': lambda: os.mkdir('a?'),
    'a link': lambda: os.symlink('open', 'link'), 'fork': os.fork if hasattr(os, 'fork') else None,
    'SIGKILL': getattr(signal, 'SIGKILL', None), 'poll': getattr(select, 'poll', None),
    'proc': lambda: open('/proc/self/status'), 'fcntl': lambda: __import__('fcntl', globals()),
    'Popen': lambda: subprocess.Popen(['true'], preexec_fn=print),
    'replace': lambda: os.replace('other', 'open'), 'remove': lambda: os.remove('open'),
}
open('other', 'w').close()
with open('open', 'w'):
    for name, call in tried.items():
        if call is not None:
            try:
                call()
            except (OSError, ImportError, ValueError):
                continue
            print(name)
os.replace('other', 'open')
print('end')
"""


def test_what_the_simulation_refuses(tmp_path):
    assert end(begin(tmp_path, '-c', REFUSED)) == (0, 'end\n')


def test_a_training_is_stopped_refused_and_ends_in_the_same_weights(world, fork):
    """A second start, Ctrl-Break, a text encoding without the option file's letters; Linux is the oracle."""
    options = world.options() | {'num_threads': 1}
    for stage in options['train']['stages'].values():
        stage['iters'] = 40
    options['datasets']['train'] |= {'num_worker_per_gpu': 1, 'name': 'pärs'}
    options['logger'] |= {'save_checkpoint_freq': 20, 'print_freq': 1}
    lines = '# κόσμος\r\n' + yaml.safe_dump(options, sort_keys=False, allow_unicode=True).replace('\n', '\r\n')
    (world.root / 'run.yml').write_bytes(b'\xef\xbb\xbf' + lines.encode())
    command = ('-m', 'sdakd.cli', 'train', '-opt', 'run.yml', '--auto_resume')
    run = world.root / 'experiments/run'

    first = begin(world.root, *command, **POOR)
    wait_for((run / 'training_states/20.state').exists, first)
    first.send_signal(signal.SIGSTOP)  # a start takes longer than the rest of this training
    status, said = end(begin(world.root, *command, **POOR))
    assert status == 2 and f'name: a training runs in {run} already (process {first.pid} on ' in said
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTTIN)  # which stands for SIGBREAK
    status, said = end(first)
    assert status == 128 + signal.SIGTTIN and 'the run saves after this step and stops' in said, said
    assert 'Traceback' not in said
    status, said = end(begin(world.root, *command, **POOR))
    assert status == 0 and 'Traceback' not in said and 'UnicodeEncodeError' not in said, said
    assert 'κόσμος' in (run / 'run.yml').read_text(encoding='utf-8')
    assert any('pärs' in log.read_text(encoding='utf-8') for log in run.glob('train_*.log'))

    plain = fork(world.root, '-opt', world.write(options | {'name': 'plain'}, 'plain.yml'))
    plain.wait()
    assert plain.status == 0
    files = [world.root / 'experiments' / name / 'models/net_g_latest.pth' for name in ('run', 'plain')]
    ours, theirs = (torch.load(file, weights_only=True)['params_ema'] for file in files)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


COMMANDS = """
import sys
from sdakd.cli import main
for words in (line.split('|') for line in sys.argv[1].splitlines()):
    if main(words):
        sys.exit('|'.join(words))
"""


def test_commands(tmp_path, photographs):
    """One after the other: files that one leaves open would be in the next one's way, whose words are these."""
    place = tmp_path / 'a b ü'
    (place / 'in').mkdir(parents=True)
    for name, photograph in photographs.items():
        cv2.imwrite(str(place / 'in' / f'{name}.png'), photograph)
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.save({'params': SRVGGNetCompact(num_feat=8, num_conv=2).state_dict()}, place / 'net.pth')
    lines = """
        prepare|pairs|-i|in|-o|pairs|--scale|4|--degradation|bicubic|--workers|2
        prepare|lmdb|-i|in|-o|in.lmdb|--workers|1
        prepare|lmdb|-i|in|-o|in.lmdb|--workers|1
        evaluate|-m|mine=net.pth|-d|a set=pairs/gt:pairs/lq|--scale|4|--metrics|psnr|-o|results
        evaluate|-m|mine=net.pth|-d|a set=in.lmdb|--scale|4|--metrics|psnr|-o|results
        report|-i|results|-o|report.html
        export|-m|net.pth|-o|exported|--to|safetensors|onnx
        export|-m|exported/net.safetensors|-o|again|--to|safetensors
        upscale|-i|pairs/lq|-o|up|-m|exported/net.safetensors
        upscale|-i|pairs/lq|-o|up|-m|exported/net.onnx
        doctor
    """
    lines = '\n'.join(line.strip() for line in lines.splitlines() if line.strip())
    status, said = end(begin(place, '-c', COMMANDS, lines))
    assert status == 0 and 'Traceback' not in said, said
    assert {path.stem for path in (place / 'up').glob('*.png')} == {f'{name}_out' for name in photographs}
    assert not [path for path in place.rglob('*') if set(path.name) & set('<>:"|?*\\')]


STARTER = """
import subprocess, sys, time
from pathlib import Path
from sdakd.files.runs import end, start
code = '''
import os, signal, time
from sdakd import stops
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
stops.follow_starter()
print(os.getpid(), flush=True)
while not asked:
    time.sleep(0.01)
open('saved', 'w', encoding='utf-8').close()
'''
process = start([sys.executable, '-c', code], Path(), stdout=subprocess.PIPE)
print(int(process.stdout.readline()), flush=True)
if sys.argv[1:]:
    end([process])
time.sleep(0 if sys.argv[1:] else 600)
"""


def test_a_training_saves_when_its_starter_asks_and_ends_with_it(tmp_path):
    """Neither a signal nor a session is needed for it."""
    assert end(begin(tmp_path, '-c', STARTER, 'ask'))[0] == 0
    assert (tmp_path / 'saved').exists()
    starter = begin(tmp_path, '-c', STARTER)
    training = int(starter.stdout.readline())
    assert lives(training)
    starter.kill()
    end(starter)
    until = time.monotonic() + PATIENCE
    while lives(training):
        assert time.monotonic() < until
        time.sleep(0.02)


# -------------------------------------------------------- spawned -----------------------------------------------------

LOADER = """
import sys
import sdakd_models
from basicsr.data.paired_image_dataset import PairedImageDataset
from torch.utils.data import DataLoader
options = {'io_backend': {'type': 'disk'}, 'dataroot_gt': '.', 'dataroot_lq': '.', 'phase': 'val', 'scale': 1}
print(tuple(next(iter(DataLoader(PairedImageDataset(options), num_workers=1)))['gt'].shape))
"""


@pytest.mark.parametrize('how', ['spawn', 'forkserver'])
def test_a_process_unpickles_classes_of_basicsr_before_anything_of_ours(tmp_path, photographs, how):
    """BasicSR 1.4.2 imports a module that torchvision has no more; nothing of the main program is imported first."""
    cv2.imwrite(str(tmp_path / 'a.png'), photographs['coffee'][:24, :32])
    assert end(begin(tmp_path, '-c', LOADER, how=how)) == (0, '(1, 3, 24, 32)\n')


def test_a_torchvision_that_has_its_operators_is_left_alone(tmp_path):
    """Older ones load their compiled library only within the module that needs its operators."""
    place = tmp_path / 'torchvision'
    place.mkdir()
    files = {
        '__init__': 'from torchvision import _meta_registrations',
        '_meta_registrations': 'import torchvision.extension',
        'extension': 'import torch\nlibrary = torch.library.Library("torchvision", "DEF")\n'
        'library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")',
    }
    for name, content in files.items():
        (place / f'{name}.py').write_text(content, encoding='utf-8')
    code = 'from sdakd import compat; import torchvision; print(torchvision.__file__, compat._kept)'
    assert end(begin(tmp_path, '-c', code, how='fork')) == (0, f'{place / "__init__.py"} []\n')


def test_a_script_that_its_workers_would_run_again(tmp_path, photographs):
    (tmp_path / 'in').mkdir()
    cv2.imwrite(str(tmp_path / 'in/a.png'), photographs['coffee'])
    line = "from sdakd.commands.prepare.subimages import subimages\nsubimages('in', 'out', crop_size=64, step=64)\n"
    (tmp_path / 'mine.py').write_text(line, encoding='utf-8')
    assert "write `if __name__ == '__main__':` in mine.py" in end(begin(tmp_path, 'mine.py', how='spawn'))[1]


# ------------------------------------------------------ the sources ---------------------------------------------------


def guards(node):
    """Names that a node's surroundings ask for, and what errors they survive."""
    names, errors = set(), set()
    while (parent := getattr(node, 'parent', None)) is not None:
        if isinstance(parent, ast.If | ast.IfExp | ast.BoolOp):
            tested = parent.values[0] if isinstance(parent, ast.BoolOp) else parent.test
            if node is not tested:
                names |= {each.value for each in ast.walk(tested) if isinstance(each, ast.Constant)}
        caught = []
        if isinstance(parent, ast.Try) and node in parent.body:
            caught = [handler.type for handler in parent.handlers if handler.type is not None]
        elif isinstance(parent, ast.With):
            caught = [item.context_expr for item in parent.items if 'suppress' in ast.dump(item.context_expr)]
        errors |= {each.id for one in caught for each in ast.walk(one) if isinstance(each, ast.Name)}
        if isinstance(parent, ast.FunctionDef):  # if not hasattr(os, 'name'): return
            for one in parent.body[: parent.body.index(node)] if node in parent.body else ():
                if isinstance(one, ast.If) and isinstance(one.body[-1], ast.Return):
                    names |= {each.value for each in ast.walk(one.test) if isinstance(each, ast.Constant)}
        node = parent
    return names, errors


def unguarded(source, simulated):
    """What Windows lacks and a source uses without asking, as ``line: name``."""
    lacking = {('os', name) for name in simulated.OF_OS} | {('signal', name) for name in simulated.OF_SIGNAL}
    lacking |= {('select', 'poll'), ('select', 'epoll'), ('os', 'symlink'), ('os', 'link')}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in lacking:
                names, errors = guards(node)
                if node.attr not in names and not ('link' in node.attr and 'OSError' in errors):
                    found.append(f'{node.lineno}: {node.value.id}.{node.attr}')
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if simulated.MODULES & {str(module) for module in modules} and 'ImportError' not in guards(node)[1]:
                found.append(f'{node.lineno}: import {modules[0]}')
        elif isinstance(node, ast.keyword) and node.arg in ('preexec_fn', 'pass_fds', 'dir_fd'):
            found.append(f'{node.value.lineno}: {node.arg}')
        elif isinstance(node, ast.Constant) and str(node.value).startswith('/proc/'):
            if 'OSError' not in guards(node)[1]:
                found.append(f'{node.lineno}: {node.value}')
    return found


def test_no_package_needs_what_windows_lacks(simulated):
    packages = ('sdakd', 'sdakd_arch', 'sdakd_data', 'sdakd_losses', 'sdakd_metrics', 'sdakd_models', 'basicsr')
    files = [path for package in packages for path in (ROOT / package).rglob('*.py')]
    found = {str(path.relative_to(ROOT)): unguarded(path.read_text(encoding='utf-8'), simulated) for path in files}
    # Linux's own account of memory: peak_growth() asks for the system before
    found.pop('sdakd/commands/bench/memory.py')
    assert not {name: uses for name, uses in found.items() if uses}


@pytest.mark.parametrize(
    ('source', 'lacking'),
    [
        ('import fcntl', ['1: import fcntl']),
        ('import os\nos.fork()', ['2: os.fork']),
        ('import os\nif hasattr(os, "fork"):\n    os.fork()\nelse:\n    os.getuid()', ['5: os.getuid']),
        ('import os\nx = os.nice(1) if hasattr(os, "nice") else 0', []),
        ('def f():\n    if not hasattr(os, "sync"):\n        return\n    os.sync()', []),
        ('try:\n    import pwd\nexcept ImportError:\n    pass', []),
        ('try:\n    os.link("a", "b")\nexcept OSError:\n    pass', []),
        ('open("/proc/self/maps")', ['1: /proc/self/maps']),
    ],
)
def test_what_is_unguarded(source, lacking, simulated):
    assert unguarded(source, simulated) == lacking


# --------------------------------------------------- names and messages -----------------------------------------------


@pytest.mark.parametrize(
    ('text', 'pair'),
    [
        ('a/HR:a/LR', ('a/HR', ':', 'a/LR')),
        (':LR', ('', ':', 'LR')),
        (r'C:\HR', (r'C:\HR', '', '')),
        ('D:/HR', ('D:/HR', '', '')),
        (r'C:\HR:C:\LR', (r'C:\HR', ':', r'C:\LR')),
        (r'C:\HR:LR', (r'C:\HR', ':', 'LR')),
        (r'HR:D:\LR', ('HR', ':', r'D:\LR')),
        (r':D:\LR', ('', ':', r'D:\LR')),
        ('HR:', ('HR', ':', '')),
        ('HR', ('HR', '', '')),
    ],
)
def test_the_colon_of_a_drive_does_not_divide(text, pair):
    assert split_pair(text) == pair


def test_paths_that_are_there_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a:b', 'c', 'a', 'C'):
        (tmp_path / name).mkdir()
    assert split_pair('a:b') == ('a:b', '', '')
    assert split_pair('a:b:c') == ('a:b', ':', 'c')
    assert split_pair(f'C:{tmp_path}') == ('C', ':', str(tmp_path))


@pytest.mark.parametrize(
    ('number', 'errno', 'remedy'),
    [(32, 13, 'close the program'), (206, 2, 'shorter path'), (123, 22, 'a name without')],
)
def test_errors_of_windows_say_what_to_do(number, errno, remedy):
    error = OSError(errno, 'it says')
    error.winerror = number
    found = of_system(error, 'file')
    assert isinstance(found, UserError) and not isinstance(found, FullError) and remedy in str(found)
    assert of_system(OSError(22, 'Invalid argument')) is None


def test_letters_that_a_name_may_not_have():
    assert refused_letters('run: 1?', 'nt') == ': ?'
    assert refused_letters('run: 1?', 'posix') == '' == refused_letters('run', 'nt')
