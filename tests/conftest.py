"""What all tests share: BasicSR made importable as the launcher does it, a fixed seed, small photographs."""

import os
import signal
import subprocess
import sys
import warnings

# the tensors of tests are too small to share: threads that wait for each other on busy cores cost many times the work
os.environ.setdefault('OMP_NUM_THREADS', '1')

# signals that are ignored, behind `&` in a script or under nohup, would be ignored in the processes of tests, too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))


def _is_ours(entry):
    return os.path.realpath(entry or '.') in (ROOT, os.path.join(ROOT, 'basicsr'))


# The checkout holds a folder basicsr/ without __init__.py, for the launcher. On the path, it would be a namespace
# package that hides an editable installation of BasicSR: the checkout leaves the path until BasicSR is imported.
sys.path[:] = [entry for entry in sys.path if not _is_ours(entry)]
sys.path.append(ROOT)
with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'torchvision was built', UserWarning)
    from sdakd import compat

    sys.path.remove(ROOT)
    compat.import_basicsr()
sys.path.append(ROOT)

SIMULATED = os.path.join(ROOT, 'tests', 'simulated')


def _simulate_everywhere():
    """Has every process that a test starts simulate what this one does, whatever environment the test gives it."""
    begin = subprocess.Popen.__init__

    def begin_simulated(self, *given, env=None, **more):
        env = {'SIMULATE': os.environ['SIMULATE'], **(os.environ if env is None else env)}
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [env.get('PYTHONPATH'), SIMULATED]))
        begin(self, *given, env=env, **more)

    subprocess.Popen.__init__ = begin_simulated


# for what is started by multiprocessing
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [os.environ.get('PYTHONPATH'), SIMULATED]))
if os.environ.get('SIMULATE'):
    _simulate_everywhere()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# of signals that only POSIX has, limits of a process, links, pipes and devices: Windows has none of what they test
collect_ignore = [] if hasattr(os, 'fork') else ['sdakd/test_boundary.py', 'sdakd/test_disk.py', 'sdakd/test_stops.py']


@pytest.fixture(autouse=True, scope='session')
def _cache(tmp_path_factory):
    """What is remembered beyond a process is remembered in the tests' own folder."""
    os.environ['XDG_CACHE_HOME'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def crops_of_photographs() -> dict[str, np.ndarray]:
    """Crops of 128 x 128 pixels, RGB, uint8, by name."""
    from skimage import data

    corners = {'astronaut': (60, 170), 'chelsea': (60, 120), 'coffee': (100, 240), 'rocket': (150, 260)}
    crops = {name: getattr(data, name)()[top : top + 128, left : left + 128] for name, (top, left) in corners.items()}
    return {name: np.ascontiguousarray(crop) for name, crop in crops.items()}


@pytest.fixture(scope='session')
def photographs() -> dict[str, np.ndarray]:
    """What :func:`crops_of_photographs` returns."""
    return crops_of_photographs()


@pytest.fixture(scope='session')
def photo(photographs) -> torch.Tensor:
    """One photograph as networks take it: ``(1, 3, 128, 128)`` in [0, 1]."""
    return torch.from_numpy(photographs['chelsea']).permute(2, 0, 1)[None].float() / 255


class World:
    """A small run in a folder of its own: eight pairs, a teacher with 8 features, options for three short stages.

    ``options()`` gives fresh options of the student with 4 features; ``write`` puts them into a file.
    """

    def __init__(self, root, photographs) -> None:
        import cv2
        from basicsr.archs.srvgg_arch import SRVGGNetCompact
        from basicsr.utils.matlab_functions import imresize

        from sdakd.commands.prepare.synthesis import PUBLISHED
        from sdakd_models.basicsr_options import Degradation

        self.root = root
        self.degradation = {**PUBLISHED, 'gt_size': 64, 'queue_size': 4}
        at_top = Degradation.__struct_fields__
        self.kernels = {key: value for key, value in PUBLISHED.items() if key not in at_top}
        self.kernels |= {'blur_kernel_size': 21, 'blur_kernel_size2': 21}
        for folder in ('HR', 'LRx4'):
            (root / folder).mkdir()
        for name, image in photographs.items():
            for number in range(2):
                gt = image[:, 64 * number : 64 * number + 64, ::-1]
                cv2.imwrite(str(root / 'HR' / f'{name}{number}.png'), gt)
                lq = imresize(gt.astype(np.float32) / 255, 0.25).clip(0, 1) * 255
                cv2.imwrite(str(root / 'LRx4' / f'{name}{number}.png'), lq.round().astype(np.uint8))
        torch.manual_seed(1)
        self.teacher = SRVGGNetCompact(num_feat=8, num_conv=4)
        torch.save({'params': self.teacher.state_dict()}, root / 'teacher.pth')

    def options(self) -> dict:
        pairs = {
            'type': 'PairedImageDataset',
            'dataroot_gt': str(self.root / 'HR'),
            'dataroot_lq': str(self.root / 'LRx4'),
            'io_backend': {'type': 'disk'},
        }
        train = {'gt_size': 32, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}
        return {
            'name': 'run',
            'model_type': 'SDAKDModel',
            'scale': 4,
            'num_gpu': 'auto',
            'manual_seed': 0,
            'datasets': {'train': {'name': 'pairs', **pairs, **train}, 'val': {'name': 'held_out', **pairs}},
            'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 4},
            'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
            'teacher': {'weights': str(self.root / 'teacher.pth')},
            'path': {},
            'train': {
                'ema_decay': 0.9,
                'stages': {
                    'supervised': {'iters': 20, 'lr_g': 1e-3, 'terms': ['pixel']},
                    'distillation': {'iters': 20, 'lr_g': 1e-3, 'warmup_iter': 5, 'terms': ['pixel', 'feature']},
                    'adversarial': {
                        'iters': 20,
                        'lr_g': 1e-4,
                        'lr_d': 1e-4,
                        'grad_clip': 1.0,
                        'terms': ['pixel', 'feature', 'gan'],
                    },
                },
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
                'feature_opt': {'type': 'FeatureMapLoss', 'loss_weight': 0.1},
                'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
            },
            'val': {
                'val_freq': 1000,
                'save_img': False,
                'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}},
            },
            'logger': {'print_freq': 10, 'save_checkpoint_freq': 1000, 'use_tb_logger': False},
        }

    def write(self, options: dict, name: str = 'run.yml') -> str:
        import yaml

        path = self.root / name
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return str(path)


@pytest.fixture
def world(tmp_path, photographs) -> World:
    """A small run that a test may change and break."""
    return World(tmp_path, photographs)


@pytest.fixture(scope='module')
def shared_world(tmp_path_factory, photographs) -> World:
    """A small run that the tests of a module only read."""
    return World(tmp_path_factory.mktemp('world'), photographs)


class Forked:
    """A training in a forked process, which need not import anything anew.

    Args:
        root: Receives ``experiments/``.
        log: Receives what it prints.
        flags: Of the command line.
        change: Called in the process before it begins, such as to break something.
        environment: Variables in addition to those that are there.
    """

    def __init__(self, root, log, *flags, change=lambda: None, **environment) -> None:
        self.log, self.status = log, None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os._exit(self._train(root, flags, change, environment))
            finally:
                os._exit(99)

    def _train(self, root, flags, change, environment) -> int:
        import atexit
        import logging

        from basicsr.utils.logger import initialized_logger

        import basicsr.train
        import sdakd_models  # noqa: F401

        number = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(number, stream)
        sys.stdout, sys.stderr = (open(stream, 'w', encoding='utf-8', buffering=1) for stream in (1, 2))
        os.environ.update(environment)
        logging.getLogger('basicsr').handlers.clear()
        initialized_logger.clear()
        sys.argv, sys.excepthook = ['train.py', *flags], sys.__excepthook__
        at_end = []
        atexit.register = lambda function, *given: at_end.append((function, given))  # those of the tests are no concern
        change()
        status = 0
        try:
            try:
                basicsr.train.train_pipeline(str(root))
            except Exception:
                status = 1
                sys.excepthook(*sys.exc_info())
        except SystemExit as end:
            status = end.code
        for function, given in reversed(at_end):
            function(*given)
        return status

    def wait(self, seconds: float = 120) -> str:
        """Waits for its end, sets ``status`` and returns what it has printed; fails where it hangs."""
        import time

        until = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                self.kill()
                raise AssertionError(f'it hangs: {self.printed()}')
            time.sleep(0.02)
        return self.printed()

    def kill(self) -> None:
        """SIGKILL, and waits."""
        import signal

        os.kill(self.pid, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ''


@pytest.fixture
def fork(tmp_path):
    """Starts trainings as :class:`Forked`; those that are left are killed."""
    if not hasattr(os, 'fork'):
        pytest.skip('this system starts every process afresh')
    started = []

    def start(root, *flags, **more):
        started.append(Forked(root, tmp_path / f'printed{len(started)}.txt', *flags, **more))
        return started[-1]

    yield start
    for one in started:
        if one.status is None:
            one.kill()


@pytest.fixture
def parse(monkeypatch):
    """Calls the wrapped ``parse_options`` as the command line would; returns the completed options."""
    from sdakd_models import launch

    def call(file, root, *flags):
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(file), *flags])
        monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
        return launch.parse_options(str(root))[0]

    return call
